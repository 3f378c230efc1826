"""What a plan is truly worth: it was chosen for its scores, so on these it looks better than it is.

From scores that had no part in the choice (the test split, a fresh seed): the mean over items, and an interval by
Student's t. Without such: a parametric bootstrap of the whole selection, whose mean optimism is subtracted.
"""

from dataclasses import dataclass

import numpy as np

from src.plan.choose import MOST_EXACT, MOST_EXACT_OVERLAP, Plan, Worth, choose
from src.plan.predict import Z90

RESAMPLES = ((12, 200), (14, 100), (MOST_EXACT, 30), (10**9, 10))  # up to so many items


@dataclass
class Optimism:
    """Mean and standard deviation, over resamples, of what a chosen plan promises beyond what it holds."""

    mean: float
    sd: float


def interval(differences: np.ndarray, weights: np.ndarray, optimism: Optimism | None = None) -> tuple[
        float, float, float]:
    """Weighted mean of differences (n,), and the ends of its 90 % interval."""
    from scipy.stats import t

    mean = float(differences @ weights / weights.sum())
    if optimism is not None:
        mean -= optimism.mean
        return mean, mean - Z90 * optimism.sd, mean + Z90 * optimism.sd
    half = float(t.ppf(0.95, len(differences) - 1) * _standard_error(differences, weights)) if len(differences) > 1 else 0
    return mean, mean - half, mean + half


def chance(differences: np.ndarray, weights: np.ndarray, optimism: Optimism | None = None) -> float | None:
    """How likely the true weighted mean of differences (n,) is above 0; None where there are none."""
    from scipy.stats import norm, t

    if not np.any(differences):
        return None
    mean, *_ = interval(differences, weights, optimism)
    error = optimism.sd if optimism is not None else _standard_error(differences, weights)
    if error == 0:
        return float(mean > 0)
    return float(norm.cdf(mean / error) if optimism is not None else t.cdf(mean / error, len(differences) - 1))


def _standard_error(differences: np.ndarray, weights: np.ndarray) -> float:
    n, share = len(differences), weights / weights.mean()
    spread = share * (differences - differences @ weights / weights.sum())
    return float(np.sqrt((spread**2).sum() / (n * (n - 1)))) if n > 1 else 0.0


def optimism(worth: Worth, plan: Plan, budget: int | None, overlap: bool, measured_only: bool, seed: int) -> Optimism:
    """By a bootstrap of the selection: noise is drawn anew, the plan chosen anew, and its promise compared.

    The smoothed gains stand for the truth: the measured ones are spread out by their noise, and would make the choice
    look easier than it is. The noise of the item alone, which all its gains share, is drawn as well.
    """
    gains, process = worth.gains, worth.process
    n, rng = len(gains.items), np.random.default_rng(seed)
    count = next(count for most, count in RESAMPLES if n <= most)
    noise = noise_sd(worth)
    truth = _smoothed(worth)
    differences = []
    for _ in range(count):
        drawn = truth.gains.values + noise * (rng.normal(size=truth.gains.values.shape) - rng.normal(size=n)) / np.sqrt(2)
        drawn[gains.members.sum(1) == 1] = truth.gains.values[gains.members.sum(1) == 1]
        again = worth.with_values(drawn)
        exact = n <= (MOST_EXACT_OVERLAP if overlap else MOST_EXACT)
        chosen = choose(again, budget, overlap, measured_only=measured_only, seed=seed,
                        start=None if exact else plan, kicks=0)
        promised, held = (_value(each, chosen) for each in (again, truth))
        differences.append(promised - held)
    return Optimism(float(np.mean(differences)), float(np.std(differences, ddof=1)))


def noise_sd(worth: Worth) -> np.ndarray:
    """Standard deviation (n,) of one measured gain: over seeds where there are several, else by the process."""
    errors = np.where(worth.gains.errors > 0, worth.gains.errors, np.nan)
    known = ~np.isnan(errors)
    pooled = np.sqrt(np.nansum(errors**2, axis=0) / np.maximum(known.sum(0), 1))
    return np.where(known.sum(0) > 2, pooled, worth.process.noise_sd())


def _smoothed(worth: Worth) -> Worth:
    """What is worth as much as the process thinks, also where it was measured."""
    values = np.where(worth.gains.members.sum(1, keepdims=True) > 1, worth.process.means(worth.gains.members),
                      worth.gains.values)
    return worth.with_values(np.where(np.isnan(worth.gains.values), np.nan, values), refit=False)


def _value(worth: Worth, plan: Plan) -> float:
    n = np.arange(len(plan.served))
    return float(worth.of_items(plan.of_item)[n, n] @ worth.weights / worth.weights.sum())
