"""Hessians of layers against dense matrices of their inputs and of their models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from curvature_problems import (
    image_network,
    image_problem,
    language_model,
    language_problem,
    perceptron_batch,
    perceptron_params,
    relu_network,
    token_network,
    token_problem,
)
from flax import linen, nnx
from jax.flatten_util import ravel_pytree
from loop_problems import LOOPS, loop_params

from jaxcomp import adapters
from jaxcomp.curvature import Layer, find_layers, gauss_newton_diagonal, layer_hessians


class Attention(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Linear(3, 4, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            num_heads=2, in_features=4, qkv_features=4, decode=False, rngs=rngs
        )
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, inputs):
        hidden = self.embed(inputs)
        hidden = hidden + self.attention(self.norm(hidden))
        return self.head(nnx.gelu(hidden).mean(axis=1))


class LinenNetwork(linen.Module):
    @linen.compact
    def __call__(self, inputs):
        return linen.Dense(3)(linen.relu(linen.Conv(2, (2, 2))(inputs)).reshape(len(inputs), -1))


def test_why_a_leaf_is_no_layer():
    params, (inputs, _) = token_problem()
    layers = find_layers(token_network, params, inputs)
    assert (layers["shared"].num_positions, layers["tied"].num_positions) == (4, 8)
    assert layers["tied"].reason is None
    assert layers["scale"] == Layer("other", 0, None, "it enters mul, which is no matrix product")


def test_hessians_of_a_stack_are_those_of_its_rows():
    function, shapes, _ = LOOPS["scanned"]
    params = loop_params(shapes)
    inputs = np.random.default_rng(4).normal(size=(6, 4)).astype(np.float32)

    def stacked(params, inputs):
        return jax.vmap(lambda x: function(params, x.reshape(1, 4))[0])(inputs)

    found = layer_hessians(stacked, params, [inputs])
    assert list(found) == ["w"]
    hidden = inputs
    for row in range(3):
        hessian = np.asarray(found["w"].hessian)[row]
        scale = float(np.max(hessian))
        np.testing.assert_allclose(hessian, 2 / 6 * hidden.T @ hidden, rtol=1e-6, atol=1e-6 * scale)
        hidden = np.tanh(hidden @ params["w"][row]) + params["b"][row]


def test_output_error_of_a_layer_is_the_quadratic_form():
    params, batch = perceptron_params(), perceptron_batch(40)
    found = layer_hessians(relu_network, params, [tuple(x[:25] for x in batch), batch[0][25:]])
    assert list(found) == ["in", "out"]
    data, weights, bias = batch[0], params["in"], params["bias"]
    rng = np.random.default_rng(0)
    for path, inputs in (("in", data), ("out", np.maximum(data @ weights + bias, 0))):
        layer = found[path]
        assert layer.num_examples == 40
        assert layer.hessian.shape == (1, *2 * params[path].shape[:1])
        error = rng.normal(size=params[path].shape).astype(np.float32)
        columns = np.asarray(layer.layout.to_matrices(error))[0]
        hessian = np.asarray(layer.hessian)[0]
        predicted = 0.5 * np.einsum("io,ij,jo->", columns, hessian, columns)
        measured = np.sum((inputs @ error) ** 2) / 40
        np.testing.assert_allclose(predicted, measured, rtol=1e-5)


def test_convolutions_have_one_for_each_group_from_their_patches():
    params, batch = image_problem()
    found = layer_hessians(image_network, params, [batch])

    @jax.jit
    def outputs(kernel):
        return jax.lax.conv_general_dilated(
            batch[0],
            kernel,
            (2, 1),
            [(1, 2), (0, 1)],
            rhs_dilation=(1, 2),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=2,
        )

    layer = found["grouped"]
    assert layer.hessian.shape == (2, 12, 12)
    error = np.random.default_rng(1).normal(size=(2, 3, 2, 4)).astype(np.float32)
    columns, hessian = map(np.asarray, (layer.layout.to_matrices(error), layer.hessian))
    predicted = 0.5 * np.einsum("gio,gij,gjo->", columns, hessian, columns)
    np.testing.assert_allclose(predicted, np.sum(np.asarray(outputs(error)) ** 2) / 3, rtol=1e-5)


@pytest.mark.parametrize(
    ("predict_fn", "problem"),
    [
        (token_network, token_problem),
        pytest.param(image_network, image_problem, marks=pytest.mark.slow),
    ],
)
def test_blocks_of_each_output_have_the_gauss_newton_diagonal(predict_fn, problem):
    params, batch = problem()
    found = layer_hessians(predict_fn, params, [batch], per_output=True)
    diagonal = jax.device_get(gauss_newton_diagonal(predict_fn, params, batch).mean)
    for path, layer in found.items():
        blocks = np.diagonal(np.asarray(layer.hessian), axis1=-2, axis2=-1)  # (G, O, I)
        np.testing.assert_allclose(
            layer.layout.from_matrices(np.swapaxes(blocks, 1, 2)),
            diagonal[path],
            rtol=1e-4,
            atol=1e-6 * float(np.max(diagonal[path])),
        )


def test_blocks_of_a_relu_network_are_those_of_its_hessian(x64):
    params, batch = perceptron_params(dtype=np.float64), perceptron_batch(dtype=np.float64)
    flat, unravel = ravel_pytree(params["out"])

    def loss(w):
        logits = relu_network({**params, "out": unravel(w)}, batch[0])
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - logits[jnp.arange(12), batch[1]])

    hessian = np.asarray(jax.jit(jax.hessian(loss))(flat)).reshape(4, 3, 4, 3)
    found = layer_hessians(relu_network, params, [batch], per_output=True, select="out")
    assert list(found) == ["out"]
    for unit in range(3):
        np.testing.assert_allclose(
            np.asarray(found["out"].hessian)[0, unit],
            hessian[:, unit, :, unit],
            rtol=1e-9,
            atol=1e-14,
        )


@pytest.mark.slow
def test_flax_models_of_both_kinds():
    inputs = jnp.asarray(np.random.default_rng(2).normal(size=(5, 4, 3)).astype(jnp.float32))
    module = Attention(nnx.Rngs(0))
    _, params = adapters.nnx_predict_fn(module)
    layers = find_layers(module, params, inputs)
    kinds = {path: layer.kind for path, layer in layers.items()}
    assert {path for path, kind in kinds.items() if kind == "matrix"} == {
        path for path in kinds if "kernel" in path
    }
    query = next(path for path in kinds if "query" in path and "kernel" in path)
    assert (layers[query].num_positions, layers[query].layout.num_outputs) == (4, 4)
    assert layer_hessians(module, params, [inputs])[query].hessian.shape == (1, 4, 4)

    images = jnp.asarray(np.random.default_rng(3).normal(size=(2, 3, 3, 2)).astype(jnp.float32))
    network = LinenNetwork()
    variables = network.init(jax.random.key(0), images)
    found = layer_hessians(network, variables, [images])
    assert {path: layer.hessian.shape for path, layer in found.items()} == {
        "params/Conv_0/kernel": (1, 8, 8),
        "params/Dense_0/kernel": (1, 18, 18),
    }


def test_does_not_depend_on_the_batches():
    params, batch = token_problem()
    whole = layer_hessians(token_network, params, [batch], per_output=True)
    split = [tuple(x[i : i + 2] for x in batch) for i in (0, 2, 4)]
    parts = layer_hessians(token_network, params, iter(split), per_output=True)
    for path, layer in whole.items():
        scale = float(np.max(np.abs(np.asarray(layer.hessian))))
        np.testing.assert_allclose(parts[path].hessian, layer.hessian, atol=1e-6 * scale)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"num_label_samples": 3, "key": jax.random.key(5)},
    ],
    ids=["exact", "drawn"],
)
def test_blocks_of_a_loss_per_token_have_its_diagonal(options):
    params, batch = language_problem()
    split = [jax.tree.map(lambda x, i=i: x[i : i + 1], batch) for i in range(3)]
    diagonal = gauss_newton_diagonal(language_model, params, batch, **options).mean
    diagonal = jax.device_get(diagonal)
    found = layer_hessians(language_model, params, split, per_output=True, **options)
    assert list(found) == ["head", "hidden"]
    for path, layer in found.items():
        blocks = np.swapaxes(np.diagonal(np.asarray(layer.hessian), axis1=-2, axis2=-1), 1, 2)
        scale = float(np.max(diagonal[path]))
        np.testing.assert_allclose(
            layer.layout.from_matrices(blocks), diagonal[path], rtol=1e-4, atol=1e-6 * scale
        )


def test_any_tree_of_outputs_will_do_for_the_layers_own_outputs():
    params, batch = perceptron_params(), perceptron_batch()

    def predict(p, x):
        logits = relu_network(p, x)
        return {"logits": logits, "classes": jnp.argmax(logits, axis=1), "size": jnp.sum(x)}

    assert find_layers(predict, params, batch[0]) == find_layers(relu_network, params, batch[0])
    for options in ({}, {"per_output": True, "output": "logits"}):
        found = layer_hessians(predict, params, [batch], **options)
        expected = layer_hessians(
            relu_network, params, [batch], per_output=options.get("per_output", False)
        )
        for path, layer in found.items():
            np.testing.assert_allclose(layer.hessian, expected[path].hessian, rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="output=, one of 'classes', 'logits', 'size'"):
        layer_hessians(predict, params, [batch], per_output=True)


def test_bad_input_is_named():
    params, batch = token_problem()
    with pytest.raises(ValueError, match=r"select names scale, .* of scale, it enters mul, which"):
        layer_hessians(token_network, params, [batch], select="scale")
    with pytest.raises(ValueError, match="batches is empty"):
        layer_hessians(token_network, params, [])
    with pytest.raises(ValueError, match="loss must be one of"):
        layer_hessians(token_network, params, [batch], loss="hinge", per_output=True)
    with pytest.raises(ValueError, match="NaN or infinite"):
        layer_hessians(token_network, params, [(batch[0] * np.float32(np.inf), batch[1])])
    with pytest.raises(TypeError, match="predict_fn must be a function"):
        layer_hessians(3, params, [batch])
