"""Curvature of weights of extreme size: in units of a power of two, leaf by leaf.

A leaf of weights near 1e-30 that matters like any other has curvature near 1e60, which no float32
holds; one near 1e30 has 1e-60, which is 0. In the unit `u = w / 2^e` of the leaf's largest weight
both are ordinary numbers: `d^2 loss / du^2 = 2^(2e) d^2 loss / dw^2`. So if a model has such a
leaf, curvature is estimated twice: as usual, and with the gradients (and probes) of each such leaf
times `2^e` (exactly, see `jaxcomp.numerics.scaling`). The second estimate counts, with the exponent
`-2e`, unless it is out of range in turn: tiny weights may have ordinary curvature.

Otherwise nothing changes: not a bit, and nothing is computed but the largest weight of each leaf.
Where weights are not known (inside `jit`, `vmap` or `grad`) nothing is looked at.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxcomp.numerics.checks import is_concrete
from jaxcomp.numerics.host import as_array
from jaxcomp.numerics.scaling import group_exponent, restore
from jaxcomp.types import Params

Exponents = tuple[Int[Array, ""], ...] | None
"""Of the floating leaves in their order: 0 for one of ordinary size; None if all are."""


_Sampler = TypeVar("_Sampler", bound=Any)
_Estimate = TypeVar("_Estimate", bound=Any)  # a DiagonalEstimate, whose module imports this one


def estimate_in_units(run: Callable[[_Sampler], _Estimate], sampler: _Sampler) -> _Estimate:
    """Estimate curvature; of weights of extreme size in units in which it is in range.

    Args:
        run: sampler -> estimate.
        sampler: a dataclass. With a field `exponents` (e of every floating leaf, or None) it takes
            samples that are `2^(2e)` times the curvature; without, it is run as it is.
    """
    plain = run(sampler)
    is_known = all(is_concrete(leaf) for leaf in jax.tree.leaves((plain.mean, sampler.params)))
    if not is_known or not hasattr(sampler, "exponents"):
        return plain
    exponents = extreme_exponents(sampler.params)
    if exponents is None:
        return plain
    again = run(replace(sampler, exponents=tuple(jnp.int32(e) for e in exponents)))
    # Weights that are tiny because nothing became of them have the curvature of any others.
    is_chosen = [not is_lost for is_lost in lost_leaves(again.mean)]
    structure = jax.tree.structure(plain.mean)
    mean, error = (
        structure.unflatten(
            [
                two if chosen else one
                for one, two, chosen in zip(*map(jax.tree.leaves, trees), is_chosen, strict=True)
            ]
        )
        for trees in (
            (plain.mean, again.mean),
            (plain.standard_error, again.standard_error),
        )
    )
    units = [np.int32(0)] * len(is_chosen)
    for place, exponent in zip(_floating_leaves(sampler.params), exponents, strict=True):
        units[place] = np.int32(-2 * exponent if is_chosen[place] else 0)
    exponent = structure.unflatten(units) if any(units) else None
    return plain._replace(mean=mean, standard_error=error, exponent=exponent)


def extreme_exponents(params: Params) -> tuple[int, ...] | None:
    """Return the exponents of leaves that are far from ordinary size; None if none is."""
    values = list(_floating_leaves(params).values())
    found = jax.device_get(_exponents(values))
    exponents = tuple(
        int(if_extreme(e, value.dtype)) for e, value in zip(found, values, strict=True)
    )
    return exponents if any(exponents) else None


def if_extreme(exponent: Int[Any, "..."], dtype: Any) -> Int[np.ndarray, "..."]:
    """Return exponents, or 0 for those of ordinary size, whose squares any sum holds."""
    return np.where(np.abs(exponent) >= _range_of(dtype) // 3, exponent, 0).astype(np.int32)


def _floating_leaves(params: Params) -> dict[int, Array]:
    """Return the floating leaves by their place among all."""
    leaves = enumerate(jax.tree.leaves(params))
    return {
        place: as_array(leaf)
        for place, leaf in leaves
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    }


@jax.jit
def _exponents(values: list[Float[Array, "..."]]) -> list[Int[Array, ""]]:
    return [group_exponent(value, axis=tuple(range(value.ndim))) for value in values]


def _range_of(dtype: Any) -> int:
    """Powers of two above 1 in the dtype of the curvature."""
    return int(jnp.finfo(jnp.float64 if dtype == jnp.float64 else jnp.float32).maxexp)


def lost_leaves(mean: Params) -> list[bool]:
    """Return of which leaves curvature is out of range; false of those without numbers."""
    leaves = [x for x in jax.tree.leaves(mean) if x.size]
    lost = iter(jax.device_get([_is_lost(leaf) for leaf in leaves]))
    return [bool(next(lost)) if x.size else False for x in jax.tree.leaves(mean)]


@jax.jit
def _is_lost(mean: Float[Array, "..."]) -> Bool[Array, ""]:
    """Whether curvature is out of range, or so small that much of it may have become 0."""
    largest = jnp.max(jnp.abs(mean))
    least = np.ldexp(np.ones((), mean.dtype), -(_range_of(mean.dtype) // 2))
    return ~((largest >= least) & jnp.isfinite(largest))


def in_units(
    values: tuple[Float[Array, "..."], ...] | list[Array], exponents: Exponents
) -> list[Array]:
    """Return what belongs to each leaf (a probe, a gradient) times `2^e`."""
    if exponents is None:
        return list(values)
    return [
        restore(value, exponent, axis=tuple(range(value.ndim)))
        for value, exponent in zip(values, exponents, strict=True)
    ]


def in_units_of(estimate: _Estimate, exponent: PyTree[int] | None) -> _Estimate:
    """Return an estimate in the units of another, which has these exponents."""
    if estimate.exponent is None and exponent is None:
        return estimate
    structure = jax.tree.structure(estimate.mean)
    zeros = [0] * structure.num_leaves
    own, other = (
        zeros if units is None else [int(unit) for unit in jax.tree.leaves(units)]
        for units in (estimate.exponent, exponent)
    )
    shifts = tuple(jnp.int32(a - b) for a, b in zip(own, other, strict=True))
    mean, error = (
        structure.unflatten(in_units(jax.tree.leaves(tree), shifts))
        for tree in (estimate.mean, estimate.standard_error)
    )
    return estimate._replace(mean=mean, standard_error=error, exponent=exponent)
