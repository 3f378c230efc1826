"""Is there any structure, and how stable are the clusters?"""

import numpy as np

from src.cluster.rounding import AUTO_LIMIT, improve, merge, with_k
from src.cluster.sdp import canonical, penalised_density, standardise, symmetric


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


def coassignment(resampled: np.ndarray, k: int) -> np.ndarray:
    """How often (n, n) each pair shares a cluster when the matrices resampled (number, n, n) are clustered into k."""
    count = np.zeros(resampled.shape[1:])
    for T in resampled:
        S = symmetric(T)
        labels = with_k(S, np.arange(len(S)), k)
        count += labels[:, None] == labels
    return count / len(resampled)
