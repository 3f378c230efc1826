"""The page: whole, self-contained, its numbers those of plan.json and clusters.json; what is not there is left out."""

import fcntl
import json
import re
import subprocess
import sys
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path

import pytest

from src import cost
from src import results as results_command
from src.cli import InputError
from src.cluster import __main__ as cluster
from src.cluster import plots
from src.plan import __main__ as plan
from src.plan.show import COLOURS
from src.report import __main__ as report
from src.report import facts, page, pictures
from src.results import Results
from src.sweep.ledger import Ledger
from tests.bench_report import made_up_run, made_up_sweep
from tests.conftest import ROOT

ITEMS = tuple(f"task_{at}" for at in range(6))
MINUS = "\N{MINUS SIGN}"
EVIL = "<script>alert('no')</script> & \"quoted\""
OKABE_ITO = {"#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"}
HEADINGS = ["Asked and found", "The plan", "Gain of each item", "Who goes with whom", "Who loses with whom",
            "Learning curves", "How far to trust this", "Cost", "Failures", "How to do it again"]
VOID = {"meta", "br", "link", "img", "input"}


class Page(HTMLParser):
    """Tags with their attributes, the text of each h2, ids, the cells of rows, all text outside of scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.headings: list[str] = []
        self.rows: dict[str, list[dict]] = defaultdict(list)
        self.words, self.row = "", ""
        self.feed(text)
        self.close()
        self.words = " ".join(self.words.split())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append((tag, found))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "h2":
            self.headings.append("")
        if tag == "tr":
            self.row = found.get("data-item") or found.get("data-rival") or ""
        if tag == "td" and self.row:
            self.rows[self.row].append(found | {"text": ""})

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes what is not open"

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            return
        self.words += data
        if self.open[-1:] == ["h2"]:
            self.headings[-1] += data
        if "td" in self.open and self.row and self.rows[self.row]:
            self.rows[self.row][-1]["text"] += data


def write(name: str = "x", *flags: str) -> Page:
    assert report.main(["--save_name", name, *flags]) == 0
    return Page(Path(f"results/{name}/report.html").read_text(encoding="utf-8"))


def read(name: str) -> dict:
    return json.loads(Path(f"results/x/{name}.json").read_text())


def fail(ledger: Ledger, members: tuple[str, ...]) -> None:
    log = ledger.folder / "logs" / "k.1.log"
    log.write_text("\n".join(f"line {at}" for at in range(40)) + f"\nValueError: {EVIL}\n")
    ledger.fail(f"key{members[0]}", {"subset": " ".join(members)}, "exit code 1", str(log))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A folder with a sweep of two seeds that is clustered and planned; one subset has failed."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        made_up_sweep(Results("results", "x"), ITEMS, 2, 1000, seeds=2)
        Results("results", "x").merge()
        ledger = Ledger.open(Path("sampled_tasks/x"))
        ledger.want("python train_sample_tasks.py --save_name x --lr 1e-3", ["task_0 task_1", "task_0 task_2"])
        for members in ("task_0 task_1", "task_0 task_2"):
            ledger.commit(f"done{members[-1]}", {"subset": members, "settings": {}})
        fail(ledger, ("task_3", "task_4", "task_5"))
        assert cluster.main(["--save_name", "x", "--bootstrap", "20", "--permutations", "99"]) == 0
        assert plan.main(["--save_name", "x", "--explore", "0"]) in (0, 3)
    return folder


@pytest.fixture
def place(whole, monkeypatch) -> Path:
    monkeypatch.chdir(whole)
    return whole / "results/x"


def test_everything_is_there(place):
    found = write()
    assert found.headings == HEADINGS and found.open == []
    for tag, part in (("svg", "aria-label"), ("section", "id"), ("table", "class")):
        assert all(attributes.get(part) for name, attributes in found.tags if name == tag), tag
    pictures_of = [attributes["aria-label"] for tag, attributes in found.tags if tag == "svg"]
    assert len(pictures_of) == 2 + len(ITEMS)  # gains, affinities, a panel of curves for each item
    assert "Which of 6 items help each other when tiny-t5 is trained on them together" in found.words
    assert re.search(r"They fall into 2 clusters, .*\)\.\s+The plan is to train", found.words, re.DOTALL)
    assert "0123456789ab (44 runs)" in found.words
    assert "python -m src.cluster --save_name x --bootstrap 20 --permutations 99" in found.words
    assert "python train_sample_tasks.py --save_name x --lr 1e-3" in found.words
    assert "learning_rate" in found.words and "torch 2.13.0" in found.words and "fp16" not in found.words


def test_nothing_comes_from_elsewhere_and_nothing_gets_out_of_its_place(place):
    found = write()
    text = (place / "report.html").read_text(encoding="utf-8")
    assert "http" not in text.replace("http-equiv", "") and "//" not in re.sub(r"<script>.*?</script>", "", text,
                                                                              flags=re.DOTALL).replace("://", "//")
    outside = [(tag, name, value) for tag, attributes in found.tags for name, value in attributes.items()
               if name in ("src", "href", "action", "data", "poster", "srcset", "xlink:href")
               and not value.startswith(("#", "data:image/png;base64,"))]
    assert not outside and "@import" not in text and "default-src 'none'" in text
    assert not [tag for tag, _ in found.tags if tag in ("link", "iframe", "object", "embed", "base")]
    assert EVIL in found.words and "<script>alert" not in text  # the last lines of a log stay text
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | {
        attributes["href"][1:] for _, attributes in found.tags if attributes.get("href", "").startswith("#")}
    assert used and used <= set(ids)


def test_numbers_are_those_of_the_plan_and_the_clusters(place):
    found, planned, clustered = write(), read("plan"), read("clusters")
    *_, ours = planned["rivals"]
    assert set(planned["served_by"]) <= set(found.rows)
    for item in ITEMS:
        gain, low, high = ours["items"][item]
        first, interval, subset, *others = found.rows[item]
        assert float(first["data-v"]) == gain and first["text"].replace(MINUS, "-") == f"{gain:+.4f}"
        assert planned["subsets"][int(subset["text"]) - 1] == planned["served_by"][item]
        if len(planned["served_by"][item]) > 1:
            assert interval["text"].replace(MINUS, "-") == f"{low:+.4f} to {high:+.4f}"
        beside = [rival["items"][item][0] for rival in planned["rivals"] if rival["name"] in ("all", "clusters")]
        assert [float(cell["data-v"]) for cell in others[:2]] == beside
    for rival in planned["rivals"]:
        subsets, gain, *_ = found.rows[rival["name"]]
        assert (int(subsets["text"]), float(gain["data-v"])) == (rival["subsets"], rival["gain"])
    assert f"{planned['gain']:+.4f} on average" in found.words.replace(MINUS, "-")
    text = (place / "report.html").read_text(encoding="utf-8")
    grid = json.loads(re.search(r'<script type="application/json">(.*?)</script>', text)[1])
    value = dict(zip(clustered["items"], clustered["affinity"], strict=True))
    for row, shown in zip(grid["rows"], grid["values"], strict=True):
        for column, cell in zip(grid["rows"], shown, strict=True):
            truth = value[row][clustered["items"].index(column)]
            assert cell == ("" if truth is None else f"{truth:.4g}")
    certificate = clustered["certificate"]
    assert f"Their density is {certificate['density']:.4f}" in found.words
    assert f"p = {clustered['p_value']:.2g}" in found.words
    assert f"{clustered['agreement']:.0%}".replace("%", " %") + " of the pairs fall the same way" in found.words
    assert f"{planned['measured_losses']} measured losses" in found.words


def test_colours(place):
    from matplotlib import colormaps, colors

    write()
    text = (place / "report.html").read_text(encoding="utf-8")
    map_ = {colors.to_hex(colormaps[plots.COLOURS](at)) for at in range(256)}
    used = {colour.lower() for svg in re.findall(r"<svg .*?</svg>", text, flags=re.DOTALL)
            for colour in re.findall(r"#[0-9a-fA-F]{6}", re.sub(r'href="data:[^"]*"', "", svg))}
    grey = {colour for colour in used if colour[1:3] == colour[3:5] == colour[5:7]}
    assert used - OKABE_ITO - map_ - grey == set() and COLOURS["plan"].lower() in used
    assert plots.COLOURS in ("RdBu", "viridis") and {colour.lower() for colour in pictures.KINDS.values()} <= OKABE_ITO
    assert {plots.ORANGE.lower(), plots.BLUE.lower()} <= OKABE_ITO


def test_cost_and_failures(place):
    found = write()
    assert "So far 44 trainings of 22 subsets: 22 min of training, 30 s each, 4,400 steps, on the CPU" in found.words
    assert "1 training failed" in found.words and "exit code 1; 1 attempt" in found.words
    assert "line 39" in found.words and "line 28" not in found.words  # the last lines alone


def test_curves_are_of_the_evaluations_before_the_best_model(place):
    args = report.make_parser().parse_args(["--save_name", "x"])
    known = facts.gather(args)
    curves = known.curves["task_0"]
    assert len(curves) == 2 * 7 and all(curve.steps == [20, 40, 60, 80, 100] for curve in curves)
    kinds = {pictures.kind_of(curve.trained_on, "task_0", known) for curve in curves}
    assert {"", "alone", "all"} <= kinds


def test_what_is_older_than_the_results_is_said(place, whole):
    assert "Found before the newest results" not in write().words
    record = read("clusters")
    (place / "clusters.json").write_text(json.dumps(record | {"results_sha256": "other"}))
    words = write().words
    assert "Found before the newest results came in; python -m src.cluster --save_name x" in words
    (place / "clusters.json").write_text(json.dumps(record, indent=1) + "\n")


def test_damaged_files_are_named_and_left_out(place, capsys):
    for path, text in ((place / "plan.json", "{"), (place / "runs/task_0-s0.json", "[]")):
        before = path.read_text()
        path.write_text(text)
        found = write()
        path.write_text(before)
        assert f"{path.name}: left out" in capsys.readouterr().err
        assert ("The plan" in found.headings) == (path.name != "plan.json")


def test_imported_scores_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("Task,Trained on,eval_loss\na,a,1\nb,b,1\na,a b,0.9\nb,a b,1.2\n")
    results_command.main(["import", "t.csv", "--save_name", "x"])
    found = write()
    assert found.headings == ["Asked and found", "How to do it again"]
    assert "by loss after training on 3 subsets" in found.words and "python -m src.cluster --save_name x" in found.words
    assert "python -m src.results import t.csv --save_name x" in found.words and "SHA-256" in found.words
    assert plan.main(["--save_name", "x"]) in (0, 3)
    found = write()
    assert found.headings == ["Asked and found", "The plan", "Gain of each item", "Who loses with whom",
                              "How far to trust this", "How to do it again"]
    assert "+10.00 %" in found.words and f"{MINUS}20.00 %" in found.words
    Path("u.csv").write_text("Task,Trained on,eval_loss\nc,c,1\na,a c,1.1\nc,a c,0.9\nb,b c,0.7\nc,b c,0.8\n")
    results_command.main(["import", "u.csv", "--save_name", "x"])  # two items alone have no structure
    assert cluster.main(["--save_name", "x"]) == 0
    assert "Who goes with whom" in write().headings


def test_transfer_has_a_map_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [f"{target},{source},{at * 7 % 5 / 10}" for at, (target, source) in enumerate(
        (a, b) for a in "abcd" for b in "abcd" if a != b)]
    Path("t.csv").write_text("Task,Trained on,eval_accuracy\n" + "\n".join(lines) + "\n")
    results_command.main(["import", "t.csv", "--save_name", "x"])
    assert cluster.main(["--save_name", "x"]) == 0
    found = write()
    assert "What is learned from others" in found.headings
    grid = json.loads(re.search(r'<script type="application/json">(.*?)</script>',
                                Path("results/x/report.html").read_text())[1])
    assert grid["between"] == "after" and sum(cell != "" for row in grid["values"] for cell in row) == 12


def test_a_sweep_that_is_running(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results, ledger = Results("results", "x"), Ledger.open(Path("sampled_tasks/s"))
    ledger.want("python train_sample_tasks.py", ["a b", "a c", "b c", "c d"])
    made_up_run(results, ("a", "b"), {"a": 0.5, "b": 0.6}, 42)
    ledger.commit("k1", {"subset": "a b", "settings": {}})
    claim = ledger.claim("k2", json.dumps({"subset": "a c", "settings": {}}, indent=1))
    results.write_record("half-s42", {"run_id": "half-s42", "status": "running", "trained_on": "a c"})
    fail(ledger, ("b", "c"))
    found = write("x", "--task_set_name", "s", "--metric", "exact_match")
    assert "1 done, 1 running, 1 failed, 1 left" in found.words
    assert "To come: 2 subsets, 2 trainings, 200 steps, about 60 s at the rate of the 1 finished" in found.words
    assert found.headings == ["Asked and found", "Learning curves", "Cost", "Failures", "How to do it again"]
    fcntl.flock(claim.fd, fcntl.LOCK_UN)
    assert "1 done, 0 running, 1 failed, 2 left" in write("x", "--task_set_name", "s").words


def test_a_failed_run_without_a_sweep(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = Results("results", "x")
    made_up_run(results, ("a",), {"a": 0.5}, 0)
    made_up_run(results, ("a",), {"a": 0.5}, 1, status="failed", error=f"ValueError: {EVIL}")
    results.part("a-s1", "log").write_text("the last words\n")
    found = write()
    assert found.headings == ["Asked and found", "Learning curves", "Cost", "Failures", "How to do it again"]
    assert EVIL in found.words and "the last words" in found.words and "no metric could be chosen" not in found.words


@pytest.mark.parametrize("flags, message", [
    (["--save_name", "y"], "found no results/y/runs.csv; (allowed: x)"), (["--save_nam", "x"], "--save_name"),
    (["--save_name", "x", "--metric", "exact"], "did you mean 'exact_match'")])
def test_bad_input_is_one_line(place, flags, message, monkeypatch, capsys):
    with pytest.raises((InputError, SystemExit)) as stop:
        report.main(flags)
    assert message in f"{stop.value} {capsys.readouterr().err}"


def test_the_command_loads_nothing_heavy(place):
    code = ("import sys; from src.report.__main__ import main; main(['--save_name', 'x']); "
            "print(*({'torch', 'transformers', 'datasets', 'sklearn'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "", done.stdout + done.stderr


def test_cost_by_hand(tmp_path):
    (tmp_path / "runs.csv").write_text(
        "run_id,status,trained_on,item,seconds,steps\na,completed,x y,x,60,10\na,completed,x y,y,60,10\n"
        "b,completed,x y,x,30,10\nc,failed,x,x,5,\nd,imported,z,z,,\n")
    (tmp_path / "edited.csv").write_text("run_id,status,trained_on,seconds\na,completed,a b,soon\n")
    (tmp_path / "latin.csv").write_bytes(b"run_id,\xe9\n")
    (tmp_path / "other.csv").write_text("by,hand\n1,2\n")
    assert all(cost.finished(tmp_path / f"{name}.csv") == cost.Cost() for name in ("edited", "latin", "other"))
    found = cost.finished(tmp_path / "runs.csv")
    assert found == cost.Cost(1, 2, 90.0, 20) and found.runs == 2
    assert cost.ahead(found, 3) == "6 trainings, 60 steps, about 4.5 min at the rate of the 2 finished (45 s each)"
    assert cost.ahead(found, 1, runs=1, steps=400, at_once=3) == (
        "1 training, 400 steps, about 10 min at the rate of the 2 finished (30 min each, 3 at a time)")
    assert "60 steps, about 7,600 tokens, about" in cost.ahead(found, 3, tokens=127.0)
    assert cost.ahead(cost.Cost(), 2, 1, 100) == (
        "2 trainings, 200 steps; how long they take is known when the first is finished")
    assert cost.finished(tmp_path / "no.csv") == cost.Cost()
    assert [cost.duration(s) for s in (0.5, 42, 89, 90, 3600, 5400, 400000)] == [
        "0.5 s", "42 s", "89 s", "1.5 min", "60 min", "1.5 h", "111 h"]


def test_words():
    assert page.listed(["a"]) == "a" and page.listed(["a", "b", "c"]) == "a, b and c"
    assert page.listed(list("abcdefgh"), 3) == "a, b, c and 5 more" and page.count(1, "loss", "losses") == "1 loss"
    command = ["python", "x.py", "--names", *(f"a name {at}" for at in range(40))]
    lines = facts.in_lines(command)
    assert max(map(len, lines.splitlines())) < 120
    assert subprocess.run(["bash", "-c", f"printf '%s\\n' {lines}"], capture_output=True, text=True,
                          check=True).stdout.splitlines() == command
