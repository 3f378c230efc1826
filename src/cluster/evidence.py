"""Is there any structure, with hubs or without them, and how stable are the clusters?"""

from dataclasses import dataclass

import numpy as np

from src.cli import InputError
from src.cluster.rounding import AUTO_LIMIT, improve, merge, with_k
from src.cluster.sdp import canonical, penalised_density, symmetric, z_scores

FEWEST_WITHOUT_HUBS = 5  # items: of fewer, row and column effects leave nothing to be clustered


@dataclass(frozen=True)
class Evidence:
    """p: of "no structure"; above: by how many standard deviations T looks more clustered than the shuffled."""

    p: float
    above: float


def permutation_test(T: np.ndarray, permutations: int, rng: np.random.Generator, hubs: str = "keep") -> Evidence:
    """How often a shuffled matrix looks at least as clustered as T (n, n).

    Pairs of items are shuffled: the two z-scores of a pair stay together, and rows become z-scores again; hubs are kept
    in, or removed from, T and each shuffled matrix. Shuffling each row by itself would part T[i, j] from T[j, i]; they
    come from the same runs, share their luck, and make S vary more than shuffled rows do: noise is then called
    structure too often (tests/bench_clustering.py, null and sweeps). The statistic is the penalised density, at its
    best number of clusters from 2 on, of greedy mergers and improvement.
    """
    Z, n = np.where(np.isnan(T), np.nan, z_scores(T, hubs)), len(T)
    i, j = np.triu_indices(n, 1)

    def statistic(M: np.ndarray) -> float:
        S = symmetric(M, hubs)
        paths = [canonical(labels) for labels in merge(S, np.arange(n))][-AUTO_LIMIT:-1]
        best = max(paths, key=lambda labels: penalised_density(S, labels))
        return penalised_density(S, improve(S, best))

    def shuffled() -> np.ndarray:
        pairs = rng.permuted(rng.permutation(np.column_stack([Z[i, j], Z[j, i]])), axis=1)
        out = np.full_like(Z, np.nan)
        out[i, j], out[j, i] = pairs.T
        return out

    observed, others = statistic(T), np.array([statistic(shuffled()) for _ in range(permutations)])
    return Evidence(float((1 + (others >= observed).sum()) / (1 + permutations)),
                    float((observed - others.mean()) / max(others.std(), 1e-12)))


def choose_hubs(T: np.ndarray, hubs: str | None, permutations: int,
                rng: np.random.Generator) -> tuple[str, float, dict[str, Evidence]]:
    """Whether hubs are kept or removed, the p-value of "no structure", and the evidence of each way that was tried.

    hubs: None tries both from 5 items on, and takes the one with more evidence; of the 5 % that p may be wrong by, 4 go
    to hubs kept and 1 to hubs removed (Bonferroni, weighted: where hubs hide clusters, removing them shows these far
    beyond that 1 %, and where there are none, it costs clusters of two or three items). Raises InputError where hubs
    are to be removed from fewer items.
    """
    if hubs == "remove" and len(T) < FEWEST_WITHOUT_HUBS:
        raise InputError(f"--hubs remove: there are {len(T)} items, and of fewer than {FEWEST_WITHOUT_HUBS} too little "
                         "is left without row and column effects")
    shares = {hubs: 1.0} if hubs else {"keep": 0.8, "remove": 0.2} if len(T) >= FEWEST_WITHOUT_HUBS else {"keep": 1.0}
    found = {way: permutation_test(T, permutations, rng, way) for way in shares}
    best = min(found, key=lambda way: (found[way].p, -found[way].above))
    return best, min(1.0, *(found[way].p / share for way, share in shares.items())), found


def coassignment(resampled: np.ndarray, k: int, hubs: str = "keep") -> np.ndarray:
    """How often (n, n) each pair shares a cluster when the matrices resampled (number, n, n) are clustered into k."""
    count = np.zeros(resampled.shape[1:])
    for T in resampled:
        S = symmetric(T, hubs)
        labels = with_k(S, np.arange(len(S)), k)
        count += labels[:, None] == labels
    return count / len(resampled)


def agreement(coassignment: np.ndarray, labels: np.ndarray) -> float:
    """Which share of the pairs falls the same way in the resamples behind coassignment (n, n) as in labels (n,)."""
    same = np.where(labels[:, None] == labels, coassignment, 1 - coassignment)
    return float(same[~np.eye(len(labels), dtype=bool)].mean())
