"""Adapter folders and checkpoints are models: merged, or trained on; what is broken is named in one line."""

import json
import shutil

import peft
import pytest
import torch
from conftest import DEMO, ROOT

from src.cli import InputError
from src.training.flags import ModelArguments
from src.training.model import load_family, load_model

TINY = str(ROOT / "data/models/tiny-t5")
LORA = {"lora_rank": 2, "lora_alpha": 8}


@pytest.fixture
def adapter(tmp_path):
    """The folder of a LoRA adapter of rank 2 that changes what the model says; without a tokenizer."""
    torch.manual_seed(0)
    model = load(TINY, train_lora=True, **LORA)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def load(name, **flags):
    arguments = ModelArguments(str(name), **flags)
    return load_model(arguments, "cache", load_family(arguments, "cache")).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([[5, 9, 1]]), labels=torch.tensor([[8, 1]])).logits


def test_an_adapter_is_merged_or_trained_on(adapter):
    going_on, merged = load(adapter, train_lora=True, **LORA), load(adapter)
    expected = logits(peft.PeftModel.from_pretrained(load(TINY), adapter).eval())
    assert torch.allclose(logits(going_on), expected, atol=1e-4)
    assert torch.allclose(logits(merged), expected, atol=1e-4)
    assert not torch.allclose(logits(load(TINY)), expected, atol=1e-2)
    trained = {name for name, parameter in going_on.named_parameters() if parameter.requires_grad}
    assert trained and all("lora" in name for name in trained)
    assert not isinstance(merged, peft.PeftModel) and all(p.requires_grad for p in merged.parameters())
    assert not any("lora" in name for name, _ in merged.named_parameters())
    prefix = load(adapter, train_prefix=True)  # a new one, on top of the merged one
    assert isinstance(prefix, peft.PeftModel) and list(prefix.peft_config) == ["default"]


def test_weights_are_of_the_type_that_the_config_names(tmp_path):
    """So that what is checked before a model is loaded is what is loaded: float32 where it names none."""
    load_family(ModelArguments(TINY), "cache").tokenizer.save_pretrained(tmp_path)
    load(TINY).bfloat16().save_pretrained(tmp_path)
    assert load(tmp_path).dtype == torch.float32
    assert load(tmp_path, model_dtype="auto").dtype == torch.bfloat16
    config = json.loads((tmp_path / "config.json").read_text())
    del config["dtype"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load(tmp_path, model_dtype="auto").dtype == torch.float32


def test_the_tokenizer_is_the_adapters_where_it_has_one(adapter):
    assert len(load_family(ModelArguments(str(adapter)), "cache").tokenizer) == 315
    own = load_family(ModelArguments(TINY), "cache").tokenizer
    own.add_tokens(["<new>"])
    own.save_pretrained(adapter)
    assert len(load_family(ModelArguments(str(adapter)), "cache").tokenizer) == 316


@pytest.mark.parametrize(("flags", "message"), [
    ({}, "--lora_rank 4: the adapter in .*adapter.* has --lora_rank 2"),
    (LORA | {"lora_alpha": 9}, "--lora_alpha 9: the adapter in .* has --lora_alpha 8"),
    (LORA | {"lora_dropout": 0.1}, "--lora_dropout 0.1: .* has --lora_dropout 0"),
    (LORA | {"lora_target_modules": ["q", "o"]}, "--lora_target_modules q o: .* has --lora_target_modules q v"),
])
def test_another_adapter_than_the_saved_one(adapter, flags, message):
    with pytest.raises(InputError, match=message):
        load_family(ModelArguments(str(adapter), train_lora=True, **flags), "cache")
    load_family(ModelArguments(str(adapter), train_lora=False, **flags), "cache")


def test_flags_that_say_what_the_adapter_has(adapter):
    load_family(ModelArguments(str(adapter), train_lora=True, lora_target_modules=["v", "q"], **LORA), "cache")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["q", "o"]}))
    with pytest.raises(InputError, match=r"--lora_target_modules q v: .* has --lora_target_modules o q"):
        load_family(ModelArguments(str(adapter), train_lora=True, **LORA), "cache")


def test_an_adapter_on_all_linear_layers_is_trained_on(tmp_path):
    """PEFT saves their names one by one."""
    load(TINY, train_lora=True, lora_target_modules=["all-linear"]).save_pretrained(tmp_path)
    load_family(ModelArguments(str(tmp_path), train_lora=True, lora_target_modules=["all-linear"]), "cache")
    with pytest.raises(InputError, match=r"--lora_target_modules q v: .* has --lora_target_modules all-linear"):
        load_family(ModelArguments(str(tmp_path), train_lora=True), "cache")
    names = sorted({name.rpartition(".")[2] for name in json.loads(
        (tmp_path / "adapter_config.json").read_text())["target_modules"]})
    load_family(ModelArguments(str(tmp_path), train_lora=True, lora_target_modules=names), "cache")


def test_broken_adapters(adapter):
    def message():
        with pytest.raises(InputError) as found:
            load(adapter)
        assert str(found.value).startswith("--model_name_or_path") and "\n" not in str(found.value)
        return str(found.value)

    weights = adapter / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    assert "no model that can be loaded" in message()
    from safetensors.torch import load_file, save_file

    weights.write_bytes(whole)
    tensors = load_file(weights)
    save_file(dict(list(tensors.items())[1:]), weights)
    assert "Found missing adapter keys" in message()
    save_file({name: value[:1] for name, value in tensors.items()}, weights)
    message()
    weights.unlink()
    assert "no weights there (adapter_model.safetensors" in message()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert "names no base_model_name_or_path" in message()
    (adapter / "adapter_config.json").write_text("{")
    message()


def test_no_code_of_a_model_is_run(tmp_path):
    shutil.copytree(TINY, tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps(config | {
        "model_type": "mine", "auto_map": {"AutoConfig": "code.Config", "AutoModelForSeq2SeqLM": "code.Model"}}))
    (tmp_path / "model/code.py").write_text("raise SystemExit('the code was run')")
    with pytest.raises(InputError, match=r"trust_remote_code|custom code"):
        load_family(ModelArguments(str(tmp_path / "model")), "cache")


def test_training_goes_on_from_checkpoints(scratch):
    """What a training script has saved, an adapter or a whole model, is --model_name_or_path of the next."""
    short = [*DEMO, "--task_names", "demo_a1", "--downsample", 8]
    short += ["--max_steps", 2, "--eval_steps", 2, "--save_steps", 2]
    lora = ["--train_lora", "True", "--lora_rank", 2]
    assert scratch.run("train_multitask.py", *short, *lora, "--run_name", "one") == 0
    first = ["--model_name_or_path", "saved/one-s42/checkpoint-2"]
    assert scratch.run("train_multitask.py", *short, *first, *lora, "--run_name", "two") == 0
    assert (scratch.folder / "saved/two-s42/checkpoint-2/adapter_model.safetensors").exists()
    assert scratch.run("train_multitask.py", *short, *first, "--run_name", "three") == 0
    assert (scratch.folder / "saved/three-s42/checkpoint-2/model.safetensors").exists()
    second = ["--model_name_or_path", "saved/three-s42/checkpoint-2"]
    assert scratch.run("train_multitask.py", *short, *second, "--run_name", "four") == 0
    assert scratch.run("train_multitask.py", *short, *first, "--train_lora", "True") == 2


def test_a_part_is_trained(adapter, caplog):
    caplog.set_level("INFO", "src")
    model = load(TINY, train_only=r"decoder.*SelfAttention\.[qk]")
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names == {f"decoder.block.0.layer.0.SelfAttention.{which}.weight" for which in "qk"}
    assert "2048 of 31040 parameters are trained" in caplog.text
    merged = load(adapter, train_only="layer_norm")
    assert {p.requires_grad for n, p in merged.named_parameters() if "layer_norm" in n} == {True}
    assert not any(p.requires_grad for n, p in merged.named_parameters() if "layer_norm" not in n)


def test_no_parameter_to_be_trained(scratch, capsys):
    flags = [*DEMO, "--task_names", "demo_a1", "--max_steps", 2, "--eval_steps", 2, "--save_steps", 2]
    assert scratch.run("train_multitask.py", *flags, "--train_only", "decoder.blok.0") == 2
    error = capsys.readouterr().err
    assert "--train_only 'decoder.blok.0': it is found in no name" in error and "nearest are decoder.block.0." in error
    assert not (scratch.folder / "results").exists() and error.count("\n") == 1


def test_the_rest_stays_as_it_was_also_after_a_resume(scratch, capsys):
    flags = [*DEMO, "--task_names", "demo_a1", "--downsample", 60, "--max_steps", 20, "--eval_steps", 10]
    flags += ["--save_steps", 10, "--save_total_limit", 3, "--train_only", "decoder", "--run_name", "r"]
    flags += ["--save_name", "part"]
    assert scratch.run("train_multitask.py", *flags) == 0
    folder = scratch.folder / "saved/r-s42"
    record = json.loads((scratch.folder / "results/part/runs/r-s42.json").read_text())
    before, now = load(TINY).state_dict(), load(folder / "checkpoint-20").state_dict()
    changed = {name for name in before if not torch.equal(before[name], now[name])}
    assert changed == {name for name in before if name.startswith("decoder.") and "embed_tokens" not in name}
    assert record["training"]["trainable_parameters"] == sum(before[name].numel() for name in changed)
    shutil.rmtree(folder / "checkpoint-20")
    rows = scratch.rows("part")
    for path in (scratch.folder / "results/part/runs").iterdir():
        path.unlink()
    capsys.readouterr()
    assert scratch.run("train_multitask.py", *flags) == 0
    assert "going on from" in capsys.readouterr().out
    assert [(r["metric"], r["value"]) for r in scratch.rows("part")] == [(r["metric"], r["value"]) for r in rows]
    again = load(folder / "checkpoint-20").state_dict()
    assert all(torch.equal(now[name], again[name]) for name in now)
