import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from promotion import strictly
from quantizer_oracles import count_compilations, heavy_tailed, optimum
from scipy.optimize import minimize_scalar
from slow_cases import some_slow

from jaxcomp.quantizers import (
    optimal_diameter_kmeans,
    solve_kmeans,
)
from jaxcomp.quantizers.scalar import optimal_diameter

# One size for nearly all tests: every point a bin.
NUM_POINTS = 40
MAX_CLUSTERS = 5
# All K and these penalties at once, nearly always: one compilation.
CLUSTERS = np.arange(1, MAX_CLUSTERS + 1, dtype=np.int32)[:, None]
PENALTIES = np.array([0.0, 1e-3, 0.03, 0.3, 10.0], np.float32)


prepare = strictly(optimal_diameter_kmeans)


@strictly
def solve(solver, *args, **kwargs):
    return solver.solve(*args, **kwargs)


@pytest.fixture(scope="module")
def solvers():
    solved = {}
    for seed in range(3):
        points, importance = heavy_tailed(NUM_POINTS, seed)
        solved[seed] = prepare(points, importance, max_clusters=MAX_CLUSTERS, num_outer=24)
    return solved


def best_of_partition(masses, means, inner, beta):
    """Least objective for fixed intervals: c_k = clip(m_k, L, U), by a search over L and U."""

    def given_diameter(d):
        # For a fixed diameter the best lower end: the objective is convex in it.
        def cost(low):
            centres = np.clip(means, low, low + d)
            return np.sum(masses * (means - centres) ** 2)

        found = minimize_scalar(cost, bounds=(means[0], means[-1]), method="bounded")
        return found.fun + beta * d**2

    span = means[-1] - means[0]
    found = minimize_scalar(
        given_diameter, bounds=(0, span), method="bounded", options={"xatol": 1e-9}
    )
    return inner + min(found.fun, given_diameter(span), given_diameter(0.0))


def brute_force(points, importance, num_clusters, beta):
    """The least objective over all partitions of the sorted points into intervals."""
    order = np.argsort(points)
    w, h = points[order].astype(np.float64), importance[order].astype(np.float64)
    partitions = []
    for cuts in itertools.combinations(range(1, len(w)), num_clusters - 1):
        parts = np.split(np.arange(len(w)), cuts)
        masses = np.array([h[p].sum() for p in parts])
        means = np.array([np.average(w[p], weights=h[p]) for p in parts])
        inner = sum(np.sum(h[p] * (w[p] - m) ** 2) for p, m in zip(parts, means, strict=True))
        partitions.append((inner, masses, means))
    least = np.inf
    for inner, masses, means in sorted(partitions, key=lambda partition: partition[0]):
        if inner >= least:  # the penalty can only add
            break
        least = min(least, best_of_partition(masses, means, inner, beta))
    return least


@pytest.mark.parametrize("seed", [0, 1])
def test_brute_force_over_all_partitions(seed, strict_promotion):
    # A few points that count, the others with no weight: one size for all tests.
    points, importance = heavy_tailed(NUM_POINTS, seed)
    importance[12:] = 0
    solver = prepare(points, importance, max_clusters=MAX_CLUSTERS, num_outer=24)
    penalties = PENALTIES * np.float32(importance.astype(np.float64).sum())
    solved = jax.tree.map(np.asarray, solve(solver, CLUSTERS, PENALTIES))
    for num_clusters in (2, 3):
        for i in (1, 2, 3):
            expected = brute_force(points[:12], importance[:12], num_clusters, float(penalties[i]))
            found = float(solved.solution.objective[num_clusters - 1, i])
            assert found == pytest.approx(expected, rel=1e-4)
            gap = float(solved.gap_bound[num_clusters - 1, i])
            assert found - gap <= expected * (1 + 1e-7)


@pytest.mark.slow
def test_absolute_penalty_is_taken_as_it_is(solvers):
    total = heavy_tailed(NUM_POINTS, 0)[1].sum(dtype=np.float64)
    absolute = solve(
        solvers[0], CLUSTERS, PENALTIES * np.float32(total), penalty_scale="absolute"
    ).solution
    relative = solve(solvers[0], CLUSTERS, PENALTIES).solution
    np.testing.assert_allclose(absolute.objective, relative.objective, rtol=1e-5)
    np.testing.assert_allclose(absolute.distortion, relative.distortion, rtol=1e-4)


def test_a_rounded_gap_reaches_down_to_the_bound():
    generator = np.random.default_rng(0)
    objective = generator.uniform(1, 4, 2000).astype(np.float32)
    bound = (objective * generator.uniform(0, 1, 2000)).astype(np.float32)
    rounded = objective - bound
    raised = jax.jit(optimal_diameter._raised)
    gaps = np.asarray(raised(np.append(rounded, np.float32(0))))
    assert gaps[-1] == 0
    gaps = gaps[:-1]
    pairs = [
        [Fraction(float(value)) for value in row] for row in zip(objective, bound, strict=True)
    ]
    assert any(a - Fraction(float(g)) > b for (a, b), g in zip(pairs, rounded, strict=True))
    assert all(a - Fraction(float(g)) <= b for (a, b), g in zip(pairs, gaps, strict=True))
    assert np.all(gaps <= rounded * (1 + 2.0**-22))


def test_without_penalty_it_is_the_optimal_quantizer(solvers):
    for seed, solver in solvers.items():
        points, importance = heavy_tailed(NUM_POINTS, seed)
        found = solve(solver, CLUSTERS, PENALTIES)
        objective, gap = (
            np.asarray(part)[:, 0] for part in (found.solution.objective, found.gap_bound)
        )
        np.testing.assert_allclose(objective, optimum(points, importance, MAX_CLUSTERS), rtol=1e-5)
        assert np.all(gap <= 1e-4 * objective)


@pytest.mark.parametrize(
    ("form", "start"),
    some_slow(
        [
            ("monotone", "quantiles"),
            ("monotone", "coarse_to_fine"),
            ("published", "coarse_to_fine"),
        ],
        ("monotone", "coarse_to_fine"),
        ("published", "coarse_to_fine"),
    ),
)
def test_never_above_lloyd_and_the_bound_below_it(solvers, form, start):
    for seed, solver in solvers.items():
        total = heavy_tailed(NUM_POINTS, seed)[1].sum(dtype=np.float64)
        found = solve(solver, CLUSTERS, PENALTIES)
        objective, gap = (np.asarray(part) for part in (found.solution.objective, found.gap_bound))
        assert objective.shape == (MAX_CLUSTERS, len(PENALTIES))
        lloyd = solve_kmeans(
            solver.moments,
            CLUSTERS,
            PENALTIES,
            max_clusters=MAX_CLUSTERS,
            penalty_form=form,
            num_iterations=100,
            start=start,
        )
        reached = np.asarray(lloyd.objective)
        assert np.all(objective <= reached * (1 + 1e-6))
        assert np.all(objective - gap <= reached)
        # What is above the distortion is the penalty on the codebook's own diameter.
        centroids = np.asarray(found.solution.codebook.centroids, np.float64)
        diameter = centroids[..., -1] - centroids[..., 0]
        np.testing.assert_allclose(
            found.solution.distortion + PENALTIES * total * diameter**2, objective, rtol=1e-5
        )
        # More clusters, or a smaller penalty, never cost more.
        assert np.all(np.diff(objective, axis=0) <= 1e-5 * objective[:-1])
        assert np.all(np.diff(objective, axis=1) >= -1e-5 * objective[:, :-1])
        # One cluster has no diameter; under an enormous penalty neither have many.
        np.testing.assert_allclose(objective[0], objective[0, 0], rtol=1e-6)


@pytest.mark.slow
def test_many_points_leave_a_small_gap():
    points, importance = heavy_tailed(20_000)
    solver = prepare(points, importance, max_clusters=8, num_bins=256)
    clusters, penalties = jnp.array([2, 4, 8])[:, None], PENALTIES
    found = solve(solver, clusters, penalties)
    gap = np.asarray(found.gap_bound / found.solution.objective)
    assert gap.max() < 2e-3


@pytest.mark.slow
def test_batched_equals_one_by_one_and_compiles_once(solvers):
    groups = [heavy_tailed(NUM_POINTS, seed) for seed in range(3)]
    points, importance = (np.stack(part) for part in zip(*groups, strict=True))
    together = prepare(points, importance, max_clusters=MAX_CLUSTERS, num_outer=24)
    found = solve(together, CLUSTERS[:, None], PENALTIES[:, None])
    assert found.solution.codebook.centroids.shape == (MAX_CLUSTERS, 5, 3, MAX_CLUSTERS)
    solve(solvers[0], CLUSTERS, PENALTIES).solution.objective.block_until_ready()
    with count_compilations() as num_compilations:
        alone = [solve(solvers[seed], CLUSTERS, PENALTIES * 1) for seed in range(3)]
        assert num_compilations() == 0
    for seed in range(3):
        np.testing.assert_allclose(
            found.solution.objective[..., seed], alone[seed].solution.objective, rtol=1e-5
        )


def test_equal_points_and_scale():
    scale = 64.0
    points, importance = heavy_tailed(NUM_POINTS)
    points[1:20] = points[0]
    base = prepare(points, importance, max_clusters=MAX_CLUSTERS, num_outer=24)
    scaled = prepare(
        points * np.float32(scale), importance, max_clusters=MAX_CLUSTERS, num_outer=24
    )
    a, b = solve(base, CLUSTERS, PENALTIES), solve(scaled, CLUSTERS, PENALTIES)
    np.testing.assert_allclose(b.solution.objective, a.solution.objective * scale**2, rtol=1e-5)
    constant = prepare(
        np.full(NUM_POINTS, -3.5, np.float32), importance, max_clusters=MAX_CLUSTERS, num_outer=24
    )
    constant = solve(constant, CLUSTERS, PENALTIES)
    np.testing.assert_array_equal(constant.solution.objective, 0)
    np.testing.assert_array_equal(constant.gap_bound, 0)
    np.testing.assert_array_equal(constant.solution.codebook.centroids, -3.5)


def test_bad_input(solvers):
    points = np.ones(4, np.float32)
    with pytest.raises(ValueError, match="max_clusters must be at least 1, got 0"):
        prepare(points, max_clusters=0)
    with pytest.raises(ValueError, match="num_outer must be at least 1, got 0"):
        prepare(points, max_clusters=2, num_outer=0)
    with pytest.raises(ValueError, match="points must be finite, got 1 NaN"):
        prepare(np.array([1, np.nan], np.float32), max_clusters=2)
    with pytest.raises(ValueError, match="between 1 and max_clusters = 5, got 6"):
        solve(solvers[0], 6, 0.1)
    with pytest.raises(TypeError, match="num_clusters must be an integer, got float"):
        solve(solvers[0], 2.5, 0.1)
    with pytest.raises(ValueError, match="finite and at least 0, got -1"):
        solve(solvers[0], 2, -1.0)
    with pytest.raises(ValueError, match=r"penalty_scale must be one of .* got 'log'"):
        solve(solvers[0], 2, 1.0, penalty_scale="log")
