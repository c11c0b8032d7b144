"""Groups of nearly the same size as one size, so that a new size compiles nothing.

A program is compiled for the shape of its input. Points known on the host are filled up to the
next of eight sizes per power of two by copies of the first point that weigh nothing: at most an
eighth more work, and minimum, maximum and sums are what they were. Only counts see the copies.

Axes: `...` groups, `N` points.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from jaxcomp.numerics.checks import is_concrete
from jaxcomp.numerics.host import is_on_one_cpu, placed_like, view

# Sizes per power of two.
_LOG2_SIZES = 3


class Bucketed(NamedTuple):
    """Points whose last ones may be copies of the first.

    Attributes:
        points: (..., N).
        importance: broadcastable to `points`; where each point has its own those of copies are 0;
            None means 1. `weights` gives what counts.
        num_padding: () int32, how many copies there are; None if there can be none.
    """

    points: Float[Array, "... points"]
    importance: Shaped[Array, "... points"] | None
    num_padding: Int[Array, ""] | None

    def weights(self) -> Shaped[Array, "... points"] | None:
        """Return the weights, 0 for copies; None where all points weigh 1."""
        num_points = self.points.shape[-1]
        if self.num_padding is None or self.importance is None:
            return self.importance
        if self.importance.shape[-1:] == (num_points,):
            # As they were filled up: nothing is written again.
            return jnp.broadcast_to(self.importance, self.points.shape)
        is_point = jnp.arange(num_points, dtype=jnp.int32) < num_points - self.num_padding
        weights = jnp.broadcast_to(self.importance, self.points.shape)
        return jnp.where(is_point, weights, jnp.zeros((), weights.dtype))


def bucketed(
    points: Float[Array, "... points"],
    importance: Shaped[Array, "... points"] | None,
    *,
    num_bins: int,
) -> Bucketed:
    """Fill points up to the next size, where they are known; leave tracers as they are.

    Args:
        points: (..., N), N >= 1.
        importance: broadcastable to `points`, or None.
        num_bins: as many points as there are bins are never filled up beyond that: they are kept
            one by one.
    """
    if not is_concrete(points) or (importance is not None and not is_concrete(importance)):
        return Bucketed(points, importance, None)
    num_points = points.shape[-1]
    size = _next_size(num_points)
    if num_points <= num_bins:
        size = min(size, num_bins)
    padding = size - num_points
    if padding and is_on_one_cpu(points, importance):
        own = None if importance is None else view(importance)
        filled, own = _filled(np, view(points), own, padding)
        importance = None if own is None else placed_like(own, importance)
        points = placed_like(filled, points)
    elif padding:
        points, importance = _filled(jnp, points, importance, padding)
    return Bucketed(points, importance, jax.device_put(np.int32(padding)))


def _filled(xp: Any, points: Any, importance: Any, padding: int) -> tuple[Any, Any]:
    """Return points with copies of the first behind them, and weights 0 for these."""
    copies = xp.broadcast_to(points[..., :1], (*points.shape[:-1], padding))
    points = xp.concatenate([points, copies], axis=-1)
    if importance is not None and importance.ndim and importance.shape[-1] > 1:
        widths = [(0, 0)] * (importance.ndim - 1) + [(0, padding)]
        importance = xp.pad(importance, widths)
    return points, importance


def without_filling(
    assignments: Int[Array, "... filled"], num_points: int
) -> Int[Array, "... points"]:
    """Return what belongs to the points themselves, which come first."""
    if assignments.shape[-1] == num_points:
        return assignments
    if is_concrete(assignments) and is_on_one_cpu(assignments):
        return placed_like(view(assignments)[..., :num_points], assignments)
    return assignments[..., :num_points]


def _next_size(number: int) -> int:
    """Return the least m 2^k >= number with m <= 2^(_LOG2_SIZES + 1)."""
    shift = max(0, (number - 1).bit_length() - _LOG2_SIZES - 1)
    return -(-number >> shift) << shift


def without_copies(
    counts: Int[Array, "groups bins"],
    place: Int[Array, " groups"],
    num_padding: Int[Array, ""] | None,
) -> Int[Array, "groups bins"]:
    """Take the copies out of counts; `place` is where they are, all of a group in one bin."""
    if num_padding is None:
        return counts
    group = jnp.arange(counts.shape[0], dtype=jnp.int32)
    return counts.at[group, place].add(-num_padding)
