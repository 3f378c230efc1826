"""The command line: users' commands as they are, old flags, and what is refused."""

import argparse
import ast
import contextlib
import dataclasses
import io
import json
import os
import re
import shlex
from functools import partial
from pathlib import Path

import pytest
from transformers import Seq2SeqTrainingArguments

import src.cluster.__main__ as cluster
import src.plan.__main__ as plan
import src.tasks.__main__ as tasks
import src.training.flags
from src import results
from src.cli import InputError, did_you_mean, run_as_script
from src.estimate import compare
from src.estimate.flags import EstimateArguments
from src.old_flags import OLD_FLAGS, translate_old_flags
from src.sweep.flags import sweep_parser
from src.training.flags import (
    InstructionArguments,
    ModelArguments,
    MultitaskArguments,
    ResultArguments,
    TrainingArguments,
    parse,
)

ROOT = Path(__file__).parent.parent

# The commands that users of the method run, written for transformers 4.28.
COMMON = r"""
    --do_train \
    --do_eval \
    --predict_with_generate \
    --model_name_or_path {model} \
    --max_source_length 512 \
    --max_target_length 128 \
    --pad_to_max_length True \
    --generation_max_length 128 \
    --data_dir data/splits/default \
    --task_dir data/tasks \
    --overwrite_output_dir \
    --cache_dir ./cache/ \
    --overwrite_cache \
    --per_device_train_batch_size 8 \
    --per_device_eval_batch_size 8 \
    --gradient_accumulation_steps 1 \
    --learning_rate 5e-05 \
    --lr_scheduler_type constant \
    --max_steps 5000 \
    --warmup_steps 0 \
    --logging_strategy steps \
    --logging_steps 500 \
    --evaluation_strategy steps \
    --eval_steps 500 \
    --save_strategy steps \
    --save_steps 1000 \
    --metric_for_best_model eval_exact_match\
    --greater_is_better True \
    {tasks} \
    --output_dir saved/ \
    --load_best_model_at_end \
    --disable_tqdm True"""
ONE_TASK = COMMON.format(model="t5-base", tasks="--task_name rte \\\n    --template_idx 0 1 2 3 4 5")
SEVERAL_TASKS = COMMON.format(model="t5-small", tasks="--task_names rte boolq wic mnli") + " --runs 1 --save_name mtl"
LEAST = "--model_name_or_path m --task_name rte --do_eval --predict_with_generate "


def parsed(command, data_class=InstructionArguments):
    return parse(data_class, "", shlex.split(command.replace("\\\n", "")))  # as the shell joins lines


def fields(*flags):
    """All fields of the parsed arguments as one mapping."""
    groups = parsed(LEAST + " ".join(flags))
    return {field.name: getattr(group, field.name) for group in groups for field in dataclasses.fields(group)}


def test_the_command_of_one_task():
    data, model, results, training = parsed(ONE_TASK)
    assert model.model_name_or_path == "t5-base" and data.task_name == "rte" and data.indices() == [0, 1, 2, 3, 4, 5]
    assert (data.max_source_length, data.max_target_length, data.pad_to_max_length) == (512, 128, True)
    assert training.eval_strategy == "steps" and training.eval_steps == 500 and training.save_steps == 1000
    assert training.do_train and training.do_eval and not training.do_predict and training.predict_with_generate
    assert training.overwrite_output_dir and data.overwrite_cache and training.load_best_model_at_end
    assert training.metric_for_best_model == "eval_exact_match" and training.greater_is_better is True
    assert training.disable_tqdm is True and training.learning_rate == 5e-5 and results.runs == 1


def test_the_command_of_several_tasks():
    data, model, results, training = parsed(SEVERAL_TASKS, MultitaskArguments)
    assert data.task_names == ["rte", "boolq", "wic", "mnli"] and model.model_name_or_path == "t5-small"
    assert results.save_name == "mtl" and data.mixing == "proportional" and training.eval_strategy == "steps"


@pytest.mark.parametrize(("old", "new"), [
    ("--evaluation_strategy steps --do_train", "--eval_strategy steps --do_train"),
    ("--evaluation_strategy=steps", "--eval_strategy=steps"),
    ("--template_idxs 0 -1", "--template_idx 0 -1"),
    ("--no_cuda --do_train", "--use_cpu --do_train"),
    ("--no_cuda False", "--use_cpu False"),
    ("--no_cuda=False", "--use_cpu=False"),
    ("--no_cuda f", "--use_cpu f"),
    ("--warmup_ratio 0.1", "--warmup_steps 0.1"),
    ("--warmup_ratio=0.1 --fp16", "--warmup_steps=0.1 --fp16"),
    ("--num_beams 4", "--generation_num_beams 4"),
    ("--use_Adafactor_optm True --do_train", "--optim adafactor --do_train"),
    ("--use_Adafactor_optm", "--optim adafactor"),
    ("--use_Adafactor_optm False --do_train", "--do_train"),
    ("--adafactor True", "--optim adafactor"),
    ("--denser_evaluation False --do_train", "--do_train"),
    ("--freeze_module none --freeze_layer False --do_train", "--do_train"),
    ("--group_by_length --do_train", "--train_sampling_strategy group_by_length --do_train"),
    ("--group_by_length True", "--train_sampling_strategy group_by_length"),
    ("--group_by_length=False --do_train", "--do_train"),
    ("--use_auth_token --do_train", "--do_train"),
    ("--use_auth_token=abc --do_train", "--do_train"),
    ("--logging_dir logs/x --do_train", "--do_train"),
    ("--task_name rte", "--task_name rte"),
])
def test_old_flags(monkeypatch, capsys, old, new):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert translate_old_flags(old.split()) == new.split()
    flags = [word.partition("=")[0] for word in old.split()]
    assert capsys.readouterr().err.count("is an old flag") == len(OLD_FLAGS.keys() & set(flags))
    assert (os.environ.get("TENSORBOARD_LOGGING_DIR") == "logs/x") == old.startswith("--logging_dir")
    parsed(LEAST.replace("--task_name rte", "") + ("" if "--task_name" in old else "--task_name rte ") + old)


@pytest.mark.parametrize(("old", "message"), [
    ("--freeze_module encoder", "--freeze_module encoder: an old flag; today it is --train_only REGEX"),
    ("--freeze_layer 0 1 2", "--freeze_layer 0: an old flag; today it is --train_only REGEX"),
    ("--denser_evaluation", "--denser_evaluation: an old flag; today it is --eval_strategy steps --eval_steps N"),
    ("--denser_evaluation=True", "--denser_evaluation True: an old flag; today"),
])
def test_old_flags_without_a_translation(old, message):
    with pytest.raises(InputError) as error:
        parsed(LEAST + old)
    assert message in str(error.value)


@pytest.mark.parametrize(("flag", "today"), [  # of the first code of the method
    ("--source_prefix x", "source_prefix"), ("--num_beams 2", "generation_num_beams"),
    ("--use_Adafactor_optm True", "optim"), ("--freeze_module encoder", None), ("--freeze_layer 3", None),
    ("--denser_evaluation True", None)])
def test_flags_of_the_first_code(flag, today):
    """Each does what it says, or is refused in words that name what does it today."""
    if today:
        assert fields(flag)[today] != fields()[today]
    else:
        with pytest.raises(InputError, match=f"{flag.split()[0]} .*: an old flag; today it is --"):
            fields(flag)


def test_todays_names_of_old_flags_are_flags():
    """What a warning or an error names can be given."""
    known = {f"--{field.name}" for cls in (InstructionArguments, ModelArguments, TrainingArguments)
             for field in dataclasses.fields(cls)}
    named = {word.strip(",") for _, today in OLD_FLAGS.values() for word in today.split() if word.startswith("--")}
    assert named <= known and not OLD_FLAGS.keys() & known and len(named) > 5


def test_old_flags_keep_their_meaning():
    old = fields("--no_cuda", "--warmup_ratio 0.1", "--group_by_length True", "--template_idxs -1", "--num_beams 4",
                 "--use_Adafactor_optm True")
    assert old["use_cpu"] is True and old["warmup_steps"] == 0.1 and old["template_idx"] == ["-1"]
    assert old["train_sampling_strategy"] == "group_by_length"
    assert old["generation_num_beams"] == 4 and old["optim"] == "adafactor"


def test_a_file_of_flags(tmp_path):
    path = tmp_path / "flags.json"
    flags = {"model_name_or_path": "m", "task_name": "rte", "template_idx": [0, -1], "do_train": True, "fp16": False,
             "predict_with_generate": True, "learning_rate": 5e-5, "evaluation_strategy": "steps", "eval_steps": 500,
             "downsample": None, "save_name": None, "lr_scheduler_kwargs": {"num_cycles": 2}, "run_name": "-x-",
             "lora_target_modules": ["q", "v"], "num_beams": 3}
    path.write_text(json.dumps(flags))
    data, model, result, training = parse(InstructionArguments, "", [str(path)])
    assert data.indices() == [0, -1] and data.downsample is None and model.lora_target_modules == ["q", "v"]
    assert training.do_train and not training.do_predict and training.fp16 is False and training.learning_rate == 5e-5
    assert training.eval_strategy == "steps" and training.eval_steps == 500 and training.generation_num_beams == 3
    assert training.lr_scheduler_kwargs == {"num_cycles": 2} and training.run_name == "-x-"
    assert result.save_name is None
    *_, training = parse(InstructionArguments, "", [str(path), "--learning_rate", "1"])
    assert training.learning_rate == 1 and training.eval_steps == 500


@pytest.mark.parametrize(("content", "message"), [
    ('{"max_steps": 5', "flags.json: no JSON file of flags: Expecting"), ("[1]", "flags.json: no mapping of flags"),
    (None, "flags.json: cannot be read: No such file"), ('{"max_stps": 5}', "did you mean '--max_steps'"),
    ('{"max_steps": "many"}', "invalid int value: 'many'")])
def test_a_file_of_flags_that_is_refused(tmp_path, capsys, content, message):
    path = tmp_path / "flags.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as stop:
        run_as_script(lambda: parse(InstructionArguments, "", [
            str(path), "--model_name_or_path", "m", "--task_name", "rte", "--do_train"]))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


@pytest.mark.parametrize(("name", "allowed", "hint"), [
    ("--max_step", ["--max_steps", "--eval_steps"], "did you mean '--max_steps'?"),
    ("--early_stopping_patience", ["--learning_rate", "--max_steps"], ""), ("--lr", ["--runs", "--seed"], ""),
    ("--tokenizer_name", ["--task_name"], ""), ("--nonsense", ["--seed"], ""),
    ("rt", ["rte", "cb"], "did you mean 'rte'?"), ("--rank", ["--lora_rank", "--runs"], "did you mean '--lora_rank'?"),
    ("--lr", ["--lr_scheduler_type", "--lr_scheduler_kwargs"], "")])
def test_hints_are_near(name, allowed, hint):
    assert did_you_mean(name, allowed, shown=0) == hint
    assert did_you_mean(name, allowed) == f"{hint} (allowed: {', '.join(sorted(allowed))})".strip()


def test_booleans_mean_what_they_say(capsys):
    false = fields("--fp16 False", "--pad_to_max_length False", "--train_lora=False", "--validation_from_train False",
                   "--disable_tqdm False", "--overwrite_cache False")
    names = ("fp16", "pad_to_max_length", "train_lora", "validation_from_train", "disable_tqdm", "overwrite_cache")
    assert [false[name] for name in names] == [False] * 6
    assert fields("--train_lora", "--validation_from_train True")["train_lora"] is True
    assert fields()["validation_from_train"] is None
    with pytest.raises(SystemExit):
        fields("--fp16 perhaps")


def test_fp16_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert fields("--fp16 True")["fp16"] is False
    assert capsys.readouterr().err.count("--fp16 True: there is no GPU") == 1


def test_flags_of_lora_without_lora_are_said_to_change_nothing(capsys):
    fields("--lora_target_modules", "all-linear")
    assert "--lora_target_modules changes nothing without --train_lora True" in capsys.readouterr().err
    fields("--lora_rank 8", "--train_lora True")
    assert not capsys.readouterr().err


@pytest.mark.parametrize(("flags", "message"), [
    ("--template_id 1", "unknown argument '--template_id': did you mean '--template_idx'?"),  # no abbreviations
    ("--max_step=5", "unknown argument '--max_step=5': did you mean '--max_steps'?"),
    ("--lr 5e-3", "unknown argument '--lr': did you mean '--learning_rate'?"),
    ("--quite_unknown", "unknown argument '--quite_unknown' (see"),
    ("--predict_with_generate True stray", "unknown argument 'stray'"),
    ("--max_steps many", "argument --max_steps: invalid int value: 'many'"),
    ("--lr_scheduler_type flat", "--lr_scheduler_type"),
    ("--template_idx", "argument --template_idx: expected at least one argument"),
])
def test_unparsable(capsys, flags, message):
    with pytest.raises(SystemExit) as exit:
        parsed(LEAST + flags)
    error = capsys.readouterr().err
    assert exit.value.code == 2 and message in error and error.count("\n") == 1


def test_what_must_be_given(capsys):
    with pytest.raises(SystemExit) as exit:
        parsed("--do_eval --predict_with_generate --model_name_or_path m")
    assert exit.value.code == 2 and "--task_name" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "message"), [
    ("--template_idx 0 none -1", "--template_idx -1 is given twice"),
    ("--template_idx first", "--template_idx 'first' must be"),
    ("--downsample 0", "--downsample 0 must be at least 1"),
    ("--max_source_length 0", "--max_source_length 0"),
    ("--max_target_length -5", "--max_target_length -5"),
    ("--lora_rank 0", "--lora_rank 0"),
    ("--lora_dropout 1", "--lora_dropout 1.0"),
    ("--num_virtual_tokens 0", "--num_virtual_tokens 0"),
    ("--train_lora --train_prefix", "--train_lora and --train_prefix exclude each other"),
    ("--train_lora --train_only q", "--train_lora and --train_only exclude each other"),
    ("--train_prompt_tuning --train_only q", "--train_prompt_tuning and --train_only exclude each other"),
    ("--train_only (q", "--train_only '(q' is no regular expression: missing )"),
    ("--runs 0", "--runs 0"),
    ("--max_steps 0", "--max_steps 0"),
    ("--learning_rate -1", "--learning_rate -1.0"),
    ("--per_device_train_batch_size 0", "--per_device_train_batch_size 0"),
    ("--do_eval False", "nothing to do"),
    ("--eval_strategy steps --eval_steps 500 --save_steps 750 --load_best_model_at_end",
     "--save_steps 750 must be a multiple of --eval_steps 500"),
])
def test_values_that_are_not_allowed(flags, message):
    with pytest.raises(InputError) as error:
        parsed(LEAST + flags)
    assert message in str(error.value)
    with pytest.raises(SystemExit) as exit:
        run_as_script(lambda: parsed(LEAST + flags))
    assert exit.value.code == 2


def test_mixing():
    command = LEAST.replace("--task_name rte", "--task_names a b")
    data, *_ = parsed(command + "--mixing temperature --mixing_temperature 3", MultitaskArguments)
    assert (data.mixing, data.mixing_temperature) == ("temperature", 3)
    with pytest.raises(InputError, match="--mixing_temperature 0"):
        parsed(command + "--mixing_temperature 0", MultitaskArguments)
    with pytest.raises(SystemExit):
        parsed(command + "--mixing even", MultitaskArguments)


def test_every_flag_of_ours_is_explained_and_read():
    """Read: as an attribute, or by its name through getattr, in src/ or a script, the parsing itself aside."""
    trainers = {field.name for field in dataclasses.fields(Seq2SeqTrainingArguments)}
    ours = {field.name: field for cls in (InstructionArguments, MultitaskArguments, ModelArguments, ResultArguments,
                                          TrainingArguments)
            for field in dataclasses.fields(cls) if field.name not in trainers}
    assert len(ours) > 25 and all(field.metadata.get("help", "").endswith((".", ")")) for field in ours.values())
    read = set()
    for path in [*ROOT.glob("*.py"), *(ROOT / "src").rglob("*.py")]:
        own = path == Path(src.training.flags.__file__)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and not own:
                read.add(node.attr)
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr" and not own:
                read.add(getattr(node.args[1], "value", None))
            elif own and isinstance(node, ast.FunctionDef) and node.name == "indices":
                read |= {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}  # read through this method
    waiting = {"task_names"} - {"task_names" for path in ROOT.glob("train_multitask.py")}
    assert ours.keys() - read - waiting == set()


def shown(text: str) -> dict[str, str]:
    """Of a page of help each flag with what is said of it."""
    entries = re.split(r"\n  (?=-)", text)[1:]
    return {re.search(r"--\w+", entry)[0]: " ".join(entry.split("\n\n")[0].split()) for entry in entries}


def help_of(run) -> dict[str, str]:
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as stop:
        run()
    assert stop.value.code == 0
    return shown(out.getvalue())


def test_help_is_of_our_flags(monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    trainers = {field.name for field in dataclasses.fields(Seq2SeqTrainingArguments)}
    for data_class, more in ((InstructionArguments, ()), (MultitaskArguments, ()),
                             (MultitaskArguments, (EstimateArguments,))):
        classes = (data_class, ModelArguments, ResultArguments, TrainingArguments, *more)
        with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit):
            parse(data_class, "What it does.", ["--help"], more)
        assert len(out.getvalue().splitlines()) <= 120  # two screens
        short, long = shown(out.getvalue()), help_of(partial(parse, data_class, "", ["--help_all"], more))
        own = {f"--{field.name}": field for cls in classes for field in dataclasses.fields(cls)
               if field.name not in trainers or (cls is TrainingArguments and field.name in cls.__annotations__)}
        assert short.keys() == own.keys() | {"--help", "--help_all"}
        assert short.keys() <= long.keys() and "--learning_rate" in long and len(long) > 120
        for flag, field in own.items():
            required = field.default is field.default_factory is dataclasses.MISSING
            assert ("(default: " in short[flag]) != required, short[flag]
    assert "[True|False]" in short["--train_lora"] and "--lora_rank N " in short["--lora_rank"]


@pytest.mark.parametrize("parser", [
    sweep_parser("", "s.py"), cluster.make_parser(), plan.make_parser(), compare.make_parser(),
    *results.make_parser()._subparsers._group_actions[0].choices.values()], ids=lambda parser: parser.prog)
def test_help_shows_every_default(parser):
    text = shown(parser.format_help())
    flags = [action for action in parser._actions if action.option_strings]
    assert len(flags) == len(text)
    for action in flags:
        if action.nargs != 0 and action.default not in (None, [], argparse.SUPPRESS):
            default = " ".join(action.default) if isinstance(action.default, list) else action.default
            assert f"(default: {default}" in text[action.option_strings[-1]], action.dest


def test_check_of_some_tasks(capsys):
    assert tasks.main(["check", "demo_a*", "rte"]) == 0
    *lines, end = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["demo_a1", "demo_a2", "demo_a3", "rte"]
    assert end == "4 tasks checked, 0 failures"
    with pytest.raises(InputError, match=r"unknown task 'rt' .* did you mean 'rte'"):
        tasks.main(["check", "rt"])


def test_help_of_the_tasks():
    text = help_of(lambda: tasks.main(["show", "--help"]))
    assert "(default: data/tasks)" in text["--task_dir"] and "(default: 1)" in text["--rows"]
