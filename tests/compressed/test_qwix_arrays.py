"""Quantized arrays for qwix: integers times scales are the weights, and qwix runs on them."""

import sys
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxcomp
from jaxcomp.compressed import to_qwix
from jaxcomp.compressed.tree import CompressedTree
from jaxcomp.quantizers import MagnitudePruning, RoundToNearest, Uniform

RNG = np.random.default_rng(0)


class StandIn(NamedTuple):
    """What qwix calls an array: a node of trees with these parts."""

    qvalue: Any
    scale: Any

    def weights(self):
        """Their product, each scale spread over its block."""
        scale = np.asarray(self.scale)
        for axis, size in enumerate(self.qvalue.shape):
            assert size % scale.shape[axis] == 0
            scale = np.repeat(scale, size // scale.shape[axis], axis)
        return np.asarray(self.qvalue).astype(np.int8) * scale


@pytest.fixture
def without_qwix(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", SimpleNamespace(QArray=StandIn))


def weights(*shape):
    return jax.device_put(RNG.normal(size=shape).astype(np.float32))


@pytest.mark.usefixtures("without_qwix")
@pytest.mark.parametrize(
    ("options", "shape", "scales"),
    [
        ({}, (6, 8), (1, 8)),
        ({"scale": "tensor"}, (6, 8), (1, 1)),
        ({"channel_axis": 0}, (6, 8), (6, 1)),
        ({"group_size": 3}, (6, 8), (2, 8)),
        ({"group_size": 3, "channel_axis": 0}, (8, 6), (8, 2)),
        ({"group_size": 2}, (3, 2, 4, 8), (3, 2, 2, 8)),
        ({"group_size": 4}, (3, 2, 4, 8), (3, 2, 1, 8)),
        ({"group_size": 8}, (3, 2, 4, 8), (3, 1, 1, 8)),
        ({"group_size": 2, "scale": "tensor"}, (6, 8), (6, 4)),
        ({}, (3, 2, 4, 8), (1, 1, 1, 8)),
    ],
)
def test_integers_times_scales_are_the_weights(options, shape, scales):
    tree = jaxcomp.compress({"w": weights(*shape)}, RoundToNearest(4, **options))
    found = to_qwix(tree)["w"]
    assert found.qvalue.dtype == jnp.int4
    assert found.scale.shape == scales
    np.testing.assert_array_equal(found.weights(), tree.params()["w"])


@pytest.mark.usefixtures("without_qwix")
def test_what_is_no_such_grid_comes_as_it_is():
    params = {
        "a": weights(6, 8),
        "b": weights(6, 8),
        "c": weights(6, 7),
        "bias": np.arange(3, dtype=np.float32),
    }
    params["tied"] = params["a"]
    methods = {"a": RoundToNearest(8), "b": Uniform(4), "c": RoundToNearest(4, group_size=4)}
    tree = jaxcomp.compress(params, methods)
    found, expected = to_qwix(tree), tree.params()
    assert found["a"].qvalue.dtype == jnp.int8
    assert found["tied"] is found["a"]
    for name in ("b", "c", "bias"):  # no grid, groups across columns, kept
        np.testing.assert_array_equal(found[name], expected[name])
    pruned = jaxcomp.compress({"a": params["a"]}, MagnitudePruning(0.5))
    with pytest.raises(ValueError, match=r"no tensor is a grid of integers .* RoundToNearest"):
        to_qwix(pruned)


@pytest.mark.usefixtures("without_qwix")
@pytest.mark.parametrize("codebook", [[-0.5, 0.0, 0.5, 1.0], [2.0, 2.5, 3.0, 3.5], [0.0] * 4])
def test_codebooks_that_are_grids_are_integers(codebook):
    tree = jaxcomp.compress({"w": weights(6, 8)}, Uniform(4))
    leaf = tree.leaves[0]._replace(codebook=jax.device_put(np.float32(codebook)))
    tree = CompressedTree((leaf,), tree.layout)
    if any(codebook):
        found = to_qwix(tree)["w"]
        assert found.qvalue.dtype == jnp.int4
        np.testing.assert_array_equal(found.weights(), tree.params()["w"])
    else:
        with pytest.raises(ValueError, match="no tensor is a grid"):
            to_qwix(tree)


@pytest.mark.usefixtures("without_qwix")
def test_layers_of_a_stack_have_scales_of_their_own():
    tree = jaxcomp.compress({"w": weights(3, 6, 8)}, RoundToNearest(6), stacked=["w"])
    found = to_qwix(tree)["w"]
    assert found.scale.shape == (3, 1, 8)
    np.testing.assert_array_equal(found.weights(), tree.params()["w"])


def test_without_qwix_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    tree = jaxcomp.compress({"w": weights(6, 8)}, RoundToNearest(8))
    with pytest.raises(ImportError, match=r"install jaxcomp\[qwix\]"):
        to_qwix(tree)


def test_a_network_runs_on_the_arrays():
    qwix = pytest.importorskip("qwix", reason="qwix is not installed")
    params = {"in": weights(16, 32), "out": weights(32, 4), "bias": weights(4)}
    tree = jaxcomp.compress(params, {"in": RoundToNearest(8), "out": RoundToNearest(4)})

    def predict(params, inputs, product):
        hidden = jax.nn.relu(product(inputs, params["in"]))
        return product(hidden, params["out"]) + params["bias"]

    def product(left, right):
        return qwix.dot_general(left, right, (((1,), (0,)), ((), ())))

    inputs = weights(5, 16)
    arrays = to_qwix(tree)
    assert isinstance(arrays["out"], qwix.QArray)
    found = jax.jit(lambda arrays: predict(arrays, inputs, product))(arrays)
    expected = predict(jax.tree.map(np.asarray, tree.params()), inputs, jnp.matmul)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_model_of_qwix_takes_the_arrays():
    qwix = pytest.importorskip("qwix", reason="qwix is not installed")
    model = nnx.Sequential(
        nnx.Linear(16, 32, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(32, 4, rngs=nnx.Rngs(1))
    )
    inputs = weights(5, 16)
    tree = jaxcomp.compress(nnx.to_pure_dict(nnx.state(model)), RoundToNearest(8))

    def as_dict(leaf):
        is_array = isinstance(leaf, qwix.QArray)
        return {"array": {"qvalue": leaf.qvalue, "scale": leaf.scale}} if is_array else leaf

    arrays = to_qwix(tree)
    arrays = jax.tree.map(as_dict, arrays, is_leaf=lambda leaf: isinstance(leaf, qwix.QArray))
    rules = [qwix.QuantizationRule(module_path=".*", weight_qtype=jnp.int8)]
    quantized = qwix.quantize_model(model, qwix.PtqProvider(rules), inputs)
    nnx.update(quantized, qwix.process_prequantized_params(arrays, quantized))
    kernel = quantized.layers[0].kernel
    assert kernel.array.qvalue.dtype == jnp.int8
    nnx.update(model, tree.params())
    np.testing.assert_allclose(quantized(inputs), model(inputs), rtol=1e-5, atol=1e-5)
