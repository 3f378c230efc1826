"""From the relaxation, or from nothing, to clusters: rounding, local search, other methods to compare with."""

from collections.abc import Iterator

import numpy as np

from src.cli import InputError, did_you_mean
from src.cluster.sdp import Relaxation, canonical, density, one_hot, penalised_density, solve_sdp

METHODS = ("sdp", "threshold", "spectral", "kmeans", "agglomerative")
AUTO_LIMIT = 40  # clusters that `auto` tries at most
RANDOM_STARTS, RANDOM_STARTS_LIMIT = 10, 50  # extra starts of the rounding, up to so many items


def threshold(X: np.ndarray) -> np.ndarray:
    """Rounding of (4) in sdp.py as published: the first item i not yet placed takes all unplaced j, X[i, j] >= 1/n."""
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


# ---- one call for each method ---------------------------------------------------------------------------------------


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


def best_number(S: np.ndarray, tried: dict[int, np.ndarray]) -> int:
    """The number of clusters, of those of `extend`, whose density less the penalty is largest; 1 only if it must be."""
    eligible = [k for k in tried if 2 <= k < max(len(S), 3)] or list(tried)
    return max(sorted(eligible), key=lambda k: penalised_density(S, tried[k]))
