import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp.precision import in_float64


@in_float64("power")
def small_difference(a, b, *, power):
    assert a.dtype == jnp.float64
    return (a - b) ** power, a > b


def test_float64_inside_default_outside():
    # Host numbers enter unrounded: in float32 these two are equal.
    found, is_larger = small_difference(1.0 + 1e-12, np.array([1.0, 0.0]), power=1)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, [1e-12, 1], rtol=1e-3)
    assert is_larger.dtype == bool
    assert bool(is_larger[0])
    assert jnp.asarray(1.0).dtype == jnp.float32


def test_wide_types_stay_wide(x64):
    assert small_difference(1, 0.5, power=2)[0].dtype == jnp.float64


def test_traced_mapped_and_differentiated():
    def square(a, b):
        return small_difference(a, b, power=2)[0]

    a, b = jnp.asarray([1.0, 2.0]), jnp.asarray([3.0, 5.0])
    np.testing.assert_array_equal(jax.jit(jax.vmap(square))(a, b), [4, 9])
    np.testing.assert_array_equal(jax.vmap(jax.grad(square))(a, b), [-4, -6])
