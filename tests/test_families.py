"""Families of models: what stands around texts, padding, loss, generation and choices of decoder-only models."""

import copy
import json
import shlex
import shutil
import warnings

import pytest
import torch
import transformers
from conftest import DECODER_ONLY, ROOT, family_of
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedTokenizerFast

from src.cli import InputError
from src.tasks.catalogue import load_task
from src.tasks.rows import select_rows
from src.training import families
from src.training.families import IGNORED, padded
from src.training.flags import ModelArguments
from src.training.model import load_family, load_model
from src.training.scored import choice_scores, token_losses
from src.training.tokenised import Preparer

CHATML = """{% if messages[0].role != 'system' %}<|im_start|>system
Be kind.<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def bytes_tokenizer(**special) -> PreTrainedTokenizerFast:
    """Of GPT-2's kind: bytes and a few merges; one token both begins and ends texts, and stands for unknown ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "n"), ("y", "e"), ("ye", "s"), ("n", "o"), ("?", "Ċ")]
    words = ["<|endoftext|>", *alphabet, *map("".join, merges)]
    backend = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    names = {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"} | special
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def pieces_tokenizer() -> PreTrainedTokenizerFast:
    """Of Llama's first kind: words that begin with ▁, signs that are in no word as bytes, <s> before all."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz?",
             "▁y", "ye", "yes", "▁ye", "▁yes"]
    merges = [("▁", "y"), ("y", "e"), ("ye", "s"), ("▁", "ye"), ("▁", "yes")]
    backend = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges, byte_fallback=True,
                                   fuse_unk=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                         decoders.Strip(" ", 1, 0)])
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", bos_token="<s>", unk_token="<unk>")


def chat_tokenizer(template=CHATML) -> PreTrainedTokenizerFast:
    """Of SmolLM2's kind: the token that ends a turn is the end token and the pad token, too."""
    tokenizer = bytes_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|im_start|>", special=True)],
                                  "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"})
    tokenizer.chat_template = template
    return tokenizer


def family(tokenizer, prefix="", chat_template="auto", system=None, **config):
    """That of a Llama."""
    return family_of(tokenizer, AutoConfig.for_model("llama", **DECODER_ONLY["llama"] | config), prefix, chat_template,
                     system)


def tokens(family, ids):
    return family.tokenizer.convert_ids_to_tokens(ids)


# ---- what stands around texts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer, prompt, target", [
    (bytes_tokenizer, ["o", "k", "Ċ"], ["yes", "<|endoftext|>"]),
    (pieces_tokenizer, ["<s>", "▁", "o", "k", "<0x0A>"], ["yes", "</s>"]),  # no ▁: a new line has just begun
    (chat_tokenizer, ["<|im_start|>", *"system", "Ċ", *"Be", "Ġ", *"kind.", "<|im_end|>", "Ċ", "<|im_start|>", *"user",
                      "Ċ", "o", "k", "<|im_end|>", "Ċ", "<|im_start|>", *"assistant", "Ċ"], ["yes", "<|im_end|>"]),
])
def test_what_a_model_reads_and_writes(tokenizer, prompt, target):
    found = family(tokenizer(), eos_token_id=None)
    assert tokens(found, found.prompts(["ok"])[0]) == prompt
    assert tokens(found, found.targets(["yes"])[0]) == target
    assert tokens(found, found.targets(["yes"], closed=False)[0]) == target[:-1]
    assert found.ends[0] == found.tokenizer.eos_token_id
    # A token of the tokenizer may reach over the end of the input; prompt and target still make one text.
    assert found.tokenizer.decode(found.prompts(["ok?"])[0] + found.targets(["yes"])[0], skip_special_tokens=True
                                  ).endswith("ok?\nyes" if found.frame.own else "assistant\nyes")
    assert found.prompt_overhead == len(prompt) - 2


def test_a_token_that_reaches_over_the_border_is_taken_apart():
    tokenizer = bytes_tokenizer()
    config = AutoConfig.for_model("llama", **DECODER_ONLY["llama"])
    found = families.DecoderOnly(config, tokenizer, transformers.GenerationConfig(), families.Frame(between=" "))
    assert tokens(found, tokenizer(" no")["input_ids"]) == ["Ġn", "o"]  # what one text would give
    assert tokens(found, found.targets(["no"], closed=False)[0]) == ["no"]


def test_system_prompt_and_prefix():
    found = family(chat_tokenizer(), prefix="Q: ", system="Think.")
    text = found.tokenizer.decode(found.prompts(["ok"])[0])
    assert "system\nThink." in text and "kind" not in text and "user\nQ: ok<" in text
    assert "kind" not in found.tokenizer.decode(family(chat_tokenizer(), system="none").prompts(["ok"])[0])
    plain = family(chat_tokenizer(), chat_template="none")
    assert tokens(plain, plain.prompts(["ok"])[0] + plain.targets(["no"])[0]) == ["o", "k", "Ċ", "no", "<|im_end|>"]


def test_a_template_of_a_file(tmp_path):
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}[{{ m.role }}: {{ m.content }}]"
                                         "{{ eos_token if m.role == 'assistant' }}{% endfor %}"
                                         "{% if add_generation_prompt %}[assistant: {% endif %}")
    found = family(bytes_tokenizer(), chat_template=str(tmp_path / "mine.jinja"), eos_token_id=None)
    assert found.tokenizer.decode(found.prompts(["ok"])[0]) == "[user: ok][assistant: "
    assert found.tokenizer.decode(found.targets(["no"])[0]) == "no]<|endoftext|>"
    assert found.key != family(bytes_tokenizer(), eos_token_id=None).key


def test_words_before_the_answer_are_read_not_written():
    thinking = CHATML.replace("{{ m.content }}", "{{ '<think>\n</think>\n' if m.role == 'assistant' }}{{ m.content }}")
    found = family(chat_tokenizer(thinking))
    assert found.tokenizer.decode(found.prompts(["ok"])[0]).endswith("assistant\n<think>\n</think>\n")
    assert tokens(found, found.targets(["no"])[0]) == ["no", "<|im_end|>"]


def test_a_template_that_asks_for_the_date_is_told_a_fixed_one():
    dated = "{{ strftime_now('%d %b %Y') }} {{ date_string }}\n" + CHATML
    assert "26 Jul 2024 26 Jul 2024" in family(chat_tokenizer(dated)).frame.before


@pytest.mark.parametrize("template, words", [
    (CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>other\n{% endif %}"), "not a beginning"),
    (CHATML.replace("{{ m.content }}", "{{ m.content | upper }}"), "does not put the user's turn into the text as it"),
    (CHATML.replace("<|im_end|>", ""), "no end token of the model"),
    (CHATML.replace("Be kind.", "{{ messages[0].content | length }}"), "depends on what they say"),
    ("{{ raise_exception('no way') }}", "no way"),
    ("{% for", "chat_template"),
])
def test_chat_templates_that_cannot_be_used(template, words):
    with pytest.raises(InputError, match=words):
        family(chat_tokenizer(template), eos_token_id=None)


@pytest.mark.parametrize("flags, words", [
    ({"chat_template": "nowhere.jinja"}, "--chat_template nowhere.jinja: no such file; allowed are auto, none, or"),
    ({"system": "Hi.", "chat_template": "none"}, "--system_prompt: it is used without a chat template"),
])
def test_flags_that_cannot_be_followed(flags, words):
    with pytest.raises(InputError, match=words):
        family(chat_tokenizer(), **flags)


def test_an_encoder_decoder_has_no_chat(tmp_path):
    for flags in ({"chat_template": "my.jinja"}, {"system_prompt": "Hi."}):
        with pytest.raises(InputError, match="is an encoder-decoder, which reads plain text"):
            load_family(ModelArguments(str(ROOT / "data/models/tiny-t5"), **flags), str(tmp_path))
    found = load_family(ModelArguments(str(ROOT / "data/models/tiny-t5"), chat_template="none"), str(tmp_path), "do: ")
    plain = load_family(ModelArguments(str(ROOT / "data/models/tiny-t5")), str(tmp_path))
    assert found.prompts(["x"]) == plain.prompts(["do: x"]) and found.key != plain.key


@pytest.mark.parametrize("source, target, words", [
    (37, 8, r"what stands around an input takes \d+ tokens, so at least one more"),
    (90, 8, "--max_source_length 90 with targets of up to 8 tokens: it has 96 positions"),
])
def test_lengths_that_do_not_fit(source, target, words):
    found = family(chat_tokenizer())
    found.check_lengths("it", 88, 8, 0)
    with pytest.raises(InputError, match=words):
        found.check_lengths("it", source, target, 0)


@pytest.mark.parametrize("kind, config, words", [
    ("mistral", {"sliding_window": 64}, "look back 64 tokens only, rows may have 80"),
    ("mixtral", {}, "it sends each token to a few experts"),
    ("qwen3_next", {}, "it sends each token to a few experts|recurrent"),
])
def test_models_of_which_no_gradients_of_examples_are_taken(kind, config, words):
    found = family_of(chat_tokenizer(), AutoConfig.for_model(kind, **config))
    if kind == "mistral":
        found.check_gradients("it", 64)
    with pytest.raises(InputError, match=words):
        found.check_gradients("it", 80)


def test_models_that_end_texts_differently_share_no_tokenised_rows(tmp_path):
    """As a base model and the chat model made of it, which have one vocabulary."""
    task = load_task("demo_a1", ROOT / "data/tasks")
    selection = select_rows(task, ["train"], ROOT / "data/splits/default", tmp_path, 0, downsample=4)["train"]
    for end in ("<|im_end|>", "<|endoftext|>"):
        tokenizer = chat_tokenizer(None)
        tokenizer.eos_token = end
        prepared = Preparer(family(tokenizer, eos_token_id=None), tmp_path, 64, 8).prepare(selection, task.template(0))
        assert {ids[-1] for ids in prepared.dataset["labels"]} == {tokenizer.eos_token_id}, end


# ---- batches -------------------------------------------------------------------------------------------------------

PROMPTS = [[5, 9, 12, 7], [11, 4], [30, 31, 32, 33, 34, 35, 1, 36]]  # an end token may stand within
TARGETS = [[8, 1], [20, 6, 1], [9, 1, 3, 1]]


@pytest.fixture(params=DECODER_ONLY)
def both(request):
    """A small random model and its family; pad and end token are the same."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, **DECODER_ONLY[request.param] | {"pad_token_id": 1})
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data/models/tiny-t5")
    tokenizer.pad_token = tokenizer.eos_token
    return AutoModelForCausalLM.from_config(config).eval(), family_of(tokenizer, config)


def collated(model, found, prompts=PROMPTS, targets=TARGETS, more=0):
    return found.collate(model, prompts, targets, [max(map(len, rows)) + more for rows in (prompts, targets)])


def test_loss_is_that_of_the_library(both):
    model, found = both
    batch = collated(model, found, more=3)
    labels = batch.pop("labels")
    sums, count = 0.0, 0
    for prompt, target in zip(PROMPTS, TARGETS, strict=True):  # one by one, without padding
        own = [*[IGNORED] * len(prompt), *target]
        loss = model(input_ids=torch.tensor([prompt + target]), labels=torch.tensor([own])).loss
        sums, count = sums + float(loss) * len(target), count + len(target)
    outputs = model(**batch)
    assert float(found.loss(outputs, labels)) == pytest.approx(sums / count, rel=1e-5)
    assert float(found.loss(outputs, labels, num_items_in_batch=90)) == pytest.approx(sums / 90, rel=1e-5)
    smoother = transformers.trainer_pt_utils.LabelSmoother(epsilon=0.1)
    logits, _ = found.target_logits(model, batch | {"labels": labels})
    assert float(found.loss(outputs, labels, label_smoothing=0.1)) == pytest.approx(
        float(smoother({"logits": logits}, labels)), rel=1e-5)


EXPERTS = {"num_local_experts": 4, "num_experts": 4, "output_router_logits": True, "initializer_range": 0.5}
ROUTED = {
    "mixtral": DECODER_ONLY["llama"] | EXPERTS | {"router_aux_loss_coef": 0.5},
    "qwen2_moe": DECODER_ONLY["llama"] | EXPERTS | {"router_aux_loss_coef": 0.5, "moe_intermediate_size": 8,
                                                    "shared_expert_intermediate_size": 8},
    "jetmoe": DECODER_ONLY["llama"] | EXPERTS | {"aux_loss_coef": 0.5, "kv_channels": 8},
}


@pytest.mark.parametrize("kind", ROUTED)
def test_loss_of_routers_is_that_of_the_library(kind):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **ROUTED[kind])
    model = AutoModelForCausalLM.from_config(config).eval()
    found = family_of(AutoTokenizer.from_pretrained(ROOT / "data/models/tiny-t5"), config)
    batch = collated(model, found, more=3)
    labels = batch.pop("labels")
    outputs = model(**batch)
    batch.pop("logits_to_keep", None)
    own = torch.nn.functional.pad(labels, (batch["input_ids"].shape[1] - labels.shape[1], 0), value=IGNORED)
    theirs = model(**batch, labels=own).loss
    assert float(found.loss(outputs, labels)) == pytest.approx(float(theirs), rel=1e-5)
    without = float(token_losses(*found.target_logits(model, batch | {"labels": labels})).sum()) / 9
    assert float(theirs) > 1.05 * without  # the routers' part is in it


def test_encoder_decoders_with_routers():
    torch.manual_seed(0)
    config = AutoConfig.for_model("switch_transformers", vocab_size=315, d_model=16, d_kv=8, d_ff=16, num_heads=2,
                                  num_layers=2, num_experts=4, decoder_start_token_id=0)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data/models/tiny-t5")
    model, found = AutoModelForSeq2SeqLM.from_config(config).eval(), family_of(tokenizer, config)
    batch = collated(model, found)
    labels = batch.pop("labels")
    assert float(found.loss(model(**batch), labels)) == pytest.approx(float(model(**batch, labels=labels).loss))
    for refused in (config, AutoConfig.for_model("dbrx")):
        refused.output_router_logits = True
        with pytest.raises(InputError, match=r"'it': its config.json asks for the loss of its routers .* to false"):
            family_of(tokenizer, refused)


def test_only_the_targets_go_through_the_output_layer(both):
    model, found = both
    seen = []
    model.get_output_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[:-1]))
    found.target_logits(model, collated(model, found))
    assert [shape.numel() for shape in seen] == [3 * (4 + 1)]


def test_generation_in_batches_is_that_of_single_rows(both):
    model, found = both
    model.generation_config.eos_token_id = None
    batch = collated(model, found)
    together = found.generate(model, batch, max_new_tokens=5, do_sample=False)
    for i, prompt in enumerate(PROMPTS):
        alone = found.generate(model, collated(model, found, [prompt], [[1]]), max_new_tokens=5, do_sample=False)[0]
        assert together[i].tolist()[:len(alone)] == alone.tolist()


@pytest.mark.parametrize("choices", [[[[3], [8], [20]], [[4], [20], [6]], [[9], [2]]],
                                     [[[3, 5], [8]], [[20, 6, 1], [20, 1]], [[9], [7, 7], [2]]]])
def test_choices_are_scored_as_row_by_row(both, choices):
    model, found = both
    batch = collated(model, found)
    logits, _ = found.target_logits(model, batch)
    longest, most = max(len(ids) for row in choices for ids in row), max(map(len, choices))
    ids = torch.stack([padded([*row, *[[]] * (most - len(row))], longest, IGNORED) for row in choices])
    scores = choice_scores(found, model, batch, logits, ids)
    for i, row in enumerate(choices):
        for k, target in enumerate(row):
            one = model(input_ids=torch.tensor([PROMPTS[i] + target])).logits[0, len(PROMPTS[i]) - 1:-1]
            assert float(scores[i, k]) == pytest.approx(-float(cross_entropy(one, torch.tensor(target),
                                                                             reduction="sum")), rel=1e-4)
        assert torch.isinf(scores[i, len(row):]).all()


def test_losses_of_a_large_vocabulary_are_exact():
    torch.manual_seed(0)
    logits, labels = 3 * torch.randn(2, 2, 50000), torch.tensor([[7, 8], [9, IGNORED]])
    exact = -logits.double().log_softmax(2).gather(2, labels.clamp(min=0)[:, :, None])[:, :, 0] * (labels != IGNORED)
    assert torch.allclose(token_losses(logits, labels).double(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
@pytest.mark.parametrize("flag", ["train_prefix", "train_prompt_tuning"])
def test_virtual_tokens(kind, flag, tmp_path):
    """They train, and what they give does not depend on the padding of the batch."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(
        kind, **DECODER_ONLY[kind], initializer_range=0.5, init_std=0.5)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(ROOT / "data/models/tiny-t5").save_pretrained(tmp_path)
    arguments = ModelArguments(str(tmp_path), num_virtual_tokens=3, **{flag: True})
    found = load_family(arguments, "cache")
    model = load_model(arguments, "cache", found)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1.0)
    before = copy.deepcopy(model.get_base_model().state_dict())
    losses = []
    for _ in range(30):
        batch = collated(model, found)
        labels = batch.pop("labels")
        losses.append(found.loss(model(**batch), labels))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(losses[-1]) < 0.9 * float(losses[0])
    assert all(torch.equal(value, before[name]) for name, value in model.get_base_model().state_dict().items())
    model.eval()
    with torch.no_grad():
        together, _ = found.target_logits(model, collated(model, found, more=4))
        written = found.generate(model, collated(model, found), max_new_tokens=4, do_sample=False)
        for i, (prompt, target) in enumerate(zip(PROMPTS, TARGETS, strict=True)):
            alone, _ = found.target_logits(model, collated(model, found, [prompt], [target]))
            assert torch.allclose(together[i, :len(target)], alone[0], atol=1e-5)
            single = found.generate(model, collated(model, found, [prompt], [target]), max_new_tokens=4,
                                    do_sample=False)[0]
            assert written[i].tolist()[:len(single)] == single.tolist()


# ---- the scripts ---------------------------------------------------------------------------------------------------


@pytest.fixture
def gpt2(scratch):
    """The folder `gpt2`: a small random model with a tokenizer that knows no pad token."""
    torch.manual_seed(0)
    tokenizer = bytes_tokenizer()
    config = AutoConfig.for_model("gpt2", n_embd=32, n_layer=2, n_head=2, n_positions=192, vocab_size=len(tokenizer),
                                  bos_token_id=0, eos_token_id=0)
    AutoModelForCausalLM.from_config(config).save_pretrained("gpt2")
    tokenizer.save_pretrained("gpt2")
    return scratch


FLAGS = shlex.split("""
    --do_train --do_eval --model_name_or_path gpt2 --task_names demo_a1 demo_b1 --max_source_length 150
    --max_target_length 16 --max_steps 20 --eval_strategy steps --eval_steps 10 --save_steps 10
    --learning_rate 5e-3 --save_total_limit 3 --load_best_model_at_end --score_choices True
    --per_device_train_batch_size 16 --downsample 24 --disable_tqdm True""")


@pytest.mark.parametrize("extra", [
    "--metric_for_best_model eval_choice_accuracy",
    "--metric_for_best_model eval_choice_loss --train_lora True --lora_target_modules all-linear "
    "--gradient_checkpointing True --model_dtype bfloat16",
    "--metric_for_best_model eval_loss --predict_with_generate True --gradient_accumulation_steps 2 --bf16 True"])
def test_a_decoder_only_model_goes_on_as_if_never_broken_off(gpt2, extra):
    flags = [*FLAGS, *shlex.split(extra)]
    assert gpt2.run("train_multitask.py", *flags, "--save_name", "whole", "--output_dir", "other", "--seed", 7) == 0
    whole = gpt2.rows("whole")
    metrics = {"loss", "choice_accuracy", "choice_loss"} | (
        {"exact_match", "accuracy", "gen_len"} if "generate" in extra else set())
    assert {row["metric"] for row in whole} == metrics and {row["item"] for row in whole} == {"demo_a1", "demo_b1"}
    assert gpt2.run("train_multitask.py", *flags, "--save_name", "broken", "--seed", 7) == 0
    for path in (gpt2.folder / "results/broken/runs").iterdir():
        path.unlink()
    (folder,) = (gpt2.folder / "saved").iterdir()
    shutil.rmtree(folder / "checkpoint-20")
    assert gpt2.run("train_multitask.py", *flags, "--save_name", "broken", "--seed", 7) == 0
    record = json.loads(next((gpt2.folder / "results/broken/runs").glob("*.json")).read_text())
    assert record["training"]["resumed_from"].endswith("checkpoint-10")
    assert [row["value"] for row in gpt2.rows("broken")] == [row["value"] for row in whole]


def test_lora_on_a_layer_of_the_other_shape_warns_of_nothing(gpt2):
    arguments = ModelArguments("gpt2", train_lora=True, lora_target_modules=["all-linear"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of PEFT, on GPT-2's layers
        model = load_model(arguments, "cache", load_family(arguments, "cache"))
    assert model.peft_config["default"].fan_in_fan_out


def test_padding_to_multiples_stays_within_the_positions(gpt2):
    """GPT-Neo's masks hold its positions alone; padded to a multiple of 8 each, 91 and 5 tokens would be 96 and 8."""
    tokenizer = AutoTokenizer.from_pretrained("gpt2")
    config = AutoConfig.for_model("gpt_neo", **DECODER_ONLY["gpt_neo"] | {"vocab_size": len(tokenizer),
                                                                         "bos_token_id": 0, "eos_token_id": 0})
    AutoModelForCausalLM.from_config(config).save_pretrained("neo")
    tokenizer.save_pretrained("neo")
    flags = [*FLAGS, "--metric_for_best_model", "eval_choice_loss", "--source_prefix", "x" * 85, "--bf16",
             "True", "--predict_with_generate", "True", "--generation_max_length", "5", "--max_steps", "10",
             "--model_name_or_path", "neo", "--task_names", "demo_a1", "--max_source_length", "91",
             "--max_target_length", "5"]
    assert gpt2.run("train_multitask.py", *flags, "--save_name", "x") == 0
    assert {"exact_match", "choice_loss"} < {row["metric"] for row in gpt2.rows("x")}
    assert gpt2.run("train_multitask.py", *flags, "--max_source_length", "92") == 2


@pytest.mark.parametrize("extra, words", [
    ("--model_dtype bfloat16", "--model_dtype bfloat16: weights of bfloat16 are too coarse to be trained; use float32"),
    ("--max_source_length 190", "it has 192 positions for all of them"),
    ("--max_source_length 191 --max_target_length 1 --generation_max_length 1 --score_choices True",  # a longer choice
     "it has 192 positions for all of them"),
    ("--metric_for_best_model eval_exact_match --predict_with_generate False", "no such metric among those"),
    ("--lora_target_modules c_atn --train_lora True", "no linear layer 'c_atn'; did you mean 'c_attn'?"),
])
def test_bad_input(gpt2, extra, words, capsys):
    assert gpt2.run("train_multitask.py", *FLAGS, "--metric_for_best_model", "eval_loss", *shlex.split(extra)) == 2
    assert words.replace("it has", "gpt2 has") in capsys.readouterr().err and not (gpt2.folder / "results").exists()


def test_a_sweep_of_decoder_only_models(gpt2):
    """Of instructions with LoRA, scored by likelihood alone."""
    assert gpt2.run("train_sample_instructions_lora.py", *shlex.split("""--model_name_or_path gpt2 --dataset demo_a1
        --num_tasks 3 --min_task_num 2 --max_task_num 2 --num_samples 2 --max_steps 5 --eval_steps 5 --save_steps 5
        --downsample 32 --max_source_length 150 --max_target_length 16 --predict_with_generate False
        --score_choices True --metric_for_best_model eval_choice_accuracy --lr 1e-3 --batch_size 8 --lora_rank 2
        --task_set_name s --save_name s --device cpu""")) == 0
    found = gpt2.rows("s")
    assert {row["metric"] for row in found} == {"loss", "choice_accuracy", "choice_loss"} and len(found) == 12
