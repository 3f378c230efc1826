"""Sweeps of stub children (tests/stub_child.py), as processes: what is recorded, what is left running, what is said."""

import contextlib
import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from src.cli import InputError
from src.plan.rounds import given_up
from src.results import COLUMNS, Results
from src.sweep import children, workers
from src.sweep.flags import parse, sweep_parser
from src.sweep.ledger import Ledger
from tests.bench_report import made_up_run

ROOT = Path(__file__).resolve().parent.parent
STUB = [sys.executable, str(ROOT / "tests" / "sweep_stub.py")]


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def command(items: int, *flags, name="x") -> list[str]:
    return [*STUB, str(items), "--task_set_name", name, "--device", "cpu", "--warm_start", "False", *map(str, flags)]


def sweep(items: int, *flags, code=0, name="x") -> str:
    """Run a sweep to its end; return all that it printed."""
    run = subprocess.run(command(items, *flags, name=name), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                         timeout=120)
    assert run.returncode == code, run.stdout
    return run.stdout


def start(items: int, *flags, name="x") -> subprocess.Popen:
    return subprocess.Popen(command(items, *flags, name=name), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True)


def completed(name="x") -> list[str]:
    path = Path("sampled_tasks", f"{name}.txt")
    return path.read_text().splitlines() if path.exists() else []


def committed(name="x") -> list[Path]:
    """Records of what is done: at once there, while the list of `completed` may come later."""
    return list(Path("sampled_tasks", name, "done").glob("[!.]*"))


def trace(word="start") -> list[str]:
    """Subsets in the order of `word`."""
    if not Path("trace").exists():
        return []
    found = re.findall(rf"^{word} \w+ \d+ ([\w ]*) \[", Path("trace").read_text(), re.MULTILINE)
    return [line.strip() for line in found]


def rows(name="x") -> Counter:
    """How often each (subset, item, seed) is in runs.csv."""
    lines = list(csv.DictReader(Path("results", name, "runs.csv").read_text().splitlines()))
    assert all(len(line) == len(COLUMNS) and None not in (*line, *line.values()) for line in lines)
    return Counter((line["trained_on"], line["item"], line["seed"]) for line in lines)


def wait_for(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return value


def processes_here() -> list[str]:
    """Command lines of the processes that work in this test's folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int(process.name) != os.getpid() and (process / "cwd").readlink() == Path.cwd():
                words = (process / "cmdline").read_text()
                if words:  # not a zombie
                    found.append(words.replace("\0", " "))
        except OSError:
            pass
    return found


# ---- what is done and recorded -------------------------------------------------------------------------------------


def test_another_spelling_of_the_results_is_the_same_sweep():
    sweep(3, "--num_samples", 3)
    for place in ("./results", "results/", Path.cwd() / "results", "sampled_tasks/../results"):
        assert "3 of 3 are done already: nothing is left" in sweep(3, "--num_samples", 3, "--results_dir", place), place
    assert "to come" in sweep(3, "--num_samples", 3, "--results_dir", "other")
    assert len(trace()) == 6


def test_all_possible_subsets_once_with_their_rows():
    out = sweep(6, "--num_samples", 100, "--runs", 2)
    assert "15 subsets wanted, 15 possible (--num_samples 100 is more" in out
    assert "15 done, 0 failed, 0 left" in out
    assert sorted(completed()) == sorted(trace()) and len(set(completed())) == 15
    assert len(rows()) == 15 * 2 * 2 and set(rows().values()) == {1}
    assert not list(Path("saved").iterdir())  # checkpoints are deleted
    assert "the child speaks" in next(Path("sampled_tasks/x/logs").glob("*.1.log")).read_text()
    assert "15 of 15 are done already: nothing is left to do" in sweep(6, "--num_samples", 100, "--runs", 2)
    assert len(trace()) == 15


def test_num_samples_counts_completed_subsets_and_goes_on():
    sweep(10, "--num_samples", 3, "--max_task_num", 4, "--keep_checkpoints")
    first = completed()
    assert len(first) == 3 and len(list(Path("saved").iterdir())) == 3
    sweep(10, "--num_samples", 7, "--max_task_num", 4)
    assert completed()[:3] == first and len(set(completed())) == 7
    sweep(10, "--num_samples", 2, "--max_task_num", 4)
    assert len(trace()) == 7


def test_changed_settings_train_again_and_say_so():
    sweep(3, "--num_samples", 2, "--lr", "5e-05")
    assert "2 of 2 are done already" in sweep(3, "--num_samples", 2, "--learning_rate=5e-5", "--logging_steps", 10)
    out = sweep(3, "--num_samples", 2, "--lr", "1e-4")
    assert "2 of them were trained under other settings and are trained again" in out
    assert "(learning_rate was 5e-05, is 0.0001)" in out
    assert len(trace()) == 4 and len(completed()) == 2
    sweep(3, "--num_samples", 2, "--lr", "1e-4", "--save_name", "other")
    assert len(trace()) == 6 and len(rows("other")) == 4


def test_fixed_subsets():
    Path("subsets").write_text("a\nb c d\na b c d # all\n")
    sweep(4, "--subsets_file", "subsets")
    assert completed() == ["a", "b c d", "a b c d"]
    sweep(4, "--preload_combos", "--combos_section", 1, 4, name="y")
    assert completed("y") == ["a c", "a d", "b c"]
    Path("clusters").mkdir()
    Path("clusters/found.txt").write_text("a b\nc d\n")
    sweep(5, "--num_samples", 99, "--current_cluster_dir", "found", name="z")
    assert sorted(completed("z")) == ["a b", "a e", "b e", "c d", "c e", "d e"]
    sweep(3, "--draw", "plan", name="p")
    assert completed("p") == ["a", "b", "c", "a b c", "b c", "a c", "a b"]
    assert "--draw plan and --num_samples exclude" in sweep(3, "--draw", "plan", "--num_samples", 2, name="p", code=2)
    sweep(4, "--num_samples", 99, "--target_tasks", "c", name="t")
    assert sorted(completed("t")) == ["a c", "b c", "c d"]


def test_dry_run_and_status_run_and_write_nothing():
    out = sweep(4, "--draw", "balanced", "--dry_run", "--", "--max_steps", 7)
    assert "coverage: 6 of 6 pairs" in out and out.count("stub_child.py --task_names") == 6
    assert "--max_steps 7" in out and "--use_cpu True" in out and list(Path.cwd().iterdir()) == []
    printed = next(line for line in out.splitlines() if "stub_child.py" in line)
    assert subprocess.run(printed, shell=True).returncode == 0  # can be pasted
    assert sum(rows().values()) == 2
    assert "to come: 6 trainings, 42 steps; how long they take is known when the first is finished" in out
    sweep(4, "--num_samples", 2, "--behave", "fail", "--behave_only", "a", "--seed", 1, code=1)
    out = sweep(4, "--num_samples", 4, "--behave", "fail", "--behave_only", "a", "--seed", 1, "--status")
    counts = re.search(r"(\d) done, 0 running, (\d) failed, (\d) left", out)
    assert sum(map(int, counts.groups())) == 4 and counts[3] == "2"


def test_what_is_to_come_is_told_by_what_is_finished():
    made_up_run(Results("results", "x"), ("a", "b"), {"a": 0.5, "b": 0.5}, 0)  # 30 s for 100 steps
    Results("results", "x").merge()
    flags = ("--jobs_per_device", 2, "--runs", 2, "--", "--max_steps", 20)
    out = sweep(3, "--num_samples", 2, "--dry_run", *flags)
    assert "to come: 4 trainings, 80 steps, about 12 s at the rate of the 1 finished (6.0 s each, 2 at a time)" in out
    assert "2 of 2 are done already: nothing is left" not in out and not Path("sampled_tasks").exists()
    assert "to come: 4 trainings" in sweep(3, "--num_samples", 2, *flags)
    line, wanted = Ledger(Path("sampled_tasks/x")).wanted()
    assert sorted(wanted) == sorted(completed()) and line.startswith("python ") and line.endswith("--max_steps 20")
    assert "to come" not in sweep(3, "--num_samples", 2, "--dry_run", *flags)


def test_finished_rows_are_committed_without_another_run():
    sweep(3, "--num_samples", 3)
    for done in Path("sampled_tasks/x/done").iterdir():
        done.unlink()
    Path("results/x/runs.csv").unlink()
    out = sweep(3, "--num_samples", 3)
    assert out.count("its finished rows were found") == 3
    assert len(trace()) == 3 and len(completed()) == 3 and len(rows()) == 6


def test_a_sweep_merges_at_its_end_not_in_each_child():
    process = start(4, "--num_samples", 6, "--behave", "sleep:0.1", "--runs", 2)
    wait_for(lambda: len(committed()) >= 2)
    assert not Path("results/x/runs.csv").exists() and len(list(Path("results/x/runs").glob("*.csv"))) >= 4
    process.communicate(timeout=30)
    assert process.returncode == 0 and len(rows()) == 6 * 2 * 2


def test_what_has_no_rows_any_more_is_trained_again():
    sweep(4, "--num_samples", 6)
    shutil.rmtree("results")
    assert "0 done, 0 running, 0 failed, 6 left" in sweep(4, "--num_samples", 6, "--status")
    out = sweep(4, "--num_samples", 6)
    assert "6 of 6 were done, but their rows are gone" in out and "6 done, 0 failed" in out and "settings" not in out
    assert len(trace()) == 12 and len(rows()) == 12 and len(completed()) == 6
    for part in list(Path("results/x/runs").glob("*.csv"))[:2]:
        part.unlink()
    out = sweep(4, "--num_samples", 6)
    assert "4 of 6 are done already\n" in out and "2 of 6 were done, but their rows are gone" in out
    assert len(trace()) == 14 and len(rows()) == 12 and set(rows().values()) == {1}


def test_results_deleted_during_a_sweep_are_trained_again_in_it():
    process = start(4, "--num_samples", 6, "--behave", "sleep:0.2")
    wait_for(lambda: len(committed()) >= 3)
    Path("results/x").rename("gone")  # at once: the child at work writes on
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 0 and "its rows were deleted" in out and "6 done, 0 failed, 0 left" in out, out
    assert len(rows()) == 12 and len(completed()) == 6


def test_a_subset_is_done_when_all_is_there_that_is_asked_for():
    sweep(3, "--num_samples", 3)
    out = sweep(3, "--num_samples", 3, "--splits", "valid", "test")
    assert "3 of 3 were done, but their rows are gone, or are not all that is asked for now" in out
    assert len(trace()) == 6 and {row["split"] for row in csv.DictReader(
        Path("results/x/runs.csv").read_text().splitlines())} == {"valid", "test"}
    assert "3 of 3 are done already: nothing is left" in sweep(3, "--num_samples", 3)
    assert len(trace()) == 6


@pytest.mark.parametrize("warm", [False, True])
def test_children_get_their_device(warm):
    out = sweep(5, "--num_samples", 10, "--jobs_per_device", 3, "--warm_start", warm)
    assert "10 done" in out
    assert Path("trace").read_text().count("[]") == 20


# ---- failures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behave, reason, flags", [
    ("fail", "exit code 1", ()),
    ("kill", "killed by SIGKILL (out of memory?)", ()),
    ("silent", "exit code 0, but without completed rows", ()),
    ("hang", "timed out after 1 s", ("--subset_timeout", 1)),
])
@pytest.mark.parametrize("warm", [False, True])
def test_failed_subsets_are_tried_again_and_listed(behave, reason, flags, warm):
    flags = ("--num_samples", 3, "--behave", behave, "--behave_only", "a", "--warm_start", warm,
             "--jobs_per_device", 2, *flags)
    out = sweep(3, *flags, "--retries", 1, code=1)
    assert "1 done, 2 failed, 0 left" in out and completed() == ["b c"]
    assert Counter(trace()) == {"a b": 2, "a c": 2, "b c": 1}
    for name in ("a b", "a c"):
        line = next(line for line in out.splitlines() if line.startswith(f"failed: {name}: {reason}, see "))
        log = Path(line.rpartition(" ")[2]).read_text()
        assert "the child speaks" in log and f"--task_names {name} " in log
    records = [json.loads(file.read_text()) for file in Path("sampled_tasks/x/failed").iterdir()]
    assert [len(record["attempts"]) for record in records] == [2, 2]
    assert sorted(given_up(Path("sampled_tasks"), Path("results/x"))) == [(("a", "b"), {42}), (("a", "c"), {42})]
    sweep(3, *flags, code=1)
    assert len(trace()) == 5  # not tried again ...
    sweep(3, *flags, "--retry_failed", "--retries", 0, code=1)
    assert len(trace()) == 7  # ... unless asked for
    assert processes_here() == []


def test_bad_flags_of_the_child_stop_the_sweep():
    out = sweep(10, "--num_samples", 40, "--behave", "refuse", "--jobs_per_device", 2, code=2)
    assert "error: --nonsense is no flag" in out and "a child refused its command line" in out
    assert len(trace()) <= 2 and not list(Path("sampled_tasks/x/failed").iterdir())


@pytest.mark.parametrize("number, code, behave, warm", [
    (signal.SIGINT, 130, "hang", True), (signal.SIGTERM, 143, "hang", False), (signal.SIGINT, 130, "stubborn", False)])
def test_interrupted(number, code, behave, warm):
    flags = ("--num_samples", 6, "--jobs_per_device", 4, "--warm_start", warm, "--behave", behave)
    process = start(4, *flags, "--behave_only", "d")
    wait_for(lambda: len(trace()) == 6 and len(committed()) == 3)
    began = time.monotonic()
    process.send_signal(number)
    out = process.communicate(timeout=10)[0]
    assert process.returncode == code and time.monotonic() - began < 5
    assert "3 done, 0 failed, 3 left" in out and "the same command goes on from here" in out
    assert processes_here() == []
    assert sorted(completed()) == ["a b", "a c", "b c"] and not list(Path("sampled_tasks/x/failed").iterdir())


def test_the_same_command_goes_on_after_an_interruption():
    flags = ("--num_samples", 6, "--behave", "sleep:0.3")
    process = start(4, *flags)
    wait_for(lambda: len(committed()) >= 2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert "6 done" in sweep(4, *flags)
    assert len(trace("end")) == 6 and len(completed()) == 6


@pytest.mark.parametrize("warm", [False, True])
def test_a_closed_pipe_ends_the_sweep_without_a_word(warm, monkeypatch):
    flags = ("--num_samples", 8, "--jobs_per_device", 2, "--warm_start", warm)
    # written line by line, or else when the first subset is done, while others are in training
    for unbuffered, *more in (("1",), ("", "--behave", "sleep:0.3"), ("", "--status"), ("", "--dry_run")):
        monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
        reading, writing = os.pipe()
        os.close(reading)
        run = subprocess.run(command(5, *flags, *more), stdout=writing, stderr=subprocess.PIPE, timeout=30)
        os.close(writing)
        assert (run.returncode, run.stderr) == (128 + signal.SIGPIPE, b"") and processes_here() == []
    before = completed()
    assert 1 <= len(before) < 8 and not list(Path("sampled_tasks/x/failed").iterdir())
    assert "8 done" in sweep(5, *flags, "--behave", "sleep:0.3")
    assert completed()[:len(before)] == before and len(set(completed())) == 8 and set(rows().values()) == {1}


@pytest.mark.parametrize("warm", [False, True])
def test_children_die_with_a_killed_scheduler(warm):
    process = start(4, "--num_samples", 6, "--jobs_per_device", 2, "--warm_start", warm, "--behave", "sleep:1000")
    wait_for(lambda: len(trace()) == 2)
    process.kill()
    wait_for(lambda: processes_here() == [])
    process.communicate()


def test_a_killed_forkserver_is_started_again():
    process = start(4, "--num_samples", 6, "--warm_start", "True", "--behave", "sleep:0.2")
    wait_for(lambda: len(committed()) >= 1)
    for entry in Path("/proc").glob("[0-9]*/task/*/children"):
        if entry.parent.name == str(process.pid):
            os.kill(int(entry.read_text().split()[0]), signal.SIGKILL)
    out = process.communicate(timeout=30)[0]
    assert process.returncode == 0 and len(completed()) == 6, out


# ---- several at once -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ledger", ["flock", "heartbeat"])
def test_two_sweeps_at_once_train_each_subset_once(ledger):
    flags = ("--num_samples", 12, "--behave", "sleep:0.02", "--ledger", ledger)
    both = [start(7, *flags, "--draw", draw) for draw in ("uniform", "balanced")]
    outs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outs
    assert len(trace()) == 12 and sorted(trace()) == sorted(completed())
    assert all("12 done, 0 failed, 0 left" in out for out in outs)
    assert sum(out.count("\ndone ") for out in outs) == 12 and min(out.count("\ndone ") for out in outs) > 0


def test_who_asks_for_more_gets_it_beside_a_sweep_that_asks_for_less():
    less = start(3, "--num_samples", 3, "--behave", "sleep:0.7")
    wait_for(lambda: trace())
    more = sweep(3, "--num_samples", 3, "--splits", "valid", "test")
    out = less.communicate(timeout=60)[0]
    assert less.returncode == 0 and "3 done, 0 failed, 0 left" in out and "3 done, 0 failed, 0 left" in more
    assert len(rows()) == 6 and {row["split"] for row in csv.DictReader(
        Path("results/x/runs.csv").read_text().splitlines())} == {"valid", "test"}
    assert set(rows().values()) == {2} and not trace("overlap")  # a row a split


def test_a_failure_that_another_sweep_has_forgotten_is_no_end_of_a_report():
    first = start(3, "--num_samples", 3, "--behave", "fail", "--behave_only", "a", "--retries", 0)
    wait_for(lambda: list(Path("sampled_tasks/x/failed").glob("[!.]*")))
    first.send_signal(signal.SIGSTOP)
    for path in Path("sampled_tasks/x/failed").glob("[!.]*"):
        path.unlink()  # as --retry_failed does
    first.send_signal(signal.SIGCONT)
    out = first.communicate(timeout=60)[0]
    assert first.returncode == 1 and "Traceback" not in out and "1 done, 2 failed, 0 left" in out, out


def test_a_damaged_answer_of_the_check_is_asked_for_again():
    sweep(3, "--num_samples", 1)
    for content in ("{}", "[]", "null", "{", "[" * 100_000):
        (kept,) = Path("sampled_tasks/x/checked").iterdir()
        kept.write_text(content)
        assert "1 done" in sweep(3, "--num_samples", 1, "--status")


def test_work_of_a_killed_sweep_is_taken_over_by_the_other():
    flags = ("--num_samples", 6, "--behave", "sleep:0.3")
    first = start(4, *flags)
    wait_for(lambda: len(trace()) >= 1)
    second = start(4, *flags)
    wait_for(lambda: len(trace()) >= 2)
    first.kill()
    second.communicate(timeout=30)
    first.communicate()
    assert second.returncode == 0 and len(set(completed())) == 6 and trace("overlap") == []


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags, words", [
    (("--num_samples", 3, "--min_task_num", 4, "--max_task_num", 2), "--min_task_num 4 --max_task_num 2"),
    (("--num_samples", 3, "--max_task_num", 5), "there are only 4 items"),
    (("--num_samples", 0), "--num_samples 0 must be at least 1"),
    ((), "--num_samples is missing"),
    (("--num_samples", 3, "--target_tasks", "e"), "unknown item 'e'"),
    (("--num_samples", 3, "--current_cluster_dir", "nowhere"), "neither a file nowhere nor clusters/nowhere.txt"),
    (("--num_samples", 3, "--device", "first"), "--device first"),
    (("--num_samples", 3, "--save_name", "a/b"), "must be a plain file name"),
    (("--num_samples", 3, "--run_name", "mine"), "--run_name is set by the sweep"),
    (("--num_samples", 3, "--warm_start", "maybe"), "must be True or False"),
    (("--preload_combos", "--combos_section", 6, 8), "there are 6 combinations"),
    (("--combos_section", 0, 8, "--num_samples", 3), "needs --preload_combos"),
    (("--num_samples", 3, "--launcher", "ray", "--device", "cpu", "--ledger", "hope"), "invalid choice: 'hope'"),
    (("--num_samples", 3, "--rank_by", "value"), "draws without --from_estimate and --rank_by exclude"),
    (("--subsets_file", "x", "--target_tasks", "a"), "--subsets_file and --target_tasks exclude each other"),
    (("--subsets_file", "x", "--min_task_num", 2), "--subsets_file and --min_task_num exclude each other"),
    (("--subsets_file", "x", "--max_task_num=2"), "--subsets_file and --max_task_num exclude each other"),
    (("--subsets_file", "x", "--draw", "balanced"), "--subsets_file and --draw exclude each other"),
    (("--subsets_file", "x", "--num_samples", 3), "--subsets_file and --num_samples exclude each other"),
    (("--draw", "plan", "--max_task_num", 3), "--draw plan and --max_task_num exclude each other"),
    (("--preload_combos", "--draw", "balanced"), "--preload_combos and --draw exclude each other"),
    (("--num_samples", 3, "--workers", 2), "--launcher local and --workers exclude each other: --workers would"),
    (("--num_samples", 3, "--partition", "gpu"), "--launcher local and --partition exclude each other"),
    (("--num_samples", 3, "--gres", "gpu:1"), "--launcher local and --gres exclude each other"),
    (("--num_samples", 3, "--time", "1:00"), "--launcher local and --time exclude each other"),
    (("--num_samples", 3, "--requeue", "False"), "--launcher local and --requeue exclude each other"),
    (("--num_samples", 3, "--launcher", "ray", "--gres", "gpu:1"), "--launcher ray and --gres exclude each other"),
    (("--num_samples", 3, "--launcher", "ray", "--device", "1"), "--device 1: with --launcher ray a worker takes all"),
])
def test_bad_input(flags, words):
    assert words in sweep(4, *flags, code=2)
    assert list(Path.cwd().iterdir()) == []


def test_workers_get_the_command_without_the_flags_of_its_launch(monkeypatch):
    started = []
    monkeypatch.setattr(workers, "run_ray", lambda command, number, on_gpu: started.append((command, number, on_gpu)))
    words = ["--task_set_name", "x", "--num_samples", "3", "--launcher=ray", "--workers", "4", "--lr", "1e-4",
             "--retry_failed", "--", "--max_steps", "7"]
    for device in ([], ["--device", "cpu"]):
        workers.launch(parse(sweep_parser("", "s.py"), [*device, *words]), SimpleNamespace(mode="heartbeat"))
    for (command, number, on_gpu), device in zip(started, ("all", "cpu"), strict=True):
        assert command[2:] == ["--task_set_name", "x", "--num_samples", "3", "--lr", "1e-4", "--ledger", "heartbeat",
                               "--device", device, "--", "--max_steps", "7"]
        assert number == 4 and on_gpu == (device == "all")
        parse(sweep_parser("", "s.py"), command[2:])


def test_a_file_of_flags():
    Path("sweep.json").write_text(json.dumps({
        "task_set_name": "x", "num_samples": 3, "device": [0, 1], "dry_run": True, "save_name": None, "lr": 1e-4,
        "task_names": ["a", "b"], "train_only": "-x"}))
    args = parse(sweep_parser("", "s.py"), ["sweep.json", "--num_samples", "5"])
    assert (args.num_samples, args.device, args.dry_run, args.save_name) == (5, ["0", "1"], True, "x")
    assert args.child["learning_rate"] == ["0.0001"] and args.child["train_only"] == ["-x"]


def test_old_flags_of_the_children(capsys):
    words = ["--task_set_name", "x", "--num_samples", "5", "--evaluation_strategy", "epoch", "--", "--num_beams=2"]
    args = parse(sweep_parser("", "s.py"), [*words, "--use_Adafactor_optm"])
    assert (args.child["eval_strategy"], args.child["optim"]) == (["epoch"], ["adafactor"])
    assert args.child["generation_num_beams"] == ["2"] and capsys.readouterr().err.count("is an old flag") == 3
    with pytest.raises(InputError, match="--freeze_layer 3: an old flag; today it is --train_only"):
        parse(sweep_parser("", "s.py"), [*words, "--freeze_layer", "3"])
    with pytest.raises(InputError, match="--use_cpu is set by the sweep: --device cpu"):
        parse(sweep_parser("", "s.py"), [*words, "--no_cuda"])


def test_devices(monkeypatch, capsys):
    monkeypatch.setattr(children, "visible_gpus", lambda: [])
    assert children.resolve_devices(["7"]) == ["cpu"]
    assert capsys.readouterr().err.count("warning: --device 7: there is no GPU here") == 1
    assert children.resolve_devices(["all"]) == children.resolve_devices(["cpu"]) == ["cpu"]
    monkeypatch.setattr(children, "visible_gpus", lambda: ["4", "6"])
    assert children.resolve_devices(["1"]) == ["6"] and children.resolve_devices(["all"]) == ["4", "6"]
    assert children.device_environment("6", 4) == {"CUDA_VISIBLE_DEVICES": "6"}
    for wanted, words in ((["7"], "indices 0 to 1"), (["0", "0"], "given twice"), (["cpu", "0"], "--device cpu")):
        with pytest.raises(InputError, match=words):
            children.resolve_devices(wanted)


def mount(*arguments: str, folder: Path) -> None:
    """Mount a small file system, or skip where that is not allowed."""
    folder.mkdir()
    if subprocess.run(["mount", *arguments, folder], capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")


def test_read_only_folder(tmp_path):
    mount("-t", "tmpfs", "-o", "ro", "none", folder=tmp_path / "sampled_tasks")
    try:
        assert "cannot write there: Read-only file system" in sweep(4, "--num_samples", 3, code=2)
    finally:
        subprocess.run(["umount", tmp_path / "sampled_tasks"], check=True)


def test_full_disk_loses_nothing(tmp_path):
    mount("-t", "tmpfs", "-o", "size=1m", "none", folder=tmp_path / "sampled_tasks")
    try:
        filler = tmp_path / "sampled_tasks" / "filler"
        process = start(5, "--num_samples", 10, "--behave", "sleep:0.2")
        wait_for(lambda: len(committed()) >= 2)
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError):
            while True:
                file.write(b"x" * 4096)
        out = process.communicate(timeout=30)[0]
        assert process.returncode == 1 and "No space left on device" in out and "Traceback" not in out, out
        assert processes_here() == []
        before = list(completed())
        filler.unlink()
        assert "10 done, 0 failed" in sweep(5, "--num_samples", 10, "--behave", "sleep:0.2")
        assert completed()[:len(before)] == before and len(set(completed())) == 10
        assert len(rows()) == 20 and set(rows().values()) == {1}
    finally:
        subprocess.run(["umount", tmp_path / "sampled_tasks"], check=True)


# ---- stress --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("ledger, number, seconds", [("flock", 500, 20), ("heartbeat", 120, 8)])
def test_eight_sweeps_under_random_kills_lose_and_repeat_nothing(ledger, number, seconds):
    """8 sweeps; for some seconds a random scheduler or child is killed; then one sweep runs to the end."""
    flags = ("--num_samples", number, "--max_task_num", 3, "--retries", 1000, "--ledger", ledger, "--stale_after", 5)
    rng, began, kills = random.Random(0), time.monotonic(), Counter()
    sweeps = [start(40, *flags) for _ in range(8)]
    while time.monotonic() - began < seconds:
        time.sleep(0.04)
        victim = rng.choice(sweeps)
        children = Path(f"/proc/{victim.pid}/task/{victim.pid}/children")
        pids = list(map(int, children.read_text().split())) if children.exists() else []
        if pids and rng.random() < 0.4:
            with contextlib.suppress(ProcessLookupError):  # it may have ended since
                os.kill(rng.choice(pids), signal.SIGKILL)
            kills["children"] += 1
        elif rng.random() < 0.06:
            victim.kill()
            victim.communicate()
            kills["schedulers"] += 1
            sweeps[sweeps.index(victim)] = start(40, *flags)
    for process in sweeps:
        process.kill()
        process.communicate()
    before = len(completed())
    out = sweep(40, *flags, "--jobs_per_device", 4, "--warm_start", True)
    print(f"{dict(kills)}, {before} of {number} done under fire, {len(trace())} starts, {len(trace('end'))} ends")
    assert kills["children"] > 20 and kills["schedulers"] > 2
    assert f"{number} done, 0 failed, 0 left" in out
    done = [json.loads(path.read_text())["subset"] for path in Path("sampled_tasks/x/done").glob("[!.]*")]
    assert len(done) == len(set(done)) == number and sorted(completed()) == sorted(done)
    assert trace("overlap") == []
    expected = {(name, item, "42") for name in done for item in name.split()}
    assert set(rows()) == expected and set(rows().values()) == {1}
