"""Codebooks against brute force in NumPy."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.linear_regression import DESIGNED, design_codebooks
from jaxcomp.linear_regression.codebooks import FIXED_RATE, designed_quantize, merge
from jaxcomp.quantizers import kmeans

CLUSTERS = (1, 2, 5, 8)  # as many, and as many points, as those that are simulated


@pytest.fixture(scope="module")
def sample():
    rng = np.random.default_rng(0)
    weights = rng.normal(0.3, 1.0, (100, 6)).astype(np.float32)
    return weights, rng.gamma(2.0, size=weights.shape).astype(np.float32)


@pytest.fixture(scope="module")
def books(sample):
    return design_codebooks(*map(jnp.asarray, sample), num_clusters=CLUSTERS)


def equal_cells(points, num_clusters):
    """Means of the points in each of so many equal cells."""
    low, high = points.min(), points.max()
    index = np.floor((points - low) / (high - low) * num_clusters).astype(int)
    index = np.minimum(index, num_clusters - 1)
    return np.bincount(index, points) / np.bincount(index)


def test_fixed_rate_codebooks_are_those_of_the_quantizers(sample, books):
    points, importance = (part.ravel() for part in sample)
    place, k = 2, 5
    of_kmeans = partial(kmeans, num_clusters=k, start="quantiles")
    for name, expected in (
        ("uniform", equal_cells(points.astype(np.float64), k)),
        ("kmeans", of_kmeans(points, np.ones_like(points)).centroids),
        ("hessian_kmeans", of_kmeans(points, importance).centroids),
        ("diameter_kmeans", of_kmeans(points, importance, diameter_penalty=0.05).centroids),
    ):
        found = books.centroids[FIXED_RATE.index(name), place]
        np.testing.assert_allclose(found[:k], expected, rtol=1e-5, atol=1e-5)
    diameters = np.ptp(np.asarray(books.centroids[:, place]), axis=1)
    assert diameters[3] < diameters[2]


def test_quantized_weights_are_nearest_centroids(books):
    rng = np.random.default_rng(1)
    weights = rng.normal(size=9).astype(np.float32)
    rates = jnp.asarray(9 * np.log(CLUSTERS), jnp.float32)
    found = designed_quantize(jnp.asarray(weights), books, merge(books), rates, DESIGNED)
    for name in FIXED_RATE[1:]:
        values, length = found[name]
        for place in range(len(CLUSTERS)):
            centres = np.asarray(books.centroids[FIXED_RATE.index(name), place])
            nearest = centres[np.abs(weights[:, None] - centres).argmin(axis=1)]
            np.testing.assert_array_equal(values[place], nearest)
        np.testing.assert_array_equal(length, rates)


def test_entropy_coded_grid(sample, books):
    points = sample[0].ravel().astype(np.float64)
    for place, k in enumerate(CLUSTERS):
        step, origin = float(books.steps[place]), float(books.origin)
        cells = np.rint((points - origin) / step)
        values, counts = np.unique(cells, return_counts=True)
        share = counts / counts.sum()
        # The step is where the entropy is what was asked for, to one point's share of a cell.
        assert abs(-np.sum(share * np.log(share)) - np.log(k)) < 0.02
        middle = books.cell_centroids.shape[1] // 2
        for value, part in zip(values, share, strict=True):
            index = middle + int(value)
            centre = points[cells == value].mean()
            np.testing.assert_allclose(books.cell_centroids[place, index], centre, atol=1e-4)
            assert abs(float(books.cell_nats[place, index]) + np.log(part)) < 0.01
        # Kraft: the code words can all be told apart.
        assert np.sum(np.exp(-np.asarray(books.cell_nats[place], np.float64))) <= 1 + 1e-5


def test_lengths_add_up_over_weights(books):
    weights = jnp.asarray([0.1, -2.0, 40.0])
    rates = jnp.zeros(len(CLUSTERS))
    values, length = designed_quantize(weights, books, merge(books), rates, ("entropy_coded",))[
        "entropy_coded"
    ]
    offset = (np.asarray(weights) - float(books.origin)) / np.asarray(books.steps)[:, None]
    half = books.cell_nats.shape[1] // 2
    index = (np.clip(np.rint(offset), -half, half) + half).astype(int)
    expected = np.take_along_axis(np.asarray(books.cell_nats), index, axis=1).sum(axis=1)
    np.testing.assert_allclose(length, expected, rtol=1e-6)
    assert np.all(np.isfinite(values))


def test_refused(sample):
    weights, importance = map(jnp.asarray, sample)
    with pytest.raises(ValueError, match="importance must have the shape of weights"):
        design_codebooks(weights, importance[0], num_clusters=CLUSTERS)
    with pytest.raises(ValueError, match="num_clusters must be a list of numbers >= 1"):
        design_codebooks(weights, importance, num_clusters=(0,))
    with pytest.raises(ValueError, match="entropies_nats must be 4 numbers >= 0"):
        design_codebooks(weights, importance, num_clusters=CLUSTERS, entropies_nats=np.ones(2))
