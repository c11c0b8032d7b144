"""Patch convolutions against lax and the definition, pooling against `reduce_window`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow_cases import some_slow

from jaxcomp.experiments.networks.convolution import (
    _by_lax,
    _by_patches,
    _in_tiles,
    _tile,
    convolve_3x3,
    max_pool_2x2,
    rectified_3x3,
)


def direct(inputs: np.ndarray, kernel: np.ndarray, padding: str) -> np.ndarray:
    """The definition, one output pixel at a time, in float64."""
    inputs, kernel = inputs.astype(np.float64), kernel.astype(np.float64)
    if padding == "SAME":
        inputs = np.pad(inputs, ((0, 0), (1, 1), (1, 1), (0, 0)))
    images, rows, columns, _ = inputs.shape
    outputs = np.zeros((images, rows - 2, columns - 2, kernel.shape[-1]))
    for i in range(rows - 2):
        for j in range(columns - 2):
            window = inputs[:, i : i + 3, j : j + 3]
            outputs[:, i, j] = np.tensordot(window, kernel, axes=3)
    return outputs


def problem(shape=(2, 5, 4, 3), channels=2):
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((3, 3, shape[-1], channels), np.float32)
    return rng.standard_normal(shape, np.float32), kernel


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_values_follow_the_definition(padding, strict_promotion):
    inputs, kernel = problem()
    expected = direct(inputs, kernel, padding)
    # 27 products of size one each: errors stay near 27 roundings.
    tolerance = 27 * np.finfo(np.float32).eps * np.abs(expected).max()
    for function in (convolve_3x3, _by_patches, _by_lax, _in_tiles):
        outputs = function(jnp.asarray(inputs), jnp.asarray(kernel), padding=padding)
        assert outputs.dtype == jnp.float32
        np.testing.assert_allclose(outputs, expected, atol=tolerance)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_derivatives_of_both_forms_agree(padding):
    inputs, kernel = problem()

    def derivatives(function):
        def loss(x, k):
            return jnp.sin(function(x, k, padding=padding)).sum()

        def curvature(x, k):
            gradient = jax.grad(loss, argnums=(0, 1))
            return jax.jvp(gradient, (x, k), (jnp.ones_like(x), jnp.ones_like(k)))

        return jax.jit(curvature)(inputs, kernel)

    expected = jax.tree.leaves(derivatives(_by_lax))
    for function in (convolve_3x3, _by_patches):
        for one, other in zip(jax.tree.leaves(derivatives(function)), expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize(
    ("shape", "channels", "padding", "tile"),
    some_slow(
        [
            ((2, 4, 8, 3), 4, "SAME", (2, 4)),
            ((2, 4, 4, 4), 16, "SAME", (1, 2)),
            ((2, 6, 4, 5), 8, "VALID", (2, 2)),
            ((2, 4, 4, 3), 32, "VALID", (1, 2)),
            ((2, 3, 5, 4), 8, "SAME", (1, 1)),
        ],
        ((2, 4, 4, 4), 16, "SAME", (1, 2)),
        ((2, 4, 4, 3), 32, "VALID", (1, 2)),
    ),
)
def test_gradients_in_tiles_agree_with_those_of_lax(shape, channels, padding, tile):
    inputs, kernel = problem(shape, channels)
    border = 2 if padding == "VALID" else 0
    assert _tile(shape[1] - border, shape[2] - border, shape[3], channels) == tile

    def found(function):
        def loss(x, k):
            outputs = function(x, k, padding=padding)
            return jnp.sin(outputs).sum(), outputs

        # In a loop, where XLA treats convolutions otherwise.
        step = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        return jax.jit(lambda x, k: jax.lax.map(lambda own: step(*own), (x[None], k[None])))(
            inputs, kernel
        )

    expected = jax.tree.leaves(found(_by_lax))
    for one, other in zip(
        jax.tree.leaves(found(partial(convolve_3x3, in_tiles=True))), expected, strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize(
    ("padding", "channels", "pools"),
    some_slow(
        [("SAME", 8, False), ("SAME", 8, True), ("VALID", 3, False), ("VALID", 3, True)],
        ("SAME", 8, True),
        ("VALID", 3, False),
    ),
)
def test_rectified_is_its_steps_to_the_bit(padding, channels, pools, strict_promotion):
    """Tiles of 2 x 2 pixels and of 1 x 1; some channels are shifted below zero."""
    inputs, kernel = problem((2, 8, 6, 3), channels)
    shift = jnp.linspace(-1, 2, channels, dtype=jnp.float32)
    scale = jnp.linspace(0.3, 3, channels, dtype=jnp.float32)
    outputs = convolve_3x3(inputs, kernel, padding=padding, in_tiles=True)
    expected = jax.nn.relu((outputs - shift.reshape(1, 1, 1, -1)) * scale.reshape(1, 1, 1, -1))
    found = rectified_3x3(inputs, kernel, shift, scale, padding=padding, pools=pools)
    np.testing.assert_array_equal(found, max_pool_2x2(expected) if pools else expected)


def test_vmap_over_models_is_a_loop():
    inputs, _ = problem((3, 2, 4, 4, 2))
    kernels = np.stack([problem((2, 4, 4, 2))[1] * scale for scale in (1.0, 2.0, 3.0)])
    for function in (convolve_3x3, partial(convolve_3x3, in_tiles=True)):
        batched = jax.vmap(function)(inputs, kernels)
        for one, x, k in zip(batched, inputs, kernels, strict=True):
            np.testing.assert_allclose(one, convolve_3x3(x, k), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (1, 5, 7, 2)])
def test_pool_is_the_maximum_of_blocks(shape, strict_promotion):
    inputs = jnp.asarray(problem(shape)[0])
    expected = jax.lax.reduce_window(
        inputs, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
    )
    np.testing.assert_array_equal(max_pool_2x2(inputs), expected)


def test_pool_divides_the_gradient_of_a_tie():
    gradient = jax.grad(lambda x: max_pool_2x2(x).sum())(jnp.zeros((1, 2, 2, 1)))
    np.testing.assert_array_equal(gradient, jnp.full((1, 2, 2, 1), 0.25))


def test_bad_shapes_are_refused():
    inputs, kernel = problem()
    with pytest.raises(ValueError, match=r"kernel \(3, 3, C, O\)"):
        convolve_3x3(inputs, kernel[:2])
    with pytest.raises(ValueError, match=r"kernel \(3, 3, C, O\)"):
        convolve_3x3(inputs[..., :2], kernel)
    with pytest.raises(ValueError, match="padding must be"):
        convolve_3x3(inputs, kernel, padding="CIRCULAR")
    with pytest.raises(ValueError, match="at least 3 x 3 pixels, got 2 x 4"):
        convolve_3x3(inputs[:, :2], kernel, padding="VALID")
