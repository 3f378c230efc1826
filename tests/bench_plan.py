"""Tables of what plans are worth: `python -m tests.bench_plan [--tables DIR] [--worlds] [--intervals] ...`.

--tables: for each X_valid.csv and X_test.csv in DIR with columns Task, Trained on and eval_<metric>, in which every
subset was trained: the gain over alone on test, in %, of plans chosen on valid. The others are simulated.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from src.cluster import rounding, sdp
from src.gains import Gains, read_gains, unit_of
from src.plan import choose, confirm, rounds
from src.plan.choose import Plan, Worth, every_subset, partition
from src.plan.predict import Process
from src.subsets import start_set
from tests.exhaustive import best_total

WEIGHTS = np.ones


# ---- the loop, answered from a table --------------------------------------------------------------------------------


def table_gains(values: np.ndarray, items: tuple[str, ...] | None = None) -> Gains:
    """Gains of all subsets, from values (2^n, n)."""
    n = values.shape[1]
    every = every_subset(n)[1:]
    items = items or tuple(f"i{i:02d}" for i in range(n))
    values = np.where(every, values[1:], np.nan)
    return Gains(items, "relative", every, values, np.full(values.shape, np.nan), np.zeros(len(every), bool))


def part(truth: Gains, members: list) -> Gains:
    """Only the gains of some subsets, given by their names."""
    rows = sorted({truth.row[truth.mask(names).tobytes()] for names in members})
    return replace(truth, **{name: getattr(truth, name)[rows] for name in ("members", "values", "errors", "estimated")})


def loop(truth: Gains, start: list, explore: int, overlap: bool = False) -> tuple[Plan, set]:
    """The plan at the end of the loop, and the subsets that were trained for it, those of `start` among them."""
    measured, history = list(start), []
    while True:
        gains = part(truth, measured)
        worth = Worth(gains, Process(gains.members, gains.values), WEIGHTS(len(gains.items)))
        step = rounds.next_step(worth, history, [], set(), explore, None, overlap, 0)
        if not step.next:
            return step.plan, set(measured)
        history = rounds.record(history, step)
        measured += step.next


def plan_from(gains: Gains, overlap: bool = False) -> Plan:
    worth = Worth(gains, Process(gains.members, gains.values), WEIGHTS(len(gains.items)))
    return choose.choose(worth, overlap=overlap)


def value(truth: Gains, plan: Plan) -> float:
    """Mean gain in %."""
    return 100 * float(np.mean([truth.of(members)[i] for i, members in enumerate(plan.of_item)]))


# ---- what others would do -------------------------------------------------------------------------------------------


def pair_matrix(gains: Gains) -> np.ndarray:
    n = len(gains.items)
    return np.array([[gains.of(np.isin(np.arange(n), [i, j]))[i] for j in range(n)] for i in range(n)])


def pair_means(G: np.ndarray, S: np.ndarray) -> np.ndarray:
    """Higher-order approximation (Standley et al., 2020): the mean of an item's gains in pairs; (N, n)."""
    off = np.where(np.eye(len(G), dtype=bool), 0.0, G)
    return np.where(S, (S @ off.T) / np.maximum(S.sum(1, keepdims=True) - 1, 1), np.nan)


def by_pair_means(gains: Gains) -> Plan:
    every = every_subset(len(gains.items))
    totals = np.nansum(pair_means(pair_matrix(gains), every), axis=1)
    return partition(every[choose.best_partition(totals)])


def cluster_labels(T: np.ndarray, hubs: str = "keep", method: str = "sdp") -> np.ndarray:
    """Labels (n,) of the affinities T (n, n), their number by the penalised density."""
    S = sdp.symmetric(T, hubs)
    return rounding.find_clusters(S, rounding.best_number(S, rounding.extend(S, np.full(len(S), -1))), method, 0)[0]


def clusters(gains: Gains, hubs: str = "keep", method: str = "sdp") -> Plan:
    labels = cluster_labels(pair_matrix(gains), hubs, method)
    return partition(labels == c for c in range(labels.max() + 1))


def random_partitions(truth: Gains, count: int = 300) -> float:
    rng, n = np.random.default_rng(0), len(truth.items)
    found = []
    for _ in range(count):
        labels = rng.integers(rng.integers(1, n) + 1, size=n)
        found.append(value(truth, partition(labels == c for c in np.unique(labels))))
    return float(np.mean(found))


# ---- tables ---------------------------------------------------------------------------------------------------------


def read_table(path: Path) -> Gains:
    frame = pd.read_csv(path)
    metric = next(name for name in frame if name.startswith("eval_"))
    sign = -1 if metric == "eval_loss" else 1
    scores = pd.DataFrame({"trained_on": frame["Trained on"], "item": frame["Task"], "value": sign * frame[metric],
                           "metric": metric.removeprefix("eval_"), "variance": np.nan})
    return read_gains(scores, unit_of(scores, None, [], []))


def tables(folder: Path) -> None:
    print("mean gain over alone on test, %; in brackets trainings beyond those given")
    for path in sorted(folder.glob("*_valid.csv")):
        valid, test = read_table(path), read_table(path.with_name(path.name.replace("_valid", "_test")))
        n = len(valid.items)
        if len(valid.members) < 2**n - 1:
            continue
        everything = tuple(valid.items)
        pairs = [*itertools.combinations(everything, 1), *itertools.combinations(everything, 2), everything]
        row = {"all": value(test, partition([np.ones(n, bool)])), "random": random_partitions(test),
               "clusters": value(test, clusters(part(valid, pairs))),
               "HOA": value(test, by_pair_means(part(valid, pairs)))}
        for name, start in (("pairs", pairs), ("start set", start_set(everything, 0))):
            given = part(valid, start)
            row[f"plan from {name} ({len(set(start))})"] = value(test, plan_from(given))
            for explore in (0, 2):
                plan, trained = loop(valid, start, explore)
                row[f"loop from {name}, --explore {explore} [{len(trained) - len(set(start))}]"] = value(test, plan)
                assert value(valid, plan) >= -1e-9  # never below alone on what it was chosen by
        row["plan from everything"] = value(test, plan_from(valid))
        row["best possible"] = value(test, plan_from(test))
        print(f"\n{path.name.removesuffix('_valid.csv')}: {n} items")
        for name, gain in row.items():
            print(f"  {name:45s} {gain:+7.2f}")


# ---- simulated worlds -----------------------------------------------------------------------------------------------


def world(n: int, seed: int, groups: float = 0.06, hubs: float = 0.02, capacity: float = 0.004,
          noise: float = 0.01) -> tuple[Callable, Callable]:
    """Two functions of sets (N, n): the true gains (N, n), and gains measured with noise.

    Members of one's own group help, others harm a little; some are good or bad for everybody; each member costs.
    """
    rng = np.random.default_rng(seed)
    group = rng.integers(max(2, n // 4), size=n)
    helps = groups * np.where(group[:, None] == group, rng.uniform(0.3, 1, (n, n)), rng.normal(-0.25, 0.25, (n, n)))
    helps = (helps + hubs * rng.normal(size=n)) * (1 - np.eye(n))  # [i, j]: what j brings to i

    def true(S: np.ndarray) -> np.ndarray:
        others = np.maximum(S.sum(1, keepdims=True) - 1, 0)
        mean = (S @ helps.T) / np.maximum(others, 1)
        return np.where(S, mean * (1 + 0.4 * np.log1p(np.maximum(others - 1, 0))) - capacity * others, np.nan)

    def measured(S: np.ndarray) -> np.ndarray:
        drawn = noise * (rng.normal(size=S.shape) - rng.normal(size=n))  # alone is measured, too
        return np.where(S & (S.sum(1, keepdims=True) > 1), true(S) + drawn, true(S))

    return true, measured


def ridge(sets: np.ndarray, values: np.ndarray, S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predictions (N, n) by a ridge on who else is there, and (n,) the spread of its residuals."""
    found, spread = np.full(S.shape, np.nan), np.zeros(S.shape[1])
    for i in range(S.shape[1]):
        rows = ~np.isnan(values[:, i])
        X, y = np.delete(sets[rows], i, 1).astype(float), values[rows, i]
        mean = y.mean()
        weights = np.linalg.solve(X.T @ X + np.eye(X.shape[1]), X.T @ (y - mean))
        spread[i] = np.std(y - mean - X @ weights)
        found[:, i] = mean + np.delete(S, i, 1) @ weights
    return np.where(S, found, np.nan), spread


def worlds(count: int = 10) -> None:
    print("\nsimulated worlds: error (in standard deviations of what is predicted), rank correlation, coverage of 90 %")
    for n, kind in itertools.product((12, 30), ("pairs", "start set")):
        figures: dict[str, list] = {}
        for seed in range(count):
            true, measured = world(n, seed)
            items = [f"i{i:02d}" for i in range(n)]
            given = list(itertools.combinations(items, 2)) if kind == "pairs" else start_set(items, seed)[n:]
            sets = np.array([np.isin(items, names) for names in given])
            values = measured(sets)
            rng = np.random.default_rng(seed)
            new = np.array([rng.permutation(n) < rng.integers(3, n) for _ in range(300)])
            truth, scale = true(new), np.nanstd(true(new), axis=0)
            process = Process(sets, values)
            predictions = {"process": (process.means(new), np.sqrt(process.variances(new))),
                           "ridge": ridge(sets, values, new)}
            if kind == "pairs":
                G = np.zeros((n, n))
                for members, row in zip(sets, values, strict=True):
                    i, j = np.flatnonzero(members)
                    G[i, j], G[j, i] = row[i], row[j]
                predictions["pair means"] = pair_means(G, new), np.full(n, np.nan)
            for name, (mean, sd) in predictions.items():
                ranks = [spearmanr(truth[new[:, i], i], mean[new[:, i], i]).statistic for i in range(n)]
                error = np.sqrt(np.nanmean(((mean - truth) / scale) ** 2))
                covered = (np.abs(mean - truth) <= 1.645 * sd)[new].mean()
                figures.setdefault(name, []).append((error, np.mean(ranks), covered))
        for name, rows in figures.items():
            error, rank, covered = np.mean(rows, axis=0)
            print(f"  n = {n}, from {kind:10s} {name:10s} error {error:5.2f}  rank {rank:5.2f}  "
                  f"coverage {'-' if name == 'pair means' else f'{covered:.2f}'}")


# ---- honest intervals -----------------------------------------------------------------------------------------------


def intervals(count: int = 200, n: int = 8) -> None:
    print(f"\n90 % intervals of the plan's true gain, {count} tables for each noise, n = {n}")
    every = every_subset(n)[1:]
    for (words, groups), noise in itertools.product((("planted", 0.06), ("hardly any", 0.01), ("none", 0.0)),
                                                    (0.01, 0.03)):
        covered, below = {"naive": [], "fresh seed": [], "bootstrap": []}, {"before": [], "after": []}
        for seed in range(count):
            true, measured = world(n, seed, groups, groups / 3, 0.004 if groups else 0, noise)
            truth = table_gains(np.vstack([np.zeros(n), true(every)]))
            gains = part(replace(truth, values=measured(every)), start_set(truth.items, seed))
            worth = Worth(gains, Process(gains.members, gains.values), np.ones(n))
            plan = choose.choose(worth, pool=worth.measured())
            right, fresh = value(truth, plan) / 100, measured(plan.of_item)[np.arange(n), np.arange(n)]
            own = worth.of_plan(plan)
            bootstrap = confirm.optimism(worth, plan, None, False, seed)
            for name, (_, low, high) in (("naive", confirm.interval(own, worth.weights)),
                                         ("fresh seed", confirm.interval(
                                             fresh, worth.weights, error=confirm.fresh_error(
                                                 fresh, own, worth.weights, 1))),
                                         ("bootstrap", confirm.interval(own, worth.weights, bootstrap))):
                covered[name].append(low - 1e-12 <= right <= high + 1e-12)
            below["before"].append(right < -1e-12)
            below["after"].append(right < -1e-12 and fresh.mean() > 0)
        print(f"  gains {words:10s}, noise {noise:.0%}: "
              + ", ".join(f"{name} {np.mean(hits):.2f}" for name, hits in covered.items())
              + "; truly below alone " + ", ".join(f"{name} {np.mean(hits):.0%}" for name, hits in below.items()))


# ---- the best plan --------------------------------------------------------------------------------------------------


def optimum(count: int = 200) -> None:
    equal = dict.fromkeys(itertools.product((False, True), (None, 1, 2, 3)), 0)
    for seed in range(count):
        rng, n = np.random.default_rng(seed), 1 + seed % 7
        every = every_subset(n)
        members = np.unique(np.concatenate([every[1:][rng.random(2**n - 1) < rng.choice([0.3, 1.0])],
                                            np.eye(n, dtype=bool)]), axis=0)
        values = np.where(members & (members.sum(1, keepdims=True) > 1), rng.normal(size=members.shape), 0.0)
        gains = Gains(tuple(f"i{i}" for i in range(n)), "points", members, np.where(members, values, np.nan),
                      np.full(members.shape, np.nan), np.zeros(len(members), bool))
        worth = Worth(gains, Process(members, gains.values), rng.uniform(0, 2, n))
        of_items = np.vstack([np.zeros(n), np.nan_to_num(worth.of_items(every[1:])) * worth.weights])
        for overlap, budget in equal:
            plan = choose.choose(worth, budget, overlap)
            found = worth.of_plan(plan) @ worth.weights
            equal[overlap, budget] += (abs(found - best_total(of_items, budget, overlap)) < 1e-9
                                       and len(plan.subsets) <= (budget or n))
    print(f"\nplans that equal brute force, of {count} random tables of 1 to 7 items")
    for (overlap, budget), number in equal.items():
        print(f"  {'with' if overlap else 'without'} overlap, budget {budget}: {number}")


# ---- speed ----------------------------------------------------------------------------------------------------------


def speed() -> None:
    print("\nseconds")
    for n, count in ((12, 100), (16, 100), (27, 3000), (100, 300)):
        true, measured = world(n, 0)
        rng = np.random.default_rng(0)
        sets = np.unique([rng.permutation(n) < rng.integers(2, n + 1) for _ in range(count)], axis=0)
        sets = np.unique(np.concatenate([sets, np.eye(n, dtype=bool), np.ones((1, n), bool)]), axis=0)
        gains = Gains(tuple(f"i{i:03d}" for i in range(n)), "relative", sets, measured(sets),
                      np.full(sets.shape, np.nan), np.zeros(len(sets), bool))
        begin = time.perf_counter()
        worth = Worth(gains, Process(gains.members, gains.values), np.ones(n))
        fitted = time.perf_counter()
        step = rounds.next_step(worth, [], [], set(), 2, None, False, 0)
        choose.choose(worth, optimistic=True, start=step.plan)
        stepped = time.perf_counter()
        confirm.optimism(worth, step.plan, None, False, 0)
        end = time.perf_counter()
        plan = float(true(step.plan.of_item)[np.arange(n), np.arange(n)].mean())
        print(f"  {n} items, {len(sets)} subsets: predictor {fitted - begin:.1f}, plan and the most hopeful "
              f"{stepped - fitted:.1f}, bootstrap {end - stepped:.1f}, in all {end - begin:.1f}; true gain {plan:+.2%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, help="folder of tables in which every subset was trained")
    for flag, words in (("worlds", "the predictor beside pair means and ridge"), ("intervals", "coverage"),
                        ("optimum", "plans beside brute force"),
                        ("speed", "seconds at 12 to 100 items")):
        parser.add_argument(f"--{flag}", action="store_true", help=words)
    args = parser.parse_args()
    chosen = {"worlds": worlds, "intervals": intervals, "optimum": optimum, "speed": speed}
    asked = [name for name in chosen if getattr(args, name)]
    if args.tables:
        tables(args.tables)
    for name in asked or ([] if args.tables else chosen):
        chosen[name]()
