"""What a table says in which every subset was trained: `python -m tests.bench_table [--save_name NAME]`.

Clusters, plans and predictions are made of validation scores under the first seed, of some of the subsets; what they
are worth is read off the test scores: of the same trainings, and of those under other seeds, which chose nothing.
"""

import argparse
import itertools
from functools import partial
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import adjusted_rand_score

from src.cli import InputError, run_as_script
from src.cluster import evidence, sdp
from src.files import read_json
from src.gains import Gains, read_gains
from src.plan.choose import Plan, every_subset, partition
from src.plan.predict import Process
from src.scores import loss_metrics, oriented, read_scores, results_file
from src.subsets import start_set
from tests.bench_plan import (
    by_pair_means,
    cluster_labels,
    clusters,
    loop,
    pair_matrix,
    pair_means,
    part,
    plan_from,
    random_partitions,
    ridge,
    value,
)

KINDS = {"sst2": "sentiment", "yelp_review_full": "sentiment", "mnli": "inference", "qnli": "inference",
         "xsum": "summary", "samsum": "summary", "e2e_nlg_cleaned": "text from data", "common_gen": "text from data"}
PERMUTATIONS = 999


def table(folder: Path, split: str, seed: str) -> Gains:
    """Relative gains over alone under one seed."""
    scores = read_scores(folder, split, statuses=("completed", "imported"), keep_seed=lambda each: each == seed)
    return read_gains(oriented(scores, None, partial(loss_metrics, scores)), "relative")


def seeds_of(folder: Path) -> list[str]:
    """Seeds by how many subsets were trained under them, most first."""
    import pandas as pd

    runs = pd.read_csv(results_file(folder), dtype=str, keep_default_na=False)
    runs = runs[runs["status"].isin(["completed", "imported"])]
    return list(runs.groupby("seed")["trained_on"].nunique().sort_values(ascending=False, kind="stable").index)


def costs(folder: Path, seed: str) -> dict[frozenset, float]:
    """CPU seconds of each subset's training and evaluation under one seed, as far as its record tells them."""
    records = [read_json(path) for path in (folder / "runs").glob("*.json")]
    return {frozenset(record["trained_on"].split()): record["cpu_seconds"] for record in records
            if str(record.get("seed")) == seed and "cpu_seconds" in record}


def plans(valid: Gains, test: Gains, pairs: list) -> dict[str, tuple[Plan, set]]:
    """What would be trained, and the trainings that it takes to know that; all in the table by name."""
    n = len(valid.items)
    every, start = {valid.names(members) for members in valid.members}, start_set(valid.items, 0)
    given = part(valid, pairs)
    found = {"all": (partition([np.ones(n, bool)]), {valid.items})}
    for words, hubs, method in (("clusters, rounding as published", "keep", "threshold"), ("clusters", "keep", "sdp"),
                                ("clusters, hubs removed", "remove", "sdp")):
        if hubs == "keep" or n >= evidence.FEWEST_WITHOUT_HUBS:
            found[words] = clusters(given, hubs, method), {names for names in pairs if len(names) == 2}
    found["pair means"] = by_pair_means(given), {names for names in pairs if len(names) < 3}
    for name, subsets in (("pairs", pairs), ("start set", start)):
        found[f"plan from {name}"] = plan_from(part(valid, subsets)), set(subsets)
        for explore in (0, 2):
            found[f"loop from {name}, --explore {explore}"] = loop(valid, list(subsets), explore)
    found["plan from everything"] = plan_from(valid), every
    found["best possible on test"] = plan_from(test), every
    found["the same with --overlap"] = plan_from(test, overlap=True), every
    return found


def print_plans(valid: Gains, test: Gains, others: list[Gains], pairs: list, cost: dict[frozenset, float]) -> None:
    found, whole = plans(valid, test, pairs), sum(cost.values())
    best = value(test, found["best possible on test"][0])
    print("\nmean gain over alone on test, %: of the same trainings; under other seeds (mean, lowest, highest);\n"
          "share of the best possible; trainings to get there, their share of the sweep's CPU seconds; subsets")
    print(f"  {'random partitions':34s} {random_partitions(test):+7.2f}")
    for name, (plan, trained) in found.items():
        own = value(test, plan)
        again = [gain for gain in (value(other, plan) for other in others) if not np.isnan(gain)]  # of all its subsets
        fresh = f"{np.mean(again):+7.2f} ({min(again):+.2f}, {max(again):+.2f})" if again else f"{'-':>7s}"
        share = f"{own / best:5.0%}" if best > 0 else "    -"
        paid = f"{sum(cost[frozenset(names)] for names in trained) / whole:4.0%}" if whole else "   -"
        print(f"  {name:34s} {own:+7.2f}  {fresh:26s} {share} {len(trained):4d} {paid}  "
              + " | ".join(" ".join(valid.names(members)) for members in plan.subsets))


def print_predictors(valid: Gains, test: Gains, others: list[Gains], T: np.ndarray, pairs: list) -> None:
    """Rank correlations with the test gains of subsets that the pairs do not hold: by item, and of whole subsets."""
    n = len(valid.items)
    every = every_subset(n)
    new = np.array([members for members in every if 2 < members.sum() < n])
    truth = np.array([test.of(members) for members in new])
    given = part(valid, pairs)
    process = Process(given.members, given.values)
    together = given.members.sum(1) > 1
    S = sdp.symmetric(T, "keep") * ~np.eye(n, dtype=bool)
    density = np.array([S[np.ix_(members, members)].sum() / members.sum() for members in new])
    found = {"pair means": pair_means(pair_matrix(given), new), "process": process.means(new),
             "ridge": ridge(given.members[together], given.values[together], new)[0],
             "validation scores of the same trainings": np.array([valid.of(members) for members in new])}
    print(f"\nrank correlation with the test gains of the {len(new)} subsets of 3 to {n - 1} items, from alone, pairs "
          "and all:\nby item (mean), of the subsets' mean gains")
    print(f"  {'density':45s}     -   {spearmanr(density, np.nanmean(truth, 1)).statistic:+.2f}")
    for name, guess in found.items():
        by_item = np.mean([spearmanr(guess[new[:, i], i], truth[new[:, i], i]).statistic for i in range(n)])
        print(f"  {name:45s} {by_item:+.2f}   {spearmanr(np.nanmean(guess, 1), np.nanmean(truth, 1)).statistic:+.2f}")
    several = [members for members in every if members.sum() > 1]
    by_split = [np.array([g.of(members) for members in several]) for g in (valid, test)]
    print("  validation beside test, all subsets of two and more: " + ", ".join(
        f"{item} {spearmanr(*(gains[~np.isnan(gains[:, i]), i] for gains in by_split)).statistic:+.2f}"
        for i, item in enumerate(valid.items)))
    both = [np.array([g.of(members) for members in every if members.sum() == 2]) for g in (test, *others)]
    for number, other in enumerate(both[1:], 2):
        known = ~np.isnan(both[0]) & ~np.isnan(other)
        if known.sum() < n * (n - 1):  # not all pairs under that seed
            continue
        by_item = [spearmanr(both[0][known[:, i], i], other[known[:, i], i]).statistic for i in range(n)]
        print(f"  ceiling: pairs, first and {number}. seed{'':21s} {np.mean(by_item):+.2f}   "
              f"{spearmanr(np.nanmean(both[0], 1), np.nanmean(other, 1)).statistic:+.2f}")


def print_equal_passes(folder: Path) -> None:
    """Gains over alone of subsets whose items got as many passes over their rows as alone: trained for fewer steps."""
    import pandas as pd

    def read_losses(of: Path):
        runs = pd.read_csv(results_file(of))
        runs = runs[runs["split"] == "test"]
        return runs[runs["metric"] == runs["item"].map(loss_metrics(runs, list(runs["item"])))]

    together = read_losses(folder)
    size = together["trained_on"].str.split().str.len()
    for short in sorted(folder.parent.glob(f"{folder.name}-alone-*/")):
        alone = read_losses(short).set_index("item")
        steps = alone["steps"].iloc[0]
        share = round(together["steps"].iloc[0] / steps)
        rows = together[size == share]
        rows = rows.assign(gain=100 * (1 - rows["value"] / rows["item"].map(alone["value"])))
        print(f"\nsubsets of {share} over alone at equal passes ({steps:.0f} steps), test: {rows['gain'].mean():+.2f} "
              f"%, {(rows['gain'] > 0).mean():.0%} of {len(rows)} gains are above 0")
        for item, of_item in rows.groupby("item"):
            print(f"  {item:18s} " + ", ".join(
                f"{gain:+.1f} with {' '.join(sorted({*names.split()} - {item}))}"
                for gain, names in zip(of_item["gain"], of_item["trained_on"], strict=True)))


def print_structure(T: np.ndarray, items: tuple[str, ...]) -> None:
    hubs, p, tests = evidence.choose_hubs(T, None, PERMUTATIONS, np.random.default_rng(0))
    labels = cluster_labels(T, hubs)
    print(f"\nstructure: p = {p:.3f}, hubs {hubs}"
          + "".join(f"; {way}: p = {each.p:.3f}" for way, each in tests.items()))
    if all(item in KINDS for item in items):
        print(f"  clusters beside the tasks' kinds: adjusted Rand index "
              f"{adjusted_rand_score([KINDS[item] for item in items], labels):+.2f}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results_dir", default="data/benchmarks", help="folder of results (default: %(default)s)")
    parser.add_argument("--save_name", default="smollm2", help="name of the table (default: %(default)s)")
    args = parser.parse_args(arguments)
    folder = Path(args.results_dir) / args.save_name
    seed, *again = seeds_of(folder)
    valid, test = (table(folder, split, seed) for split in ("valid", "test"))
    n = len(valid.items)
    lacking = 2**n - 1 - sum(valid.is_measured(members) for members in valid.members)
    if lacking:
        raise InputError(f"{folder}: {lacking} of {2**n - 1} subsets of {' '.join(valid.items)} have no scores under "
                         f"seed {seed}; make bench-real goes on with them")
    print(f"{n} items, all {2**n - 1} subsets under seed {seed or '(not known)'}"
          + (f", some under {', '.join(again)}" if again else ""))
    pairs = [*itertools.combinations(valid.items, 1), *itertools.combinations(valid.items, 2), tuple(valid.items)]
    T, others = pair_matrix(valid), [table(folder, "test", other) for other in again]
    print_plans(valid, test, others, pairs, costs(folder, seed))
    print_equal_passes(folder)
    print_predictors(valid, test, others, T, pairs)
    print_structure(np.where(np.eye(n, dtype=bool), np.nan, T), valid.items)
    return 0


if __name__ == "__main__":
    run_as_script(main)
