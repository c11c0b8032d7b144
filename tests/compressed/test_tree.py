"""`jaxcomp.quantize` on every kind of pytree, against NumPy and the kernels called directly."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tree_problems import LEVELS, SHAPE, entropy, nested_dict, weights

from jaxcomp import quantize
from jaxcomp.compressed import tree as tree_module
from jaxcomp.compressed.tree import METHODS, ClusteredLeaf, PrunedLeaf, RoundedLeaf
from jaxcomp.curvature import CurvaturePolicy, DiagonalEstimate
from jaxcomp.quantizers import kmeans, round_to_nearest, solve_kmeans


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
    return LinenNetwork().init(jax.random.key(0), jnp.ones((1, 12)))


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
        assert bool(jnp.all(x == y))


class TestPytrees:
    @pytest.mark.parametrize("kind", TREES)
    @pytest.mark.parametrize("method", METHODS)
    def test_any_tree_comes_back_in_its_structure(self, kind, method):
        build, paths = TREES[kind]
        params = build()
        tree = quantize(params, method=method, **LEVELS[method])
        restored = tree.dequantize()
        assert tree.paths == paths
        assert jax.tree.structure(restored) == jax.tree.structure(params)
        num_changed = 0
        for before, after in zip(jax.tree.leaves(params), jax.tree.leaves(restored), strict=True):
            assert (after.shape, after.dtype) == (before.shape, before.dtype)
            num_changed += after is not before
        assert num_changed == len(paths)  # all other leaves are the very objects given

    def test_an_nnx_module_is_a_pytree_too(self):
        model = NnxNetwork(nnx.Rngs(0))
        restored = quantize(model, num_clusters=5).dequantize()
        assert isinstance(restored, NnxNetwork)
        assert len(np.unique(restored.layers[0].kernel[...])) == 5
        assert restored(jnp.ones((2, 12))).shape == (2, 8)

    @pytest.mark.parametrize("method", METHODS)
    def test_dequantize_under_jit_equals_eager_and_compiles_once(self, method, strict_promotion):
        @jax.jit
        def forward(tree):
            return tree.dequantize()

        for seed in (0, 1):
            params = {"kernel": weights(seed), "bias": weights(2, (8,)), "step": jnp.int32(seed)}
            tree = quantize(params, method=method, **LEVELS[method])
            assert_trees_equal(forward(tree), tree.dequantize())
        assert forward._cache_size() == 1

    def test_the_tree_itself_goes_through_jit(self):
        tree = quantize(nested_dict(), num_clusters=5)
        again = jax.jit(lambda tree: tree)(tree)
        assert_trees_equal(tree.dequantize(), again.dequantize())
        assert again.size_bits == tree.size_bits

    def test_gradients_reach_the_centroids(self):
        tree = quantize({"kernel": weights()}, num_clusters=5)
        leaf = tree.leaf("kernel")
        assert isinstance(leaf, ClusteredLeaf)

        def total(centroids):
            changed = leaf._replace(centroids=centroids)
            return jnp.sum(type(tree)((changed,), tree.layout).dequantize()["kernel"])

        np.testing.assert_allclose(jax.grad(total)(leaf.centroids), leaf.counts)

    def test_tied_weights_are_one_array_before_and_after(self):
        shared = weights(1)
        tied = {"embed": shared, "head": {"kernel": shared}, "bias": weights(2, (8,))}
        tree = quantize(tied, num_clusters=5)
        alone = quantize({"embed": shared, "bias": tied["bias"]}, num_clusters=5)
        restored = tree.dequantize()
        assert restored["embed"] is restored["head"]["kernel"]
        assert (tree.size_bits, tree.original_bits) == (alone.size_bits, alone.original_bits)
        assert tree.paths == ("embed", "head/kernel")
        (layer,) = tree.report()
        assert layer.tied_paths == ("head/kernel",)
        assert "embed (+1 tied)" in str(tree.report())

    def test_a_tied_leaf_is_quantized_if_any_of_its_places_is_selected(self):
        shared = weights(1)
        tree = quantize({"embed": shared, "head": shared}, select="head", num_clusters=5)
        restored = tree.dequantize()
        assert restored["embed"] is restored["head"]
        assert len(np.unique(restored["embed"])) == 5

    def test_equal_arrays_are_not_tied(self):
        tree = quantize({"a": weights(1), "b": weights(1)}, num_clusters=5)
        assert len(tree.report()) == 2

    def test_repr_is_short_and_never_fails(self):
        tree = quantize(nested_dict(), num_clusters=5)
        text = repr(tree)
        assert text.startswith("QuantizedTree(kmeans, 2 of 4 leaves quantized, 192 weights at ")
        assert len(text) < 160
        seen = []
        jax.jit(lambda tree: seen.append(repr(tree)))(tree)
        assert seen == ["QuantizedTree(kmeans, 2 of 4 leaves quantized)"]
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
        assert quantize(nested_dict(), select=select, num_clusters=5).paths == expected

    def test_what_cannot_be_quantized_is_kept_even_if_selected(self):
        params = {
            "codes": jnp.arange(96, dtype=jnp.int8).reshape(SHAPE),
            "mask": jnp.ones(SHAPE, bool),
            "float8": jnp.ones(SHAPE, jnp.float8_e4m3fn),
            "function": jax.nn.relu,
            "empty": jnp.zeros((0, 8)),
            "key": jax.random.key(0),
            "rate": 0.5,
            "kernel": weights(),
        }
        tree = quantize(params, select="*", num_clusters=5)
        assert tree.paths == ("kernel",)
        restored = tree.dequantize()
        compiled = jax.jit(lambda tree: tree.dequantize()["kernel"])(tree)
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
        tree = quantize({"step": jnp.int32(1), "empty": jnp.zeros((0, 3))})
        assert (tree.paths, tree.ratio, tree.size_bits) == ((), 1.0, 32.0)
        assert len(tree.report()) == 0
        assert "2 leaves kept" in str(tree.report())
        assert quantize({}).ratio == 1.0

    def test_number_of_clusters_by_path(self):
        tree = quantize(nested_dict(), num_clusters={"*": 7, "hidden/*": 6, "*/kernel": 5})
        assert {layer.path: layer.level for layer in tree.report()} == {
            "hidden/kernel": 6,
            "out/kernel": 5,
        }
        assert tree.centroids("hidden/kernel").shape == (6,)

    def test_bits_and_sparsity_by_path(self):
        bits = quantize(
            nested_dict(), method="round_to_nearest", num_bits={"hidden/*": 3, "out/*": 8}
        )
        assert [layer.level for layer in bits.report()] == [3, 8]
        pruned = quantize(
            nested_dict(), method="magnitude_pruning", sparsity={"hidden/*": 0.25, "*": 0.75}
        )
        assert [layer.level for layer in pruned.report()] == [0.25, 0.75]


class TestValues:
    def test_kmeans_is_the_kernel_on_every_leaf(self):
        params = nested_dict()
        curvature = jax.tree.map(lambda leaf: jnp.abs(leaf) + 0.1, params)
        tree = quantize(params, num_clusters=5, curvature=curvature, diameter_penalty=0.01)
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
            np.testing.assert_allclose(tree.centroids(path), expected.centroids, rtol=1e-6)
            np.testing.assert_array_equal(
                tree.assignments(path), expected.assignments.reshape(SHAPE)
            )
            (layer,) = [layer for layer in tree.report() if layer.path == path]
            assert layer.distortion == pytest.approx(float(expected.distortion), rel=1e-5)
            assert layer.is_weighted

    def test_kmeans_is_a_fixed_point_of_weighted_lloyd(self):
        params = {"kernel": weights(1)}
        h = np.abs(np.asarray(weights(2), np.float64)) + 0.1
        tree = quantize(params, num_clusters=5, curvature={"kernel": h.astype(np.float32)})
        assert tree.report()[0].converged
        w = np.asarray(params["kernel"], np.float64)
        centroids = np.asarray(tree.centroids("kernel"), np.float64)
        nearest = np.argmin(np.abs(w[..., None] - centroids), axis=-1)
        np.testing.assert_array_equal(tree.assignments("kernel"), nearest)
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
        tree = quantize({"kernel": jnp.asarray(w)}, method="uniform", num_clusters=5)
        edges = np.linspace(w.min(), w.max(), 6)[1:-1]
        cells = np.sum(w[..., None] > edges, axis=-1)
        np.testing.assert_array_equal(tree.assignments("kernel"), cells)
        means = [w[cells == k].mean() for k in range(5)]
        np.testing.assert_allclose(tree.centroids("kernel"), means, rtol=1e-5)

    def test_rounding_against_numpy(self):
        w = np.asarray(weights(1))
        tree = quantize({"kernel": jnp.asarray(w)}, method="round_to_nearest", num_bits=4)
        scales = np.abs(w).max(axis=0) / 7
        leaf = tree.leaf("kernel")
        assert isinstance(leaf, RoundedLeaf)
        assert leaf.codes.dtype == jnp.int8
        np.testing.assert_allclose(leaf.scales, scales, rtol=1e-6)
        np.testing.assert_allclose(
            tree.dequantize()["kernel"], np.round(w / scales) * scales, rtol=1e-6
        )
        expected = round_to_nearest(jnp.asarray(w), num_bits=4).values
        np.testing.assert_array_equal(tree.dequantize()["kernel"], expected)
        (layer,) = tree.report()
        assert layer.fixed_bits_per_weight == 4
        assert layer.entropy_bits_per_weight == pytest.approx(entropy(leaf.codes))
        assert layer.codebook_bits == 32 * SHAPE[1]

    def test_a_rounded_vector_has_one_scale(self):
        vector = weights(2, (8,))
        tree = quantize({"bias": vector}, method="round_to_nearest", num_bits=8, select="bias")
        leaf = tree.leaf("bias")
        assert isinstance(leaf, RoundedLeaf)
        assert leaf.scales.shape == (1,)
        step = float(jnp.max(jnp.abs(vector))) / 127
        assert float(jnp.max(jnp.abs(tree.dequantize()["bias"] - vector))) <= step / 2 * (1 + 1e-6)

    def test_pruning_against_numpy(self):
        w = np.asarray(weights(1))
        tree = quantize({"kernel": jnp.asarray(w)}, method="magnitude_pruning", sparsity=0.75)
        leaf = tree.leaf("kernel")
        assert isinstance(leaf, PrunedLeaf)
        threshold = np.sort(np.abs(w).ravel())[72]
        expected = np.where(np.abs(w) < threshold, 0, w)
        np.testing.assert_array_equal(tree.dequantize()["kernel"], expected)
        (layer,) = tree.report()
        assert (layer.level, layer.num_used) == (0.75, 24)
        assert layer.size_bits == pytest.approx(96 * entropy(expected == 0) + 24 * 32)

    @pytest.mark.parametrize(
        ("method", "dtype"),
        [(method, jnp.bfloat16) for method in METHODS] + [("magnitude_pruning", jnp.float16)],
    )
    def test_half_precision_stays_what_it_is(self, method, dtype):
        tree = quantize({"kernel": weights(dtype=dtype)}, method=method, **LEVELS[method])
        assert tree.dequantize()["kernel"].dtype == dtype
        (layer,) = tree.report()
        assert layer.dtype == jnp.dtype(dtype).name
        assert tree.original_bits == 16 * 96
        if method == "kmeans":
            assert layer.codebook_bits == 16 * 5

    def test_double_precision_and_numpy_arrays(self, x64):
        w = np.asarray(weights(1), np.float64) * 1e-3 + 1.0  # spread that float32 would blur
        tree = quantize({"kernel": w}, num_clusters=5)
        assert tree.dequantize()["kernel"].dtype == np.float64
        assert tree.report()[0].signal_to_noise_db > 60

    def test_fewer_distinct_weights_than_clusters(self):
        params = {"kernel": jnp.tile(jnp.asarray([0.0, 1.0, 2.5], jnp.float32), (12, 1))}
        tree = quantize(params, num_clusters=5)
        assert_trees_equal(tree.dequantize(), params)
        (layer,) = tree.report()
        assert (layer.level, layer.num_used, layer.distortion) == (5, 3, 0.0)
        assert layer.signal_to_noise_db == math.inf
        assert "kernel uses 3 of 5 clusters" in str(tree.report())

    def test_more_clusters_than_weights(self):
        params = {"kernel": weights(1)}
        tree = quantize(params, num_clusters=1000)
        assert_trees_equal(tree.dequantize(), params)
        assert tree.centroids("kernel").shape == (96,)
        assert tree.report()[0].num_used == 96

    @pytest.mark.parametrize("num_bins", [4096, 8])
    def test_quantizing_twice_changes_nothing(self, num_bins):
        # With 8 bins two centroids may share a bin, which must not join them.
        w = weights(1) ** 3
        first = quantize({"kernel": w}, num_clusters=7, num_bins=num_bins)
        second = quantize(first.dequantize(), num_clusters=7, num_bins=num_bins)
        assert_trees_equal(first.dequantize(), second.dequantize())
        assert second.report().distortion == 0

    def test_assignments_have_the_smallest_unsigned_dtype(self):
        # At most 250 distinct weights, so that nothing has to be solved.
        params = {"kernel": (jnp.arange(800, dtype=jnp.float32) % 250).reshape(40, 20)}
        for num_clusters, dtype in ((256, jnp.uint8), (257, jnp.uint16)):
            tree = quantize(params, num_clusters=num_clusters)
            assert tree.assignments("kernel").dtype == dtype
            assert tree.assignments("kernel").shape == (40, 20)

    def test_leaves_of_all_sizes_share_one_solver(self):
        quantize({"kernel": weights(1)}, num_clusters=5)
        before = (solve_kmeans._cache_size(), tree_module._encode._cache_size())
        quantize({"kernel": weights(2, (4, 2)), "other": weights(3)}, num_clusters=6)
        assert solve_kmeans._cache_size() == before[0]
        quantize({"kernel": weights(4), "transposed": weights(5).T}, num_clusters=6)
        # Two new pairs of number of weights and number of clusters: (8, 6) and (96, 6).
        assert tree_module._encode._cache_size() <= before[1] + 2


def signal_to_noise(before: Any, after: Any) -> float:
    before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
    return float(10 * np.log10(np.sum(before**2) / np.sum((before - after) ** 2)))


class TestScale:
    @pytest.mark.parametrize("scale", [-1.0, 1e-40, 1e-30, 1e-20, 1e18, 5e37])
    @pytest.mark.parametrize("method", METHODS)
    def test_no_method_depends_on_the_scale_of_the_weights(self, method, scale):
        plain = quantize({"kernel": weights(1)}, method=method, **LEVELS[method])
        w = (np.asarray(weights(1), np.float64) * scale).astype(np.float32)
        tree = quantize({"kernel": w}, method=method, **LEVELS[method])
        after = tree.dequantize()["kernel"]
        expected = np.asarray(plain.dequantize()["kernel"], np.float64) * scale
        # Subnormal weights of 1e-40 have five digits.
        np.testing.assert_allclose(after, expected, rtol=1e-4, atol=abs(scale) * 1e-5)
        compiled = jax.jit(lambda tree: tree.dequantize()["kernel"])(tree)
        np.testing.assert_array_equal(compiled, after)
        (layer,) = tree.report()
        error = np.sum((np.asarray(w, np.float64) - np.asarray(after, np.float64)) ** 2)
        assert layer.distortion == pytest.approx(error, rel=1e-3)
        assert layer.signal_to_noise_db == pytest.approx(signal_to_noise(w, after), abs=0.01)
        (before,) = plain.report()
        assert layer.entropy_bits_per_weight == pytest.approx(before.entropy_bits_per_weight)

    def test_nor_does_the_linear_penalty(self):
        options = {"num_clusters": 5, "penalty_form": "linear"}
        plain = quantize({"kernel": weights(1)}, diameter_penalty=0.1, **options)
        for power in (-100, 60):
            scaled = quantize(
                {"kernel": jnp.asarray(np.ldexp(np.asarray(weights(1)), power))},
                diameter_penalty=0.1,
                **options,
            )
            expected = np.ldexp(np.asarray(plain.centroids("kernel")), power)
            np.testing.assert_allclose(scaled.centroids("kernel"), expected, rtol=1e-5)

    @pytest.mark.parametrize("scale", [1e-60, 1e-42, 1e-30, 1e30, 1e200])
    def test_nor_on_that_of_the_curvature(self, scale):
        h = np.abs(np.asarray(weights(2), np.float64)) + 0.1
        params = {"kernel": weights(1)}
        plain = quantize(params, num_clusters=5, curvature={"kernel": h.astype(np.float32)})
        tree = quantize(params, num_clusters=5, curvature={"kernel": h * scale})
        np.testing.assert_allclose(tree.dequantize()["kernel"], plain.dequantize()["kernel"], 1e-5)
        expected = plain.report().distortion * scale
        assert tree.report().distortion == pytest.approx(expected, rel=1e-5)
        estimate = DiagonalEstimate({"kernel": (h * scale)}, None)
        if 1e-38 < scale < 1e38:
            estimate = jax.tree.map(jnp.asarray, estimate)
        again = quantize(params, num_clusters=5, curvature=estimate)
        assert again.report()[0].is_weighted

    def test_small_errors_beside_a_large_weight_are_not_lost(self):
        w = np.asarray(weights(1)).copy()
        w[0, 0] = -3e38
        (layer,) = quantize({"kernel": w}, method="magnitude_pruning", sparsity=0.5).report()
        pruned = np.sort(np.abs(w).ravel())[:48].astype(np.float64)
        assert layer.distortion == pytest.approx(np.sum(pruned**2), rel=1e-5)
        expected = 20 * math.log10(3e38) - 10 * math.log10(np.sum(pruned**2))
        assert layer.signal_to_noise_db == pytest.approx(expected, abs=0.01)


class TestStacks:
    @pytest.mark.parametrize("method", METHODS)
    def test_every_layer_of_a_stack_is_quantized_on_its_own(self, method):
        layers = [weights(1), weights(2) * 100, weights(3) * 1e-35]
        h = [jnp.abs(weights(seed)) + 0.1 for seed in (4, 5, 6)]
        options = {"method": method, **LEVELS[method]}
        tree = quantize(
            {"w": jnp.stack(layers)}, stacked="w", curvature={"w": jnp.stack(h)}, **options
        )
        alone = quantize(layers, curvature=h, **options)
        np.testing.assert_allclose(tree.dequantize()["w"], jnp.stack(alone.dequantize()), rtol=1e-6)
        compiled = jax.jit(lambda tree: tree.dequantize()["w"])(tree)
        np.testing.assert_array_equal(compiled, tree.dequantize()["w"])
        report, (layer,) = alone.report(), tree.report()
        assert (layer.num_codebooks, layer.shape) == (3, (3, *SHAPE))
        assert layer.size_bits == pytest.approx(report.size_bits)
        assert layer.description_bits == pytest.approx(sum(one.description_bits for one in report))
        assert layer.distortion == pytest.approx(report.distortion, rel=1e-5)
        assert "3 of 12x8" in str(tree.report())
        if method == "kmeans":
            assert tree.centroids("w").shape == (3, 5)
            assert tree.assignments("w").shape == (3, *SHAPE)

    def test_stacks_are_found_by_their_names_or_named(self):
        params = {"ScanBlock_0": {"kernel": jnp.stack([weights(1), weights(2)])}}
        (layer,) = quantize(params, num_clusters=5).report()
        assert layer.num_codebooks == 2
        plain = quantize(params, num_clusters=5, stacked=[]).report()
        assert plain[0].num_codebooks == 1
        assert "one codebook for all three axes: ScanBlock_0/kernel; name those" in str(plain)

    def test_gains_and_biases_of_stacks_are_kept_and_said(self):
        params = {
            "ScanBlock_0": {
                "Dense_0": {
                    "kernel": jnp.stack([weights(1), weights(2)]),
                    "bias": jnp.ones((2, 8)),
                },
                "LayerNorm_0": {"scale": jnp.ones((2, 8)), "bias": jnp.ones((2, 8))},
            }
        }
        tree = quantize(params, num_clusters=5)
        assert tree.paths == ("ScanBlock_0/Dense_0/kernel",)
        assert (
            "kept, bias by its name: 2 (ScanBlock_0/Dense_0/bias, ScanBlock_0/LayerNorm_0/bias)\n"
            "kept, scale by its name: 1 (ScanBlock_0/LayerNorm_0/scale)"
        ) in str(tree.report())


class TestLeaves:
    @pytest.mark.parametrize("method", METHODS)
    def test_float64_without_x64_is_computed_in_float32_and_given_back(self, method):
        w = np.asarray(weights(1), np.float64) * 1e100  # beyond float32
        with pytest.warns(UserWarning, match="1 leaves are float64 while JAX computes in") as told:
            tree = quantize({"kernel": w}, method=method, **LEVELS[method])
        assert [warning.filename for warning in told] == [__file__]
        after = tree.dequantize()["kernel"]
        assert (type(after), after.dtype) == (np.ndarray, np.float64)
        plain = quantize({"kernel": weights(1)}, method=method, **LEVELS[method]).dequantize()
        expected = np.asarray(plain["kernel"], np.float64) * 1e100
        np.testing.assert_allclose(after, expected, rtol=1e-5)
        report = tree.report()
        assert (report[0].dtype, report[0].computed_in) == ("float64", "float32")
        assert report[0].distortion == pytest.approx(np.sum((w - after) ** 2), rel=1e-4)
        assert "computed in float32, given back as they came: kernel" in str(report)

    def test_other_byte_orders_and_numbers_of_numpy(self):
        w = np.asarray(weights(1))
        plain = quantize({"kernel": w}, num_clusters=5)
        for count in (np.int64(5), np.uint8(5)):
            swapped = quantize({"kernel": w.astype(">f4")}, num_clusters=count)
            assert_trees_equal(swapped.dequantize(), plain.dequantize())
        many = quantize({"kernel": w}, num_bins=np.int64(4096), num_iterations=np.uint8(200))
        assert many.report()[0].level == 16
        bits = quantize({"kernel": w}, method="round_to_nearest", num_bits=np.uint8(8))
        assert bits.report()[0].level == 8
        half = quantize({"kernel": w}, method="magnitude_pruning", sparsity=np.float32(0.5))
        assert half.report()[0].level == 0.5

    def test_views_of_one_buffer_count_once(self):
        w = np.asarray(weights(1))
        views = {"embed": w, "head": w.T, "again": w.view(), "flat": w.reshape(-1)}
        # The curvatures of all places add up: |w| + 1 here.
        h = {name: np.zeros_like(view) for name, view in views.items()}
        h |= {"embed": np.abs(w), "head": np.ones_like(w.T)}
        tree = quantize(views, num_clusters=5, curvature=h)
        one = quantize({"w": w.copy()}, num_clusters=5, curvature={"w": np.abs(w) + 1})
        expected = one.dequantize()["w"]
        restored = tree.dequantize()
        assert tree.size_bits == one.size_bits
        np.testing.assert_array_equal(restored["embed"], expected)
        np.testing.assert_array_equal(restored["head"], expected.T)
        np.testing.assert_array_equal(restored["flat"], expected.reshape(-1))
        assert {tree.report()[0].path, *tree.report()[0].tied_paths} == set(views)

    def test_a_single_array_and_keys_with_brackets_and_backslashes(self):
        expected = quantize({"kernel": weights(1)}, num_clusters=5).dequantize()["kernel"]
        tree = quantize(weights(1), num_clusters=5)
        np.testing.assert_array_equal(tree.dequantize(), expected)
        assert tree.paths == ("",)
        assert str(tree.report()).splitlines()[2].startswith("(the whole tree)")
        for name in ("w[0]", "a\\b", "*", "mlp/~/w"):
            named = quantize({name: weights(1), "w0": weights(2)}, select=[name], num_clusters=5)
            np.testing.assert_array_equal(named.dequantize()[name], expected)
        levels = quantize({"w[0]": weights(1), "w0": weights(2)}, num_clusters={"w[0]": 3, "*": 5})
        assert [layer.level for layer in levels.report()] == [5, 3]

    def test_an_equinox_module_keeps_its_functions(self):
        module = eqx.nn.MLP(12, 8, 8, 1, key=jax.random.key(0))
        tree = quantize(module, num_clusters=5)
        assert tree.paths == ("layers/0/weight", "layers/1/weight")
        restored = tree.dequantize()
        assert restored.activation is module.activation

        @jax.jit
        def forward(tree, x):
            return tree.dequantize()(x)

        x = jnp.ones(12)
        np.testing.assert_allclose(forward(tree, x), restored(x), rtol=1e-6)
        other = eqx.nn.MLP(12, 8, 8, 1, key=jax.random.key(1))
        forward(quantize(other, num_clusters=5), x)
        assert forward._cache_size() == 1


class TestCurvature:
    def test_an_estimate_goes_through_the_default_policy(self):
        params = nested_dict()
        mean = jax.tree.map(lambda leaf: leaf + 0.5, params)  # some entries are negative
        estimate = DiagonalEstimate(mean, jax.tree.map(jnp.zeros_like, mean))
        tree = quantize(params, curvature=estimate, num_clusters=5)
        importance = CurvaturePolicy().apply(estimate).importance
        expected = quantize(params, curvature=importance, num_clusters=5)
        assert_trees_equal(tree.dequantize(), expected.dequantize())

    def test_a_leaf_without_positive_curvature_is_plain_and_said(self):
        params = nested_dict()
        mean = jax.tree.map(jnp.ones_like, params)
        mean["out"]["kernel"] = jnp.zeros(SHAPE)
        tree = quantize(params, curvature=DiagonalEstimate(mean, mean), num_clusters=5)
        hidden, out = report = tree.report()
        assert (hidden.is_weighted, out.is_weighted) == (True, False)
        assert report.distortion == hidden.distortion
        assert "weighted alike and left out of the total distortion: out/kernel" in str(report)

    def test_only_selected_leaves_need_curvature(self):
        params = nested_dict()
        ones = jnp.ones(SHAPE)
        whole = quantize(params, curvature=jax.tree.map(jnp.ones_like, params), num_clusters=5)
        sparse = {"hidden": {"kernel": ones, "bias": None}, "out": {"kernel": ones}}
        assert_trees_equal(
            whole.dequantize(), quantize(params, curvature=sparse, num_clusters=5).dequantize()
        )

    def test_curvature_of_tied_places_adds_up(self):
        shared = weights(1)
        tied = {"embed": shared, "head": shared}
        one, two = jnp.abs(weights(2)), jnp.abs(weights(3))
        separate = quantize(tied, curvature={"embed": one, "head": two}, num_clusters=5)
        summed = quantize({"kernel": shared}, curvature={"kernel": one + two}, num_clusters=5)
        np.testing.assert_array_equal(separate.dequantize()["embed"], summed.dequantize()["kernel"])
        once = quantize(tied, curvature={"embed": one, "head": one}, num_clusters=5)
        assert once.report().distortion == pytest.approx(
            quantize({"k": shared}, curvature={"k": one}, num_clusters=5).report().distortion
        )

    @pytest.mark.parametrize("method", ["round_to_nearest", "magnitude_pruning"])
    def test_elsewhere_it_weighs_the_report_only(self, method):
        params = {"kernel": weights(1)}
        plain = quantize(params, method=method, **LEVELS[method])
        h = jnp.full(SHAPE, 3.0)
        weighted = quantize(params, method=method, curvature={"kernel": h}, **LEVELS[method])
        assert_trees_equal(plain.dequantize(), weighted.dequantize())
        assert weighted.report().distortion == pytest.approx(3 * plain.report().distortion)
        assert math.isnan(plain.report().predicted_loss_rise_nats)


def with_bad_entry(value: float) -> dict[str, Any]:
    params = nested_dict()
    params["out"]["kernel"] = params["out"]["kernel"].at[0, 0].set(value)
    return params


class TestBadInput:
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("method", METHODS)
    def test_weights_that_are_not_finite(self, method, value):
        with pytest.raises(
            ValueError, match=r"params must be finite, got 1 NaN .* 96 entries of 'out/kernel'"
        ):
            quantize(with_bad_entry(value), method=method, **LEVELS[method])

    def test_kept_leaves_may_hold_anything(self):
        params = nested_dict()
        params["out"]["bias"] = jnp.full((8,), jnp.nan)
        assert quantize(params, num_clusters=5).paths == ("hidden/kernel", "out/kernel")

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_curvature_that_is_not_finite(self, value):
        curvature = with_bad_entry(value)
        estimate = DiagonalEstimate(curvature, curvature)
        for given in (curvature, estimate):
            with pytest.raises(
                ValueError, match=r"curvature must be finite, got 1 NaN .* entries of 'out/kernel'"
            ):
                quantize(nested_dict(), curvature=given)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda c: c.update(out={}), "curvature has no leaf 'out/kernel', which is quantized"),
            (
                lambda c: c["out"].update(kernel=jnp.ones((8, 12))),
                r"curvature at 'out/kernel' must have the shape .* \(12, 8\), got \(8, 12\)",
            ),
            (
                lambda c: c["out"].update(kernel=jnp.zeros(SHAPE)),
                "curvature is 0 throughout the leaf 'out/kernel'.*CurvaturePolicy",
            ),
            (
                lambda c: c["out"].update(kernel=jnp.ones(SHAPE).at[0, 0].set(-1)),
                "at least 0, got 1 negative among the 96 entries of 'out/kernel'.*CurvaturePolicy",
            ),
        ],
    )
    def test_curvature_that_does_not_fit(self, change, message):
        curvature = jax.tree.map(jnp.ones_like, nested_dict())
        change(curvature)
        with pytest.raises(ValueError, match=message):
            quantize(nested_dict(), curvature=curvature)

    def test_curvature_of_a_wrong_type(self):
        curvature = jax.tree.map(lambda leaf: leaf.astype(jnp.complex64), nested_dict())
        with pytest.raises(
            TypeError, match=r"curvature at 'hidden/kernel' must be real.*complex64"
        ):
            quantize(nested_dict(), curvature=curvature)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"method": "k-means"}, "method must be one of .* got 'k-means'"),
            ({"num_clusters": 0}, "num_clusters must be at least 1, got 0"),
            ({"num_clusters": {"*": 0}}, r"num_clusters\['\*'\] must be at least 1, got 0"),
            ({"num_clusters": {"hidden/*": 4}}, "no pattern that matches .* 'out/kernel'"),
            ({"num_clusters": {"typo": 4, "*": 4}}, "pattern 'typo' in num_clusters matches no"),
            ({"num_bits": 4}, "num_bits does not apply to method 'kmeans'.*pass num_clusters"),
            ({"method": "round_to_nearest", "num_clusters": 16}, "pass num_bits instead"),
            ({"method": "round_to_nearest", "num_bits": 1}, "num_bits must be from 2 to 8, got 1"),
            ({"method": "round_to_nearest", "num_bits": 9}, "num_bits must be from 2 to 8, got 9"),
            ({"method": "magnitude_pruning"}, "sparsity is required by method"),
            ({"method": "magnitude_pruning", "sparsity": 1.5}, "fraction from 0 to 1, got 1.5"),
            ({"method": "magnitude_pruning", "sparsity": "half"}, "0 to 1, got 'half'"),
            ({"diameter_penalty": -1.0}, "diameter_penalty must be finite and at least 0, got -1"),
            ({"diameter_penalty": math.inf}, "must be finite and at least 0, got inf"),
            ({"diameter_penalty": 0.1, "method": "uniform"}, "applies to method 'kmeans' only"),
            ({"diameter_penalty": 0.1, "penalty_form": "none"}, "must be 0 with penalty_form"),
            ({"penalty_form": "square"}, "penalty_form must be one of .* got 'square'"),
            ({"num_iterations": 0}, "num_iterations must be an integer of at least 1, got 0"),
            ({"num_bins": 0.5}, "num_bins must be an integer of at least 1, got 0.5"),
            ({"select": "kernel"}, "the pattern 'kernel' in select matches no leaf"),
        ],
    )
    def test_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            quantize(nested_dict(), **options)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_clusters": 2.5}, "num_clusters must be an integer, got 2.5"),
            ({"num_clusters": True}, "num_clusters must be an integer, got True"),
            ({"num_clusters": {0: 4}}, "keys of num_clusters must be glob patterns .* got 0"),
            ({"select": [3]}, "select must be a predicate"),
        ],
    )
    def test_types_of_options(self, options, message):
        with pytest.raises(TypeError, match=message):
            quantize(nested_dict(), **options)

    def test_two_leaves_with_one_path(self):
        with pytest.raises(ValueError, match=r"two leaves of the tree have the path 'a/b'"):
            quantize({"a/b": weights(1), "a": {"b": weights(2)}})

    def test_masked_weights(self):
        with pytest.raises(TypeError, match="the leaf 'kernel' is a masked array"):
            quantize({"kernel": np.ma.masked_less(np.asarray(weights()), 0)})

    def test_traced_weights(self):
        with pytest.raises(TypeError, match="the leaf 'kernel' is traced; call it outside jit"):
            jax.jit(lambda w: quantize({"kernel": w}).dequantize())(weights())

    def test_sizes_inside_jit(self):
        tree = quantize({"kernel": weights()}, num_clusters=5)
        with pytest.raises(ValueError, match="arrays with known values; ask for them outside jit"):
            jax.jit(lambda tree: tree.size_bits)(tree)

    def test_leaves_that_are_not_there(self):
        tree = quantize(nested_dict(), num_clusters=5)
        with pytest.raises(ValueError, match=r"there is no leaf 'typo'; .* hidden/kernel, out/ker"):
            tree.centroids("typo")
        with pytest.raises(ValueError, match="the leaf 'out/bias' was not quantized"):
            tree.assignments("out/bias")
        rounded = quantize(nested_dict(), method="round_to_nearest")
        with pytest.raises(ValueError, match="'out/kernel' has no clusters after round_to_nearest"):
            rounded.centroids("out/kernel")
