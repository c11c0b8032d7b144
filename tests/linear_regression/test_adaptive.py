"""The best partitions of few points against all partitions there are, in NumPy."""

from itertools import combinations, pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.linear_regression.codebooks import ADAPTIVE, adaptive_quantize

POINTS, SETS, CLUSTERS, PENALTY = 9, 6, (4, 1, 2, 3, 6, 12), 0.05


def cost(points, mass, cuts, beta):
    """Of a partition with its best centres, by the normal equations of all of them.

    Infinite if they are out of order: then another partition is better for the same centres.
    """
    ends = (0, *cuts, len(points))
    runs = [slice(*pair) for pair in pairwise(ends)]
    sums = np.array([mass[run].sum() for run in runs])
    matrix, right = np.diag(sums), np.array([mass[run] @ points[run] for run in runs])
    matrix[[0, -1], [0, -1]] += beta * (len(runs) > 1)
    matrix[[0, -1], [-1, 0]] -= beta * (len(runs) > 1)
    centres = np.linalg.solve(matrix, right)
    spread = sum(mass[run] @ (points[run] - c) ** 2 for run, c in zip(runs, centres, strict=True))
    in_order = np.all(np.diff(centres) >= 0)
    return spread + beta * (centres[-1] - centres[0]) ** 2 if in_order else np.inf


def least_cost(points, mass, num_clusters, beta):
    order = np.argsort(points)
    return min(
        cost(points[order], mass[order], cuts, beta)
        for number in range(min(num_clusters, len(points)))
        for cuts in combinations(range(1, len(points)), number)
    )


@pytest.fixture(scope="module")
def sample():
    rng = np.random.default_rng(0)
    weights = rng.normal(1.0, 1.0, (SETS, POINTS)).astype(np.float32)
    return weights, rng.gamma(2.0, size=weights.shape).astype(np.float32)


@pytest.fixture(scope="module")
def solve():
    def solve(weights, importance, penalty, clusters):
        return adaptive_quantize(
            weights, importance, clusters, penalty, ADAPTIVE, max_clusters=max(CLUSTERS)
        )

    return jax.jit(solve)


@pytest.fixture(scope="module")
def found(sample, solve):
    return solve(*sample, jnp.float32(PENALTY), jnp.asarray(CLUSTERS))


def paid(values, weights, importance):
    values = np.asarray(values, np.float64)
    return np.sum(importance[:, None] * (values - weights[:, None]) ** 2, axis=-1), values


@pytest.mark.parametrize("name", ["adaptive_kmeans", "adaptive_hessian"])
def test_kmeans_is_solved(sample, found, name):
    weights, importance = (part.astype(np.float64) for part in sample)
    importance = np.ones_like(importance) if name == "adaptive_kmeans" else importance
    got, _ = paid(found[name][0], weights, importance)
    for i in range(SETS):
        for place, k in enumerate(CLUSTERS):
            best = least_cost(weights[i], importance[i], k, 0.0)
            np.testing.assert_allclose(got[i, place], best, rtol=1e-5, atol=1e-6)


# From one that hardly moves a centre to one that leaves almost a single one.
@pytest.mark.parametrize("penalty", [0.0, 1e-3, PENALTY, 0.5])
def test_a_penalty_on_the_diameter(sample, solve, penalty):
    weights, importance = (part.astype(np.float64) for part in sample)
    clusters = jnp.asarray(CLUSTERS)
    values, counts = solve(*sample, jnp.float32(penalty), clusters)["adaptive_diameter"]
    spread, values = paid(values, weights, importance)
    excess = []
    for i in range(SETS):
        beta = penalty * importance[i].sum()
        for place, k in enumerate(CLUSTERS):
            best = least_cost(weights[i], importance[i], k, beta)
            got = spread[i, place] + beta * np.ptp(values[i, place]) ** 2
            assert got >= best * (1 - 1e-5) - 1e-6
            excess.append(got - best - 1e-6)
            assert got <= best * 1.05 + 1e-6
    # Where no multiplier of the grid has the optimum, something almost as good.
    assert np.mean(np.asarray(excess) <= 0) > 0.8
    assert np.all(np.asarray(counts).sum(axis=-1) == POINTS)


def test_equal_cells_are_those_of_the_uniform_quantizer(sample, found):
    weights = sample[0].astype(np.float64)
    values, counts = found["adaptive_uniform"]
    for i, own in enumerate(weights):
        for place, k in enumerate(CLUSTERS):
            index = np.floor((own - own.min()) / np.ptp(own) * k).astype(int)
            index = np.minimum(index, k - 1)
            expected = np.bincount(index, minlength=k)
            centres = np.bincount(index, own, minlength=k) / np.maximum(expected, 1)
            np.testing.assert_allclose(values[i, place], centres[index], rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(counts[i, place, :k], expected)


def test_counts_say_how_many_weights_share_a_value(found):
    for name in ADAPTIVE:
        values, counts = (np.asarray(part) for part in found[name])
        for i in range(SETS):
            for place in range(len(CLUSTERS)):
                _, expected = np.unique(values[i, place], return_counts=True)
                got = counts[i, place]
                np.testing.assert_array_equal(got[got > 0], expected)
                assert len(expected) <= CLUSTERS[place]


def test_fewer_clusters_than_asked_for_where_there_are_fewer_weights(solve):
    weights, importance = jnp.asarray([[0.5], [-1.0]]), jnp.ones((2, 1))
    for values, counts in solve(
        weights, importance, jnp.float32(1), jnp.asarray(CLUSTERS)
    ).values():
        np.testing.assert_array_equal(values, jnp.broadcast_to(weights[:, None], values.shape))
        np.testing.assert_array_equal(counts.sum(axis=-1), 1)
