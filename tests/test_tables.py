"""Tables from elsewhere: each form by hand, the first code's own, and what is said of those that are not right."""

import json
from pathlib import Path

import numpy as np
import pandas
import pytest

from src import cluster, results
from src.cli import InputError
from src.cluster import __main__ as clustering
from src.scores import read_scores

WIDE = "Task,Trained on,eval_loss,eval_loss_std,runs\na,a,1,,1\na,a b,2,0.5,4\nb,a b,3,0.2,4\nb,a,4,,\n"
LONG = "item,trained_on,metric,value,std,seeds,split\na,a,f1,1,,,\na,a b,f1,2,0.5,4,valid\na,a b,f1,9,,,test\n"
SQUARE = ",a,b\na,1,2\nb,3,4\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def take(text: str | bytes, *flags: str, file: str = "t.csv", name: str = "x") -> None:
    """Write a table and import it."""
    Path(file).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert results.main(["import", file, "--save_name", name, *flags]) == 0


def rows(name: str = "x", *columns: str) -> list[list[str]]:
    frame = pandas.read_csv(f"results/{name}/runs.csv", dtype=str, keep_default_na=False)
    assert tuple(frame.columns) == results.COLUMNS and set(frame["status"]) == {"imported"}
    return frame[list(columns or ("item", "trained_on", "metric", "value"))].values.tolist()


def test_wide(here, capsys):
    take(WIDE)
    assert rows("x", "item", "trained_on", "metric", "split", "value", "std", "seeds") == [
        ["a", "a", "loss", "valid", "1.0", "", "1"], ["a", "a b", "loss", "valid", "2.0", "0.5", "4"],
        ["b", "a b", "loss", "valid", "3.0", "0.2", "4"], ["b", "a", "loss", "valid", "4.0", "", ""]]  # a transfer
    scores = read_scores("results/x").set_index(["item", "trained_on"])
    assert scores.loc[("a", "a b"), "variance"] == pytest.approx(0.5**2 / 4) and scores.loc[("a", "a b"), "runs"] == 4
    assert np.isnan(scores.loc[("a", "a"), "variance"]) and scores.loc[("b", "a"), "runs"] == 1
    assert not scores["estimated"].any()
    summary = pandas.read_csv("results/x/x_valid.csv").set_index(["Task", "Trained on"])
    assert summary.loc[("a", "a b"), ["eval_loss", "eval_loss_std", "runs"]].tolist() == [2, 0.5, 4]
    assert summary.loc[("b", "a"), "runs"] == 1 and np.isnan(summary.loc[("b", "a"), "eval_loss_std"])
    assert "t.csv: wide, 4 scores of 2 items after 2 subsets, loss (valid)" in capsys.readouterr().out


def test_the_summary_of_an_import_is_the_table(here):
    """Imported again, it gives the same."""
    take(WIDE)
    take(Path("results/x/x_valid.csv").read_bytes(), name="y")
    assert Path("results/x/x_valid.csv").read_bytes() == Path("results/y/y_valid.csv").read_bytes()


def test_which_columns_of_a_wide_table_are_metrics(here):
    text = ("Unnamed: 0,Task,Trained on,eval_f1,eval_f1_std,eval_runtime,acc,eval_loss\n"
            "0,a,a b,1,.5,9,2,3\n1,b,a b,,,9,5,nan\n")
    take(text)
    assert rows() == [["a", "a b", "f1", "1.0"], ["a", "a b", "loss", "3.0"]]  # what is empty was not measured
    take(text, "--metric", "acc", "--metric", "eval_f1")
    assert rows() == [["a", "a b", "acc", "2.0"], ["a", "a b", "f1", "1.0"], ["b", "a b", "acc", "5.0"]]


def test_long(here):
    take(LONG)
    assert rows("x", "item", "trained_on", "metric", "split", "value", "std", "seeds") == [
        ["a", "a", "f1", "valid", "1.0", "", ""], ["a", "a b", "f1", "valid", "2.0", "0.5", "4"],
        ["a", "a b", "f1", "test", "9.0", "", ""]]
    assert pandas.read_csv("results/x/x_test.csv")["eval_f1"].tolist() == [9]
    take("Task,Trained on,value\na,a b,1\n", "--metric", "acc", "--split", "test", name="y")
    assert rows("y", "metric", "split") == [["acc", "test"]]
    take("task,trained_on,metric,value\na,a b,acc,1\na,a b,eval_f1,2\n", "--metric", "f1", name="z")
    assert rows("z", "metric", "value") == [["f1", "2.0"]]


def test_rows_of_single_seeds_are_averaged(here):
    take("item,trained_on,metric,value,seed,seeds\na,a b,f1,1,0,\na,a b,f1,3,1,1\n")
    assert rows("x", "seed", "seeds") == [["0", ""], ["1", ""]]
    score = read_scores("results/x").iloc[0]
    assert (score["value"], score["variance"], score["runs"]) == (2, 1, 2)
    summary = pandas.read_csv("results/x/x_valid.csv").iloc[0]
    assert summary["eval_f1"] == 2 and summary["eval_f1_std"] == pytest.approx(2**0.5) and summary["runs"] == 2


@pytest.mark.parametrize(("flags", "trained_on"), [
    ([], ["a", "a b", "a b", "b"]), (["--as", "pairs"], ["a", "a b", "a b", "b"]),
    (["--as", "transfer"], ["a", "b", "a", "b"])])
def test_square(here, flags, trained_on):
    take(SQUARE, "--metric", "f1", *flags)
    assert rows() == [[item, subset, "f1", value] for item, subset, value in
                      zip("aabb", trained_on, ("1.0", "2.0", "3.0", "4.0"), strict=True)]


def test_a_square_table_with_holes_and_another_order(here):
    take("item,b,a\na,,nan\nb,4,3\n", "--metric", "f1")
    assert rows() == [["b", "b", "f1", "4.0"], ["b", "a b", "f1", "3.0"]]


def test_sources_of_a_transfer_need_not_be_targets(here):
    take("to,a,c\na,1,2\nb,3,4\n", "--metric", "f1", "--as", "transfer")
    assert [row[:2] for row in rows()] == [["a", "a"], ["a", "c"], ["b", "a"], ["b", "c"]]


@pytest.mark.parametrize(("cell", "expected"), [
    ("wic rte", "rte wic"), ('"wic, rte"', "rte wic"), ('"wic,rte"', "rte wic"), ("\"['wic', 'rte']\"", "rte wic"),
    ("['rte']", "rte"), ('"(\'wic\', \'rte\')"', "rte wic"), ("none", "none"), ('"[10, 3, -1]"', "rte_-1 rte_3 rte_10"),
    ("10 3", "rte_3 rte_10"), ("\"[0, 'wic']\"", "rte_0 wic"), ("\"['0', '3']\"", "rte_0 rte_3")])
def test_trained_on_in_all_its_spellings(here, cell, expected):
    take(f"Task,Trained on,eval_f1\n0,{cell},1\n", "--task", "rte")
    assert rows() == [["rte_0", expected, "f1", "1.0"]]


def test_what_the_methods_first_code_writes(here):
    """An index, the metrics of its Trainer with their spread, lists as Python prints them; templates by number."""
    take(",Task,Trained on,eval_loss,eval_exact_match,eval_runtime,eval_samples_per_second,eval_loss_std,"
         "eval_exact_match_std,eval_runtime_std,eval_samples_per_second_std\n"
         '0,0,"[0, 3]",0.5,60.1,1.5,99.0,0.01,0.2,0.1,1.0\n1,3,"[0, 3]",0.6,50.1,1.5,99.0,0.02,0.3,0.1,1.0\n',
         "--task", "rte")
    assert rows("x", "item", "trained_on", "metric", "value", "std") == [
        ["rte_0", "rte_0 rte_3", "loss", "0.5", "0.01"], ["rte_0", "rte_0 rte_3", "exact_match", "60.1", "0.2"],
        ["rte_3", "rte_0 rte_3", "loss", "0.6", "0.02"], ["rte_3", "rte_0 rte_3", "exact_match", "50.1", "0.3"]]


def test_signs_in_files(here):
    take("\ufeff" + '"Task","Trained on","eval_f1"\r\n"情感","情感 b"," 1e-3 "\r\n\r\n')
    assert rows() == [["情感", "b 情感", "f1", "0.001"]]


def test_the_same_file_replaces_another_adds(here, capsys):
    take(WIDE)
    take(WIDE.replace("a,a,1,,1\n", ""), file="./t.csv")
    assert "again, in place of before" in capsys.readouterr().out
    assert [value for *_, value in rows()] == ["2.0", "3.0", "4.0"]
    take("Task,Trained on,eval_loss\na,a,7\n", file="more.csv")
    assert sorted(value for *_, value in rows()) == ["2.0", "3.0", "4.0", "7.0"]
    take("Task,Trained on,eval_loss\na,a,8\n", "--split", "test", file="test.csv")
    parts = sorted(path.name.rpartition("-")[0] for path in Path("results/x/runs").glob("*.csv"))
    assert parts == ["import-more", "import-t", "import-test"]
    record = json.loads(next(Path("results/x/runs").glob("import-more-*.json")).read_text())
    assert record["status"] == "imported" and record["source"] == str(here / "more.csv") and len(record["sha256"]) == 64
    assert record["command"] == ["python", "-m", "src.results", "import", "more.csv", "--save_name", "x"]
    with pytest.raises(InputError, match=r"third.csv, line 2: item 'a', trained on 'a', metric 'loss', split 'valid' "
                                         r"is there already, in results/x/runs/import-more-.*csv; delete"):
        take("Task,Trained on,eval_loss\na,a,7\n", file="third.csv")
    assert len(rows()) == 5


def test_of_several_files_one_that_is_not_right_stops_all(here):
    Path("a.csv").write_text(WIDE)
    Path("b.csv").write_text("Task,Trained on,eval_loss\na,a c,high\n")
    with pytest.raises(InputError, match=r"b.csv, line 2"):
        results.main(["import", "a.csv", "b.csv", "--save_name", "x"])
    assert not Path("results").exists()


def test_what_is_derived_is_not_imported_over_itself(here):
    take(WIDE)
    before = Path("results/x/x_valid.csv").read_bytes()
    with pytest.raises(InputError, match="would be written over by what is derived from it; give another --save_name"):
        results.main(["import", "results/x/x_valid.csv", "--save_name", "x"])
    assert Path("results/x/x_valid.csv").read_bytes() == before


def test_settings_of_a_table_stay_apart(here):
    take("Task,Trained on,eval_f1,config_hash\na,a b,1,g\nb,a b,1,g\na,a b,2,h\nb,a b,2,h\n")
    with pytest.raises(InputError, match=r"choose one: --config_hash g \(2 rows\), h \(2 rows\)"):
        read_scores("results/x")
    assert set(read_scores("results/x", config_hash="h")["value"]) == {2}
    assert pandas.read_csv("results/x/x_valid.csv")["config_hash"].tolist() == ["g", "h", "g", "h"]


def test_an_imported_table_is_clustered(here, monkeypatch, capsys):
    """Unknown tasks, one metric of unknown direction: higher is better."""
    monkeypatch.setattr(cluster.plots, "heat_map", lambda *_: None)
    monkeypatch.setattr(cluster.plots, "number_of_clusters", lambda *_: None)
    names = ["a1", "a2", "a3", "b1", "b2", "b3"]
    rng = np.random.default_rng(0)
    lines = [",".join(["", *names])] + [",".join([i, *(f"{(i[0] == j[0]) + .1 * rng.normal():.4f}" for j in names)])
                                       for i in names]
    take("\n".join(lines), "--metric", "gain")
    assert clustering.main(["--save_name", "x", "--permutations", "19"]) == 0
    assert Path("clusters/x.txt").read_text() == "a1 a2 a3\nb1 b2 b3\n"
    assert "metric gain" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "flags", "message"), [
    ("", (), r"t.csv: an empty file; a wide table has the columns Task, Trained on"),
    (b"Task,Trained on,eval_f1\na,\xe9,1\n", (), "t.csv, after line .*: not a whole CSV file in UTF-8"),
    ('Task,Trained on,eval_f1\na,"a b,1\n', (), "t.csv, after line .*: not a whole CSV file in UTF-8"),
    ("Task,Trained on,eval_f1\na,a b\n", (), "t.csv, line 2: 2 fields, but line 1 has 3"),
    ("Task,Trained on,eval_f1\na,a b,1\n\nb,a,b,1\n", (), "t.csv, line 4: 4 fields, but line 1 has 3"),
    ("Task,Trained on,eval_f1,eval_f1\na,a b,1,2\n", (), "t.csv, line 1: two columns 'eval_f1'"),
    ("Task,eval_f1\na,1\n", (), "line 1: column 'Trained on' is missing, found: Task, eval_f1"),
    ("Name,Trained on,eval_f1\na,a,1\n", (), "line 1: column 'Task' is missing, found: Name"),
    ("Task,Trained on,f1\na,a,1\n", (), "column 'eval_<metric>' is missing.* --metric NAME"),
    ("Task,Trained on,f1\na,a,1\n", ("--metric", "f11"),
     "--metric f11: t.csv has no column eval_f11 nor f11, did you mean 'f1'"),
    ("Task,Trained on,eval_f1\na,a b,high\n", (), r"t.csv, line 2, column 'eval_f1': found 'high'; must be a number"),
    ("Task,Trained on,eval_f1\na,a b,inf\n", (), "column 'eval_f1': found 'inf'; must be a number"),
    ("Task,Trained on,eval_f1\na,a b,1_5\n", (), "column 'eval_f1': found '1_5'; must be a number"),
    ("Task,Trained on,eval_f1,eval_f1_std\na,a b,1,-1\n", (),
     "column 'eval_f1_std': found '-1'; must be a number from 0 on"),
    ("Task,Trained on,eval_f1,runs\na,a b,1,0\n", (), "column 'runs': found '0'; must be a number from 1 on"),
    ("Task,Trained on,eval_f1,runs\na,a b,1,2.5\n", (), "column 'runs': found '2.5'; must be a whole number from 1 on"),
    ("Task,Trained on,eval_f1\na,a b,\n", (), "t.csv: holds no number"),
    ("Task,Trained on,eval_f1\nmy task,a b,1\n", (), "line 2, column 'Task': 'my task' must be a plain file name"),
    ("Task,Trained on,eval_f1\na,\"['x#y']\",1\n", (), "line 2, column 'Trained on': 'x#y' must be a plain file name"),
    ("Task,Trained on,eval_f1\na,,1\n", (), "column 'Trained on': found ''; must name the items"),
    ("Task,Trained on,eval_f1\na,[],1\n", (), r"column 'Trained on': found '\[\]'; must name the items"),
    ("Task,Trained on,eval_f1\na,a b a,1\n", (), "column 'Trained on': found 'a b a'; must name each item once"),
    ("Task,Trained on,eval_f1\na,[1.5],1\n", (), r"found '\[1.5\]'; must be a printed list of names or numbers"),
    ("Task,Trained on,eval_f1\na,[True],1\n", (), "must be a printed list"),
    ("Task,Trained on,eval_f1\na,[__import__('os').mkdir('evil')],1\n", (), "must be a printed list"),
    (f"Task,Trained on,eval_f1\na,{'[' * 5000},1\n", (), r"found '\[{60}\.\.\.'; must be a printed list"),
    ("Task,Trained on,eval_f1\n0,0 3,1\n", (), "column 'Task': found '0'; a bare number is a template: --task NAME"),
    ("Task,Trained on,eval_f1\na,a b,1\n", ("--task", "rte"), "--task rte: no bare number in t.csv"),
    ("Task,Trained on,eval_f1\n0,0,1\n", ("--task", "r e"), "--task 'r e' must be a plain file name"),
    (WIDE, ("--as", "transfer"), "--as transfer: is for square tables; t.csv has a column 'Trained on'"),
    (WIDE + "a,b a,2,0.5,4\n", (), r"t.csv, line 6: a second row for item 'a', trained on 'a b', metric 'loss', split "
                                   r"'valid', after line 3; remove"),
    (LONG + "a,a,f1,1,,,\n", (), "line 5: a second row for item 'a', trained on 'a', metric 'f1', .* after line 2"),
    ("item,trained_on,metric,value,seed\na,a,f1,1,\na,a,f1,1,3\n", (), "line 3: a second row .*seed 3, after line 2"),
    ("item,trained_on,metric,value,seed,seeds\na,a,f1,1,3,4\n", (), "column 'seeds': found '4'; a row of one seed"),
    ("item,trained_on,metric,value,split\na,a,f1,1,dev\n", (), r"column 'split': found 'dev'; .*allowed: test, valid"),
    ("item,trained_on,value\na,a,1\n", (), "t.csv: which metric the column 'value' holds is not said; --metric NAME"),
    (LONG, ("--metric", "f2"), "--metric f2: no row of t.csv has a number of it"),
    (SQUARE, (), "t.csv: a square table does not say which metric it holds; one --metric NAME"),
    (",a,b\na,1,2\n", ("--metric", "f1"), "line 1: 'b' has no row, .*square one"),
    (",a\na,1\nb,2\n", ("--metric", "f1"), "line 3, column '': found 'b'; not in line 1, .allowed: a"),
    (",a,b\na,1,2\na,1,2\n", ("--metric", "f1"), "line 2, column '': found 'a'; this item has another row"),
    (",a,b\na,1,x\nb,1,2\n", ("--metric", "f1"), "line 2, column 'b': found 'x'; must be a number"),
    (",0,1\n0,1,2\n1,3,4\n", ("--metric", "f1"), "line 2, column '': found '0'; a bare number is a template"),
    ("x,y\n1,2\n", (), "line 2, column 'x': found '1'; not in line 1, .* a square one the same items"),
])
def test_tables_that_are_not_right(here, text, flags, message):
    with pytest.raises(InputError, match=message) as caught:
        take(text, *flags)
    assert "\n" not in str(caught.value)
    assert not Path("results").exists() and not Path("evil").exists()


def test_a_file_that_is_not_there(here):
    with pytest.raises(InputError, match=r"no.csv: no such file"):
        results.main(["import", "no.csv", "--save_name", "x"])
