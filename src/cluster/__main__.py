"""From a sweep's results to clusters: affinity matrix, clusters with a certificate, pictures.

    python -m src.cluster --save_name NAME                              results/NAME/ -> clusters/NAME.txt
    python -m src.cluster --save_name NAME --extend clusters/old.txt    keep the old clusters, place the new items
    python -m src.cluster --save_name NAME --write_subsets subsets.txt  ... what to train to see what they are worth
"""

import argparse
import json
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from src.cli import InputError, OneLineErrors, add_results_flags, check_seed, results_flags, run_as_script, say_page
from src.cluster import affinity, choose, evidence, plots, rounding, sdp, worth
from src.cluster.lists import sweep_command, write_lines
from src.cluster.show import show, show_transfer
from src.files import check_writable, write_whole
from src.gains import choose_metrics, unit_of
from src.names import check_name
from src.scores import UNTRAINED, provenance, read_scores, results_file, transferred
from src.tasks.catalogue import main_metrics

SIGNIFICANT = 0.05
MOST_DRAWN = 1_000_000  # resamples, permutations


def make_parser() -> argparse.ArgumentParser:
    parser = OneLineErrors(prog="python -m src.cluster", description=__doc__)
    add = parser.add_argument
    add_results_flags(parser)
    add("--estimator", default="mean", choices=["mean", "ridge"], help="affinity as the mean over subsets, or by a "
        "ridge regression on who else was in the subset: better for subsets of 5 and more (default: mean)")
    add("--sizes", type=int, nargs="+", default=[], metavar="N", help="take subsets of so many items (default: of the "
        "size that was trained most often, so that alone, all and what a plan had trained do not confirm themselves)")
    add("--transfer", action="store_true", help="cluster by transfer, the scores of items that were not trained, made "
        "symmetric (default: where nothing was trained together)")
    add("--impute", action="store_true", help="go on where more than 20 %% of the pairs were never trained together, "
        "with the row's mean in their place (default: an error that names them; up to 20 %% a warning)")
    add("--num_clusters", default="auto", help="number of clusters, or auto (default: auto)")
    add("--method", default="sdp", choices=rounding.METHODS, help="sdp is the method, the others are there for "
        "comparison; threshold is the rounding as published (default: sdp)")
    add("--hubs", choices=["keep", "remove"], help="items that are good or bad for everybody: keep them, or remove "
        "the effects of rows and columns before the clustering (default: whichever shows more structure; with --method "
        "threshold as published: keep)")
    add("--extend", metavar="FILE", help="a cluster file: its clusters stay as they are, items not in it join one or "
        "open new ones (default: cluster all anew)")
    add("--name", help="name of the clusters, written to <clusters_dir>/<name>.txt (default: --save_name)")
    add("--clusters_dir", default="clusters", help="folder of cluster files (default: clusters)")
    add("--bootstrap", type=int, default=200, help="number of resamples for intervals and stability (default: 200)")
    add("--permutations", type=int, default=199, help="number of shuffled matrices in the test of whether there is any "
        "structure (default: 199)")
    add("--seed", type=int, default=0, help="of resamples, permutations and random starts (default: 0)")
    add("--reference", metavar="FILE", help="a cluster file to compare with: says how alike the clusters are (adjusted "
        "Rand index, 1: the same, 0: as by chance)")
    add("--compare", action="store_true", help="also run every other method and show a table of them")
    add("--write_subsets", metavar="FILE", help="write, for --subsets_file of the sweep: each item alone, all items, "
        "each cluster")
    return parser


def parse(arguments: list[str] | None) -> argparse.Namespace:
    args = make_parser().parse_args(arguments)
    check_name("--save_name", args.save_name)
    check_name("--name", args.name or args.save_name)
    check_seed(args.seed)
    if args.extend and args.method != "sdp":
        raise InputError(f"--method {args.method}: does not go with --extend, which places items by its own search")
    if args.num_clusters != "auto" and not (args.num_clusters.isdecimal() and int(args.num_clusters) > 0):
        raise InputError(f"--num_clusters {args.num_clusters}: must be a number from 1 on, or auto")
    if args.method == "threshold":
        args.hubs = args.hubs or "keep"
    for flag in ("bootstrap", "permutations"):
        if not 1 <= getattr(args, flag) <= MOST_DRAWN:
            raise InputError(f"--{flag} {getattr(args, flag)}: must be at least 1, at most {MOST_DRAWN}")
    return args


def sizes_in_words(scores) -> str:
    """`2 items (36 subsets), 9 items (1 subset)`."""
    sizes = Counter(len(names.split()) for names in set(scores["trained_on"]))
    return ", ".join(f"{size} item{'s' * (size > 1)} ({count} subset{'s' * (count > 1)})"
                     for size, count in sorted(sizes.items()))


def take_sizes(scores, sizes: list[int], least: int):
    """The scores of subsets of the sizes asked for, said where others were trained, too."""
    chosen = affinity.of_sizes(scores, sizes, least)
    if chosen.empty:
        raise InputError(f"--sizes {' '.join(map(str, sizes)) or '(not given)'}: these results have no subset of that "
                         f"size; trained are {sizes_in_words(scores)}")
    if len(chosen) < len(scores):
        print(f"affinities: subsets of {sizes_in_words(chosen)}; trained are {sizes_in_words(scores)} (--sizes)")
    return chosen


def matrices(scores, args: argparse.Namespace) -> tuple[affinity.Affinity, affinity.Affinity | None]:
    """What is clustered, and the directed matrix of transfer, where there are scores of it.

    Affinities are clustered, or transfer where it is asked for or nothing was trained together.
    """
    other = scores[transferred(scores)]
    own = scores[~transferred(scores) & (scores["trained_on"] != UNTRAINED)]
    if args.transfer and other.empty:
        raise InputError("--transfer: these results have no scores of items that were not trained")
    by_transfer = args.transfer or not (other.empty or own["trained_on"].str.contains(" ").any())
    sizes = args.sizes if by_transfer else []
    ridge = args.estimator == "ridge"
    directed = None if other.empty else affinity.build(take_sizes(other, sizes, least=1), ridge, transfer=True)
    if not by_transfer:
        return affinity.build(take_sizes(own, args.sizes, least=2), ridge), directed
    found = directed.square()
    left = [item for item in directed.items if item not in found.items]
    print(f"clustered is transfer, {len(found.items)} items that are sources and targets"
          + (f"; not {', '.join(left)}" if left else ""))
    return found, directed


def what_it_is_worth(scores, found: affinity.Affinity, labels: np.ndarray, args: argparse.Namespace) -> dict | None:
    """The worth of the clusters, printed; None, and why, where nothing was trained that it could be compared with."""
    try:
        gains = worth.worth(scores, found, labels, unit_of(scores, args.unit, args.lower_is_better,
                                                           args.higher_is_better))
    except InputError as error:
        print(f"what the clusters are worth is not known: {error}; --write_subsets FILE writes what to train for it")
        return None
    worth.say(gains, int(labels.max()) + 1, results_flags(args.save_name, args.results_dir))
    return vars(gains)


def write_matrix(folder: Path, found: affinity.Affinity, resamples: np.ndarray | None, clusters: list[list[str]],
                 hubs: str) -> str:
    """The tables and the heat map of a matrix, affinity or transfer; their names, in words."""
    name, how = ("transfer", "after") if found.transfer else ("affinity", "with")
    for suffix, table in zip(("", "_long"), found.tables(resamples), strict=True):
        write_whole(folder / f"{name}{suffix}.csv", table.to_csv(index=not suffix))
    metrics = sorted(set(found.metrics.values()))
    place = {item: c for c, cluster in enumerate(clusters) for item in cluster}
    plots.heat_map(folder / f"{name}.png", found.T, sdp.z_scores(found.T, hubs), list(found.items),
                   np.array([place.get(item, -1) for item in found.items]),
                   ", ".join(metrics[:3]) + (", ..." if len(metrics) > 3 else "") + ", in standard deviations from the "
                   + ("row's mean" if hubs == "keep" else "row's mean, hubs removed"), how)
    return f"{name}.csv {name}_long.csv {name}.png"


def as_lists(found: affinity.Affinity) -> list[list[float | None]]:
    return np.where(np.isnan(found.T), None, found.T).tolist()


def write_subsets(args: argparse.Namespace, items: tuple[str, ...], clusters: list[list[str]]) -> None:
    """Write what to train to know what the clusters are worth, and say how."""
    lines = [[item] for item in items] + [list(items)] + [c for c in clusters if 1 < len(c) < len(items)]
    path = write_lines(args.write_subsets, lines)
    print(f"written: {path}, {len(lines)} subsets. Train them, then compare:\n  "
          f"{sweep_command(items, args, path)}\n"
          f"  python -m src.plan {results_flags(args.save_name, args.results_dir)}"
          + (f" --clusters {args.name}" if args.name not in (None, args.save_name) else ""))


def reject_equal(scores: np.ndarray, args: argparse.Namespace) -> None:
    """Raise InputError where each item's scores (subsets, items) are all the same: there is nothing to cluster by."""
    several = scores[:, (~np.isnan(scores)).sum(0) > 1]
    if several.size and (np.nanmin(several, 0) == np.nanmax(several, 0)).all():
        raise InputError(f"--save_name {args.save_name}: each item has the same score after every subset, and nothing "
                         "tells clusters apart; choose another --metric")


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    folder, name = Path(args.results_dir) / args.save_name, args.name or args.save_name
    clusters_file, source = Path(args.clusters_dir) / f"{name}.txt", results_file(folder, args.split)
    for what, place in ((f"--clusters_dir {args.clusters_dir}", clusters_file.parent), ("affinity.csv", folder)):
        check_writable(f"{what} cannot be written", place)
    everything = choose_metrics(
        read_scores(folder, args.split, args.config_hash, content_hash=args.content_hash),
        args.metric, partial(main_metrics, task_dir=args.task_dir), args.lower_is_better,
        args.higher_is_better)
    found, directed = matrices(everything, args)
    reject_equal(found.scores, args)
    old = choose.old_labels(found.items, args)
    unseen = choose.check_coverage(found, old, args)
    rng = np.random.default_rng(args.seed)
    resamples = found.resample(args.bootstrap, rng)
    hubs, p, tests = evidence.choose_hubs(found.T, args.hubs, args.permutations, rng)
    S = sdp.symmetric(found.T, hubs)
    labels, curve, certificate = choose.choose(S, old, args)
    coassignment = None if resamples is None else evidence.coassignment(resamples, int(labels.max()) + 1, hubs)
    per_cluster = choose.per_cluster(found, S, labels, coassignment)
    clusters = [row["members"] for row in per_cluster]

    alike = None if args.reference is None else choose.adjusted_rand_index(found.items, labels, args)
    write_lines(clusters_file, clusters)
    drawn = [] if found.transfer else [(found, resamples, hubs)]
    if directed is not None:
        drawn.append((directed, directed.resample(args.bootstrap, rng), hubs if found.transfer else "keep"))
    files = [write_matrix(folder, each, repeated, clusters, way) for each, repeated, way in drawn]
    plots.number_of_clusters(folder / "num_clusters.png", curve, int(labels.max()) + 1)
    record = {
        "clusters": clusters, "per_cluster": per_cluster, "certificate": certificate, "p_value": p,
        "structure_found": p <= SIGNIFICANT, "hubs": hubs, "evidence": {way: vars(each) for way, each in tests.items()},
        "hub_shares": dict(zip(found.items, sdp.shares_of_hubs(found.T).round(4).tolist(), strict=True)),
        "adjusted_rand_index": alike, "curve": curve, "missing_pairs": unseen,
        "metrics": found.metrics, "subsets": len(found.scores), "estimated_scores": int(everything["estimated"].sum()),
        "items": found.items, "transfer": found.transfer, "affinity": as_lists(found), "matrices": [
            {"transfer": each.transfer, "items": each.items, "values": as_lists(each), "hubs": way}
            for each, _, way in drawn],
        "coassignment": None if coassignment is None else coassignment.round(4).tolist(),
        "agreement": None if coassignment is None else evidence.agreement(coassignment, labels),
        "arguments": vars(args), "numpy": np.__version__,
    } | provenance(source, ["python", "-m", "src.cluster", *(sys.argv[1:] if arguments is None else arguments)])
    show(args, S, labels, record)
    record["worth"] = what_it_is_worth(everything, found, labels, args)
    write_whole(folder / "clusters.json", json.dumps(record, indent=1) + "\n")
    if directed is not None:
        show_transfer(directed)
    print(f"written: {clusters_file} and, in {folder}/, {' '.join(files)} num_clusters.png clusters.json")
    if args.write_subsets:
        write_subsets(args, found.items, clusters)
    say_page(args)
    return 0


if __name__ == "__main__":
    run_as_script(main)
