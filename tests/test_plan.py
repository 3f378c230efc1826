"""The plan: the best by brute force, the predictor by its formula, the loop and its exit codes, bad input."""

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from src import scores as reader
from src.cli import InputError
from src.gains import Gains, choose_metrics
from src.plan import __main__ as command
from src.plan import choose, confirm, predict, rounds
from src.plan.choose import IMPOSSIBLE, Worth, every_subset, partition
from src.plan.predict import Process
from src.subsets import start_set
from tests.exhaustive import best_total, partitions
from tests.test_affinity import row, write_runs

ITEMS = ("a", "b", "c", "d")


# ---- a world to train in --------------------------------------------------------------------------------------------


def gains_of(values: np.ndarray, sets: np.ndarray, items: tuple[str, ...] | None = None) -> Gains:
    items = items or tuple(f"i{i}" for i in range(sets.shape[1]))
    return Gains(items, "relative", sets, np.where(sets, values, np.nan), np.full(sets.shape, np.nan),
                 np.zeros(len(sets), bool))


def worth_of(values: np.ndarray, sets: np.ndarray, weights: np.ndarray | None = None) -> Worth:
    gains = gains_of(values, sets)
    return Worth(gains, Process(gains.members, gains.values), np.ones(sets.shape[1]) if weights is None else weights)


def true_loss(item: str, subset: tuple[str, ...]) -> float:
    """a and b help each other, c and d as well, across they harm; e harms everybody."""
    friends = {"a": "b", "b": "a", "c": "d", "d": "c"}
    return 1.0 - 0.1 * (friends.get(item) in subset) + 0.03 * sum(
        other not in (item, friends.get(item)) for other in subset)


def train(folder: Path, subsets, seeds=(0,), loss=true_loss, metric: str = "loss", split: str = "valid") -> None:
    """Add the runs of `subsets` to the results of a folder."""
    file = folder / "rows.json"
    rows = json.loads(file.read_text()) if file.exists() else []
    rows += [row(" ".join(sorted(names)), item, loss(item, tuple(names)), seed=seed, metric=metric, split=split)
             for names in subsets for item in names for seed in seeds]
    write_runs(folder, rows)
    file.write_text(json.dumps(rows))


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "results" / "x"


def plan(*flags: str) -> int:
    return command.main(["--save_name", "x", *flags])


def error_of(capsys, *flags: str) -> str:
    """The one line of a command that ends with 2 and leaves next.txt as it was."""
    Path("next.txt").write_text("as it was\n")
    with pytest.raises(SystemExit) as stop:
        command.run_as_script(lambda: plan(*flags, "--write_subsets", "next.txt"))
    assert stop.value.code == 2 and Path("next.txt").read_text() == "as it was\n"
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


# ---- the best plan --------------------------------------------------------------------------------------------------


def total(worth: Worth, found: choose.Plan) -> float:
    own = np.arange(len(worth.weights))
    return float(worth.of_items(found.of_item)[own, own] @ worth.weights)


@pytest.mark.parametrize("n", range(1, 8))
def test_plan_is_the_best_of_all_partitions(n):
    rng = np.random.default_rng(n)
    every = [[sum(1 << i for i in block) for block in found] for found in partitions(list(range(n)))]
    for _ in range(30):
        values = rng.normal(size=2**n)
        values[rng.random(2**n) < rng.choice([0, 0.3, 0.95])] = IMPOSSIBLE  # few sets: another way to the same
        values[[0, *(1 << i for i in range(n))]] = 0.0
        for budget in (None, 1, 2, n):
            best = max(sum(values[block] for block in found) for found in every
                       if budget is None or len(found) <= budget)
            if best < IMPOSSIBLE / 2:
                with pytest.raises(choose.InputError, match="cannot serve all"):
                    choose.best_partition(values, budget)
                continue
            found = choose.best_partition(values, budget)
            assert sum(found) == 2**n - 1 and np.bitwise_or.reduce(found) == 2**n - 1  # disjoint, and all
            assert sum(values[block] for block in found) == pytest.approx(best)
            assert budget is None or len(found) <= budget


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_overlap_is_the_best_of_all_families(n):
    rng, sets = np.random.default_rng(n), every_subset(n)[1:]
    for _ in range(8):
        weights = rng.uniform(0, 2, n)
        worth = worth_of(rng.normal(size=sets.shape), sets, weights)
        of_items = np.where(sets, worth.of_items(sets) * weights, -np.inf)
        for budget in (None, 1, 2):
            families = itertools.chain.from_iterable(
                itertools.combinations(range(len(sets)), k) for k in range(1, (budget or n) + 1))
            best = max(of_items[list(family)].max(0).sum() for family in families)
            found = choose.choose(worth, budget, overlap=True)
            assert total(worth, found) == pytest.approx(best) and len(found.subsets) <= (budget or n)
            assert all(members[i] for i, members in enumerate(found.of_item))


@pytest.mark.parametrize("overlap", [False, True])
def test_plan_equals_brute_force_where_little_is_measured(overlap):
    """Also by predictions, with weights, with a budget; 200 tables of up to 7 items: tests/bench_plan.py --optimum."""
    for seed, budget in itertools.product(range(4), (None, 2)):
        rng, n = np.random.default_rng(seed), 3 + seed % 3
        every = every_subset(n)
        sets = np.unique(np.concatenate([every[1:][rng.random(2**n - 1) < 0.5], np.eye(n, dtype=bool)]), axis=0)
        worth = worth_of(rng.normal(size=sets.shape), sets, rng.uniform(0, 2, n))
        of_items = np.vstack([np.zeros(n), np.nan_to_num(worth.of_items(every[1:])) * worth.weights])
        found = choose.choose(worth, budget, overlap)
        assert found.exact and total(worth, found) == pytest.approx(best_total(of_items, budget, overlap))


def test_weights_decide():
    sets = every_subset(2)[1:]
    values = np.array([[0, 0], [0, 0], [1.0, -2.0]])
    assert len(choose.choose(worth_of(values, sets)).subsets) == 2
    assert len(choose.choose(worth_of(values, sets, np.array([3.0, 1.0]))).subsets) == 1


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("budget", [None, 3])
def test_search_finds_what_is_exact(monkeypatch, budget, overlap):
    """On 9 items both ways are at hand."""
    for seed in range(3):
        rng, sets = np.random.default_rng(seed), every_subset(9)[1:]
        worth = worth_of(rng.normal(size=sets.shape) * 0.1, sets)
        exact = choose.choose(worth, budget, overlap)
        monkeypatch.setattr(choose, "MOST_EXACT", 0)
        monkeypatch.setattr(choose, "MOST_EXACT_OVERLAP", 0)
        found = choose.choose(worth, budget, overlap)
        monkeypatch.undo()
        assert exact.exact and not found.exact and len(found.subsets) <= (budget or 9)
        assert total(worth, found) <= total(worth, exact) + 1e-9
        assert total(worth, found) >= (0.9 if not overlap else 0.8) * total(worth, exact)
        assert all(members[i] for i, members in enumerate(found.of_item))


def test_beyond_16_items_planted_groups_are_found():
    n = 20
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(5), 4)
    sets = np.array([np.isin(np.arange(n), names) for names in itertools.combinations(range(n), 2)])
    helps = np.array([1.0 if len(set(groups[members])) == 1 else -1.0 for members in sets])
    worth = worth_of(helps[:, None] + 0.1 * rng.normal(size=sets.shape), sets)
    found = choose.choose(worth)
    assert sorted("".join(map(str, np.flatnonzero(members))) for members in found.subsets) == sorted(
        "".join(map(str, np.flatnonzero(groups == group))) for group in range(5))


def test_failed_subsets_are_in_no_plan():
    sets = every_subset(3)[1:]
    worth = worth_of(np.where(sets.sum(1, keepdims=True) > 1, sets.sum(1, keepdims=True), 0.0), sets)
    assert len(choose.choose(worth).subsets) == 1
    without = Worth(worth.gains, worth.process, worth.weights, {np.ones(3, bool).tobytes()})
    assert sorted((int(members.sum()) for members in choose.choose(without).subsets), reverse=True) == [2, 1]
    with pytest.raises(choose.InputError, match="--budget 1"):
        choose.choose(without, budget=1)


# ---- the predictor --------------------------------------------------------------------------------------------------


def test_kernel_by_hand():
    S = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1]], bool)
    K = predict.kernel(S, S, 0.4)
    assert K[0, 2] == pytest.approx(0.6 * (2 / 3 - 1 / 6) + 0.4) and K[0, 0] == pytest.approx(0.6 * (1 - 1 / 4) + 0.4)
    assert (K[1] == 0).all() and (K[:, 1] == 0).all()  # alone: exactly 0
    rows = every_subset(6)
    assert np.linalg.eigvalsh(predict.kernel(rows[rows[:, 0]], rows[rows[:, 0]], 0.15)).min() > -1e-9


def test_process_against_the_plain_formula():
    rng, every = np.random.default_rng(0), every_subset(5)[1:]
    sets = every[rng.permutation(31)[:18]]
    values = np.where(sets, rng.normal(size=sets.shape), np.nan)
    process = Process(sets, values)
    for i in range(5):
        rows = np.flatnonzero(sets[:, i] & (sets.sum(1) > 1))
        new = every[every[:, i] & (every.sum(1) > 1)]
        K, k = predict.kernel(sets[rows], sets[rows], process.c), predict.kernel(new, sets[rows], process.c)
        A, y = K + process.noise * np.eye(len(rows)), values[rows, i]
        assert process.means(new)[:, i] == pytest.approx(k @ np.linalg.solve(A, y))
        prior = predict.kernel(new, new, process.c)
        variance = np.diag(prior - k @ np.linalg.solve(A, k.T)) * process.scale[i]
        assert process.variances(new)[:, i] == pytest.approx(variance)
        for out in range(len(rows)):  # left out one by one, by fitting anew
            kept = np.arange(len(rows)) != out
            without = K[out, kept] @ np.linalg.solve(A[np.ix_(kept, kept)], y[kept])
            assert predict.leave_one_out(K, y, process.noise)[1][out] == pytest.approx(y[out] - without)
    alone = process.means(np.eye(5, dtype=bool)), process.variances(np.eye(5, dtype=bool))
    assert (np.diag(alone[0]) == 0).all() and (np.diag(alone[1]) == 0).all() and np.isnan(alone[0][0, 1])
    again = process.with_values(sets, 2 * values)
    assert again.means(every) == pytest.approx(2 * process.means(every), nan_ok=True)


def test_predictions_extrapolate_what_is_planted():
    """From pairs alone: a triple of friends is worth more than one with a stranger."""
    n, groups = 6, np.array([0, 0, 0, 1, 1, 1])
    sets = np.array([np.isin(np.arange(n), names) for names in itertools.combinations(range(n), 2)])
    values = np.array([np.where(len(set(groups[members])) == 1, 0.1, -0.1) * members for members in sets])
    process = Process(sets, np.where(sets, values, np.nan))
    together, mixed = np.array([[1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 0, 0]], bool)
    means = process.means(np.array([together, mixed]))
    assert means[0, 0] > 0.05 > means[1, 0]
    assert 0 < process.error < 0.2 and 0.5 < process.coverage <= 1


def test_nothing_measured_predicts_nothing():
    process = Process(np.eye(3, dtype=bool), np.where(np.eye(3), 0.0, np.nan))
    assert np.isnan(process.error) and (process.means(np.ones((1, 3), bool)) == 0).all()


# ---- honest ---------------------------------------------------------------------------------------------------------


def test_interval_by_hand():
    mean, low, high = confirm.interval(np.array([1.0, 2.0, 3.0, 6.0]), np.ones(4))
    assert (mean, high - mean) == pytest.approx((3.0, 2.3534 * np.sqrt(14 / 3 / 4)), rel=1e-3) and low < mean
    assert confirm.interval(np.array([1.0, 3.0]), np.array([1.0, 3.0]))[0] == 2.5
    assert confirm.interval(np.zeros(2), np.ones(2), confirm.Optimism(0.1, 0.2))[:2] == pytest.approx((-0.1, -0.429))
    assert confirm.chance(np.zeros(3), np.ones(3)) is None
    assert confirm.chance(np.array([1.0, 1.1, 0.9]), np.ones(3)) > 0.99
    weighted = np.array([1.0, 3.0]), np.array([1.0, 2.0])  # an item of weight 0 makes nothing more certain
    with_others = [np.append(values, [0.0] * 8) for values in weighted]
    assert confirm.interval(*with_others) == pytest.approx(confirm.interval(*weighted))
    assert confirm.chance(*with_others) == pytest.approx(confirm.chance(*weighted))
    mean, low, high = confirm.interval(np.array([0.5, 9.0]), np.array([1.0, 0.0]))  # one item has no spread
    assert mean == 0.5 and np.isnan([low, high]).all()
    assert confirm.chance(np.array([0.5, 9.0]), np.array([1.0, 0.0])) is None
    assert confirm.fresh_error(np.array([1.0, 2, 3]), np.array([1.0, 2, 3]), np.ones(3), 1) == 0


def test_optimism_is_found_where_nothing_is_to_be_gained():
    rng, sets = np.random.default_rng(0), every_subset(6)[1:]
    noise = 0.02 * (rng.normal(size=sets.shape) - rng.normal(size=6))
    worth = worth_of(np.where(sets.sum(1, keepdims=True) > 1, noise, 0.0), sets)
    found = choose.choose(worth)
    promised = total(worth, found) / 6
    optimism = confirm.optimism(worth, found, None, False, seed=0)
    assert promised > 0.015 and optimism.mean == pytest.approx(promised, rel=0.5)
    fixed = np.sqrt((confirm.noise_sd(worth) ** 2)[found.of_item.sum(1) > 1].sum()) / 6  # of a plan that nobody chose
    assert optimism.sd >= fixed * (1 - 1e-9) > 0


def test_noise_that_nobody_measured_is_not_0(place, capsys):
    """Two items: too little for the predictor to tell the noise. One seed has no interval, several have."""
    loss = {("a", 1): 1.0, ("b", 1): 2.0, ("a", 2): 0.9, ("b", 2): 2.1}
    train(place, [("a",), ("b",), ("a", "b")], loss=lambda item, names: loss[item, len(names)])
    assert plan() == 0
    found = read_plan(place)
    assert found["subsets"] == [["a", "b"]] and found["rivals"][-1]["items"]["a"] == [pytest.approx(0.1), None, None]
    assert found["gain_low"] < 0 < found["gain_high"] and found["rivals"][0]["chance"] < 0.9
    assert "optimism subtracted" not in capsys.readouterr().out
    train(place, [("a",), ("b",), ("a", "b")], seeds=(1,), loss=lambda item, names: loss[item, len(names)] + 0.01)
    assert plan() == 0
    _, low, high = read_plan(place)["rivals"][-1]["items"]["a"]
    assert low < high


def test_gap_is_not_known_where_only_some_subsets_may_be_chosen():
    sets = every_subset(4)[1:]
    worth = worth_of(np.random.default_rng(0).normal(size=sets.shape), sets)
    for overlap in (False, True):
        assert choose.choose(worth, overlap=overlap).exact and not choose.choose(
            worth, overlap=overlap, pool=sets[:-1]).exact


def test_a_member_that_was_never_scored_is_named(place, capsys):
    train(place, [("a",), ("b",), ("a", "b")])
    rows = json.loads((place / "rows.json").read_text())
    write_runs(place, [*rows, row("a z", "a", 0.5, metric="loss")])
    plan()
    assert "'z' was trained, but not scored after it: the subsets that hold it are left out" in capsys.readouterr().err


def test_plan_is_never_below_alone_on_what_it_was_chosen_by():
    rng, sets = np.random.default_rng(1), every_subset(5)[1:]
    for _ in range(20):
        worth = worth_of(np.where(sets.sum(1, keepdims=True) > 1, rng.normal(-1, 1, sets.shape), 0.0), sets)
        assert total(worth, choose.choose(worth)) >= 0


# ---- the loop -------------------------------------------------------------------------------------------------------


def test_start_set():
    few = start_set(["b", "a", "c"], 0)
    assert set(few) == {("a",), ("b",), ("c",), ("a", "b", "c"), ("b", "c"), ("a", "c"), ("a", "b")}
    assert len(start_set("abcdefgh", 0)) == 8 + 1 + 8 + 28
    many = start_set("abcdefghijk", 3)
    assert len(many) == len(set(many)) == 11 + 1 + 11 + 22 and many == start_set("abcdefghijk", 3)
    halves = many[23:]
    assert all(set(a) | set(b) == set("abcdefghijk") and not set(a) & set(b) for a, b in zip(
        halves[::2], halves[1::2], strict=True)) and {len(half) for half in halves} == {5, 6}
    assert start_set(["a"], 0) == [("a",)]


def run_loop(place: Path, *flags: str, seeds=(0,), failing=(), loss=true_loss) -> list[list[str]]:
    """What the shell's loop does, with a table in place of trainings; the subsets of each round."""
    following = Path("next.txt")
    proposed = []
    while (code := plan("--write_subsets", "next.txt", *flags)) == 3:
        names = [line.split() for line in following.read_text().splitlines()]
        proposed.append([" ".join(members) for members in names])
        assert len(proposed) < 30
        failed = [members for members in names if " ".join(members) in failing]
        train(place, [members for members in names if members not in failed], seeds, loss)
        for members in failed:
            ledger = Path("sampled_tasks/x/failed")
            ledger.mkdir(parents=True, exist_ok=True)
            (ledger / "_".join(members)).write_text(json.dumps({"subset": " ".join(members), "attempts": [1, 2]}))
    assert code == 0
    return proposed


def read_plan(place: Path) -> dict:
    return json.loads((place / "plan.json").read_text())


def test_loop_from_pairs_to_a_settled_plan(place, capsys):
    train(place, [names for names in start_set("abcde", 0) if len(names) in (3, 4)])
    assert plan("--write_subsets", "next.txt") == 3  # what everything is compared with
    assert Path("next.txt").read_text().split("\n")[:-1] == ["a", "b", "c", "d", "e", "a b c d e"]
    assert "without scores alone" in capsys.readouterr().out and not (place / "plan.json").exists()
    proposed = run_loop(place)
    found = read_plan(place)
    assert found["subsets"] == [["a", "b"], ["c", "d"], ["e"]] and found["settled"] and found["measured"] == 3
    assert found["served_by"] == {"a": ["a", "b"], "b": ["a", "b"], "c": ["c", "d"], "d": ["c", "d"], "e": ["e"]}
    assert set(found) == {"subsets", "served_by", "gain", "gain_low", "gain_high", "measured", "settled", "predictor",
                          "error", "rank_correlation", "coverage", "gap", "unit", "metrics", "known_by", "passes",
                          "rivals", "losses", "measured_losses", "next", "why", "command", "results_sha256", "date"}
    assert found["gap"] == 0 and found["next"] == [] and found["command"][:3] == ["python", "-m", "src.plan"]
    *_, ours = found["rivals"]
    assert [ours[name] for name in ("gain", "gain_low", "gain_high")] == [
        found[name] for name in ("gain", "gain_low", "gain_high")]
    assert ours["items"]["a"][0] == pytest.approx(0.1) and set(ours["items"]) == set("abcde")
    assert found["measured_losses"] == len(found["losses"]) and found["losses"][0]["gain"] == min(
        row["gain"] for row in found["losses"]) < 0
    assert Path("clusters/x_plan.txt").read_text() == "a b\nc d\ne\n"
    assert (place / "plan.png").stat().st_size > 1000
    explored = rounds.read_rounds(place / "explored.txt")
    assert sum(len(each.subsets) for each in explored) <= 1.5 * 5 + 2
    assert sorted(" ".join(members) for each in explored for members in each.subsets) == sorted(
        names for each in proposed[1:] for names in each)
    assert rounds.write_rounds(explored) == (place / "explored.txt").read_text()


def test_explore_0_trains_only_what_the_plan_needs(place):
    train(place, start_set(ITEMS, 0))
    assert run_loop(place, "--explore", "0") == [] and not (place / "explored.txt").exists()
    assert read_plan(place)["subsets"] == [["a", "b"], ["c", "d"]]


def test_the_same_answer_until_it_is_trained(place):
    sets = [names for names in start_set("abcde", 0) if set(names) != set("ab")]
    train(place, sets)
    assert plan("--write_subsets", "next.txt") == 3
    first, listed = Path("next.txt").read_text(), (place / "explored.txt").read_text()
    assert "a b\n" in first and read_plan(place)["measured"] < len(read_plan(place)["subsets"])
    assert read_plan(place)["next"] == [line.split() for line in first.splitlines()]
    assert plan("--write_subsets", "next.txt") == 3
    assert Path("next.txt").read_text() == first and (place / "explored.txt").read_text() == listed
    assert plan() == 3  # nothing is written without the flag
    assert (place / "explored.txt").read_text() == listed


def test_failed_subsets_are_not_proposed_again(place, capsys):
    train(place, [names for names in start_set("abcde", 0) if names != ("a", "b")])
    proposed = run_loop(place, failing=("a b",))
    assert sum(names.count("a b") for names in proposed) == 1
    assert ["a", "b"] not in read_plan(place)["subsets"]
    assert "not proposed, its training failed: a b" in capsys.readouterr().out
    train(place, [("a", "b")])  # trained after all: its failure is history
    plan()
    assert ["a", "b"] in read_plan(place)["subsets"] and "not proposed" not in capsys.readouterr().out


def give_up(members, attempts: int = 2, seed: int | None = None, results: str = "results/x", name: str = "x") -> None:
    """A subset that a sweep with --retries 1 has tried so often, of one seed (None: an older file)."""
    settings = {} if seed is None else {"settings": {"seed": seed, "runs": 1, "results": results}, "retries": 1}
    path = Path("sampled_tasks", name, "failed", f"{'_'.join(members)}-{seed}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"subset": " ".join(members), "attempts": [{}] * attempts} | settings))


def test_what_is_tried_again_is_proposed(place, capsys):
    """Given up is what a sweep into these results gives up: more attempts than its --retries, whatever its name."""
    train(place, [names for names in start_set("abcde", 0) if names != ("a", "b")])
    give_up("ab", attempts=1, seed=0)
    give_up("ab", seed=0, results="results/y", name="y")
    assert plan("--write_subsets", "next.txt") == 3 and "a b\n" in Path("next.txt").read_text()
    assert "not proposed" not in capsys.readouterr().out
    give_up("ab", seed=0, results=str(Path("results/x").resolve()), name="z")
    plan("--write_subsets", "next.txt")
    out = capsys.readouterr().out
    assert "a b\n" not in Path("next.txt").read_text() and "not proposed, its training failed: a b" in out
    assert "--retry_failed" in out


def test_a_confirmation_that_always_fails_ends(place, capsys):
    train(place, start_set(ITEMS, 0))
    flags = "--explore", "0", "--confirm_seed", "7"
    give_up("cd", seed=0, name="y")  # of another seed: nothing is known of this one
    assert plan(*flags) == 3
    train(place, [("a",), ("b",), ("c",), ("d",), ("c", "d")], seeds=(7,))
    give_up("ab", attempts=1, seed=7, name="y")
    assert plan(*flags, "--write_subsets", "next.txt") == 3 and Path("next.txt").read_text() == "a b\n"
    give_up("ab", seed=7, name="y")
    capsys.readouterr()
    assert plan(*flags) == 0
    found = read_plan(place)
    assert found["subsets"] == [["a", "b"], ["c", "d"]] and found["rivals"][-1]["interval_by"] == "bootstrap"
    assert "not confirmed, as trainings with seed 7 failed: a b" in found["why"]
    assert f"settled: {found['why']}" in capsys.readouterr().out
    train(place, [("a", "b")], seeds=(7,))
    assert plan(*flags) == 0 and "confirmed" not in read_plan(place)["why"]


def test_a_failure_of_the_fresh_seed_does_not_choose(place):
    train(place, [names for names in start_set(ITEMS, 0) if names != ("a", "b")])
    give_up("ab", seed=7)
    assert plan("--confirm_seed", "7", "--write_subsets", "next.txt") == 3 and "a b\n" in Path("next.txt").read_text()


def test_rounds_count_for_gains_of_the_same_kind(place):
    """What the loop brought by losses says nothing of accuracies, nor by other weights; the file keeps both."""
    def noisy(item: str, names: tuple[str, ...]) -> float:
        return true_loss(item, names) + 0.2 * np.random.default_rng(list(f"{item} {names}".encode())).normal()

    sets = start_set("abcde", 0)
    train(place, sets, loss=noisy)
    run_loop(place, loss=noisy)
    file = place / "explored.txt"
    of_losses = file.read_text()
    assert of_losses.count("(explore)") == of_losses.count(" by loss, relative, valid\n") > 1
    train(place, sets, metric="accuracy", loss=lambda item, names: 0.5 - noisy(item, names) / 5)
    flags = "--metric", "accuracy", "--write_subsets", "next.txt"
    assert plan(*flags) == 3
    following, both = Path("next.txt").read_text(), file.read_text()
    assert both.startswith(of_losses) and "by accuracy, points, valid\n" in both[len(of_losses):]
    file.unlink()
    assert plan(*flags) == 3 and Path("next.txt").read_text() == following
    assert plan("--metric", "loss") in (0, 3)
    Path("weights").write_text("a 1.01\n")
    plan(*flags, "--weights", "weights")
    assert "by accuracy, points, valid, a 1.01\n" in file.read_text()


def test_cost_is_of_the_runs_that_are_to_come(place, capsys):
    train(place, [names for names in start_set(ITEMS, 0) if names != ("a", "b")], seeds=(0, 1))

    def cost() -> str:
        rows = json.loads((place / "rows.json").read_text())
        write_runs(place, [one | {"seconds": 60, "steps": 10} for one in rows])
        assert plan("--explore", "0", "--confirm_seed", "7") == 3
        return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("that is"))

    assert cost().startswith("that is 2 trainings")  # a b, by both seeds
    train(place, [("a", "b")], seeds=(0, 1))
    assert cost().startswith("that is 6 trainings")  # four alone and two pairs, once


def test_budget_overlap_weights(place):
    train(place, start_set(ITEMS, 0))
    assert plan("--budget", "1", "--explore", "0") == 0
    assert read_plan(place)["subsets"] == [list(ITEMS)]
    assert plan("--overlap", "--explore", "0") in (0, 3)
    assert read_plan(place)["served_by"]["a"] == ["a", "b"]
    Path("weights").write_text("a 5 # matters\n\nb 0\n")
    assert plan("--weights", "weights", "--explore", "0") == 0
    found = read_plan(place)
    assert found["gain"] == pytest.approx(0.1 * 7 / 7, abs=0.05)


def test_no_item_is_dropped_for_want_of_its_metric():
    """Where one item's metric is named, the others keep theirs, or that is an error."""
    scores = pd.DataFrame([{"item": item, "metric": metric, "value": 1.0} for item, metric in (
        ("a", "loss"), ("b", "loss"), ("b", "exact_match"))])
    with pytest.raises(InputError, match="no rougeL of 'b' in these results; --metric b=METRIC names another"):
        choose_metrics(scores, ["a=loss"], lambda items: dict.fromkeys(items, "rougeL"), [], [])
    assert set(choose_metrics(scores, ["a=loss", "b=exact_match"], None, [], [])["item"]) == {"a", "b"}


def test_task_files_are_asked_only_where_rows_leave_a_choice():
    """Here main_metrics is None, and would fail."""
    scores = pd.DataFrame([{"item": item, "metric": metric, "value": 1.0} for item, metric in (
        ("a", "loss"), ("a", "accuracy"), ("b", "loss"), ("c", "accuracy"), ("c", "gen_len"))])
    for part, words in ((scores, ["a=accuracy"]), (scores[scores["item"] != "a"], None)):
        found = choose_metrics(part, words, None, [], [])
        assert dict(zip(found["item"], found["metric"], strict=True)) == {
            item: metric for item, metric in {"a": "accuracy", "b": "loss", "c": "accuracy"}.items()
            if item in set(part["item"])}
    with pytest.raises(InputError, match="c=gen_len: says nothing of quality"):
        choose_metrics(scores, ["c=gen_len"], None, [], [])


def test_numbers_printed_are_those_of_the_file(place, capsys):
    train(place, start_set(ITEMS, 0), seeds=(0, 1))
    assert plan() in (0, 3)
    text, found = capsys.readouterr().out, read_plan(place)
    assert f"{100 * found['gain']:+.2f} %" in text
    assert f"{100 * found['gain_low']:+.2f} to {100 * found['gain_high']:+.2f} %" in text
    assert f"rank correlation {found['rank_correlation']:.2f}" in text
    assert f"error {100 * found['error']:.2f} %" in text and found["predictor"] in text


def test_negative_transfer_clusters_and_passes(place, capsys):
    train(place, start_set(ITEMS, 0))
    Path("clusters").mkdir()
    Path("clusters/x.txt").write_text("a c\nb d\n")
    (place / "runs").mkdir()
    record = {"trained_on": "a b", "status": "completed", "processes": 1, "training": {"steps": 100},
              "arguments": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2,
                            "mixing": "proportional", "task_names": ["a", "b"]},
              "data": {"train": {"a": {"source": "", "a_0": {"rows": 100}}, "b": {"source": "", "b_0": {"rows": 300}}}}}
    (place / "runs/r.json").write_text(json.dumps(record))
    plan()
    text = capsys.readouterr().out
    assert "negative transfer" in text and "-3.00 %" in text  # the clusters, and a with c
    lines = [line for line in text.splitlines() if line.startswith("│ clusters")]
    assert len(lines) == 1 and "-3.00 %" in lines[0] and "100%" in lines[0]
    assert any(" a b " in line and line.rstrip(" │").endswith(" 4") for line in text.splitlines())  # 1,600 of 400 rows


def test_clusters_that_are_the_plan_say_so_and_a_gain_that_may_be_chance_is_named(place, capsys):
    """One way with two numbers, as optimism is subtracted from the plan's alone, is explained."""
    rng = np.random.default_rng(0)
    train(place, start_set(ITEMS, 0), loss=lambda item, names: true_loss(item, names) + rng.normal(0, 0.3))
    plan("--explore", "0")
    assert "by its interval it may be no better than alone" in read_plan(place)["why"]
    Path("clusters/x.txt").write_text(Path("clusters/x_plan.txt").read_text())
    capsys.readouterr()
    plan("--explore", "0")
    clusters, ours = read_plan(place)["rivals"][-2:]
    assert clusters["source"] == "measured; the plan itself, optimism not subtracted"
    assert clusters["gain"] > ours["gain"] and "the plan itself" in capsys.readouterr().out


def test_each_item_stands_beside_all_and_clusters(place, capsys):
    """What a training of the clusters has brought, item by item; they are named, or those of the results' name."""
    train(place, start_set(ITEMS, 0))
    Path("clusters").mkdir()
    Path("clusters/other.txt").write_text("a c\nb d\n")
    assert plan("--explore", "0", "--clusters", "other") == 0
    lines = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("│ a b")]
    assert [cell.strip() for cell in lines[0]][2:3] == ["+10.00 %"]
    assert [cell.strip() for cell in lines[0]][5:7] == ["+4.00 %", "-3.00 %"]
    assert "by clusters" not in (plan("--explore", "0"), capsys.readouterr().out)[1]
    assert "--clusters nowhere: there is neither" in error_of(capsys, "--clusters", "nowhere")


def test_target(place, capsys):
    train(place, start_set(ITEMS, 0))
    assert plan("--target", "c") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert lines[0].split()[1] == "d" and "+10.00 %" in lines[0] and not (place / "plan.json").exists()


def test_target_of_transfer(place, capsys):
    """t was never trained: its sources are ranked by its scores after them; where it was alone, or scored as the model
    was, by what they bring over that.
    """
    rows = [row(names, "t", value, metric="accuracy", seed=seed) for seed in (0, 1)
            for names, value in (("a", 0.5), ("b", 0.7), ("a b", 0.6))]
    more = [row("a", "a", 0.3, metric="accuracy"), row("b", "a", 0.1, metric="accuracy")]

    def ranked(*others) -> tuple[str, list[list[str]]]:
        write_runs(place, [*rows, *more, *others])
        assert plan("--target", "t") == 0
        text = capsys.readouterr().out
        return text, [[cell.strip() for cell in line.split("│")[1:4]] for line in text.splitlines() if line[:1] == "│"]

    text, lines = ranked()
    assert "transfer to t: not trained alone, so scores" in text and "score of t" in text and "settled" in text
    assert lines == [["b", "0.7000", "0.7000 to 0.7000"], ["a b", "0.6000", "0.6000 to 0.6000"],
                     ["a", "0.5000", "0.5000 to 0.5000"]]
    text, lines = ranked(row("none", "t", 0.55, metric="accuracy"))
    assert "over the model as it was" in text and [line[:2] for line in lines] == [
        ["b", "+0.1500"], ["a b", "+0.0500"], ["a", "-0.0500"]]
    rows.append(row("t", "t", 0.75, metric="accuracy"))
    rows.append(row("a t", "t", 0.8, metric="accuracy"))
    write_runs(place, [*rows, *more])
    assert plan("--target", "t") == 3  # of what is trained with it as well: a t is measured, but all three are not
    text = capsys.readouterr().out
    assert "transfer to t: over alone" in text and "-0.0500" in text and "+0.0500" in text
    assert "did you mean" in error_of(capsys, "--target", "tt") or "allowed: a, t" in error_of(capsys, "--target", "tt")


def test_transfer_relative_to_nothing_is_an_error(place, capsys):
    write_runs(place, [row("a", "a", 1.0, metric="loss"), row("a", "t", 0.5, metric="loss"),
                       row("none", "t", 0.0002, metric="loss")])
    error = error_of(capsys, "--target", "t")
    assert "--unit relative: 't' trained on none has a score of size 0.0002, too close to 0" in error
    assert plan("--target", "t", "--unit", "points") == 0


def test_transfer_alone_is_no_plan(place, capsys):
    write_runs(place, [row("a", "t", 0.5, metric="accuracy"), row("a", "u", 0.5, metric="loss")])
    assert "no item was scored after training on itself" in error_of(capsys, "--metric", "t=accuracy", "u=loss")


# ---- which scores ---------------------------------------------------------------------------------------------------


def test_test_scores_are_what_is_reported(place, capsys):
    train(place, start_set(ITEMS, 0))
    train(place, start_set(ITEMS, 0), split="test", loss=lambda item, names: 1.0 - 0.02 * (len(names) == 2))
    plan()
    assert read_plan(place)["gain"] == pytest.approx(0.02) and "test scores" in capsys.readouterr().out
    plan("--split", "test")
    assert "optimism subtracted" in capsys.readouterr().out


def test_a_fresh_seed_reports_and_never_chooses(place, capsys):
    train(place, start_set(ITEMS, 0))
    assert run_loop(place, "--explore", "0") == []
    assert plan("--explore", "0", "--confirm_seed", "7", "--write_subsets", "next.txt") == 3
    assert Path("next.txt").read_text() == "a\nb\nc\nd\na b\nc d\n"
    assert "--seed 7 --runs 1" in capsys.readouterr().out
    wanted = [line.split() for line in Path("next.txt").read_text().splitlines()]
    train(place, wanted, seeds=(7,), loss=lambda item, names: 1.0 - 0.05 * (len(names) == 2) + 0.01 * (item == "a"))
    assert plan("--explore", "0", "--confirm_seed", "7") == 0
    found = read_plan(place)
    assert found["subsets"] == [["a", "b"], ["c", "d"]] and found["gain"] == pytest.approx(0.05, rel=0.01)
    assert found["gain_low"] < found["gain"] < found["gain_high"]
    assert [each["interval_by"] for each in found["rivals"]] == ["-", "spread over items", "fresh seed"]
    assert "interval by" in capsys.readouterr().out


def test_estimates_of_the_fresh_seed_do_not_choose(place):
    train(place, [(item,) for item in ITEMS] + [ITEMS])
    rows = json.loads((place / "rows.json").read_text())
    for names in start_set(ITEMS, 0):
        rows += [row(" ".join(names), item, loss, seed=seed, status="estimated", metric="loss") for item in names
                 for seed, loss in ((0, true_loss(item, names)), (7, 1 - 0.9 * ("a" in names and "c" in names)))]
    write_runs(place, rows)
    assert plan("--confirm_seed", "7") == 3
    assert read_plan(place)["subsets"] == [["a", "b"], ["c", "d"]]


def test_a_plan_that_is_not_confirmed_falls_back_to_alone(place, capsys):
    train(place, start_set(ITEMS, 0))
    train(place, start_set(ITEMS, 0), seeds=(7,), loss=lambda item, names: 1.0 + 0.05 * (len(names) == 2))
    assert plan("--explore", "0", "--confirm_seed", "7") == 0
    found = read_plan(place)
    assert found["subsets"] == [["a"], ["b"], ["c"], ["d"]] and found["gain"] == 0 == found["gain_low"]
    assert found["gap"] is None  # by the gains that chose, another plan is better
    out = capsys.readouterr().out
    assert "shows no gain (-5.00 %)" in out and "no plan is worth more" not in out
    assert plan("--explore", "0", "--confirm_seed", "7", "--budget", "2") == 0
    assert len(read_plan(place)["subsets"]) == 2 and "which the budget forbids" in capsys.readouterr().out


def test_estimates_come_after_measurements_and_before_predictions(place, capsys):
    train(place, [("a",), ("b",), ("c",), ("d",), ITEMS])
    rows = json.loads((place / "rows.json").read_text())
    for names in start_set(ITEMS, 0):  # estimated scores have their own level: gains are over the estimate alone
        rows += [row(" ".join(names), item, 2 * true_loss(item, names), status="estimated", metric="loss")
                 for item in names]
    write_runs(place, rows)
    assert plan("--write_subsets", "next.txt") == 3
    text = capsys.readouterr().out
    assert "estimated" in text and read_plan(place)["subsets"] == [["a", "b"], ["c", "d"]]
    assert read_plan(place)["measured"] == 0 and Path("next.txt").read_text() == "a b\nc d\n"
    assert any(line.startswith("│ a b") and "+10.00 %" in line for line in text.splitlines())


def test_gains_as_they_are_need_no_score_alone(place):
    train(place, itertools.combinations("abc", 2), metric="gain", loss=lambda item, names: 0.1 * ("c" not in names))
    train(place, ["abc"], metric="gain", loss=lambda item, names: -0.2)
    assert plan("--explore", "0") == 0
    assert read_plan(place)["subsets"] == [["a", "b"], ["c"]]


def test_own_metrics_and_mixed_units(place, capsys):
    sets = start_set(ITEMS, 0)
    train(place, sets, metric="perplexity")
    assert "metric 'perplexity': which way is better" in error_of(capsys, "--metric", "perplexity")
    assert plan("--lower_is_better", "perplexity", "--explore", "0") == 0
    losses = read_plan(place)
    assert losses["subsets"] == [["a", "b"], ["c", "d"]]
    assert plan("--higher_is_better", "perplexity", "--explore", "0") in (0, 3)
    assert read_plan(place)["subsets"] != losses["subsets"]
    train(place, sets, metric="accuracy")
    metrics = ["--metric", "a=perplexity", "b=perplexity", "c=accuracy", "d=accuracy", "--lower_is_better",
               "perplexity"]
    assert "--unit is needed: these results mix" in error_of(capsys, *metrics)
    assert plan(*metrics, "--unit", "points", "--explore", "0") in (0, 3)
    assert ["a", "b"] in read_plan(place)["subsets"]


def test_bad_input(place, capsys):
    train(place, start_set(ITEMS, 0))
    assert "--budget 0: cannot serve all items" in error_of(capsys, "--budget", "0")
    assert "did you mean 'loss'" in error_of(capsys, "--metric", "lass")
    assert "--metric q=loss: 'q' is not in" in error_of(capsys, "--metric", "q=loss")
    assert "--unit gain" in error_of(capsys, "--unit", "gain")
    assert "--target e" in error_of(capsys, "--target", "e")
    for flag in (["--budget", "2"], ["--overlap"], ["--explore", "2"], ["--confirm_seed=43"], ["--weights", "w"],
                 ["--clusters", "x"]):
        words = f"--target and {flag[0].partition('=')[0]} exclude each other"
        assert words in error_of(capsys, "--target", "a", *flag)
    assert "--explore -1" in error_of(capsys, "--explore", "-1")
    assert "no scores of other seeds" in error_of(capsys, "--confirm_seed", "0")
    for text, words in (("e 2\n", "unknown item 'e'"), ("a -1\n", "must be a number from 0 on"), ("a\n", "found 'a'"),
                        ("a x\n", "from 0 on"), ("a 0\nb 0\nc 0\nd 0\n", "all weights are 0")):
        Path("weights").write_text(text)
        assert words in error_of(capsys, "--weights", "weights")
    assert "cannot be read" in error_of(capsys, "--weights", "nowhere")
    train(place, [("a",)], seeds=(3,), loss=lambda item, names: 0.0)
    train(place, [("a",)], seeds=(4,), loss=lambda item, names: -0.9999)
    assert "--unit relative: 'a' alone" in error_of(capsys)
    rows = json.loads((place / "rows.json").read_text())
    write_runs(place, [*rows, row("a b", "a", 0.5, metric="loss", config_hash="other")])
    assert "--config_hash" in error_of(capsys)


def test_a_budget_that_cannot_serve_all(place, capsys):
    train(place, [names for names in start_set(ITEMS, 0) if len(names) < 3])
    ledger = Path("sampled_tasks/x/failed")
    ledger.mkdir(parents=True)
    (ledger / "1").write_text(json.dumps({"subset": " ".join(ITEMS), "attempts": [1]}))
    assert "--budget 1: cannot serve all items" in error_of(capsys, "--budget", "1")
    assert not (place / "explored.txt").exists() and not (place / "plan.json").exists()
    assert plan("--budget", "2", "--explore", "0") == 0


def test_an_item_that_fails_alone_is_an_error(place, capsys):
    train(place, [names for names in start_set(ITEMS, 0) if names != ("a",)])
    ledger = Path("sampled_tasks/x/failed")
    ledger.mkdir(parents=True)
    (ledger / "1").write_text(json.dumps({"subset": "a", "attempts": [1]}))
    (ledger / "2").write_text("{half")
    assert "'a' failed when trained alone" in error_of(capsys)


def test_seeds_are_told_apart(place):
    train(place, [("a", "b")], seeds=(0, 1, 2))
    kept = reader.read_scores(place, keep_seed=lambda seed: seed != "1")
    assert list(kept["runs"]) == [2, 2]
    assert reader.read_scores(place, keep_seed=lambda seed: False).empty


def test_partition_keeps_the_order_of_items():
    found = partition([np.array([0, 0, 1], bool), np.array([1, 1, 0], bool)])
    assert found.served.tolist() == [0, 0, 1] and found.of_item[1].tolist() == [True, True, False]
