from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow_cases import some_slow

from jaxcomp.numerics.precision import in_float64, narrow, round_down, round_up


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


def programs(function):
    """The ways in which a program can hold a function before anybody differentiates it."""

    def in_loop(a):
        return jax.lax.scan(lambda total, x: (total + function(x), None), 0.0, a[None])[0]

    return {"jit": jax.jit(function), "checkpoint": jax.checkpoint(function), "loop": in_loop}


@pytest.mark.parametrize("program", some_slow(["jit", "checkpoint", "loop"], "checkpoint"))
def test_differentiated_inside_any_program(program):
    def difference(a):
        return small_difference(a, jnp.float32(1), power=3)[0]

    function = programs(difference)[program]
    a = jnp.float32(3)
    assert jax.grad(function)(a) == 12
    assert jax.jvp(function, (a,), (jnp.float32(2),))[1] == 24
    value, pull = jax.vjp(function, a)
    assert (value, pull(jnp.float32(1))[0]) == (8, 12)
    assert jax.linearize(function, a)[1](a) == 36
    assert jax.jacfwd(jax.jacfwd(function))(a) == 12


def test_integers_have_no_derivative_and_others_keep_theirs():
    def difference(a, n):
        return small_difference(a, n, power=2)[0]

    gradient = jax.jit(jax.grad(difference))(jnp.float32(3), jnp.int32(1))
    assert (gradient.dtype, gradient) == (jnp.float32, 4)


DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
def test_every_number_goes_in_and_out_exactly(dtype):
    # All kinds of bits, and the numbers below 1e-38 that XLA's own conversions take for 0.
    bits = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32)
    bits = np.concatenate([bits, np.arange(2000, dtype=np.uint32), bits >> 9])
    with np.errstate(over="ignore", invalid="ignore"):
        values = bits.view(np.float32).astype(dtype)
    values = values[np.isfinite(values)]
    back = in_float64("dtype")(lambda values, *, dtype: narrow(values, dtype))
    found = back(jnp.asarray(values), dtype=np.dtype(dtype))
    assert np.asarray(found).tobytes() == values.tobytes()
    # And float64 is rounded as the host does it, by way of float32.
    rng = np.random.default_rng(1)
    fine = rng.normal(size=20_000) * 2.0 ** rng.integers(-155, 5, 20_000)
    found = back(fine, dtype=np.dtype(dtype))
    assert np.asarray(found).tobytes() == fine.astype(np.float32).astype(dtype).tobytes()


def test_lists_and_trees_of_arguments():
    def total(tree, values):
        assert tree["a"].dtype == values.dtype == jnp.float64
        return jnp.sum(tree["a"]) + jnp.sum(values)

    found = in_float64()(total)({"a": np.float32([1, 2])}, [3, 4])
    assert found.dtype == jnp.float32
    assert float(found) == 10


def test_the_derivative_at_zero_is_that_of_the_identity():
    double = in_float64()(lambda values: 2 * values)
    np.testing.assert_array_equal(jax.vmap(jax.grad(double))(jnp.asarray([0.0, 3.0])), [2, 2])


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
def test_rounding_up_and_down_enclose_the_number(dtype):
    generator = np.random.default_rng(2)
    exponents = generator.integers(-14 if dtype == jnp.float16 else -140, 15, 3000)
    values = generator.normal(size=3000) * 2.0**exponents
    values = np.append(values, [0.0, 1.0, -3.0])

    @in_float64("dtype")
    def both(values, *, dtype):
        return round_down(values, dtype), round_up(values, dtype)

    below, above = (np.asarray(part, dtype) for part in both(values, dtype=np.dtype(dtype)))
    for low, value, high in zip(below, values, above, strict=True):
        assert Fraction(float(low)) <= Fraction(value) <= Fraction(float(high))
    # The next numbers of the dtype, but that none lies between 0 and the least normal one.
    tiny = float(jnp.finfo(dtype).tiny)
    width = above.astype(float) - below.astype(float)
    assert np.all(width <= np.maximum(float(jnp.finfo(dtype).eps) * np.abs(values), tiny))
    np.testing.assert_array_equal(below[-3:], values[-3:])
    np.testing.assert_array_equal(above[-3:], values[-3:])
