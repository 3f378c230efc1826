"""From a sweep's results to clusters: affinity matrix, clusters with a certificate, pictures.

    python -m src.cluster --save_name NAME                              results/NAME/ -> clusters/NAME.txt
    python -m src.cluster --save_name NAME --extend clusters/old.txt    keep the old clusters, place the new items
    python -m src.cluster --save_name NAME --write_subsets subsets.txt  ... what to train to see what clusters bring
    python -m src.cluster --save_name NAME_report --name NAME --report  ... and what they brought
"""

import argparse
import hashlib
import json
from collections import Counter
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np

from src.cli import InputError, OneLineErrors, add_results_flags, run_as_script
from src.cluster import affinity, choose, evidence, plots, rounding, sdp
from src.cluster.lists import sweep_command, write_lines
from src.cluster.show import report, show
from src.files import check_writable
from src.names import check_name
from src.scores import oriented, read_scores, results_file
from src.tasks.catalogue import main_metrics

SIGNIFICANT = 0.05


def make_parser() -> argparse.ArgumentParser:
    parser = OneLineErrors(
        prog="python -m src.cluster", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add_results_flags(parser)
    add("--estimator", default="mean", choices=["mean", "ridge"], help="affinity as the mean over subsets, or by a "
        "ridge regression on who else was in the subset: better for subsets of 5 and more (default: mean)")
    add("--sizes", type=int, nargs="+", default=[], metavar="N", help="take subsets of so many items (default: of the "
        "size that was trained most often, so that alone, all and what a plan had trained do not confirm themselves)")
    add("--impute", action="store_true", help="go on where more than 20 %% of the pairs were never trained together, "
        "with the row's mean in their place (default: an error that names them; up to 20 %% a warning)")
    add("--num_clusters", default="auto", help="number of clusters, or auto (default: auto)")
    add("--method", default="sdp", choices=rounding.METHODS, help="sdp is the method, the others are there for "
        "comparison; threshold is the rounding as published (default: sdp)")
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
    add("--report", action="store_true", help="do not cluster: compare each item trained alone, with all, and in its "
        "cluster of <clusters_dir>/<name>.txt")
    return parser


def parse(arguments: list[str] | None) -> argparse.Namespace:
    args = make_parser().parse_args(arguments)
    if args.extend and args.method != "sdp":
        raise InputError(f"--method {args.method}: does not go with --extend, which places items by its own search")
    if args.num_clusters != "auto" and not (args.num_clusters.isdecimal() and int(args.num_clusters) > 0):
        raise InputError(f"--num_clusters {args.num_clusters}: must be a number from 1 on, or auto")
    for flag in ("bootstrap", "permutations"):
        if getattr(args, flag) < 1:
            raise InputError(f"--{flag} {getattr(args, flag)}: must be at least 1")
    return args


def sizes_in_words(scores) -> str:
    """`2 items (36 subsets), 9 items (1 subset)`."""
    sizes = Counter(len(names.split()) for names in set(scores["trained_on"]))
    return ", ".join(f"{size} item{'s' * (size > 1)} ({count} subset{'s' * (count > 1)})"
                     for size, count in sorted(sizes.items()))


def take_sizes(scores, sizes: list[int]):
    """The scores of subsets of the sizes asked for, said where others were trained, too."""
    chosen = affinity.of_sizes(scores, sizes)
    if chosen.empty:
        raise InputError(f"--sizes {' '.join(map(str, sizes)) or '(not given)'}: these results have no subset of that "
                         f"size; trained are {sizes_in_words(scores)}")
    if len(chosen) < len(scores):
        print(f"affinities of {sizes_in_words(chosen)}; trained are also others: {sizes_in_words(scores)} (--sizes)")
    return chosen


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    folder, name = Path(args.results_dir) / args.save_name, args.name or args.save_name
    check_name("--name", name)
    clusters_file, source = Path(args.clusters_dir) / f"{name}.txt", results_file(folder, args.split)
    everything = read_scores(folder, args.split, args.config_hash, content_hash=args.content_hash)
    scores = oriented(everything, args.metric, partial(main_metrics, task_dir=args.task_dir))
    if args.report:
        report(scores, args, clusters_file)
        return 0
    for what, place in ((f"--clusters_dir {args.clusters_dir}", clusters_file.parent), ("affinity.csv", folder)):
        check_writable(f"{what} cannot be written", place)
    scores = take_sizes(scores, args.sizes)
    found = affinity.build(scores, ridge=args.estimator == "ridge")
    old = choose.old_labels(found.items, args)
    unseen = choose.check_coverage(found, old, args)
    rng = np.random.default_rng(args.seed)
    resamples = found.resample(args.bootstrap, rng)
    wide, long = found.tables(resamples)
    wide.to_csv(folder / "affinity.csv")
    long.to_csv(folder / "affinity_long.csv", index=False)

    S = sdp.symmetric(found.T)
    labels, curve, certificate = choose.choose(S, old, args)
    k = int(labels.max()) + 1
    p = evidence.permutation_test(found.T, args.permutations, rng)
    coassignment = None if resamples is None else evidence.coassignment(resamples, k)
    per_cluster = choose.per_cluster(found, S, labels, coassignment)
    clusters = [row["members"] for row in per_cluster]
    metrics = sorted(set(found.metrics.values()))

    write_lines(clusters_file, clusters)
    plots.heat_map(folder / "affinity.png", found.T, sdp.standardise(found.T), list(found.items), labels,
                   ", ".join(metrics[:3]) + (", ..." if len(metrics) > 3 else ""))
    plots.number_of_clusters(folder / "num_clusters.png", curve, k)
    alike = None if args.reference is None else choose.adjusted_rand_index(found.items, labels, args)
    record = {
        "clusters": clusters, "per_cluster": per_cluster, "certificate": certificate, "p_value": p,
        "structure_found": p <= SIGNIFICANT, "adjusted_rand_index": alike, "curve": curve, "missing_pairs": unseen,
        "metrics": found.metrics, "subsets": len(found.scores), "estimated_scores": int(scores["estimated"].sum()),
        "items": found.items, "affinity": np.where(np.isnan(found.T), None, found.T).tolist(),
        "coassignment": None if coassignment is None else coassignment.round(4).tolist(),
        "arguments": vars(args), "results_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "numpy": np.__version__, "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    (folder / "clusters.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    show(args, S, labels, record)
    print(f"written: {clusters_file} and, in {folder}/, affinity.csv affinity_long.csv affinity.png num_clusters.png "
          "clusters.json")
    if args.write_subsets:
        lines = [[item] for item in found.items] + [list(found.items)] + [c for c in clusters if 1 < len(c) < len(S)]
        path = write_lines(args.write_subsets, lines)
        # results of their own: clusters judged by affinities that their own training changed would confirm themselves
        target = f"{args.save_name}_report"
        print(f"written: {path}, {len(lines)} subsets. Train them, then compare:\n  "
              f"{sweep_command(found.items, target, path, args.task_dir)}\n"
              f"  python -m src.cluster --save_name {target} --name {name} --report")
    return 0


if __name__ == "__main__":
    run_as_script(main)
