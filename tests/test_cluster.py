"""The command, end to end, on small results files with planted groups."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from src.cli import InputError
from src.cluster import __main__ as command
from src.cluster import affinity, lists, plots, sdp
from src.subsets import start_set
from tests.test_affinity import row, write_runs

ROOT = Path(__file__).parent.parent
GROUPS = [["a1", "a2", "a3"], ["b1", "b2", "b3"], ["c1", "c2", "c3"]]
ITEMS = [item for group in GROUPS for item in group]


def sweep(subsets, strength: float = 1.0, noise: float = 0.2, seeds: int = 2, groups=GROUPS) -> list[dict]:
    """Rows of runs in which an item gains `strength` by the share of its partners that are of its group."""
    rng, place = np.random.default_rng(0), {item: g for g, group in enumerate(groups) for item in group}
    rows = []
    for subset, seed in itertools.product(subsets, range(seeds)):
        for i in subset:
            kin = np.mean([place[i] == place[j] for j in subset if j != i] or [0.0])
            rows.append(row(" ".join(subset), i, 50 + strength * kin + noise * rng.normal(), seed=seed))
    return rows


PAIRS = list(itertools.combinations(ITEMS, 2))


def run(*flags: str) -> None:
    metric = () if "--metric" in flags else ("--metric", "exact_match")
    command.main(["--save_name", "x", *metric, "--permutations", "39", "--bootstrap", "20", *flags])


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


@pytest.fixture
def quick(here, monkeypatch):
    """`here`, without the pictures."""
    monkeypatch.setattr(plots, "heat_map", lambda *_: None)
    monkeypatch.setattr(plots, "number_of_clusters", lambda *_: None)
    return here


def test_affinities_are_of_the_size_trained_most_often(quick, capsys):
    """All together and each alone tell nothing of pairs: with them, or without, the matrix is the same."""
    write_runs(quick / "results/x", sweep(PAIRS))
    run()
    pairs = (quick / "results/x/affinity.csv").read_text()
    assert "(--sizes)" not in capsys.readouterr().out
    write_runs(quick / "results/x", sweep([*PAIRS, tuple(ITEMS), tuple(ITEMS[:3]), *((item,) for item in ITEMS)]))
    run()
    assert ("affinities: subsets of 2 items (36 subsets); trained are 1 item (9 subsets), 2 items (36 subsets), "
            "3 items (1 subset), 9 items (1 subset) (--sizes)") in capsys.readouterr().out
    assert (quick / "results/x/affinity.csv").read_text() == pairs
    run("--sizes", "2", "9")
    assert (quick / "results/x/affinity.csv").read_text() != pairs
    with pytest.raises(InputError, match=r"--sizes 4: .* trained are 1 item \(9 subsets\)"):
        run("--sizes", "4")


def test_halves_of_an_odd_number_of_items_are_one_size(quick, capsys):
    """So that what a plan starts from can be clustered: nine halves of 4 items, nine of 5."""
    write_runs(quick / "results/x", sweep(start_set(ITEMS, 0)))
    run()
    assert "affinities: subsets of 4 items (9 subsets), 5 items (9 subsets); trained are" in capsys.readouterr().out
    frame = pd.DataFrame({"trained_on": ["a b", "a c", "b c", "a b c", "a", "b", "c", "a b c d e"]})
    assert set(affinity.of_sizes(frame)["trained_on"]) == {"a b", "a c", "b c"}


def test_planted_groups_are_found_written_and_explained(here, capsys):
    write_runs(here / "results/x", sweep(PAIRS))
    run("--compare", "--write_subsets", "lists/subsets.txt")
    out = capsys.readouterr().out
    assert lists.read_clusters("--extend", "clusters/x.txt", "clusters") == GROUPS
    for words in ("9 items, 36 subsets", "within 0.0% of any possible clustering into 3 clusters",
                  "structure found (p = ", "number of clusters: 3", "runner-up", "without k 3.00", "stability: 100%",
                  "agglomerative", "within_minus_across", "a1 a2 a3",
                  "--subsets_file lists/subsets.txt --task_set_name x --save_name x",
                  "python -m src.plan --save_name x"):
        assert words in out, words
    folder = here / "results/x"
    record = json.loads((folder / "clusters.json").read_text())
    assert record["clusters"] == GROUPS and record["structure_found"] and record["certificate"]["gap"] < 0.001
    assert record["p_value"] <= 0.05 and record["arguments"]["seed"] == 0 and len(record["results_sha256"]) == 64
    assert record["per_cluster"][0]["stability"] == 1 and 0.7 < record["per_cluster"][0]["within_minus_across"] < 1.3
    wide = pd.read_csv(folder / "affinity.csv", index_col=0)
    assert list(wide.columns) == list(wide.index) == ITEMS and wide.loc["a1", "a2"] > wide.loc["a1", "b1"] + 0.3
    long = pd.read_csv(folder / "affinity_long.csv")
    assert len(long) == 72 and (long["n"] == 1).all() and (long["low"] <= long["high"]).all()
    assert {path.name for path in folder.glob("*.png")} == {"affinity.png", "num_clusters.png"}
    lines = [line.split() for line in Path("lists/subsets.txt").read_text().splitlines()]
    assert lines == [[item] for item in ITEMS] + [ITEMS] + GROUPS


def test_hubs_are_said(quick, capsys):
    """c3 is bad for everybody, which hides in part that there are groups."""
    rows = [one | {"value": one["value"] - 4 * ("c3" in one["trained_on"] and one["item"] != "c3")}
            for one in sweep(PAIRS)]
    write_runs(quick / "results/x", rows)
    run()
    out, record = capsys.readouterr().out, json.loads(Path("results/x/clusters.json").read_text())
    assert "most of it one outlier, c3" in out and "test of two ways, hubs kept" in out
    assert record["hubs"] == "remove" and record["p_value"] == pytest.approx(
        min(record["evidence"]["keep"]["p"] / 0.8, record["evidence"]["remove"]["p"] / 0.2))
    assert record["clusters"] == GROUPS and max(record["hub_shares"], key=record["hub_shares"].get) == "c3"
    removed = record["evidence"]["remove"]
    for flags in (["--hubs", "keep"], ["--method", "threshold"]):
        run(*flags)
        out, record = capsys.readouterr().out, json.loads(Path("results/x/clusters.json").read_text())
        assert record["hubs"] == "keep" and record["p_value"] == record["evidence"]["keep"]["p"]
        assert list(record["evidence"]) == ["keep"] and "hubs kept, permutation test)" in out
        assert record["evidence"]["keep"]["above"] < removed["above"]


def test_the_same_seed_gives_the_same_files(quick):
    write_runs(quick / "results/x", sweep(PAIRS, noise=1.0))
    records = []
    for _ in range(2):
        run("--name", "again")
        record = json.loads(Path("results/x/clusters.json").read_text())
        records.append({key: value for key, value in record.items() if key != "date"})
    assert records[0] == records[1]


def test_noise_has_no_structure(quick, capsys):
    write_runs(quick / "results/x", sweep(PAIRS, strength=0.0))
    run()
    assert "no structure found (p = 0." in capsys.readouterr().out
    assert not json.loads(Path("results/x/clusters.json").read_text())["structure_found"]


def test_without_repetition_there_is_no_stability(quick, capsys):
    write_runs(quick / "results/x", sweep(PAIRS, seeds=1))
    run("--num_clusters", "3")
    assert "not measured: no score was repeated" in capsys.readouterr().out
    assert json.loads(Path("results/x/clusters.json").read_text())["coassignment"] is None


def test_few_missing_pairs_warn_many_are_an_error_with_the_command(quick, capsys):
    lacking = [("a1", "b1"), ("a1", "c3")]
    write_runs(quick / "results/x", sweep([pair for pair in PAIRS if pair not in lacking]))
    run()
    error = capsys.readouterr().err
    assert "2 pairs (6%)" in error and "a1 b1, a1 c3" in error and "--subsets_file results/x/missing_pairs.txt" in error
    assert Path("results/x/missing_pairs.txt").read_text() == "a1 b1\na1 c3\n"
    assert lists.read_clusters("--extend", "clusters/x.txt", "clusters") == GROUPS

    across = [pair for pair in PAIRS if pair[0][0] == pair[1][0] or {pair[0][1], pair[1][1]} == {"1"}]
    write_runs(quick / "results/x", sweep(across))
    with pytest.raises(InputError, match=r"67% of the pairs .* a1 b2, (.*\n)+.*train_sample_tasks.py (.*\n)+--impute"):
        run()
    run("--impute")
    assert json.loads(Path("results/x/clusters.json").read_text())["missing_pairs"][0] == "a1 b2"
    write_runs(quick / "results/x", sweep([*across, ("a1", "d1")], groups=[*GROUPS, ["d1"]]))
    with pytest.raises(InputError, match="'d1' was trained with fewer than two others"):
        run("--impute")


def test_extend_places_new_items_without_the_pairs_between_old_clusters(quick):
    old = [["a1", "a2"], ["b1", "b2", "b3"]]
    lists.write_lines("old.txt", old)
    place = {item: c for c, members in enumerate(old) for item in members}
    pairs = [(i, j) for i, j in PAIRS if i not in place or j not in place or place[i] == place[j]]
    write_runs(quick / "results/x", sweep(pairs))
    run("--extend", "old.txt")
    # a3 joined, the c's opened a cluster of their own
    assert lists.read_clusters("--extend", "clusters/x.txt", "clusters") == GROUPS
    run("--extend", "old.txt", "--num_clusters", "2")
    found = lists.read_clusters("--extend", "clusters/x.txt", "clusters")
    assert len(found) == 2 and all(any(set(c) <= set(f) for f in found) for c in old)
    lists.write_lines("old.txt", [["a1", "b11"]])
    with pytest.raises(InputError, match="'b11' is not in these results, did you mean 'b1'"):
        run("--extend", "old.txt")


@pytest.mark.parametrize("method", ["threshold", "agglomerative", "kmeans"])
def test_other_methods_give_whole_records(quick, method):
    write_runs(quick / "results/x", sweep(PAIRS, strength=0.2, noise=0.3))
    run("--method", method, "--num_clusters", "4")
    record = json.loads(Path("results/x/clusters.json").read_text())
    assert sorted(item for members in record["clusters"] for item in members) == ITEMS
    assert record["certificate"]["density"] <= record["certificate"]["bound"] + 1e-6
    assert len(record["clusters"]) == 4 or method == "threshold"


ALONE, ALL = [(item,) for item in ITEMS], tuple(ITEMS)


def test_what_clusters_are_worth_is_measured_where_they_were_trained(quick, capsys):
    """An item gains 1 in its group of three, by pairs the share of its partners that are kin: 1, too; with all 0.25."""
    def output(*subsets) -> tuple[str, str, dict]:
        write_runs(quick / "results/x", sweep([*PAIRS, *subsets], noise=0.01))
        run()
        streams = capsys.readouterr()
        return streams.out, streams.err, json.loads(Path("results/x/clusters.json").read_text())["worth"]

    out, _, worth = output()
    assert worth is None and "not known: 9 items were not trained alone: a1, a2" in out
    out, err, worth = output(*ALONE)
    assert worth["measured"] == 0 and worth["gain"] == pytest.approx(1, abs=0.02) and worth["gain_of_all"] is None
    assert "(0 of 3 measured, the others by the means of their pairs), all together not trained" in out and not err
    out, err, worth = output(*ALONE, ALL, *GROUPS[:2])
    assert worth["measured"] == 2 and worth["gain_of_all"] == pytest.approx(0.25, abs=0.02)
    assert f"clusters {worth['gain']:+.4f} (2 of 3 measured" in out
    assert f"all together {worth['gain_of_all']:+.4f}" in out


@pytest.mark.parametrize(("alone", "together", "warned"), [
    (0, 0, []), (2, 0, ["each item alone"]), (0, 2, ["all items together"]),
    (3, 4, ["each item alone", "all items together"])])
def test_a_warning_where_alone_or_all_is_better_than_clusters(quick, capsys, alone, together, warned):
    rows = sweep([*PAIRS, *ALONE, ALL, *GROUPS])
    for one in rows:
        one["value"] += {1: alone, 9: together}.get(len(one["trained_on"].split()), 0)
    write_runs(quick / "results/x", rows)
    run()
    err = capsys.readouterr().err
    assert [words for words in ("each item alone", "all items together") if f"to train {words} is worth more" in err] \
        == warned


def test_a_metric_of_unknown_direction_is_an_error_until_it_is_said(quick, capsys):
    write_runs(quick / "results/x", [one | {"metric": "rmse"} for one in sweep([*PAIRS, *ALONE])])
    with pytest.raises(InputError, match="metric 'rmse': which way is better is not known; say --lower_is_better rmse"):
        run("--metric", "rmse")
    found = {}
    for way in ("higher", "lower"):
        run("--metric", "rmse", f"--{way}_is_better", "rmse")
        found[way] = json.loads(Path("results/x/clusters.json").read_text())
    T = {way: np.array(each["affinity"], float) for way, each in found.items()}
    assert np.array_equal(T["higher"], -T["lower"], equal_nan=True) and np.isfinite(T["lower"]).any()
    assert [found[way]["worth"]["unit"] for way in ("higher", "lower")] == ["points", "relative"]
    with pytest.raises(InputError, match="--lower_is_better rmsf: not in these results, did you mean 'rmse'"):
        run("--metric", "rmse", "--lower_is_better", "rmsf")
    write_runs(quick / "results/x", sweep(PAIRS))
    run()


def test_clusters_are_numbered_as_the_lines_of_their_file(quick, capsys):
    write_runs(quick / "results/x", sweep(PAIRS))
    run()
    table = [[cell.strip() for cell in line.split("│")[1:3]] for line in capsys.readouterr().out.splitlines()
             if line.startswith("│")]
    lines = Path("clusters/x.txt").read_text().splitlines()
    assert len(lines) > 1 and table == [[str(number), line] for number, line in enumerate(lines, 1)]


def test_estimated_clusters_are_not_said_to_be_measured(quick, capsys):
    write_runs(quick / "results/x", [one | {"status": "estimated"} for one in sweep(
        [*PAIRS, *((item,) for item in ITEMS), *GROUPS])])
    run()
    assert "what the clusters are worth is not known: all scores are estimated" in capsys.readouterr().out


def test_a_mistyped_reference_leaves_old_clusters_as_they_are(quick):
    write_runs(quick / "results/x", sweep(PAIRS))
    Path("clusters").mkdir()
    Path("clusters/x.txt").write_text("old\n")
    with pytest.raises(InputError, match="--reference nowhere"):
        run("--reference", "nowhere")
    assert Path("clusters/x.txt").read_text() == "old\n"


def test_the_share_of_hubs_by_chance_is_that_of_noise(quick, capsys):
    rng = np.random.default_rng(0)
    shares = [sdp.shares_of_hubs(rng.normal(size=(9, 9))).sum() for _ in range(200)]
    write_runs(quick / "results/x", sweep(PAIRS, strength=0))
    run()
    said = int(re.search(r"by chance about (\d+)%", capsys.readouterr().out)[1]) / 100
    assert said == pytest.approx(np.mean(shares), rel=0.1)


def test_what_clusters_are_worth_in_losses_is_relative(quick, capsys):
    rows = [one | {"value": 10 - one["value"] / 10, "metric": "loss"} for one in sweep([*PAIRS, *ALONE], noise=0.01)]
    write_runs(quick / "results/x", rows)
    run("--metric", "loss")
    worth = json.loads(Path("results/x/clusters.json").read_text())["worth"]
    assert worth["gain"] == pytest.approx(0.1 / 5, rel=0.05) and worth["unit"] == "relative"
    assert f"clusters {100 * worth['gain']:+.2f} %" in capsys.readouterr().out


def transfer(strength: float = 1.0, noise: float = 0.05) -> list[dict]:
    """Rows of each item after training on each other one alone, better within a group; and on d, which is no target."""
    rng = np.random.default_rng(0)
    return [row(source, target, 50 + strength * (source[0] == target[0]) + noise * rng.normal(), seed=seed)
            for source in (*ITEMS, "d1") for target in ITEMS if source != target for seed in (0, 1)]


def test_transfer_is_read_clustered_and_ranked(here, capsys):
    write_runs(here / "results/x", transfer())
    run()
    out = capsys.readouterr().out
    assert "9 items that are sources and targets; not d1" in out and "structure found" in out
    assert lists.read_clusters("--extend", "clusters/x.txt", "clusters") == GROUPS
    best = {cells[1].strip(): cells[2] for cells in (line.split("│") for line in out.splitlines()) if len(cells) == 5}
    assert "a2 5" in best["a1"] and "a3 5" in best["a1"] and "c1 5" in best["c3"]
    folder = here / "results/x"
    wide = pd.read_csv(folder / "transfer.csv", index_col=0)
    assert list(wide.columns) == [*ITEMS, "d1"] and wide.loc["d1"].isna().all() and wide.loc["a1", "a2"] > 50.5
    long = pd.read_csv(folder / "transfer_long.csv").set_index(["item", "partner"])
    assert long.loc[("a1", "d1"), "n"] == 1 and long.loc[("a1", "d1"), "se"] > 0
    assert (folder / "transfer.png").exists() and not (folder / "affinity.csv").exists()
    record = json.loads((folder / "clusters.json").read_text())
    assert record["transfer"] and record["items"] == ITEMS and record["worth"] is None


def test_transfer_stands_beside_affinities(quick, capsys):
    """Held-out scores change nothing of the affinities; --transfer clusters by them."""
    write_runs(quick / "results/x", sweep(PAIRS))
    run()
    folder, before = quick / "results/x", (quick / "results/x/affinity.csv").read_text()
    assert not (folder / "transfer.csv").exists()
    with pytest.raises(InputError, match="--transfer: these results have no scores of items that were not trained"):
        run("--transfer")
    held_out = [one | {"item": "z9", "value": 1.0} for one in sweep([("a1", "a2"), ("b1", "b2")])[::2]]
    write_runs(folder, [*sweep(PAIRS), *held_out, row("none", "a1", 3)])
    run()
    assert (folder / "affinity.csv").read_text() == before
    wide = pd.read_csv(folder / "transfer.csv", index_col=0)
    assert list(wide.index[wide.notna().any(axis=1)]) == ["z9"] and wide.loc["z9"].notna().sum() == 4
    write_runs(folder, [*sweep(PAIRS), *transfer(), *sweep(ALONE)])
    run("--transfer", "--num_clusters", "3")
    out = capsys.readouterr().out
    assert "clustered is transfer" in out and "a1 a2 a3 were not trained together" in out
    assert lists.read_clusters("--extend", "clusters/x.txt", "clusters") == GROUPS


def test_transfer_that_is_missing_is_named(quick):
    write_runs(quick / "results/x", [one for one in transfer() if one["trained_on"][0] == "a" or one["item"][0] == "b"])
    with pytest.raises(InputError, match=r"without transfer both ways: (.*\n)+To fill them, .* --eval_task_names"):
        run()


def test_templates_of_one_task_get_the_command_for_instructions(quick, capsys):
    items = ["rte_-1", "rte_0", "rte_1", "rte_2"]
    pairs = list(itertools.combinations(items, 2))
    write_runs(quick / "results/x", sweep(pairs, groups=[items[:2], items[2:]]))
    run("--write_subsets", "s.txt")
    assert "python train_sample_instructions_lora.py" in capsys.readouterr().out
    assert lists.read_clusters("--extend", "clusters/x.txt", "clusters") == [items[:2], items[2:]]


@pytest.mark.parametrize(("flags", "message"), [
    (["--num_clusters", "10"], "there are only 9 items"), (["--num_clusters", "none"], "a number from 1 on, or auto"),
    (["--num_clusters", "0"], "a number from 1 on"), (["--bootstrap", "0"], "at least 1"),
    (["--metric", "exact"], "did you mean 'exact_match'"), (["--extend", "no.txt"], "neither a file no.txt nor"),
    (["--extend", "no.txt", "--method", "kmeans"], "does not go with --extend"),
    (["--config_hash", "q"], "--config_hash q"), (["--split", "test"], "no completed run has scores of split 'test'"),
])
def test_bad_flags(quick, flags, message):
    write_runs(quick / "results/x", sweep(PAIRS))
    with pytest.raises(InputError, match=message):
        run(*flags)


@pytest.mark.parametrize("text", ["a b\nb c\n", "\n"])
def test_bad_cluster_files(quick, text):
    Path("c.txt").write_text(text)
    with pytest.raises(InputError, match=r"'b' is named 2 times|holds no subset"):
        lists.read_clusters("--extend", "c.txt", "clusters")


@pytest.mark.parametrize("n", [2, 9, 30, 100])
def test_labels_in_the_picture_are_legible_and_inside(tmp_path, monkeypatch, n):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    names = [f"a_task_with_a_long_name_{i}" for i in range(n)]
    T = np.random.default_rng(0).normal(size=(n, n))
    plots.heat_map(tmp_path / "x.png", T, T, names, np.arange(n) % 3 if n > 2 else np.zeros(n, int), "exact_match")
    figure = figures[0]
    figure.draw_without_rendering()
    axes, legend = figure.axes
    box = figure.bbox
    texts = [*axes.get_xticklabels(), *axes.get_yticklabels(), legend.xaxis.label]
    for text in texts:
        extent = text.get_window_extent()
        assert text.get_fontsize() >= 6, text.get_text()
        assert box.x0 <= extent.x0 and extent.x1 <= box.x1 and box.y0 <= extent.y0 and extent.y1 <= box.y1
    heights = [text.get_window_extent() for text in axes.get_yticklabels()]
    assert all(above.y0 >= below.y1 for above, below in itertools.pairwise(heights))  # none covers the next


def test_numbers_in_the_cells_stand_out_also_where_all_are_alike(tmp_path, monkeypatch):
    from matplotlib import colors
    from matplotlib.figure import Figure

    def luminance(colour) -> float:  # of WCAG 2.1
        parts = np.array(colors.to_rgb(colour))
        return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    for Z in np.linspace(-1, 1, 144).reshape(12, 12), np.zeros((12, 12)):
        plots.heat_map(tmp_path / "x.png", Z, Z, ["a"] * 12, np.zeros(12, int), "exact_match")
        axes, legend = figures[-1].axes
        assert legend.get_xlim() == (-1, 1) and len(axes.texts) == 144
        for text in axes.texts:
            j, i = text.get_position()
            light, dark = sorted([luminance(text.get_color()), luminance(axes.images[0].to_rgba(Z[i, j])[:3])])[::-1]
            assert (light + 0.05) / (dark + 0.05) >= 4.4, (Z[i, j], text.get_color())


def test_the_command_line_is_quick_and_fails_with_2():
    heavy = ("import sys, src.cluster; print([name for name in "
             "('torch', 'transformers', 'sklearn', 'scipy', 'pandas', 'matplotlib', 'rich') if name in sys.modules])")
    assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True).stdout.strip() == "[]"
    for flags in (["--save_name", "nowhere", "--results_dir", "no"], ["--save_nam", "x"], ["--num_clusters", "-1"]):
        done = subprocess.run([sys.executable, "-m", "src.cluster", *flags], capture_output=True, text=True)
        assert done.returncode == 2 and "Traceback" not in done.stderr
