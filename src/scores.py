"""Read the results of a name: the scores of each item after each subset, checked, turned so that higher is better."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from src.cli import InputError, did_you_mean
from src.identity import WITHOUT_EFFECT
from src.metrics import LOWER_IS_BETTER
from src.names import natural_order
from src.results import SPLITS

NOT_A_SCORE = ("gen_len",)  # neither higher nor lower is better
RUN_COLUMNS = ("run_id", "status", "seed", "item", "trained_on", "split", "metric", "value")
SCORED = ("completed", "estimated")  # statuses of runs that have scores
MOST_NAMED = 4  # settings in one error line


# ---- read -----------------------------------------------------------------------------------------------------------


def results_file(folder: str | Path, split: str = "valid") -> Path:
    """runs.csv of the sweep in `folder`, or else <save_name>_<split>.csv; raise InputError where there is neither."""
    folder = Path(folder)
    paths = [folder / "runs.csv", folder / f"{folder.name}_{split}.csv"]
    found = [path for path in paths if path.exists()]
    if not found:
        hint = _other_splits(each for each in SPLITS if (folder / f"{folder.name}_{each}.csv").exists())
        hint = hint or "; " + did_you_mean(folder.name, [path.name for path in folder.parent.glob("*/")])
        raise InputError(f"--save_name {folder.name}: found neither {paths[0]} nor {paths[1].name}{hint}")
    return found[0]


def read_scores(folder: str | Path, split: str = "valid", config_hash: str | None = None,
                statuses: tuple[str, ...] = SCORED, keep_seed: Callable[[str], bool] | None = None):
    """The scores of each item after each subset, as a data frame with a row per (trained_on, item, metric).

    Columns: trained_on (item names, sorted, separated by spaces), item, metric, value (mean over seeds), variance (of
    that mean; NaN with one seed), runs, estimated. Files of users from before `runs` and `config_hash` are read as
    well. Of the `statuses` that count, a true score (completed) goes before an estimated one. With `keep_seed`, only
    runs of the seeds that it is true of; the frame may then be empty.
    """
    path = results_file(folder, split)
    if path.name != "runs.csv" and keep_seed is not None:
        raise InputError(f"--confirm_seed: {path} holds means over seeds; {path.parent}/runs.csv is needed")
    scores = (_read_runs(path, split, config_hash, statuses, keep_seed) if path.name == "runs.csv"
              else _read_wide(path, config_hash))
    if scores.empty and keep_seed is None:
        raise InputError(f"{path}: no scores of split '{split}'")
    scores["trained_on"] = [" ".join(sorted(names.split())) for names in scores["trained_on"]]
    scores = scores.sort_values("estimated", kind="stable").drop_duplicates(["trained_on", "item", "metric"])
    return scores.reset_index(drop=True)


def _other_splits(splits: Iterable[str]) -> str:
    """A hint at what can be read where the wanted split has no scores: with --do_predict alone only test has."""
    return "".join(f"; there are scores of split '{split}': --split {split}" for split in sorted(splits))


def _read_csv(path: Path, columns: tuple[str, ...]):
    import pandas as pd

    try:
        frame = pd.read_csv(path, keep_default_na=False, dtype=str)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(f"{path}: not a whole CSV file: {error}") from error
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise InputError(f"{path}: column '{missing[0]}' is missing (found: {', '.join(frame.columns[:12])}); "
                         "is this a file that the training scripts wrote?")
    return frame


def _numbers(path: Path, column, allow_empty: bool = False):
    """A column of text as numbers; raise InputError with the line of one that is none."""
    import pandas as pd

    values = pd.to_numeric(column, errors="coerce")
    bad = ~np.isfinite(values) & ~(allow_empty & (column.str.strip() == ""))
    if bad.any():
        line = bad.index[bad][0] + 2
        raise InputError(f"{path}, line {line}: column '{column.name}' must be a number, found '{column[line - 2]}'")
    return values


def _one_setting(path: Path, frame, keys: list[str], config_hash: str | None):
    """Only the rows of `config_hash`; without one, raise InputError where a score was taken under several settings."""
    hashes = sorted(set(frame["config_hash"])) if "config_hash" in frame else []
    if config_hash is not None:
        if config_hash not in hashes:
            raise InputError(f"--config_hash {config_hash}: not in {path}, {did_you_mean(config_hash, hashes)}")
        return frame[frame["config_hash"] == config_hash]
    if hashes and (frame.groupby(keys)["config_hash"].nunique() > 1).any():
        words = _differences(path, frame, hashes)
        listed = ("; " if words else ", ").join(
            f"{each} ({(frame['config_hash'] == each).sum()} rows)" + (f": {words[each]}" if words else "")
            for each in hashes)
        raise InputError(f"{path}: subsets were trained under several settings; choose one: --config_hash {listed}")
    return frame


def _differences(path: Path, frame, hashes: list[str]) -> dict[str, str]:
    """In which settings the runs of each config_hash differ from the others; empty where a run record is missing."""
    records = {}
    try:
        for each in hashes:
            run_id = frame.loc[frame["config_hash"] == each, "run_id"].iloc[0]
            record = json.loads((path.parent / "runs" / f"{run_id}.json").read_text(encoding="utf-8"))
            records[each] = record["arguments"] | {"processes": record.get("processes")}
    except (OSError, ValueError, KeyError):  # also of files from before `run_id`
        return {}
    names = [name for name in dict.fromkeys(name for record in records.values() for name in record)
             if name not in WITHOUT_EFFECT and len({str(record.get(name)) for record in records.values()}) > 1]
    more = ", ..." if len(names) > MOST_NAMED else ""
    return {each: ", ".join(f"{name} {record.get(name)}" for name in names[:MOST_NAMED]) + more
            for each, record in records.items()} if names else {}


def _reject_duplicates(path: Path, frame, keys: list[str]) -> None:
    repeated = frame.duplicated(keys)
    if repeated.any():
        line = repeated.index[repeated][0]
        raise InputError(f"{path}, line {line + 2}: a second row for "
                         + ", ".join(f"{key} '{frame.loc[line, key]}'" for key in keys) + "; remove one of them")


def _read_runs(path: Path, split: str, config_hash: str | None, statuses: tuple[str, ...],
               keep_seed: Callable[[str], bool] | None):
    frame = _read_csv(path, RUN_COLUMNS)
    frame = frame[frame["status"].isin(statuses)]
    splits = set(frame["split"])
    if split not in splits:
        raise InputError(f"{path}: no {statuses[0]} run has scores of split '{split}'{_other_splits(splits)}")
    frame = frame[frame["split"] == split]
    frame = _one_setting(path, frame, ["status", "trained_on", "item", "metric"], config_hash)
    _reject_duplicates(path, frame, ["run_id", "item", "metric", "trained_on"])
    frame = frame.drop_duplicates(["trained_on", "item", "metric", "status", "seed"], keep="last")  # a seed counts once
    if keep_seed is not None:
        frame = frame[[keep_seed(seed) for seed in frame["seed"]]]
    frame = frame.assign(value=_numbers(path, frame["value"]), estimated=frame["status"] == "estimated")
    groups = frame.groupby(["trained_on", "item", "metric", "estimated"], sort=False)["value"]
    scores = groups.agg(value="mean", variance="var", runs="size").reset_index()
    return scores.assign(variance=scores["variance"] / scores["runs"])


def _read_wide(path: Path, config_hash: str | None):
    import pandas as pd

    frame = _read_csv(path, ("Task", "Trained on"))
    frame = _one_setting(path, frame, ["Task", "Trained on"], config_hash)
    _reject_duplicates(path, frame, ["Task", "Trained on"])
    parts = []
    for column in frame.columns:
        metric = column.removeprefix("eval_")
        if metric == column or metric.endswith("_std"):
            continue
        part = frame[frame[column].str.strip() != ""]
        runs = _numbers(path, part["runs"]) if "runs" in part else np.nan
        spread = _numbers(path, part[f"{column}_std"], allow_empty=True) if f"{column}_std" in part else np.nan
        parts.append(pd.DataFrame({
            "trained_on": part["Trained on"], "item": part["Task"], "metric": metric,
            "value": _numbers(path, part[column]), "variance": spread**2 / runs,
            "runs": runs, "estimated": False,
        }))
    if not parts:
        raise InputError(f"{path}: no column named eval_<metric> (found: {', '.join(frame.columns[:12])})")
    return pd.concat(parts)


# ---- choose ---------------------------------------------------------------------------------------------------------


def oriented(scores, metric: str | None, main_metrics: Callable[[list[str]], dict[str, str]]):
    """The rows of each item's metric, with values so that higher is better.

    Args:
        scores: as `read_scores` gives them.
        metric: of all items; None for the only one there is, or else each item's own.
        main_metrics: gives the own metric of items; asked only where there are several.

    Raises:
        InputError: an item has no score of its metric.
    """
    found = set(scores["metric"])
    if metric is not None and (metric in NOT_A_SCORE or metric not in found):
        raise InputError(f"--metric {metric}: " + (
            "says nothing of quality" if metric in NOT_A_SCORE else
            f"not in these results, {did_you_mean(metric, found - set(NOT_A_SCORE))}"))
    items = sorted(set(scores["item"]), key=natural_order)
    only = found - set(NOT_A_SCORE)
    if metric is None and len(only) == 1:
        metric = only.pop()
    wanted = main_metrics(items) if metric is None else dict.fromkeys(items, metric)
    scores = scores[scores["metric"] == scores["item"].map(wanted)]
    for item in items:
        if item not in set(scores["item"]):
            raise InputError(f"no {wanted[item]} of '{item}' in these results; --metric names another one for all")
    return scores.assign(value=np.where(scores["metric"].isin(LOWER_IS_BETTER), -scores["value"], scores["value"]))


def rank_subsets(scores, by: str) -> list[str]:
    """The subsets of estimated, `oriented` scores, as trained_on has them, those that matter most first.

    Args:
        by: value, the mean over the members of their score in standard deviations from the item's mean; or
            uncertainty, the mean over the members of the variance over seeds, relative to that over subsets.

    Raises:
        InputError: by uncertainty, where there is one seed.
    """
    groups = scores.groupby("item")["value"]
    if by == "value":
        worth = (scores["value"] - groups.transform("mean")) / groups.transform("std").replace(0, np.nan)
    else:
        if scores["variance"].isna().any():
            raise InputError("--rank_by uncertainty: these estimates are of one seed; estimate again with --runs 2 or "
                             "more")
        worth = scores["variance"] / groups.transform("var").replace(0, np.nan)
    means = worth.fillna(0).groupby(scores["trained_on"]).mean()
    return list(means.sort_index().sort_values(ascending=False, kind="stable").index)
