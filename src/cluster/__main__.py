"""From a sweep's results to clusters: affinity matrix, clusters with a certificate, pictures.

    python -m src.cluster --save_name NAME                              results/NAME/ -> clusters/NAME.txt
    python -m src.cluster --save_name NAME --extend clusters/old.txt    keep the old clusters, place the new items
    python -m src.cluster --save_name NAME --write_subsets subsets.txt  ... what to train to see what clusters bring
    python -m src.cluster --save_name NAME_report --name NAME --report  ... and what they brought
"""

import argparse
import hashlib
import json
import sys
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np

from src import DEFAULT_TASK_DIR, subsets
from src.cli import InputError, OneLineErrors, did_you_mean, run_as_script
from src.cluster import affinity, evidence, plots, rounding, sdp
from src.gains import compare_trainings
from src.names import task_of_template
from src.scores import oriented, read_scores, results_file
from src.tasks.catalogue import main_metrics

SIGNIFICANT = 0.05


def make_parser() -> argparse.ArgumentParser:
    parser = OneLineErrors(
        prog="python -m src.cluster", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--save_name", required=True, help="name of the sweep: the folder below --results_dir")
    add("--results_dir", default="results", help="folder of all results (default: results)")
    add("--task_dir", default=DEFAULT_TASK_DIR, help="folder of task files, for each task's main metric "
        "(default: %(default)s)")
    add("--split", default="valid", choices=["valid", "test"], help="scores of which split to read (default: valid)")
    add("--metric", help="metric of all items, e.g. loss or exact_match (default: each task's own main metric)")
    add("--config_hash", help="read only the runs of this config_hash (default: all; an error if they differ)")
    add("--estimator", default="mean", choices=["mean", "ridge"], help="affinity as the mean over subsets, or by a "
        "ridge regression on who else was in the subset: better for subsets of 5 and more (default: mean)")
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


# ---- files ---------------------------------------------------------------------------------------------------------


def read_clusters(flag: str, name: str, folder: str) -> list[list[str]]:
    """The clusters of the file that `flag` names, by path or as <folder>/<name>.txt."""
    return [list(cluster) for cluster in subsets.read_clusters(subsets.cluster_file(flag, name, folder))]


def write_lines(path: str | Path, lines: list[list[str]]) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(" ".join(line) + "\n" for line in lines), encoding="utf-8")
    return path


def sweep_command(items: tuple[str, ...], save_name: str, subsets_file: Path | str) -> str:
    """The command that trains the subsets of a file."""
    tasks = {task_of_template(item) for item in items}
    of_one_task = len(tasks) == 1 and None not in tasks
    script = f"train_sample_instructions_lora.py --dataset {min(tasks)}" if of_one_task else (
        f"train_sample_tasks.py --task_names {' '.join(items)}")
    return (f"python {script} --subsets_file {subsets_file} --task_set_name {save_name} --save_name {save_name}\n"
            "  and the trainings' flags of the sweep: --model_name_or_path, --max_steps, --runs, --device, ...")


# ---- steps ---------------------------------------------------------------------------------------------------------


def check_coverage(found: affinity.Affinity, old: np.ndarray, args: argparse.Namespace) -> list[str]:
    """Names of the pairs never trained together, as far as they matter; raise InputError where they are too many.

    old (n,): cluster of each item that stays where it is, or -1; pairs of two such items decide nothing.
    """
    pairs = [(i, j) for i, j in found.missing() if old[i] < 0 or old[j] < 0]
    path = Path(args.results_dir) / args.save_name / "missing_pairs.txt"
    if not pairs:
        path.unlink(missing_ok=True)
        return []
    names = [f"{found.items[i]} {found.items[j]}" for i, j in pairs]
    listed = ", ".join(names[:10]) + (f", ... ({len(names)} in all)" if len(names) > 10 else "")
    write_lines(path, [name.split() for name in names])
    hint = f"To fill them:\n  {sweep_command(found.items, args.save_name, path)}"
    lonely = [item for item, count in zip(found.items, (found.n > 0).sum(1), strict=True)
              if count < min(2, len(found.items) - 1)]
    if lonely:
        raise InputError(f"'{lonely[0]}' was trained with fewer than two others; pairs never trained together: "
                         f"{listed}.\n{hint}")
    new = old < 0
    share = len(pairs) / (len(old) * (len(old) - 1) // 2 - (~new).sum() * ((~new).sum() - 1) // 2)
    if share > affinity.FEW_MISSING and not args.impute:
        raise InputError(f"{share:.0%} of the pairs were never trained together: {listed}.\n{hint}\n"
                         "--impute goes on without them, with the row's mean in their place")
    print(f"warning: {len(pairs)} pairs ({share:.0%}) were never trained together and count as the mean of their row: "
          f"{listed}.\n{hint}", file=sys.stderr)
    return names


def old_labels(items: tuple[str, ...], args: argparse.Namespace) -> np.ndarray:
    """Cluster of each item in the file of --extend, -1 for a new one; all -1 without."""
    old = read_clusters("--extend", args.extend, args.clusters_dir) if args.extend else []
    place = {item: c for c, cluster in enumerate(old) for item in cluster}
    for item in place:
        if item not in items:
            raise InputError(f"--extend {args.extend}: '{item}' is not in these results, {did_you_mean(item, items)}")
    return np.array([place.get(item, -1) for item in items])


def likeness(items: tuple[str, ...], labels: np.ndarray, args: argparse.Namespace) -> float:
    """Adjusted Rand index (Hubert & Arabie, 1985) of the clusters and those of --reference."""
    from sklearn.metrics import adjusted_rand_score

    reference = read_clusters("--reference", args.reference, args.clusters_dir)
    place = {item: c for c, cluster in enumerate(reference) for item in cluster}
    for item in items:
        if item not in place:
            raise InputError(f"--reference {args.reference}: '{item}' is in no cluster there")
    return float(adjusted_rand_score([place[item] for item in items], labels))


def choose(S: np.ndarray, old: np.ndarray, args: argparse.Namespace) -> tuple[np.ndarray, list[dict], dict]:
    """The labels (n,), the curve over the number of clusters, and the certificate."""
    n, wanted = len(S), 0 if args.num_clusters == "auto" else int(args.num_clusters)
    if not args.extend and wanted > n:
        raise InputError(f"--num_clusters {wanted}: there are only {n} items")
    tried = rounding.extend(S, old, limit=max(rounding.AUTO_LIMIT, int(old.max()) + 1, wanted))
    curve = [{"k": k, "density": sdp.density(S, labels), "within": sdp.within_sum(S, labels),
              "penalised": sdp.penalised_density(S, labels)} for k, labels in sorted(tried.items())]
    k = wanted or rounding.best_number(S, tried)
    if args.extend:
        if k not in tried:
            raise InputError(f"--num_clusters {k}: the old clusters and new items allow {min(tried)} to {max(tried)}")
        labels, relaxation = tried[k], sdp.solve_sdp(S, k)
    else:
        labels, relaxation = rounding.find_clusters(S, k, args.method, args.seed)
        if relaxation is None or labels.max() + 1 != k:  # the published threshold does not keep to k
            k = int(labels.max()) + 1
            relaxation = sdp.solve_sdp(S, k)
    value = sdp.density(S, labels)
    # a relative gap means something where the bound is positive; on matrices without structure it may not be
    gap = max(0.0, 1 - value / relaxation.bound) if relaxation.bound > 1e-6 else None
    certificate = {"density": value, "bound": relaxation.bound, "gap": gap, "iterations": relaxation.iterations}
    if not wanted:  # the relaxation without k, at the penalty of these clusters
        penalty = sdp.penalty(S, labels)
        free = sdp.solve_sdp(S, penalty=penalty)
        certificate |= {"penalty": penalty, "penalised": value - penalty * k, "penalised_bound": free.bound,
                        "trace": float(np.trace(free.X))}
    return labels, curve, certificate


def gain_within(T: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each item, its mean affinity to its own cluster less that to the others (n,); NaN where one is empty."""
    same = (labels[:, None] == labels) & ~np.isnan(T)
    other = (labels[:, None] != labels) & ~np.isnan(T)
    values = np.nan_to_num(T)
    with np.errstate(invalid="ignore"):
        return (values * same).sum(1) / same.sum(1) - (values * other).sum(1) / other.sum(1)


def methods_table(S: np.ndarray, k: int, bound: float, labels: np.ndarray, seed: int):
    from rich.table import Table
    from sklearn.metrics import adjusted_rand_score

    table = Table("method", "clusters", "density", "of the bound", "same as ours (ARI)", "seconds", title="methods")
    for method in rounding.METHODS:
        if method == "exhaustive" and len(S) > rounding.EXHAUSTIVE_LIMIT:
            continue
        start = time.perf_counter()
        found, _ = rounding.find_clusters(S, k, method, seed)
        seconds = time.perf_counter() - start
        value, number = sdp.density(S, found), int(found.max()) + 1
        table.add_row(method, str(number), f"{value:.4f}", f"{value / bound:.1%}" if bound > 0 and number == k else "-",
                      f"{adjusted_rand_score(labels, found):.2f}", f"{seconds:.2f}")
    return table


def report(scores, args: argparse.Namespace, clusters_file: Path) -> None:
    """Print and write what each item gains by its cluster over being trained alone and with all."""
    from rich.console import Console
    from rich.table import Column, Table

    clusters = read_clusters("--name", str(clusters_file), args.clusters_dir)
    frame = compare_trainings(scores, clusters)
    missing = frame[frame[["alone", "all", "cluster"]].isna().any(axis=1)]
    if len(frame) == len(missing):
        raise InputError(f"no item of {clusters_file} was trained alone, with all, and in its cluster; write the "
                         "subsets with --write_subsets FILE, then train them:\n  "
                         + sweep_command(tuple(frame["item"]), args.save_name, "FILE"))
    names = Column("item", overflow="fold")  # never cut a name
    table = Table(names, "metric", "alone", "all", "in its cluster", "gain over alone", "gain over all",
                  title=f"{args.split} scores, higher is better",
                  caption="\N{PLUS-MINUS SIGN} standard error over seeds, of a mean over items")

    def shown(value: float, se: float) -> str:
        return "-" if np.isnan(value) else f"{value:.4g}" + ("" if np.isnan(se) else f" \N{PLUS-MINUS SIGN} {se:.2g}")

    for other in ("alone", "all"):
        frame[f"gain_over_{other}"] = frame["cluster"] - frame[other]
        frame[f"gain_over_{other}_se"] = np.hypot(frame["cluster_se"], frame[f"{other}_se"])
    kinds = ["alone", "all", "cluster", "gain_over_alone", "gain_over_all"]
    for row in frame.to_dict("records"):
        table.add_row(row["item"], row["metric"], *(shown(row[kind], row[f"{kind}_se"]) for kind in kinds))
    table.add_section()
    for metric, whole in frame.drop(missing.index).groupby("metric"):  # scores of two metrics have no mean
        # the standard error of a mean over items: their spread, which holds the seeds' as well
        mean = [shown(whole[kind].mean(), whole[kind].sem()) for kind in kinds]
        table.add_row(f"mean of {len(whole)}", metric, *mean)
    Console().print(table)
    if len(missing):
        print(f"warning: not trained all three ways: {', '.join(missing['item'])}", file=sys.stderr)
    path = Path(args.results_dir) / args.save_name / "report.csv"
    frame.to_csv(path, index=False)
    print(f"written: {path}")


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    folder, name = Path(args.results_dir) / args.save_name, args.name or args.save_name
    clusters_file, source = Path(args.clusters_dir) / f"{name}.txt", results_file(folder, args.split)
    everything = read_scores(folder, args.split, args.config_hash)
    scores = oriented(everything, args.metric, partial(main_metrics, task_dir=args.task_dir))
    if args.report:
        report(scores, args, clusters_file)
        return 0
    found = affinity.build(scores, ridge=args.estimator == "ridge")
    old = old_labels(found.items, args)
    unseen = check_coverage(found, old, args)
    rng = np.random.default_rng(args.seed)
    resamples = found.resample(args.bootstrap, rng)
    wide, long = found.tables(resamples)
    wide.to_csv(folder / "affinity.csv")
    long.to_csv(folder / "affinity_long.csv", index=False)

    S = sdp.symmetric(found.T)
    labels, curve, certificate = choose(S, old, args)
    k = int(labels.max()) + 1
    p = evidence.permutation_test(found.T, args.permutations, rng)
    together = None if resamples is None else evidence.together(resamples, k)
    gains = gain_within(found.T, labels)
    clusters = [[found.items[i] for i in np.flatnonzero(labels == c)] for c in range(k)]
    metrics = sorted(set(found.metrics.values()))

    write_lines(clusters_file, clusters)
    plots.heat_map(folder / "affinity.png", found.T, sdp.standardise(found.T), list(found.items), labels,
                   ", ".join(metrics[:3]) + (", ..." if len(metrics) > 3 else ""))
    plots.number_of_clusters(folder / "num_clusters.png", curve, k)
    summary = summarise(S, labels, clusters, found, together, gains)
    alike = None if args.reference is None else likeness(found.items, labels, args)
    record = {
        "clusters": clusters, "per_cluster": summary, "certificate": certificate, "p_value": p,
        "structure_found": p <= SIGNIFICANT, "likeness": alike, "curve": curve, "missing_pairs": unseen,
        "metrics": found.metrics, "subsets": len(found.scores), "estimated_scores": int(scores["estimated"].sum()),
        "items": found.items, "affinity": np.where(np.isnan(found.T), None, found.T).tolist(),
        "together": None if together is None else together.round(4).tolist(),
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
              f"{sweep_command(found.items, target, path)}\n"
              f"  python -m src.cluster --save_name {target} --name {name} --report")
    return 0


def summarise(S, labels, clusters, found, together, gains) -> list[dict]:
    """A dict for each cluster: its share of the density, stability and gain, None where not defined."""
    out = []
    for c, members in enumerate(clusters):
        inside = labels == c
        pairs = np.outer(inside, inside) & ~np.eye(len(S), dtype=bool)
        out.append({
            "members": members, "density": float(S[np.ix_(inside, inside)].sum() / len(members)),
            "stability": float(together[pairs].mean()) if together is not None and len(members) > 1 else None,
            "gain": float(gains[inside].mean()) if np.isfinite(gains[inside]).all() else None,
        })
    return out


def show(args: argparse.Namespace, S: np.ndarray, labels: np.ndarray, record: dict) -> None:
    """Print the clusters and what they rest on."""
    from rich.console import Console
    from rich.table import Column, Table

    console = Console()
    say = partial(console.print, highlight=False, soft_wrap=True)
    say(f"{len(S)} items, {record['subsets']} subsets, metric "
        f"{', '.join(sorted(set(record['metrics'].values())))}")
    if record["estimated_scores"]:
        say(f"{record['estimated_scores']} scores are estimated, not trained")
    members = Column("members", overflow="fold")  # never cut a name
    table = Table("cluster", members, "density", "stays together", "gain of within over across")
    for c, row in enumerate(record["per_cluster"]):
        cells = ["-" if row[key] is None else format(row[key], how)
                 for key, how in (("density", ".3f"), ("stability", ".0%"), ("gain", "+.4g"))]
        table.add_row(str(c), " ".join(row["members"]), *cells)
    console.print(table)
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
    if record["together"] is None:
        say("stability and intervals not measured: no score was repeated; train with --runs 2 or more")
    else:
        together = np.array(record["together"])
        agree = np.where(labels[:, None] == labels, together, 1 - together)[~np.eye(len(S), dtype=bool)].mean()
        say(f"stability: {agree:.0%} of the pairs fall the same way in {args.bootstrap} resamples")
    if record["structure_found"]:
        say(f"structure found (p = {record['p_value']:.3g}, permutation test)")
    else:
        say(f"[bold red]no structure found[/] (p = {record['p_value']:.2g}, permutation test): shuffled "
            "scores look as clustered as these; do not rely on these clusters")
    if record["likeness"] is not None:
        say(f"likeness to {args.reference}: adjusted Rand index {record['likeness']:.2f}")
    if args.compare:
        console.print(methods_table(S, len(record["clusters"]), certificate["bound"], labels, args.seed))


if __name__ == "__main__":
    run_as_script(main)
