"""The CSV files: nothing lost, nothing twice, nothing half, and the same bytes again."""

import csv
import io
import multiprocessing
import os

import pandas
import pytest

from src.cli import InputError
from src.names import MAX_NAME, check_name, natural_order, plain_name, task_of_template
from src.results import COLUMNS, NEWER, Results, main


def row(run_id, value, item="rte_0", seed=42, metric="exact_match", split="valid", status="completed",
        trained_on="rte_0 rte_1", config_hash="c1"):
    return dict(zip(COLUMNS, (run_id, status, seed, item, "default", "abcd", "efgh", trained_on, "ijkl", split, "tiny",
                              metric, value, 10, 20, 1.5, "commit", config_hash, "", ""), strict=True))


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path / "results", "trial")


def summary(results, split="valid"):
    return pandas.read_csv(results.summary_csv(split))


def test_merge_derives_all_files(results):
    for seed, value in ((1, 0.5), (2, 0.7)):
        rows = [row(f"a-s{seed}", value, seed=seed), row(f"a-s{seed}", 0.25, "rte_1", seed, "loss"),
                row(f"a-s{seed}", 1.0, seed=seed, split="test")]
        results.write_run(f"a-s{seed}", rows, {"status": "completed", "scores": {"x": 1}})
    runs = pandas.read_csv(results.runs_csv)
    assert list(runs.columns) == list(COLUMNS) and len(runs) == 6
    table = summary(results)
    assert list(table.columns) == ["Task", "Trained on", "eval_exact_match", "eval_exact_match_std", "eval_loss",
                                   "eval_loss_std", "runs", "config_hash"]
    first = table[table["Task"] == "rte_0"].iloc[0]
    assert first["eval_exact_match"] == pytest.approx(0.6)
    assert first["eval_exact_match_std"] == pytest.approx(0.02 ** 0.5, abs=1e-6)  # of a sample
    assert first["runs"] == 2 and pandas.isna(first["eval_loss"]) and first["Trained on"] == "rte_0 rte_1"
    assert summary(results, "test")["eval_exact_match"].tolist() == [1.0]
    assert '"x": 1' in results.part("a-s1", "json").read_text()


def test_a_repeated_run_replaces_its_rows(results):
    results.write_run("a", [row("a", 0.1), row("a", 0.1, "rte_1"), row("a", 0.1, split="test")], {})
    results.write_run("a", [row("a", 0.9)], {})
    assert summary(results)["eval_exact_match"].tolist() == [0.9]
    assert len(pandas.read_csv(results.runs_csv)) == 1
    assert not results.summary_csv("test").exists()


def test_failed_runs_are_kept_apart(results):
    results.write_run("a", [row("a", 0.4)], {})
    results.write_run("b", [row("b", "", metric="", status="failed", seed=43)], {"error": "NaN"})
    assert pandas.read_csv(results.runs_csv)["status"].tolist() == ["completed", "failed"]
    assert summary(results)[["eval_exact_match", "runs"]].values.tolist() == [[0.4, 1]]
    assert results.is_completed("a") and not results.is_completed("b") and not results.is_completed("c")


def test_a_result_that_is_no_number_stops_no_merge(results):
    for seed, (run, value) in enumerate((("a", "nan"), ("b", "inf"), ("c", 1.0))):
        results.write_run(run, [row(run, value, metric="loss", seed=seed), row(run, 0.5, seed=seed)], {})
    assert summary(results)["eval_exact_match_std"].tolist() == [0]
    assert summary(results)["eval_loss_std"].isna().all()


def test_other_settings_stay_apart(results):
    results.write_run("a", [row("a", 0.2)], {})
    results.write_run("b", [row("b", 0.8, config_hash="c2")], {})
    assert summary(results)[["eval_exact_match", "config_hash"]].values.tolist() == [[0.2, "c1"], [0.8, "c2"]]


def test_rebuilt_files_are_the_same(results, capsys):
    for i, subset in enumerate(("rte_10 rte_2", "rte_2 rte_9", "rte_2")):
        results.write_run(f"r{i}", [row(f"r{i}", i / 7, item, trained_on=subset) for item in reversed(subset.split())],
                          {})
    assert summary(results)[["Trained on", "Task"]].agg("|".join, axis=1).tolist() == [
        "rte_2|rte_2", "rte_2 rte_9|rte_2", "rte_2 rte_9|rte_9", "rte_10 rte_2|rte_2", "rte_10 rte_2|rte_10"]
    files = [results.runs_csv, results.summary_csv("valid")]
    before = [file.read_bytes() for file in files]
    for file in files:
        file.unlink()
    assert main(["merge", "trial", "--results_dir", str(results.folder.parent)]) == 0
    assert [file.read_bytes() for file in files] == before
    assert "3 runs" in capsys.readouterr().out
    left = [path.name for path in results.folder.rglob("*") if path.suffix not in (".csv", ".json")]
    assert sorted(left) == [".lock", "runs"]


def write_runs(folder, writer, count):
    for i in range(count):
        rows = [row(f"{writer}-{i}", 0.5, f"rte_{i}", ord(writer), metric) for metric in ("exact_match", "accuracy")]
        Results(folder, "trial").write_run(f"{writer}-{i}", rows, {})


def test_two_writers_and_a_reader(results):
    """100 runs each; whoever reads meanwhile sees whole files, in which runs only ever get more."""
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_runs, args=(results.folder.parent, name, 100)) for name in "ab"]
    for writer in writers:
        writer.start()
    seen = 0
    while any(writer.is_alive() for writer in writers):
        if results.runs_csv.exists() and results.summary_csv("valid").exists():
            text = results.runs_csv.read_text()
            rows = list(csv.reader(io.StringIO(text)))
            assert text.endswith("\n") and tuple(rows[0]) == COLUMNS and {len(r) for r in rows} == {len(COLUMNS)}
            assert len(rows) >= seen
            seen = len(rows)
            assert summary(results)["eval_exact_match"].eq(0.5).all()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    runs = pandas.read_csv(results.runs_csv)
    assert len(runs) == 400 and runs["run_id"].nunique() == 200
    assert summary(results)["runs"].tolist() == [2] * 100


def test_a_seed_counts_once(results):
    """The same training under another run's name, as a sweep with more --runs gives it, adds nothing."""
    for run, seed in (("a-s1", 1), ("a-s2", 2), ("b-s1", 1), ("b-s2", 2), ("b-s3", 3)):
        results.write_run(run, [row(run, seed / 10, seed=seed)], {})
    assert summary(results)[["eval_exact_match", "runs"]].values.tolist() == [[pytest.approx(0.2), 3]]


def test_a_run_that_only_trained_is_completed(results):
    results.write_run("a", [], {"status": "completed"})
    results.write_run("b", [], {"status": "failed"})
    assert results.is_completed("a") and not results.is_completed("b") and not results.is_completed("c")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a/", ".hidden", "x" * (MAX_NAME + 1), "é" * 51,
                                  "my task", "x#y", "two words", "c#", "-x", "@x", "a\nb", "a\tb", "a,b", "\ud800",
                                  "a\x00", "a\u200b", "x\udc80", "a\u2028"])
def test_names_that_are_not_allowed(name):
    with pytest.raises(InputError, match="--save_name"):
        check_name("--save_name", name)


def test_names_that_are_allowed():
    for name in ("rte_0-1_t5-base", "wsc.fixed", "rte_-1", "x" * MAX_NAME, "é" * 50, "情感_2", "हिन्दी", "कीमत_2",
                 "学习", "2"):
        check_name("--save_name", name)


@pytest.mark.parametrize(("text", "name"), [("GPT-3 style", "GPT-3_style"), ("a/b  (c)?", "a_b_c"), ("rte.x", "rte.x"),
                                            ("-1", "1"), ("é" * 80, "é" * 50), ("学" * 40, "学" * 33), ("#", "_")])
def test_any_text_as_a_name(text, name):
    assert plain_name(text) == name
    check_name("", name)


def test_task_of_template():
    assert task_of_template("squad_3") == task_of_template("squad_-1") == "squad"
    assert task_of_template("squad") is None and task_of_template("squad_3", ["squad", "squad_3"]) is None


def test_natural_order():
    assert sorted(["rte_10", "rte_2", "b", "rte_-1", "²", "10"], key=natural_order) \
        == ["10", "b", "rte_-1", "rte_2", "rte_10", "²"]


def test_folders_that_cannot_be_written(tmp_path, results):
    results.check_writable()
    assert not results.folder.exists()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is not a folder"):
        Results(tmp_path / "file", "trial").check_writable()
    if os.geteuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(InputError, match="closed is not a folder that may be written"):
            Results(tmp_path / "closed", "trial").check_writable()


def test_what_is_no_result(results, capsys):
    with pytest.raises(InputError, match="no runs there"):
        results.merge()
    results.write_run("a", [row("a", 1)], {})
    whole = results.part("a").read_text()
    for number, text in enumerate((
            "run_id,value\n", "", whole[:-1], whole[:len(whole) // 2], whole + "a,b\n", whole.replace(",1,", ",one,"))):
        results.part("b").write_text(text)
        capsys.readouterr()
        assert results.merge() == 1 and len(results.runs_csv.read_text().splitlines()) == 2, number
        assert f"{results.part('b')}: left out" in capsys.readouterr().err
        assert not results.is_completed("b") and results.is_completed("a")
    results.part("b").write_bytes(b"\xff\xfe")
    assert results.merge() == 1 and "b.csv: left out" in capsys.readouterr().err


def test_parts_of_older_versions_are_read(results):
    """They have no `std` and `seeds`; names with commas and line ends must survive."""
    results.write_run("b", [row("b", 0.75, seed=2) | {"content_hash": "", "trained_hash": ""}], {})
    old = [name for name in COLUMNS if name not in NEWER]
    with results.part("a").open("w", newline="") as file:
        writer = csv.DictWriter(file, old, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerow(row("a", 0.25, seed=1) | {"model": 'a, "b"\nc'})
    assert results.merge() == 2
    runs = pandas.read_csv(results.runs_csv)
    assert tuple(runs.columns) == COLUMNS and runs["model"].tolist() == ['a, "b"\nc', "tiny"]
    assert summary(results)[["eval_exact_match", "runs"]].values.tolist() == [[0.5, 2]]
