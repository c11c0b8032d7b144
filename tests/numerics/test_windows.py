"""Windows as slices against `lax.reduce_window` and its derivatives, at ties above all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxcomp.numerics.windows import (
    Windows,
    add_to_window_maxima,
    at_window_maxima,
    window_maxima,
    window_sums,
)

pytestmark = pytest.mark.usefixtures("strict_promotion")

# Shape of a window, strides, padding, window dilation.
CASES = {
    "adjoining": ((1, 2, 2, 1), (1, 2, 2, 1), ((0, 0),) * 4, (1,) * 4),
    "adjoining and padded": (
        (2, 1, 3, 1),
        (2, 1, 3, 1),
        ((1, 0), (0, 0), (1, 2), (0, 0)),
        (1,) * 4,
    ),
    "overlapping": ((1, 3, 2, 1), (1, 1, 2, 1), ((0, 0), (1, 1), (0, 0), (0, 0)), (1,) * 4),
    "dilated": ((1, 2, 2, 1), (1, 2, 1, 1), ((0, 0), (0, 1), (0, 0), (0, 0)), (1, 2, 3, 1)),
}


def few_values(*shape):
    """Integers from 0 to 2: most windows have several largest entries."""
    values = np.random.default_rng(0).integers(0, 3, size=shape)
    return jnp.asarray(values, jnp.float32)


def reduction(case, operation):
    shape, strides, padding, dilation = case
    # A number that is known to a trace, too.
    start = np.float32(0 if operation is lax.add else -np.inf)
    return lambda x: lax.reduce_window(
        x, start, operation, shape, strides, padding, window_dilation=dilation
    )


def windows_of(case, base_dilation=(1, 1, 1, 1)):
    shape, strides, padding, dilation = case
    return Windows(shape, strides, padding, base_dilation, dilation)


@pytest.mark.parametrize("name", CASES)
def test_maxima_sums_and_derivatives(name):
    case, x = CASES[name], few_values(4, 7, 6, 2)
    windows, maxima = windows_of(case), reduction(case, lax.max)
    shape = jax.eval_shape(maxima, x).shape
    source = np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)
    tangents = np.arange(1, x.size + 1, dtype=np.float32).reshape(x.shape)
    has_reverse = name != "dilated"  # JAX has no reverse derivative for it.

    @jax.jit
    def ours(x, source, tangents):
        found = window_maxima(x, windows), window_sums(x, windows)
        if not has_reverse:
            return found
        added = add_to_window_maxima(source, x, windows)
        return *found, added, at_window_maxima(tangents, x, windows)

    @jax.jit
    def theirs(x, source):
        expected = maxima(x), reduction(case, lax.add)(x)
        return (*expected, *jax.vjp(maxima, x)[1](source)) if has_reverse else expected

    found, expected = ours(x, source, tangents), theirs(x, source)
    for one, other in zip(found, expected, strict=not has_reverse):
        np.testing.assert_array_equal(one, other)
    if not has_reverse:
        return
    # The forward derivative is the transposed one: <source, J t> = <J^T source, t>.
    *_, added, chosen = found
    sums = [np.sum(np.float64(a) * np.float64(b)) for a, b in ((source, chosen), (added, tangents))]
    assert sums[0] == sums[1]
    if name == "adjoining":
        # (With padding XLA takes another of equal numbers in the forward derivative than in the
        # reverse one.)
        np.testing.assert_array_equal(chosen, jax.jvp(maxima, (x,), (tangents,))[1])


def test_the_first_of_equal_numbers_counts():
    windows = windows_of(CASES["adjoining"])
    x = np.asarray([[0, 1], [1, 1]], np.float32).reshape(1, 2, 2, 1)
    added = jax.jit(lambda x: add_to_window_maxima(jnp.ones((1, 1, 1, 1)), x, windows))(x)
    np.testing.assert_array_equal(added.reshape(2, 2), [[0, 1], [0, 0]])
    tangents = np.asarray([[1, 2], [3, 4]], np.float32).reshape(1, 2, 2, 1)
    chosen = jax.jit(lambda x: at_window_maxima(tangents, x, windows))
    assert chosen(x).item() == 2
    # Where nothing is above minus infinity JAX's derivative is zero.
    assert chosen(np.full(x.shape, -np.inf, np.float32)).item() == 0


def test_gather_and_scatter_are_transposes_with_strides_and_dilation():
    windows = Windows((2, 3), (2, 3), ((1, 2), (0, 1)), (1, 1), (3, 2))
    x = few_values(7, 9)
    counts = windows.counts(x.shape)

    def gather(x):
        return windows.gather(windows.pad(x, jnp.float32(0)), counts, 1)

    gathered = gather(x)
    padded = windows.pad(x, jnp.float32(0))
    np.testing.assert_array_equal(gathered, jnp.stack(list(windows.entries(padded, counts)), 1))
    cotangent = jnp.arange(gathered.size, dtype=jnp.float32).reshape(gathered.shape)
    scattered = windows.scatter(
        lambda place: lax.dynamic_index_in_dim(cotangent, place, 1, keepdims=False), x.shape
    )
    assert jnp.sum(gathered * cotangent) == jnp.sum(x * scattered)


def test_dilation_of_the_array():
    case = CASES["overlapping"]
    x = few_values(2, 5, 4, 1)
    windows = windows_of(case, base_dilation=(1, 2, 3, 1))
    for operation, found in ((lax.max, window_maxima), (lax.add, window_sums)):
        shape, strides, padding, dilation = case
        expected = lax.reduce_window(
            x,
            jnp.float32(0 if operation is lax.add else -np.inf),
            operation,
            shape,
            strides,
            padding,
            base_dilation=(1, 2, 3, 1),
            window_dilation=dilation,
        )
        np.testing.assert_array_equal(found(x, windows), expected)
