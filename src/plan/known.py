"""What is known of a name: the gains a plan is chosen by, those it is reported by, what failed, what a run was like."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from src import subsets
from src.cli import InputError, did_you_mean, warn
from src.files import read_text
from src.gains import Gains, choose_metrics, fill, read_gains, unit_of
from src.names import natural_order
from src.plan import rounds
from src.results import MEASURED
from src.scores import SCORED, read_scores
from src.tasks.catalogue import main_metrics

BOOTSTRAP = "bootstrap"  # where no scores are left to report by


@dataclass
class Known:
    """gains: to choose by, means over so many `seeds`; report: of scores that had no part in the choice, or None, and
    what these are; failed: subsets that were given up and have no scores to choose by; not_confirmed: none of the fresh
    seed; metrics: of the items.
    """

    gains: Gains
    seeds: float
    report: Gains | None
    source: str
    fresh: bool  # of a seed of its own
    failed: set[subsets.Subset]
    not_confirmed: set[subsets.Subset]
    metrics: list[str]


def read_table(args):
    """The scores by the flags of the command, each item's metric, higher is better, and what those to report are.

    A data frame as of `read_scores`, with a column part: measured and estimated ones choose, report ones only report.
    Raises InputError where there are none to choose by.
    """
    import pandas as pd

    folder, seed = Path(args.results_dir) / args.save_name, args.confirm_seed
    others = None if seed is None else lambda each: each != str(seed)
    scores = read_scores(folder, args.split, args.config_hash, content_hash=args.content_hash, keep_seed=others)
    if scores.empty:
        raise InputError(f"--confirm_seed {seed}: there are no scores of other seeds that a plan could be chosen by")
    parts = {"measured": scores[~scores["estimated"].astype(bool)]}
    if scores["estimated"].any():  # again, with those that true scores stand before: their scores alone
        parts["estimated"] = read_scores(folder, args.split, args.config_hash, ("estimated",), args.content_hash,
                                          others)
    report, source = _report_scores(folder, args)
    if report is not None:
        parts["report"] = report
    together = pd.concat([part.assign(part=name) for name, part in parts.items()])
    return choose_metrics(together, args.metric, partial(main_metrics, task_dir=args.task_dir), args.lower_is_better,
                          args.higher_is_better), source


def own_items(table) -> set[str]:
    """The items that were scored after training on themselves."""
    return {row.item for row in table.itertuples() if row.item in row.trained_on.split()}


def read(args, table, source: str) -> Known:
    """What can be planned on, of a table as of `read_table`; raise InputError where that is nothing."""
    trained = own_items(table)
    items = tuple(sorted(trained, key=natural_order))
    if not items:
        raise InputError(f"{Path(args.results_dir) / args.save_name}: no item was scored after training on itself, "
                         "which a plan needs; --target ITEM ranks the sources of transfer to it")
    table = table[table["item"].isin(trained)]
    strange = sorted({item for row in table.itertuples() if row.item in row.trained_on.split()
                      for item in row.trained_on.split()} - trained, key=natural_order)
    if strange:
        warn(f"'{strange[0]}' was trained, but not scored after it{f' ({len(strange)} such)' * (len(strange) > 1)}: "
             "the subsets that hold it are left out")
    unit = unit_of(table, args.unit, args.lower_is_better, args.higher_is_better)
    parts = {name: table[table["part"] == name] for name in ("measured", "estimated", "report")}
    gains = read_gains(parts["measured"], unit, items)
    if len(parts["estimated"]):
        gains = fill(gains, read_gains(parts["estimated"], unit, items, fallback=parts["measured"]))
    report = None if source == BOOTSTRAP else read_gains(parts["report"], unit, items)
    given_up = rounds.given_up(Path("sampled_tasks"), Path(args.results_dir) / args.save_name)
    failed = {members for members, seeds in given_up if seeds != {args.confirm_seed} and _lacks(gains, members)}
    not_confirmed = {members for members, seeds in given_up if args.confirm_seed is not None
                     and (not seeds or args.confirm_seed in seeds) and _lacks(report, members)}
    seeds = float(np.nan_to_num(parts["measured"]["runs"].astype(float).median(), nan=1.0))
    return Known(gains, max(seeds, 1.0), report, source, args.confirm_seed is not None, failed, not_confirmed,
                 sorted(set(table["metric"])))


def _lacks(gains: Gains, members: subsets.Subset) -> bool:
    """Whether a subset of these items has not all its scores."""
    return set(members) <= set(gains.items) and (
        members[0] in gains.no_alone if len(members) == 1 else not gains.is_measured(gains.mask(members)))


def _report_scores(folder: Path, args):
    """Scores that have no part in the choice, and what they are: of the fresh seed, of the test split; or None."""
    only = None if args.confirm_seed is None else lambda each: each == str(args.confirm_seed)
    for split in dict.fromkeys(("test", args.split) if only else ("test",) if args.split != "test" else ()):
        try:
            scores = read_scores(folder, split, args.config_hash, MEASURED, args.content_hash, only)
        except InputError:  # no scores of this split; what else may be wrong was found by the first reading
            continue
        if not scores.empty:
            return scores, " ".join(["test" if split == "test" else "validation",
                                     f"scores, seed {args.confirm_seed}" if only else "scores"])
    if only is None:
        return None, BOOTSTRAP
    empty = read_scores(folder, args.split, args.config_hash, SCORED, args.content_hash, lambda each: False)
    return empty, f"validation scores, seed {args.confirm_seed}"


def read_weights(path: str | None, items: tuple[str, ...]) -> np.ndarray:
    """The weights (n,) of a file with a line `item weight` for each item that does not have 1."""
    weights = dict.fromkeys(items, 1.0)
    if path is None:
        return np.array(list(weights.values()))
    for number, line in enumerate(read_text(Path(path), f"--weights {path}: cannot be read").splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        where = f"--weights {path}, line {number}"
        if len(words) != 2:
            raise InputError(f"{where}: must be an item and its weight, found '{line.strip()}'")
        if words[0] not in weights:
            raise InputError(f"{where}: unknown item '{words[0]}': {did_you_mean(words[0], items)}")
        try:
            weights[words[0]] = float(words[1])
        except ValueError:
            weights[words[0]] = np.nan
        if not 0 <= weights[words[0]] < np.inf:
            raise InputError(f"{where}: the weight of '{words[0]}' must be a number from 0 on, found '{words[1]}'")
    if not sum(weights.values()):
        raise InputError(f"--weights {path}: all weights are 0, so every plan is worth the same")
    return np.array(list(weights.values()))


def read_clusters(args, gains: Gains) -> list[np.ndarray] | None:
    """The clusters to compare with as (n,) bool, items of none each alone; None where there are none of these items."""
    path = Path(args.clusters_dir) / f"{args.save_name}.txt"
    if args.clusters:
        path = subsets.cluster_file("--clusters", args.clusters, args.clusters_dir)
    elif not path.is_file():
        return None
    clusters = subsets.read_clusters(path)
    strange = sorted({item for cluster in clusters for item in cluster} - set(gains.items), key=natural_order)
    if strange:
        warn(f"{path}: '{strange[0]}' is not in these results, so the clusters are left out")
        return None
    rest = set(gains.items) - {item for cluster in clusters for item in cluster}
    return [gains.mask(cluster) for cluster in (*clusters, *((item,) for item in rest))]


def passes(folder: Path, wanted: set[str]) -> dict[str, dict[str, float]]:
    """How often a training on each of the `wanted` subsets, as trained_on has them, went over each item's rows."""
    found: dict[str, dict[str, float]] = {}
    for path in sorted((folder / "runs").glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            trained_on = " ".join(sorted(record["trained_on"].split()))
            if trained_on not in wanted or trained_on in found or record["status"] != "completed":
                continue
            flags = record["arguments"]
            drawn = (record["training"]["steps"] * flags["per_device_train_batch_size"] * record["processes"]
                     * flags["gradient_accumulation_steps"])
            rows = {item: sum(part["rows"] for part in parts.values() if isinstance(part, dict))
                    for item, parts in record["data"]["train"].items()}
            temperature = flags.get("mixing_temperature") or 1
            power = {"equal": 0.0, "temperature": 1 / temperature}.get(flags.get("mixing"), 1.0)
            share = {item: count**power for item, count in rows.items()}
            found[trained_on] = {item: drawn * share[item] / sum(share.values()) / rows[item] for item in rows}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
            continue  # a record of older versions, or none
    return found
