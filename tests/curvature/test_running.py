"""How many numbers a function makes, counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxcomp.curvature.products import find_products
from jaxcomp.curvature.running import count_activations, run

W, X = np.ones((4, 4), np.float32), np.ones((1, 4), np.float32)


def dense(w, x):
    # Two numbers for each unit; what is made of the weight alone does not count.
    return jnp.tanh(x @ w) + 0 * jnp.sin(w[:1])


def in_time(w, x):
    """The second state depends on the example from the second step on: four units, two numbers."""

    def body(state, _):
        kept, hidden = state
        return (hidden, jnp.sin(jnp.tanh(hidden @ w))), jnp.cos(kept)

    return lax.scan(body, (jnp.zeros((1, 4)), x), length=5)[1]


@pytest.mark.parametrize(
    ("function", "count"),
    [
        (dense, 12),
        (lambda w, x: jax.checkpoint(dense)(w, x), 12),
        (in_time, 5 * 16),
        # Closed: nothing in it multiplies a weight.
        (lambda w, x: jax.jit(lambda x: jnp.sin(jnp.cos(x)))(x), 4),
        (lambda w, x: lax.platform_dependent(x, cpu=lambda x: x @ w, default=lambda x: x), 4),
    ],
)
def test_activations(function, count):
    closed = jax.make_jaxpr(function)(W, X)
    found = find_products(closed, [True])
    assert count_activations(found.opened, [False, True]) == count


def test_constants_and_perturbations_of_every_step():
    table = np.arange(20, dtype=np.float32).reshape(5, 1, 4)

    def function(w, x):
        return lax.scan(lambda h, step: (h @ w + step, h), x, table)

    opened = find_products(jax.make_jaxpr(function)(W, X), [True]).opened
    both = jax.jit(lambda table: run(opened, [W, X], {0: table}))
    outputs, operands = both(np.zeros_like(table))
    for found, expected in zip(outputs, jax.jit(function)(W, X), strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(operands[0], outputs[1])
    shifted, _ = both(table)
    hidden = X
    for step in table:
        hidden = hidden @ W + 2 * step
    np.testing.assert_array_equal(shifted[0], hidden)
