"""Planted, brute-forced and cvxpy-checked answers for the clustering."""

import itertools

import cvxpy
import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from src.cli import InputError
from src.cluster import evidence, rounding, sdp
from tests.bench_clustering import planted
from tests.exhaustive import clusterings, exhaustive


def random_symmetric(n: int, seed: int) -> np.ndarray:
    A = np.random.default_rng(seed).normal(size=(n, n))
    S = (A + A.T) / 2
    np.fill_diagonal(S, 0)
    return S


# ---- the matrix and the objective


def test_standardise_by_hand():
    nan = np.nan
    Z = sdp.standardise([[9, 1, 3, nan], [5, 5, 5, 5], [nan, 2, 2, 8], [1, 2, 3, 0]])
    assert Z[0].tolist() == [0, -1, 1, 0]
    assert Z[1].tolist() == [0, 0, 0, 0]  # constant
    assert Z[2] == pytest.approx([0, -1, 0, 1])
    assert Z[3] == pytest.approx([-np.sqrt(1.5), 0, np.sqrt(1.5), 0], abs=1e-8)


def test_a_row_without_any_entry_is_zero():
    Z = sdp.standardise([[np.nan, np.nan, np.nan], [1, np.nan, 2], [1, 2, np.nan]])
    assert Z[0].tolist() == [0, 0, 0] and Z[1].tolist() == [-1, 0, 1]


def test_density_is_the_inner_product_with_the_projection():
    S, labels = random_symmetric(7, 0), np.array([0, 1, 0, 2, 1, 0, 2])
    H = sdp.one_hot(labels)
    X = H @ np.diag(1 / H.sum(0)) @ H.T
    assert np.allclose(X @ X, X) and np.trace(X) == pytest.approx(3)
    assert sdp.density(S, labels) == pytest.approx((S * X).sum())
    by_hand = 2 * S[3, 6] / 2 + 2 * S[1, 4] / 2 + 2 * (S[0, 2] + S[0, 5] + S[2, 5]) / 3
    assert sdp.density(S, labels) == pytest.approx(by_hand)


def test_scaled_and_shifted_rows_give_exactly_the_same_clusters():
    rng = np.random.default_rng(1)
    for seed in range(5):
        T, _ = planted([4, 4, 4], 1.0, seed)
        other = T * np.exp(3 * rng.normal(size=(12, 1))) + 100 * rng.normal(size=(12, 1))
        assert np.array_equal(sdp.symmetric(T), sdp.symmetric(other))
        first, second = (rounding.find_clusters(sdp.symmetric(M), 3)[0] for M in (T, other))
        assert np.array_equal(first, second)
    # and the scale does matter without the z-scores, or this test would show nothing
    assert not np.allclose(T - T.mean(1, keepdims=True), other - other.mean(1, keepdims=True))


# ---- the relaxation


@pytest.mark.parametrize(("k", "noise"), [(4, 0.6), (4, 1.0), (3, 5.0)])
def test_relaxation_equals_cvxpy(k, noise):
    S = sdp.symmetric(planted([5] * 4, noise, 0)[0])
    X = cvxpy.Variable(S.shape, PSD=True)
    problem = cvxpy.Problem(cvxpy.Maximize(cvxpy.trace(S @ X)), [X >= 0, cvxpy.sum(X, 1) == 1, cvxpy.trace(X) == k])
    problem.solve(solver="SCS", eps=1e-7, max_iters=100_000)
    ours = sdp.solve_sdp(S, k)
    assert (S * ours.X).sum() == pytest.approx(problem.value, rel=1e-4)
    assert problem.value - 1e-5 <= ours.bound <= problem.value * (1 + 2e-4)


def test_penalised_relaxation_equals_cvxpy():
    S, penalty = sdp.symmetric(planted([5] * 4, 0.9, 3)[0]), 2.5
    X = cvxpy.Variable(S.shape, PSD=True)
    objective = cvxpy.Maximize(cvxpy.trace(S @ X) - penalty * cvxpy.trace(X))
    problem = cvxpy.Problem(objective, [X >= 0, cvxpy.sum(X, 1) == 1])
    problem.solve(solver="SCS", eps=1e-7, max_iters=100_000)
    ours = sdp.solve_sdp(S, penalty=penalty)
    assert ((S - penalty * np.eye(20)) * ours.X).sum() == pytest.approx(problem.value, abs=1e-3)
    assert problem.value - 1e-5 <= ours.bound <= problem.value + 5e-3
    assert np.trace(ours.X) == pytest.approx(np.trace(X.value), abs=1e-2)


def test_solution_is_feasible():
    X = sdp.solve_sdp(random_symmetric(30, 5), 4).X
    assert np.allclose(X, X.T) and np.allclose(X.sum(1), 1) and np.trace(X) == pytest.approx(4)
    assert np.linalg.eigvalsh(X).min() > -1e-9 and X.min() > -1e-4


@pytest.mark.parametrize("iterations", [1, 3, 2000])
def test_no_clustering_is_above_the_bound_however_early_the_solver_stops(iterations):
    for seed, k in itertools.product(range(8), (2, 3, 5)):
        S = random_symmetric(8, seed)
        best = sdp.density(S, exhaustive(S, k))
        assert best <= sdp.solve_sdp(S, k, max_iterations=iterations).bound + 1e-9
        free = sdp.solve_sdp(S, penalty=0.7, max_iterations=iterations).bound
        assert best - 0.7 * k <= free + 1e-9


def test_one_cluster_and_all_single():
    S = random_symmetric(6, 2)
    assert sdp.solve_sdp(S, 1).bound == pytest.approx(S.sum() / 6)
    assert sdp.solve_sdp(S, 6).bound == pytest.approx(0)
    assert rounding.find_clusters(S, 1)[0].tolist() == [0] * 6
    assert rounding.find_clusters(S, 6)[0].tolist() == list(range(6))


def test_projection_of_the_spectrum():
    rng = np.random.default_rng(0)
    for k in (1, 2, 4, 8, 10):
        v = rng.normal(size=9) * 2
        w = sdp._project_spectrum(v, k)
        assert w.sum() == pytest.approx(k - 1) and w.min() >= 0 and w.max() <= 1
        for _ in range(50):  # no feasible point is nearer
            other = rng.dirichlet(np.ones(9)) * (k - 1)
            if other.max() <= 1:
                assert ((v - w) ** 2).sum() <= ((v - other) ** 2).sum() + 1e-12


def test_two_items():
    for k in (1, 2):
        assert rounding.find_clusters(np.array([[0, 1.0], [1, 0]]), k)[0].max() == k - 1


def test_a_matrix_of_zeros():
    labels, relaxation = rounding.find_clusters(np.zeros((6, 6)), 3)
    assert labels.max() == 2 and relaxation.bound == pytest.approx(0, abs=1e-9)


# ---- rounding


def test_improve_reaches_a_local_optimum_and_never_empties_a_cluster():
    for seed in range(10):
        S = random_symmetric(9, seed) + (seed % 2) * np.diag(np.arange(9.0))  # with and without a diagonal
        start = np.random.default_rng(seed).permutation(np.arange(9) % 3)
        labels = rounding.improve(S, start)
        best = sdp.density(S, labels)
        assert best >= sdp.density(S, start) and set(labels) == {0, 1, 2}
        for i, b in itertools.product(range(9), range(3)):
            if (labels == labels[i]).sum() > 1:
                assert sdp.density(S, np.where(np.arange(9) == i, b, labels)) <= best + 1e-7
        for i, j in itertools.combinations(range(9), 2):
            swapped = labels.copy()
            swapped[[i, j]] = labels[[j, i]]
            assert sdp.density(S, swapped) <= best + 1e-7


def test_merge_takes_the_best_pair_each_time():
    S = random_symmetric(8, 4)
    path = list(rounding.merge(S, np.arange(8)))
    assert [len(np.unique(labels)) for labels in path] == list(range(8, 0, -1))
    for before, after in itertools.pairwise(path):
        names = np.unique(before)
        best = max(sdp.density(S, np.where(before == b, a, before))
                   for a, b in itertools.combinations(names, 2))
        assert sdp.density(S, after) == pytest.approx(best)


def test_split_takes_out_the_best_item():
    S, labels = random_symmetric(7, 6), np.array([0, 0, 0, 0, 1, 1, 1])
    best = max(sdp.density(S, np.where(np.arange(7) == i, 2, labels)) for i in range(7))
    assert sdp.density(S, rounding.split(S, labels, 3)) == pytest.approx(best)


def test_rounding_by_threshold_as_published():
    X = np.array([[0.5, 0.4, 0.1, 0], [0.4, 0.3, 0, 0.3], [0.1, 0, 0.6, 0.3], [0, 0.3, 0.3, 0.4]])
    assert rounding.threshold(X).tolist() == [0, 0, 1, 1]


def test_clusterings_are_all_and_distinct():
    for n, k, number in ((4, 2, 7), (5, 3, 25), (7, 4, 350)):  # Stirling numbers of the second kind
        rows = clusterings(n, k)
        assert len(rows) == len({tuple(row) for row in rows}) == number
        assert all(np.array_equal(sdp.canonical(row), row) for row in rows)


def test_at_least_99_percent_of_the_exhaustive_optimum():
    for seed in range(100):
        n, k = 6 + seed % 5, 2 + seed % 3
        S = random_symmetric(n, seed)
        ours = sdp.density(S, rounding.find_clusters(S, k)[0])
        assert ours >= 0.99 * sdp.density(S, exhaustive(S, k))


def test_planted_blocks_are_found():
    scores = []
    for seed in range(12):
        T, truth = planted([5] * 4, 0.6, seed)
        scores.append(adjusted_rand_score(truth, rounding.find_clusters(sdp.symmetric(T), 4)[0]))
    assert np.mean(scores) >= 0.98


@pytest.mark.parametrize("method", rounding.METHODS)
def test_every_method_finds_clear_blocks(method):
    T, truth = planted([3, 3, 3], 0.2, 0)
    labels, _ = rounding.find_clusters(sdp.symmetric(T), 3, method)
    assert adjusted_rand_score(truth, labels) == 1
    assert np.array_equal(labels, sdp.canonical(labels))


def test_bad_arguments():
    S = random_symmetric(11, 0)
    with pytest.raises(InputError, match="12: there are 11 items"):
        rounding.find_clusters(S, 12)
    with pytest.raises(InputError, match="did you mean 'spectral'"):
        rounding.find_clusters(S, 2, "spectra")


# ---- the number of clusters, growth, evidence


@pytest.mark.parametrize(("sizes", "noise"), [([5, 5], 0.5), ([4, 3, 3], 0.5), ([7, 7, 6], 0.9), ([5] * 4, 0.7)])
def test_the_planted_number_is_found(sizes, noise):
    hits = 0
    for seed in range(10):
        S = sdp.symmetric(planted(sizes, noise, seed)[0])
        tried = rounding.extend(S, np.full(len(S), -1))
        hits += max(range(2, len(S)), key=lambda k: sdp.penalised_density(S, tried[k])) == len(sizes)
    assert hits >= 8


def test_extend_keeps_the_old_together_and_places_the_new():
    T, truth = planted([4, 4, 4], 0.2, 0)
    S = sdp.symmetric(T)
    old = np.where(truth == 2, -1, truth)  # the third block is all new, and so is one item of the first
    old[np.flatnonzero(truth == 0)[0]] = -1
    tried = rounding.extend(S, old)
    assert min(tried) == 2 and max(tried) == 2 + 5
    assert adjusted_rand_score(truth, tried[3]) == 1
    wrong = np.where(truth == 1, 0, old)  # old clusters stay as they are, even where that is not the densest
    wrong[np.flatnonzero(truth == 0)[1]] = 1
    for labels in rounding.extend(S, wrong).values():
        for c in (0, 1):
            assert len(set(labels[wrong == c])) == 1
        assert set(labels[wrong == 0]) != set(labels[wrong == 1])


def test_noise_has_no_structure_and_planted_blocks_have():
    p = {sizes: [evidence.choose_hubs(planted(list(sizes), 0.5, seed)[0], "keep", 19, np.random.default_rng(seed))[1]
                 for seed in range(10)] for sizes in ((10,), (3, 3, 3), (5, 5))}
    assert sum(value > 0.05 for value in p[10,]) >= 8
    assert max(p[5, 5]) <= 0.05 and sorted(p[3, 3, 3])[-2] <= 0.05


def test_effects_of_rows_and_columns_are_those_of_least_squares():
    rng, n = np.random.default_rng(0), 7
    T = rng.normal(size=(n, n)) + 3 * rng.normal(size=n)
    T[0, 3] = T[5, 2] = T[2, 5] = np.nan
    seen, Z = ~np.isnan(T) & ~np.eye(n, dtype=bool), sdp.standardise(T)
    i, j = np.nonzero(seen)
    design = np.hstack([np.eye(n)[i], np.eye(n)[j]])
    effects = design @ np.linalg.lstsq(design, Z[seen])[0]
    left = sdp.without_effects(T)
    assert left[seen] == pytest.approx(Z[seen] - effects, abs=1e-7) and np.isnan(left[~seen]).all()
    assert sdp.shares_of_hubs(T).sum() == pytest.approx((effects**2).sum() / (Z[seen] ** 2).sum(), abs=1e-6)
    assert np.array_equal(sdp.z_scores(T, "remove"), sdp.standardise(left))


def test_hubs_that_hide_blocks_are_removed_and_blocks_of_unequal_size_are_kept():
    for sizes, hubs, way in (([5] * 4, 3.0, "remove"), ([5] * 4, 1.0, "remove"), ([12, 4, 4], 0.0, "keep")):
        for seed in range(3):
            T, truth = planted(sizes, 0.6, seed, hubs=hubs)
            chosen, p, tests = evidence.choose_hubs(T, None, 99, np.random.default_rng(seed))
            assert chosen == way and tests[way].p == 0.01 and tests[way].above > 3
            assert p == min(tests["keep"].p / 0.8, tests["remove"].p / 0.2) <= 0.05
            S = sdp.symmetric(T, chosen)
            labels, _ = rounding.find_clusters(S, len(sizes))
            assert adjusted_rand_score(truth, labels) > 0.8
    assert tests["remove"].above < tests["keep"].above
    T, _ = planted([20], 1.0, 0, hubs=3.0)  # hubs alone are no structure
    assert evidence.choose_hubs(T, None, 39, np.random.default_rng(0))[1] > 0.05


def test_hubs_are_not_removed_from_a_handful_of_items():
    T, _ = planted([2, 2], 0.1, 0)
    way, p, tests = evidence.choose_hubs(T, None, 19, np.random.default_rng(0))
    assert way == "keep" and list(tests) == ["keep"] and p == tests["keep"].p
    with pytest.raises(InputError, match="--hubs remove: there are 4 items"):
        evidence.choose_hubs(T, "remove", 19, np.random.default_rng(0))


def test_coassignment_counts_resamples():
    T, truth = planted([3, 3], 0.1, 0)
    same = truth[:, None] == truth
    noise = np.random.default_rng(0).normal(size=(6, 6))
    share = evidence.coassignment(np.stack([T, T, T, noise]), 2)
    assert share[same].min() >= 0.75 and share[~same].max() <= 0.25 and (np.diag(share) == 1).all()
