"""Decompositions of many symmetric matrices, small ones without LAPACK.

Batched calls of LAPACK in one program may wait for each other for ever on a CPU of two cores, and
on a crowded machine they slow a hundredfold. So matrices up to 64 x 64 are decomposed by loops of
plain array operations, which also run on accelerators, and larger ones by LAPACK one after the
other. Nothing else in this package calls a decomposition of JAX.

In all functions leading axes are matrices of their own, and `jax.vmap` adds to them: which matrices
are decomposed together never changes a result. The work is done with the matrices along the last
axis, where they fill vector registers.

Axes: `...` matrices, `d` rows and columns, `r` right-hand sides, `s` shifts, `M` matrices after
flattening.

Sources: Golub and Van Loan, Matrix Computations (2013), sections 4.2 (Cholesky), 8.3 (Householder's
tridiagonal form), 8.5 (Jacobi's method; in parallel order: Brent and Luk, SIAM J. Sci. Stat.
Comput. 6, 1985).
"""

from collections.abc import Callable
from functools import wraps
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float

# Rows up to which loops of our own are used.
MAX_SMALL = 64
# Jacobi's method converges quadratically: six or seven sweeps in single precision, ten in double.
_MAX_SWEEPS = 30


def _joining_batches(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let `jax.vmap` add its axis to the leading ones, instead of batching every operation."""
    joined = custom_vmap(function)

    @joined.def_vmap
    def _(axis_size: int, is_mapped: list[bool], *arrays: Array) -> tuple[Any, Any]:
        # Leading axes must be the same: what is not mapped is repeated.
        arrays = tuple(
            array if mapped else jnp.broadcast_to(array, (axis_size, *array.shape))
            for array, mapped in zip(arrays, is_mapped, strict=True)
        )
        found = joined(*arrays)
        return found, jax.tree.map(lambda _: True, found)

    return wraps(function)(joined)


def cholesky(matrix: Float[Array, "... d d"]) -> Float[Array, "... d d"]:
    """Return the lower Cholesky factor L of `A = L L^T`.

    Args:
        matrix: A (..., d, d), positive definite; only its lower triangle is read.

    Returns:
        (..., d, d); NaN throughout where a matrix is not positive definite.
    """
    return _cholesky(matrix)


def solve_lower(
    factor: Float[Array, "... d d"], right: Float[Array, "... d r"], *, transposed: bool = False
) -> Float[Array, "... d r"]:
    """Solve `L x = b`, or `L^T x = b`, for a lower triangular matrix.

    Args:
        factor: L (..., d, d); only its lower triangle is read.
        right: b (..., d, r); leading axes broadcast.
        transposed: whether L^T stands on the left, static.

    Returns:
        x (..., d, r).
    """
    batch = jnp.broadcast_shapes(factor.shape[:-2], right.shape[:-2])
    factor = jnp.broadcast_to(factor, (*batch, *factor.shape[-2:]))
    right = jnp.broadcast_to(right, (*batch, *right.shape[-2:]))
    return (_solve_transposed if transposed else _solve_lower)(factor, right)


def cholesky_solve(
    factor: Float[Array, "... d d"], right: Float[Array, "... d r"]
) -> Float[Array, "... d r"]:
    """Solve `L L^T x = b`.

    Args:
        factor: L (..., d, d), from `cholesky`.
        right: b (..., d, r); leading axes broadcast.

    Returns:
        x (..., d, r).
    """
    return solve_lower(factor, solve_lower(factor, right), transposed=True)


def eigh(
    matrix: Float[Array, "... d d"],
) -> tuple[Float[Array, "... d"], Float[Array, "... d d"]]:
    """Return eigenvalues and eigenvectors of symmetric matrices.

    Jacobi's method up to 64 rows. Forward-mode derivatives only.

    Args:
        matrix: A (..., d, d); its symmetric part is taken.

    Returns:
        Eigenvalues (..., d), ascending, and orthonormal eigenvectors (..., d, d) as columns. The
        error is a few roundings of the largest eigenvalue. NaN for a matrix that is not finite.
    """
    return _eigh(matrix)


def solve_shifted(
    matrix: Float[Array, "... d d"], shifts: Float[Array, " s"], right: Float[Array, "... d"]
) -> Float[Array, "... s d"]:
    """Solve `(A + shift I) x = b` for many shifts, by one reduction to tridiagonal form.

    Args:
        matrix: A (..., d, d), symmetric.
        shifts: (s,), such that every `A + shift I` is positive definite.
        right: b (..., d), the leading axes those of the matrix.

    Returns:
        x (..., s, d).
    """
    batch = matrix.shape[:-2]
    last = jnp.broadcast_to(shifts, (*batch, *shifts.shape))
    return _solve_shifted(matrix, last, right)


# --- From leading axes to the last one, and back ----------------------------------------------


def _to_last(array: Array, trailing: int) -> Array:
    """Flatten the leading axes and put them last."""
    flat = array.reshape(-1, *array.shape[array.ndim - trailing :])
    return jnp.moveaxis(flat, 0, -1)


def _from_last(array: Array, batch: tuple[int, ...]) -> Array:
    return jnp.moveaxis(array, -1, 0).reshape(*batch, *array.shape[:-1])


def _one_by_one(function: Callable[..., Any], *arrays: Array) -> Any:
    """Apply a function of LAPACK to matrix after matrix; never two in one call."""
    batch = arrays[0].shape[:-2]
    flat = tuple(array.reshape(-1, *array.shape[-2:]) for array in arrays)
    if prod(batch) == 1:
        found = jax.tree.map(lambda leaf: leaf[None], function(*(array[0] for array in flat)))
    else:
        found = lax.map(lambda one: function(*one), flat)
    return jax.tree.map(lambda leaf: leaf.reshape(*batch, *leaf.shape[1:]), found)


# --- Cholesky and triangular solutions ----------------------------------------------------------


@_joining_batches
def _cholesky(matrix: Float[Array, "... d d"]) -> Float[Array, "... d d"]:
    if matrix.shape[-1] > MAX_SMALL:
        return _one_by_one(lambda a: lax.linalg.cholesky(a, symmetrize_input=False), matrix)
    return _from_last(_small_cholesky(_to_last(matrix, 2)), matrix.shape[:-2])


def _small_cholesky(matrix: Float[Array, "d d M"]) -> Float[Array, "d d M"]:
    """Column after column, what it explains taken from all that follow."""
    dim = matrix.shape[0]
    place = jnp.arange(dim)[:, None]

    def step(j: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        # Rows of `rest` are columns of what is left of A.
        rest, columns = state
        column = rest[j]
        column = jnp.where(place >= j, column / jnp.sqrt(column[j]), 0)
        rest = rest - column[:, None] * column[None, :]
        return rest, columns.at[j].set(column)

    columns = jnp.swapaxes(matrix, 0, 1)
    _, columns = lax.fori_loop(0, dim, step, (columns, jnp.zeros_like(columns)))
    is_definite = jnp.all(jnp.isfinite(columns), axis=(0, 1))
    return jnp.where(is_definite, jnp.swapaxes(columns, 0, 1), jnp.nan)


@_joining_batches
def _solve_lower(
    factor: Float[Array, "... d d"], right: Float[Array, "... d r"]
) -> Float[Array, "... d r"]:
    return _solve_triangular(factor, right, transposed=False)


@_joining_batches
def _solve_transposed(
    factor: Float[Array, "... d d"], right: Float[Array, "... d r"]
) -> Float[Array, "... d r"]:
    return _solve_triangular(factor, right, transposed=True)


def _solve_triangular(factor: Array, right: Array, *, transposed: bool) -> Array:
    if factor.shape[-1] > MAX_SMALL:
        return _one_by_one(
            lambda a, b: lax.linalg.triangular_solve(
                a, b, left_side=True, lower=True, transpose_a=transposed
            ),
            factor,
            right,
        )
    dim = factor.shape[-1]
    rows = _to_last(factor, 2)
    # Row j: what the j-th unknown takes part in.
    rows = rows if transposed else jnp.swapaxes(rows, 0, 1)
    place = jnp.arange(dim)[:, None, None]

    def step(number: Array, x: Float[Array, "d r M"]) -> Float[Array, "d r M"]:
        j = dim - 1 - number if transposed else number
        found = x[j] / rows[j, j]
        is_left = (place < j) if transposed else (place > j)
        x = x - jnp.where(is_left, rows[j][:, None], 0) * found
        return x.at[j].set(found)

    x = lax.fori_loop(0, dim, step, _to_last(right, 2))
    return _from_last(x, right.shape[:-2])


# --- Eigenvalues by Jacobi's method -------------------------------------------------------------


@_joining_batches
def _eigh(matrix: Float[Array, "... d d"]) -> tuple[Array, Array]:
    if matrix.shape[-1] > MAX_SMALL:
        # LAPACK's vectors come first.
        vectors, values = _one_by_one(lax.linalg.eigh, matrix)
        return values, vectors
    batch = matrix.shape[:-2]
    values, vectors = _jacobi(_to_last(matrix, 2))
    values, vectors = _from_last(values, batch), _from_last(vectors, batch)
    order = jnp.argsort(values, axis=-1)
    values = jnp.take_along_axis(values, order, axis=-1)
    vectors = jnp.take_along_axis(vectors, order[..., None], axis=-2)
    return values, jnp.swapaxes(vectors, -1, -2)


def _jacobi(matrix: Float[Array, "d d M"]) -> tuple[Float[Array, "d M"], Float[Array, "d d M"]]:
    """Return eigenvalues, and eigenvectors as rows, in no order.

    Half of the rows stand above, half below; each is paired with the one in its place. After each
    round of rotations all but the first move on by one place, in a circle, so that in a sweep
    every row meets every other once and comes home. An odd number of rows is filled up by one of
    zeros, which no rotation touches.
    """
    dim = matrix.shape[0]
    size = dim + dim % 2
    half = size // 2
    dtype = matrix.dtype
    is_finite = jnp.all(jnp.isfinite(matrix), axis=(0, 1))
    matrix = jnp.where(is_finite, matrix, 0)
    # In units of a power of two near the largest entry: squares stay in range.
    largest = jnp.max(jnp.abs(matrix), axis=(0, 1))
    exponent = jnp.where(largest > 0, jnp.frexp(largest)[1], 0)
    matrix = jnp.ldexp(matrix, -exponent)
    matrix = 0.5 * (matrix + jnp.swapaxes(matrix, 0, 1))
    matrix = jnp.pad(matrix, [(0, size - dim), (0, size - dim), (0, 0)])
    is_diagonal = jnp.eye(size, dtype=bool)[:, :, None]
    is_pair = jnp.eye(half, dtype=bool)[:, :, None]

    def diagonal(block: Float[Array, "h h M"]) -> Float[Array, "h M"]:
        return jnp.sum(jnp.where(is_pair, block, 0), axis=0)

    def move_on(rows: Array) -> Array:
        if half == 1:
            return rows
        parts = (rows[:1], rows[half : half + 1], rows[1 : half - 1])
        return jnp.concatenate([*parts, rows[half + 1 :], rows[half - 1 : half]])

    def turn(rows: Array, cosine: Array, sine: Array) -> Array:
        above, below = rows[:half], rows[half:]
        cosine, sine = cosine[:, None], sine[:, None]
        return jnp.concatenate([cosine * above - sine * below, sine * above + cosine * below])

    def rotate(_, state):
        a, vectors, is_active = state
        first, second = diagonal(a[:half, :half]), diagonal(a[half:, half:])
        mixed = jnp.where(is_active, diagonal(a[:half, half:]), 0)
        is_mixed = mixed != 0
        cotangent = (second - first) / jnp.where(is_mixed, 2 * mixed, 1)
        sign = jnp.where(cotangent < 0, -1, 1).astype(dtype)
        tangent = sign / (jnp.abs(cotangent) + jnp.sqrt(1 + cotangent * cotangent))
        tangent = jnp.where(is_mixed, tangent, 0)
        cosine = 1 / jnp.sqrt(1 + tangent * tangent)
        sine = tangent * cosine
        a = turn(a, cosine, sine)
        a = jnp.swapaxes(turn(jnp.swapaxes(a, 0, 1), cosine, sine), 0, 1)
        # What is known exactly is not left to rounding.
        ends = jnp.concatenate([first - tangent * mixed, second + tangent * mixed])
        a = jnp.where(is_diagonal, ends[:, None], a)
        is_met = jnp.roll(is_diagonal, half, axis=0) & is_active
        a = jnp.where(is_met, 0, a)
        a = jnp.swapaxes(move_on(jnp.swapaxes(move_on(a), 0, 1)), 0, 1)
        return a, move_on(turn(vectors, cosine, sine)), is_active

    def unfinished(a: Array) -> Array:
        squares = jnp.where(is_diagonal, 0, a * a)
        off = jnp.sum(squares, axis=(0, 1))
        return off > jnp.finfo(dtype).eps ** 2 * jnp.sum(a * a, axis=(0, 1))

    def sweep(state):
        a, vectors, is_active, number = state
        a, vectors, _ = lax.fori_loop(0, max(size - 1, 1), rotate, (a, vectors, is_active))
        # A finished matrix rests while others go on: its result does not depend on them.
        return a, vectors, is_active & unfinished(a), number + 1

    vectors = jnp.broadcast_to(is_diagonal.astype(dtype), matrix.shape)
    a, vectors, _, _ = lax.while_loop(
        lambda state: jnp.any(state[2]) & (state[3] < _MAX_SWEEPS),
        sweep,
        (matrix, vectors, unfinished(matrix), jnp.int32(0)),
    )
    values = jnp.sum(jnp.where(is_diagonal, a, 0), axis=0)[:dim]
    values = jnp.ldexp(values, exponent)
    return jnp.where(is_finite, values, jnp.nan), jnp.where(is_finite, vectors[:dim, :dim], jnp.nan)


# --- Shifted systems ----------------------------------------------------------------------------


@_joining_batches
def _solve_shifted(
    matrix: Float[Array, "... d d"], shifts: Float[Array, "... s"], right: Float[Array, "... d"]
) -> Float[Array, "... s d"]:
    a, b, shift = _to_last(matrix, 2), _to_last(right, 1), _to_last(shifts, 1)
    # Powers of two: nothing is rounded, and squares stay in range.
    exponent = jnp.frexp(jnp.max(jnp.abs(a), axis=(0, 1)))[1]
    a, shift = jnp.ldexp(a, -exponent), jnp.ldexp(shift, -exponent)
    a, reflections, factors, b = _tridiagonal(a, b)
    x = _solve_tridiagonal(a, shift, b)
    x = _reflect_back(x, reflections, factors)
    return jnp.swapaxes(_from_last(jnp.ldexp(x, -exponent), matrix.shape[:-2]), -1, -2)


def _tridiagonal(
    a: Float[Array, "d d M"], b: Float[Array, "d M"]
) -> tuple[Array, Array, Array, Array]:
    """Reflect A to tridiagonal form, and b with it; keep the reflections `I - factor v v^T`."""
    dim = a.shape[0]
    place = jnp.arange(dim)[:, None]

    def step(k: Array, state):
        a, reflections, factors, b = state
        v = jnp.where(place > k, a[k], 0)
        length = jnp.sqrt(jnp.sum(v * v, axis=0))
        head = v[k + 1]
        v = v.at[k + 1].add(jnp.where(head < 0, -length, length))
        square = jnp.sum(v * v, axis=0)
        factor = jnp.where(square > 0, 2 / jnp.where(square > 0, square, 1), 0)
        product = factor * jnp.sum(a * v[:, None], axis=0)
        w = product - (0.5 * factor * jnp.sum(product * v, axis=0)) * v
        a = a - (v[:, None] * w[None, :] + w[:, None] * v[None, :])
        b = b - factor * jnp.sum(v * b, axis=0) * v
        return a, reflections.at[k].set(v), factors.at[k].set(factor), b

    num_steps = max(dim - 2, 0)
    if num_steps == 0:
        return a, a[:0], b[:0], b
    reflections = jnp.zeros((num_steps, *b.shape), a.dtype)
    factors = jnp.zeros((num_steps, b.shape[1]), a.dtype)
    return lax.fori_loop(0, num_steps, step, (a, reflections, factors, b))


def _solve_tridiagonal(
    a: Float[Array, "d d M"], shift: Float[Array, "s M"], b: Float[Array, "d M"]
) -> Float[Array, "d s M"]:
    """Eliminate from the first row to the last and substitute back."""
    dim = a.shape[0]
    index = jnp.arange(dim)
    diagonal = a[index, index]
    beside = jnp.concatenate([jnp.zeros_like(b[:1]), a[index[:-1], index[1:]]])

    def eliminate(carry, row):
        pivot, value = carry
        centre, off, given = row
        ratio = off / pivot
        pivot = centre + shift - ratio * off
        value = given - ratio * value
        return (pivot, value), (pivot, value)

    start = (jnp.ones_like(shift), jnp.zeros_like(shift))
    _, (pivots, values) = lax.scan(eliminate, start, (diagonal, beside, b))

    def substitute(x, row):
        pivot, value, off = row
        x = (value - off * x) / pivot
        return x, x

    after = jnp.concatenate([beside[1:], jnp.zeros_like(b[:1])])
    _, x = lax.scan(substitute, jnp.zeros_like(shift), (pivots, values, after), reverse=True)
    return x


def _reflect_back(
    x: Float[Array, "d s M"], reflections: Float[Array, "k d M"], factors: Float[Array, "k M"]
) -> Float[Array, "d s M"]:
    def step(x, reflection):
        v, factor = reflection
        return x - v[:, None] * (factor * jnp.sum(v[:, None] * x, axis=0)), None

    return lax.scan(step, x, (reflections, factors), reverse=True)[0]
