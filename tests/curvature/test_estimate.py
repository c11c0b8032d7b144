"""Trees of weights that hold more than arrays: functions, text, numbers."""

from functools import partial

import curvature_problems as problems
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow_cases import some_slow

from jaxcomp import compress
from jaxcomp.curvature import (
    CurvaturePolicy,
    GaussNewton,
    estimate_memory,
    find_layers,
    fisher_diagonal,
    gauss_newton_diagonal,
    hutchinson_blocks,
    hutchinson_diagonal,
    layer_hessians,
    over_batches,
)
from jaxcomp.quantizers import Uniform

BATCH = problems.perceptron_batch()
PARAMS = {**problems.perceptron_params(), "gain": 2.0}
# As in a module of a library that keeps functions among the fields: an activation, a name.
WHOLE = {**PARAMS, "activation": jax.nn.relu, "name": "relu"}


def predict(params, inputs):
    return params["gain"] * problems.perceptron(params["activation"], params, inputs)


def predict_arrays(params, inputs):
    return params["gain"] * problems.relu_network(params, inputs)


def loss_of(predict_fn, params, batch):
    log_p = jax.nn.log_softmax(predict_fn(params, batch[0]))
    return -jnp.mean(jnp.take_along_axis(log_p, batch[1][:, None], axis=1))


KERNELS = {
    "gauss_newton": lambda f, params: gauss_newton_diagonal(f, params, BATCH),
    "fisher": lambda f, params: fisher_diagonal(
        jax.tree_util.Partial(partial(loss_of, f)), params, BATCH
    ),
    "hutchinson": lambda f, params: hutchinson_diagonal(
        partial(loss_of, f), params, BATCH, jax.random.key(0), num_probes=2
    ),
    "blocks": lambda f, params: hutchinson_blocks(
        partial(loss_of, f), params, BATCH, jax.random.key(0), num_probes=2, block_size=2
    ),
    "over_batches": lambda f, params: over_batches(GaussNewton(f, params), [BATCH]),
}


@pytest.mark.parametrize("name", some_slow(KERNELS, "fisher", "hutchinson"))
def test_what_is_no_array_is_a_constant_of_the_loss(name):
    kernel = KERNELS[name]
    found, expected = kernel(predict, WHOLE), kernel(predict_arrays, PARAMS)
    for tree, wanted in zip(found[:2], expected[:2], strict=True):
        assert set(tree) == set(WHOLE)
        assert tree["activation"] is tree["name"] is None
        for leaf, values in wanted.items():
            np.testing.assert_allclose(tree[leaf], values, rtol=1e-6, atol=1e-7)


def test_layers_and_memory_of_such_a_tree():
    inputs = BATCH[0]
    whole, arrays = find_layers(predict, WHOLE, inputs), find_layers(predict_arrays, PARAMS, inputs)
    assert {name: whole[name] for name in arrays} == arrays
    found = layer_hessians(predict, WHOLE, [inputs])["out"].hessian
    expected = layer_hessians(predict_arrays, PARAMS, [inputs])["out"].hessian
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert estimate_memory(GaussNewton(predict, WHOLE), BATCH).peak_bytes > 0


def test_the_estimate_is_an_importance_of_the_whole_tree():
    estimate = gauss_newton_diagonal(predict, WHOLE, BATCH)
    importance = CurvaturePolicy().apply(estimate).importance
    tree = compress(WHOLE, Uniform(2), importance=estimate, select=("in", "out"))
    assert tree.params()["activation"] is jax.nn.relu
    error = np.asarray(tree.params()["in"] - WHOLE["in"], np.float64)
    assert tree.report()[0].distortion == pytest.approx(
        float(np.sum(np.asarray(importance["in"]) * error**2)), rel=1e-4
    )


def test_equal_constants_compile_once():
    traced = []

    def counted(params, inputs):
        traced.append(1)
        return predict(params, inputs)

    for scale in (1.0, 2.0):
        params = {**WHOLE, "in": scale * PARAMS["in"], "name": "".join(["re", "lu"])}
        gauss_newton_diagonal(counted, params, BATCH)
        if scale == 1.0:
            num_traced = len(traced)
    assert len(traced) == num_traced
