"""The matrix that is clustered, the density of clusters, its semidefinite relaxation, and the bound that this proves.

Notation, for n items: T (n, n) is the affinity matrix, T[i, j] saying how well item i does when trained together
with item j; S (n, n) is symmetric, with diagonal 0; labels (n,) holds a cluster number 0 .. k-1 for each item.

The method is that of Li, Sharma and Zhang (2023), "Approximate Clustering for Extracting Task Relationships in
Multi-Instruction Tuning": a semidefinite relaxation of the average density of clusters, then rounded. The numbers of
the equations are ours, with (1) in affinity.py; (3) and (4) are the paper's objective and relaxation.

    (2)  S = (Z + Z') / 2, with Z the z-scores of the rows of T; with hubs removed, the z-scores of the rows of what
         row and column effects, Z[i, j] ~ r[i] + c[j], leave over of them
    (3)  f(C) = sum over clusters c of (1/|c|) sum over i, j in c of S[i, j] = <S, X_C>,
         X_C = sum over c of 1_c 1_c' / |c|
    (4)  maximise <S, X> over X psd, X >= 0, X 1 = 1, tr X = k (X_C is such an X)
    (5)  maximise <S, X> - penalty tr X over the same, tr X left free; k by f(C) - penalty k
    (6)  f(C) <= 1'M1/n + the k-1 largest eigenvalues of J M J beside 1, for M = S + Z and any Z >= 0

X_C of (3) is a projection (X = X' = X^2), entrywise nonnegative, with X 1 = 1 and trace k: the 0-1 SDP of Peng and Wei
(2007), "Approximating K-means-type Clustering via Semidefinite Programming". (4) relaxes X = X^2 to X psd.
"""

from dataclasses import dataclass

import numpy as np

PENALTY = 0.85  # 0.75 .. 1 find the planted number about as often: tests/bench_clustering.py


# ---- the matrix and the objective -----------------------------------------------------------------------------------


def standardise(T: np.ndarray) -> np.ndarray:
    """Turn each row of T (n, n) into z-scores over its observed off-diagonal entries.

    Missing (NaN) entries and the diagonal become 0, the mean of the row, and so does a constant row. The scale and
    offset of a row (its metric, its task's difficulty) thereby drop out. Rounded, so that of two matrices that differ
    by scale and offset alone, not even ties are decided differently by the last bits.
    """
    Z = np.array(T, float)
    np.fill_diagonal(Z, np.nan)
    seen = ~np.isnan(Z)
    count = np.maximum(seen.sum(1, keepdims=True), 1)
    Z = np.where(seen, Z - np.where(seen, Z, 0).sum(1, keepdims=True) / count, 0)
    spread = np.sqrt((Z**2).sum(1, keepdims=True) / count)
    constant = spread <= 1e-9 * np.nanmax(np.abs(T), axis=1, keepdims=True, initial=1e-300, where=~np.isnan(T))
    return np.round(np.where(constant, 0, Z / np.where(constant, 1, spread)), 9)


def without_effects(T: np.ndarray) -> np.ndarray:
    """What row and column effects leave over of the z-scores of T (n, n); NaN where T has none, and on the diagonal.

    The effects, how good an item is for everybody and everybody for it, are fitted by least squares to the observed
    entries: rows and columns in turn, until nothing changes.
    """
    seen = ~np.isnan(T) & ~np.eye(len(T), dtype=bool)
    Z = standardise(T)
    for _ in range(1000):  # a handful where few pairs are missing
        before = Z
        for axis in (1, 0):
            Z = np.where(seen, Z - Z.sum(axis, keepdims=True) / np.maximum(seen.sum(axis, keepdims=True), 1), 0)
        if np.abs(Z - before).max() < 1e-9:
            break
    return np.where(seen, Z, np.nan)


def shares_of_hubs(T: np.ndarray) -> np.ndarray:
    """Which share of the variance of the z-scores of T (n, n) is effects, by the items they are partners (n,)."""
    Z = standardise(T)
    effects = np.where(np.isnan(left := without_effects(T)), 0, Z - left)
    return (effects**2).sum(0) / max((Z**2).sum(), 1e-300)


def z_scores(T: np.ndarray, hubs: str = "keep") -> np.ndarray:
    """Z (n, n) of (2); hubs, items that are good or bad for everybody: keep or remove."""
    return standardise(T if hubs == "keep" else without_effects(T))


def symmetric(T: np.ndarray, hubs: str = "keep") -> np.ndarray:
    """S (n, n) of (2), what is clustered."""
    Z = z_scores(T, hubs)
    return (Z + Z.T) / 2


def one_hot(labels: np.ndarray) -> np.ndarray:
    """H (n, k) with H[i, c] = 1 where item i is in cluster c."""
    return (labels[:, None] == np.arange(labels.max() + 1)).astype(float)


def density(S: np.ndarray, labels: np.ndarray) -> float:
    """f(C) of (3): the sum over items of the mean affinity to the members of its own cluster, itself included."""
    same = labels[:, None] == labels
    return float(((S * same).sum(1) / same.sum(1)).sum())


def within_sum(S: np.ndarray, labels: np.ndarray) -> float:
    """The summed affinity of all pairs inside clusters, the objective of correlation clustering ("modularity")."""
    return float((S * (labels[:, None] == labels)).sum())


def penalty(S: np.ndarray, labels: np.ndarray) -> float:
    """What a cluster must add to the density to be more than noise: PENALTY sigma sqrt(n).

    The top eigenvalues of symmetric noise of standard deviation sigma grow as sigma sqrt(n), and each cluster more
    picks up about one of them. sigma is what these clusters leave unexplained: the standard deviation of S around its
    mean inside clusters and its mean across.
    """
    n = len(S)
    off, inside = ~np.eye(n, dtype=bool), (labels[:, None] == labels) & ~np.eye(n, dtype=bool)
    left = sum(((S[part] - S[part].mean()) ** 2).sum() for part in (inside, off & ~inside) if part.any())
    return PENALTY * float(np.sqrt(left / max(off.sum(), 1) * n))


def penalised_density(S: np.ndarray, labels: np.ndarray) -> float:
    """Density less the penalty for each cluster (5): the number of clusters with most of it is the one to take."""
    return density(S, labels) - penalty(S, labels) * len(np.unique(labels))


def canonical(labels: np.ndarray) -> np.ndarray:
    """The same clusters numbered 0, 1, ... in the order of their first members."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


# ---- the relaxation -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Relaxation:
    """Solution of the SDP. No clustering has an objective above `bound`, however far the solver got."""

    X: np.ndarray  # (n, n): positive semidefinite, rows sum to 1; entries >= 0 up to the solver's tolerance
    bound: float
    iterations: int


def _centre(M: np.ndarray) -> np.ndarray:
    """J M J with J = I - 11'/n."""
    return M - M.mean(0) - M.mean(1, keepdims=True) + M.mean()


def _centred_eigh(M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The n-1 eigenvalues, ascending, and eigenvectors (n, n-1) of J M J that are orthogonal to 1.

    The shift makes 1 the eigenvector of the least eigenvalue, which is dropped.
    """
    values, vectors = np.linalg.eigh(_centre(M) - (1 + len(M) * np.abs(M).max()) / len(M))
    return values[1:], vectors[:, 1:]


def _project_spectrum(values: np.ndarray, k: int | None) -> np.ndarray:
    """The nearest eigenvalues w, 0 <= w <= 1, with sum k-1 where k is given: clip(values - t, 0, 1) for some t."""
    if k is None:
        return np.clip(values, 0, 1)
    knots = np.sort(np.concatenate([values, values - 1]))  # between two of them the sum is linear in t
    sums = np.clip(values - knots[:, None], 0, 1).sum(1)
    return np.clip(values - np.interp(1 - k, -sums, knots), 0, 1)


def solve_sdp(
    S: np.ndarray, k: int | None = None, penalty: float = 0.0, tolerance: float = 1e-5, max_iterations: int = 2000
) -> Relaxation:
    """Solve (4) if k is given, else (5), both with the further condition that no eigenvalue of X is above 1.

    ADMM (Boyd et al., 2011, section 5) with the splitting X = Y: X in the spectral set, Y >= 0. X 1 = 1 makes 1 an
    eigenvector of X, so X = 11'/n + W with W centred, and the projection on the spectral set is one
    eigendecomposition of the centred matrix with its eigenvalues projected to [0, 1] (and to the sum k-1).
    Eigenvalues <= 1 is implied by X >= 0 and X 1 = 1, so the optimum stays the same; it makes the bound tighter.

    Certificate, (6). Let Z >= 0. For every feasible X, <Z, X> >= 0, hence with M = S + Z
        <S, X> <= <M, X> = 1'M1/n + <J M J, W> <= 1'M1/n + (sum of the k-1 largest eigenvalues of J M J beside 1),
    by Ky Fan's theorem, as W has eigenvalues in [0, 1] and trace k-1 (without k: the sum of the positive parts of
    eigenvalue - penalty, less the penalty for 11'/n). Any Z proves a bound; the dual variable of Y >= 0 the best one.
    """
    n = len(S)
    if k in (1, n):
        X = np.eye(n) if k == n else np.full((n, n), 1 / n)
        return Relaxation(X, float((S * X).sum() - penalty * k), 0)
    M = S - penalty * np.eye(n)  # tr X as part of the linear objective
    rho = max(np.abs(M).mean(), 1e-12) * n / (k or np.sqrt(n))  # step: entries of X are about 1 / (cluster size)
    Y, U = np.eye(n), np.zeros((n, n))
    for iteration in range(1, max_iterations + 1):
        values, vectors = _centred_eigh(Y - U + M / rho)
        weights = _project_spectrum(values, k)
        used = vectors[:, weights > 0]
        X = (used * weights[weights > 0]) @ used.T + 1 / n
        relaxed = 1.6 * X - 0.6 * Y
        previous, Y, U = Y, np.maximum(relaxed + U, 0), np.minimum(relaxed + U, 0)
        primal, dual = np.linalg.norm(X - Y), np.linalg.norm(Y - previous)
        if max(primal, dual) < tolerance * np.sqrt(n if k is None else k):
            break
        if iteration % 10 == 0 and iteration <= 500:  # balance the two residuals; fixed in the end, to converge
            factor = 2.0 if primal > 3 * dual else 0.5 if dual > 3 * primal else 1.0
            rho, U = rho * factor, U / factor
    M = M - rho * U  # Z = -rho U >= 0
    values = _centred_eigh(M)[0]
    top = values[n - k :].sum() if k else np.maximum(values, 0).sum()
    return Relaxation(X, float(M.sum() / n + top), iteration)
