"""Leaves that many devices share, with their importances: what a method needs of them, in place.

What is refused, and with which words, is what `importance` refuses on the host.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from jaxcomp.compressed.importance import (
    Importance,
    Unseen,
    Weighing,
    refuse_negative,
    refuse_not_finite,
    refuse_zeros,
    unseen_by,
    value_at,
)
from jaxcomp.numerics.placement import automatic_axes
from jaxcomp.numerics.scaling import is_negative, is_zero, normalise
from jaxcomp.quantizers.methods import Method
from jaxcomp.quantizers.placed import Spread, spread_of
from jaxcomp.quantizers.placed_problems import PlacedProblem, survey_of_parts
from jaxcomp.quantizers.problems import unit_of
from jaxcomp.trees.tied import Group


def spread_of_leaf(method: Method, group: Group, *, is_stack: bool) -> Spread | None:
    """Return how a leaf is spread over devices; None if the host is to read it."""
    is_plain = not is_stack and all(view is None for view in group.views)
    if not (is_plain and method.works_on_parts):
        return None
    return spread_of(group.value, as_one_group=True)


def exponent_of_parts(name: str, group: Group, spread: Spread) -> int:
    """As `exponents_of`, of a leaf."""
    return _exponent(name, group.paths[0], group.value, spread)


def importance_on_parts(weighing: Weighing, group: Group, spread: Spread) -> Importance | None:
    """As `importance_of_leaf`; the values lie where the weights do."""
    own = PartitionSpec(*(cut or None for cut in spread.cuts))
    parts = {}
    for path in weighing.places_of(group):
        value = value_at(weighing.named, path, group.value.shape, None)
        with jax.set_mesh(spread.mesh):
            value = spread.put(value, own)
            parts[path] = value if _is_wide_enough(value) else value.astype(jnp.float32)
    shifts = {path: weighing.units.get(path, 0) for path in parts}
    exponents = {path: _exponent("importance", path, part, spread) for path, part in parts.items()}
    exponent = max(exponents[path] + shifts[path] for path in parts)
    dtype = jnp.float64 if group.value.dtype == np.float64 else jnp.float32
    units = [np.int32(exponent - shifts[path]) for path in parts]
    with automatic_axes(*parts.values()), jax.set_mesh(spread.mesh):
        total = _total(list(parts.values()), units, dtype=jnp.dtype(dtype))
        if weighing.policy is not None:
            result = weighing.policy.apply(total)
            total = None if bool(result.report.is_fallback) else result.importance
            unseen = unseen_by(weighing.policy, result.report)
        else:
            num_negative, num_zero = (int(number) for number in _problems(total))
            if num_negative:
                refuse_negative(group.paths[0], num_negative, total.size)
            if num_zero == total.size:
                refuse_zeros(group.paths[0])
            unseen = Unseen(num_zero, "nothing") if num_zero > total.size // 2 else None
    return None if total is None else Importance(total, exponent, unseen=unseen)


def problem_on_parts(
    group: Group, spread: Spread, exponent: int, importance: Importance | None
) -> PlacedProblem:
    """As `problem_of`, of a leaf."""
    shift = unit_of(group.value.dtype, exponent)
    problem = PlacedProblem(group.value, shift, where=spread)
    if importance is None:
        return problem
    values, unit = importance.values, importance.exponent
    return replace(problem, importance=values, importance_exponent=unit)


def _exponent(name: str, path: str, values: Float[Array, "*shape"], spread: Spread) -> int:
    num_bad, exponent = survey_of_parts(values, spread)
    if num_bad:
        refuse_not_finite(name, path, num_bad, values.size)
    return exponent


def _is_wide_enough(values: Array) -> bool:
    return jnp.issubdtype(values.dtype, jnp.floating) and values.dtype.itemsize >= 2


@partial(jax.jit, static_argnames=("dtype",))
def _total(
    parts: list[Float[Array, "*shape"]], units: list[Int[Array, ""]], *, dtype: np.dtype
) -> Float[Array, "*shape"]:
    """Return the sum of what all places of a leaf say, each in a unit of its own."""
    scaled = [
        normalise(part.astype(dtype), jnp.broadcast_to(unit, (1,) * part.ndim), axis=())
        for part, unit in zip(parts, units, strict=True)
    ]
    return sum(scaled[1:], start=scaled[0])


@jax.jit
def _problems(values: Float[Array, "*shape"]) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """Return how many are negative, and how many are 0."""
    negative, zero = (jnp.sum(own(values), dtype=jnp.int32) for own in (is_negative, is_zero))
    return negative, zero
