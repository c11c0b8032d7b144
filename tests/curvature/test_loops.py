"""Diagonals of networks with loops: against dense Jacobians, and the same network without loops.

Networks of several libraries, whose layers lie in loops.
"""

from functools import partial

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax
from jax.flatten_util import ravel_pytree
from loop_problems import (
    LOOPS,
    loop_params,
    scanned_transformer,
    transformer_batch,
    transformer_params,
    unrolled_params,
    unrolled_transformer,
)
from slow_cases import some_slow

from jaxcomp import adapters
from jaxcomp.curvature import find_layers, gauss_newton_diagonal
from jaxcomp.trees.uses import find_uses


def dense_diagonal(predict_fn, params, inputs):
    """Return `diag(J^T H J) / n` for softmax cross-entropy, from the whole Jacobian."""
    flat, unravel = ravel_pytree(params)

    @jax.jit
    def diagonal(w):
        p = jax.nn.softmax(predict_fn(unravel(w), inputs))
        hessian = jax.vmap(jnp.diag)(p) - jnp.einsum("bc,bd->bcd", p, p)
        jacobian = jax.jacrev(lambda w: predict_fn(unravel(w), inputs))(w)
        return jnp.einsum("bcn,bcd,bdn->n", jacobian, hessian, jacobian) / len(inputs)

    return jax.device_get(jax.jit(unravel)(diagonal(flat)))


def check_equal(found, expected, rtol):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    with_paths = jax.tree_util.tree_leaves_with_path(expected)
    for (path, b), a in zip(with_paths, jax.tree.leaves(found), strict=True):
        scale = float(np.max(np.abs(b)))
        np.testing.assert_allclose(
            a, b, rtol=rtol, atol=rtol * scale, err_msg=jax.tree_util.keystr(path)
        )


@pytest.mark.parametrize(
    "name", some_slow(["scanned", "indexed", "lstm", "layers_over_time"], "indexed", "lstm")
)
def test_equal_the_dense_product_in_float64(name, x64):
    function, shapes, _ = LOOPS[name]
    params = loop_params(shapes, np.float64)
    inputs = np.random.default_rng(7).normal(size=(3, 4))
    batched = jax.vmap(lambda p, x: function(p, x.reshape(1, 4))[0], (None, 0))
    found = gauss_newton_diagonal(batched, params, (inputs, np.zeros(3))).mean
    check_equal(found, dense_diagonal(batched, params, inputs), 1e-9)


@pytest.mark.slow
def test_a_scanned_transformer_is_the_unrolled_one(x64):
    """Each in float32 is within 1e-6 of the dense product in float64; rounding puts them apart."""
    params, (inputs, targets) = transformer_params(), transformer_batch()
    exact = jax.tree.map(lambda x: x.astype(np.float64), (params, inputs))
    expected = dense_diagonal(scanned_transformer, *exact)
    scanned = gauss_newton_diagonal(scanned_transformer, params, (inputs, targets)).mean
    rows = unrolled_params(params)
    unrolled = gauss_newton_diagonal(unrolled_transformer, rows, (inputs, targets)).mean
    blocks = jax.tree.map(lambda *rows: np.stack(rows), *unrolled["blocks"])
    check_equal(scanned, expected, 1e-6)
    check_equal({**unrolled, "blocks": blocks}, expected, 1e-6)


# --- Networks of libraries -----------------------------------------------------------------------

DEPTH, FEATURES, TOKENS = 2, 4, 3


class LinenBlock(linen.Module):
    @linen.compact
    def __call__(self, x, _):
        x = x + linen.MultiHeadDotProductAttention(2)(linen.LayerNorm()(x))
        return x + linen.Dense(FEATURES)(linen.gelu(linen.Dense(6)(x))), None


class LinenScan(linen.Module):
    @linen.compact
    def __call__(self, x):
        blocks = linen.scan(
            linen.remat(LinenBlock),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=DEPTH,
        )
        return linen.Dense(3)(blocks()(x, None)[0].mean(1))


class NNXBlock(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(2, FEATURES, decode=False, rngs=rngs)
        self.norm = nnx.LayerNorm(FEATURES, rngs=rngs)
        self.dense = nnx.Linear(FEATURES, FEATURES, rngs=rngs)

    def __call__(self, x):
        return x + self.dense(nnx.gelu(self.attention(self.norm(x))))


class NNXScan(nnx.Module):
    def __init__(self, rngs):
        make = nnx.vmap(NNXBlock, in_axes=0, out_axes=0)
        self.blocks = nnx.split_rngs(splits=DEPTH)(make)(rngs)
        self.head = nnx.Linear(FEATURES, 3, rngs=rngs)

    def __call__(self, x):
        scan = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return self.head(scan(x, self.blocks).mean(1))


class NNXRecurrent(nnx.Module):
    def __init__(self, cell, rngs):
        self.rnn = nnx.RNN(cell(FEATURES, 5, rngs=rngs))
        self.head = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.rnn(x)[:, -1])


def haiku_stack(x):
    def block(x):
        return x + hk.Linear(FEATURES)(jax.nn.gelu(hk.Linear(6)(hk.LayerNorm(-1, True, True)(x))))

    return hk.Linear(3)(hk.experimental.layer_stack(DEPTH)(block)(x).mean(1))


class EquinoxBlock(eqx.Module):
    attention: eqx.nn.MultiheadAttention
    dense: eqx.nn.MLP

    def __init__(self, key):
        self.attention = eqx.nn.MultiheadAttention(2, FEATURES, key=key)
        self.dense = eqx.nn.MLP(FEATURES, FEATURES, 6, 1, key=key)

    def __call__(self, x):
        return x + jax.vmap(self.dense)(self.attention(x, x, x))


def zeros(make):
    """What `make` returns, with zeros in it; nothing is computed."""
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(make))


def of_linen(inputs):
    module = LinenScan()
    params = zeros(lambda: module.init(jax.random.key(0), inputs))
    return adapters.linen_predict_fn(module, params)


def of_nnx(make, inputs):
    del inputs
    return adapters.nnx_predict_fn(make(nnx.Rngs(0)))


def of_nnx_scan(inputs):
    del inputs
    module = nnx.eval_shape(lambda: NNXScan(nnx.Rngs(0)))
    predict_fn, params = adapters.nnx_predict_fn(module)
    return predict_fn, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), params)


def of_haiku(inputs):
    network = hk.without_apply_rng(hk.transform(haiku_stack))
    return network.apply, zeros(lambda: network.init(jax.random.key(0), inputs))


def of_equinox(inputs):
    del inputs
    blocks = eqx.filter_eval_shape(
        eqx.filter_vmap(EquinoxBlock), jax.random.split(jax.random.key(0), DEPTH)
    )
    shapes, static = eqx.partition(blocks, lambda x: isinstance(x, jax.ShapeDtypeStruct))

    def predict(params, inputs):
        step = eqx.filter_checkpoint(lambda x, row: (eqx.combine(row, static)(x), None))
        return jax.vmap(lambda x: lax.scan(step, x, params)[0].mean(0))(inputs)

    return predict, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


# Name -> its function and weights, and rows of its stacks.
LIBRARIES = {
    "linen": (of_linen, DEPTH),
    "nnx": (of_nnx_scan, DEPTH),
    "haiku": (of_haiku, DEPTH),
    "equinox": (of_equinox, DEPTH),
    "lstm": (partial(of_nnx, partial(NNXRecurrent, nnx.LSTMCell)), 1),
    "gru": (partial(of_nnx, partial(NNXRecurrent, nnx.GRUCell)), 1),
}
HEADS = ("head/kernel", "params/Dense_0/kernel", "linear/w")


@pytest.mark.parametrize("library", some_slow(LIBRARIES, "gru"))
def test_layers_of_libraries(library):
    make, num_rows = LIBRARIES[library]
    inputs = np.zeros((1, TOKENS, FEATURES), np.float32)
    predict_fn, params = make(inputs)
    layers = find_layers(predict_fn, params, inputs)
    # All leaves that multiply activations are layers.
    uses = find_uses(predict_fn, params, inputs)
    matrices = {path for path, layer in layers.items() if layer.kind == "matrix"}
    assert matrices == {path for path, use in uses.items() if use.kind == "matrix"}
    # Those in the loop are stacks, or are met at each step.
    inside = {path: layers[path] for path in matrices if not path.startswith(HEADS)}
    assert len(inside) >= 2
    for path, layer in inside.items():
        assert (layer.layout.num_groups, layer.num_positions) == (num_rows, TOKENS), path
        assert uses[path].stack_axis == (0 if num_rows > 1 else None), path
