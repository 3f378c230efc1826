"""`python -m src.estimate [compare]` end to end, its checks, and what the sweeps make of it."""

import json
import runpy
import shlex
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pandas
import psutil
import pytest

from src import results
from src.cli import InputError
from src.estimate import calibration, compare
from src.estimate.calibration import item_scales, spread
from src.results import Results
from src.scores import oriented, rank_subsets, read_scores

TASKS = ("demo_a1", "demo_a2", "demo_b1", "demo_b2")
FLAGS = shlex.split(f"""--task_names {" ".join(TASKS)} --model_name_or_path data/models/tiny-t5 --downsample 40
    --per_device_train_batch_size 32 --max_steps 4 --learning_rate 5e-3 --disable_tqdm True --save_name x""")
START = ["--do_train", "False"]


def estimate(*arguments):
    """Run the command in this process; return its exit code."""
    before, sys.argv = sys.argv, ["estimate", *map(str, arguments)]
    try:
        runpy.run_module("src.estimate", run_name="__main__")
    except SystemExit as stop:
        return stop.code
    finally:
        sys.argv = before
    raise AssertionError("a script ends with an exit code")


def record(scratch, name="x_estimated"):
    return json.loads(next((scratch.folder / f"results/{name}/runs").glob("estimate-s*.json")).read_text())["estimate"]


def pretend_true(scratch, seeds=(1,), noise=0.0):
    """Make the estimates of results/x_estimated the true results of results/x."""
    rng = np.random.default_rng(0)
    for seed in seeds:
        runs: dict[str, list] = {}
        for row in scratch.rows("x_estimated"):
            value = float(row["value"]) + noise * rng.normal()
            runs.setdefault(row["trained_on"], []).append(
                row | {"status": "completed", "seed": seed, "value": value, "config_hash": "true"})
        for number, (subset, rows) in enumerate(runs.items()):
            run_id = f"{number}-s{seed}"
            Results("results", "x").write_run(run_id, [row | {"run_id": run_id} for row in rows], {
                "status": "completed", "trained_on": subset, "seconds": 10, "cpu_seconds": 20,
                "training": {"log": [{"total_flos": 1e9}]}})


def test_calibration_then_comparison(scratch, capsys):
    assert estimate(*FLAGS, *START, "--strength", 63) == 0
    rows = scratch.rows("x_estimated")
    assert {row["status"] for row in rows} == {"estimated"}
    assert len(rows) == 6 * 2 * 3  # pairs, members, metrics
    assert {row["metric"] for row in rows} == {"loss", "exact_match", "accuracy"}
    assert all(len(row["trained_on"].split()) == 2 and row["item"] in row["trained_on"] for row in rows)
    pretend_true(scratch)
    before = {row["trained_on"] + row["item"]: row["value"] for row in rows if row["metric"] == "loss"}

    assert estimate(*FLAGS, *START, "--calibrate", 3) == 0
    captured = capsys.readouterr()
    assert "calibrated on 3 true subsets: 63 steps, relative error of their loss 0.0%" in captured.out
    assert "say little about it" not in captured.err
    found = record(scratch)
    assert (found["strength"], found["chosen_by"], len(found["calibrated_on"])) == (63, "calibration", 3)
    after = {row["trained_on"] + row["item"]: row["value"] for row in scratch.rows("x_estimated")
             if row["metric"] == "loss"}
    assert {key: float(value) for key, value in after.items()} == pytest.approx(
        {key: float(value) for key, value in before.items()}, abs=2e-6)  # the same seed, the same rows

    assert estimate("compare", "--save_name", "x") == 0
    out = capsys.readouterr().out
    assert "loss: 6 scores of subsets that were not calibrated on (3 were)" in out
    assert "one seed a subset" in out
    result = json.loads((scratch.folder / "results/x_estimated/compare.json").read_text())
    assert result["relative_error"] < 1e-9
    assert result["constant"] > 1e-4
    assert result["ceiling"] is None
    assert result["adjusted_rand_index"] == 1
    assert result["costs"]["cpu_seconds"]["true"] == 6 * 20
    assert result["item_means"] > result["relative_error"]
    costs = result["costs"]["cpu_seconds"]
    assert costs["calibration"] == 3 * 20
    assert costs["share"] == pytest.approx((costs["gradients"] + costs["fits"]) / 120)
    assert costs["share_of_many"] == pytest.approx(
        (costs["gradients"] + 60 + costs["fits"] / 6 * 1000) / (120 / 6 * 1000))
    assert (scratch.folder / "results/x_estimated/compare.png").stat().st_size > 1000

    # true losses from elsewhere are as good
    assert results.main(["import", "results/x/x_valid.csv", "--save_name", "y"]) == 0
    assert estimate("compare", "--save_name", "y", "--estimated", "x_estimated") == 0
    assert "loss: 6 scores of subsets that were not calibrated on (3 were)" in capsys.readouterr().out
    assert estimate(*FLAGS, *START, "--calibrate", 3, "--save_name", "y") == 0
    assert "calibrated on 3 true subsets: 63 steps, relative error of their loss 0.0%" in capsys.readouterr().out


def test_calibration_subsets_hold_each_item():
    known = [("a", "b"), ("a", "c"), ("a", "d"), ("c", "d"), ("e", "f")]
    for seed in range(5):
        chosen = spread(known, 3, seed)
        assert {item for members in chosen for item in members} >= {"a", "e", "f"}
        assert len({item for members in chosen for item in members}) >= 5
    assert spread(known, 3, 1) == spread(known, 3, 1)
    assert sorted(spread(known, 9, 0)) == known
    assert spread([], 5, 0) == []


def test_item_scales_by_hand():
    found = item_scales(["a", "a", "b"], np.log([2.0, 2.0, 1.0]))
    shared = 2 * np.log(2) / 4
    assert found[""] == pytest.approx(np.exp(shared))
    assert found["a"] == pytest.approx(np.exp(shared + 2 * (np.log(2) - shared) / 3))
    assert found["b"] == pytest.approx(np.exp(shared - shared / 2))


def test_training_and_gradients_are_done_once(scratch, capsys):
    lora = [*FLAGS, "--train_lora", "True", "--strength", 5, "--use_cpu", "True"]
    assert estimate(*lora) == 0
    first = {path: path.stat().st_mtime_ns for path in (scratch.folder / "cache/gradients").glob("*.npy")}
    assert len(first) == 8
    costs = record(scratch)["costs"]
    assert costs["training"]["flops"] > 0
    assert costs["gradients"]["cpu_seconds"] > 0
    capsys.readouterr()
    assert estimate(*lora) == 0
    assert "is completed already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (scratch.folder / "cache/gradients").glob("*.npy")} == first
    before = [(row["trained_on"], row["item"], row["value"]) for row in scratch.rows("x_estimated")]
    adapter = next(scratch.folder.glob("saved/*/checkpoint-4"))
    assert estimate(*lora, *START, "--model_name_or_path", adapter) == 0  # a model as any other: the same point
    assert "train_loss" not in capsys.readouterr().out
    assert [(row["trained_on"], row["item"], row["value"]) for row in scratch.rows("x_estimated")] == before
    assert {path: path.stat().st_mtime_ns for path in (scratch.folder / "cache/gradients").glob("*.npy")} == first
    assert record(scratch)["costs"]["training"]["flops"] == 0
    shutil.rmtree(scratch.folder / "saved")  # the weights are needed, not the record
    assert estimate(*lora) == 0
    assert "train_loss" in capsys.readouterr().out


def test_several_seeds(scratch):
    assert estimate(*FLAGS, *START, "--project_dim", 7, "--strength", 5, "--runs", 2) == 0
    rows = scratch.rows("x_estimated")
    assert {row["run_id"] for row in rows} == {"estimate-s42", "estimate-s43"}
    assert estimate(*FLAGS, *START, "--strength", 20) == 0  # replaces both
    assert {row["run_id"] for row in scratch.rows("x_estimated")} == {"estimate-s42"}


def test_a_part_is_estimated(scratch, capsys):
    """The estimate trains what --train_only names, and takes the gradients of that alone."""
    found = {}
    for name, extra in (("x", ()), ("part", ("--train_only", "layer_norm", "--save_name", "part"))):
        assert estimate(*FLAGS, "--strength", 20, *extra) == 0
        found[name] = {row["trained_on"] + row["item"]: float(row["value"]) for row in scratch.rows(
            f"{name}_estimated") if row["status"] == "estimated" and row["metric"] == "loss"}
        training = json.loads(next(path for path in (scratch.folder / f"results/{name}_estimated/runs").glob("*.json")
                                   if not path.name.startswith("estimate-")).read_text())["training"]
    assert training["trainable_parameters"] == 224
    assert found["x"].keys() == found["part"].keys()
    assert all(found["x"][key] != found["part"][key] for key in found["x"])
    assert "--train_only layer_norm" in capsys.readouterr().out


def test_templates_of_one_task_and_free_text(scratch):
    flags = [*FLAGS[FLAGS.index("--model_name_or_path"):], *START, "--strength", "10"]
    assert estimate("--task_name", "demo_a1", "--template_idx", 0, 1, -1, *flags, "--max_task_num", 3) == 0
    rows = scratch.rows("x_estimated")
    assert {row["item"] for row in rows} == {"demo_a1_0", "demo_a1_1", "demo_a1_-1"}
    assert len({row["trained_on"] for row in rows}) == 4
    free = [flag if flag != "x" else "free" for flag in flags]
    assert estimate("--task_names", "common_gen", "demo_a1", *free) == 0
    metrics = {(row["item"], row["metric"]) for row in scratch.rows("free_estimated")}
    assert metrics == {("common_gen", "loss"), *(("demo_a1", name) for name in ("loss", "exact_match", "accuracy"))}


@pytest.mark.parametrize("bad, message", [
    ("--model_name_or_path empty", "--model_name_or_path 'empty': no model that can be loaded"),
    ("--model_name_or_path broken", "--model_name_or_path 'broken': no model that can be loaded"),
    ("--model_name_or_path bare", "--model_name_or_path 'bare': no weights there (model.safetensors"),
    ("--model_name_or_path cut", "--model_name_or_path 'cut': no model that can be loaded"),
    ("--model_name_or_path adapter", "--model_name_or_path 'adapter': an adapter of 't5-bose': there is no folder "),
    ("--model_name_or_path prompt", "an adapter of the kind PeftType.PROMPT_TUNING, only LORA is allowed"),
    ("--strength nan", "invalid int value: 'nan'"),
    ("--strength 0", "--strength 0 must be at least 1"),
    ("--project_dim 0", "--project_dim 0 must be at least 1"),
    ("--strength 2.5", "invalid int value: '2.5'"),
    ("--train_prompt_tuning True", "estimates are of full training or of --train_lora"),
    ("--min_task_num 5", "there are only 4 items"),
    ("--subsets_file nofile", "nofile: cannot be read"),
    ("--calibrate 5", "--strength and --calibrate exclude each other: --calibrate would have no effect"),
    ("--config_hash 1a", "--strength and --config_hash exclude each other"),
    ("--content_hash 1a", "--strength and --content_hash exclude each other"),
    ("--subsets_file x --num_samples 3", "--subsets_file and --num_samples exclude each other"),
    ("--subsets_file x --min_task_num 2", "--subsets_file and --min_task_num exclude each other"),
    ("--task_names demo_a1 demo_q", "did you mean"),
    ("--projectdim 3", "unknown argument '--projectdim'"),
    ("--start_from x", "unknown argument '--start_from'"),
])
def test_bad_input(scratch, capsys, bad, message):
    for name in ("broken", "bare", "cut"):
        shutil.copytree("t5-base", name)
    (scratch.folder / "empty").mkdir()
    (scratch.folder / "broken/config.json").write_text("{")
    (scratch.folder / "bare/model.safetensors").unlink()
    weights = scratch.folder / "cut/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for name, kind in (("adapter", "LORA"), ("prompt", "PROMPT_TUNING")):
        (scratch.folder / name).mkdir()
        (scratch.folder / name / "adapter_config.json").write_text(
            json.dumps({"base_model_name_or_path": "t5-bose", "peft_type": kind}))
    assert estimate(*FLAGS, "--strength", 5, *shlex.split(bad)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.strip().splitlines()[-1].startswith("error: ")
    assert not (scratch.folder / "results").exists()


@pytest.mark.parametrize("extra", ["", "--calibrate=3 --learning_rate=1e-3 --use_cpu True",
                                   "--task_name demo_a1 --template_idx 0 1 2 --train_lora True"])
def test_without_true_subsets_it_says_what_to_train(scratch, capsys, extra):
    flags = FLAGS if "task_name" not in extra else FLAGS[len(TASKS) + 1:]
    assert estimate(*flags, *shlex.split(extra)) == 2
    assert not (scratch.folder / "results").exists() and not (scratch.folder / "saved").exists()
    lines = capsys.readouterr().err.strip().splitlines()
    assert "results/x holds no subset of these items" in lines[-1] and lines[-1].endswith("or give --strength")
    command = shlex.split(lines[-1].partition("; train some: python ")[2].removesuffix(" or give --strength"))
    assert scratch.run(*command, "--dry_run") == 0  # it is ready to be run
    out = capsys.readouterr().out
    assert f"{5 if not extra else 3} subsets" in out
    assert "--learning_rate 1e-3" in out or "--calibrate" not in extra


def test_memory_is_checked_before_the_training(scratch, capsys, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1e5))
    assert estimate(*FLAGS, "--strength", 5) == 2
    assert "the gradient of one example needs 0.0 GiB, 0.0 GiB are free" in capsys.readouterr().err
    assert not list(scratch.folder.glob("saved/*"))


def test_a_sweep_of_another_model_is_named(scratch, capsys):
    assert estimate(*FLAGS, *START, "--strength", 5) == 0
    pretend_true(scratch)
    for path in (scratch.folder / "results/x/runs").glob("*.csv"):
        path.write_text(path.read_text().replace("data/models/tiny-t5", "t5-large"))
    assert estimate(*FLAGS, *START) == 0
    assert "results/x trained t5-large, not --model_name_or_path data/models/tiny-t5" in capsys.readouterr().err


class Known:
    """Small fits whose loss is 1 / steps for `a` and exactly 0 for `b`."""

    def predict(self, members, steps):
        right = np.ones(len(steps))
        return {"a": (1 / np.array(steps, float), right), "b": (np.zeros(len(steps)), right)}


@pytest.mark.parametrize("a, steps", [(0.1, 10), (0.0, 1000)])
def test_a_true_loss_of_zero(a, steps, recwarn):
    """Results are rounded to six digits: a loss may be 0.000000, whose logarithm is no number."""
    found = calibration.calibrate(Known(), {("a", "b"): {"a": a, "b": 0.0}})
    assert found.steps == steps
    assert all(np.isfinite(scale) and scale > 0 for scale in found.scales.values())
    assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]
    assert found.scale("c") == found.scales[""]


def test_each_item_is_compared_by_its_own_loss(scratch, capsys):
    def rows(status, **metrics):
        return [{**dict.fromkeys(results.COLUMNS, ""), "run_id": "estimate-s42", "status": status, "item": item,
                 "seed": 42, "trained_on": "a b", "split": "valid", "metric": metric, "value": value}
                for item, of_item in metrics.items() for metric, value in of_item.items()]

    results.Results("results", "x").write_part("estimate-s42", rows(
        "completed", a={"loss": 9.0, "choice_loss": 1.0, "choice_accuracy": 0.5}, b={"loss": 2.0}),
        {"status": "completed", "seconds": 1, "trained_on": "a b"})
    nothing = dict.fromkeys(("seconds", "cpu_seconds", "flops"), 0)
    results.Results("results", "x_estimated").write_part("estimate-s42", rows(
        "estimated", a={"choice_loss": 1.1, "choice_accuracy": 0.6}, b={"loss": 2.0}), {
            "status": "estimated", "estimate": {
                "calibrated_on": [], "subsets": 1, "costs": dict.fromkeys(("training", "gradients", "fits"), nothing)}})
    assert estimate("compare", "--save_name", "x") == 0
    assert "loss: 2 scores" in capsys.readouterr().out
    found = json.loads((scratch.folder / "results/x_estimated/compare.json").read_text())
    assert found["relative_error"] == pytest.approx(0.1**2 / (1**2 + 2**2))


def test_comparison_needs_both(scratch, capsys):
    assert estimate("compare", "--save_name", "x") == 2
    assert "x_estimated" in capsys.readouterr().err


# ---- agreement -----------------------------------------------------------------------------------------------------


def scores(T, guess, variance=np.nan):
    n = len(T)
    return pandas.DataFrame([
        {"trained_on": " ".join(sorted((f"t{i}", f"t{j}"))), "item": f"t{i}", "metric": "loss", "value": T[i, j],
         "value_guess": guess[i, j], "variance": variance} for i in range(n) for j in range(n) if i != j])


def test_agreement_by_hand():
    rng = np.random.default_rng(0)
    T = -rng.uniform(1, 2, (6, 6))
    T[:3, :3] += 1
    T[3:, 3:] += 1
    found = compare.agreement(*[scores(T, T + 0.5, 0.01)] * 2, seed=0)
    off = ~np.eye(6, dtype=bool)
    assert found["relative_error"] == pytest.approx(30 * 0.25 / (T[off] ** 2).sum())
    assert found["constant"] == pytest.approx(T[off].var() * 30 / (T[off] ** 2).sum())
    assert found["ceiling"] == pytest.approx(2 * 30 * 0.01 / (T[off] ** 2).sum())
    assert found["pearson"] == pytest.approx(1)
    assert found["spearman"] == pytest.approx(1)
    assert found["adjusted_rand_index"] == 1
    assert found["true"]["clusters"] == [["t0", "t1", "t2"], ["t3", "t4", "t5"]]
    opposite = compare.agreement(*[scores(T, -T)] * 2, seed=0)
    assert opposite["pearson"] == pytest.approx(-1)
    assert opposite["adjusted_rand_index"] < 0.5
    assert opposite["ceiling"] is None
    assert opposite["relative_error"] > opposite["constant"]


# ---- the sweeps ----------------------------------------------------------------------------------------------------


def test_ranked_by_value_and_by_uncertainty():
    T = np.array([[0, 1, 2], [1, 0, 3], [2, 3, 0.0]])
    frame = scores(T, T, 1.0)
    frame.loc[(frame["trained_on"] == "t0 t1"), "variance"] = 9.0
    frame["value"] += frame["item"].map({"t0": 100, "t1": 0, "t2": 0})  # an item's level counts for nothing
    assert rank_subsets(frame, "value") == ["t1 t2", "t0 t2", "t0 t1"]
    assert rank_subsets(frame, "uncertainty")[0] == "t0 t1"
    with pytest.raises(InputError, match="--rank_by uncertainty: these estimates are of one seed"):
        rank_subsets(scores(T, T), "uncertainty")


def test_sweep_trains_the_subsets_that_matter_most(scratch, capsys):
    assert estimate(*FLAGS, *START, "--strength", 63) == 0
    pretend_true(scratch)
    assert estimate(*FLAGS, *START) == 0
    ranked = rank_subsets(oriented(read_scores("results/x_estimated"), ["loss"], dict),
                                   "value")
    capsys.readouterr()
    sweep = ["train_sample_tasks.py", "--task_names", *TASKS, "--model_name_or_path", "data/models/tiny-t5",
             "--from_estimate", "x_estimated", "--num_samples", 2, "--task_set_name", "s", "--device", "cpu",
             "--warm_start", "False", "--downsample", 40, "--max_steps", 2, "--eval_steps", 2, "--save_steps", 2]
    assert scratch.run(*sweep) == 0
    assert (scratch.folder / "sampled_tasks/s.txt").read_text().splitlines() == sorted(ranked[:2])
    found = read_scores("results/x_estimated")
    true = found[~found["estimated"]]
    assert set(true["trained_on"]) == set(ranked[:2])
    assert len(set(found["trained_on"])) == 6  # the others stay, and stay marked
    capsys.readouterr()
    assert scratch.run(*sweep) == 0  # the ranking does not change by what was trained
    assert "2 of 2 are done already" in capsys.readouterr().out
    assert scratch.run(*sweep, "--from_estimate", "y") == 2
    assert "--from_estimate y: there is no results/y/runs.csv" in capsys.readouterr().err
    assert scratch.run(*sweep, "--rank_by", "uncertainty") == 2
    assert scratch.run(*sweep, "--min_task_num", 3) == 2
    assert "estimates no subset of 3 to 3" in capsys.readouterr().err
    assert estimate(*FLAGS, *START, "--strength", 63) == 0
    assert scratch.run(*sweep) == 2  # true scores beside losses of no known size
    assert "not calibrated on true trainings" in capsys.readouterr().err
    assert scratch.run(*sweep, "--preload_combos") == 2
    assert "--preload_combos and --from_estimate exclude each other" in capsys.readouterr().err
