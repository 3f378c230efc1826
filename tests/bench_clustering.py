"""Tables of what the clustering finds and costs: `python -m tests.bench_clustering [table ...]` (default: all).

Planted matrices: T[i, j] = 1 inside a block, 0 across, plus independent normal noise; then each row gets a random
positive scale and a random offset, as items with different metrics have. Times are CPU seconds.
"""

import itertools
import sys
import time

import numpy as np
from sklearn.metrics import adjusted_rand_score

from src.cluster import affinity, evidence, rounding, sdp
from tests.exhaustive import exhaustive


def planted(sizes: list[int], noise: float, seed: int, kind: str = "independent",
            hubs: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """(T, labels). kind: `independent`, or noise that is `symmetric`, or has effects of the `partner` (column).

    hubs: standard deviation of how good or bad each item is for everybody, where a block is worth 1.
    """
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    n = len(labels)
    E = noise * rng.normal(size=(n, n))
    if kind == "symmetric":
        E = (E + E.T) / np.sqrt(2)
    T = (labels[:, None] == labels) + E + (noise / 2 * rng.normal(size=n) if kind == "partner" else 0)
    T = T + (hubs * rng.normal(size=n) if hubs else 0)
    shuffle = rng.permutation(n)  # no method may profit from the order
    T = T * np.exp(rng.normal(size=(n, 1))) + 3 * rng.normal(size=(n, 1))
    return T[np.ix_(shuffle, shuffle)], labels[shuffle]


def auto(S: np.ndarray) -> dict[str, int]:
    """Number of clusters by each rule."""
    tried = {k: labels for k, labels in rounding.extend(S, np.full(len(S), -1)).items() if 2 <= k < len(S)}
    off = ~np.eye(len(S), dtype=bool)
    fixed = 0.75 * S[off].std() * np.sqrt(len(S))
    rules = {"penalised": sdp.penalised_density, "within sum": sdp.within_sum,
             "fixed penalty": lambda S, labels: sdp.density(S, labels) - fixed * (labels.max() + 1)}
    return {name: max(tried, key=lambda k: rule(S, tried[k])) for name, rule in rules.items()}


def cpu(call, *arguments, **options) -> tuple:
    """What the call returns, and its CPU seconds."""
    start = time.process_time()
    result = call(*arguments, **options)
    return result, time.process_time() - start


def recovery(seeds: int = 50) -> None:
    print(f"\n## Recovery of 4 blocks of 5, k given: mean adjusted Rand index over {seeds} seeds, and mean gap")
    methods = rounding.METHODS
    print("noise  " + "  ".join(f"{m:>13}" for m in methods) + "   gap of sdp")
    for noise in (0.4, 0.6, 0.8, 1.0, 1.2):
        scores, gaps = {m: [] for m in methods}, []
        for seed in range(seeds):
            T, truth = planted([5] * 4, noise, seed)
            S = sdp.symmetric(T)
            for method in methods:
                labels, relaxation = rounding.find_clusters(S, 4, method)
                scores[method].append(adjusted_rand_score(truth, labels))
                if method == "sdp":
                    gaps.append(1 - sdp.density(S, labels) / relaxation.bound)
        print(f"{noise:5}  " + "  ".join(f"{np.mean(scores[m]):13.3f}" for m in methods) + f"   {np.mean(gaps):.2%}")
    many = []
    for seed in range(8 * seeds):  # here single seeds differ so much that the mean of fifty says little
        T, truth = planted([5] * 4, 1.0, seed)
        many.append(adjusted_rand_score(truth, rounding.find_clusters(sdp.symmetric(T), 4)[0]))
    print(f"sdp at noise 1.0, {len(many)} seeds: {np.mean(many):.3f} +- {np.std(many, ddof=1) / len(many) ** .5:.3f}")


def optimum(matrices: int = 100) -> None:
    print(f"\n## Density over the exhaustive optimum, {matrices} matrices of noise, n = 6 .. 10, k = 2 .. 4")
    for method in ("sdp", "threshold"):
        ratios = []
        for seed in range(matrices):
            n, k = 6 + seed % 5, 2 + seed % 3
            S = sdp.symmetric(planted([1] * n, 1.0, seed)[0])
            best = sdp.density(S, exhaustive(S, k))
            ratios.append(sdp.density(S, rounding.find_clusters(S, k, method)[0]) / best)
        print(f"{method:>10}: min {min(ratios):.4f}  mean {np.mean(ratios):.4f}  "
              f"optimal {np.mean(np.isclose(ratios, 1)):.0%}"
              + ("" if method == "sdp" else "  (its number of clusters is not always k)"))


def speed() -> None:
    print("\n## CPU seconds for one k, certificate included, and for choosing k, and for the permutation test")
    for n, k, noise in ((20, 4, 0.7), (100, 5, 2.0), (100, 10, 1.0), (100, 10, 5.0), (400, 10, 2.0), (400, 20, 5.0)):
        T, truth = planted([n // k] * k, noise, 0)
        S = sdp.symmetric(T)
        (labels, relaxation), seconds = cpu(rounding.find_clusters, S, k)
        _, choosing = cpu(auto, S)
        _, testing = cpu(evidence.permutation_test, T, 19, np.random.default_rng(0))
        print(f"n = {n:3}, k = {k:2}, noise {noise}: {seconds:.2f} s ({relaxation.iterations} iterations), gap "
              f"{1 - sdp.density(S, labels) / relaxation.bound:.2%}, ARI "
              f"{adjusted_rand_score(truth, labels):.2f}; choosing k {choosing:.2f} s; 19 permutations {testing:.1f} s")


def reference() -> None:
    import cvxpy

    print("\n## The same optimum by cvxpy with SCS (eps 1e-7), n = 20")
    for k, noise in ((4, 0.6), (4, 1.0), (3, 5.0)):
        S = sdp.symmetric(planted([20 // k] * (k - 1) + [20 - 20 // k * (k - 1)], noise, 0)[0])
        ours, seconds = cpu(sdp.solve_sdp, S, k)
        X = cvxpy.Variable((20, 20), PSD=True)
        problem = cvxpy.Problem(cvxpy.Maximize(cvxpy.trace(S @ X)), [X >= 0, cvxpy.sum(X, 1) == 1, cvxpy.trace(X) == k])
        _, theirs = cpu(problem.solve, solver="SCS", eps=1e-7, max_iters=200_000)
        print(f"k = {k}, noise {noise}: ours {(S * ours.X).sum():.5f} (bound {ours.bound:.5f}, {seconds:.2f} s), "
              f"cvxpy {problem.value:.5f} ({theirs:.2f} s)")


def number(seeds: int = 40) -> None:
    print(f"\n## Share of {seeds} seeds in which the planted number of clusters is found, by rule")
    cases = [([5, 5], 0.5), ([4, 3, 3], 0.5), ([7, 7, 6], 0.9), ([5] * 4, 0.7), ([3] * 3, 0.5), ([4] * 5, 0.7),
             ([5] * 6, 0.8), ([10] * 2, 1.0), ([8, 2], 0.5), ([10, 5, 3, 2], 0.6)]
    for sizes, noise in cases:
        line = []
        for kind in ("independent", "symmetric", "partner"):
            found = [auto(sdp.symmetric(planted(sizes, noise, seed, kind)[0])) for seed in range(seeds)]
            line.append(f"{kind} " + " ".join(f"{rule}: {np.mean([f[rule] == len(sizes) for f in found]):.2f}"
                                              for rule in found[0]))
        print(f"{sizes!s:>22} noise {noise}: " + " | ".join(line))


def null(seeds: int = 40) -> None:
    print(f"\n## Share of {seeds} seeds in which structure is found (p <= 0.05, 99 permutations)")
    cases = [([9], 1.0), ([20], 1.0), ([3] * 3, 0.3), ([3] * 3, 0.5), ([5] * 4, 0.6), ([5, 5], 0.5), ([4, 3, 3], 0.5)]
    for sizes, noise in cases:
        line = []
        for kind in ("independent", "symmetric", "partner"):
            p = [evidence.choose_hubs(planted(sizes, noise, seed, kind)[0], None, 99, np.random.default_rng(seed))[1]
                 for seed in range(seeds)]
            line.append(f"{kind} {np.mean(np.array(p) <= 0.05):.2f}")
        name = f"noise only, n = {sizes[0]}" if len(sizes) == 1 else f"{sizes}, noise {noise}"
        print(f"{name:>28}: " + ", ".join(line))


def hubs(seeds: int = 30, noise: float = 0.6) -> None:
    print(f"\n## Hubs: of {seeds} seeds, structure found (p <= 0.05, 199 permutations) and mean adjusted Rand index, k "
          "by auto: hubs kept, removed, whichever shows more structure")
    cases = [([5] * 4, sd) for sd in (0, 1, 2, 3)] + [(sizes, 0) for sizes in ([12, 4, 4], [10, 4, 3, 3], [8, 2])]
    for sizes, sd in [*cases, ([20], 0), ([20], 1), ([20], 3), ([9], 1)]:
        blocks = len(sizes) > 1
        found, alike = np.zeros(3, int), []
        for seed in range(seeds if blocks else 40):
            T, truth = planted(sizes, noise, seed, hubs=sd)
            way, p, tests = evidence.choose_hubs(T, None, 199, np.random.default_rng(seed))
            found += [tests["keep"].p <= 0.05, tests["remove"].p <= 0.05, p <= 0.05]
            if blocks:
                S = {each: sdp.symmetric(T, each) for each in tests}
                index = {each: adjusted_rand_score(truth, rounding.find_clusters(M, auto(M)["penalised"])[0])
                         for each, M in S.items()}
                alike.append([*index.values(), index[way]])
        print(f"{sizes if blocks else f'no blocks of {sizes[0]}'!s:>15}, hubs of {sd}: structure "
              + ", ".join(map(str, found)) + (", index " + ", ".join(f"{each:.2f}" for each in np.mean(alike, axis=0))
                                              if blocks else " of 40"))


def simulated(groups: int, size: int, together: int, strength: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(T, labels) of a simulated sweep, two seeds a subset, each run with luck that all of its items share.

    An item's score rises by `strength` times the share of its partners that are of its group; noise 0.3, luck 0.3.
    """
    import pandas as pd

    rng, n = np.random.default_rng(seed), groups * size
    subsets = list(itertools.combinations(range(n), together))
    if together > 2:  # about twice each pair
        subsets = [subsets[i] for i in rng.permutation(len(subsets))[: 2 * n * (n - 1) // (together * (together - 1))]]
    rows = []
    for subset in subsets:
        luck = 0.3 * rng.normal(size=2)
        for i in subset:
            kin = np.mean([i // size == j // size for j in subset if j != i])
            values = strength * kin + luck + 0.3 * rng.normal(size=2)
            rows.append((" ".join(f"t{j:02}" for j in subset), f"t{i:02}", "f1", values.mean(), values.var(ddof=1) / 2))
    scores = pd.DataFrame(rows, columns=["trained_on", "item", "metric", "value", "variance"])
    return affinity.build(scores).T, np.repeat(np.arange(groups), size)


def sweeps(seeds: int = 20) -> None:
    print(f"\n## Simulated sweeps, {seeds} seeds: structure found (p <= 0.05); exact groups, k by auto")
    for groups, size, together in ((3, 3, 2), (3, 3, 3), (4, 5, 2), (4, 5, 3)):
        for strength in (0.0, 1.0):
            found = exact = 0
            for seed in range(seeds):
                T, truth = simulated(groups, size, together, strength, seed)
                way, p, _ = evidence.choose_hubs(T, None, 99, np.random.default_rng(seed))
                S = sdp.symmetric(T, way)
                found += p <= 0.05
                exact += adjusted_rand_score(truth, rounding.find_clusters(S, auto(S)["penalised"])[0]) == 1
            print(f"{groups} groups of {size}, {together} at a time, strength {strength}: structure {found} of {seeds}"
                  + (f", groups {exact} of {seeds}" if strength else ""))


TABLES = {"recovery": recovery, "optimum": optimum, "speed": speed, "reference": reference, "number": number,
          "null": null, "hubs": hubs, "sweeps": sweeps}

if __name__ == "__main__":
    for name in sys.argv[1:] or TABLES:
        TABLES[name]()
