"""`jaxcomp.compress` on every kind of pytree, against NumPy and the kernels called directly."""

import math
import subprocess
import sys
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from quantizer_oracles import count_compilations
from slow_cases import some_slow
from tree_problems import METHODS, SHAPE, bits_in_file, entropy, nested_dict, weights

from jaxcomp import compress, curve
from jaxcomp.compressed import to_bytes
from jaxcomp.curvature import CurvaturePolicy, DiagonalEstimate
from jaxcomp.quantizers import (
    EntropyConstrained,
    KMeans,
    MagnitudePruning,
    RoundToNearest,
    Uniform,
    kmeans,
    round_to_nearest,
    solve_kmeans,
)
from jaxcomp.quantizers.methods import intervals

# `Optimal` is `KMeans` with another solver, whose program takes three seconds. That of `Vector`
# takes five: `test_importance.py` and `contract/test_methods.py` have it.
QUICK = some_slow(METHODS, "optimal", "vector")


class Layer(NamedTuple):
    kernel: Any
    bias: Any


class LinenNetwork(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=True)(nn.Dense(8)(x))


class NnxNetwork(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(12, 8, rngs=rngs)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)  # brings a random key and a counter

    def __call__(self, x):
        return self.layers[0](x)


def list_of_layers() -> list[Layer]:
    return [Layer(weights(1), weights(2, (8,))), Layer(weights(3), None)]


def linen_variables() -> Any:
    return jax.jit(LinenNetwork().init)(jax.random.key(0), np.ones((1, 12), np.float32))


def nnx_state() -> Any:
    return nnx.state(NnxNetwork(nnx.Rngs(0)))


TREES = {
    "dict": (nested_dict, ("hidden/kernel", "out/kernel")),
    "list of named tuples": (list_of_layers, ("0/kernel", "1/kernel")),
    "Linen variables": (linen_variables, ("params/Dense_0/kernel",)),
    "NNX state": (nnx_state, ("layers/0/kernel/value",)),
}


def assert_trees_equal(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        assert np.array_equal(x, y)


class TestPytrees:
    @pytest.mark.parametrize("kind", TREES)
    @pytest.mark.parametrize("method", QUICK)
    def test_any_tree_comes_back_in_its_structure(self, kind, method):
        build, paths = TREES[kind]
        params = build()
        tree = compress(params, METHODS[method])
        restored = tree.params()
        assert tree.paths == paths
        assert jax.tree.structure(restored) == jax.tree.structure(params)
        num_changed = 0
        for before, after in zip(jax.tree.leaves(params), jax.tree.leaves(restored), strict=True):
            assert (after.shape, after.dtype) == (before.shape, before.dtype)
            num_changed += after is not before
        assert num_changed == len(paths)  # all other leaves are the very objects given

    def test_an_nnx_module_is_a_pytree_too(self):
        model = NnxNetwork(nnx.Rngs(0))
        restored = compress(model, method=KMeans(5)).params()
        assert isinstance(restored, NnxNetwork)
        assert len(np.unique(restored.layers[0].kernel[...])) == 5
        assert restored(np.ones((2, 12), np.float32)).shape == (2, 8)

    @pytest.mark.parametrize("method", some_slow(METHODS, "vector", "optimal"))
    def test_params_under_jit_equals_eager_and_compiles_once(self, method, request):
        @jax.jit
        def forward(tree):
            return tree.params()

        trees = []
        for step in (0, 1):
            # The same weights in another order, so that as many codes occur.
            kernel = np.roll(np.asarray(weights(0)), step, axis=0)
            params = {"kernel": kernel, "bias": weights(2, (8,)), "step": np.asarray(step)}
            trees.append(compress(jax.device_put(params), METHODS[method]))
        request.getfixturevalue("strict_promotion")  # kernels have it in their own tests
        for tree in trees:
            assert_trees_equal(forward(tree), tree.params())
        assert forward._cache_size() == 1

    def test_the_tree_itself_goes_through_jit(self):
        tree = compress(nested_dict(), method=KMeans(5))
        again = jax.jit(lambda tree: tree)(tree)
        assert_trees_equal(tree.params(), again.params())
        assert again.size_bits == tree.size_bits

    def test_gradients_reach_the_centroids(self):
        tree = compress({"kernel": weights()}, method=KMeans(5))
        leaf = tree.tensor("kernel")

        def total(codebook):
            changed = leaf._replace(codebook=codebook)
            return jnp.sum(type(tree)((changed,), tree.layout).params()["kernel"])

        np.testing.assert_allclose(jax.grad(total)(leaf.codebook), leaf.counts)

    def test_tied_weights_are_one_array_before_and_after(self):
        shared = weights(1)
        tied = {"embed": shared, "head": {"kernel": shared}, "bias": weights(2, (8,))}
        tree = compress(tied, method=KMeans(5))
        alone = compress({"embed": shared, "bias": tied["bias"]}, method=KMeans(5))
        restored = tree.params()
        assert restored["embed"] is restored["head"]["kernel"]
        assert (tree.size_bits, tree.original_bits) == (alone.size_bits, alone.original_bits)
        assert tree.paths == ("embed", "head/kernel")
        (layer,) = tree.report()
        assert layer.tied_paths == ("head/kernel",)
        assert "embed (+1 tied)" in str(tree.report())

    def test_a_tied_leaf_is_quantized_if_any_of_its_places_is_selected(self):
        shared = weights(1)
        tree = compress({"embed": shared, "head": shared}, select="head", method=KMeans(5))
        restored = tree.params()
        assert restored["embed"] is restored["head"]
        assert len(np.unique(restored["embed"])) == 5

    def test_equal_arrays_are_not_tied(self):
        tree = compress({"a": weights(1), "b": weights(1)}, method=KMeans(5))
        assert len(tree.report()) == 2

    def test_repr_is_short_and_never_fails(self):
        tree = compress(nested_dict(), method=KMeans(5))
        text = repr(tree)
        assert text.startswith("CompressedTree(kmeans, 2 of 4 leaves compressed, 192 weights at ")
        assert len(text) < 160
        seen = []
        jax.jit(lambda tree: seen.append(repr(tree)))(tree)
        assert seen == ["CompressedTree(kmeans, 2 of 4 leaves compressed)"]
        assert repr(jax.tree.map(lambda leaf: leaf.shape, tree)) == seen[0]


class TestSelection:
    @pytest.mark.parametrize(
        ("select", "expected"),
        [
            (None, ("hidden/kernel", "out/kernel")),
            ("out/*", ("out/bias", "out/kernel")),
            (["hidden/kernel", "*/bias"], ("hidden/bias", "hidden/kernel", "out/bias")),
            (lambda path, leaf: leaf.ndim == 1, ("hidden/bias", "out/bias")),
            (lambda path, leaf: False, ()),
        ],
    )
    def test_predicate_and_patterns(self, select, expected):
        assert compress(nested_dict(), select=select, method=KMeans(5)).paths == expected

    def test_what_cannot_be_quantized_is_kept_even_if_selected(self):
        params = {
            "codes": jax.device_put(np.arange(96, dtype=np.int8).reshape(SHAPE)),
            "mask": jax.device_put(np.ones(SHAPE, bool)),
            "float8": jax.device_put(np.ones(SHAPE, jnp.float8_e4m3fn)),
            "function": jax.nn.relu,
            "empty": jax.device_put(np.zeros((0, 8), np.float32)),
            "key": jax.random.key(0),
            "rate": 0.5,
            "kernel": weights(),
        }
        tree = compress(params, select="*", method=KMeans(5))
        assert tree.paths == ("kernel",)
        restored = tree.params()
        compiled = jax.jit(lambda tree: tree.params()["kernel"])(tree)
        np.testing.assert_array_equal(compiled, restored["kernel"])
        for name in ("codes", "mask", "float8", "function", "empty", "key", "rate"):
            assert restored[name] is params[name]
        report = tree.report()
        assert report.num_kept == 7
        # int8, bool, float8 and the key; 0 for what is no array
        assert report.kept_bits == 8 * (96 + 96 + 96 + 8)
        assert report.kept == {
            "not floating": ("codes", "key", "mask"),
            "empty": ("empty",),
            "fewer than 16 bits": ("float8",),
            "no array": ("function", "rate"),
        }
        assert "kept, not floating: 3 (codes, key, mask)" in str(report)

    def test_nothing_to_quantize_costs_nothing(self):
        tree = compress(
            {"step": jax.device_put(np.int32(1)), "empty": np.zeros((0, 3), np.float32)}
        )
        assert (tree.paths, tree.ratio, tree.size_bits) == ((), 1.0, 32.0)
        assert len(tree.report()) == 0
        assert "2 leaves kept" in str(tree.report())
        assert compress({}).ratio == 1.0
        # No weights keep to any budget of theirs.
        assert (
            compress({"step": jax.device_put(np.int32(1))}, bits_per_weight=3.0).size_bits == 32.0
        )

    def test_number_of_clusters_by_path(self):
        tree = compress(
            nested_dict(), {"*": KMeans(7), "hidden/*": KMeans(6), "*/kernel": KMeans(5)}
        )
        assert {layer.path: layer.parameter for layer in tree.report()} == {
            "hidden/kernel": 6,
            "out/kernel": 5,
        }
        assert tree.codebook("hidden/kernel").shape == (6,)

    def test_bits_and_sparsity_by_path(self):
        bits = compress(nested_dict(), {"hidden/*": RoundToNearest(3), "out/*": RoundToNearest(8)})
        assert [layer.parameter for layer in bits.report()] == [3, 8]
        pruned = compress(
            nested_dict(), {"hidden/*": MagnitudePruning(0.25), "*": MagnitudePruning(0.75)}
        )
        assert [layer.parameter for layer in pruned.report()] == [0.25, 0.75]


class TestValues:
    @pytest.mark.slow
    def test_kmeans_is_the_kernel_on_every_leaf(self):
        params = nested_dict()
        curvature = jax.tree.map(lambda leaf: np.abs(leaf) + np.float32(0.1), params)
        tree = compress(params, KMeans(5, diameter_penalty=0.01), importance=curvature)
        for name in ("hidden", "out"):
            expected = kmeans(
                params[name]["kernel"].reshape(-1),
                curvature[name]["kernel"].reshape(-1),
                num_clusters=5,
                diameter_penalty=0.01,
                num_iterations=200,
            )
            path = f"{name}/kernel"
            # The kernel sums over as many bins as points, not num_bins: other rounding.
            np.testing.assert_allclose(tree.codebook(path), expected.centroids, rtol=1e-6)
            np.testing.assert_array_equal(tree.codes(path), expected.assignments.reshape(SHAPE))
            (layer,) = [layer for layer in tree.report() if layer.path == path]
            assert layer.distortion == pytest.approx(float(expected.distortion), rel=1e-5)
            assert layer.is_weighted

    def test_kmeans_is_a_fixed_point_of_weighted_lloyd(self):
        params = {"kernel": weights(1)}
        h = np.abs(np.asarray(weights(2), np.float64)) + 0.1
        tree = compress(params, method=KMeans(5), importance={"kernel": h.astype(np.float32)})
        assert tree.report()[0].converged
        w = np.asarray(params["kernel"], np.float64)
        centroids = np.asarray(tree.codebook("kernel"), np.float64)
        nearest = np.argmin(np.abs(w[..., None] - centroids), axis=-1)
        np.testing.assert_array_equal(tree.codes("kernel"), nearest)
        means = [
            np.sum(h[nearest == k] * w[nearest == k]) / h[nearest == k].sum() for k in range(5)
        ]
        np.testing.assert_allclose(centroids, means, rtol=1e-5)
        distortion = np.sum(h * (w - centroids[nearest]) ** 2)
        report = tree.report()
        assert report.distortion == pytest.approx(distortion, rel=1e-5)
        assert report.predicted_loss_rise_nats == pytest.approx(distortion / 2, rel=1e-5)
        assert "predicted rise of the loss" in str(report)

    def test_uniform_against_numpy(self):
        w = np.asarray(weights(1))
        tree = compress({"kernel": w}, method=Uniform(5))
        edges = np.linspace(w.min(), w.max(), 6)[1:-1]
        cells = np.sum(w[..., None] > edges, axis=-1)
        np.testing.assert_array_equal(tree.codes("kernel"), cells)
        means = [w[cells == k].mean() for k in range(5)]
        np.testing.assert_allclose(tree.codebook("kernel"), means, rtol=1e-5)

    def test_rounding_against_numpy(self):
        w = np.asarray(weights(1))
        tree = compress({"kernel": w}, method=RoundToNearest(4))
        scales = np.abs(w).max(axis=0) / 7
        leaf = tree.tensor("kernel")
        assert leaf.codes.dtype == jnp.int8
        np.testing.assert_allclose(leaf.scales, scales, rtol=1e-6)
        np.testing.assert_allclose(
            tree.params()["kernel"], np.round(w / scales) * scales, rtol=1e-6
        )
        expected = round_to_nearest(weights(1), num_bits=4).values
        np.testing.assert_array_equal(tree.params()["kernel"], expected)
        (layer,) = tree.report()
        assert layer.fixed_bits_per_weight == 4
        assert layer.entropy_bits_per_weight == pytest.approx(entropy(leaf.codes))
        assert layer.codebook_bits == 32 * SHAPE[1]

    def test_a_rounded_vector_has_one_scale(self):
        vector = weights(2, (8,))
        tree = compress({"bias": vector}, method=RoundToNearest(8), select="bias")
        leaf = tree.tensor("bias")
        assert leaf.scales.shape == (1,)
        step = np.abs(vector).max() / 127
        assert np.abs(np.asarray(tree.params()["bias"]) - vector).max() <= step / 2 * (1 + 1e-6)

    def test_pruning_against_numpy(self):
        w = np.asarray(weights(1))
        tree = compress({"kernel": w}, method=MagnitudePruning(0.75))
        threshold = np.sort(np.abs(w).ravel())[72]
        expected = np.where(np.abs(w) < threshold, 0, w)
        np.testing.assert_array_equal(tree.params()["kernel"], expected)
        (layer,) = tree.report()
        assert (layer.parameter, layer.num_used) == (0.75, 24)
        assert layer.size_bits == pytest.approx(96 * entropy(expected == 0) + 24 * 32)

    @pytest.mark.parametrize(
        ("method", "dtype"),
        some_slow(
            [(method, jnp.bfloat16) for method in METHODS] + [("magnitude_pruning", jnp.float16)],
            *[
                (method, jnp.bfloat16)
                for method in ("kmeans", "optimal", "entropy_constrained", "vector")
            ],
        ),
    )
    def test_half_precision_stays_what_it_is(self, method, dtype):
        tree = compress({"kernel": weights(dtype=dtype)}, METHODS[method])
        assert tree.params()["kernel"].dtype == dtype
        (layer,) = tree.report()
        assert layer.dtype == jnp.dtype(dtype).name
        assert tree.original_bits == 16 * 96
        if method == "kmeans":
            assert layer.codebook_bits == 16 * 5

    def test_double_precision_and_numpy_arrays(self, x64):
        w = np.asarray(weights(1), np.float64) * 1e-3 + 1.0  # spread that float32 would blur
        tree = compress({"kernel": w}, method=Uniform(5))
        assert tree.params()["kernel"].dtype == np.float64
        assert tree.report()[0].signal_to_noise_db > 60

    def test_fewer_distinct_weights_than_clusters(self):
        params = {"kernel": np.tile(np.float32([0.0, 1.0, 2.5]), (12, 1))}
        tree = compress(params, method=KMeans(5))
        assert_trees_equal(tree.params(), params)
        (layer,) = tree.report()
        assert (layer.parameter, layer.num_used, layer.distortion) == (5, 3, 0.0)
        assert layer.signal_to_noise_db == math.inf
        assert "kernel uses 3 of 5 clusters" in str(tree.report())

    def test_more_clusters_than_weights(self):
        params = {"kernel": weights(1, (2, 4))}
        tree = compress(params, method=KMeans(1000))
        assert_trees_equal(tree.params(), params)
        assert tree.codebook("kernel").shape == (8,)
        assert tree.report()[0].num_used == 8

    @pytest.mark.parametrize("num_bins", [4096, 8])
    def test_quantizing_twice_changes_nothing(self, num_bins):
        # With 8 bins two centroids may share a bin, which must not join them.
        w = np.asarray(weights(1)) ** 3
        first = compress({"kernel": w}, method=KMeans(7, num_bins=num_bins))
        second = compress(first.params(), method=KMeans(7, num_bins=num_bins))
        assert_trees_equal(first.params(), second.params())
        assert second.report().distortion == 0

    @pytest.mark.parametrize(
        ("num_clusters", "dtype"),
        some_slow(
            [(4, jnp.uint2), (16, jnp.uint4), (256, jnp.uint8), (257, jnp.uint16)],
            (4, jnp.uint2),
            (256, jnp.uint8),
            (257, jnp.uint16),
        ),
    )
    def test_assignments_have_the_smallest_unsigned_dtype(self, num_clusters, dtype):
        # A codebook has no more entries than there are weights.
        shape = SHAPE if num_clusters <= 16 else (40, 20)
        params = {"kernel": (np.arange(math.prod(shape)) % 250).astype(np.float32).reshape(shape)}
        tree = compress(params, method=Uniform(num_clusters))
        assert tree.codes("kernel").dtype == dtype
        assert tree.codes("kernel").shape == shape

    def test_leaves_of_all_sizes_share_one_solver(self):
        compress({"kernel": weights(1)}, method=KMeans(5))
        before = (solve_kmeans._cache_size(), intervals._encode._cache_size())
        compress({"kernel": weights(2, (4, 2)), "other": weights(3)}, method=KMeans(6))
        assert solve_kmeans._cache_size() == before[0]
        compress({"kernel": weights(4), "transposed": np.asarray(weights(5)).T}, method=KMeans(6))
        # Two new pairs of number of weights and number of clusters: (8, 6) and (96, 6).
        assert intervals._encode._cache_size() <= before[1] + 2


def signal_to_noise(before: Any, after: Any) -> float:
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    return float(10 * np.log10(np.sum(before**2) / np.sum((before - after) ** 2)))


class TestScale:
    @pytest.mark.parametrize(
        "scale", some_slow([-1.0, 1e-40, 1e-30, 1e-20, 1e18, 5e37], 1e-30, 1e-20, 1e18)
    )
    @pytest.mark.parametrize("method", QUICK)
    def test_no_method_depends_on_the_scale_of_the_weights(self, method, scale):
        plain = compress({"kernel": weights(1)}, METHODS[method])
        w = (np.asarray(weights(1), np.float64) * scale).astype(np.float32)
        tree = compress({"kernel": w}, METHODS[method])
        after = tree.params()["kernel"]
        expected = np.asarray(plain.params()["kernel"], np.float64) * scale
        # Subnormal weights of 1e-40 have five digits.
        np.testing.assert_allclose(after, expected, rtol=1e-4, atol=abs(scale) * 1e-5)
        compiled = jax.jit(lambda tree: tree.params()["kernel"])(tree)
        np.testing.assert_array_equal(compiled, after)
        (layer,) = tree.report()
        error = np.sum((np.asarray(w, np.float64) - np.asarray(after, np.float64)) ** 2)
        assert layer.distortion == pytest.approx(error, rel=1e-3)
        assert layer.signal_to_noise_db == pytest.approx(signal_to_noise(w, after), abs=0.01)
        (before,) = plain.report()
        assert layer.entropy_bits_per_weight == pytest.approx(before.entropy_bits_per_weight)

    @pytest.mark.slow
    def test_nor_does_the_linear_penalty(self):
        method = KMeans(5, diameter_penalty=0.1, form="linear")
        plain = compress({"kernel": weights(1)}, method)
        for power in (-100, 60):
            scaled = compress({"kernel": np.ldexp(np.asarray(weights(1)), power)}, method)
            expected = np.ldexp(np.asarray(plain.codebook("kernel")), power)
            np.testing.assert_allclose(scaled.codebook("kernel"), expected, rtol=1e-5)

    @pytest.mark.parametrize("scale", [1e-60, 1e-42, 1e-30, 1e30, 1e200])
    def test_nor_on_that_of_the_importance(self, scale):
        h = np.abs(np.asarray(weights(2), np.float64)) + 0.1
        params = {"kernel": weights(1)}
        plain = compress(params, method=KMeans(5), importance={"kernel": h.astype(np.float32)})
        tree = compress(params, method=KMeans(5), importance={"kernel": h * scale})
        np.testing.assert_allclose(tree.params()["kernel"], plain.params()["kernel"], 1e-5)
        expected = plain.report().distortion * scale
        assert tree.report().distortion == pytest.approx(expected, rel=1e-5)
        estimate = DiagonalEstimate({"kernel": (h * scale)}, None)
        if 1e-38 < scale < 1e38:
            estimate = jax.tree.map(lambda own: jax.device_put(own.astype(np.float32)), estimate)
        again = compress(params, method=KMeans(5), importance=estimate)
        assert again.report()[0].is_weighted

    def test_small_errors_beside_a_large_weight_are_not_lost(self):
        w = np.asarray(weights(1)).copy()
        w[0, 0] = -3e38
        (layer,) = compress({"kernel": w}, method=MagnitudePruning(0.5)).report()
        pruned = np.sort(np.abs(w).ravel())[:48].astype(np.float64)
        assert layer.distortion == pytest.approx(np.sum(pruned**2), rel=1e-5)
        expected = 20 * math.log10(3e38) - 10 * math.log10(np.sum(pruned**2))
        assert layer.signal_to_noise_db == pytest.approx(expected, abs=0.01)


class TestStacks:
    @pytest.mark.parametrize(
        "method", some_slow(METHODS, "vector", "optimal", "entropy_constrained", "trellis_coded")
    )
    def test_every_layer_of_a_stack_is_quantized_on_its_own(self, method):
        layers = [np.asarray(weights(seed)) for seed in (1, 2, 3)]
        layers = [own * np.float32(unit) for own, unit in zip(layers, (1, 100, 1e-35), strict=True)]
        h = [np.abs(weights(seed)) + np.float32(0.1) for seed in (4, 5, 6)]
        own = METHODS[method]
        tree = compress({"w": np.stack(layers)}, own, stacked="w", importance={"w": np.stack(h)})
        alone = compress(layers, own, importance=h)
        np.testing.assert_allclose(tree.params()["w"], np.stack(alone.params()), rtol=1e-6)
        compiled = jax.jit(lambda tree: tree.params()["w"])(tree)
        np.testing.assert_array_equal(compiled, tree.params()["w"])
        report, (layer,) = alone.report(), tree.report()
        assert (layer.num_codebooks, layer.shape) == (3, (3, *SHAPE))
        assert layer.size_bits == pytest.approx(report.size_bits)
        assert layer.description_bits == pytest.approx(sum(one.description_bits for one in report))
        assert layer.distortion == pytest.approx(report.distortion, rel=1e-5)
        assert "3 of 12x8" in str(tree.report())
        if method == "kmeans":
            assert tree.codebook("w").shape == (3, 5)
            assert tree.codes("w").shape == (3, *SHAPE)

    def test_stacks_are_found_by_their_names_or_named(self):
        params = {"ScanBlock_0": {"kernel": weights(1, (2, *SHAPE))}}
        (layer,) = compress(params, method=KMeans(5)).report()
        assert layer.num_codebooks == 2
        plain = compress(params, method=KMeans(5), stacked=[]).report()
        assert plain[0].num_codebooks == 1
        assert "one codebook for all three axes: ScanBlock_0/kernel; name those" in str(plain)

    def test_gains_and_biases_of_stacks_are_kept_and_said(self):
        params = {
            "ScanBlock_0": {
                "Dense_0": {
                    "kernel": weights(1, (2, *SHAPE)),
                    "bias": np.ones((2, 8), np.float32),
                },
                "LayerNorm_0": {name: np.ones((2, 8), np.float32) for name in ("scale", "bias")},
            }
        }
        tree = compress(params, method=KMeans(5))
        assert tree.paths == ("ScanBlock_0/Dense_0/kernel",)
        assert (
            "kept, bias by its name: 2 (ScanBlock_0/Dense_0/bias, ScanBlock_0/LayerNorm_0/bias)\n"
            "kept, scale by its name: 1 (ScanBlock_0/LayerNorm_0/scale)"
        ) in str(tree.report())


@pytest.fixture
def few_candidates(monkeypatch):
    """Codebooks that trees of 192 weights can pay for; time goes by the largest of a curve."""
    monkeypatch.setattr(intervals, "_CANDIDATES", (1, 2, 3, 4, 6, 8, 12, 16, 24, 32))


class TestBudgets:
    @pytest.mark.parametrize(
        "method",
        some_slow(
            ["kmeans", "entropy_constrained", "uniform", "round_to_nearest", "magnitude_pruning"],
            "kmeans",
            "entropy_constrained",
        ),
    )
    def test_what_is_kept_to(self, method, few_candidates):
        params, own = nested_dict(), METHODS[method].at(None)
        finest = compress(params, own, bits_per_weight=30.0).report()
        tree = compress(params, own, bits_per_weight=12.0)
        report = tree.report()
        size = report.size_bits - report.kept_bits
        assert bits_in_file(tree) <= 12.0 * 192
        assert report.bits_per_weight == pytest.approx(size / 192)
        assert report.distortion >= finest.distortion
        # Half of such a small file is its header.
        assert len(to_bytes(compress(params, own, ratio=1.75))) <= 832 / 1.75
        assert len(to_bytes(compress(params, own, size_bytes=450))) <= 450
        bound = 3 * report.distortion + 0.01
        within = compress(params, own, max_distortion=bound).report()
        assert within.distortion <= bound
        assert within.size_bits <= report.size_bits

    @pytest.mark.slow
    def test_bits_go_where_they_lower_the_distortion_most(self, few_candidates):
        # Over all pairs of codebooks, by brute force.
        params = {"a": 3 * np.asarray(weights(1, (40, 20))), "b": weights(3, (40, 20))}
        ones = jax.tree.map(np.ones_like, params)
        tree = compress(params, KMeans(), importance=ones, bits_per_weight=4.0)
        assert bits_in_file(tree) <= 4.0 * 1600
        found = [compress(params, KMeans(size)) for size in intervals._CANDIDATES]
        bits = np.add.outer(*([bits_in_file(own, path) for own in found] for path in "ab"))
        lost = np.add.outer(*([own.report()[n].distortion for own in found] for n in (0, 1)))
        best = np.min(lost[bits <= 4.0 * 1600])
        assert tree.report().distortion <= 1.05 * best
        clusters = {layer.path: layer.parameter for layer in tree.report()}
        assert clusters["a"] > clusters["b"]

    def test_a_fixed_parameter_stays_as_it_is(self, few_candidates):
        tree = compress(
            nested_dict(), {"hidden/*": RoundToNearest(8), "*": Uniform()}, bits_per_weight=7.5
        )
        report = tree.report()
        assert report[0].parameter == 8
        assert report[0].method == "round_to_nearest"
        assert bits_in_file(tree) <= 7.5 * 192
        assert "integers, 8 bits" in str(report)

    @pytest.mark.parametrize("method", some_slow([Uniform, KMeans], KMeans))
    def test_a_curve_promises_what_its_points_cost(self, method, few_candidates):
        params = nested_dict()
        found = curve(params, method())["hidden/kernel"]
        for place in (4, 5):  # solved by the program of five clusters
            layer, _ = compress(params, method(int(found.parameter[place]))).report()
            assert found.rate_bits[place] == pytest.approx(layer.entropy_bits_per_weight, rel=1e-3)
            assert found.distortion[place] == pytest.approx(layer.distortion, rel=1e-3)
            assert found.side_bits[place] == layer.codebook_bits
        assert found.size_bits(96)[3] == pytest.approx(96 * found.rate_bits[3] + 32 * 4)
        assert curve(params, method(5))["hidden/kernel"].parameter.tolist() == [5.0]


class TestLeaves:
    @pytest.mark.parametrize("method", QUICK)
    def test_float64_without_x64_is_computed_in_float32_and_given_back(self, method):
        w = np.asarray(weights(1), np.float64) * 1e100  # beyond float32
        with pytest.warns(UserWarning, match="1 leaves are float64 while JAX computes in") as told:
            tree = compress({"kernel": w}, METHODS[method])
        assert [warning.filename for warning in told] == [__file__]
        after = tree.params()["kernel"]
        assert (type(after), after.dtype) == (np.ndarray, np.float64)
        plain = compress({"kernel": weights(1)}, METHODS[method]).params()
        expected = np.asarray(plain["kernel"], np.float64) * 1e100
        np.testing.assert_allclose(after, expected, rtol=1e-5)
        report = tree.report()
        assert (report[0].dtype, report[0].computed_in) == ("float64", "float32")
        assert report[0].distortion == pytest.approx(np.sum((w - after) ** 2), rel=1e-4)
        assert "computed in float32, given back as they came: kernel" in str(report)

    def test_other_byte_orders_and_numbers_of_numpy(self):
        w = np.asarray(weights(1))
        plain = compress({"kernel": w}, method=KMeans(5))
        for count in (np.int64(5), np.uint8(5)):
            swapped = compress({"kernel": w.astype(">f4")}, method=KMeans(count))
            assert_trees_equal(swapped.params(), plain.params())
        assert KMeans(5, num_iterations=np.uint8(200)) == KMeans(5)
        many = compress({"kernel": w}, Uniform(num_bins=np.int64(4096)))
        assert many.report()[0].parameter == 16
        bits = compress({"kernel": w}, method=RoundToNearest(np.uint8(8)))
        assert bits.report()[0].parameter == 8
        half = compress({"kernel": w}, method=MagnitudePruning(np.float32(0.5)))
        assert half.report()[0].parameter == 0.5

    def test_views_of_one_buffer_count_once(self):
        w = np.asarray(weights(1))
        views = {"embed": w, "head": w.T, "again": w.view(), "flat": w.reshape(-1)}
        # The curvatures of all places add up: |w| + 1 here.
        h = {name: np.zeros_like(view) for name, view in views.items()}
        h |= {"embed": np.abs(w), "head": np.ones_like(w.T)}
        tree = compress(views, method=KMeans(5), importance=h)
        one = compress({"w": w.copy()}, method=KMeans(5), importance={"w": np.abs(w) + 1})
        expected = one.params()["w"]
        restored = tree.params()
        assert tree.size_bits == one.size_bits
        np.testing.assert_array_equal(restored["embed"], expected)
        np.testing.assert_array_equal(restored["head"], expected.T)
        np.testing.assert_array_equal(restored["flat"], expected.reshape(-1))
        assert {tree.report()[0].path, *tree.report()[0].tied_paths} == set(views)

    def test_a_single_array_and_keys_with_brackets_and_backslashes(self):
        expected = compress({"kernel": weights(1)}, method=KMeans(5)).params()["kernel"]
        tree = compress(weights(1), method=KMeans(5))
        np.testing.assert_array_equal(tree.params(), expected)
        assert tree.paths == ("",)
        assert str(tree.report()).splitlines()[2].startswith("(the whole tree)")
        for name in ("w[0]", "a\\b", "*", "mlp/~/w"):
            named = compress({name: weights(1), "w0": weights(2)}, select=[name], method=KMeans(5))
            np.testing.assert_array_equal(named.params()[name], expected)
        levels = compress(
            {"w[0]": weights(1), "w0": weights(2)}, {"w[0]": KMeans(6), "*": KMeans(5)}
        )
        assert [layer.parameter for layer in levels.report()] == [5, 6]

    def test_an_equinox_module_keeps_its_functions(self):
        eqx = pytest.importorskip("equinox")
        made = eqx.filter_jit(lambda key: eqx.nn.MLP(12, 8, 8, 1, key=key))
        module = made(jax.random.key(0))
        tree = compress(module, method=KMeans(5))
        assert tree.paths == ("layers/0/weight", "layers/1/weight")
        restored = tree.params()
        assert restored.activation is module.activation

        @jax.jit
        def forward(tree, x):
            return tree.params()(x)

        x = np.ones(12, np.float32)
        np.testing.assert_allclose(forward(tree, x), restored(x), rtol=1e-6)
        other = made(jax.random.key(1))
        forward(compress(other, method=KMeans(5)), x)
        assert forward._cache_size() == 1


class TestImportance:
    def test_an_estimate_goes_through_the_default_policy(self):
        params = nested_dict()
        # Some entries are negative.
        mean = jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(0.5), params)
        estimate = DiagonalEstimate(mean, jax.tree.map(np.zeros_like, mean))
        tree = compress(params, importance=estimate, method=KMeans(5))
        importance = CurvaturePolicy().apply(estimate).importance
        expected = compress(params, importance=importance, method=KMeans(5))
        assert_trees_equal(tree.params(), expected.params())

    def test_a_leaf_without_positive_importance_is_plain_and_said(self):
        params = nested_dict()
        mean = jax.tree.map(np.ones_like, params)
        mean["out"]["kernel"] = np.zeros(SHAPE, np.float32)
        tree = compress(params, importance=DiagonalEstimate(mean, mean), method=KMeans(5))
        hidden, out = report = tree.report()
        assert (hidden.is_weighted, out.is_weighted) == (True, False)
        assert report.distortion == hidden.distortion
        assert "weighted alike and left out of the total distortion: out/kernel" in str(report)

    def test_only_selected_leaves_need_importance(self):
        params = nested_dict()
        ones = np.ones(SHAPE, np.float32)
        whole = compress(params, importance=jax.tree.map(np.ones_like, params), method=KMeans(5))
        sparse = {"hidden": {"kernel": ones, "bias": None}, "out": {"kernel": ones}}
        assert_trees_equal(
            whole.params(), compress(params, importance=sparse, method=KMeans(5)).params()
        )

    def test_importance_of_tied_places_adds_up(self):
        shared = weights(1)
        tied = {"embed": shared, "head": shared}
        one, two = np.abs(weights(2)), np.abs(weights(3))
        separate = compress(tied, importance={"embed": one, "head": two}, method=KMeans(5))
        summed = compress({"kernel": shared}, importance={"kernel": one + two}, method=KMeans(5))
        np.testing.assert_array_equal(separate.params()["embed"], summed.params()["kernel"])
        once = compress(tied, importance={"embed": one, "head": one}, method=KMeans(5))
        assert once.report().distortion == pytest.approx(
            compress({"k": shared}, importance={"k": one}, method=KMeans(5)).report().distortion
        )

    @pytest.mark.parametrize("method", ["round_to_nearest", "magnitude_pruning"])
    def test_elsewhere_it_weighs_the_report_only(self, method):
        params = {"kernel": weights(1)}
        plain = compress(params, METHODS[method])
        h = np.full(SHAPE, 3, np.float32)
        weighted = compress(params, METHODS[method], importance={"kernel": h})
        assert_trees_equal(plain.params(), weighted.params())
        assert weighted.report().distortion == pytest.approx(3 * plain.report().distortion)
        assert math.isnan(plain.report().predicted_loss_rise_nats)


def with_bad_entry(value: float) -> dict[str, Any]:
    params = nested_dict()
    kernel = np.array(params["out"]["kernel"])
    kernel[0, 0] = value
    params["out"]["kernel"] = jax.device_put(kernel)
    return params


class TestBadInput:
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("method", METHODS)
    def test_weights_that_are_not_finite(self, method, value):
        with pytest.raises(
            ValueError, match=r"params must be finite, got 1 NaN .* 96 entries of 'out/kernel'"
        ):
            compress(with_bad_entry(value), METHODS[method])

    def test_kept_leaves_may_hold_anything(self):
        params = nested_dict()
        params["out"]["bias"] = np.full(8, np.nan, np.float32)
        assert compress(params, method=KMeans(5)).paths == ("hidden/kernel", "out/kernel")

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_importance_that_is_not_finite(self, value):
        curvature = jax.tree.map(np.abs, with_bad_entry(value))
        estimate = DiagonalEstimate(curvature, curvature)
        for given in (curvature, estimate):
            with pytest.raises(
                ValueError, match=r"importance must be finite, got 1 NaN .* entries of 'out/kernel'"
            ):
                compress(nested_dict(), importance=given)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda c: c.update(out={}), "importance has no leaf 'out/kernel', which is quantized"),
            (
                lambda c: c["out"].update(kernel=np.ones((8, 12), np.float32)),
                r"importance at 'out/kernel' must have the shape .* \(12, 8\), got \(8, 12\)",
            ),
            (
                lambda c: c["out"].update(kernel=np.zeros(SHAPE)),
                "importance is 0 throughout the leaf 'out/kernel'.*CurvaturePolicy",
            ),
            (
                lambda c: c["out"].update(kernel=np.r_[-1.0, np.ones(95)].reshape(SHAPE)),
                "at least 0, got 1 negative among the 96 entries of 'out/kernel'.*CurvaturePolicy",
            ),
        ],
    )
    def test_importance_that_does_not_fit(self, change, message):
        curvature = jax.tree.map(np.ones_like, nested_dict())
        change(curvature)
        with pytest.raises(ValueError, match=message):
            compress(nested_dict(), importance=curvature)

    def test_importance_of_a_wrong_type(self):
        curvature = jax.tree.map(lambda leaf: np.asarray(leaf, np.complex64), nested_dict())
        with pytest.raises(
            TypeError, match=r"importance at 'hidden/kernel' must be real.*complex64"
        ):
            compress(nested_dict(), importance=curvature)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (lambda: {"method": KMeans(0)}, "num_clusters must be at least 1, got 0"),
            (
                lambda: {"method": {"hidden/*": KMeans(4)}},
                "no pattern that matches .* 'out/kernel'",
            ),
            (
                lambda: {"method": {"typo": KMeans(4), "*": KMeans(4)}},
                "pattern 'typo' in method matches no",
            ),
            (lambda: {"method": RoundToNearest(1)}, "num_bits must be from 2 to 8, got 1"),
            (lambda: {"method": RoundToNearest(9)}, "num_bits must be from 2 to 8, got 9"),
            (lambda: {"method": MagnitudePruning(1.5)}, "fraction from 0 to 1, got 1.5"),
            (lambda: {"method": MagnitudePruning("half")}, "0 to 1, got 'half'"),
            (lambda: {"method": KMeans(5, diameter_penalty=-1.0)}, "finite and at least 0, got -1"),
            (lambda: {"method": KMeans(5, diameter_penalty=math.inf)}, "at least 0, got inf"),
            (
                lambda: {"method": KMeans(5, diameter_penalty=0.1, form="none")},
                "must be 0 with form",
            ),
            (lambda: {"method": KMeans(5, form="square")}, "form must be one of .* got 'square'"),
            (lambda: {"method": KMeans(5, num_iterations=0)}, "num_iterations must be at least 1"),
            (
                lambda: {"method": EntropyConstrained(-1.0)},
                "multiplier must be finite and at",
            ),
            (lambda: {"method": KMeans(scale="row")}, "scale must be one of .* got 'row'"),
            (lambda: {"method": KMeans(group_size=0)}, "group_size must be at least 1, got 0"),
            (
                lambda: {"ratio": 4, "size_bytes": 300},
                "one budget at a time, got size_by",
            ),
            (lambda: {"ratio": math.nan}, "ratio must be positive and finite, got nan"),
            (
                lambda: {"size_bytes": 60},
                "header and the leaves that are kept take .* bytes alone, of the tree's 832",
            ),
            (
                lambda: {"bits_per_weight": 0.01, "method": RoundToNearest(4).at(None)},
                "these methods need .* at least",
            ),
            (lambda: {"max_distortion": 1e-30, "method": KMeans(5)}, "need .* at least"),
            (lambda: {"select": "kernel"}, "the pattern 'kernel' in select matches no leaf"),
        ],
    )
    def test_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            compress(nested_dict(), **options())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (lambda: {"method": KMeans(2.5)}, "num_clusters must be an integer, got 2.5"),
            (lambda: {"method": KMeans(True)}, "num_clusters must be an integer, got True"),
            (lambda: {"method": KMeans(num_bins=0.5)}, "num_bins must be an integer, got 0.5"),
            (lambda: {"method": {0: KMeans(4)}}, "keys of method must be glob patterns .* got 0"),
            (lambda: {"method": "kmeans"}, "method must be a method of .* got 'kmeans'"),
            (lambda: {"method": KMeans}, "method must be a method of"),
            (lambda: {"bits_per_weight": "3"}, "bits_per_weight must be a number, got '3'"),
            (lambda: {"select": [3]}, "select must be a predicate"),
        ],
    )
    def test_types_of_options(self, options, message):
        with pytest.raises(TypeError, match=message):
            compress(nested_dict(), **options())

    def test_two_leaves_with_one_path(self):
        with pytest.raises(ValueError, match=r"two leaves of the tree have the path 'a/b'"):
            compress({"a/b": weights(1), "a": {"b": weights(2)}})

    def test_masked_weights(self):
        with pytest.raises(TypeError, match="the leaf 'kernel' is a masked array"):
            compress({"kernel": np.ma.masked_less(np.asarray(weights()), 0)})

    def test_traced_weights(self):
        with pytest.raises(TypeError, match="the leaf 'kernel' is traced; call it outside jit"):
            jax.jit(lambda w: compress({"kernel": w}).params())(weights())

    def test_sizes_inside_jit(self):
        tree = compress({"kernel": weights()}, method=KMeans(5))
        with pytest.raises(ValueError, match="arrays with known values; ask for them outside jit"):
            jax.jit(lambda tree: tree.size_bits)(tree)

    def test_leaves_that_are_not_there(self):
        tree = compress(nested_dict(), method=KMeans(5))
        with pytest.raises(ValueError, match=r"there is no leaf 'typo'; .* hidden/kernel, out/ker"):
            tree.codebook("typo")
        with pytest.raises(ValueError, match="the leaf 'out/bias' was not compressed"):
            tree.codes("out/bias")
        rounded = compress(nested_dict(), RoundToNearest(4))
        with pytest.raises(ValueError, match="'out/kernel' has no codebook after round_to_nearest"):
            rounded.codebook("out/kernel")
        pruned = compress(nested_dict(), MagnitudePruning(0.5))
        with pytest.raises(ValueError, match="'out/kernel' has no codes after magnitude_pruning"):
            pruned.codes("out/kernel")


class TestChunks:
    """What is compiled and held in memory does not depend on how many shapes there are."""

    def test_thirty_shapes_compile_as_few_programs_as_two(self):
        rng = np.random.default_rng(0)

        def tree(number: int) -> dict[str, np.ndarray]:
            # From one chunk to several; no two shapes are alike.
            return {
                f"kernel{k}": rng.standard_normal((7 + k, 3 + 25 * k)).astype(np.float32)
                for k in range(number)
            }

        method = METHODS["kmeans"]
        compress({"kernel": tree(30)["kernel29"], "other": tree(2)["kernel0"]}, method)
        with count_compilations() as count:
            compressed = compress(tree(30), method)
            compressed.params()
            compressed.report()
        assert count() <= 8

    @pytest.mark.slow
    def test_memory_beside_weights_and_codes_is_that_of_a_few_chunks(self):
        script = (
            "import resource, numpy as np, jaxcomp\n"
            "from jaxcomp.quantizers import RoundToNearest\n"
            "weights = np.random.default_rng(0).standard_normal((20_000, 1_000), np.float32)\n"
            "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
            "jaxcomp.compress({'kernel': weights[:300]}, RoundToNearest(4))\n"
            "before = peak()\n"
            "tree = jaxcomp.compress({'kernel': weights}, RoundToNearest(4))\n"
            "print(peak() - before)\n"
        )
        found = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        # Codes of a byte and their copy of the same size, 20 MB each; the weights have 80.
        assert int(found.stdout) <= 70
