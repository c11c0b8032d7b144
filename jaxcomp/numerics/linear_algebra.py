"""Decompositions of many symmetric matrices, small ones without LAPACK.

Batched calls of LAPACK in one program may wait for each other for ever on a CPU of two cores, and
on a crowded machine they slow a hundredfold. So matrices up to 64 x 64 (32 x 32 for eigenvalues)
are decomposed by loops of plain array operations, which also run on accelerators, and larger ones
by LAPACK one after the other. Nothing else in this package calls a decomposition of JAX.

In all functions leading axes are matrices of their own, and `jax.vmap` adds to them: which matrices
are decomposed together never changes a result.

Axes: `...` matrices, `d` rows and columns, `r` right-hand sides, `s` shifts, `M` matrices after
flattening: first where the work is products, last where it is element by element, so that vector
registers are full.

Sources: Golub and Van Loan, Matrix Computations (2013), sections 4.2 (Cholesky), 8.3 (Householder's
tridiagonal form), 8.5 (Jacobi's method; in parallel order: Brent and Luk, SIAM J. Sci. Stat.
Comput. 6, 1985).
"""

from collections.abc import Callable
from functools import partial, wraps
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float

# Rows up to which loops of our own are used, and up to which Jacobi's method is.
MAX_SMALL = 64
MAX_JACOBI = 32
# Rows of the blocks that larger triangular matrices are solved by.
_BLOCK = 32
# Jacobi's method converges quadratically: six or seven sweeps in single precision, ten in double.
_MAX_SWEEPS = 30
# Entries of matrices rotated together: what fits a cache; but matrices enough for registers.
_NUMBERS_AT_ONCE = 1 << 15
_LEAST_AT_ONCE = 64


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

    Jacobi's method up to 32 rows. Forward-mode derivatives only.

    Args:
        matrix: A (..., d, d); its symmetric part is taken.

    Returns:
        Eigenvalues (..., d), ascending, and orthonormal eigenvectors (..., d, d) as columns. The
        error is a few roundings of the largest eigenvalue. NaN for a matrix that is not finite.
    """
    return _eigh(matrix)


def after(matrix: Float[Array, "..."], first: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the matrix, available only when `first` has been computed.

    Puts two decompositions in order that would otherwise run at once if LAPACK does them. Barriers
    of XLA are gone by the time it schedules; a dependence in the data is not.

    Args:
        matrix: any shape.
        first: at least one number, of the same dtype. Only NaN in it would change the matrix.
    """
    # 0 for every number, but not to a compiler, which has to think of NaN.
    return matrix + jnp.minimum(jnp.abs(first.ravel()[0]), 0)


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
    flat = matrix.reshape(-1, *matrix.shape[-2:])
    place = jnp.arange(matrix.shape[-1])

    def step(j: Array, columns: Float[Array, "M d d"]) -> Float[Array, "M d d"]:
        # Column after column, less what those before it explain.
        row = lax.dynamic_index_in_dim(columns, j, 2, keepdims=False)
        explained = jnp.einsum("mki,mk->mi", columns, row, precision="highest")
        column = lax.dynamic_index_in_dim(flat, j, 2, keepdims=False) - explained
        pivot = lax.dynamic_index_in_dim(column, j, 1)
        return columns.at[:, j].set(jnp.where(place >= j, column / jnp.sqrt(pivot), 0))

    columns = lax.fori_loop(0, place.shape[0], step, jnp.zeros_like(flat))
    is_definite = jnp.all(jnp.isfinite(columns), axis=(1, 2), keepdims=True)
    factor = jnp.where(is_definite, jnp.swapaxes(columns, 1, 2), jnp.nan)
    return factor.reshape(matrix.shape)


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
        return _solve_by_blocks(factor, right, transposed=transposed)
    dim = factor.shape[-1]
    rows = _to_last(factor, 2)
    # Row j: what the j-th unknown takes part in.
    rows = rows if transposed else jnp.swapaxes(rows, 0, 1)
    place = jnp.arange(dim, dtype=jnp.int32)[:, None, None]

    def step(number: Array, x: Float[Array, "d r M"]) -> Float[Array, "d r M"]:
        j = dim - 1 - number if transposed else number
        found = x[j] / rows[j, j][None]
        is_left = (place < j) if transposed else (place > j)
        x = x - jnp.where(is_left, rows[j][:, None], 0) * found[None]
        return x.at[j].set(found)

    x = lax.fori_loop(0, dim, step, _to_last(right, 2))
    return _from_last(x, right.shape[:-2])


def _solve_by_blocks(factor: Array, right: Array, *, transposed: bool) -> Array:
    """Solve with the inverses of diagonal blocks; all else is products."""
    dim = factor.shape[-1]
    extra, num_blocks = -dim % _BLOCK, -(-dim // _BLOCK)
    a = jnp.tril(factor.reshape(-1, dim, dim))
    a = jnp.pad(a, [(0, 0), (0, extra), (0, extra)])
    x = jnp.pad(right.reshape(-1, *right.shape[-2:]), [(0, 0), (0, extra), (0, 0)])
    # Rows that fill up a last block are those of the identity.
    filling = np.diag((np.arange(dim + extra) >= dim).astype(a.dtype))
    a = a + filling[None]
    by_block = a.reshape(-1, num_blocks, _BLOCK, num_blocks, _BLOCK)
    blocks = jnp.moveaxis(jnp.diagonal(by_block, axis1=1, axis2=3), -1, 1)
    identity = jnp.broadcast_to(jnp.eye(_BLOCK, dtype=a.dtype), blocks.shape)
    inverses = _solve_triangular(blocks, identity, transposed=False)
    if transposed:
        a, inverses = jnp.swapaxes(a, 1, 2), jnp.swapaxes(inverses, 2, 3)
    product = partial(jnp.einsum, "mij,mjr->mir", precision="highest")

    def step(number: Array, x: Float[Array, "M d r"]) -> Float[Array, "M d r"]:
        block = num_blocks - 1 - number if transposed else number
        start = block * _BLOCK
        known = lax.dynamic_slice_in_dim(x, start, _BLOCK, axis=1)
        inverse = lax.dynamic_index_in_dim(inverses, block, 1, keepdims=False)
        known = product(inverse, known)
        columns = lax.dynamic_slice_in_dim(a, start, _BLOCK, axis=2)
        # The block's own rows are put in place afterwards, those before it are finished.
        left = lax.dynamic_update_slice_in_dim(columns, jnp.zeros_like(inverse), start, axis=1)
        return lax.dynamic_update_slice_in_dim(x - product(left, known), known, start, axis=1)

    x = lax.fori_loop(0, num_blocks, step, x)
    return x[:, :dim].reshape(right.shape)


# --- Eigenvalues by Jacobi's method -------------------------------------------------------------


@_joining_batches
def _eigh(matrix: Float[Array, "... d d"]) -> tuple[Array, Array]:
    if matrix.shape[-1] > MAX_JACOBI:
        # LAPACK's vectors come first.
        vectors, values = _one_by_one(lax.linalg.eigh, matrix)
        return values, vectors
    batch, dim = matrix.shape[:-2], matrix.shape[-1]
    flat = matrix.reshape(-1, dim, dim)
    num_matrices = flat.shape[0]
    size = min(num_matrices, max(_LEAST_AT_ONCE, _NUMBERS_AT_ONCE // dim**2))
    extra = -num_matrices % size
    parts = jnp.pad(flat, [(0, extra), (0, 0), (0, 0)]).reshape(-1, size, dim, dim)
    values, vectors = lax.map(_jacobi, jnp.moveaxis(parts, 1, -1))
    values = jnp.moveaxis(values, -1, 1).reshape(-1, dim)[:num_matrices].reshape(*batch, dim)
    vectors = jnp.moveaxis(vectors, -1, 1).reshape(-1, dim, dim)[:num_matrices]
    vectors = vectors.reshape(matrix.shape)
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
    matrix = jnp.ldexp(matrix, -exponent[None, None])
    matrix = 0.5 * (matrix + jnp.swapaxes(matrix, 0, 1))
    matrix = jnp.pad(matrix, [(0, size - dim), (0, size - dim), (0, 0)])
    is_diagonal = np.eye(size, dtype=bool)[:, :, None]
    is_pair = np.eye(half, dtype=bool)[:, :, None]
    order = np.arange(size)
    if half > 1:
        order = np.concatenate([[0, half], order[1 : half - 1], order[half + 1 :], [half - 1]])
    # Where a round leaves the entries that it made zero.
    is_met = np.roll(is_diagonal, half, axis=0)[order][:, order]

    def diagonal(block: Float[Array, "h h M"]) -> Float[Array, "h M"]:
        return jnp.sum(jnp.where(is_pair, block, 0), axis=0)

    def move_on(rows: Array) -> Array:
        if half == 1:
            return rows
        parts = (rows[:1], rows[half : half + 1], rows[1 : half - 1])
        return jnp.concatenate([*parts, rows[half + 1 :], rows[half - 1 : half]])

    def rotate(_, state):
        a, vectors, is_active = state
        first, second = diagonal(a[:half, :half]), diagonal(a[half:, half:])
        mixed = jnp.where(is_active, diagonal(a[:half, half:]), 0)
        is_mixed = mixed != 0
        cotangent = (second - first) / jnp.where(is_mixed, 2 * mixed, 1)
        sign = jnp.where(cotangent < 0, -1, 1).astype(dtype)
        tangent = sign / (jnp.abs(cotangent) + jnp.sqrt(1 + cotangent * cotangent))
        tangent = jnp.where(is_mixed, tangent, 0)
        cosine = (1 / jnp.sqrt(1 + tangent * tangent))[:, None]
        sine = tangent[:, None] * cosine

        def turn(rows: Array) -> Array:
            above, below = rows[:half], rows[half:]
            turned = [cosine * above - sine * below, sine * above + cosine * below]
            return move_on(jnp.concatenate(turned))

        # Rows, then columns as the rows of the transpose; the result is symmetric.
        a = turn(jnp.swapaxes(turn(a), 0, 1))
        # What is known exactly is not left to rounding.
        ends = move_on(jnp.concatenate([first - tangent * mixed, second + tangent * mixed]))
        a = jnp.where(is_diagonal, ends[:, None], jnp.where(is_met & is_active[None, None], 0, a))
        return a, turn(vectors), is_active

    def unfinished(a: Array) -> Array:
        squares = jnp.where(is_diagonal, 0, a * a)
        off = jnp.sum(squares, axis=(0, 1))
        return off > jnp.finfo(dtype).eps ** 2 * jnp.sum(a * a, axis=(0, 1))

    def sweep(state):
        a, vectors, is_active, number = state
        a, vectors, _ = lax.fori_loop(0, max(size - 1, 1), rotate, (a, vectors, is_active))
        # A finished matrix rests while others go on: its result does not depend on them.
        return a, vectors, is_active & unfinished(a), number + 1

    vectors = jnp.broadcast_to(jnp.asarray(is_diagonal, dtype), matrix.shape)
    a, vectors, _, _ = lax.while_loop(
        lambda state: jnp.any(state[2]) & (state[3] < _MAX_SWEEPS),
        sweep,
        (matrix, vectors, unfinished(matrix), jnp.int32(0)),
    )
    values = jnp.sum(jnp.where(is_diagonal, a, 0), axis=0)[:dim]
    values = jnp.ldexp(values, exponent[None])
    return jnp.where(is_finite, values, jnp.nan), jnp.where(is_finite, vectors[:dim, :dim], jnp.nan)


# --- Shifted systems ----------------------------------------------------------------------------


@_joining_batches
def _solve_shifted(
    matrix: Float[Array, "... d d"], shifts: Float[Array, "... s"], right: Float[Array, "... d"]
) -> Float[Array, "... s d"]:
    dim = matrix.shape[-1]
    a, b = matrix.reshape(-1, dim, dim), right.reshape(-1, dim)
    shift = shifts.reshape(-1, shifts.shape[-1])
    # Powers of two: nothing is rounded, and squares stay in range.
    exponent = jnp.frexp(jnp.max(jnp.abs(a), axis=(1, 2)))[1]
    a, shift = jnp.ldexp(a, -exponent[:, None, None]), jnp.ldexp(shift, -exponent[:, None])
    a, reflections, b = _tridiagonal(a, b)
    x = _reflect_back(_solve_tridiagonal(a, shift, b), reflections)
    x = jnp.ldexp(x, -exponent[:, None, None])
    return x.reshape(*matrix.shape[:-2], *x.shape[1:])


def _tridiagonal(
    a: Float[Array, "M d d"], b: Float[Array, "M d"]
) -> tuple[Float[Array, "M d d"], Float[Array, "k M d"], Float[Array, "M d"]]:
    """Reflect A to tridiagonal form, and b with it; keep the reflections `I - v v^T`."""
    num_sets, dim = b.shape
    num_steps = max(dim - 2, 0)
    reflections = jnp.zeros((num_steps, num_sets, dim), a.dtype)
    if num_steps == 0:
        return a, reflections, b
    place = jnp.arange(dim, dtype=jnp.int32)

    def step(k: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        a, reflections, b = state
        v = jnp.where(place > k, lax.dynamic_index_in_dim(a, k, 1, keepdims=False), 0)
        length = jnp.sqrt(jnp.sum(v * v, axis=-1, keepdims=True))
        head = lax.dynamic_index_in_dim(v, k + 1, 1)
        v = v + jnp.where(place == k + 1, jnp.where(head < 0, -length, length), 0)
        square = jnp.sum(v * v, axis=-1, keepdims=True)
        # Of length sqrt(2): a factor less in all products.
        v = jnp.where(square > 0, v * jnp.sqrt(2 / jnp.where(square > 0, square, 1)), 0)
        product = jnp.einsum("mij,mj->mi", a, v, precision="highest")
        w = product - (0.5 * jnp.sum(product * v, axis=-1, keepdims=True)) * v
        a = a - (v[:, :, None] * w[:, None] + w[:, :, None] * v[:, None])
        b = b - jnp.sum(v * b, axis=-1, keepdims=True) * v
        return a, reflections.at[k].set(v), b

    return lax.fori_loop(0, num_steps, step, (a, reflections, b))


def _solve_tridiagonal(
    a: Float[Array, "M d d"], shift: Float[Array, "M s"], b: Float[Array, "M d"]
) -> Float[Array, "M s d"]:
    """Eliminate from the first row to the last and substitute back."""
    diagonal = jnp.diagonal(a, axis1=1, axis2=2).T[:, :, None]
    beside = jnp.diagonal(a, offset=1, axis1=1, axis2=2).T[:, :, None]
    none = jnp.zeros_like(diagonal[:1])

    def eliminate(carry, row):
        pivot, value = carry
        centre, off, given = row
        ratio = off / pivot
        pivot = centre + shift - ratio * off
        value = given - ratio * value
        return (pivot, value), (pivot, value)

    start = (jnp.ones_like(shift), jnp.zeros_like(shift))
    rows = (diagonal, jnp.concatenate([none, beside]), b.T[:, :, None])
    _, (pivots, values) = lax.scan(eliminate, start, rows)

    def substitute(x, row):
        pivot, value, off = row
        x = (value - off * x) / pivot
        return x, x

    rows = (pivots, values, jnp.concatenate([beside, none]))
    _, x = lax.scan(substitute, jnp.zeros_like(shift), rows, reverse=True)
    return jnp.moveaxis(x, 0, -1)


def _reflect_back(
    x: Float[Array, "M s d"], reflections: Float[Array, "k M d"]
) -> Float[Array, "M s d"]:
    def step(x, v):
        product = jnp.einsum("msd,md->ms", x, v, precision="highest")
        return x - product[:, :, None] * v[:, None], None

    return lax.scan(step, x, reflections, reverse=True)[0]
