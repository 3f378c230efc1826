"""Read the results of a name: the scores of each item after each subset, checked, turned so that higher is better."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from src.cli import InputError, did_you_mean, warn
from src.identity import WITHOUT_EFFECT
from src.metrics import LOWER_IS_BETTER
from src.names import SPLITS, natural_order
from src.results import MEASURED, Results

NOT_A_SCORE = ("gen_len",)  # neither higher nor lower is better
RUN_COLUMNS = ("run_id", "status", "seed", "item", "trained_on", "split", "metric", "value")
SCORED = (*MEASURED, "estimated")  # statuses of runs that have scores, those that count for more first
UNKNOWN_WHERE_EMPTY = ("config_hash", "template_hash", "content_hash", "trained_hash")  # imported, or older
UNTRAINED = "none"  # trained_on of a model that was scored as it is
MOST_NAMED = 4  # settings in one error line


# ---- read -----------------------------------------------------------------------------------------------------------


def results_file(folder: str | Path, split: str = "valid") -> Path:
    """runs.csv of the sweep in `folder`, up to date with its parts; raise InputError where it is not there."""
    path = Path(folder) / "runs.csv"
    Results(path.parent.parent, path.parent.name).merge()
    if path.exists():
        return path
    name = path.parent.name
    tables = {each: path.parent / f"{name}_{each}.csv" for each in (split, *SPLITS)}
    hint = did_you_mean(name, [place.name for place in path.parent.parent.glob("*/")])
    for each, table in tables.items():
        if table.exists():  # of users from before runs.csv
            hint = (f"{table} is there and can be imported:\n  python -m src.results import {table} "
                    f"--save_name {name}_imported --split {each}")
            break
    raise InputError(f"--save_name {name}: found no {path}; {hint}")


def provenance(source: Path, command: list[str]) -> dict:
    """What a file of findings says of its origin: the command, and the runs.csv it was found in."""
    return {"command": command, "results_sha256": file_hash(source),
            "date": datetime.now(UTC).isoformat(timespec="seconds")}


def file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_scores(folder: str | Path, split: str = "valid", config_hash: str | None = None,
                statuses: tuple[str, ...] = SCORED, content_hash: Iterable[str] = (),
                keep_seed: Callable[[str], bool] | None = None):
    """The scores of each item after each subset, as a data frame with a row per (trained_on, item, metric).

    Columns: trained_on (item names, sorted, separated by spaces), item, metric, value (mean over seeds), variance (of
    that mean; NaN with one seed), runs (seeds), estimated. Of the `statuses` that count, a score of this project's own
    training (completed) goes before an imported one, and that before an estimated one. With `keep_seed`, only runs of
    the seeds that it is true of; the frame may then be empty.

    Raises:
        InputError: there are none; they are of several settings (`config_hash` chooses), or an item's templates or rows
            were changed between trainings (`content_hash` chooses), in the whole table.
    """
    path = results_file(folder, split)
    frame = _read_csv(path, RUN_COLUMNS)
    frame = frame[frame["status"].isin(statuses)]
    splits = set(frame["split"])
    if split not in splits:
        raise InputError(f"{path}: no {statuses[0]} run has scores of split '{split}'{_other_splits(splits)}")
    frame = frame[(frame["split"] == split) & (frame["metric"] != "")]
    for name in UNKNOWN_WHERE_EMPTY:
        frame[name] = frame[name].fillna("") if name in frame else ""
    if (frame["content_hash"] == "").any() and (frame["content_hash"] != "").any():
        warn(f"{path}: {(frame['content_hash'] == '').sum()} rows do not say under which templates and on which rows "
             "they were taken; they count as alike")
    frame = _one_content(path, _one_setting(path, frame, config_hash), content_hash)
    _reject_duplicates(path, frame, ["run_id", "item", "metric", "trained_on", "seed"])
    frame = frame.drop_duplicates(["trained_on", "item", "metric", "status", "seed"], keep="last")  # a seed counts once
    if keep_seed is not None:
        frame = frame[[keep_seed(seed) for seed in frame["seed"]]]
    frame = frame.assign(value=_numbers(path, frame["value"]), trained_on=[
        " ".join(sorted(names.split())) for names in frame["trained_on"]])
    for name in ("std", "seeds"):  # of imported means; results of older versions do not have them
        frame[name] = _numbers(path, frame[name].fillna(""), allow_empty=True) if name in frame else np.nan
    scores = frame.groupby(["trained_on", "item", "metric", "status"], sort=False).agg(
        value=("value", "mean"), variance=("value", "var"), runs=("value", "size"), std=("std", "first"),
        seeds=("seeds", "first")).reset_index()
    is_mean = (scores["runs"] == 1) & (scores["seeds"] > 1)
    runs = scores["runs"].where(~is_mean, scores["seeds"]).astype(int)
    variance = scores["variance"].where(~is_mean, scores["std"] ** 2) / runs
    scores = scores.assign(variance=variance, runs=runs, estimated=scores["status"] == "estimated")
    scores = scores.sort_values("status", key=lambda status: status.map(SCORED.index), kind="stable")
    scores = scores.drop_duplicates(["trained_on", "item", "metric"]).drop(columns=["status", "std", "seeds"])
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
    """A column of text as numbers, NaN and infinity among them; raise InputError with the line of what is none."""
    import pandas as pd

    values = pd.to_numeric(column, errors="coerce")
    words = column.str.strip().str.lower().str.lstrip("+-")
    bad = values.isna() & (words != "nan") & ~(allow_empty & (words == ""))
    if bad.any():
        line = bad.index[bad][0] + 2
        raise InputError(f"{path}, line {line}: column '{column.name}' must be a number, found '{column[line - 2]}'")
    return values


def _one_setting(path: Path, frame, config_hash: str | None):
    """Only the rows of `config_hash`; without one, raise InputError where the whole table is of several settings.

    Estimates and true trainings may differ, as they may stand side by side. An empty hash (older, imported) is unknown.
    """
    hashes = sorted(set(frame["config_hash"]))
    if config_hash is not None:
        if config_hash not in hashes:
            raise InputError(f"--config_hash {config_hash}: not in {path}, {did_you_mean(config_hash, hashes)}")
        return frame[frame["config_hash"] == config_hash]
    known = frame[frame["config_hash"] != ""]
    if (known.groupby("status")["config_hash"].nunique() > 1).any():
        hashes = sorted(set(known["config_hash"]))
        words = _differences(path, known, hashes)
        listed = ("; " if words else ", ").join(
            f"{each} ({(known['config_hash'] == each).sum()} rows)" + (f": {words[each]}" if words else "")
            for each in hashes)
        raise InputError(f"{path}: subsets were trained under several settings; choose one: --config_hash {listed}")
    return frame


def _one_content(path: Path, frame, chosen: Iterable[str]):
    """Only the subsets whose items have the `chosen` content; raise InputError where an item still has several.

    An item's content are its templates and rows: after a change of these, old and new scores are of two things.
    """
    known = frame[frame["content_hash"] != ""]
    for each in chosen:
        if each not in set(known["content_hash"]):
            raise InputError(f"--content_hash {each}: not in {path}, {did_you_mean(each, set(known['content_hash']))}")
        items = set(known.loc[known["content_hash"] == each, "item"])
        other = known[known["item"].isin(items) & (known["content_hash"] != each)]
        frame = frame[~frame["run_id"].isin(other["run_id"])]
        known = known[~known["run_id"].isin(other["run_id"])]
    for item, rows in known.groupby("item"):
        if rows["content_hash"].nunique() > 1:
            what = "templates" if rows["template_hash"].nunique() > 1 else "rows"
            listed = ", ".join(f"{each} ({count} rows)" for each, count in rows["content_hash"].value_counts().items())
            raise InputError(f"{path}: the {what} of '{item}' were changed between trainings; choose what counts: "
                             f"--content_hash {listed}")
    for subset, rows in known.groupby("trained_on"):
        if rows["trained_hash"].nunique() > 1:
            raise InputError(f"{path}: '{subset}' was trained on two contents; delete the parts of one in runs/ and "
                             f"merge: {', '.join(sorted(set(rows['trained_hash'])))}")
    return frame


def _differences(path: Path, frame, hashes: list[str]) -> dict[str, str]:
    """In which settings the runs of each config_hash differ from the others; empty where a run record is missing."""
    records = {}
    try:
        for each in hashes:
            run_id = frame.loc[frame["config_hash"] == each, "run_id"].iloc[0]
            record = json.loads((path.parent / "runs" / f"{run_id}.json").read_text(encoding="utf-8"))
            records[each] = record["arguments"] | {"processes": record.get("processes")}
    except (OSError, ValueError, KeyError):
        return {}
    names = [name for name in dict.fromkeys(name for record in records.values() for name in record)
             if name not in WITHOUT_EFFECT and len({str(record.get(name)) for record in records.values()}) > 1]
    more = ", ..." if len(names) > MOST_NAMED else ""
    return {each: (", ".join(f"{name} {record.get(name)}" for name in names[:MOST_NAMED]) + more)
            or "other files of the model" for each, record in records.items()}


def _reject_duplicates(path: Path, frame, keys: list[str]) -> None:
    repeated = frame.duplicated(keys)
    if repeated.any():
        line = repeated.index[repeated][0]
        raise InputError(f"{path}, line {line + 2}: a second row for "
                         + ", ".join(f"{key} '{frame.loc[line, key]}'" for key in keys) + "; remove one of them")


def transferred(scores) -> np.ndarray:
    """(rows,) bool: which scores are of items that were not trained, but others were: transfer."""
    return np.array([row.trained_on != UNTRAINED and row.item not in row.trained_on.split()
                     for row in scores[["trained_on", "item"]].itertuples()], bool)


# ---- choose ---------------------------------------------------------------------------------------------------------


def own_metrics(scores, items: list[str], main_metrics: Callable[[list[str]], dict[str, str]]) -> dict[str, str]:
    """The metric of each item: the only one it has, or its main one; where nothing was generated, choice_accuracy, or
    else loss.

    main_metrics: gives the main metric of items; asked only of those that have several.
    """
    there = {item: set(of_item["metric"]) - set(NOT_A_SCORE) for item, of_item in scores.groupby("item")}
    own = {item: min(there[item]) for item in items if len(there[item]) == 1}
    several = [item for item in items if item not in own]
    return own | {item: next((name for name in (main, "choice_accuracy", "loss") if name in there[item]), main)
                  if "exact_match" not in there[item] else main
                  for item, main in (main_metrics(several) if several else {}).items()}


def loss_metrics(scores, items: list[str]) -> dict[str, str]:
    """Of each item the metric that is its loss: choice_loss where answer choices were scored."""
    by_choice = set(scores.loc[scores["metric"] == "choice_loss", "item"])
    return {item: "choice_loss" if item in by_choice else "loss" for item in items}


def oriented(scores, metric: Sequence[str] | None, main_metrics: Callable[[list[str]], dict[str, str]]):
    """The rows of each item's metric, with values so that higher is better.

    Args:
        scores: as `read_scores` gives them.
        metric: one of all items, or ITEM=METRIC for some; None for each item's own.
        main_metrics: as of `own_metrics`.

    Raises:
        InputError: an item or metric is unknown; an item has no score of its metric, or one that is no finite number.
    """
    metric = metric or []
    wanted = dict(word.split("=", 1) for word in metric if "=" in word)
    plain = [word for word in metric if "=" not in word]
    if len(plain) > 1 or (plain and wanted):
        raise InputError(f"--metric {' '.join(metric)}: must be one metric of all items, or ITEM=METRIC for some")
    items, found = sorted(set(scores["item"]), key=natural_order), set(scores["metric"]) - set(NOT_A_SCORE)
    for item, name in [("", name) for name in plain] + list(wanted.items()):
        words = f"--metric {item}{'=' * bool(item)}{name}: "
        if item and item not in items:
            raise InputError(f"{words}'{item}' is not in these results, {did_you_mean(item, items)}")
        if name not in found:
            raise InputError(words + ("says nothing of quality" if name in NOT_A_SCORE else
                                      f"'{name}' is not in these results, {did_you_mean(name, found)}"))
    rest = [item for item in items if item not in wanted]
    wanted |= dict.fromkeys(rest, plain[0]) if plain else own_metrics(scores, rest, main_metrics)
    scores = scores[scores["metric"] == scores["item"].map(wanted)]
    for item in items:
        if item not in set(scores["item"]):
            raise InputError(f"no {wanted[item]} of '{item}' in these results; --metric {item}=METRIC names another")
    broken = scores[~np.isfinite(scores["value"])]
    if len(broken):
        row = broken.iloc[0]
        raise InputError(f"the {row['metric']} of '{row['item']}' after training on '{row['trained_on']}' is "
                         f"{row['value']} ({len(broken)} such scores); delete those runs, or choose another --metric")
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
