"""From a variant to changed weights, against the quantizers called one layer at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp import quantizers
from jaxcomp.coding import sizes
from jaxcomp.experiments.sweep.codebooks import solve_codebooks
from jaxcomp.experiments.sweep.compress import compress, squared_errors
from jaxcomp.experiments.sweep.variants import ORIGINAL, Variant, control_variants
from jaxcomp.quantizers.problems import as_problem

BINS = 512  # as many as in test_experiment.py, and as many sizes of codebooks: one program
CLUSTERS = (3, 8, 16)


PLAIN_AND_MONOTONE = (("none", 0.0), ("monotone", 0.02))


def solved(forms):
    """Layers of different shapes, one below and two above the number of bins.

    The two have as many weights as each other: the quantizers compile twice, not three times.
    """
    key = jax.random.key(3)
    shapes = {"a/kernel": (30, 20), "b/kernel": (10, 4), "c/kernel": (5, 5, 4, 6)}
    layers, importance = {}, {}
    for number, (path, shape) in enumerate(shapes.items()):
        weights, gains = jax.random.split(jax.random.fold_in(key, number))
        layers[path] = jax.random.normal(weights, shape)
        importance[path] = jax.random.exponential(gains, shape)
    variants = [
        Variant("compressed", "kmeans", name, form, penalty, k)
        for name in ("none", "fisher")
        for form, penalty in forms
        for k in CLUSTERS
    ]
    variants += [Variant("compressed", "uniform", "uniform", num_clusters=k) for k in CLUSTERS]
    codebooks = solve_codebooks(
        layers, {"none": None, "fisher": importance}, variants, num_bins=BINS, num_iterations=20
    )
    return layers, importance, variants, codebooks


@pytest.fixture(scope="module")
def problem():
    return solved(PLAIN_AND_MONOTONE)


@pytest.mark.slow
@pytest.mark.parametrize("forms", [PLAIN_AND_MONOTONE, [("linear", 0.02)]])
def test_every_layer_of_a_grid_equals_one_quantizer_at_a_time(forms):
    assert_equals_one_quantizer_at_a_time(*solved(forms))


def test_a_grid_solved_at_once_equals_one_method_at_a_time(problem):
    """The slow test above has functions in place of methods: a program for each size of a layer."""
    layers, importance, variants, codebooks = problem
    for variant in variants:
        changed = compress(layers, variant, codebooks, key=jax.random.key(0))
        counts = []
        for path, weights in layers.items():
            if variant.method == "uniform":
                method = quantizers.Uniform(num_bins=BINS)
            else:
                method = quantizers.KMeans(
                    diameter_penalty=variant.diameter_penalty,
                    num_iterations=20,
                    start="quantiles",
                    num_bins=BINS,
                )
            own = importance[path] if variant.importance == "fisher" else jnp.ones(weights.shape)
            # Others beside it that make no difference: the program of the grid.
            curve = method.curve(as_problem(weights, own), np.array([variant.num_clusters, 16, 16]))
            centroids, thresholds = curve.at(0).codebook
            index = np.searchsorted(thresholds, np.ravel(weights))
            expected = centroids[index].reshape(weights.shape)
            np.testing.assert_allclose(changed.layers[path], expected, rtol=0, atol=2e-6)
            counts.append(np.bincount(index, minlength=variant.num_clusters))
        size = sizes.code_size(np.stack(counts), num_clusters=variant.num_clusters)
        assert changed.sizes is not None
        np.testing.assert_allclose(changed.sizes, [np.sum(part) for part in size])


def assert_equals_one_quantizer_at_a_time(layers, importance, variants, codebooks):
    for variant in variants:
        changed = compress(layers, variant, codebooks, key=jax.random.key(0))
        counts = []
        for path, weights in layers.items():
            ones = jnp.ones(weights.size)  # equal weights, and no program of their own
            if variant.method == "uniform":
                alone = quantizers.uniform(
                    weights.ravel(),
                    num_clusters=variant.num_clusters,
                    max_clusters=16,
                    num_bins=BINS,
                )
            else:
                alone = quantizers.kmeans(
                    weights.ravel(),
                    importance[path].ravel() if variant.importance == "fisher" else ones,
                    num_clusters=variant.num_clusters,
                    start="quantiles",
                    max_clusters=16,
                    diameter_penalty=variant.diameter_penalty,
                    penalty_form="monotone"
                    if variant.penalty_form == "none"
                    else variant.penalty_form,
                    num_iterations=20,
                    num_bins=BINS,
                )
            expected = alone.centroids[alone.assignments].reshape(weights.shape)
            np.testing.assert_allclose(changed.layers[path], expected, rtol=0, atol=2e-6)
            counts.append(
                np.bincount(np.asarray(alone.assignments), minlength=16)[: variant.num_clusters]
            )
        size = sizes.code_size(np.stack(counts), num_clusters=variant.num_clusters)
        assert changed.sizes is not None
        np.testing.assert_allclose(changed.sizes, [np.sum(part) for part in size])


def test_one_layer_alone(problem):
    layers, _, _, codebooks = problem
    variant = Variant("sensitivity", "kmeans", "none", num_clusters=8, layer="b/kernel")
    everywhere = Variant("compressed", "kmeans", "none", num_clusters=8)
    changed = compress(layers, variant, codebooks, key=jax.random.key(0)).layers
    full = compress(layers, everywhere, codebooks, key=jax.random.key(0)).layers
    np.testing.assert_array_equal(changed["b/kernel"], full["b/kernel"])
    assert changed["a/kernel"] is layers["a/kernel"]
    assert changed["c/kernel"] is layers["c/kernel"]


def test_noise_is_as_strong_as_plain_kmeans_layer_by_layer(problem):
    layers, _, _, codebooks = problem
    noise = Variant("control", "gaussian_noise", "control", num_clusters=3)
    plain = Variant("compressed", "kmeans", "none", num_clusters=3)
    keys = jax.random.split(jax.random.key(1), 50)
    quantized = compress(layers, plain, codebooks, key=keys[0]).layers
    drawn_layers = [compress(layers, noise, codebooks, key=key).layers for key in keys]
    for path, weights in layers.items():
        target = float(jnp.mean((quantized[path] - weights) ** 2))
        drawn = [float(jnp.mean((noisy[path] - weights) ** 2)) for noisy in drawn_layers]
        # A mean of 50 N squared normals has relative standard error sqrt(2 / (50 N)).
        assert np.mean(drawn) == pytest.approx(target, rel=5 * np.sqrt(2 / (50 * weights.size)))


def test_controls_do_what_they_say(problem):
    layers, _, _, codebooks = problem
    for variant in control_variants(num_clusters=[3], trained_otherwise=(), has_last_layer=True):
        changed = compress(layers, variant, codebooks, key=jax.random.key(0), last_layer="b/kernel")
        assert changed.sizes is None
        if variant.method == "last_layer_scaled":
            expected = np.float32(variant.parameter) * layers["b/kernel"]
            np.testing.assert_array_equal(changed.layers["b/kernel"], expected)
            assert changed.layers["a/kernel"] is layers["a/kernel"]
        if variant.method == "weights_clipped":
            weights = np.asarray(layers["a/kernel"])
            low, high = np.quantile(weights, [variant.parameter, 1 - variant.parameter])
            np.testing.assert_allclose(
                changed.layers["a/kernel"], np.clip(weights, low, high), atol=1e-6
            )


def test_rounding_and_pruning_come_with_their_sizes(problem):
    layers, _, _, codebooks = problem
    num_weights = sum(w.size for w in layers.values())
    rounded = compress(
        layers,
        Variant("compressed", "round_to_nearest", "round_to_nearest", parameter=4.0),
        codebooks,
        key=jax.random.key(0),
    )
    assert rounded.sizes is not None
    assert rounded.sizes.fixed_bits == 4 * num_weights
    assert rounded.sizes.codebook_bits == 32 * (20 + 4 + 6)
    pruned = compress(
        layers,
        Variant("compressed", "magnitude_pruning", "magnitude_pruning", parameter=0.75),
        codebooks,
        key=jax.random.key(0),
    )
    for path, weights in layers.items():
        assert np.mean(np.asarray(pruned.layers[path]) == 0) == pytest.approx(
            0.75, abs=1 / weights.size
        )


def test_squared_errors_are_sums_over_all_layers(problem):
    layers, importance, _, codebooks = problem
    variant = Variant("compressed", "kmeans", "none", num_clusters=3)
    changed = compress(layers, variant, codebooks, key=jax.random.key(0)).layers
    plain, weighted = squared_errors(layers, changed, importance)
    squares = {
        path: (np.asarray(changed[path], np.float64) - np.asarray(weights)) ** 2
        for path, weights in layers.items()
    }
    assert float(plain) == pytest.approx(sum(s.sum() for s in squares.values()), rel=1e-5)
    expected = sum((squares[p] * np.asarray(importance[p])).sum() for p in layers)
    assert float(weighted) == pytest.approx(float(expected), rel=1e-5)
    assert squared_errors(layers, layers, importance)[1] == 0


def test_nothing_to_solve_is_fine(problem):
    layers, _, _, _ = problem
    codebooks = solve_codebooks(layers, {"none": None}, [ORIGINAL], num_bins=BINS, num_iterations=5)
    assert codebooks.ids == ()
    assert compress(layers, ORIGINAL, codebooks, key=jax.random.key(0)).layers is layers
