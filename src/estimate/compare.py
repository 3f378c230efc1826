"""`python -m src.estimate compare`: estimated beside truly trained subsets, and what each of them cost."""

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np

from src.cli import InputError, OneLineErrors, add_results_flags, check_seed, print_table
from src.cluster import affinity, evidence, plots, rounding, sdp
from src.files import read_json, write_whole
from src.metrics import LOWER_IS_BETTER
from src.names import check_name
from src.results import MEASURED
from src.scores import loss_metrics, oriented, read_scores

SUFFIX = "_estimated"  # of the name of a sweep: its estimates
MANY = 1000  # subsets to which the share of the cost is extrapolated


def relative_error(true: np.ndarray, guess: np.ndarray) -> float:
    """Sum of squared errors over the sum of squares of what is true."""
    return float(((true - guess) ** 2).sum() / (true**2).sum())


def make_parser() -> argparse.ArgumentParser:
    parser = OneLineErrors(
        prog="python -m src.estimate compare",
        description="Compare results/<save_name>_estimated/ with the true results/<save_name>/, on the subsets of both "
        "that the estimate was not calibrated on.")
    add_results_flags(parser, "save_name", "results_dir", "metric", "config_hash", "content_hash",
                      metric={"help": "metric to compare (default: each item's loss: choice_loss, or else loss)"})
    parser.add_argument("--estimated", help="name of the estimates (default: <save_name>_estimated)")
    parser.add_argument("--seed", type=int, default=0, help="of the rounding of clusters")
    return parser


def main(arguments: list[str]) -> int:
    args = make_parser().parse_args(arguments)
    for flag in ("save_name", "estimated"):
        check_name(f"--{flag}", getattr(args, flag) or args.save_name)
    check_seed(args.seed)
    folders = [Path(args.results_dir) / (args.estimated or args.save_name + SUFFIX),
               Path(args.results_dir) / args.save_name]
    found = (read_scores(folders[0], statuses=("estimated",)),
             read_scores(folders[1], config_hash=args.config_hash, statuses=MEASURED, content_hash=args.content_hash))
    guess, true = (oriented(scores, args.metric, partial(loss_metrics, found[0])) for scores in found)
    metric = ", ".join(args.metric or ["loss"])
    records = _records(folders[0])
    keys = ["trained_on", "item"]
    both = true.merge(guess[[*keys, "value"]], on=keys, suffixes=("", "_guess"))
    both = both.loc[[item in subset.split() for subset, item in zip(both["trained_on"], both["item"], strict=True)]]
    calibrated = {" ".join(sorted(subset.split())) for record in records for subset in record["calibrated_on"]}
    unseen = both[~both["trained_on"].isin(calibrated)]
    if unseen.empty:
        raise InputError(f"{folders[0]} and {folders[1]} share no subset beside those of the calibration")
    result = agreement(unseen, both, args.seed) | {
        "costs": costs(folders[1], set(both["trained_on"]), calibrated, records, args.config_hash)}
    show(metric, result, len(calibrated))
    path = folders[0] / "compare.png"
    label = "validation loss" if metric == "loss" else metric
    sign = -1 if set(unseen["metric"]) <= set(LOWER_IS_BETTER) else 1
    plots.scatter(path, sign * unseen["value"].to_numpy(), sign * unseen["value_guess"].to_numpy(), label)
    write_whole(folders[0] / "compare.json", json.dumps(result, indent=1) + "\n")
    print(f"written: {path} and compare.json")
    return 0


def _records(folder: Path) -> list[dict]:
    """What the estimate of each seed rests on and has cost."""
    found = sorted((folder / "runs").glob("estimate-s*.json"))
    if not found:
        raise InputError(f"{folder}/runs: the record of the estimate, estimate-s<seed>.json, is missing")
    return [read_json(path)["estimate"] for path in found]


# ---- how well they agree -------------------------------------------------------------------------------------------


def agreement(unseen, both, seed: int) -> dict:
    """Errors and correlations over `unseen`, clusters over `both`.

    Args:
        unseen, both: data frames with trained_on, item, metric, value, variance (of value, over seeds; NaN with one),
            value_guess.

    Returns:
        relative_error, constant (the best single number as guess), item_means (as guess each item's mean over the other
        rows of `both`, those of the calibration; None where there are none), ceiling (expected error of another mean
        over as many seeds, None with one), pearson and spearman (means over rows of the affinity matrix),
        adjusted_rand_index (of the clusters), p_values, clusters; None where not defined.
    """
    from scipy import stats
    from sklearn.metrics import adjusted_rand_score

    true, guess = unseen["value"].to_numpy(), unseen["value_guess"].to_numpy()
    spread = 2 * np.nansum(unseen["variance"]) / (true**2).sum() if unseen["variance"].notna().all() else None
    seen = both[~both["trained_on"].isin(unseen["trained_on"])]
    level = seen.groupby("item")["value"].mean()
    means = None
    if not seen.empty:
        means = relative_error(true, unseen["item"].map(level).fillna(seen["value"].mean()).to_numpy())
    T, G = (affinity.build(unseen.assign(value=unseen[column])).T for column in ("value", "value_guess"))
    pairs = {}
    for name, how in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        values = []
        for row, other in zip(T, G, strict=True):
            seen = ~np.isnan(row) & ~np.isnan(other)
            if seen.sum() > 2 and np.ptp(row[seen]) > 0 and np.ptp(other[seen]) > 0:
                values.append(float(how(row[seen], other[seen]).statistic))
        pairs[name] = float(np.mean(values)) if values else None
    found = [clusters(affinity.build(both.assign(value=both[column])), seed) for column in ("value", "value_guess")]
    alike = None
    if None not in found:
        alike = float(adjusted_rand_score(found[0]["labels"], found[1]["labels"]))
    return {"scores": len(unseen), "relative_error": relative_error(true, guess),
            "constant": relative_error(true, true.mean()), "item_means": means,
            "ceiling": None if spread is None else float(spread),
            **pairs, "adjusted_rand_index": alike, "true": found[0], "estimated": found[1]}


def clusters(found: affinity.Affinity, seed: int) -> dict | None:
    """Clusters and p-value of an affinity matrix; None where pairs are missing or there are too few items."""
    if len(found.items) < 3 or found.missing():
        return None
    hubs, p, _ = evidence.choose_hubs(found.T, None, 199, np.random.default_rng(seed))
    S = sdp.symmetric(found.T, hubs)
    k = rounding.best_number(S, rounding.extend(S, np.full(len(S), -1)))
    labels, _ = rounding.find_clusters(S, k, seed=seed)
    return {"labels": labels.tolist(), "p_value": p,
            "clusters": [[found.items[i] for i in np.flatnonzero(labels == c)] for c in range(k)]}


# ---- what they cost ------------------------------------------------------------------------------------------------


def costs(folder: Path, compared: set[str], calibrated: set[str], records: list[dict], config_hash: str | None) -> dict:
    """Seconds, CPU seconds and FLOPs of the true runs of `compared` subsets and of the estimate of as many.

    Args:
        calibrated: the true subsets that the estimate needs; their cost is a part of its own.
        records: of the estimate's seeds, all of which count.

    Returns:
        for each kind of cost: true, training, gradients, fits, calibration; share, the estimate's part of the true cost
        without calibration; share_of_many, that for 1,000 subsets with calibration (all but the fits is done once).
        What the records do not tell (older runs) is None.
    """
    kinds, count = ("seconds", "cpu_seconds", "flops"), 0
    total, calibration = dict.fromkeys(kinds, 0.0), dict.fromkeys(kinds, 0.0)
    for path in (folder / "runs").glob("*.json"):
        run = read_json(path)
        subset = " ".join(sorted(run.get("trained_on", "").split()))
        if run.get("status") != "completed" or subset not in compared or (
                config_hash is not None and run.get("config_hash") != config_hash):
            continue
        count += 1
        flops = sum(entry.get("total_flos", 0) for entry in run.get("training", {}).get("log", []))
        for kind, value in (("seconds", run["seconds"]), ("cpu_seconds", run.get("cpu_seconds")), ("flops", flops)):
            for sums in (total, calibration) if subset in calibrated else (total,):
                sums[kind] = None if value is None or sums[kind] is None else sums[kind] + value
    out = {"true_runs": count, "subsets": len(compared)}
    for kind in kinds:
        training, gradients, fits = (sum(record["costs"][part][kind] for record in records)
                                     for part in ("training", "gradients", "fits"))
        each, true = fits / records[0]["subsets"], total[kind]
        row = {"true": true if count else None, "training": training, "gradients": gradients,
               "fits": each * len(compared), "calibration": calibration[kind], "share": None, "share_of_many": None}
        if true:
            row["share"] = (training + gradients + row["fits"]) / true
            once = training + gradients + calibration[kind]
            row["share_of_many"] = (once + each * MANY) / (true / len(compared) * MANY)
        out[kind] = row
    return out


# ---- print ---------------------------------------------------------------------------------------------------------


def show(metric: str, result: dict, calibrated: int) -> None:
    def number(value: float | None, how: str) -> str:
        return "-" if value is None else format(value, how)

    errors = [number(result[name], ".1%") for name in ("relative_error", "constant", "item_means", "ceiling")]
    print_table(("", "estimate", "constant guess", "item means", "another true sweep"), [
        ("relative error", *errors), ("Pearson within rows", number(result["pearson"], ".2f"), "0", "0", ""),
        ("Spearman within rows", number(result["spearman"], ".2f"), "0", "0", "")],
        title=f"{metric}: {result['scores']} scores of subsets that were not calibrated on ({calibrated} were)")
    for name in ("true", "estimated"):
        if result[name]:
            lines = " | ".join(" ".join(cluster) for cluster in result[name]["clusters"])
            print(f"{name} clusters (p = {result[name]['p_value']:.3g}): {lines}")
    alike = result["adjusted_rand_index"]
    print("clusters not compared: pairs are missing, or there are fewer than three items" if alike is None
          else f"adjusted Rand index of the clusters: {alike:.2f}")
    spent = result["costs"]
    kinds = (("seconds", ".1f"), ("cpu_seconds", ".1f"), ("flops", ".3g"))
    parts = [("true runs", "true"), ("estimate: first training", "training"), ("gradients", "gradients"),
             ("fits", "fits"), ("true runs of the calibration", "calibration")]
    shares = [("estimate / true, without calibration", "share"),
              (f"for {MANY:,} subsets, with calibration", "share_of_many")]
    print_table(("cost", "seconds", "CPU seconds", "FLOPs"), [
        *((label, *(number(spent[kind][part], how) for kind, how in kinds)) for label, part in parts),
        *((label, *(number(spent[kind][part], ".1%") for kind, _ in kinds)) for label, part in shares)],
        title=f"{spent['subsets']} subsets, {spent['true_runs']} true runs")
    for key, what in (("constant", "the constant guess"), ("item_means", "each item's mean over the calibration")):
        if result[key] is not None and result["relative_error"] >= result[key]:
            print(f"no better than {what}: these estimates do not tell how large a score is"
                  + ("" if (result["pearson"] or 0) < 0.3 else "; they still order the partners of an item"))
    if result["ceiling"] is None:
        print("one seed a subset: how far two true sweeps lie apart is not known; train with --runs 2 or more")
