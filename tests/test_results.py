"""The CSV files: nothing lost, nothing twice, nothing half, and the same bytes again."""

import contextlib
import csv
import io
import json
import multiprocessing
import os
import shutil

import pandas
import pytest

from src import results as module
from src.cli import InputError
from src.files import write_whole
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
    assert sorted(left) == ["runs"]


def write_runs(folder, writer, count):
    for i in range(count):
        rows = [row(f"{writer}-{i}", 0.5, f"rte_{i}", ord(writer), metric) for metric in ("exact_match", "accuracy")]
        Results(folder, "trial").write_run(f"{writer}-{i}", rows, {})


def test_two_writers_and_a_reader(results):
    """100 runs each; whoever reads meanwhile sees whole files, and in the end every run."""
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_runs, args=(results.folder.parent, name, 100)) for name in "ab"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        if results.runs_csv.exists() and results.summary_csv("valid").exists():
            text = results.runs_csv.read_text()
            rows = list(csv.reader(io.StringIO(text)))
            assert text.endswith("\n") and tuple(rows[0]) == COLUMNS and {len(r) for r in rows} == {len(COLUMNS)}
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
        main(["merge", "trial", "--results_dir", str(results.folder.parent)])
    assert results.merge() == 0 and not results.folder.exists()
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


def test_only_new_parts_are_read(results, monkeypatch):
    for run in "abc":
        results.write_run(run, [row(run, 0.5, seed=run)], {})
    results.write_run("trained", [], {"status": "completed"})
    before = {path: path.stat().st_ino for path in results.folder.glob("*.csv")}
    read, real = [], module.read_part
    monkeypatch.setattr(module, "read_part", lambda path: read.append(path.stem) or real(path))
    other = Results(results.folder.parent, "trial")  # as another process: it knows what the folder says
    assert other.merge() == 4 and read == [] and before == {p: p.stat().st_ino for p in results.folder.glob("*.csv")}
    results.part("b").write_text(results.part("b").read_text().replace(",0.5,", ",0.7,"))
    assert other.merge() == 4 and set(read) <= {"b", "trained"} and "b" in read
    assert sorted(summary(results)["eval_exact_match"]) == [pytest.approx(1.7 / 3)]
    results.part("a").unlink()
    assert other.merge() == 3 and len(pandas.read_csv(results.runs_csv)) == 2
    for run in "bc":
        results.part(run).unlink()
    assert other.merge() == 1 and not results.summary_csv("valid").exists()


@pytest.mark.parametrize("damage", ["runs.csv", "trial_valid.csv", ".merged.json"])
@pytest.mark.parametrize("how", ["cut", "gone", "edited"])
def test_what_was_derived_is_rebuilt_where_it_was_changed(results, damage, how):
    for run in "ab":
        results.write_run(run, [row(run, 0.5, seed=run)], {})
    files = [results.runs_csv, results.summary_csv("valid")]
    before, path = [file.read_bytes() for file in files], results.folder / damage
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:9] if how == "cut" else path.read_bytes().replace(b"0.5", b"0.6") + b"x")
    assert Results(results.folder.parent, "trial").merge() == 2
    assert [file.read_bytes() for file in files] == before


def test_a_part_that_comes_during_the_merge_is_not_forgotten(results, monkeypatch):
    """Also where it makes its own merge meanwhile: whoever writes last has looked afterwards."""
    results.write_run("a", [row("a", 0.5, seed=1)], {})
    real, other = module.summary, Results(results.folder.parent, "trial")

    def late(rows, split):
        monkeypatch.setattr(module, "summary", real)
        text = real(rows, split)
        other.write_run("c", [row("c", 0.5, seed=3)], {})
        return text

    results.write_part("b", [row("b", 0.5, seed=2)], {})
    monkeypatch.setattr(module, "summary", late)
    assert results.merge() == 3
    assert pandas.read_csv(results.runs_csv)["run_id"].tolist() == ["a", "b", "c"]
    assert summary(results)["runs"].tolist() == [3]


def test_a_table_without_parts_stays(results):
    """Made by hand, or the only thing that was kept of a sweep."""
    results.folder.mkdir(parents=True)
    results.runs_csv.write_text("by,hand\n")
    for _ in range(2):
        assert results.merge() == 0 and results.runs_csv.read_text() == "by,hand\n"
        (results.folder / "runs").mkdir(exist_ok=True)


def test_tables_stay_where_the_folder_of_parts_is_gone(results):
    results.write_run("a", [row("a", 0.5)], {})
    files = [results.runs_csv, results.summary_csv("valid")]
    before = [file.read_bytes() for file in files]
    shutil.rmtree(results.folder / "runs")
    assert Results(results.folder.parent, "trial").merge() == 0 and [file.read_bytes() for file in files] == before


def test_a_folder_that_is_deleted_during_the_merge_holds_nothing(results, monkeypatch):
    results.write_part("a", [row("a", 0.5)], {})
    monkeypatch.setattr(module, "summary", lambda *_: shutil.rmtree(results.folder, ignore_errors=True) or "")
    assert results.merge() == 0 and not results.folder.exists()


@pytest.mark.parametrize("target", ["nowhere", "b.csv"])  # gone, and itself
def test_a_part_that_is_a_broken_link_does_not_hide_the_others(results, target, capsys):
    results.write_run("a", [row("a", 0.5)], {})
    results.part("b").symlink_to(target)
    module._warn_once.cache_clear()
    assert Results(results.folder.parent, "trial").merge() == 1
    assert "b.csv: left out, " in capsys.readouterr().err and summary(results)["eval_exact_match"].tolist() == [0.5]


def test_a_part_that_is_deleted_during_the_look_does_not_hide_the_others(results, monkeypatch):
    for run in "ab":
        results.write_run(run, [row(run, 0.5, seed=run)], {})
    real = os.scandir

    @contextlib.contextmanager
    def late(folder):
        with real(folder) as entries:
            found = list(entries)
        results.part("b").unlink(missing_ok=True)
        yield found

    monkeypatch.setattr(os, "scandir", late)
    assert Results(results.folder.parent, "trial").merge() == 1
    assert pandas.read_csv(results.runs_csv)["run_id"].tolist() == ["a"]


@pytest.mark.parametrize("edit", [{"std": "wide"}, {"seeds": "3.0"}, {"value": ""},
                                  {"value": "", "status": "imported"}])
def test_a_part_with_words_for_numbers_is_left_out(results, edit, capsys):
    results.write_run("a", [row("a", 0.5)], {})
    module._warn_once.cache_clear()
    results.write_run("b", [row("b", 0.5, seed=1) | edit], {})
    assert "b.csv: left out, " in capsys.readouterr().err and summary(results)["runs"].tolist() == [1]


@pytest.mark.parametrize("text", ["[" * 100_000, '{"files": {}}', '[1]', '{"files": 1, "parts": 7, "left_out": 8}'])
def test_what_says_what_was_merged_may_be_damaged(results, text):
    results.write_run("a", [row("a", 0.5)], {})
    said = results.folder / module.MERGED
    files = json.loads(said.read_text())["files"]
    said.write_text(text.replace('"files": 1', f'"files": {json.dumps(files)}'))
    assert Results(results.folder.parent, "trial").merge() == 1 and "left_out" in json.loads(said.read_text())


@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", "null", "", "{}"])
def test_a_damaged_record_is_that_of_no_completed_run(results, text):
    results.write_run("a", [], {"status": "completed"})
    results.part("a", "json").write_text(text)
    assert not results.is_completed("a")


def test_rows_of_a_table_that_was_replaced_meanwhile_are_not_taken_over(results):
    """Another merge, that began before, has put older rows there after this one has looked at the stamps."""
    results.write_run("a", [row("a", 0.5)], {})
    old = results.runs_csv.read_text()
    results.write_run("a", [row("a", 0.7)], {})
    results.write_part("b", [row("b", 0.1, seed=1)], {})
    other = Results(results.folder.parent, "trial")
    merged = other._merged()
    other._merged = lambda: write_whole(results.runs_csv, old) and merged
    other.merge()
    assert pandas.read_csv(results.runs_csv)["value"].tolist() == [0.7, 0.1]


def test_a_copied_part_does_not_count_twice(results, capsys):
    results.write_run("a", [row("a", 0.5)], {})
    (results.folder / "runs" / "a (copy).csv").write_bytes(results.part("a").read_bytes())
    for _ in range(2):
        module._warn_once.cache_clear()  # as another command
        assert Results(results.folder.parent, "trial").merge() == 1
        assert "a (copy).csv: left out, it holds rows of 'a'" in capsys.readouterr().err
    assert len(pandas.read_csv(results.runs_csv)) == 1


def test_children_of_a_sweep_do_not_merge(results, monkeypatch):
    monkeypatch.setenv(module.SWEEP_MERGES, "1")
    results.write_run("a", [row("a", 0.5)], {})
    assert not results.runs_csv.exists() and results.merge() == 1


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
