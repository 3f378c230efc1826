"""Affinities by hand from small results files, and the errors of files that are not right."""

import csv
import functools
import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from src import results
from src.cli import InputError
from src.cluster import affinity
from src.scores import oriented, own_metrics, read_scores
from src.tasks.catalogue import load_task, main_metrics

COLUMNS = ["run_id", "status", "seed", "item", "template", "template_hash", "content_hash", "trained_hash",
           "trained_on", "split", "model", "metric", "value", "n_examples", "steps", "seconds", "commit", "config_hash"]


OWN = functools.partial(main_metrics, task_dir="data/tasks")


def write_runs(folder: Path, rows: list[dict]) -> Path:
    """A runs.csv of `rows`; a row names trained_on, seed, item, value and what else differs from the usual."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "runs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in rows:
            usual = {"status": "completed", "seed": 0, "split": "valid", "metric": "exact_match", "config_hash": "h"}
            row = usual | row
            writer.writerow({"run_id": f"{row['trained_on']}-{row['seed']}-{row['status']}-{row['config_hash']}"} | row)
    return folder


def row(trained_on: str, item: str, value, seed: int = 0, **others) -> dict:
    return {"trained_on": trained_on, "item": item, "value": value, "seed": seed, **others}


def matrix(folder: Path, metric: str | None = "exact_match", **options) -> affinity.Affinity:
    return affinity.build(oriented(read_scores(folder), metric and [metric], OWN), **options)


THREE = [row("a b", "a", 1), row("a b", "a", 3, seed=1), row("a b", "b", 5), row("a b", "b", 5, seed=1),
         row("a b c", "a", 6), row("a b c", "b", 1), row("a b c", "c", 0), row("a", "a", 100), row("a c", "c", 4)]


def test_mean_count_and_standard_error_by_hand(tmp_path):
    found = matrix(write_runs(tmp_path / "x", THREE))
    assert found.items == ("a", "b", "c")
    T, n, se = found.T, found.n, found.se
    assert np.isnan(np.diag(T)).all() and (np.diag(n) == 0).all()
    assert T[0, 1] == pytest.approx((2 + 6) / 2) and n[0, 1] == 2  # a mean over subsets of means over seeds
    assert se[0, 1] == pytest.approx(np.std([2, 6], ddof=1) / np.sqrt(2))
    assert T[0, 2] == 6 and n[0, 2] == 1 and np.isnan(se[0, 2])  # one subset, one seed: not known
    assert T[1, 0] == 3 and T[2, 0] == 2 and T[2, 1] == 0
    assert found.missing() == []


def test_one_subset_with_several_seeds_has_the_standard_error_over_seeds(tmp_path):
    found = matrix(write_runs(tmp_path / "x", THREE[:4]))
    assert found.se[0, 1] == pytest.approx(np.std([1, 3], ddof=1) / np.sqrt(2)) and found.se[1, 0] == 0


def test_an_imported_table_gives_the_same_matrix(tmp_path):
    long = matrix(write_runs(tmp_path / "x", THREE))
    lines = ["Task,Trained on,eval_exact_match,eval_exact_match_std,runs,config_hash", "a,b a,2,1.4142135623730951,2,h",
             "b,b a,5,0,2,h", "a,a b c,6,,1,h", "b,a b c,1,,1,h", "c,a b c,0,,1,h", "a,a,100,,1,h", "c,a c,4,,1,h"]
    path = tmp_path / "table.csv"

    def imported(text: str) -> affinity.Affinity:
        path.write_text(text)
        results.main(["import", str(path), "--save_name", "old", "--results_dir", str(tmp_path)])
        return matrix(tmp_path / "old")

    wide = imported("\n".join(lines))
    for name in ("T", "n", "se", "variance"):
        assert np.allclose(getattr(long, name), getattr(wide, name), equal_nan=True)
    # older still: an unnamed index column, no runs, no config_hash
    older = imported("\n".join(f"{i or ''},{','.join(line.split(',')[:4])}" for i, line in enumerate(lines)))
    assert np.allclose(older.T, long.T, equal_nan=True) and np.isnan(older.variance).all()


def test_trained_scores_go_before_imported_ones_and_these_before_estimates(tmp_path):
    rows = [row("a b", item, value, status=status) for status, value in
            (("estimated", 1), ("imported", 2), ("completed", 3)) for item in "ab"]
    for number, (value, estimated) in enumerate(((1, True), (2, False), (3, False)), 1):
        scores = read_scores(write_runs(tmp_path / str(number), rows[:2 * number]))
        assert set(scores["value"]) == {value} and set(scores["estimated"]) == {estimated} and len(scores) == 2
    assert set(read_scores(tmp_path / "3", statuses=("imported",))["value"]) == {2}


def test_only_completed_validation_rows_count_and_true_scores_replace_estimates(tmp_path):
    rows = [row("a b", "a", 1), row("a b", "b", 2), row("a b", "a", 9, split="test"),
            row("a b", "a", "", status="failed", seed=1), row("a b", "b", 7, status="estimated"),
            row("a c", "a", 3, status="estimated"), row("a c", "c", 4, status="estimated")]
    scores = read_scores(write_runs(tmp_path / "x", rows))
    assert scores["estimated"].sum() == 2
    found = affinity.build(oriented(scores, ["exact_match"], OWN))
    assert found.T[0, 1] == 1 and found.T[1, 0] == 2 and found.T[0, 2] == 3 and found.missing() == [(1, 2)]


def test_a_loss_is_turned_round_and_an_items_main_metric_is_its_tasks(tmp_path):
    rows = [row("rte_0 rte_1", item, value, metric=metric) for item in ("rte_0", "rte_1")
            for metric, value in (("loss", 2), ("accuracy", 0.7), ("exact_match", 0.6), ("gen_len", 3))]
    folder = write_runs(tmp_path / "x", rows)
    assert matrix(folder, "loss").T[0, 1] == -2
    main = load_task("rte", "data/tasks").metrics[0]
    assert set(matrix(folder, None).metrics.values()) == {main}
    for metric, message in (("gen_len", "says nothing"), ("los", "did you mean 'loss'")):
        with pytest.raises(InputError, match=message):
            matrix(folder, metric)


def test_where_nothing_was_generated_choices_or_losses_count():
    rows = [("a", "loss"), ("a", "choice_accuracy"), ("b", "loss"), ("c", "loss"), ("c", "exact_match")]
    scores = pd.DataFrame([{"item": item, "metric": metric} for item, metric in rows])
    assert own_metrics(scores, ["a", "b", "c"], lambda items: dict.fromkeys(items, "accuracy")) == {
        "a": "choice_accuracy", "b": "loss", "c": "accuracy"}  # c's is missing: that is an error


def test_an_unknown_task_asks_for_a_metric_where_there_are_several(tmp_path):
    assert set(matrix(write_runs(tmp_path / "x", THREE), None).metrics.values()) == {"exact_match"}
    both = THREE + [one | {"metric": metric} for one in THREE for metric in ("loss", "gen_len")]
    with pytest.raises(InputError, match=r"unknown task 'a'.*\n.*--metric"):
        matrix(write_runs(tmp_path / "y", both), None)


def test_items_are_in_the_order_of_their_numbers(tmp_path):
    names = ["rte_10", "rte_2", "rte_-1"]
    rows = [row(" ".join(names), name, 1) for name in names]
    assert matrix(write_runs(tmp_path / "x", rows)).items == ("rte_-1", "rte_2", "rte_10")


def test_ridge_does_not_credit_a_bystander(tmp_path):
    rng, names, rows = np.random.default_rng(0), "abcdefgh", []
    for s in itertools.combinations(names, 4):  # b helps a; c is only often there with b
        if "b" in s or "c" not in s or rng.random() < 0.2:
            rows += [row(" ".join(s), item, (item == "a" and "b" in s) + 0.05 * rng.normal()) for item in s]
    folder = write_runs(tmp_path / "x", rows)
    mean, ridge = matrix(folder).T[0], matrix(folder, ridge=True).T[0]
    assert mean[2] - mean[3:].mean() > 0.2 > 0.1 > abs(ridge[2] - ridge[3:].mean())
    assert ridge[1] - ridge[2:].mean() > 0.8


def test_resamples_vary_as_the_standard_error_says(tmp_path):
    """Two subsets, two seeds of one, many of both: the bootstrap's spread is the standard error's."""
    rng = np.random.default_rng(1)
    for subsets, seeds in ((2, 1), (1, 2), (6, 1)):
        rows = [row(" ".join(sorted(("a", "b", f"x{s}"))), item, rng.normal(), seed=seed)
                for s in range(subsets) for seed in range(seeds) for item in ("a", "b", f"x{s}")]
        found = matrix(write_runs(tmp_path / f"{subsets}{seeds}", rows))
        resamples = found.resample(4000, np.random.default_rng(0))
        assert resamples[:, 0, 1].std() == pytest.approx(found.se[0, 1], rel=0.1)
        wide, long = found.tables(resamples)
        first = long.iloc[0]
        assert (first["item"], first["partner"], first["n"]) == ("a", "b", subsets)
        assert first["low"] < first["mean"] < first["high"] and wide.loc["a", "b"] == first["mean"]


def test_nothing_repeated_nothing_resampled(tmp_path):
    found = matrix(write_runs(tmp_path / "x", [row("a b", item, 1) for item in "ab"]))
    assert found.resample(10, np.random.default_rng(0)) is None
    assert found.tables(None)[1]["low"].isna().all()


@pytest.mark.parametrize(("rows", "message"), [
    ([*THREE, THREE[0]], r"line 11: a second row for run_id 'a b-0-completed-h', item 'a'"),
    ([*THREE, row("b c", "b", "good")], r"line 11: column 'value' must be a number, found 'good'"),
    ([row("a", "a", 1)], "two items or more; these results hold 1: a"),
    ([*THREE, row("a b", "a", 2, config_hash="g")],
     r"several settings; choose one: --config_hash g \(1 rows\), h \(9 rows\)$"),
])
def test_bad_rows(tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        matrix(write_runs(tmp_path / "x", rows))


@pytest.mark.parametrize(("text", "message"), [
    ("", "not a whole CSV file"), ("x,y\n1,2\n", "column 'run_id' is missing"), ("\x00\x01\xff", "runs.csv"),
])
def test_corrupt_or_foreign_files(tmp_path, text, message):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "runs.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        read_scores(tmp_path / "x")


def test_no_results(tmp_path):
    (tmp_path / "rte_sweep").mkdir()
    with pytest.raises(InputError, match="did you mean 'rte_sweep'"):
        read_scores(tmp_path / "rte_swep")


@pytest.mark.parametrize(("there", "wanted"), [("test", "valid"), ("valid", "test")])
def test_scores_of_the_other_split_are_named(tmp_path, there, wanted):
    hint = f"; there are scores of split '{there}': --split {there}"
    rows = [row("a b", "a", 1, split=there), row("a b", "a", "", split=wanted, status="failed", seed=1)]
    with pytest.raises(InputError) as caught:
        read_scores(write_runs(tmp_path / "x", rows), wanted)
    assert str(caught.value).endswith(f"no completed run has scores of split '{wanted}'{hint}")
    with pytest.raises(InputError, match=f"of split '{wanted}'$"):
        read_scores(write_runs(tmp_path / "x", rows[1:]), wanted)


@pytest.mark.parametrize("there", ["valid", "test"])
def test_a_table_without_runs_is_to_be_imported(tmp_path, monkeypatch, there):
    """As the error says; the command that it names works."""
    (tmp_path / "results/x").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    Path(f"results/x/x_{there}.csv").write_text("Task,Trained on,eval_f1\na,a b,1\n")
    with pytest.raises(InputError, match=r"found no results/x/runs.csv; .*\n  python -m src.results import") as caught:
        read_scores("results/x")
    words = str(caught.value).splitlines()[1].split()
    assert results.main(words[3:]) == 0
    assert read_scores("results/x_imported", there)["value"].tolist() == [1]


def test_one_of_several_settings(tmp_path):
    rows = [row("a b", item, value, config_hash=h) for h, value in (("g", 1), ("h", 2)) for item in "ab"]
    scores = read_scores(write_runs(tmp_path / "x", rows), config_hash="h")
    assert set(scores["value"]) == {2}


def test_several_settings_are_told_apart_by_what_differs(tmp_path):
    same = {"lr_scheduler_type": "constant", "seed": 42}
    differ = {"g": {"learning_rate": 0.005, "output_dir": "x", "eval_batch_size": 8},
              "h": {"learning_rate": 0.001, "output_dir": "y", "eval_batch_size": 16}}
    rows = [row("a b", item, 1, config_hash=h, run_id=h) for h in differ for item in "ab"]
    folder = write_runs(tmp_path / "x", rows)
    (folder / "runs").mkdir()

    def error(**more) -> str:
        for h, arguments in differ.items():
            record = {"arguments": same | arguments | more.get(h, {}), "processes": 1}
            (folder / "runs" / f"{h}.json").write_text(json.dumps(record))
        with pytest.raises(InputError) as caught:
            read_scores(folder)
        return str(caught.value)

    assert error().endswith("--config_hash g (2 rows): learning_rate 0.005; h (2 rows): learning_rate 0.001")
    assert error(g={"downsample": 9}).endswith(
        "g (2 rows): learning_rate 0.005, downsample 9; h (2 rows): learning_rate 0.001, downsample None")
    many = error(h={f"setting_{number}": number for number in range(20)})
    assert many.endswith("setting_2 2, ...") and "setting_3" not in many
    (folder / "runs" / "g.json").unlink()
    with pytest.raises(InputError, match=r"--config_hash g \(2 rows\), h \(2 rows\)$"):
        read_scores(folder)


def changed(old="o1", new="n1", **others) -> list[dict]:
    """A pair trained before, two pairs after a change of item a."""
    rows = [row("a b", "a", 1, content_hash=old, trained_hash="t1"), row("a b", "b", 1, content_hash="b1",
                                                                         trained_hash="t1")]
    for subset in ("a c", "a d"):
        rows += [row(subset, item, 2, content_hash=new if item == "a" else f"{item}1", trained_hash=subset)
                 for item in subset.split()]
    return [one | others for one in rows]


def test_old_and_new_content_of_an_item_are_never_mixed(tmp_path):
    """Also across subsets, each of which was trained once."""
    folder = write_runs(tmp_path / "x", changed())
    with pytest.raises(InputError, match=r"rows of 'a' were changed .*--content_hash n1 \(2 rows\), o1 \(1 rows\)$"):
        read_scores(folder)
    assert set(read_scores(folder, content_hash=["n1"])["trained_on"]) == {"a c", "a d"}
    assert set(read_scores(folder, content_hash=["o1"])["trained_on"]) == {"a b"}
    with pytest.raises(InputError, match=r"--content_hash n7: not in .*allowed: b1, c1, d1, n1, o1"):
        read_scores(folder, content_hash=["n7"])
    rows = [one | {"template_hash": one["content_hash"]} for one in changed()]
    with pytest.raises(InputError, match="the templates of 'a' were changed"):
        read_scores(write_runs(tmp_path / "y", rows))


def test_unknown_content_is_said(tmp_path, capsys):
    rows = changed(new="o1")
    for one in rows[:2]:
        one |= {"content_hash": "", "trained_hash": ""}
    assert len(read_scores(write_runs(tmp_path / "x", rows))) == 6
    assert "2 rows do not say under which templates" in capsys.readouterr().err


def test_settings_are_those_of_the_whole_table(tmp_path):
    """Pair a b after 100 steps, the other pairs after 4,000: no score was taken twice, and yet they are not alike."""
    rows = [one | {"config_hash": "long" if i > 1 else "short"} for i, one in enumerate(changed(new="o1"))]
    with pytest.raises(InputError, match=r"--config_hash long \(4 rows\), short \(2 rows\)$"):
        read_scores(write_runs(tmp_path / "x", rows))
    beside = [one | {"config_hash": "estimate", "status": "estimated"} for one in changed(new="o1")]
    assert len(read_scores(write_runs(tmp_path / "y", changed(new="o1") + beside))) == 6


def test_a_score_that_is_no_number_matters_only_where_it_is_asked_for(tmp_path):
    losses = [one | {"metric": "loss", "value": "nan"} for one in THREE]
    rows = [*THREE, *losses]
    folder = write_runs(tmp_path / "x", rows)
    assert matrix(folder).items == ("a", "b", "c")
    with pytest.raises(InputError, match=r"the loss of 'a' after training on '[abc ]+' is -?nan \(\d+ such scores\)"):
        matrix(folder, "loss")
