"""From results to affinities: T[i, j], how well item i does when trained together with item j.

    (1)  T[i, j] = mean over the completed subsets S that hold both i and j of item i's score after training on S

This is the affinity of Li, Sharma and Zhang (2023), "Approximate Clustering for Extracting Task Relationships in
Multi-Instruction Tuning", from validation scores, turned so that higher is better; sdp.py goes on from it with (2). A
subset's score is the mean over its seeds. The diagonal is not defined (NaN), and neither is a pair never trained
together.

Transfer is the same over the subsets that hold j, but not i: how well target i does after training on source j.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from src.cli import InputError
from src.names import natural_order
from src.scores import UNTRAINED, transferred
from src.subsets import MOST_FOR_PAIRS

FEW_MISSING = 0.2  # up to this share of missing pairs is a warning


@dataclass(frozen=True)
class Affinity:
    """Scores of n items after s subsets, and the affinities they give.

    scores (s, n): NaN where the item is not in the subset (of transfer: where it is) or has no score; higher is better.
    variance (s, n): of each score, over seeds; NaN with one seed. members (s, n): which items the subset holds.
    metrics: of the items that have scores.
    """

    items: tuple[str, ...]
    metrics: dict[str, str]
    scores: np.ndarray
    variance: np.ndarray
    members: np.ndarray
    ridge: bool = False
    transfer: bool = False

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
        """T (n, n) of (1), with a weight for each subset (s,)."""
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
        mean = np.where(seen, self.scores, 0).sum(0) / np.maximum(seen.sum(0), 1)
        values = np.where(seen, self.scores - mean, 0)  # centred: the squares must not cancel
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
        variance, spread = self.se**2 * self.n, np.nanstd(np.where(self.n.any(1)[:, None], self.T, 0), axis=1)
        # variance: of one observation
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
            "item": names[i], "partner": names[j], "metric": [self.metrics.get(name, "") for name in names[i]],
            "mean": self.T[i, j], "se": se[i, j], "low": np.where(unknown, np.nan, low[i, j]),
            "high": np.where(unknown, np.nan, high[i, j]), "n": self.n[i, j]})
        return pd.DataFrame(self.T, index=pd.Index(names, name="item"), columns=names), long


    def square(self) -> "Affinity":
        """Only the items that are targets and sources."""
        both = (self.n > 0).any(0) & (self.n > 0).any(1)
        return replace(self, items=tuple(item for item, kept in zip(self.items, both, strict=True) if kept),
                       scores=self.scores[:, both], variance=self.variance[:, both], members=self.members[:, both])


def of_sizes(scores, sizes: Iterable[int] = (), least: int = 2):
    """Only the scores after subsets of these sizes; by default of the size from `least` on that was trained most often.

    What a plan or clusters had trained since, and all items together, would otherwise confirm themselves. The halves of
    an odd number of items, from which a plan starts, count as one size.
    """
    size = scores["trained_on"].str.split().str.len()
    if not sizes:
        n = len(set(" ".join(scores["trained_on"].unique()).split()))
        alike = size.where((n <= MOST_FOR_PAIRS) | (2 * size != n + 1), n // 2)
        subsets = alike[size >= least].groupby(scores["trained_on"]).first()
        sizes = size[alike.isin(subsets.mode()[:1])].unique()  # of two that are as frequent the smaller
    return scores[size.isin(list(sizes))]


def build(scores, ridge: bool = False, transfer: bool = False) -> Affinity:
    """Affinity, or transfer, of the items of `oriented` scores, in the order of `natural_order`."""
    scores = scores[(scores["trained_on"] != UNTRAINED) & (transferred(scores) == transfer)]
    members = {subset: set(subset.split()) for subset in scores["trained_on"]}
    scored, trained = set(scores["item"]), set().union(*members.values())
    items = sorted(scored | trained if transfer else scored & trained, key=natural_order)
    if len(items) < 2:
        raise InputError(f"clustering needs two items or more; these results hold {len(items)}: {', '.join(items)}")
    subsets = sorted(members)
    holds = np.array([[item in members[subset] for item in items] for subset in subsets])
    table = {}
    for column in ("value", "variance"):
        wide = scores.pivot(index="trained_on", columns="item", values=column).reindex(index=subsets, columns=items)
        table[column] = np.where(holds != transfer, wide.to_numpy(float), np.nan)
    metrics = dict(zip(scores["item"], scores["metric"], strict=True))
    return Affinity(tuple(items), {item: metrics[item] for item in items if item in metrics}, table["value"],
                    table["variance"], holds, ridge, transfer)
