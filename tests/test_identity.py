"""What names a run: flags with and without effect, the content of models and rows."""

import dataclasses
import json
import os
import shlex
import shutil

import pytest
from conftest import ROOT

from src.identity import ANSWER, CHOICE_OF_MODEL, WITHOUT_EFFECT, model_content
from src.training.flags import (
    InstructionArguments,
    ModelArguments,
    MultitaskArguments,
    ResultArguments,
    TrainingArguments,
)

# Every other flag, looked at one by one: it changes what a training gives, or might.
WITH_EFFECT = frozenset(shlex.split("""
    max_source_length max_target_length downsample mixing mixing_temperature model_name_or_path
    train_lora lora_rank lora_alpha lora_dropout lora_target_modules train_prefix train_prompt_tuning
    num_virtual_tokens train_only per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type
    lr_scheduler_kwargs warmup_steps optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon
    optim_target_modules gradient_accumulation_steps average_tokens_across_devices max_grad_norm
    label_smoothing_factor bf16 fp16 bf16_full_eval fp16_full_eval tf32 activation_checkpointing
    activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs torch_compile
    torch_compile_backend torch_compile_mode use_liger_kernel liger_kernel_config use_cache neftune_noise_alpha
    auto_find_batch_size prediction_loss_only eval_do_concat_batches eval_use_gather_object include_for_metrics
    batch_eval_metrics load_best_model_at_end early_stopping_patience ignore_data_skip full_determinism data_seed
    accelerator_config parallelism_config dataloader_drop_last remove_unused_columns label_names
    train_sampling_strategy length_column_name fsdp fsdp_config deepspeed resume_from_checkpoint sortish_sampler
    model_dtype
    predict_with_generate generation_max_length generation_num_beams generation_config""")) | CHOICE_OF_MODEL

FLAGS = shlex.split("""--do_train --do_eval --predict_with_generate --task_names demo_a1 demo_b1 --max_steps 10
    --model_name_or_path data/models/tiny-t5 --check""")


def test_every_flag_stands_in_one_list():
    """A flag that is new in the pinned libraries, or here, must be looked at: does it change what a training gives?"""
    names = {field.name for group in (InstructionArguments, MultitaskArguments, ModelArguments, ResultArguments,
                                      TrainingArguments) for field in dataclasses.fields(group)}
    assert names - WITHOUT_EFFECT - WITH_EFFECT == set()
    assert set() == WITHOUT_EFFECT & WITH_EFFECT
    follow = {"train_batch_size", "eval_batch_size"}  # from other flags
    assert (WITHOUT_EFFECT | WITH_EFFECT) - names == follow


def checked(scratch, capsys, *extra) -> dict:
    capsys.readouterr()
    assert scratch.run("train_multitask.py", *FLAGS, *extra) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(ANSWER))
    return json.loads(line.removeprefix(ANSWER))


@pytest.mark.parametrize("extra", [
    "--model_name_or_path ./data/models/tiny-t5", "--model_name_or_path data/models/tiny-t5/", "--bf16 false",
    "--learning_rate 0.00005", "--data_dir data/splits/default/", "--save_name x", "--logging_steps 3",
    "--lora_rank 8", "--mixing_temperature 9", "--num_train_epochs 7", "--eval_strategy steps --eval_steps 2",
    "--do_predict False", "--optim adamw_torch_fused", "--seed 7"])
def test_what_changes_nothing(scratch, capsys, extra):
    assert checked(scratch, capsys, *extra.split()) == checked(scratch, capsys)


@pytest.mark.parametrize("extra, setting", [
    ("--learning_rate 1e-3", "learning_rate"), ("--dataloader_drop_last True", "dataloader_drop_last"),
    ("--train_lora True --lora_rank 8", "lora_rank"), ("--train_only decoder.block.0", "train_only"),
    ("--generation_num_beams 2", "generation_num_beams"),
    ("--load_best_model_at_end --eval_strategy steps --eval_steps 5 --save_steps 5", "eval_steps"),
    ("--max_source_length 20", "max_source_length")])
def test_what_changes_the_settings(scratch, capsys, extra, setting):
    plain, other = checked(scratch, capsys), checked(scratch, capsys, *extra.split())
    assert plain["config_hash"] != other["config_hash"] and plain["content"] == other["content"]
    assert plain["settings"].get(setting) != other["settings"][setting]


def test_a_model_counts_by_its_content(scratch, capsys):
    shutil.copytree("data/models/tiny-t5", "mine")
    plain = checked(scratch, capsys)
    assert checked(scratch, capsys, "--model_name_or_path", "mine") == plain
    (scratch.folder / "mine" / "optimizer.pt").write_bytes(b"of a training")
    assert checked(scratch, capsys, "--model_name_or_path", "mine") == plain
    weights = scratch.folder / "mine" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.unlink()
    weights.write_bytes(content)
    other = checked(scratch, capsys, "--model_name_or_path", "mine")
    assert other["config_hash"] != plain["config_hash"] and other["content"] == plain["content"]


def test_an_adapter_counts_with_its_base(tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(ROOT / "data/models/tiny-t5", base)
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    before = model_content(adapter, tmp_path / "cache")
    assert model_content(adapter, tmp_path / "cache") == before
    (base / "config.json").write_text((base / "config.json").read_text() + "\n")
    assert model_content(adapter, tmp_path / "cache") != before


def test_hashes_of_files_are_kept_until_the_file_changes(tmp_path):
    folder, cache = tmp_path / "model", tmp_path / "cache"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    before = model_content(folder, cache)
    kept = list((cache / "file_hashes").iterdir())
    assert len(kept) == 1
    kept[0].write_text("another")  # is what is read
    assert model_content(folder, cache) != before
    (folder / "model.safetensors").write_bytes(b"heavier")  # of the same size
    os.utime(folder / "model.safetensors", (0, 0))
    assert model_content(folder, cache) not in (before, "another")


def test_rows_count_by_their_content_and_order(scratch, capsys):
    place = scratch.folder / "rows" / "demo_a1"
    shutil.copytree("data/splits/default/demo_a1", place)
    shutil.copytree("data/splits/default/demo_b1", place.with_name("demo_b1"))
    plain = checked(scratch, capsys)
    assert checked(scratch, capsys, "--data_dir", "rows") == plain
    lines = (place / "train.jsonl").read_text().splitlines(keepends=True)
    (place / "train.jsonl").write_text("".join(reversed(lines)))
    other = checked(scratch, capsys, "--data_dir", "rows")
    assert other["config_hash"] == plain["config_hash"]
    assert {item for item in plain["content"] if plain["content"][item] != other["content"][item]} == {"demo_a1"}


def test_choices_that_the_tokenizer_writes_alike_are_found(scratch, capsys):
    """Before a training, as in it."""
    tasks = scratch.folder / "mine"
    tasks.mkdir()
    for name in ("demo_a1", "demo_b1"):
        shutil.copy(ROOT / f"data/tasks/{name}.yaml", tasks)
    shutil.copytree("data/models/tiny-t5", "nfkc")
    file = scratch.folder / "nfkc/tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["normalizer"] = {"type": "NFKC"}
    file.write_text(json.dumps(tokenizer))
    path = tasks / "demo_a1.yaml"
    wide = "".join(chr(ord(sign) + 0xFEE0) for sign in "red")  # full-width letters, which NFKC makes usual ones
    path.write_text(path.read_text().replace('["red", "green", "blue"]', f'["red", "{wide}", "blue"]'))
    code = scratch.run("train_multitask.py", *FLAGS, "--task_dir", "mine", "--model_name_or_path", "nfkc")
    assert code == 2 and "writes two of the answer choices" in capsys.readouterr().err


@pytest.mark.parametrize("flags, message", [
    ("--seed -3", "--seed -3 must be at least 0"), ("--weight_decay inf", "--weight_decay inf must be a finite"),
    ("--train_lora True --lora_alpha nan", "--lora_alpha nan"), ("--report_to mlflw", "did you mean 'mlflow'"),
    ("--eval_do_concat_batches False", "leave it True"), ("--resume_from_checkpoint saved", "no checkpoint there"),
    ("--max_target_length 0", "--max_target_length 0 must be at least 1"),
    ("--train_only block.7", "--train_only 'block.7': it is found in no name"),
    ("--metric_for_best_model eval_f7", "no such metric"), ("--deepspeed none.json", "deepspeed")])
def test_bad_values_are_found_before_anything_is_written(scratch, capsys, flags, message):
    assert scratch.run("train_multitask.py", *FLAGS, *flags.split()) == 2
    assert message in capsys.readouterr().err
    assert not (scratch.folder / "results").exists() and not (scratch.folder / "saved").exists()
