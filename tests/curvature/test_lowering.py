"""Every kernel lowers for CPU, CUDA and TPU; that needs none of the devices."""

from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import pytest

from jaxcomp.curvature import (
    CurvaturePolicy,
    fisher_diagonal,
    gauss_newton_diagonal,
    hutchinson_blocks,
    hutchinson_diagonal,
    linear_regression_hessian,
)

PLATFORMS = ("cpu", "cuda", "tpu")


def loss_fn(params, batch):
    inputs, targets = batch
    return jnp.mean(jnp.square(jnp.tanh(inputs @ params["w"]) - targets))


def convolution(params, inputs):
    images = inputs.reshape(-1, 2, 2, 3)
    outputs = jax.lax.conv_general_dilated(
        images, params["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.sum(jnp.tanh(outputs), axis=(1, 2))


def predict_fn(params, inputs):
    return jnp.tanh(inputs @ params["w"])


PARAMS = {"w": jax.ShapeDtypeStruct((3, 2), jnp.float32)}
BATCH = tuple(jax.ShapeDtypeStruct((4, size), jnp.float32) for size in (3, 2))
FEATURES = jax.ShapeDtypeStruct((9, 3), jnp.float32)
KEY = jax.eval_shape(lambda: jax.random.key(0))

hutchinson = partial(hutchinson_diagonal, loss_fn, num_probes=2)

KERNELS = {
    "hutchinson": (hutchinson, (PARAMS, BATCH, KEY)),
    "gaussian": (partial(hutchinson, distribution="gaussian"), (PARAMS, BATCH, KEY)),
    "blocks": (
        partial(hutchinson_blocks, loss_fn, num_probes=2, block_size=4),
        (PARAMS, BATCH, KEY),
    ),
    "fisher": (partial(fisher_diagonal, loss_fn), (PARAMS, BATCH)),
    "gauss_newton": (partial(gauss_newton_diagonal, predict_fn), (PARAMS, BATCH)),
    "gauss_newton_of_a_convolution": (
        partial(gauss_newton_diagonal, convolution),
        (
            {"kernel": jax.ShapeDtypeStruct((2, 2, 3, 2), jnp.float32)},
            (jax.ShapeDtypeStruct((4, 12), jnp.float32), jax.ShapeDtypeStruct((4,), jnp.int32)),
        ),
    ),
    "sampled_labels": (
        lambda params, batch, key: gauss_newton_diagonal(
            predict_fn, params, batch, num_label_samples=2, key=key
        ),
        (PARAMS, BATCH, KEY),
    ),
    "linear_regression": (partial(linear_regression_hessian, rows_per_chunk=4), (FEATURES,)),
    "policy": (CurvaturePolicy().apply_traced, (PARAMS,)),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_lowers_for_all_platforms(name):
    kernel, arguments = KERNELS[name]
    # A wrapper, for the linear regression takes arrays and iterables but no bare shapes.
    exported = jax.export.export(jax.jit(lambda *x: kernel(*x)), platforms=PLATFORMS)(*arguments)
    assert exported.platforms == PLATFORMS
