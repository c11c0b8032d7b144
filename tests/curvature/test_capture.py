"""Layers found in jaxprs: what is captured, and that evaluation and gradients stay the same."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from loop_problems import LOOPS, loop_params

from jaxcomp.curvature.capture import capture

pytestmark = pytest.mark.usefixtures("strict_promotion")


def array(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def check_gradients(function, values, example, *, rtol=1e-5):
    """Outputs are the function's, and gradients the products of inputs and output gradients."""
    found = capture(function, values, example)

    @jax.jit
    def both(values):
        def loss(perturbations):
            outputs, operands = found.run(perturbations, values, example)
            return jnp.sum(jnp.sin(outputs)), (outputs, operands)

        zeros = [tuple(jnp.zeros(o.shape, o.dtype) for o in use.outputs) for use in found.uses]
        deltas, (outputs, operands) = jax.grad(loss, has_aux=True)(zeros)
        gradients = []
        for use, a, delta in zip(found.uses, operands, deltas, strict=True):
            one_example = partial(jax.tree.map, lambda x: jnp.expand_dims(x, 0))
            a, delta = use.to_inputs(one_example(a)), use.to_outputs(one_example(delta))
            gradients.append(use.layout.from_matrices(jnp.einsum("egpi,egpo->gio", a, delta)))
        expected = jax.grad(lambda v: jnp.sum(jnp.sin(function(v, example))))(values)
        return outputs, function(values, example), gradients, expected

    outputs, expected_outputs, gradients, expected = both(values)
    np.testing.assert_allclose(outputs, expected_outputs, rtol=1e-6, atol=1e-6)
    for use, gradient in zip(found.uses, gradients, strict=True):
        scale = float(np.max(np.abs(expected[use.position])))
        np.testing.assert_allclose(gradient, expected[use.position], rtol=rtol, atol=rtol * scale)
    return found


@jax.jit
def inner(weight, hidden):
    return jax.nn.relu(hidden @ jnp.reshape(weight, (4, 4)))


def by_platform(weight, hidden):
    return jax.lax.platform_dependent(
        hidden,
        weight,
        cpu=lambda h, w: h @ w.T,
        default=lambda h, w: jnp.einsum("bi,oi->bo", h, w),
    )


def network(values, inputs):
    """Weights behind calls, and weights that cannot be captured."""
    first, second, third, platform, bias, tied, gain = values
    hidden = inner(first, inputs)
    hidden = jax.checkpoint(lambda w, h: jnp.tanh(h @ w))(second, hidden)
    # The same compiled function again: its variables must not be mixed up with the first call's.
    hidden = inner(third, hidden) + bias.reshape(1, 4)
    hidden = by_platform(platform, hidden)
    return (hidden @ tied) @ tied * jnp.expand_dims(gain, 0)


def test_products_behind_calls_are_captured():
    shapes = [(2, 2, 4), (4, 4), (16,), (4, 4), (4,), (4, 4), (4,)]
    values, example = tuple(array(i, *shape) for i, shape in enumerate(shapes)), array(9, 1, 4)
    found = check_gradients(network, values, example)
    assert [use.position for use in found.uses] == [0, 1, 2, 3, 5]
    assert [use.num_positions for use in found.uses] == [1, 1, 1, 1, 2]
    wanted = [False, True, True, False, True, True, True]
    found = capture(network, values, example, is_wanted=wanted)
    assert [use.position for use in found.uses] == [1, 2, 5]


@pytest.mark.parametrize("name", LOOPS)
def test_weights_in_loops_are_captured(name):
    function, shapes, layers = LOOPS[name]
    params = loop_params(shapes)
    values, tree = jax.tree.flatten(params)
    found = check_gradients(
        lambda v, x: function(tree.unflatten(v), x), tuple(values), array(1, 1, 4)
    )
    sizes = {
        sorted(params)[use.position]: (
            use.layout.num_groups,
            use.num_positions,
            use.layout.num_inputs,
            use.layout.num_outputs,
        )
        for use in found.uses
    }
    assert sizes == layers
    for use in found.uses:
        weight, layout = values[use.position], use.layout
        there_and_back = jax.jit(lambda w, own=layout: own.from_matrices(own.to_matrices(w)))
        np.testing.assert_array_equal(there_and_back(weight), weight)


def test_weights_that_a_loop_returns_unread_are_captured():
    def function(values, x):
        hidden, weights = lax.scan(lambda h, w: (jnp.tanh(h @ w), w), x, values[0])
        del weights
        return hidden

    assert capture(function, (array(2, 3, 4, 4),), array(1, 1, 4)).uses


def test_operands_of_several_products_are_stacked_up_once():
    def body(hidden, weights):
        normal = jnp.sin(hidden)
        query, key = (normal @ w for w in weights)
        return query * key, None

    def function(values, x):
        return lax.scan(body, x, values)[0]

    values, example = (array(2, 3, 4, 4), array(3, 3, 4, 4)), array(1, 1, 4)
    found = capture(function, values, example)
    zeros = [tuple(np.zeros(o.shape, o.dtype) for o in use.outputs) for use in found.uses]
    jaxpr = jax.make_jaxpr(lambda p: found.run(p, values, example)[1])(zeros)
    assert len({id(variable) for variable in jaxpr.jaxpr.outvars}) == 1


def test_custom_derivatives_are_kept():
    @jax.custom_vjp
    def twisted(weight, x):
        return x @ weight

    twisted.defvjp(
        lambda w, x: (x @ w, (w, x)), lambda kept, g: (3.0 * (kept[1].T @ g), g @ kept[0].T)
    )
    values, example = (array(3, 4, 2),), array(4, 1, 4)
    found = capture(lambda v, x: twisted(v[0], x), values, example)
    assert not found.uses
    gradient = jax.jit(jax.grad(lambda v: jnp.sum(found.run([], v, example)[0])))(values)[0]
    np.testing.assert_allclose(gradient, 3.0 * np.outer(example[0], np.ones(2)), rtol=1e-6)
