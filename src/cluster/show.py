"""What is printed: the clusters and what they rest on, other methods beside them."""

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from src.cli import print_table
from src.cluster import rounding, sdp
from src.cluster.affinity import Affinity


def show(args: argparse.Namespace, S: np.ndarray, labels: np.ndarray, record: dict) -> None:
    """Print the clusters and what they rest on."""
    from rich.console import Console

    say = partial(Console().print, highlight=False, soft_wrap=True)
    say(f"{len(S)} items, {record['subsets']} subsets, metric "
        f"{', '.join(sorted(set(record['metrics'].values())))}")
    if record["estimated_scores"]:
        say(f"{record['estimated_scores']} scores are estimated, not trained")
    shown = (("density", ".3f"), ("stability", ".0%"), ("within_minus_across", "+.4g"))
    rows = [(str(number), " ".join(row["members"]), *("-" if row[key] is None else format(row[key], how) for key, how in
                                                      shown)) for number, row in enumerate(record["per_cluster"], 1)]
    print_table(("cluster", "members", "density", "stability", "within_minus_across"), rows)
    certificate, gap = record["certificate"], record["certificate"]["gap"]
    proven = "the bound is not positive" if gap is None else f"within {gap:.1%} of any possible clustering"
    say(f"density {certificate['density']:.4f}, bound {certificate['bound']:.4f}: {proven} into "
        f"{len(record['clusters'])} clusters")
    if args.num_clusters == "auto":
        chosen = len(record["clusters"])
        ranked = sorted((row for row in record["curve"] if row["k"] not in (1, chosen)), key=lambda r: -r["penalised"])
        others = [f"runner-up {row['k']} ({row['penalised']:.3f})" for row in ranked[:1]]
        most = max(record["curve"], key=lambda row: row["within"])["k"]
        say(f"number of clusters: {chosen} (penalised density {certificate['penalised']:.3f}; no "
            f"clustering into any number has more than {certificate['penalised_bound']:.3f}), "
            + ", ".join([*others, f"by the relaxation without k {certificate['trace']:.2f}",
                         f"by the sum within clusters {most}"]))
    if record["coassignment"] is None:
        say("stability and intervals not measured: no score was repeated; train with --runs 2 or more")
    else:
        say(f"stability: {record['agreement']:.0%} of the pairs fall the same way in {args.bootstrap} resamples")
    show_evidence(record, say)
    if record["adjusted_rand_index"] is not None:
        say(f"adjusted Rand index with {args.reference}: {record['adjusted_rand_index']:.2f}")
    if args.compare:
        show_methods(S, len(record["clusters"]), certificate["bound"], labels, args.seed)


def show_evidence(record: dict, say: Callable[[str], None]) -> None:
    """Say whether there is structure, and what part hubs have in it."""
    shares, tests = record["hub_shares"], record["evidence"]
    total, largest = sum(shares.values()), max(shares, key=shares.get)
    n = max(len(shares), 3)  # items; the rows are z-scores, so effects of columns alone are left: n - 1 of n (n - 2)
    chance = (n - 1) / (n * (n - 2))
    say(f"hubs, items that are good or bad for everybody: {total:.0%} of the variance (by chance about {chance:.0%})"
        + (f", most of it one outlier, {largest}" if total > 3 * chance and shares[largest] > total / 2 else ""))
    ways = {"keep": "hubs kept", "remove": "hubs removed"}
    test = ways[record["hubs"]] + ", permutation test" + ("" if len(tests) == 1 else " of two ways, "
        + " and ".join(f"{words} {tests[way]['p']:.3g}" for way, words in ways.items()))
    if record["structure_found"]:
        say(f"structure found (p = {record['p_value']:.3g}; {test})")
    else:
        say(f"[bold red]no structure found[/] (p = {record['p_value']:.2g}; {test}): shuffled "
            "scores look as clustered as these; do not rely on these clusters")


def show_transfer(directed: Affinity, best: int = 3) -> None:
    """Print for each target the sources after which it does best, and those after which it does worst."""
    def words(i: int, sources: np.ndarray) -> str:
        return ", ".join(f"{directed.items[j]} {directed.T[i, j]:.4g}" + (
            "" if np.isnan(directed.se[i, j]) else f" \N{PLUS-MINUS SIGN} {directed.se[i, j]:.2g}") for j in sources)

    rows = []
    for i in np.flatnonzero((directed.n > 0).any(1)):
        order = np.argsort(-np.nan_to_num(directed.T[i], nan=-np.inf), kind="stable")[:(directed.n[i] > 0).sum()]
        rows.append((directed.items[i], words(i, order[:best]), words(i, order[:best - 1:-1][:best])))
    print_table(("target", "best sources", "worst"), rows, title="transfer: scores of targets that were not trained, "
                "higher is better", caption="\N{PLUS-MINUS SIGN} standard error")


def show_methods(S: np.ndarray, k: int, bound: float, labels: np.ndarray, seed: int) -> None:
    from sklearn.metrics import adjusted_rand_score

    rows = []
    for method in rounding.METHODS:
        start = time.perf_counter()
        found, _ = rounding.find_clusters(S, k, method, seed)
        seconds = time.perf_counter() - start
        value, number = sdp.density(S, found), int(found.max()) + 1
        rows.append((method, str(number), f"{value:.4f}", f"{value / bound:.1%}" if bound > 0 and number == k else "-",
                     f"{adjusted_rand_score(labels, found):.2f}", f"{seconds:.2f}"))
    print_table(("method", "clusters", "density", "of the bound", "adjusted Rand index with ours", "seconds"), rows,
                title="methods")
