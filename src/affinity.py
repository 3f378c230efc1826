"""From results to affinities: T[i, j], how well item i does when trained together with item j.

T[i, j] is the mean, over the completed subsets that hold both i and j, of item i's validation score after training on
the subset (Li, Sharma and Zhang, 2023), turned so that higher is better. A subset's score is the mean over its seeds.
The diagonal is not defined (NaN), and neither is a pair never trained together.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from src.errors import InputError, did_you_mean
from src.metrics import LOWER_IS_BETTER
from src.names import natural_order, task_of_template
from src.results import SPLITS
from src.settings import changes_result
from src.tasks import load_task, task_names

NOT_A_SCORE = ("gen_len",)  # neither higher nor lower is better
RUN_COLUMNS = ("run_id", "status", "seed", "item", "trained_on", "split", "metric", "value")
SCORED = ("completed", "estimated")  # statuses of runs that have scores
FEW_MISSING = 0.2  # up to this share of missing pairs is a warning
MOST_NAMED = 4  # settings in one error line


# ---- read ----------------------------------------------------------------------------------------------------------


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
                statuses: tuple[str, ...] = SCORED):
    """The scores of each item after each subset, as a data frame with a row per (trained_on, item, metric).

    Columns: trained_on (item names, sorted, separated by spaces), item, metric, value (mean over seeds), variance (of
    that mean; NaN with one seed), runs, estimated. Files of users from before `runs` and `config_hash` are read as
    well. Of the `statuses` that count, a true score (completed) goes before an estimated one.
    """
    path = results_file(folder, split)
    scores = (_read_runs(path, split, config_hash, statuses) if path.name == "runs.csv"
              else _read_wide(path, config_hash))
    if scores.empty:
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
             if changes_result(name) and len({str(record.get(name)) for record in records.values()}) > 1]
    more = ", ..." if len(names) > MOST_NAMED else ""
    return {each: ", ".join(f"{name} {record.get(name)}" for name in names[:MOST_NAMED]) + more
            for each, record in records.items()} if names else {}


def _reject_duplicates(path: Path, frame, keys: list[str]) -> None:
    repeated = frame.duplicated(keys)
    if repeated.any():
        line = repeated.index[repeated][0]
        raise InputError(f"{path}, line {line + 2}: a second row for "
                         + ", ".join(f"{key} '{frame.loc[line, key]}'" for key in keys) + "; remove one of them")


def _read_runs(path: Path, split: str, config_hash: str | None, statuses: tuple[str, ...]):
    frame = _read_csv(path, RUN_COLUMNS)
    frame = frame[frame["status"].isin(statuses)]
    splits = set(frame["split"])
    if split not in splits:
        raise InputError(f"{path}: no {statuses[0]} run has scores of split '{split}'{_other_splits(splits)}")
    frame = frame[frame["split"] == split]
    frame = _one_setting(path, frame, ["status", "trained_on", "item", "metric"], config_hash)
    _reject_duplicates(path, frame, ["run_id", "item", "metric", "trained_on"])
    frame = frame.drop_duplicates(["trained_on", "item", "metric", "status", "seed"], keep="last")  # a seed counts once
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


def main_metrics(items: list[str], task_dir: str | Path) -> dict[str, str]:
    """Each item's main metric: the first one of its task."""
    tasks, known = {}, set(task_names(task_dir))
    for item in items:
        tasks[item] = item if item in known else task_of_template(item) or item
    try:
        return {item: load_task(task, task_dir).metrics[0] for item, task in tasks.items()}
    except InputError as error:
        raise InputError(f"{error}\nEach item's main metric is in its task file; --metric names one for all") from error


def oriented(scores, metric: str | None, task_dir: str | Path):
    """The rows of each item's metric (`metric`, or else its own main one), with values so that higher is better."""
    found = set(scores["metric"])
    if metric is not None and (metric in NOT_A_SCORE or metric not in found):
        raise InputError(f"--metric {metric}: " + (
            "says nothing of quality" if metric in NOT_A_SCORE else
            f"not in these results, {did_you_mean(metric, found - set(NOT_A_SCORE))}"))
    items = sorted(set(scores["item"]), key=natural_order)
    wanted = main_metrics(items, task_dir) if metric is None else dict.fromkeys(items, metric)
    scores = scores[scores["metric"] == scores["item"].map(wanted)]
    for item in items:
        if item not in set(scores["item"]):
            raise InputError(f"no {wanted[item]} of '{item}' in these results; --metric names another one for all")
    return scores.assign(value=np.where(scores["metric"].isin(LOWER_IS_BETTER), -scores["value"], scores["value"]))


# ---- the matrix ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Affinity:
    """Scores of n items after s subsets, and the affinities they give.

    scores (s, n): NaN where the item is not in the subset or has no score; higher is better. variance (s, n): of each
    score, over seeds; NaN with one seed. members (s, n): which items the subset holds.
    """

    items: tuple[str, ...]
    metrics: dict[str, str]
    scores: np.ndarray
    variance: np.ndarray
    members: np.ndarray
    ridge: bool = False

    @cached_property
    def n(self) -> np.ndarray:
        """(n, n): number of subsets behind T[i, j]; 0 on the diagonal."""
        count = (~np.isnan(self.scores)).T.astype(int) @ self.members.astype(int)
        np.fill_diagonal(count, 0)
        return count

    @cached_property
    def T(self) -> np.ndarray:
        return self.estimate(np.ones(len(self.scores)))

    def estimate(self, weights: np.ndarray) -> np.ndarray:
        """T (n, n) with a weight for each subset (s,)."""
        if self.ridge:
            return self._ridge(weights)
        seen = ~np.isnan(self.scores)
        members = self.members.astype(float)
        with np.errstate(invalid="ignore"):
            T = (np.where(seen, self.scores, 0) * weights[:, None]).T @ members / (
                (seen * weights[:, None]).T @ members)
        T[self.n == 0] = np.nan
        return T

    def _ridge(self, weights: np.ndarray) -> np.ndarray:
        """T[i, j] = the intercept and j's coefficient in a ridge regression of i's scores on who else was there.

        Unlike the mean over subsets it does not credit j with the other members of its subsets.
        """
        from sklearn.linear_model import RidgeCV

        T = np.full(self.n.shape, np.nan)
        for i in range(len(self.items)):
            rows, others = ~np.isnan(self.scores[:, i]), self.n[i] > 0
            if others.any():
                model = RidgeCV(np.logspace(-2, 3, 11))
                model.fit(self.members[rows][:, others], self.scores[rows, i], sample_weight=weights[rows])
                T[i, others] = model.intercept_ + model.coef_
        return T

    @cached_property
    def se(self) -> np.ndarray:
        """Standard error of T (n, n): over subsets where there are several, and at least that over their seeds."""
        seen, members = ~np.isnan(self.scores), self.members.astype(float)
        values = np.where(seen, self.scores - np.nanmean(self.scores, 0), 0)  # centred: the squares must not cancel
        unknown = (np.isnan(self.variance) & seen).T @ members > 0
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = values.T @ members / self.n
            over_subsets = np.maximum((values**2).T @ members / self.n - mean**2, 0) / (self.n - 1)
            over_seeds = np.where(unknown, np.nan, np.nan_to_num(self.variance).T @ members / self.n**2)
        se = np.sqrt(np.where(self.n > 1, np.fmax(over_subsets, over_seeds), over_seeds))
        se[self.n == 0] = np.nan
        return se

    def resample(self, count: int, rng: np.random.Generator) -> np.ndarray | None:
        """Bootstrap resamples (count, n, n) of T, or None where no score was ever repeated.

        The Bayesian bootstrap (Rubin, 1981) over subsets, since it loses no pair: exponential weights for the subsets.
        A mean of m then varies by (m-1)/(m+1) of its squared standard error, and is scaled up to the whole of it.
        Pairs of a single subset get normal noise of their standard error over seeds, or of their row's typical one.
        """
        if np.isnan(self.se).all():
            return None
        scale = np.sqrt((self.n + 1) / np.maximum(self.n - 1, 1))
        variance, spread = self.se**2 * self.n, np.nanstd(self.T, axis=1)  # variance: of one observation
        known = ~np.isnan(variance)
        with np.errstate(divide="ignore", invalid="ignore"):
            typical = np.sqrt(np.where(known, variance, 0).sum(1) / known.sum(1))
            share = (typical / spread)[np.isfinite(typical / spread)]
        typical = np.where(known.any(1), typical, (np.median(share) if share.size else 1) * spread)
        single = np.where(np.isnan(self.se), typical[:, None], self.se)
        out = np.empty((count, *self.T.shape))
        for b in range(count):
            change = self.estimate(rng.exponential(size=len(self.scores))) - self.T
            if not self.ridge:  # there, every coefficient rests on many subsets
                change = np.where(self.n == 1, single * rng.normal(size=self.T.shape), change * scale)
            out[b] = self.T + change
        return out

    def missing(self) -> list[tuple[int, int]]:
        """Pairs i < j of which at least one direction was never observed."""
        lacking = (self.n == 0) | (self.n.T == 0)
        return [(int(i), int(j)) for i, j in zip(*np.nonzero(np.triu(lacking, 1)), strict=True)]

    def tables(self, resamples: np.ndarray | None):
        """(wide, long) data frames: T labelled; and a row per ordered pair with mean, se, 95 % interval and count."""
        import pandas as pd

        se, low, high = self.se, np.full(self.T.shape, np.nan), np.full(self.T.shape, np.nan)
        if resamples is not None:
            low, high = np.percentile(np.nan_to_num(resamples), [2.5, 97.5], axis=0)
            se = resamples.std(0) if self.ridge else se
        i, j = np.nonzero(~np.eye(len(self.items), dtype=bool))
        unknown = self.n[i, j] == 0
        names = np.array(self.items)
        long = pd.DataFrame({
            "item": names[i], "partner": names[j], "metric": [self.metrics[name] for name in names[i]],
            "mean": self.T[i, j], "se": se[i, j], "low": np.where(unknown, np.nan, low[i, j]),
            "high": np.where(unknown, np.nan, high[i, j]), "n": self.n[i, j]})
        return pd.DataFrame(self.T, index=pd.Index(names, name="item"), columns=names), long


def build(scores, ridge: bool = False) -> Affinity:
    """Affinity of the items of `oriented` scores, in the order of `natural_order`."""
    members = {subset: set(subset.split()) for subset in scores["trained_on"]}
    items = sorted(set(scores["item"]) & set().union(*members.values()), key=natural_order)
    if len(items) < 2:
        raise InputError(f"clustering needs two items or more; these results hold {len(items)}: {', '.join(items)}")
    subsets = sorted(members)
    holds = np.array([[item in members[subset] for item in items] for subset in subsets])
    table = {}
    for column in ("value", "variance"):
        wide = scores.pivot(index="trained_on", columns="item", values=column).reindex(index=subsets, columns=items)
        table[column] = np.where(holds, wide.to_numpy(float), np.nan)
    metrics = dict(zip(scores["item"], scores["metric"], strict=True))
    return Affinity(tuple(items), {item: metrics[item] for item in items}, table["value"], table["variance"],
                    holds, ridge)


# ---- what the clusters are good for --------------------------------------------------------------------------------


def compare_trainings(scores, clusters: list[list[str]]):
    """A data frame with a row per item: its `oriented` score trained alone, with all items, and in its cluster.

    Columns item, metric, then for each of alone, all, cluster: the mean over seeds and its standard error.
    """
    import pandas as pd

    found = {(row.item, row.trained_on): row for row in scores.itertuples()}
    every = " ".join(sorted(item for cluster in clusters for item in cluster))
    rows = []
    for cluster in clusters:
        for item in cluster:
            row = {"item": item}
            for kind, subset in (("alone", item), ("all", every), ("cluster", " ".join(sorted(cluster)))):
                score = found.get((item, subset))
                row["metric"] = score.metric if score else row.get("metric")
                row[kind], row[f"{kind}_se"] = (score.value, np.sqrt(score.variance)) if score else (np.nan, np.nan)
            rows.append(row)
    return pd.DataFrame(rows)


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
