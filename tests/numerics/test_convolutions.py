"""Convolutions as matrix products against `lax.conv_general_dilated`, over all its parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxcomp.numerics import convolutions
from jaxcomp.numerics.convolutions import convolution_as_product

pytestmark = pytest.mark.usefixtures("strict_promotion")


def array(seed, *shape, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(dtype))


def primitive_parameters(lhs, rhs, **options):
    """What the primitive gets: padding in numbers, dimension numbers as axes."""
    jaxpr = jax.make_jaxpr(lambda x, w: lax.conv_general_dilated(x, w, **options))(lhs, rhs)
    (equation,) = jaxpr.eqns
    return {name: value for name, value in equation.params.items() if name != "out_sharding"}


# Images, kernel, and parameters; what the comment says is the form that is taken.
CASES = {
    "strided groups in space, by kernel": (
        (5, 6, 7, 4),
        (2, 3, 2, 8),
        {
            "window_strides": (2, 1),
            "padding": [(1, 2), (0, 1)],
            "rhs_dilation": (1, 2),
            "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
            "feature_group_count": 2,
        },
    ),
    "cut and dilated, groups of images, by kernel": (
        (4, 6, 7, 5),
        (8, 6, 2, 3),
        {
            "window_strides": (1, 2),
            "padding": [(-1, 2), (0, -1)],
            "lhs_dilation": (1, 2),
            "dimension_numbers": ("NCHW", "OIHW", "NHWC"),
            "batch_group_count": 2,
        },
    ),
    "few results in one axis, by result": (
        (3, 5, 9),
        (2, 5, 8),
        {
            "window_strides": (1,),
            "padding": [(0, 0)],
            "dimension_numbers": ("NCH", "OIH", "HNC"),
            "precision": "highest",
        },
    ),
    "full in an upsampled image, by parts": (
        (5, 4, 3, 6),
        (2, 6, 3, 2),
        {
            "window_strides": (1, 1),
            "padding": [(2, 2), (1, 3)],
            "lhs_dilation": (2, 1),
            "rhs_dilation": (1, 2),
            "dimension_numbers": ("NHWC", "OIHW", "NHWC"),
        },
    ),
    "three axes": (
        (2, 3, 3, 4, 3),
        (4, 3, 2, 2, 2),
        {"window_strides": (1, 1, 2), "padding": "SAME"},
    ),
}


@pytest.mark.parametrize("block_bytes", [1, 2**21])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_convolution(name, block_bytes, monkeypatch):
    monkeypatch.setattr(convolutions, "BLOCK_BYTES", block_bytes)
    lhs_shape, rhs_shape, options = CASES[name]
    lhs, rhs = array(1, *lhs_shape), array(2, *rhs_shape)
    parameters = primitive_parameters(lhs, rhs, **options)
    found = jax.jit(lambda x, w: convolution_as_product(x, w, **parameters))(lhs, rhs)
    expected = lax.conv_general_dilated(lhs, rhs, **options)
    # Sums of up to 48 products of normal numbers.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_every_form_is_taken(monkeypatch):
    taken = set()
    for form in ("_by_kernel", "_by_result", "_by_parts"):
        original = getattr(convolutions._Space, form)

        def noted(self, *arguments, form=form, original=original):
            taken.add(form)
            return original(self, *arguments)

        monkeypatch.setattr(convolutions._Space, form, noted)
    for lhs_shape, rhs_shape, options in CASES.values():
        lhs, rhs = array(1, *lhs_shape), array(2, *rhs_shape)
        parameters = primitive_parameters(lhs, rhs, **options)
        jax.eval_shape(lambda x, w, p=parameters: convolution_as_product(x, w, **p), lhs, rhs)
    assert taken == {"_by_kernel", "_by_result", "_by_parts"}


def test_sums_of_short_floats_are_taken_in_float32():
    lhs, rhs = array(3, 2, 4, 4, 8, dtype=jnp.bfloat16), array(4, 3, 3, 8, 2, dtype=jnp.bfloat16)
    options = {
        "window_strides": (1, 1),
        "padding": [(2, 2), (2, 2)],
        "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
    }
    parameters = primitive_parameters(lhs, rhs, **options)
    found = convolution_as_product(lhs, rhs, **parameters)
    assert found.dtype == jnp.bfloat16
    wide = (x.astype(jnp.float32) for x in (lhs, rhs))
    expected = lax.conv_general_dilated(*wide, **options, precision="highest")
    # One rounding to 8 bits, of numbers of up to 32.
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=2**-8, atol=1e-4)
    parameters = parameters | {"preferred_element_type": jnp.float32}
    found = convolution_as_product(lhs, rhs, **parameters)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_an_empty_result():
    lhs, rhs = array(5, 2, 1, 3), array(6, 1, 1, 4)
    parameters = primitive_parameters(lhs, rhs, window_strides=(1,), padding=[(0, 0)])
    assert convolution_as_product(lhs, rhs, **parameters).shape == (2, 1, 0)
