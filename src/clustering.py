"""From affinities to clusters: a semidefinite relaxation, its rounding, and a certificate of what was lost.

Notation, for n items: T (n, n) is the affinity matrix, T[i, j] saying how well item i does when trained together
with item j; S (n, n) is symmetric, with diagonal 0; labels (n,) holds a cluster number 0 .. k-1 for each item.

The objective is the density of Li, Sharma and Zhang (2023), "Approximate Clustering for Extracting Task
Relationships in Multi-Instruction Tuning": f(C) = sum over clusters c of (1/|c|) sum over i, j in c of S[i, j].
With X_C = sum over c of 1_c 1_c' / |c| this is f(C) = <S, X_C>, and X_C is a projection (X = X' = X^2), entrywise
nonnegative, with X 1 = 1 and trace k: the 0-1 SDP of Peng and Wei (2007), "Approximating K-means-type Clustering
via Semidefinite Programming". Relaxing X = X^2 to 0 <= eigenvalues <= 1 leaves a convex problem, solved below.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from src.errors import InputError, did_you_mean

METHODS = ("sdp", "threshold", "spectral", "kmeans", "agglomerative", "exhaustive")
EXHAUSTIVE_LIMIT = 10  # items; there are 115,975 clusterings of 10
PENALTY = 0.85  # 0.75 .. 1 find the planted number about as often: tests/bench_clustering.py
AUTO_LIMIT = 40  # clusters that `auto` tries at most
RANDOM_STARTS, RANDOM_STARTS_LIMIT = 10, 50  # extra starts of the rounding, up to so many items


# ---- the matrix and the objective ----------------------------------------------------------------------------------


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


def symmetric(T: np.ndarray) -> np.ndarray:
    """S (n, n), what is clustered: the mean of the z-scores of T and their transpose."""
    Z = standardise(T)
    return (Z + Z.T) / 2


def one_hot(labels: np.ndarray) -> np.ndarray:
    """H (n, k) with H[i, c] = 1 where item i is in cluster c."""
    return (labels[:, None] == np.arange(labels.max() + 1)).astype(float)


def density(S: np.ndarray, labels: np.ndarray) -> float:
    """f(C): the sum over items of the mean affinity to the members of its own cluster, itself included."""
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
    """Density less the penalty for each cluster: the number of clusters with most of it is the one to take."""
    return density(S, labels) - penalty(S, labels) * len(np.unique(labels))


def canonical(labels: np.ndarray) -> np.ndarray:
    """The same clusters numbered 0, 1, ... in the order of their first members."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


# ---- the relaxation ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Relaxation:
    """Solution of the SDP. No clustering has an objective above `bound`, however far the solver got."""

    X: np.ndarray  # (n, n): positive semidefinite, rows sum to 1; entries >= 0 up to the solver's tolerance
    value: float  # the objective at X
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
    """Maximise <S, X> - penalty tr X over X = X', X >= 0, X 1 = 1, 0 <= eigenvalues <= 1, and tr X = k if k is given.

    ADMM (Boyd et al., 2011, section 5) with the splitting X = Y: X in the spectral set, Y >= 0. X 1 = 1 makes 1 an
    eigenvector of X, so X = 11'/n + W with W centred, and the projection on the spectral set is one
    eigendecomposition of the centred matrix with its eigenvalues projected to [0, 1] (and to the sum k-1).
    Eigenvalues <= 1 is implied by X >= 0 and X 1 = 1, so the optimum is that of DESIGN.md; it makes the bound tighter.

    Certificate. Let Z >= 0. For every feasible X, <Z, X> >= 0, hence with M = S + Z
        <S, X> <= <M, X> = 1'M1/n + <J M J, W> <= 1'M1/n + (sum of the k-1 largest eigenvalues of J M J beside 1),
    by Ky Fan's theorem, as W has eigenvalues in [0, 1] and trace k-1 (without k: the sum of the positive parts of
    eigenvalue - penalty, less the penalty for 11'/n). Any Z proves a bound; the dual variable of Y >= 0 the best one.
    """
    n = len(S)
    if k in (1, n):
        X = np.eye(n) if k == n else np.full((n, n), 1 / n)
        value = float((S * X).sum() - penalty * k)
        return Relaxation(X, value, value, 0)
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
    return Relaxation(X, float(((S - penalty * np.eye(n)) * X).sum()), float(M.sum() / n + top), iteration)


# ---- rounding ------------------------------------------------------------------------------------------------------


def threshold(X: np.ndarray) -> np.ndarray:
    """Rounding as published: the first item not yet placed takes all unplaced items j with X[i, j] >= 1/n."""
    labels = np.full(len(X), -1)
    for i in range(len(X)):
        if labels[i] < 0:
            labels[(labels < 0) & ((X[i] >= 1 / len(X)) | (np.arange(len(X)) == i))] = labels.max() + 1
    return labels


def pivots(X: np.ndarray, k: int) -> np.ndarray:
    """Each item joins the one of k pivot items, found by QR with column pivoting, that it shares most X with."""
    from scipy.linalg import qr

    chosen = qr(X, mode="r", pivoting=True)[1][:k]
    labels = X[:, chosen].argmax(1)
    labels[chosen] = np.arange(k)
    return labels


def merge(S: np.ndarray, labels: np.ndarray, locked: int = 0) -> Iterator[np.ndarray]:
    """Yield the clusters, then again after each merger of the pair that raises the density most, down to one.

    Clusters 0 .. locked-1 are never merged with each other. Cluster numbers may have holes.
    """
    H = one_hot(labels)
    G, sizes = H.T @ S @ H, H.sum(0)  # G[a, b]: summed affinity between clusters a and b
    alive = np.ones(len(G), bool)

    def gains(a: int) -> np.ndarray:
        """What merging a with each other cluster would add to the density."""
        within = np.diag(G)
        mean = within / sizes
        gain = (within[a] + within + 2 * G[a]) / (sizes[a] + sizes) - mean[a] - mean
        gain[~alive] = gain[a] = -np.inf
        if a < locked:
            gain[:locked] = -np.inf
        return gain

    gain = np.stack([gains(a) for a in range(len(G))])
    while True:
        yield labels
        a, b = sorted(divmod(int(gain.argmax()), len(gain)))
        if gain[a, b] == -np.inf:
            return
        G[a] += G[b]
        G[:, a] += G[:, b]
        sizes[a] += sizes[b]
        labels, alive[b] = np.where(labels == b, a, labels), False
        gain[b] = gain[:, b] = -np.inf
        gain[a] = gain[:, a] = gains(a)


def improve(S: np.ndarray, labels: np.ndarray, free: np.ndarray | None = None) -> np.ndarray:
    """Raise the density by moving one item, else by swapping two, until neither helps; no cluster is emptied.

    free (n,): which items may move (default: all). On a kernel in place of S this is k-means (Hartigan's form):
    <X, X_C> is the trace of X less the k-means cost of the rows of a square root of X.
    """
    labels, n, items = labels.copy(), len(S), np.arange(len(S))
    free = np.ones(n, bool) if free is None else free
    own = np.diag(S)
    H = one_hot(labels)
    G, sizes = S @ H, H.sum(0)  # G[i, c]: summed affinity of item i to the members of c
    tiny = 1e-9 * (1 + np.abs(S).max())
    while True:
        within = (H * G).sum(0)
        mine = G[items, labels]
        size = sizes[labels]
        with np.errstate(divide="ignore", invalid="ignore"):
            leave = (within[labels] - 2 * mine + own) / (size - 1) - within[labels] / size
        join = (within + 2 * G + own[:, None]) / (sizes + 1) - within / sizes
        gain = leave[:, None] + join
        gain[items, labels] = -np.inf
        gain[~free | (size == 1)] = -np.inf
        i, b = divmod(int(gain.argmax()), len(sizes))
        if gain[i, b] > tiny:
            moves = [(i, b)]
        else:  # i and j change places: what i's cluster gains by j for i, and j's by i for j
            half = (2 * (G[:, labels].T - mine[:, None] - S) + own + own[:, None]) / size[:, None]
            gain = half + half.T
            gain[(labels[:, None] == labels) | ~free | ~free[:, None]] = -np.inf
            i, j = divmod(int(gain.argmax()), n)
            if not gain[i, j] > tiny:
                return labels
            moves = [(i, labels[j]), (j, labels[i])]
        for i, b in moves:
            a = labels[i]
            G[:, a] -= S[:, i]
            G[:, b] += S[:, i]
            H[i, a], H[i, b] = 0, 1
            sizes[a], sizes[b], labels[i] = sizes[a] - 1, sizes[b] + 1, b


def split(S: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Take single items out of their clusters until there are k, each time the one whose leaving helps most."""
    labels = canonical(labels)
    while (count := labels.max() + 1) < k:
        same = labels[:, None] == labels
        size, links = same.sum(1), (S * same).sum(1)
        within = same @ links  # at i: the summed affinity inside i's cluster
        with np.errstate(divide="ignore", invalid="ignore"):
            gain = (within - 2 * links + np.diag(S)) / (size - 1) - within / size
        labels[np.where(size > 1, gain, -np.inf).argmax()] = count
    return labels


def with_k(S: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """The labels repaired to exactly k clusters by mergers or splits, then improved."""
    labels = split(S, labels, k)
    merged = next(each for each in merge(S, labels) if len(np.unique(each)) == k)
    return improve(S, canonical(merged))


def round_clusters(S: np.ndarray, X: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """The densest clustering into k of those reached from several starts.

    The starts: the published threshold on X; greedy mergers from single items; k-means on the eigenvectors of X
    (as `improve` on the kernel X, from pivots); for few items some at random. Each is repaired to k and improved on S.
    """
    n = len(S)
    starts = [threshold(X), np.arange(n), improve(X, pivots(X, k))]
    if n <= RANDOM_STARTS_LIMIT:
        starts += [rng.permutation(np.arange(n) % k) for _ in range(RANDOM_STARTS)]
    return max((with_k(S, start, k) for start in starts), key=lambda labels: density(S, labels))


# ---- one call for each method --------------------------------------------------------------------------------------


def clusterings(n: int, k: int) -> np.ndarray:
    """All ways to put n items into k clusters, as labels (number, n) in canonical numbering."""
    rows = np.zeros((1, 1), np.int8)
    for _ in range(n - 1):
        used = rows.max(1) + 1
        rows = np.concatenate([np.column_stack([rows[used >= c], np.full((used >= c).sum(), c, np.int8)])
                               for c in range(k)])
    return rows[rows.max(1) == k - 1]


def exhaustive(S: np.ndarray, k: int) -> np.ndarray:
    """The densest clustering into k clusters, by trying all."""
    if len(S) > EXHAUSTIVE_LIMIT:
        raise InputError(f"--method exhaustive: {len(S)} items are too many to try all clusterings; "
                         f"at most {EXHAUSTIVE_LIMIT}")
    rows = clusterings(len(S), k)
    total = np.zeros(len(rows))
    for c in range(k):
        H = (rows == c).astype(float)
        total += ((H @ S) * H).sum(1) / H.sum(1)
    return rows[total.argmax()].astype(int)


def find_clusters(S: np.ndarray, k: int, method: str = "sdp", seed: int = 0) -> tuple[np.ndarray, Relaxation | None]:
    """Cluster S (n, n) into k; return canonical labels (n,) and, for the methods that solve it, the relaxation."""
    n = len(S)
    if not 1 <= k <= n:
        raise InputError(f"--num_clusters {k}: there are {n} items, so it must be 1 to {n}")
    if method not in METHODS:
        raise InputError(f"--method: unknown method '{method}', {did_you_mean(method, METHODS)}")
    relaxation = solve_sdp(S, k) if method in ("sdp", "threshold") else None
    if method == "sdp":
        labels = round_clusters(S, relaxation.X, k, np.random.default_rng(seed))
    elif method == "threshold":
        labels = threshold(relaxation.X)
    elif method == "exhaustive":
        labels = exhaustive(S, k)
    else:
        from sklearn import cluster

        if method == "kmeans":
            labels = cluster.KMeans(k, n_init=10, random_state=seed).fit_predict(S)
        elif method == "spectral":
            model = cluster.SpectralClustering(k, affinity="precomputed", random_state=seed)
            labels = model.fit_predict(S - S.min())
        else:
            distance = (S.max() - S) * ~np.eye(n, dtype=bool)
            model = cluster.AgglomerativeClustering(k, metric="precomputed", linkage="average")
            labels = model.fit_predict(distance)
    return canonical(labels), relaxation


def extend(S: np.ndarray, labels: np.ndarray, limit: int = AUTO_LIMIT) -> dict[int, np.ndarray]:
    """Clusters by their number, grown from `labels` (n,), where -1 marks a new item.

    The others stay in their clusters, which are neither split nor merged; new items join one or open others.
    With all items new this is a clustering for each number, quicker and looser than `find_clusters`.
    """
    new, old = labels < 0, int(labels.max()) + 1
    start = labels.copy()
    start[new] = old + np.arange(new.sum())
    found = {}
    for merged in merge(S, start, locked=old):
        k = len(np.unique(merged))
        if k <= limit:
            found[k] = canonical(improve(S, canonical(merged), new))
    return found


# ---- evidence ------------------------------------------------------------------------------------------------------


def best_number(S: np.ndarray, tried: dict[int, np.ndarray]) -> int:
    """The number of clusters, of those of `extend`, whose density less the penalty is largest; 1 only if it must be."""
    eligible = [k for k in tried if 2 <= k < max(len(S), 3)] or list(tried)
    return max(sorted(eligible), key=lambda k: penalised_density(S, tried[k]))


def permutation_test(T: np.ndarray, permutations: int, rng: np.random.Generator) -> float:
    """p-value of "no structure": how often a shuffled matrix looks at least as clustered as T (n, n).

    Pairs of items are shuffled: the two z-scores of a pair stay together, and rows become z-scores again. Shuffling
    each row by itself would part T[i, j] from T[j, i]; they come from the same runs, share their luck, and make S vary
    more than shuffled rows do: noise is then called structure too often (tests/bench_clustering.py, null and sweeps).
    The statistic is the penalised density, at its best number of clusters from 2 on, of greedy mergers and improvement.
    """
    Z, n = standardise(T), len(T)
    i, j = np.triu_indices(n, 1)

    def statistic(S: np.ndarray) -> float:
        paths = [canonical(labels) for labels in merge(S, np.arange(n))][-AUTO_LIMIT:-1]
        best = max(paths, key=lambda labels: penalised_density(S, labels))
        return penalised_density(S, improve(S, best))

    def shuffled() -> np.ndarray:
        pairs = rng.permuted(rng.permutation(np.column_stack([Z[i, j], Z[j, i]])), axis=1)
        out = np.zeros_like(Z)
        out[i, j], out[j, i] = pairs.T
        return symmetric(out)

    observed = statistic(symmetric(T))
    return (1 + sum(bool(statistic(shuffled()) >= observed) for _ in range(permutations))) / (1 + permutations)


def together(resampled: np.ndarray, k: int) -> np.ndarray:
    """How often (n, n) each pair shares a cluster when the matrices resampled (number, n, n) are clustered into k."""
    count = np.zeros(resampled.shape[1:])
    for T in resampled:
        S = symmetric(T)
        labels = with_k(S, np.arange(len(S)), k)
        count += labels[:, None] == labels
    return count / len(resampled)
