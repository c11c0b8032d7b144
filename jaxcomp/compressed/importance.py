"""The importance of every weight of a tree: checked, in units, of tied places together."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxcomp.compressed.problems import Importance, all_axes, exponents_of
from jaxcomp.curvature import CurvaturePolicy, DiagonalEstimate
from jaxcomp.numerics.scaling import is_negative, is_zero, normalise
from jaxcomp.quantizers.histograms import accumulation_dtype
from jaxcomp.trees.leaves import readable_leaves
from jaxcomp.trees.paths import shorten
from jaxcomp.trees.tied import Group


def importance_by_leaf(
    importance: DiagonalEstimate | PyTree | None, groups: list[Group]
) -> list[Importance | None]:
    """Return the importance of every leaf, None where it says nothing; all of it checked."""
    if importance is None:
        return [None] * len(groups)
    is_estimate = isinstance(importance, DiagonalEstimate)
    named = readable_leaves(importance.mean if is_estimate else importance)
    shapes = {
        path: group.value.shape if view is None else view.shape
        for group in groups
        for path, view in zip(group.paths, group.views, strict=True)
    }
    found = {path: _importance_at(named, path, shape) for path, shape in shapes.items()}
    exponents = dict(zip(found, exponents_of("importance", found), strict=True))
    importances: list[Importance | None] = []
    for group in groups:
        # The loss changes through every place of a tied array; one array counts once.
        places = {id(named[path]): path for path in group.paths}
        exponent = max(exponents[path] for path in places.values())
        dtype = accumulation_dtype(group.value.dtype)
        parts = []
        for path in places.values():
            view = group.views[group.paths.index(path)]
            units = _importance_in_units(found[path], exponent, dtype)
            if isinstance(group.value, jax.Array):
                units = jax.device_put(units, group.value.sharding)
            parts.append(units if view is None else view.undo(units))
        total = sum(parts[1:], start=parts[0])
        if is_estimate:
            result = CurvaturePolicy().apply(total)
            values = None if bool(result.report.is_fallback) else result.importance
        else:
            _check_importance(group.paths[0], total)
            values = total
        importances.append(None if values is None else Importance(values, jnp.int32(exponent)))
    return importances


def _importance_in_units(value: Any, exponent: int, dtype: np.dtype) -> Float[Array, "*shape"]:
    """Return importance divided by a power of two."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return jnp.asarray(np.ldexp(value, -exponent).astype(dtype))
    if value.dtype.itemsize < 2 or not jnp.issubdtype(value.dtype, jnp.floating):
        value = jnp.asarray(value).astype(jnp.float32)
    array = jnp.asarray(value)
    return normalise(array, jnp.int32(exponent), axis=all_axes(array)).astype(dtype)


def _importance_at(named: Mapping[str, Any], path: str, shape: tuple[int, ...]) -> Any:
    if path not in named:
        raise ValueError(
            f"importance has no leaf {path!r}, which is quantized: it has {shorten(named)}; give "
            "it the structure of params."
        )
    value = named[path]
    if jnp.shape(value) != shape:
        raise ValueError(
            f"importance at {path!r} must have the shape of the weights, {shape}, got "
            f"{jnp.shape(value)}."
        )
    array = value if isinstance(value, jax.Array | np.ndarray) else np.asarray(value)
    if jnp.issubdtype(array.dtype, jnp.integer):
        return array.astype(np.float32)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"importance at {path!r} must be real numbers, got {array.dtype}.")
    return array.astype(np.float32) if array.dtype.itemsize < 2 else array


def _check_importance(path: str, importance: Array) -> None:
    num_negative = int(jnp.sum(is_negative(importance), dtype=jnp.int32))
    if num_negative:
        raise ValueError(
            f"importance must be at least 0, got {num_negative} negative among the "
            f"{importance.size} entries of {path!r}; pass "
            "jaxcomp.curvature.CurvaturePolicy().apply(importance).importance, or the "
            "DiagonalEstimate itself."
        )
    if bool(jnp.all(is_zero(importance))):
        raise ValueError(
            f"importance is 0 throughout the leaf {path!r}, so it cannot weigh anything; pass "
            "jaxcomp.curvature.CurvaturePolicy().apply(importance).importance, which weighs such a "
            "leaf alike, or leave it out by select."
        )
