"""Equations one by one give what their function gives."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp.numerics.equations import evaluate_equation, shape_of


def test_an_equation_is_evaluated_with_its_own_or_other_parameters():
    closed = jax.make_jaxpr(lambda x: (jnp.sum(x, axis=0), jax.lax.top_k(x, 2)))(jnp.ones((3, 4)))
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    total, top = closed.jaxpr.eqns
    assert shape_of(total.invars[0]) == (3, 4)
    np.testing.assert_array_equal(evaluate_equation(total, [x])[0], x.sum(axis=0))
    others = total.params | {"axes": (1,)}
    np.testing.assert_array_equal(evaluate_equation(total, [x], others)[0], x.sum(axis=1))
    values, places = evaluate_equation(top, [x])
    np.testing.assert_array_equal(values, x[:, :1:-1])
    assert places.shape == (3, 2)
