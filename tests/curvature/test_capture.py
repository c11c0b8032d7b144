"""Layers found in jaxprs: what is captured, and that evaluation and gradients stay the same."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.curvature.capture import capture

pytestmark = pytest.mark.usefixtures("strict_promotion")


def array(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


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


def in_a_loop(weight, hidden):
    return jax.lax.fori_loop(0, 2, lambda _, h: jnp.tanh(h @ weight), hidden)


def network(values, inputs):
    """Weights behind calls, and weights that cannot be captured."""
    first, second, third, platform, bias, tied, looped = values
    hidden = inner(first, inputs)
    hidden = jax.checkpoint(lambda w, h: jnp.tanh(h @ w))(second, hidden)
    # The same compiled function again: its variables must not be mixed up with the first call's.
    hidden = inner(third, hidden) + bias.reshape(1, 4)
    hidden = by_platform(platform, hidden)
    hidden = (hidden @ tied) * tied[0].reshape(1, 4)
    return in_a_loop(looped, hidden)


def problem():
    shapes = [(2, 2, 4), (4, 4), (16,), (4, 4), (4,), (4, 4), (4, 4)]
    return tuple(array(i, *shape) for i, shape in enumerate(shapes)), array(9, 1, 4)


def test_only_products_with_a_weight_are_captured():
    values, example = problem()
    found = capture(network, values, example)
    assert [use.position for use in found.uses] == [0, 1, 2, 3]
    assert all(use.num_positions == 1 for use in found.uses)
    wanted = [False, True, True, False, True, True, True]
    found = capture(network, values, example, is_wanted=wanted)
    assert [use.position for use in found.uses] == [1, 2]


def test_evaluation_is_that_of_the_function():
    values, example = problem()
    found = capture(network, values, example)
    zeros = [jnp.zeros(use.output.shape, use.output.dtype) for use in found.uses]
    outputs, _ = found.run(zeros, values, example)
    np.testing.assert_allclose(outputs, network(values, example), rtol=1e-6)


def test_gradients_are_products_of_inputs_and_output_gradients():
    values, example = problem()
    found = capture(network, values, example)
    zeros = [jnp.zeros(use.output.shape, use.output.dtype) for use in found.uses]

    def loss(perturbations):
        outputs, operands = found.run(perturbations, values, example)
        return jnp.sum(jnp.sin(outputs)), operands

    deltas, operands = jax.grad(loss, has_aux=True)(zeros)
    expected = jax.grad(lambda v: jnp.sum(jnp.sin(network(v, example))))(values)
    for use, operand, delta in zip(found.uses, operands, deltas, strict=True):
        gradient = jnp.einsum("gpi,gpo->gio", use.to_inputs(operand), use.to_outputs(delta))
        np.testing.assert_allclose(
            use.layout.from_matrices(gradient), expected[use.position], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize(
    ("function", "shape", "inputs", "sizes"),
    [
        # (groups, positions, inputs, outputs) of the weight's matrices
        (lambda v, x: jnp.einsum("bphi,hio->bpho", x, v[0]), (2, 3, 5), (1, 4, 2, 3), (2, 4, 3, 5)),
        (lambda v, x: jnp.einsum("hio,bphi->opbh", v[0], x), (2, 3, 5), (1, 4, 2, 3), (2, 4, 3, 5)),
        (lambda v, x: jnp.einsum("bphd,hdo->bpo", x, v[0]), (2, 3, 5), (1, 4, 2, 3), (1, 4, 6, 5)),
        (
            lambda v, x: jax.lax.conv_general_dilated(
                x, v[0], (2, 1), "VALID", feature_group_count=2
            ),
            (6, 2, 3, 2),
            (1, 4, 7, 5),
            (2, 12, 12, 3),
        ),
    ],
)
def test_normal_form(function, shape, inputs, sizes):
    values, example = (array(1, *shape),), array(2, *inputs)
    found = capture(function, values, example)
    (use,) = found.uses
    layout = use.layout
    assert (
        layout.num_groups,
        use.num_positions,
        layout.num_inputs,
        layout.num_outputs,
    ) == sizes
    np.testing.assert_array_equal(layout.from_matrices(layout.to_matrices(values[0])), values[0])
    outputs, pullback, (operand,) = jax.vjp(
        lambda perturbation: found.run([perturbation], values, example),
        jnp.zeros(use.output.shape),
        has_aux=True,
    )
    cotangent = array(3, *outputs.shape)
    (delta,) = pullback(cotangent)
    gradient = jnp.einsum("gpi,gpo->gio", use.to_inputs(operand), use.to_outputs(delta))
    (expected,) = jax.vjp(lambda v: function((v,), example), values[0])[1](cotangent)
    np.testing.assert_allclose(layout.from_matrices(gradient), expected, rtol=1e-4, atol=1e-5)


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
    gradient = jax.grad(lambda v: jnp.sum(found.run([], v, example)[0]))(values)[0]
    np.testing.assert_allclose(gradient, 3.0 * jnp.outer(example[0], jnp.ones(2)), rtol=1e-6)


def test_a_product_of_two_weights_and_an_integer_weight_are_left_alone():
    example = array(6, 1, 4)
    found = capture(lambda v, x: x @ (v[0] @ v[1]), (array(7, 4, 2), array(8, 2, 3)), example)
    assert not found.uses
    rounded = partial(lambda v, x: x @ v[0].astype(jnp.int32).astype(jnp.float32))
    assert not capture(rounded, (array(7, 4, 2),), example).uses
