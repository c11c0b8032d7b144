"""Where the weights of captured layers lie, for layouts found in functions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxcomp.compressed.layer_places import layer_places
from jaxcomp.curvature import find_layers


def layout_of(function: Any, weight: Any, inputs: Any) -> Any:
    found = find_layers(function, {"w": weight}, inputs)["w"]
    assert found.layout is not None
    return found.layout


def convolved(params: Any, x: jax.Array) -> jax.Array:
    numbers = ("NWC", "WIO", "NWC")
    return lax.conv_general_dilated(x, params["w"], (1,), "VALID", dimension_numbers=numbers)


def scanned(params: Any, x: jax.Array) -> jax.Array:
    return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["w"])[0]


@pytest.mark.parametrize(
    ("function", "shape", "inputs", "is_stack", "axis"),
    [
        (lambda p, x: x @ p["w"], (5, 3), (2, 5), False, 0),
        (lambda p, x: x @ p["w"].T, (3, 5), (2, 5), False, 1),
        (convolved, (2, 3, 4), (2, 6, 3), False, 1),
        (convolved, (1, 2, 4), (2, 6, 2), False, 1),
        (scanned, (3, 4, 4), (2, 4), True, 0),
        # Heads: two axes of outputs.
        (lambda p, x: jnp.einsum("ni,iho->nho", x, p["w"]), (5, 2, 3), (2, 5), False, 0),
    ],
)
def test_places_are_those_of_the_layout(function, shape, inputs, is_stack, axis):
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    layout = layout_of(function, weight, np.zeros(inputs, np.float32))
    found = layer_places(layout, is_stack=is_stack)
    assert found is not None
    assert found.axis == axis
    matrices = np.asarray(layout.to_matrices(jnp.asarray(weight)))
    blocks = weight.reshape(shape[0] if is_stack else 1, -1)
    for number, block in enumerate(blocks):
        own = matrices.reshape(len(blocks), -1, *matrices.shape[1:])[number]
        np.testing.assert_array_equal(block[found.places], own)


def test_a_first_axis_that_is_none_of_layers_is_found_out():
    weight = np.ones((4, 3, 2), np.float32)
    layout = layout_of(
        lambda p, x: jnp.einsum("ni,hio->nho", x, p["w"]), weight, np.ones((2, 3), np.float32)
    )
    assert layer_places(layout, is_stack=True) is None
