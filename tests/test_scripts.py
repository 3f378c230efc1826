"""The training scripts end to end, as users run them, on the tiny T5."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pandas
import pytest
from conftest import DEMO, ROOT

from src.claims import held, owner
from src.cli import InputError
from src.training.checkpoints import what_is_broken
from src.training.record import title
from src.training.trainer import TrainingFailed

# The commands that users already run, word for word; only steps are cut short, by flags put after them.
MULTI_INSTRUCTION = """
    --do_train --do_eval --predict_with_generate --model_name_or_path t5-base --max_source_length 512
    --max_target_length 128 --pad_to_max_length True --generation_max_length 128 --data_dir data/splits/default
    --task_dir data/tasks --overwrite_output_dir --cache_dir ./cache/ --overwrite_cache --per_device_train_batch_size 8
    --per_device_eval_batch_size 8 --gradient_accumulation_steps 1 --learning_rate 5e-05 --lr_scheduler_type constant
    --max_steps 5000 --warmup_steps 0 --logging_strategy steps --logging_steps 500 --evaluation_strategy steps
    --eval_steps 500 --save_strategy steps --save_steps 1000 --metric_for_best_model eval_exact_match
    --greater_is_better True --task_name rte --template_idx 0 1 2 3 4 5 --output_dir saved/ --load_best_model_at_end
    --disable_tqdm True"""
MULTITASK = MULTI_INSTRUCTION.replace("t5-base", "t5-small").replace(
    "--task_name rte --template_idx 0 1 2 3 4 5", "--task_names rte boolq wic mnli") + " --runs 1 --save_name mtl"
SHORT = shlex.split("--max_steps 4 --eval_steps 2 --save_steps 2")
STEPS_100 = shlex.split("--max_steps 100 --eval_steps 50 --save_steps 50")


def values(rows):
    """What must be the same when a run is repeated."""
    return [(r["item"], r["split"], r["metric"], r["value"]) for r in rows]


@pytest.mark.parametrize("extra", ["", "--train_lora True", "--do_predict", "--template_idx -1", "--runs 2",
                                   "--template_idx none --train_prefix True", "--train_prompt_tuning True"])
def test_first_command(scratch, extra):
    code = scratch.run("train_multi_instruction.py", *shlex.split(MULTI_INSTRUCTION), *SHORT, *shlex.split(extra))
    assert code == 0
    name = "rte_-1_t5-base" if "template_idx" in extra else "rte_0-1-2-3-4-5_t5-base"
    items = ["rte_-1"] if "template_idx" in extra else [f"rte_{i}" for i in range(6)]
    for split in ("valid", "test") if "predict" in extra else ("valid",):
        table = pandas.read_csv(f"results/{name}/{name}_{split}.csv")
        assert list(table["Task"]) == items
        assert set(table["Trained on"]) == {" ".join(items)}
        assert table["eval_exact_match"].between(0, 1).all() and (table["eval_loss"] > 0).all()
        assert set(table["runs"]) == {2 if "runs" in extra else 1}
    seeds = {row["seed"] for row in scratch.rows(name)}
    assert seeds == ({"42", "43"} if "runs" in extra else {"42"})


@pytest.mark.parametrize("extra", ["", "--runs 2 --downsample 3", "--train_lora True --template_idx none",
                                   "--mixing equal --template_idx 0 2"])
def test_second_command(scratch, extra):
    assert scratch.run("train_multitask.py", *shlex.split(MULTITASK), *SHORT, *shlex.split(extra)) == 0
    table = pandas.read_csv("results/mtl/mtl_valid.csv")
    assert list(table["Task"]) == ["boolq", "mnli", "rte", "wic"]
    assert set(table["Trained on"]) == {"boolq mnli rte wic"}
    assert {"eval_exact_match", "eval_accuracy", "eval_loss", "eval_gen_len"} <= set(table.columns)
    counts = {int(row["n_examples"]) for row in scratch.rows("mtl")}
    assert counts == ({3} if "downsample" in extra else {8} if "0 2" in extra else {4})


def test_a_trained_task_is_learned_and_repeats_exactly(scratch):
    flags = [*DEMO, *STEPS_100, "--task_name", "demo_a1", "--template_idx", "0", "3"]
    for name in ("one", "two"):
        assert scratch.run("train_multi_instruction.py", *flags, "--save_name", name) == 0
    one, two = scratch.rows("one"), scratch.rows("two")
    assert values(one) == values(two) and len(one) == 8
    scores = [float(row["value"]) for row in one if row["metric"] == "exact_match"]
    assert min(scores) > 0.75
    # A different seed is a different run, in the same file.
    assert scratch.run("train_multi_instruction.py", *flags, "--save_name", "one", "--seed", "1") == 0
    assert {row["seed"] for row in scratch.rows("one")} == {"42", "1"}
    assert values(scratch.rows("one")[:8]) != values(scratch.rows("one")[8:])


def test_all_tasks_in_one_training(scratch):
    names = sorted(path.name for path in (ROOT / "tests/rows").iterdir())
    assert len(names) == 29
    flags = [*DEMO, *shlex.split("--max_steps 30 --eval_steps 30 --save_steps 30 --generation_max_length 8"),
             *shlex.split("--max_source_length 64 --per_device_train_batch_size 8 --save_name all"),
             "--task_names", *names]
    assert scratch.run("train_multitask.py", *flags) == 0
    table = pandas.read_csv("results/all/all_valid.csv").set_index("Task")
    assert sorted(table.index) == names
    assert table.loc["stsb", "eval_pearson"] == table.loc["stsb", "eval_pearson"]  # not NaN
    for task, metric in (("cola", "matthews"), ("multirc", "f1"), ("xsum", "rougeL"), ("cb", "macro_f1")):
        assert pandas.notna(table.loc[task, f"eval_{metric}"]), task


def test_rows_in_hub_form(scratch):
    """A local folder named like the hub's data set goes through the hub's loading code."""
    (scratch.folder / "data/splits/default/rte").unlink()
    place = scratch.folder / "aps/super_glue"
    (place / "rte").mkdir(parents=True)
    for split in ("train", "validation"):
        pandas.read_json(ROOT / f"tests/rows/rte/{split}.jsonl", lines=True).to_parquet(place / f"rte/{split}.parquet")
    (place / "README.md").write_text("---\nconfigs:\n- config_name: rte\n  data_files:\n  - split: train\n"
                                     "    path: rte/train.parquet\n  - split: validation\n"
                                     "    path: rte/validation.parquet\n---\n")
    flags = [*shlex.split(MULTI_INSTRUCTION), *SHORT, "--template_idx", "0"]
    assert scratch.run("train_multi_instruction.py", *flags) == 0
    name = "rte_0_t5-base"
    record = json.loads(next((scratch.folder / f"results/{name}/runs").glob("*.json")).read_text())
    assert record["data"]["train"]["rte_0"]["source"] == "aps/super_glue (rte)"
    assert record["data"]["train"]["rte_0"]["rte_0"]["rows"] == 8


def test_the_best_evaluated_model_is_loaded_though_saves_are_rarer(scratch):
    flags = [*DEMO, "--max_steps", "40", "--eval_steps", "4", "--save_steps", "20", "--learning_rate", "2e-2",
             "--task_name", "demo_b2", "--template_idx", "1", "--save_name", "best"]
    assert scratch.run("train_multi_instruction.py", *flags) == 0
    record = json.loads(next((scratch.folder / "results/best/runs").glob("*.json")).read_text())
    history = {entry["step"]: entry["eval_exact_match"] for entry in record["training"]["log"]
               if "eval_exact_match" in entry}
    step = record["training"]["best_step"]
    assert history[step] == max(history.values()) and step % 20  # a step that --save_steps alone would not have kept
    assert float(scratch.rows("best")[0]["value"]) == pytest.approx(max(history.values()), abs=1e-6)
    kept = list((scratch.folder / "saved").glob("*/checkpoint-*"))
    assert [path.name for path in kept] == [f"checkpoint-{step}"]


def test_lora_checkpoints_hold_the_adapter_alone(scratch):
    flags = [*DEMO, *STEPS_100, *shlex.split("--task_name demo_a1 --train_lora True --lora_rank 4 --save_name lora")]
    assert scratch.run("train_multi_instruction.py", *flags) == 0
    checkpoint = next((scratch.folder / "saved").glob("*/checkpoint-*"))
    assert (checkpoint / "adapter_model.safetensors").exists() and not (checkpoint / "model.safetensors").exists()
    record = json.loads(next((scratch.folder / "results/lora/runs").glob("*.json")).read_text())
    # rank 4 on query and value of three attentions: 3 * 2 * (4 * 32 + 32 * 4)
    assert record["training"]["trainable_parameters"] == 1536


def test_a_killed_run_goes_on_from_its_checkpoint(scratch):
    flags = [*DEMO, *shlex.split("--max_steps 200 --eval_steps 20 --save_steps 20"),
             *shlex.split("--task_name demo_a1 --save_name kill")]
    whole = [*flags, "--save_name", "whole", "--output_dir", "other/"]
    child = scratch.start("train_multi_instruction.py", *flags)
    deadline = time.time() + 120
    while not list((scratch.folder / "saved").glob("*/checkpoint-[4-9]0/trainer_state.json")):
        assert time.time() < deadline and child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (scratch.folder / "results/kill/runs.csv").exists()
    assert scratch.run("train_multi_instruction.py", *flags) == 0
    record = json.loads(next((scratch.folder / "results/kill/runs").glob("*.json")).read_text())
    assert record["training"]["resumed_from"] and record["training"]["steps"] == 200
    assert scratch.run("train_multi_instruction.py", *whole) == 0
    assert values(scratch.rows("kill")) == values(scratch.rows("whole"))  # each row once, as if never killed
    # A finished run is kept; --overwrite_output_dir does it again, and its rows stay single.
    before = record["started"]
    assert scratch.run("train_multi_instruction.py", *flags) == 0
    path = next((scratch.folder / "results/kill/runs").glob("*.json"))
    assert json.loads(path.read_text())["started"] == before
    assert scratch.run("train_multi_instruction.py", *flags, "--overwrite_output_dir", "--max_steps", "200") == 0
    assert json.loads(path.read_text())["training"]["resumed_from"] is None
    assert len(scratch.rows("kill")) == 4


@pytest.mark.parametrize("extra", ["--max_steps 40", "--max_steps 40 --save_only_model True",
                                   "--max_steps 40 --train_lora True",
                                   "--max_steps 400 --early_stopping_patience 1"])
def test_a_run_broken_off_after_its_last_step_is_only_evaluated(scratch, extra):
    """As Ctrl-C in the final evaluation: the rows are not there, the last checkpoint is."""
    flags = [*DEMO, *shlex.split("--eval_steps 10 --save_steps 10 --task_name demo_a1 --save_name end"),
             *shlex.split(extra)]
    assert scratch.run("train_multi_instruction.py", *flags) == 0
    before = scratch.rows("end")
    parts = scratch.folder / "results/end/runs"
    for times in range(2):
        for path in parts.iterdir():
            path.unlink()
        assert scratch.run("train_multi_instruction.py", *flags) == 0, times
        timed = {"seconds"}
        assert [{k: v for k, v in row.items() if k not in timed} for row in scratch.rows("end")] == [
            {k: v for k, v in row.items() if k not in timed} for row in before]


@pytest.mark.parametrize("is_kept", [True, False])
def test_more_is_asked_for_of_a_completed_run(scratch, capsys, is_kept):
    """It is evaluated where its checkpoint was kept, else trained again, and what was there stays."""
    flags = shlex.split("""--do_train --predict_with_generate --model_name_or_path data/models/tiny-t5
        --max_steps 10 --save_steps 5 --downsample 20 --task_name demo_a1 --save_name x --validation_from_train True
        --disable_tqdm True""")
    assert scratch.run("train_multi_instruction.py", *flags, "--do_eval") == 0
    before = scratch.rows("x")
    if not is_kept:
        shutil.rmtree(scratch.folder / "saved")
    capsys.readouterr()
    assert scratch.run("train_multi_instruction.py", *flags, "--do_predict") == 0
    out = capsys.readouterr().out
    assert "is completed, but test demo_a1_0" in out
    assert ("training is at its end" in out) == is_kept and ("so it is trained again" in out) != is_kept
    after = scratch.rows("x")
    assert after[:len(before)] == before and {row["split"] for row in after} == {"valid", "test"}
    capsys.readouterr()
    assert scratch.run("train_multi_instruction.py", *flags, "--do_eval", "--do_predict") == 0
    assert "is completed already" in capsys.readouterr().out and scratch.rows("x") == after
    assert scratch.run("train_multi_instruction.py", *flags, "--do_eval", "--save_predictions") == 0
    assert list((scratch.folder / "results/x/runs").glob("*.predictions.jsonl"))


def test_a_run_that_is_being_trained_is_left_alone(scratch, capsys):
    """One line, exit code 2, nothing written; in a sweep a failure of the child, to be tried again."""
    flags = [*DEMO, *SHORT, "--task_name", "demo_a1", "--save_name", "x", "--run_name", "r"]
    with held(scratch.folder / "saved/r-s42.claim", "it is held by"):
        before = sorted(path for path in scratch.folder.rglob("*") if "cache" not in path.parts)
        assert scratch.run("train_multi_instruction.py", *flags) == 2
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert said == [f"error: r-s42 is being trained already, by {owner()}"]
        assert sorted(path for path in scratch.folder.rglob("*") if "cache" not in path.parts) == before
        with pytest.MonkeyPatch.context() as patch, pytest.raises(TrainingFailed, match="r-s42 is being trained"):
            patch.setenv("SWEEP_MERGES", "1")
            scratch.run("train_multi_instruction.py", *flags)
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29612",
                   str(ROOT / "train_multi_instruction.py"), *flags, "--use_cpu", "True"]
        done = subprocess.run(command, cwd=scratch.folder, env=os.environ | {"OMP_NUM_THREADS": "1"},
                              capture_output=True, text=True, timeout=300)
        assert done.returncode == 1 and "exitcode  : 2" in done.stderr, done.stderr
        assert set(re.findall("^error: .*$", done.stderr, re.M)) == set(said)
        assert sorted(path for path in scratch.folder.rglob("*") if "cache" not in path.parts) == before
    assert scratch.run("train_multi_instruction.py", *flags) == 0
    assert not (scratch.folder / "saved/r-s42.claim").exists()


def test_a_kill_while_more_is_asked_for_loses_nothing(scratch, capsys, monkeypatch):
    """Neither rows nor the record of a training that is done, with and without rows of its own."""
    flags = shlex.split("--do_train --model_name_or_path data/models/tiny-t5 --max_steps 4 --task_name demo_a1 "
                        "--save_name x --validation_from_train True --disable_tqdm True")
    parts = scratch.folder / "results/x/runs"
    for evaluation in ([], ["--do_eval"]):
        assert scratch.run("train_multi_instruction.py", *flags, *evaluation) == 0
        before = {path.name: path.read_bytes() for path in parts.iterdir() if path.suffix != ".log"}
        for error, code in ((KeyboardInterrupt(), 130), (ValueError("no"), 1), (InputError("bad"), 2)):
            def end(*_, before=before, error=error, **__):
                assert {name: (parts / name).read_bytes() for name in before} == before  # as a kill would leave it
                raise error

            with monkeypatch.context() as patch:
                patch.setattr("src.training.trainer.Trainer.evaluate", end)
                assert scratch.run("train_multi_instruction.py", *flags, "--do_predict") == code
            assert {name: (parts / name).read_bytes() for name in before} == before
            capsys.readouterr()
            assert scratch.run("train_multi_instruction.py", *flags, *evaluation) == 0
            assert "is completed already" in capsys.readouterr().out


def test_bad_input_that_shows_late_is_recorded_and_ends_with_2(scratch, capsys, monkeypatch):
    def load(*_):
        raise InputError("--model_name_or_path 't5-base': cut")

    monkeypatch.setattr("src.training.experiment.load_model", load)
    flags = [*DEMO, *SHORT, "--task_name", "demo_a1", "--save_name", "x", "--runs", "2"]
    assert scratch.run("train_multi_instruction.py", *flags) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: --model_name_or_path 't5-base': cut"
    (record,) = (scratch.folder / "results/x/runs").glob("*.json")  # the second seed would end the same way
    assert json.loads(record.read_text())["status"] == "failed"


def test_without_optimizer_state_a_run_starts_afresh(scratch, capsys):
    flags = [*DEMO, *shlex.split("--max_steps 40 --eval_steps 10 --save_steps 10 --task_name demo_a1 --save_name x")]
    assert scratch.run("train_multi_instruction.py", *flags) == 0
    before = values(scratch.rows("x"))
    for path in (scratch.folder / "results/x/runs").iterdir():
        path.unlink()
    last = next((scratch.folder / "saved").glob("*/checkpoint-40"))
    for name in ("optimizer.pt", "scheduler.pt"):
        (last / name).unlink()
    state = json.loads((last / "trainer_state.json").read_text())
    (last / "trainer_state.json").write_text(json.dumps(state | {"max_steps": 60}))  # as if it had not been the end
    capsys.readouterr()
    assert scratch.run("train_multi_instruction.py", *flags) == 0
    assert "holds no optimizer state, so training starts afresh" in capsys.readouterr().err
    assert values(scratch.rows("x")) == before


def test_a_checkpoint_that_is_not_whole_is_set_aside(scratch, capsys):
    """Each of its files cut to nothing, to half and by a byte: the rows are those of an unbroken run."""
    flags = [*DEMO, *shlex.split("--max_steps 20 --eval_steps 10 --save_steps 10 --save_total_limit 3 --downsample 60"),
             "--task_name", "demo_a1", "--save_name", "x"]
    assert scratch.run("train_multi_instruction.py", *flags) == 0
    before, parts = values(scratch.rows("x")), scratch.folder / "results/x/runs"
    last = next((scratch.folder / "saved").glob("*/checkpoint-20"))
    whole = {path.name: path.read_bytes() for path in last.iterdir()}
    assert what_is_broken(last) is None
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json",
                 "config.json"):
        for cut in (0, len(whole[name]) // 2, len(whole[name]) - 2):  # json ends in a line feed, which says nothing
            (last / name).write_bytes(whole[name][:cut])
            assert what_is_broken(last).startswith(name), (name, cut)
        (last / name).write_bytes(whole[name])
    (last / "optimizer.pt").write_bytes(whole["optimizer.pt"][:-1])
    for path in parts.iterdir():
        path.unlink()
    capsys.readouterr()
    assert scratch.run("train_multi_instruction.py", *flags) == 0
    out = capsys.readouterr()
    assert "is not whole (optimizer.pt" in out.err and "going on from" in out.out and "checkpoint-10" in out.out
    assert values(scratch.rows("x")) == before and last.with_name("checkpoint-20.broken1").is_dir()


REPORTERS = {
    "wandb/__init__.py": """
        from pathlib import Path
        run, config = None, {}
        class Run:
            summary, _label = {}, lambda self, **_: None
        def note(*words):
            with Path("reported.txt").open("a") as file:
                print(*words, sep="|", file=file)
        def init(project, name):
            global run
            run = Run()
            note("begun", name)
        def log(values, **_):
            note("log", *sorted(values))
        def finish():
            global run
            run = None
            note("finished")""",
    "wandb/sdk/lib/config_util.py": """
        class ConfigError(Exception):
            pass""",
    "tensorboardX/__init__.py": """
        from pathlib import Path
        class SummaryWriter:
            def __init__(self, log_dir):
                Path(log_dir).mkdir(parents=True, exist_ok=True)
            add_text = add_scalar = flush = close = lambda *_: None"""}


def test_reporters_name_runs_by_their_items(scratch, monkeypatch):
    for name, source in REPORTERS.items():
        path = scratch.folder / "stubs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(scratch.folder / "stubs")
    flags = [*DEMO, *SHORT, "--task_names", "demo_b1", "demo_a1", "--downsample", 8, "--runs", 2, "--run_name", "mine"]
    try:
        assert scratch.run("train_multitask.py", *flags, "--save_name", "x", "--report_to", "all") == 0
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "logs")
        assert scratch.run("train_multitask.py", *flags, "--save_name", "y", "--report_to", "tensorboard") == 0
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] in ("wandb", "tensorboardX")]:
            del sys.modules[name]
    lines = (scratch.folder / "reported.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("log")] == [
        "begun|demo_a1 demo_b1 mine-s42", "finished", "begun|demo_a1 demo_b1 mine-s43", "finished"]
    assert any("eval/demo_a1_exact_match" in line for line in lines)
    for folder in ("results/x/tensorboard", "logs"):
        assert {path.name for path in (scratch.folder / folder).iterdir()} == {
            "demo_a1 demo_b1 mine-s42", "demo_a1 demo_b1 mine-s43"}


def test_titles_have_room_for_whole_names():
    assert title(["rte_0", "rte_1"], "k-s42") == "rte_0 rte_1 k-s42"
    items = [f"task_number_{i}" for i in range(30)]
    assert title(items, "k-s42") == "task_number_0 task_number_1 task_number_2 task_number_3 +26 k-s42"
    assert title(["x" * 70], "k-s42") == "x" * 70 + " k-s42"
    assert title(["x" * 70, "y"], "k-s42") == "x" * 70 + " +1 k-s42"


def test_saved_predictions(scratch):
    flags = [*DEMO, *shlex.split("--max_steps 10 --eval_steps 5 --save_steps 5 --downsample 20"), "--save_predictions"]
    assert scratch.run("train_multitask.py", *flags, "--task_names", "demo_a1", "demo_b1", "--template_idx", "0", "2",
                       "--save_name", "x") == 0
    path = next((scratch.folder / "results/x/runs").glob("*.predictions.jsonl"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 2 * 2 * 20 and {row["split"] for row in rows} == {"valid"}
    scores = {row["item"]: float(row["value"]) for row in scratch.rows("x") if row["metric"] == "exact_match"}
    for item, score in scores.items():
        found = [row for row in rows if row["item"] == item]
        assert {row["template"] for row in found} == {f"{item}_0", f"{item}_2"}
        assert sum(row["scores"]["exact_match"] for row in found) / len(found) == pytest.approx(score, abs=1e-6)
        assert all(row["input"] and row["references"] and row["scores"]["loss"] > 0 for row in found)


@pytest.mark.slow
def test_two_processes_give_the_rows_of_one(scratch):
    flags = [*DEMO, *shlex.split("--max_steps 60 --eval_steps 30 --save_steps 30 --task_name demo_c1"),
             "--template_idx", "0", "1"]
    assert scratch.run("train_multi_instruction.py", *flags, "--save_name", "one") == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29611",
               str(ROOT / "train_multi_instruction.py"), *flags, "--save_name", "two",
               "--per_device_train_batch_size", "16", "--use_cpu", "True"]
    done = subprocess.run(command, cwd=scratch.folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = scratch.rows("one"), scratch.rows("two")
    for a, b in zip(one, two, strict=True):
        assert all(a[name] == b[name] for name in ("item", "metric", "n_examples"))
        assert float(a["value"]) == pytest.approx(float(b["value"]), abs=0.02), (a, b)
    assert done.stdout.count("results/two/two_valid.csv") == 1  # printed, and written, by the first process alone


BAD = {
    "--task_name rt": "did you mean 'rte'",
    "--template_idx 99": "--template_idx 99: task 'rte' has templates 0 to 11",
    "--template_idx": "--template_idx",
    "--template_idx 0 0": "given twice",
    "--model_name_or_path t5-bse": "did you mean 't5-base'",
    "--save_steps 750 --eval_steps 500": "--save_steps 750 must be a multiple of --eval_steps 500",
    "--metric_for_best_model eval_nonsense": "--metric_for_best_model eval_nonsense: no such metric",
    "--downsample 0": "--downsample 0 must be at least 1",
    "--train_lora True --train_prefix True": "exclude each other",
    "--lora_rank 0": "--lora_rank 0",
    "--task_dir nowhere": "--task_dir nowhere: no such folder",
    "--task_name broken": "broken.yaml, line 4",
    "--task_name lacking": "row 2: task 'lacking', template 0 (default): field 'hypothesis' is missing",
    "--task_name empty": "gives no train rows",
    "--results_dir file/results": "is not a folder that may be written",
    "--save_name a/b": "--save_name 'a/b'",
    "--max_step 3": "unknown argument '--max_step'",
}


@pytest.mark.parametrize("extra", BAD)
def test_bad_input(scratch, extra, capsys):
    tasks = scratch.folder / "data/tasks"
    tasks.unlink()
    tasks.mkdir()
    rte = (ROOT / "data/tasks/rte.yaml").read_text()
    for name in ("rte", "lacking", "empty"):
        (tasks / f"{name}.yaml").write_text(rte)
    (tasks / "broken.yaml").write_text("description: x\nfields: [a]\nanswer_choices: ['yes', no\ntarget: b\n")
    rows = (ROOT / "tests/rows/rte/train.jsonl").read_text().splitlines()
    for name, lines in (("lacking", [rows[0], json.dumps({"premise": "p", "label": 0}), rows[2]]), ("empty", [])):
        (scratch.folder / "data/splits/default" / name).mkdir()
        for split in ("train", "validation"):
            (scratch.folder / "data/splits/default" / name / f"{split}.jsonl").write_text("\n".join(lines))
    (scratch.folder / "file").write_text("")
    start = time.process_time()  # a busy machine is not the project's fault
    assert scratch.run("train_multi_instruction.py", *shlex.split(MULTI_INSTRUCTION), *SHORT, *shlex.split(extra)) == 2
    assert time.process_time() - start < 10
    assert BAD[extra] in capsys.readouterr().err
    assert not (scratch.folder / "saved").exists() and not (scratch.folder / "results").exists()


@pytest.mark.parametrize(("extra", "message"), [
    ("--task_names rte boolq rte", "task 'rte' is given 2 times"),
    ("--task_names rte bool", "did you mean 'boolq'"),
    ("--metric_for_best_model eval_rouge1", "no such metric"),
    ("--mixing_temperature 0", "--mixing_temperature 0"),
    ("--task_names rte cut", "cut.json, line"),
    ("--task_names rte cb", "needs column 'hypothesis', which the rows lack; columns found: label, premise"),
])
def test_bad_input_of_several_tasks(scratch, extra, message, capsys):
    tasks = scratch.folder / "data/tasks"
    tasks.unlink()
    tasks.mkdir()
    for name in ("rte", "boolq", "wic", "mnli", "cb"):
        (tasks / f"{name}.yaml").write_text((ROOT / f"data/tasks/{name}.yaml").read_text())
    (tasks / "cut.json").write_text('{"Definition": ["d"], "Instances": [{"input": "a", "outp')
    (scratch.folder / "data/splits/default/cb").unlink()
    (scratch.folder / "data/splits/default/cb").mkdir()
    for split in ("train", "validation"):
        (scratch.folder / f"data/splits/default/cb/{split}.jsonl").write_text('{"premise": "p", "label": 0}\n')
    assert scratch.run("train_multitask.py", *shlex.split(MULTITASK), *SHORT, *shlex.split(extra)) == 2
    assert message in capsys.readouterr().err
    assert not (scratch.folder / "saved").exists() and not (scratch.folder / "results").exists()


def test_natural_instructions_mix_with_the_catalogue(scratch, capsys):
    tasks = scratch.folder / "data/tasks"
    tasks.unlink()
    tasks.mkdir()
    (tasks / "demo_a1.yaml").write_text((ROOT / "data/tasks/demo_a1.yaml").read_text())
    instances = [{"input": f"{word} {number}", "output": ["red" if number % 2 else "blue"]}
                 for number in range(10) for word in ("otter", "fern")]
    (tasks / "task1_colour.json").write_text(json.dumps(
        {"Definition": ["Say {{the}} colour."], "Positive Examples": [], "Instances": instances}))
    flags = [*DEMO, *SHORT, "--task_names", "demo_*", "task1_colour", "--save_name", "ni"]
    assert scratch.run("train_multitask.py", *flags) == 0
    assert "task1_colour" in capsys.readouterr().out
    table = pandas.read_csv("results/ni/ni_valid.csv").set_index("Task")
    assert set(table.index) == {"demo_a1", "task1_colour"}
    assert {int(r["n_examples"]) for r in scratch.rows("ni") if r["item"] == "task1_colour"} == {4}


def test_templates_of_different_kinds(scratch):
    """One with answer choices, one for free text: each metric is the mean over the templates that have it."""
    tasks = scratch.folder / "data/tasks"
    tasks.unlink()
    tasks.mkdir()
    (tasks / "demo_a1.yaml").write_text(
        "description: d\nfields: [text]\ntarget: \"{{ ['red', 'green', 'blue'][label] }}\"\nmetrics: [rougeL]\n"
        "templates:\n- {name: a, input: 'which ? {{ text }}', answer_choices: ['red', 'green', 'blue']}\n"
        "- {name: b, input: '{{ text }} . colour ?'}\n")
    flags = [*DEMO, *SHORT, "--task_names", "demo_a1", "--template_idx", "0", "1", "--save_name", "kinds"]
    assert scratch.run("train_multitask.py", *flags) == 0
    metrics = {row["metric"] for row in scratch.rows("kinds") if row["value"]}
    assert metrics == {"exact_match", "accuracy", "rouge1", "rouge2", "rougeL", "loss", "gen_len"}


def test_a_loss_that_is_no_number_fails_and_is_recorded(scratch, capsys):
    flags = [*DEMO, *SHORT, *shlex.split("--logging_steps 1 --task_name demo_a1 --save_name nan --learning_rate 1e38"
                                         " --max_grad_norm 0")]
    assert scratch.run("train_multi_instruction.py", *flags) == 1
    output = capsys.readouterr().out
    assert "the training loss is" in output and "lower --learning_rate" in output
    assert {row["status"] for row in scratch.rows("nan")} == {"failed"}
    assert not (scratch.folder / "results/nan/nan_valid.csv").exists()
    log = next((scratch.folder / "results/nan/runs").glob("*.log")).read_text()
    assert "Traceback" in log


# ---- held out ------------------------------------------------------------------------------------------------------

TWO_STEPS = shlex.split("--max_steps 2 --eval_steps 1 --save_steps 1")


def scored(rows) -> dict[tuple[str, str], set[str]]:
    """(item, split) -> what it was trained on."""
    found: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        found.setdefault((row["item"], row["split"]), set()).add(row["trained_on"])
    return found


def test_held_out_tasks_and_instructions_are_scored_beside_the_others(scratch, capsys):
    """They change nothing of what is trained and chosen; asked for later, they are scored from the checkpoint."""
    flags = [*DEMO, *TWO_STEPS, "--task_names", "demo_a1", "demo_a2", "--save_name", "x", "--save_total_limit", "5"]
    held_out = ["--eval_task_names", "demo_a1", "demo_b*", "--eval_template_idx", "0", "2", "-1"]
    assert scratch.run("train_multitask.py", *flags) == 0
    before = scratch.rows("x")
    assert scratch.run("train_multitask.py", *flags, *held_out) == 0
    assert "was not asked for then" in capsys.readouterr().out
    rows = scratch.rows("x")
    others = ["demo_b1", "demo_b2", "demo_b3", "demo_a1_2", "demo_a1_-1", "demo_a2_2", "demo_a2_-1"]
    assert scored(rows) == {(item, "valid"): {"demo_a1 demo_a2"} for item in ["demo_a1", "demo_a2", *others]}
    assert [row["value"] for row in rows if row["item"] in ("demo_a1", "demo_a2")] == [row["value"] for row in before]
    assert len({row["run_id"] for row in rows}) == len({row["config_hash"] for row in rows}) == 1
    assert len({row["trained_hash"] for row in rows}) == 1 and all(row["content_hash"] for row in rows)
    record = json.loads(next((scratch.folder / "results/x/runs").glob("*.json")).read_text())
    assert record["training"]["loss"] is None and record["held_out"]["validation"].keys() == set(others)  # not trained
    mean = [float(row["value"]) for row in before if row["metric"] == "loss"]
    assert record["scores"]["valid"]["eval_loss"] == pytest.approx(sum(mean) / 2, abs=1e-5)
    assert scratch.run("train_multitask.py", *flags, *held_out) == 0
    assert "is completed already" in capsys.readouterr().out and scratch.rows("x") == rows
    # other held-out tasks: what was scored before stays
    assert scratch.run("train_multitask.py", *flags, "--eval_task_names", "demo_c1") == 0
    assert scored(scratch.rows("x")).keys() == {*scored(rows), ("demo_c1", "valid")}


def test_held_out_instructions_without_training(scratch):
    flags = [*DEMO[1:], "--task_name", "demo_a1", "--eval_template_idx", "0", "1", "--eval_task_names", "demo_b1",
             "--save_name", "x", "--do_predict"]
    assert scratch.run("train_multi_instruction.py", *flags) == 0
    assert scored(scratch.rows("x")) == {(item, split): {"none"} for item in ("demo_a1_0", "demo_a1_1", "demo_b1_0")
                                         for split in ("valid", "test")}


@pytest.mark.parametrize(("flags", "message"), [
    (["--eval_task_names", "demo_x"], "unknown task 'demo_x'"), (["--eval_template_idx", "99"], "99: task 'demo_a1'"),
    (["--eval_template_idx", "one"], "--eval_template_idx 'one' must be a position"),
    (["--eval_task_names", "demo_b1", "--do_eval", "False"], "--eval_template_idx need --do_eval")])
def test_bad_held_out_flags(scratch, capsys, flags, message):
    train = [*DEMO, "--task_names", "demo_a1", "--max_steps", "2", "--eval_strategy", "no", "--save_strategy", "no",
             "--load_best_model_at_end", "False", *flags]
    assert scratch.run("train_multitask.py", *train) == 2
    assert message in capsys.readouterr().err
