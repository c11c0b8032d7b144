"""A tensor as methods take it: in units of powers of two, with its importance, and what was lost.

Results do not depend on the scale of the weights: where that is far from 1, they are quantized in
units of a power of two, and errors are always measured in such units, in which no square is out of
range.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxcomp.compressed.report import Measures
from jaxcomp.numerics.scaling import group_exponent, normalise, restore
from jaxcomp.quantizers.histograms import accumulation_dtype, sum_of_squares
from jaxcomp.trees.leaves import is_wide
from jaxcomp.types import AnyArray

# Octaves around 1 in which no square of a weight or an error is out of range, so that weights of
# such size are quantized as they are.
_ORDINARY_OCTAVES = 30


class Importance(NamedTuple):
    """Importance of the weights of a leaf, in units of a power of two."""

    values: Float[Array, "*shape"]
    exponent: Int[Array, ""]

    def by_layer(self) -> "list[Importance]":
        """The importances of the layers of a stack."""
        return [Importance(layer, self.exponent) for layer in self.values]


class Problem(NamedTuple):
    """The weights of a leaf or layer as they are quantized: in units of a power of two.

    Attributes:
        weights: in units of `2 ** exponent`; float32 for those that are wider than JAX has.
        exponent: 0 for weights of ordinary size, which are as they came.
        importance: of each weight, or None.
        original: the weights as they came.
    """

    weights: Float[Array, "*shape"]
    exponent: int
    importance: Importance | None
    original: Float[AnyArray, "*shape"]

    @property
    def importance_values(self) -> Float[Array, "*shape"] | None:
        """The importance of each weight in its units, or None."""
        return None if self.importance is None else self.importance.values

    def in_original_units(self, values: Float[AnyArray, "*values"]) -> Float[AnyArray, "*values"]:
        """Return numbers in these units as ordinary ones, in the dtype of the weights."""
        if is_wide(self.original.dtype):
            return np.ldexp(np.asarray(values, self.original.dtype), self.exponent)
        if self.exponent == 0:
            return values
        return restore(jnp.asarray(values), jnp.int32(self.exponent), axis=all_axes(values))

    def in_units(self, values: Float[AnyArray, "*values"]) -> Float[Array, "*values"]:
        """Undo it, after the rounding that it may have brought."""
        if is_wide(self.original.dtype):
            values = np.ldexp(np.asarray(values), -self.exponent)
            return jnp.asarray(values.astype(np.float32))
        if self.exponent == 0:
            return jnp.asarray(values)
        return normalise(jnp.asarray(values), jnp.int32(self.exponent), axis=all_axes(values))


def all_axes(values: Shaped[AnyArray, "..."]) -> tuple[int, ...]:
    """Return the numbers of all axes."""
    return tuple(range(values.ndim))


def problem_of(
    value: Float[AnyArray, "*shape"], importance: Importance | None, exponent: int
) -> Problem:
    """Return the weights of a leaf or layer as methods take them.

    Args:
        value: the weights as they came.
        importance: of each, or None.
        exponent: that of the largest one, as `exponents_of` returns it.
    """
    if is_wide(value.dtype):
        units = np.ldexp(np.asarray(value), -exponent).astype(np.float32)
        return Problem(jnp.asarray(units), exponent, importance, value)
    # As few octaves as are needed: an outlier far away must not push the others out of range.
    shift = exponent - min(max(exponent, -_ORDINARY_OCTAVES), _ORDINARY_OCTAVES)
    weights = jnp.asarray(value)
    problem = Problem(weights, shift, importance, weights)
    return problem._replace(weights=problem.in_units(weights))


def exponents_of(name: str, values: Mapping[str, Any]) -> list[int]:
    """Return e with `2 ** e <= max |values| < 2 ** (e + 1)` of every array; all must be finite."""
    found: dict[str, Any] = {}
    # Arrays of other devices cannot meet in one program.
    by_devices: dict[Any, list[str]] = {}
    for path, value in values.items():
        if is_wide(value.dtype):
            wide = np.asarray(value)
            num_bad = int(np.count_nonzero(~np.isfinite(wide)))
            largest = np.max(np.abs(wide), initial=0.0) if num_bad == 0 else np.zeros(())
            found[path] = (num_bad, int(np.frexp(largest)[1]) - 1 if largest else 0)
        else:
            devices = value.sharding.device_set if isinstance(value, jax.Array) else ()
            by_devices.setdefault(frozenset(devices), []).append(path)
    for paths in by_devices.values():
        surveyed = _survey([jnp.asarray(values[path]) for path in paths])
        found |= dict(zip(paths, surveyed, strict=True))
    exponents = []
    for path, value in values.items():
        num_bad, exponent = (int(number) for number in found[path])
        if num_bad:
            raise ValueError(
                f"{name} must be finite, got {num_bad} NaN or infinite among the {value.size} "
                f"entries of {path!r}."
            )
        exponents.append(exponent)
    return exponents


@jax.jit
def _survey(leaves: list[Array]) -> list[tuple[Int[Array, ""], Int[Array, ""]]]:
    """Count the entries of each array that are not finite, and find its power of two."""
    return [
        (
            jnp.sum(~jnp.isfinite(leaf), dtype=jnp.int32),
            group_exponent(leaf, axis=tuple(range(leaf.ndim))),
        )
        for leaf in leaves
    ]


def measure(
    problem: Problem, values: Float[AnyArray, "*shape"], converged: Bool[Array, ""]
) -> Measures:
    """Compare weights with what became of them, both in the units of the problem."""
    importance = problem.importance
    sums = _measured(problem.weights, values, problem.importance_values)
    (distortion, of_distortion), (squared_error, of_error), (energy, of_energy) = sums
    weighing = jnp.int32(0) if importance is None else importance.exponent
    # Sums of squares: twice the power of two.
    shift = 2 * jnp.int32(problem.exponent)
    return Measures(
        distortion,
        squared_error,
        energy,
        converged,
        distortion_exponent=of_distortion + shift + weighing,
        error_exponent=of_error + shift,
        energy_exponent=of_energy + shift,
    )


@jax.jit
def _measured(
    weights: Float[Array, "*shape"],
    values: Float[Array, "*shape"],
    importance: Float[Array, "*shape"] | None,
) -> list[tuple[Float[Array, ""], Int[Array, ""]]]:
    """Return distortion, squared error and energy, each a number times a power of two."""
    dtype = accumulation_dtype(weights.dtype)
    before, after = weights.astype(dtype).ravel(), values.astype(dtype).ravel()
    error = before - after
    # The root before the square: neither is out of range in units of the largest.
    weighted = error
    if importance is not None:
        weighted = jnp.sqrt(importance.astype(dtype).ravel()) * error
    return [sum_of_squares(None, part) for part in (weighted, error, before)]
