"""What a plan is truly worth: it was chosen for its scores, so on these it looks better than it is.

From scores that had no part in the choice (the test split, a fresh seed): the mean over items, and an interval by
Student's t over the items' differences. Without such: a parametric bootstrap of the whole selection, whose mean
optimism is subtracted.
"""

from dataclasses import dataclass

import numpy as np

from src.plan.choose import MOST_EXACT, Plan, Worth, choose
from src.plan.predict import Z90

RESAMPLES = ((12, 200), (MOST_EXACT, 50), (50, 20), (10**9, 10))  # up to so many items


@dataclass
class Optimism:
    """Mean and standard deviation, over resamples, of what a chosen plan promises beyond what it holds."""

    mean: float
    sd: float


def interval(differences: np.ndarray, weights: np.ndarray, optimism: Optimism | None = None,
             error: float | None = None) -> tuple[float, float, float]:
    """Weighted mean of differences (n,), and the ends of its 90 % interval, NaN where they are not known.

    error: of the mean (default: by spread).
    """
    from scipy.stats import t

    mean = float(differences @ weights / weights.sum())
    if optimism is not None:
        mean -= optimism.mean
        return mean, mean - Z90 * optimism.sd, mean + Z90 * optimism.sd
    error = standard_error(differences, weights) if error is None else error
    half = float(t.ppf(0.95, _freedom(weights)) * error)
    return mean, mean - half, mean + half


def chance(differences: np.ndarray, weights: np.ndarray, optimism: Optimism | None = None,
           error: float | None = None) -> float | None:
    """How likely the true weighted mean of differences (n,) is above 0; None where there are none, or not known."""
    from scipy.stats import norm, t

    if not np.any(differences * weights):
        return None
    mean, *_ = interval(differences, weights, optimism)
    if optimism is not None:
        return float(norm.cdf(mean / max(optimism.sd, 1e-12)))
    error = standard_error(differences, weights) if error is None else error
    return None if np.isnan(error) else float(t.cdf(mean / max(error, 1e-12), _freedom(weights)))


def _freedom(weights: np.ndarray) -> int:
    """Degrees of freedom of the spread over the items that count."""
    return max(np.count_nonzero(weights) - 1, 1)


def standard_error(differences: np.ndarray, weights: np.ndarray) -> float:
    """Of the weighted mean of differences (n,), by their spread; NaN of a single one.

    Those of weight 0 say nothing of how sure a mean is that they have no part in.
    """
    differences, weights = differences[weights > 0], weights[weights > 0]
    n, share = len(differences), weights / weights.mean()
    spread = share * (differences - differences @ weights / weights.sum())
    return float(np.sqrt((spread**2).sum() / (n * (n - 1)))) if n > 1 else np.nan


def fresh_error(fresh: np.ndarray, chosen: np.ndarray, weights: np.ndarray, seeds: float) -> float:
    """Standard error of the mean of fresh gains (n,), beside the gains by which they were chosen, means over `seeds`.

    What the two differ by over items is noise alone; how items differ in what they gain has no part in it.
    """
    return standard_error(fresh - chosen, weights) / np.sqrt(1 + 1 / seeds)


def optimism(worth: Worth, plan: Plan, budget: int | None, overlap: bool, seed: int) -> Optimism | None:
    """By a bootstrap of the selection: noise is drawn anew, the plan chosen anew of what was trained or is in the plan,
    and what it promises compared with what it holds.

    The smoothed gains stand for the truth: the measured ones are spread out by their noise, and would make the choice
    look easier than it is. The noise of the item alone, which all its gains share, is drawn as well. The deviation is
    no less than that of this plan, had it been fixed: choosing among many alike makes it smaller, but whether they are
    alike is not known. None where the noise is not known.
    """
    gains, n = worth.gains, len(worth.gains.items)
    rng = np.random.default_rng(seed)
    count = next(count for most, count in RESAMPLES if n <= most)
    noise = noise_sd(worth)
    if np.isnan(noise).any():
        return None
    truth, pool = _smoothed(worth, noise), np.unique(np.concatenate([worth.measured(), plan.subsets]), axis=0)
    differences = []
    for _ in range(count):
        error = (rng.normal(size=gains.values.shape) - rng.normal(size=n)) * noise / np.sqrt(2)
        drawn = truth.gains.values + np.where(gains.members.sum(1, keepdims=True) > 1, error, 0.0)
        again = worth.with_values(drawn)
        chosen = choose(again, budget, overlap, pool=pool, seed=seed, start=plan, kicks=0)
        promised, held = (_value(each, chosen) for each in (again, truth))
        differences.append(promised - held)
    fixed = np.linalg.norm((noise * worth.weights)[plan.of_item.sum(1) > 1]) / worth.weights.sum()
    return Optimism(float(np.mean(differences)), float(max(np.std(differences, ddof=1), fixed)))


def noise_sd(worth: Worth) -> np.ndarray:
    """Standard deviation (n,) of one measured gain: over seeds where there are several.

    Else it lies between what the process takes for noise, which is too little where it fits too well, and its error,
    which holds what it cannot fit: their geometric mean. The item alone was as noisy, hence the 2.
    Where too little was measured for that, what seeds there are; NaN where there are none.
    """
    errors = np.where(worth.gains.errors > 0, worth.gains.errors, np.nan)
    known = ~np.isnan(errors)
    pooled = np.sqrt(np.nansum(errors**2, axis=0) / np.maximum(known.sum(0), 1))
    process = worth.process
    errors = np.where(np.isnan(process.errors), process.error, process.errors)
    by_seeds = (known.sum(0) > 2) | (np.isnan(errors) & known.any(0))
    return np.where(by_seeds, pooled, np.sqrt(2 * np.sqrt(process.noise * process.scale) * errors))


def _smoothed(worth: Worth, noise: np.ndarray) -> Worth:
    """What is worth as much as the process thinks, also where it was measured.

    The noise of an item alone moves all its gains at once, which the process takes for true: the items' means are
    shrunk to their common mean by as much as that noise explains of their spread.
    """
    together = worth.gains.members.sum(1) > 1
    values = np.where(together[:, None], worth.process.means(worth.gains.members), worth.gains.values)
    known = ~np.isnan(values[together])
    means = np.where(known, values[together], 0.0).sum(0) / np.maximum(known.sum(0), 1)
    explained = min(1.0, float((noise**2).mean() / 2 / max(means.var(), 1e-18)))
    values[together] -= explained * (means - means.mean())
    return worth.with_values(np.where(np.isnan(worth.gains.values), np.nan, values), refit=False)


def _value(worth: Worth, plan: Plan) -> float:
    return float(worth.of_plan(plan) @ worth.weights / worth.weights.sum())
