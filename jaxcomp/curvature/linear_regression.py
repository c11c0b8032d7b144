"""The Hessian of linear regression, exactly, from its features alone.

The mean squared error `(1/n) |X w - y|^2` has the Hessian `(2/n) X^T X`, whatever the weights and
the targets. It is also, for every output unit, the Hessian of the output error of a dense layer
with inputs X. Axis letters: `...` data sets, `n` rows (examples), `d` features.
"""

from collections.abc import Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxcomp.curvature.estimate import (
    CompensatedSum,
    check_finite,
    diagonal_dtype,
)
from jaxcomp.numerics.checks import check_count
from jaxcomp.numerics.transformations import explicit_transfers


@explicit_transfers
def linear_regression_hessian(
    features: Float[Array, "... n d"] | Iterable[Float[Array, "... rows d"]],
    *,
    rows_per_chunk: int = 1024,
) -> Float[Array, "... d d"]:
    """Compute the Hessian of the mean squared error of linear regression, `(2/n) X^T X`.

    Chunks of rows are multiplied in full precision ("highest") and summed with compensation: the
    rounding error is that of one chunk, however many rows there are. Exactly symmetric. For an
    array the function is pure: `jit` it, or `vmap` it; memory beside the features is a few times
    d^2. An iterable is passed over once, so that n is bounded by time alone.

    Args:
        features: X (..., n, d), floating, with any number of leading axes for data sets; or an
            iterable of chunks of its rows, arrays (..., rows, d) of any length each (a generator
            will do; each new length compiles once).
        rows_per_chunk: rows multiplied at once, static. A chunk of an iterable is cut further.

    Returns:
        (..., d, d), float32 (float64 for float64 features), in units of the squared error per
        squared weight. Values that are not finite pass through if `features` is an array.

    Raises:
        ValueError: if there are no rows, an array has less than two axes, chunks differ in other
            axes than that of the rows, a result summed over an iterable is not finite, or
            `rows_per_chunk` is not an integer of at least 1.
        TypeError: if `features` is neither an array nor iterable, or not of a floating dtype.
    """
    rows_per_chunk = check_count("rows_per_chunk", rows_per_chunk)
    if isinstance(features, jax.Array | np.ndarray):
        _check_features(features, "features")
        if features.shape[-2] == 0:
            raise ValueError(f"features must have at least one row, got shape {features.shape}.")
        return _hessian(features, rows_per_chunk=rows_per_chunk)
    if not isinstance(features, Iterable):
        raise TypeError(
            "features must be an array (..., n, d) or an iterable of chunks of its rows, got "
            f"{type(features).__name__}."
        )
    return _hessian_of_chunks(features, rows_per_chunk)


def _hessian_of_chunks(chunks: Iterable[Array], rows_per_chunk: int) -> Float[Array, "... d d"]:
    total, first, num_rows = None, None, 0
    for index, chunk in enumerate(chunks):
        _check_features(chunk, f"features[{index}]")
        kind = (*chunk.shape[:-2], chunk.shape[-1]), chunk.dtype
        if first is None or total is None:
            first, total = kind, CompensatedSum.empty(_zeros(chunk))
        elif kind != first:
            raise ValueError(
                "all chunks of features must agree but in their numbers of rows, got "
                f"{first[1]} with the other axes {first[0]} and, in features[{index}], "
                f"{kind[1]} with {kind[0]}."
            )
        jax.block_until_ready(total)  # one chunk waits, not all of them
        total = _add_gram(total, chunk, rows_per_chunk=rows_per_chunk)
        num_rows += chunk.shape[-2]
    if total is None or num_rows == 0:
        raise ValueError("features must have at least one row, got an iterable without rows.")
    hessian = _scaled(total, np.asarray(num_rows, np.float64))
    check_finite(hessian)
    return hessian


def _check_features(features: Array | np.ndarray, name: str) -> None:
    if not isinstance(features, jax.Array | np.ndarray):
        raise TypeError(f"{name} must be an array, got {type(features).__name__}.")
    if features.ndim < 2:
        raise ValueError(
            f"{name} must have at least the two axes (rows, features), got shape {features.shape}."
        )
    if not jnp.issubdtype(features.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating, got {features.dtype}; convert it to float32.")


@partial(jax.jit, static_argnames=("rows_per_chunk",))
def _hessian(features: Float[Array, "... n d"], *, rows_per_chunk: int) -> Float[Array, "... d d"]:
    total = _add_gram(
        CompensatedSum.empty(_zeros(features)), features, rows_per_chunk=rows_per_chunk
    )
    return _scaled(total, jnp.asarray(features.shape[-2], total.total.dtype))


@partial(jax.jit, static_argnames=("rows_per_chunk",), donate_argnames=("total",))
def _add_gram(
    total: CompensatedSum, features: Float[Array, "... n d"], *, rows_per_chunk: int
) -> CompensatedSum:
    """Add `X^T X`, chunk by chunk; slices, so that the features are not copied as a whole."""
    num_rows = features.shape[-2]
    num_full = num_rows // rows_per_chunk

    def step(index: Array, total: CompensatedSum) -> CompensatedSum:
        rows = lax.dynamic_slice_in_dim(features, index * rows_per_chunk, rows_per_chunk, axis=-2)
        return total.add(_gram(rows))

    if num_full:  # a slice longer than the features cannot even be traced
        total = lax.fori_loop(0, num_full, step, total)
    if num_rows % rows_per_chunk:
        rest = lax.slice_in_dim(features, num_full * rows_per_chunk, num_rows, axis=-2)
        total = total.add(_gram(rest))
    return total


def _gram(rows: Float[Array, "... n d"]) -> Float[Array, "... d d"]:
    rows = rows.astype(diagonal_dtype(rows.dtype))
    return jnp.einsum("...ni,...nj->...ij", rows, rows, precision="highest")


def _zeros(features: Array | np.ndarray) -> Float[Array, "... d d"]:
    shape = (*features.shape[:-2], features.shape[-1], features.shape[-1])
    dtype = jax.dtypes.canonicalize_dtype(diagonal_dtype(features.dtype))
    return jnp.zeros(shape, dtype)


@jax.jit
def _scaled(
    total: CompensatedSum, num_rows: Float[Array | np.ndarray, ""]
) -> Float[Array, "... d d"]:
    gram = total.value()
    return (gram + jnp.swapaxes(gram, -1, -2)) / num_rows.astype(gram.dtype)
