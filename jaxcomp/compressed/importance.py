"""The importance of every weight of a tree: checked, in units, of tied places together."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from jaxcomp.curvature import CurvaturePolicy, DiagonalEstimate
from jaxcomp.quantizers.problems import survey
from jaxcomp.trees.leaves import readable_leaves
from jaxcomp.trees.paths import shorten
from jaxcomp.trees.tied import Group


class Importance(NamedTuple):
    """Importance of the weights of a leaf, on the host, in units of a power of two."""

    values: Float[np.ndarray, "*shape"]
    exponent: int


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
        dtype = jax.dtypes.canonicalize_dtype(
            np.float64 if group.value.dtype == np.float64 else np.float32
        )
        parts = []
        for path in places.values():
            view = group.views[group.paths.index(path)]
            units = np.ldexp(found[path].astype(np.float64), -exponent).astype(dtype)
            parts.append(units if view is None else np.asarray(view.undo(units)))
        total = sum(parts[1:], start=parts[0])
        if is_estimate:
            result = CurvaturePolicy().apply(total)
            is_fallback = bool(result.report.is_fallback)
            values = None if is_fallback else np.asarray(result.importance)
        else:
            _check_importance(group.paths[0], total)
            values = total
        importances.append(None if values is None else Importance(values, exponent))
    return importances


def exponents_of(name: str, values: Mapping[str, np.ndarray]) -> list[int]:
    """Return e with `2 ** e <= max |values| < 2 ** (e + 1)` of every array.

    Raises:
        ValueError: if something is not finite, naming its leaf.
    """
    exponents = []
    for path, value in values.items():
        num_bad, exponent = survey(value)
        if num_bad:
            raise ValueError(
                f"{name} must be finite, got {num_bad} NaN or infinite among the {value.size} "
                f"entries of {path!r}."
            )
        exponents.append(exponent)
    return exponents


def _importance_at(named: Mapping[str, Any], path: str, shape: tuple[int, ...]) -> np.ndarray:
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
    array = np.asarray(value)
    if jnp.issubdtype(array.dtype, jnp.integer):
        return array.astype(np.float32)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"importance at {path!r} must be real numbers, got {array.dtype}.")
    return array.astype(np.float32) if array.dtype.itemsize < 2 else array


def _check_importance(path: str, importance: Float[np.ndarray, "*shape"]) -> None:
    num_negative = int(np.count_nonzero(importance < 0))
    if num_negative:
        raise ValueError(
            f"importance must be at least 0, got {num_negative} negative among the "
            f"{importance.size} entries of {path!r}; pass "
            "jaxcomp.curvature.CurvaturePolicy().apply(importance).importance, or the "
            "DiagonalEstimate itself."
        )
    if not np.any(importance):
        raise ValueError(
            f"importance is 0 throughout the leaf {path!r}, so it cannot weigh anything; pass "
            "jaxcomp.curvature.CurvaturePolicy().apply(importance).importance, which weighs such a "
            "leaf alike, or leave it out by select."
        )
