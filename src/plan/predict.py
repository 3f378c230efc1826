"""Predict the gains of subsets that were never trained, by a Gaussian process for each item over those that hold it.

The kernel is k(S, T) = (1 - c) (J(S, T) - 1 / (|S| |T|)) + c with the Jaccard index J. J({i}, T) = 1 / |T|, so the
second term takes from it what is known of the item alone (a Schur complement), and what remains is 0 there, as is c by
definition: what company brings, whichever it is. c and the noise are shared by all items, the scale is each item's own;
all by leave-one-out in closed form (Rasmussen & Williams, 2006, equations 5.10 to 5.12).
"""

import copy

import numpy as np

SHARES = (0.0, 0.15, 0.4, 0.7)  # c
NOISES = (0.002, 0.02, 0.1, 0.4)  # variance of the noise, in units of the item's scale
MOST_TUNED = 300  # subsets of an item that choose c and noise and give the variances; all of them give the means
CHUNK = 4096  # subsets whose kernel is in memory at once
Z90 = 1.645  # half the width of a 90 % interval, in standard deviations


def kernel(S: np.ndarray, T: np.ndarray, c: float) -> np.ndarray:
    """(a, b) of the subsets S (a, n) and T (b, n) bool; exactly 0 where one of the two is an item alone."""
    shared = S.astype(np.float32) @ T.T.astype(np.float32)  # counts: exact
    size_s, size_t = S.sum(1)[:, None].astype(float), T.sum(1).astype(float)
    value = (1 - c) * (shared / (size_s + size_t - shared) - 1 / (size_s * size_t)) + c
    return np.where((size_s > 1) & (size_t > 1), value, 0.0)


def leave_one_out(K: np.ndarray, y: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(K + noise)^-1 (m, m); the residuals y - mean without it (m,); their variances (m,) at scale 1."""
    inverse = np.linalg.inv(K + noise * np.eye(len(K)))
    diagonal = inverse.diagonal()
    return inverse, inverse @ y / diagonal, 1 / diagonal


class Process:
    """The processes of all items. Attributes for reports: c, noise; error (root mean square of the leave-one-out
    residuals), rank_correlation (mean over items), coverage (of 90 % intervals): NaN where too little was measured.
    """

    def __init__(self, members: np.ndarray, values: np.ndarray, seed: int = 0):
        """members (m, n) bool; values (m, n), NaN of what is not known. Items alone are left out."""
        together = members.sum(1) > 1
        self.subsets, known = members[together], ~np.isnan(values[together])
        self.values = np.where(known, values[together], 0.0)
        self.rows = [np.flatnonzero(column) for column in known.T]
        rng = np.random.default_rng(seed)
        self.tuned = [rows if len(rows) <= MOST_TUNED else np.sort(rng.choice(rows, MOST_TUNED, replace=False))
                      for rows in self.rows]
        self.c, self.noise = self._choose()
        self.weights = np.zeros(self.values.shape)  # (m, n): the means are k(S, subsets) @ weights
        self.scale = np.zeros(members.shape[1])  # variance of each item's gains
        self.errors = np.full(members.shape[1], np.nan)  # (n,): root mean square of the leave-one-out residuals
        self.solvers: list[np.ndarray] = []  # (K + noise)^-1 of each item's subsets
        self.inverses: list[np.ndarray] = []  # the same of the tuned subsets
        self.error, self.rank_correlation, self.coverage = self._fit()

    def _choose(self) -> tuple[float, float]:
        best, best_density = (SHARES[0], NOISES[1]), -np.inf
        for c in SHARES:
            kernels = [kernel(self.subsets[rows], self.subsets[rows], c) for rows in self.tuned]
            for noise in NOISES:
                density = 0.0
                for i, (rows, K) in enumerate(zip(self.tuned, kernels, strict=True)):
                    if len(rows) > 2:
                        _, residual, variance = leave_one_out(K, self.values[rows, i], noise)
                        scale = max((residual**2 / variance).mean(), 1e-18)
                        density -= 0.5 * (np.log(scale * variance).sum() + len(rows))
                if density > best_density and density != 0:
                    best, best_density = (c, noise), density
        return best

    def _fit(self) -> tuple[float, float, float]:
        from scipy.stats import spearmanr

        residuals, covered, ranks = [], [], []
        for i, rows in enumerate(self.rows):
            y, K = self.values[rows, i], kernel(self.subsets[rows], self.subsets[rows], self.c)
            inverse, residual, variance = leave_one_out(K, y, self.noise)
            self.weights[rows, i] = inverse @ y
            self.solvers.append(inverse)
            if len(rows):
                self.scale[i] = (residual**2 / variance).mean()
            self.inverses.append(inverse if len(self.tuned[i]) == len(rows) else np.linalg.inv(
                kernel(*[self.subsets[self.tuned[i]]] * 2, self.c) + self.noise * np.eye(MOST_TUNED)))
            if len(rows) > 2:
                residuals.append(residual)
                self.errors[i] = np.sqrt((residual**2).mean())
                covered.append(np.abs(residual) <= Z90 * np.sqrt(self.scale[i] * variance))
                if np.ptp(y) > 0 and np.ptp(y - residual) > 0:
                    ranks.append(spearmanr(y, y - residual).statistic)
        few = [i for i, rows in enumerate(self.rows) if len(rows) <= 2]
        if len(few) < len(self.rows):  # too little to know their own scale
            self.scale[few] = np.delete(self.scale, few).mean()
        if not residuals:
            return np.nan, np.nan, np.nan
        together = np.concatenate(residuals)
        return (float(np.sqrt((together**2).mean())), float(np.mean(ranks)) if ranks else np.nan,
                float(np.concatenate(covered).mean()))

    def with_values(self, members: np.ndarray, values: np.ndarray) -> "Process":
        """The process of other gains of the same subsets, of the same c, noise and scale: quick, as it is linear."""
        other = copy.copy(self)
        together = members.sum(1) > 1
        other.values = np.where(np.isnan(values[together]), 0.0, values[together])
        other.weights = np.zeros(other.values.shape)
        for i, rows in enumerate(self.rows):
            other.weights[rows, i] = self.solvers[i] @ other.values[rows, i]
        return other

    def means(self, S: np.ndarray) -> np.ndarray:
        """Gains (N, n) predicted for the subsets S (N, n) bool; NaN of an item that is no member."""
        parts = [kernel(S[at:at + CHUNK], self.subsets, self.c) @ self.weights for at in range(0, len(S), CHUNK)]
        return np.where(S, np.concatenate(parts) if parts else np.zeros(S.shape), np.nan)

    def variances(self, S: np.ndarray) -> np.ndarray:
        """Variances (N, n) of the gains themselves, without the noise of measuring them; NaN as above, 0 alone."""
        found = np.full(S.shape, np.nan)
        size = S.sum(1)
        prior = np.where(size > 1, (1 - self.c) * (1 - 1 / np.maximum(size, 1) ** 2) + self.c, 0.0)
        for at in range(0, len(S), CHUNK):
            part = S[at:at + CHUNK]
            K = kernel(part, self.subsets, self.c)
            for i, (rows, inverse) in enumerate(zip(self.tuned, self.inverses, strict=True)):
                inside = np.flatnonzero(part[:, i])
                k = K[np.ix_(inside, rows)]
                found[at + inside, i] = self.scale[i] * np.maximum(
                    prior[at + inside] - ((k @ inverse) * k).sum(1), 0)
        return found
