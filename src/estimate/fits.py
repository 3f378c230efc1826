"""The small fits that stand in for training on a subset."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from src.estimate.features import Features
from src.subsets import Subset


def step_size(items: Sequence[Features]) -> float:
    """A step with which descent surely converges for every subset of `items`.

    The loss of a subset has curvature at most a quarter of the top eigenvalue of its mean of phi phi', which is no
    larger than the largest one among its items.
    """
    def top(phi: np.ndarray) -> float:
        gram = phi.T @ phi if phi.shape[0] > phi.shape[1] else phi @ phi.T
        return float(np.linalg.eigvalsh(gram)[-1]) / len(phi)

    return 4 / max(top(np.asarray(item.features)) for item in items)


def descend(train: Sequence[Features], weights: Sequence[float], rate: float, steps: Sequence[int]) -> np.ndarray:
    """Fit a subset: w (len(steps), d) after each of `steps` steps of gradient descent from w = 0 on

        sum over items of weight x mean over its rows of log(1 + exp(-(f + phi . w))).

    Early stopping is the only regulariser: a short training moves little, and so does the fit.
    """
    phi, f, share = _joined(train, weights)
    out, w = np.zeros((len(steps), phi.shape[1]), np.float32), np.zeros(phi.shape[1], np.float32)
    places = {step: i for i, step in enumerate(steps)}
    for step in range(1, max(steps) + 1):
        w += np.float32(rate) * (phi.T @ (share * _sigmoid(-(f + phi @ w))))
        if step in places:
            out[places[step]] = w
    return out


def predict(valid: Features, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Validation loss in nats per target token, and share of targets with p > 1/2, for each of w (m, d): (m,), (m,)."""
    margins = valid.margins + w @ valid.features.T
    loss = (np.logaddexp(0, -margins) + valid.rest).sum(1) / valid.tokens.sum()
    return loss, (margins > 0).mean(1)


def _joined(train: Sequence[Features], weights: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (n, d), margins (n,) and weight of each row (n,) of a subset's training rows."""
    share = [np.full(len(part.margins), weight / len(part.margins), np.float32)
             for part, weight in zip(train, weights, strict=True)]
    return (np.concatenate([part.features for part in train]), np.concatenate([part.margins for part in train]),
            np.concatenate(share))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return (1 + np.tanh(x / 2)) / 2


@dataclass(frozen=True)
class Fits:
    """The small fits of one seed: train and valid hold, by item, the features of each of its templates."""

    train: dict[str, list]
    valid: dict[str, list]
    mixing: str
    temperature: float

    @functools.cached_property
    def rate(self) -> float:
        return step_size([part for parts in self.train.values() for part in parts])

    def predict(self, members: Subset, steps: Sequence[int]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Loss and share of right targets of each member after training on the subset, after each of `steps` (m,)."""
        rows = {item: sum(len(part.margins) for part in self.train[item]) for item in members}
        power = {"proportional": 1.0, "equal": 0.0, "temperature": 1 / self.temperature}[self.mixing]
        share = {item: count**power for item, count in rows.items()}
        parts = [(part, share[item] / sum(share.values()) * len(part.margins) / rows[item])
                 for item in members for part in self.train[item]]
        w = descend(*zip(*parts, strict=True), self.rate, steps)
        found = {}
        for item in members:  # an item's score is the mean over its templates
            scores = [predict(part, w) for part in self.valid[item]]
            found[item] = tuple(np.mean(values, axis=0) for values in zip(*scores, strict=True))
        return found
