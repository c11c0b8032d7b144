"""Normal forms of products and convolutions, by their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.curvature.layouts import stack_layout
from jaxcomp.curvature.normal_forms import normal_form

pytestmark = pytest.mark.usefixtures("strict_promotion")


def array(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("function", "weight", "inputs", "sizes"),
    [
        # (groups, positions, inputs, outputs) of the weight's matrices
        (lambda w, x: jnp.einsum("bphi,hio->bpho", x, w), (2, 3, 5), (1, 4, 2, 3), (2, 4, 3, 5)),
        (lambda w, x: jnp.einsum("hio,bphi->opbh", w, x), (2, 3, 5), (1, 4, 2, 3), (2, 4, 3, 5)),
        (lambda w, x: jnp.einsum("bphd,hdo->bpo", x, w), (2, 3, 5), (1, 4, 2, 3), (1, 4, 6, 5)),
        (
            lambda w, x: jax.lax.conv_general_dilated(x, w, (2, 1), "VALID", feature_group_count=2),
            (6, 2, 3, 2),
            (1, 4, 7, 5),
            (2, 12, 12, 3),
        ),
    ],
)
def test_gradients_are_products_of_inputs_and_output_gradients(function, weight, inputs, sizes):
    weight, x = array(1, *weight), array(2, *inputs)
    equations = jax.make_jaxpr(function)(weight, x).jaxpr.eqns
    equation = next(
        e for e in equations if e.primitive.name in ("dot_general", "conv_general_dilated")
    )
    side = [v.aval.shape for v in equation.invars].index(weight.shape)
    normal = normal_form(equation, side)
    assert normal.sizes == sizes
    layout = stack_layout(weight.shape, normal.weight_steps).matrices
    delta = array(3, *equation.outvars[0].aval.shape)

    @jax.jit
    def both(weight, x, delta):
        _, pullback = jax.vjp(
            lambda *operands: equation.primitive.bind(*operands, **equation.params),
            *((x, weight) if side == 1 else (weight, x)),
        )
        found = jnp.einsum("gpi,gpo->gio", normal.to_inputs(x), normal.to_outputs(delta))
        return layout.from_matrices(found), pullback(delta)[side]

    gradient, expected = both(weight, x, delta)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


def test_a_convolved_weight_and_kernels_of_each_example_have_none():
    def convolve(w, x, **options):
        return jax.lax.conv_general_dilated(x, w, (1, 1), "VALID", **options)

    def equation(**options):
        return jax.make_jaxpr(lambda w, x: convolve(w, x, **options))(
            np.ones((2, 2, 2, 2), np.float32), np.ones((2, 2, 4, 4), np.float32)
        ).jaxpr.eqns[0]

    assert normal_form(equation(), 1) is not None
    assert normal_form(equation(), 0) is None
    assert normal_form(equation(batch_group_count=2), 1) is None
    assert normal_form(jax.make_jaxpr(jnp.sin)(1.0).jaxpr.eqns[0], 0) is None
