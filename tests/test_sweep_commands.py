"""The sampling commands as users write them, with real children on a tiny T5; steps and samples are cut by flags."""

import csv
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from src.sweep.children import visible_gpus

ROOT = Path(__file__).resolve().parent.parent
SAMPLED_TASKS = """
python train_sample_tasks.py --model_name_or_path t5-base\
    --num_samples 1000 --min_task_num 2 --max_task_num 2\
    --max_steps 4000 --eval_steps 400 --save_steps 400 --runs 2\
    --task_set_name sample_test_dule_0_7 --save_name sample_test_dule_0_7 --device 0 \
    --target_task_group 0 7 --fp16 True
"""
SAMPLED_INSTRUCTIONS = """
python train_sample_instructions_lora.py --num_tasks 10\
    --model_name_or_path t5-base --num_samples 50 --min_task_num 3 --max_task_num 3\
    --dataset rte --max_steps 1000 --eval_steps 200 --save_steps 200 --runs 2 --downsample 1000\
    --task_set_name sample_rte_lora --save_name sample_rte_lora --device 1 \
    --current_cluster_dir none --lora_rank 4 --lora_alpha 32
"""
SHORT = ["--max_steps", "2", "--eval_steps", "2", "--save_steps", "2", "--downsample", "8"]


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """A folder like a checkout whose t5-base and rows are stand-ins."""
    monkeypatch.chdir(tmp_path)
    Path("data/splits").mkdir(parents=True)
    for name, target in (("t5-base", "data/models/tiny-t5"), ("data/tasks", "data/tasks"),
                         ("data/splits/default", "tests/rows")):
        Path(name).symlink_to(ROOT / target)
    for script in ROOT.glob("train_*.py"):
        Path(script.name).symlink_to(script)
    return tmp_path


def run(command: str, *more: str, code: int = 0) -> str:
    words = shlex.split(command)
    done = subprocess.run([sys.executable, *words[1:], *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, timeout=300)
    assert done.returncode == code, done.stdout
    return done.stdout


def rows(name: str) -> list[dict]:
    with Path("results", name, "runs.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.skipif(bool(visible_gpus()), reason="--device as written must work without a GPU")
@pytest.mark.parametrize("command, name, size, possible", [
    (SAMPLED_TASKS, "sample_test_dule_0_7", 2, 15), (SAMPLED_INSTRUCTIONS, "sample_rte_lora", 3, 120)])
def test_as_written(scratch, command, name, size, possible):
    out = run(command, *SHORT, "--num_samples", "2")
    assert out.count("warning: ") == 1 and "there is no GPU here, running on the CPU" in out
    assert f"2 subsets wanted, {possible} possible" in out and "2 done, 0 failed, 0 left" in out
    completed = Path("sampled_tasks", f"{name}.txt").read_text().splitlines()
    assert len(set(completed)) == 2 and all(len(line.split()) == size for line in completed)
    scores = {(row["trained_on"], row["item"], row["seed"]) for row in rows(name) if row["metric"] == "exact_match"}
    assert scores == {(line, item, seed) for line in completed for item in line.split() for seed in ("42", "43")}
    assert not list(Path("saved").iterdir())
    assert "2 of 2 are done already: nothing is left to do" in run(command, *SHORT, "--num_samples", "2")


@pytest.mark.slow
def test_forked_and_fresh_children_give_the_same_rows(scratch):
    found = []
    for warm in ("True", "False"):
        run(SAMPLED_TASKS, *SHORT, "--num_samples", "1", "--device", "cpu", "--warm_start", warm, "--save_name", warm)
        found.append([(r["trained_on"], r["item"], r["seed"], r["split"], r["metric"], r["value"], r["config_hash"])
                      for r in rows(warm)])
    assert sorted(found[0]) == sorted(found[1]) and len(found[0]) > 8


@pytest.mark.parametrize("flag, hint", [("--nonsense", ""), ("--retrie", "--retries"),
                                        ("--learning_rat", "--learning_rate")])
def test_a_flag_that_nobody_knows_ends_the_sweep_at_once(scratch, flag, hint):
    out = run(SAMPLED_TASKS, *SHORT, flag, "3", code=2)
    assert f"unknown argument '{flag}'" in out and (not hint or f"did you mean '{hint}'?" in out)
    assert not (scratch / "sampled_tasks").exists()


@pytest.mark.parametrize("command, flags, words", [
    (SAMPLED_TASKS, ("--target_task_group", "9"), "--target_task_group 9: must be 0 to 7"),
    (SAMPLED_TASKS, ("--task_names", "rte"), "either --target_task_group or --task_names"),
    (SAMPLED_TASKS, ("--min_task_num", "4", "--max_task_num", "2"), "--min_task_num 4 --max_task_num 2"),
    (SAMPLED_TASKS, ("--max_task_num", "7"), "only 6 items"),
    (SAMPLED_INSTRUCTIONS, ("--num_tasks", "99"), "'rte' has"),
    (SAMPLED_INSTRUCTIONS, ("--dataset", "rt"), "did you mean"),
    (SAMPLED_INSTRUCTIONS, ("--lora_rank", "-1"), "at least 0"),
    (SAMPLED_INSTRUCTIONS, ("--current_cluster_dir", "clusters.txt"), "line 2: unknown item 'rte_77'"),
    (SAMPLED_INSTRUCTIONS, ("--task_name", "rte"), "--task_name is set by the sweep"),
    (SAMPLED_INSTRUCTIONS, ("--template_idx", "1"), "--template_idx is set by the sweep"),
    (SAMPLED_TASKS, ("--template_idx", "first"), "--template_idx first"),
    (SAMPLED_TASKS, ("--template_idx", "99"), "has templates 0 to"),
])
def test_bad_input(scratch, command, flags, words):
    Path("clusters.txt").write_text("rte_0 3\nrte_77 2\n")
    assert words in run(command, *flags, code=2)
    assert not Path("sampled_tasks").exists() and not Path("results").exists()


def test_commands_of_the_children(scratch):
    out = run(SAMPLED_INSTRUCTIONS, "--dry_run")
    assert "50 subsets wanted, 120 possible" in out and out.count("train_multi_instruction.py --task_name rte") == 50
    assert "--train_lora True --lora_rank 4 --lora_alpha 32" in out
    assert "--train_lora" not in run(SAMPLED_INSTRUCTIONS, "--dry_run", "--lora_rank", "0")
    Path("clusters").mkdir()
    Path("clusters/found.txt").write_text("0 1 2 3\nrte_4 rte_5 rte_6\n")
    out = run(SAMPLED_INSTRUCTIONS, "--dry_run", "--current_cluster_dir", "found", "--num_samples", "999")
    assert "54 possible" in out  # C(7, 3) + C(6, 3) - C(3, 3)
    out = run(SAMPLED_TASKS, "--dry_run", "--lr", "1e-4", "--batch_size", "4", "--gradient_accumulation_steps", "2",
              "--train_only", "SelfAttention.[qv]")
    assert "(--num_samples 1000 is more: all of them are trained)" in out and "15 of 15 pairs" in out
    assert re.search(r"to come: 30 trainings, [\d,]+ steps, about [\d,]{6,} tokens; how long", out)
    assert "--learning_rate 1e-4 --per_device_train_batch_size 4 --gradient_accumulation_steps 2" in out
    assert "--train_only 'SelfAttention.[qv]'" in out


@pytest.mark.parametrize("script", ["train_sample_tasks.py", "train_sample_instructions_lora.py"])
def test_help_imports_nothing_heavy(script):
    code = ("import runpy, sys\nsys.argv = [sys.argv[1], '--help']\n"
            "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
            "except SystemExit: print({'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules))")
    out = subprocess.run([sys.executable, "-c", code, script], cwd=ROOT, capture_output=True, text=True,
                         check=True).stdout
    assert out.endswith("set()\n") and "--num_samples" in out and len((ROOT / script).read_text().splitlines()) <= 80


@pytest.mark.parametrize("flags, message", [
    ("--learning_rate inf", "--learning_rate inf must be a finite number"),
    ("--train_lora True --lora_target_modules qkv", "the model has no linear layer 'qkv'"),
    ("--metric_for_best_model eval_rte_accuracy", "must be a mean that every subset has"),
    ("--model_name_or_path t5-large", "--model_name_or_path 't5-large'")])
def test_what_the_children_would_refuse_ends_the_sweep_before_a_claim(scratch, flags, message):
    command = shlex.split("""train_sample_tasks.py --task_names rte cb boolq --model_name_or_path t5-base --max_steps 2
        --num_samples 3 --device cpu --task_set_name x""")
    out = subprocess.run([sys.executable, *command, *flags.split()], capture_output=True, text=True)
    assert out.returncode == 2 and message in out.stderr and out.stderr.count("\n") <= 2, out.stderr
    assert not Path("sampled_tasks").exists() and not Path("results").exists()


@pytest.mark.parametrize("behind, message", [
    ("--runs 3", "--runs is a flag of the sweep"), ("--save_name=y", "--save_name is a flag of the sweep")])
def test_flags_behind_the_dashes_are_the_childrens_alone(scratch, behind, message):
    command = shlex.split("""train_sample_tasks.py --task_names rte cb --model_name_or_path t5-base --num_samples 1
        --device cpu --task_set_name x --""")
    out = subprocess.run([sys.executable, *command, *behind.split()], capture_output=True, text=True)
    assert out.returncode == 2 and message in out.stderr


@pytest.mark.slow
def test_trainings_of_each_with_all_others_held_out_are_a_whole_matrix(scratch):
    """n trainings give n x n scores; held-out items asked for later are scored, and nothing else is trained again."""
    subsets = Path("subsets.txt")
    subsets.write_text("rte\nwic\nmnli\n")
    sweep = (f"python train_sample_tasks.py --model_name_or_path t5-base --task_names rte wic mnli {' '.join(SHORT)} "
             "--subsets_file subsets.txt --task_set_name x --device cpu --jobs_per_device 2 --warm_start True")
    assert "3 done, 0 failed" in run(sweep, "--eval_task_names", "rte", "wic")
    found = {(row["item"], row["trained_on"]) for row in rows("x")}
    assert found == {("rte", "rte"), ("wic", "rte"), ("rte", "wic"), ("wic", "wic"), ("mnli", "mnli"), ("rte", "mnli"),
                     ("wic", "mnli")}
    said = run(sweep, "--eval_task_names", "rte", "wic", "mnli")
    assert "2 of them are not scored on all held-out items yet" in said and "1 of 3 are done already" in said
    table = rows("x")
    assert {(row["item"], row["trained_on"]) for row in table} == {
        (item, source) for item in ("rte", "wic", "mnli") for source in ("rte", "wic", "mnli")}
    assert len({row["run_id"] for row in table}) == 3
    assert "its finished rows were found" in run(sweep) and rows("x") == table  # less than was asked for before
