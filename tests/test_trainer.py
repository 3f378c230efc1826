"""The trainer: any sequence-to-sequence family, adapters, padding, evaluation batches, best model."""

import pytest
import torch
import transformers
from conftest import ROOT, family_of

from src.cli import InputError
from src.tasks.catalogue import load_task
from src.tasks.rows import select_rows
from src.training.flags import ModelArguments, MultitaskArguments, TrainingArguments
from src.training.model import load_family, load_model
from src.training.tokenised import Preparer
from src.training.trainer import Collator, Trainer, TrainingFailed

SMALL = {"d_model": 16, "vocab_size": 315, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
LIKE_BART = SMALL | {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "bos_token_id": 2,
                     "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
                     "max_position_embeddings": 64, "forced_eos_token_id": 1}
LIKE_T5 = SMALL | {"d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
TYPES = {"t5": LIKE_T5, "mt5": LIKE_T5, "umt5": LIKE_T5, "bart": LIKE_BART, "pegasus": LIKE_BART}


@pytest.fixture
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(ROOT / "data/models/tiny-t5")


@pytest.fixture
def prepared(tokenizer, tmp_path):
    """Training and validation rows of demo_a1 under its first template."""
    task = load_task("demo_a1", ROOT / "data/tasks")
    selected = select_rows(task, ["train", "validation"], ROOT / "data/splits/default", tmp_path, 0)
    preparer = Preparer(family_of(tokenizer), tmp_path, 64, 8)
    return {role: preparer.prepare(selection, task.template(0)) for role, selection in selected.items()}


def make_trainer(tokenizer, prepared, folder, model=None, max_source_length=64, **changes):
    settings = {"output_dir": str(folder), "max_steps": 2, "disable_tqdm": True, "learning_rate": 1e-2,
                "predict_with_generate": True, "save_strategy": "no", "use_cpu": True} | changes
    data_args = MultitaskArguments(task_names=["demo_a1"], max_source_length=max_source_length, max_target_length=8)
    model = model or transformers.AutoModelForSeq2SeqLM.from_pretrained(ROOT / "data/models/tiny-t5")
    return Trainer(model, family_of(tokenizer, model.config), TrainingArguments(**settings), data_args,
                   prepared["train"].dataset, {"demo_a1": [prepared["validation"]]})


@pytest.mark.parametrize("family", TYPES)
@pytest.mark.parametrize("adapter", [None, "train_lora"])
def test_families(family, adapter, tokenizer, prepared, tmp_path):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **TYPES[family])
    transformers.AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    arguments = ModelArguments(str(tmp_path / "model"), **({adapter: True} if adapter else {}))
    loaded = load_family(arguments, str(tmp_path))
    model = load_model(arguments, str(tmp_path), loaded)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    trainer = make_trainer(tokenizer, prepared, tmp_path, model)
    trainer.train()
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed and all("lora" in name for name in changed) == bool(adapter)
    scores = trainer.evaluate()
    assert 0 < scores["eval_loss"] < 20 and scores["eval_demo_a1_loss"] == scores["eval_demo_a1_0_loss"]


@pytest.mark.parametrize("flags", [{}, {"label_smoothing_factor": 0.1}])
def test_a_batch_cut_into_smaller_ones_trains_the_same(flags, tokenizer, prepared, tmp_path):
    """Plain descent without clipping, so that a gradient of another size would show."""
    flags |= {"optim": "sgd", "max_grad_norm": 0.0, "logging_steps": 1}
    whole, cut = (make_trainer(tokenizer, prepared, tmp_path, per_device_train_batch_size=size,
                               gradient_accumulation_steps=8 // size, **flags) for size in (8, 2))
    assert cut.train().training_loss == pytest.approx(whole.train().training_loss, rel=1e-5)
    for one, other in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_models_that_write_no_text_are_refused(tmp_path, tokenizer):
    transformers.AutoConfig.for_model("bert", hidden_size=8, num_hidden_layers=1).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"bert writes no text; allowed is .*T5.*GPT-2"):
        load_family(ModelArguments(str(tmp_path)), str(tmp_path))


def test_unknown_lora_module(tokenizer):
    arguments = ModelArguments(str(ROOT / "data/models/tiny-t5"), train_lora=True, lora_target_modules=["qq"])
    with pytest.raises(InputError, match="no linear layer 'qq'"):
        load_model(arguments, "cache", load_family(arguments, "cache"))


def test_padding_to_fixed_shapes_gives_the_same_loss(tokenizer, prepared, tmp_path):
    """What --pad_to_max_length asks for changes the loss by rounding only."""
    trainer = make_trainer(tokenizer, prepared, tmp_path)
    rows = [dict(row) for row in prepared["train"].dataset.select(range(8)).select_columns(["input_ids", "labels"])]
    full = transformers.DataCollatorForSeq2Seq(tokenizer, model=trainer.model, padding="max_length", max_length=64)
    short, long = trainer.data_collator([dict(row) for row in rows]), full(rows)
    assert long["input_ids"].shape[1] == 64 > short["input_ids"].shape[1]
    trainer.model.eval()
    with torch.no_grad():
        assert trainer.model(**short).loss.item() == pytest.approx(trainer.model(**long).loss.item(), rel=1e-5)


def test_evaluation_does_not_depend_on_batches(tokenizer, prepared, tmp_path):
    """The loss is that of all tokens, and batches of short rows grow within the room that the user allows."""
    results, batches = [], []
    for size, longest in ((1, 12), (3, 64), (300, 512)):
        trainer = make_trainer(tokenizer, prepared, tmp_path, per_device_eval_batch_size=size,
                               max_source_length=longest)
        trainer._gen_kwargs = {"max_new_tokens": 8}
        loader = trainer._evaluation_loader(prepared["validation"])
        batches.append([batch["input_ids"].shape[0] for batch in loader])
        assert sum(batches[-1]) == 300
        results.append(trainer.evaluate())
    assert len(batches[0]) > len(batches[1]) > len(batches[2]) == 1
    for name in ("eval_loss", "eval_exact_match", "eval_gen_len"):
        assert [result[name] for result in results[1:]] == pytest.approx([results[0][name]] * 2, rel=1e-4)
    model = trainer.model
    rows = prepared["validation"].dataset.select_columns(["input_ids", "labels"])
    batch = trainer.data_collator([dict(row) for row in rows])
    with torch.no_grad():  # every target has as many tokens, so the mean over tokens is the model's own loss
        assert results[0]["eval_loss"] == pytest.approx(model.eval()(**batch).loss.item(), rel=1e-4)


def test_output_is_cut_where_exact_match_cannot_change(prepared, tokenizer):
    entry = prepared["validation"]
    assert entry.longest_choice == len(tokenizer("green").input_ids)
    assert entry.longest_choice < entry.generation_length(128) < 10 and entry.generation_length(3) == 3


def test_three_empty_evaluations_end_the_run(tokenizer, prepared, tmp_path, monkeypatch):
    trainer = make_trainer(tokenizer, prepared, tmp_path, max_steps=8, eval_strategy="steps", eval_steps=1)
    monkeypatch.setattr(trainer.processing_class, "batch_decode", lambda ids, **_: [""] * len(ids))
    with pytest.raises(TrainingFailed, match="only empty text"):
        trainer.train()
    assert trainer.state.global_step == 3


def test_fixed_shapes_are_each_sides_own(tokenizer, prepared, tmp_path):
    """Targets are padded to their own length, and may be longer than the longest input."""
    trainer = make_trainer(tokenizer, prepared, tmp_path)
    rows = [{"input_ids": [5, 6, 1], "labels": [7] * 9}, {"input_ids": [5, 1], "labels": [7, 1]}]
    fixed = Collator(trainer.family, trainer.model, (4, 12), None)(rows)
    assert fixed["input_ids"].shape == (2, 4) and fixed["labels"].shape == (2, 12)
    assert fixed["attention_mask"].sum(1).tolist() == [3, 2] and (fixed["labels"] != -100).sum(1).tolist() == [9, 2]
    assert fixed["decoder_input_ids"].shape == (2, 12)
    rounded = Collator(trainer.family, trainer.model, (20, 20), 8)(rows)
    assert rounded["input_ids"].shape == (2, 8) and rounded["labels"].shape == (2, 16)
    limited = Collator(trainer.family, trainer.model, (20, 12), 8)(rows)
    assert limited["input_ids"].shape == (2, 8) and limited["labels"].shape == (2, 12)


def test_generation_settings_of_the_model_folder_change_no_score(tokenizer, prepared, tmp_path, caplog):
    plain = make_trainer(tokenizer, prepared, tmp_path).evaluate()
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(ROOT / "data/models/tiny-t5")
    model.generation_config.update(min_length=6, repetition_penalty=9.0, no_repeat_ngram_size=1)
    caplog.set_level("INFO")
    trainer = make_trainer(tokenizer, prepared, tmp_path, model)
    assert "not by those of the model folder: min_length 6, no_repeat_ngram_size 1, repetition_penalty 9" in caplog.text
    changed = trainer.evaluate()
    timed = ("runtime", "per_second")
    assert {k: v for k, v in plain.items() if not k.endswith(timed)} == {
        k: v for k, v in changed.items() if not k.endswith(timed)}
    assert model.generation_config.min_length == 6  # a saved model keeps them
