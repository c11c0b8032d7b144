"""Checks of arguments at the host boundary: one sentence per mistake.

Values are checked only where they are known: inside `jit` and `vmap` they are tracers and pass.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Shaped

from jaxcomp.numerics.host import as_array, is_on_one_cpu, view
from jaxcomp.numerics.placement import automatic_axes, to_automatic
from jaxcomp.numerics.scaling import is_negative, is_zero


def is_concrete(value: object) -> bool:
    """Return whether the value is known now, not a tracer."""
    return not isinstance(value, Tracer)


def check_count(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """Return a static whole number as an `int`.

    Raises:
        TypeError: if it is no integer.
        ValueError: if it is below `least`, or above `most`.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    if value < least or (most is not None and value > most):
        allowed = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be {allowed}, got {value}.")
    return int(value)


def check_positive(name: str, value: Any) -> None:
    """Refuse numbers, where they are known, of which one is not positive and finite.

    Raises:
        ValueError: with the first such number.
    """
    if not is_concrete(value):
        return
    values = np.asarray(value, np.float64)
    bad = values[~((values > 0) & np.isfinite(values))]
    if bad.size:
        raise ValueError(f"{name} must be positive and finite, got {bad.flat[0]:g}.")


def check_floating(values: Array, name: str) -> Array:
    """Return the values as an array, refuse any dtype that is not real floating."""
    values = as_array(values)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise TypeError(
            f"{name} must be floating, got {values.dtype}; convert them or leave them unquantized."
        )
    return values


def check_finite(values: Array, name: str) -> None:
    """Refuse NaN and infinity, where the values are known."""
    if not is_concrete(values):
        return
    if _is_quick_on_host(values) and np.all(np.isfinite(_extremes(view(values)))):
        return
    # Also inside somebody's trace: values that are known there are checked there.
    with automatic_axes(values), jax.ensure_compile_time_eval():
        num_bad = int(num_not_finite(to_automatic(values)))
    if num_bad:
        raise ValueError(f"{name} must be finite, got {num_bad} NaN or infinite of {values.size}.")


def check_points(
    points: Float[Array, "... points"],
    importance: Shaped[Array, "... points"] | None,
    *,
    grouped: Callable[[Array], Array] | None = None,
) -> tuple[Array, Array | None]:
    """Return points and weights as arrays; see `kmeans` for what is refused.

    Args:
        points: (..., N).
        importance: broadcastable to `points`, or None.
        grouped: brings weights of the shape of `points` into groups along the last axis; None if
            they are.
    """
    points = check_floating(points, "points")
    if points.ndim == 0 or points.size == 0:
        raise ValueError(
            f"points must hold at least one point per group, got shape {points.shape}."
        )
    check_finite(points, "points")
    if importance is None:
        return points, None
    importance = as_array(importance)
    if jnp.issubdtype(importance.dtype, jnp.complexfloating):
        raise TypeError(f"importance must be real, got {importance.dtype}.")
    try:
        fits = np.broadcast_shapes(importance.shape, points.shape) == points.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"importance must have the shape of points, {points.shape}, or broadcast to it, "
            f"got {importance.shape}."
        )
    if grouped is None and is_concrete(importance) and _are_quickly_weights(importance):
        return points, importance
    check_finite(importance, "importance")
    if is_concrete(importance):
        if grouped is None:
            _check_weights(importance)
        else:
            of_groups = grouped(jnp.broadcast_to(importance, points.shape))
            if not _are_quickly_weights(of_groups):
                _check_weights(of_groups)
    return points, importance


def _are_quickly_weights(importance: Shaped[Array, "... points"]) -> bool:
    """Return whether weights are seen to be finite, >= 0 and nowhere all 0, in two passes."""
    if not _is_quick_on_host(importance):
        return False
    weights = np.atleast_1d(view(importance))
    largest = weights.max(axis=-1)
    # NaN is in both extremes.
    return bool(weights.min() >= 0 and largest.min() > 0 and np.isfinite(largest.max()))


def _check_weights(importance: Shaped[Array, "... points"]) -> None:
    with automatic_axes(importance), jax.ensure_compile_time_eval():
        found = _weight_problems(to_automatic(importance))
        num_negative, num_massless = (int(number) for number in found)
    if num_negative:
        raise ValueError(
            f"importance must be at least 0, got {num_negative} negative of "
            f"{importance.size}; apply a policy for negative curvature first."
        )
    if num_massless:
        raise ValueError(
            f"importance must not be 0 throughout a group, got {num_massless} such groups; "
            "pass None to weigh all points alike."
        )


def _is_quick_on_host(values: Array) -> bool:
    """Return whether NumPy finds the least and the largest at the speed of memory."""
    return values.size > 0 and values.dtype.kind in "fiu" and is_on_one_cpu(values)


def _extremes(values: Shaped[np.ndarray, "..."]) -> tuple[Any, Any]:
    """Return the least and the largest number; NaN if there is one."""
    return values.min(), values.max()


@jax.jit
def num_not_finite(values: Array) -> Array:
    """Return how many numbers are NaN or infinite."""
    return jnp.sum(~jnp.isfinite(values), dtype=jnp.int32)


@jax.jit
def _weight_problems(weights: Array) -> tuple[Array, Array]:
    return (
        jnp.sum(is_negative(weights), dtype=jnp.int32),
        jnp.sum(jnp.all(jnp.atleast_1d(is_zero(weights)), axis=-1), dtype=jnp.int32),
    )


def check_codebook_size(
    num_clusters: Int[Array, "..."] | int, max_clusters: int | None
) -> tuple[Int[Array, "..."], int]:
    """Return K as an array and the static size of the codebook; see `kmeans`."""
    is_known = is_concrete(num_clusters)
    if max_clusters is None:
        if not is_known or np.ndim(num_clusters) != 0 or isinstance(num_clusters, jax.Array):
            raise ValueError(
                "max_clusters is required when num_clusters is an array or traced: pass the "
                "largest number of clusters, which sizes the codebook."
            )
        max_clusters = int(num_clusters)
    if not jnp.issubdtype(jnp.result_type(num_clusters), jnp.integer):
        raise TypeError(f"num_clusters must be an integer, got {jnp.result_type(num_clusters)}.")
    if is_known:
        lowest, highest = int(np.min(num_clusters)), int(np.max(num_clusters))
        if lowest < 1:
            raise ValueError(f"num_clusters must be at least 1, got {lowest}.")
        if highest > max_clusters:
            raise ValueError(
                f"num_clusters must be at most max_clusters = {max_clusters}, got {highest}."
            )
    return jnp.asarray(num_clusters, jnp.int32), max_clusters


def check_penalty(diameter_penalty: Float[Array, "..."] | float) -> None:
    """Refuse a negative or non-finite diameter penalty."""
    if is_concrete(diameter_penalty):
        values = np.asarray(diameter_penalty, np.float64)
        if not np.all(np.isfinite(values) & (values >= 0)):
            raise ValueError(
                f"diameter_penalty must be finite and at least 0, got {np.min(values):g}."
            )


def check_initial_centroids(
    initial_centroids: Float[Array, "... clusters"] | None, max_clusters: int
) -> Array | None:
    """Return the start as an array, refuse one of the wrong length or with NaN or infinity."""
    if initial_centroids is None:
        return None
    initial_centroids = check_floating(initial_centroids, "initial_centroids")
    if initial_centroids.shape[-1:] != (max_clusters,):
        raise ValueError(
            f"initial_centroids must have max_clusters = {max_clusters} entries along the last "
            f"axis, got shape {initial_centroids.shape}."
        )
    check_finite(initial_centroids, "initial_centroids")
    return initial_centroids
