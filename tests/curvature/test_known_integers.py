"""Integers known while tracing, against JAX's own evaluation at every step of two loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.curvature.known_integers import known_constant, known_results

VALUES = np.asarray([[-2, 0, 1], [2, 3, 4]], np.int32)


def indices(i, table):
    """What index arithmetic is made of."""
    wrapped = jnp.where(i < 0, i + 5, i)
    mixed = jnp.clip(-i, -1, 3) * 2 - jnp.abs(i) + jnp.maximum(i, 1) - jnp.minimum(i, 0)
    divided = (i + 7) // 2 + i % 3 + jax.lax.rem(i, 4) + jax.lax.div(i, 3)
    flags = (i > 1) & ~(i == 2) | (i >= 3) ^ (i <= 0) | (i != 0)
    counts = jnp.arange(3)[::-1] + wrapped
    joined = jnp.concatenate([counts.reshape(3, 1)[1:], table.reshape(1, 1)])
    return wrapped, mixed, divided, flags.astype(jnp.int32), jnp.squeeze(joined, 1)


@pytest.mark.parametrize(
    "i", [VALUES, pytest.param(np.asarray(3, np.int32), marks=pytest.mark.slow)]
)
def test_results_are_those_of_jax(i):
    loops = i.shape
    table = np.asarray(7, np.int32)
    jaxpr = jax.make_jaxpr(indices)(i.reshape(-1)[0], table).jaxpr
    known = dict(zip(jaxpr.invars, [i, known_constant(table, loops)], strict=True))

    def read(atom):
        return known_constant(atom.val, loops) if hasattr(atom, "val") else known[atom]

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        results = known_results(equation, operands, loops)
        known.update(zip(equation.outvars, results, strict=True))
    each = jax.jit(jax.vmap(lambda i: indices(i, table)))(i.reshape(-1))
    expected = [x.reshape((*loops, *x.shape[1:])) for x in each]
    for atom, result in zip(jaxpr.outvars, expected, strict=True):
        found = read(atom)
        assert found is not None, atom
        assert found.dtype == result.dtype
        np.testing.assert_array_equal(found, result)


def test_what_is_not_followed():
    assert known_constant(1.5, ()) is None
    assert known_constant(jax.random.key(0), ()) is None
    assert known_constant(np.zeros(2**17, np.int32), ()) is None
    jax.jit(lambda x: [None for _ in [known_constant(x, ())] if _ is not None])(3)
    (equation,) = jax.make_jaxpr(jnp.add)(1, 2).jaxpr.eqns
    assert known_results(equation, [np.asarray(1), None], ()) == [None]
    (equation,) = jax.make_jaxpr(lambda x: jax.lax.population_count(x))(1).jaxpr.eqns
    assert known_results(equation, [np.asarray(1)], ()) == [None]
    (equation,) = jax.make_jaxpr(lambda x: x.astype(float))(1).jaxpr.eqns
    assert known_results(equation, [np.asarray(1)], ()) == [None]
