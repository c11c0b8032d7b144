"""The importance of every weight of a tree: checked, in units, of tied places together."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from jaxcomp.curvature import CurvaturePolicy, DiagonalEstimate
from jaxcomp.quantizers.problems import survey
from jaxcomp.trees.leaves import check_is_here, is_array, readable_leaves
from jaxcomp.trees.paths import leaves_by_path, shorten
from jaxcomp.trees.tied import Group


class Unseen(NamedTuple):
    """What is known of a leaf with importance 0 for over half of its weights.

    Attributes:
        number: of these weights (or eigenvalues, of blocks).
        weigh: what they count for: as the `mean` of the leaf, or the `floor`, by the policy for
            estimates; `nothing`, where an importance of 0 was given.
    """

    number: int
    weigh: Literal["mean", "floor", "nothing"]


class Importance(NamedTuple):
    """Importance of the weights of a leaf, on the host, in units of a power of two.

    `unseen` is None for a leaf with importance for at least half of its weights.
    """

    values: Float[np.ndarray, "*shape"]
    exponent: int
    is_blocks: bool = False
    unseen: Unseen | None = None

    def of_layers(self, path: str, num_layers: int) -> "list[Importance]":
        """Return the importances of the layers of a stack.

        Raises:
            ValueError: if a block reaches over the end of a layer.
        """
        if not self.is_blocks:
            return [self._replace(values=part) for part in self.values]
        if len(self.values) % num_layers:
            raise ValueError(
                f"importance at {path!r} has {len(self.values)} blocks for {num_layers} layers, "
                "so that some reach over the end of a layer; choose a block size that divides a "
                "layer, or importances of weights."
            )
        parts = self.values.reshape(num_layers, -1, *self.values.shape[1:])
        return [self._replace(values=part) for part in parts]


def units_by_path(estimate: DiagonalEstimate) -> dict[str, int]:
    """Return the exponents that an estimate of weights of extreme size has; others have none."""
    if estimate.exponent is None:
        return {}
    return {path: int(unit) for path, unit in leaves_by_path(estimate.exponent).items()}


class Weighing(NamedTuple):
    """The importance of a whole tree, taken apart once for all of its leaves.

    Attributes:
        named: its arrays by path.
        units: the exponents that arrays of an estimate have; others have none.
        policy: what an estimate goes through; None for importances that were given.
    """

    named: dict[str, Any]
    units: dict[str, int]
    policy: CurvaturePolicy | None

    @classmethod
    def of(
        cls, importance: DiagonalEstimate | PyTree | None, policy: CurvaturePolicy
    ) -> "Weighing | None":
        """Take an importance as `compress` takes it; None weighs nothing."""
        if importance is None:
            return None
        if isinstance(importance, DiagonalEstimate):
            named = readable_leaves(importance.mean, may_be_shared=True)
            return cls(named, units_by_path(importance), policy)
        return cls(readable_leaves(importance, may_be_shared=True), {}, None)

    def places_of(self, group: Group) -> list[str]:
        """Return the paths whose importances add up, once they are known to be there.

        The loss changes through every place of a tied array; one array counts once.
        """
        return list({id(self.named.get(path)): path for path in group.paths}.values())


def importance_of_leaf(
    weighing: Weighing, group: Group, vector_size: int | None
) -> Importance | None:
    """Return the importance of a leaf, None where it says nothing; all of it checked.

    Args:
        weighing: of the whole tree.
        group: the leaf.
        vector_size: m, if the importance may be blocks (ceil(n / m), m, m); or None.
    """
    found = {
        path: _importance_at(
            weighing.named, path, group.value.shape if view is None else view.shape, vector_size
        )
        for path, view in zip(group.paths, group.views, strict=True)
    }
    exponents = dict(zip(found, exponents_of("importance", found), strict=True))
    shifts = {path: weighing.units.get(path, 0) for path in weighing.places_of(group)}
    exponent = max(exponents[path] + shift for path, shift in shifts.items())
    dtype = jax.dtypes.canonicalize_dtype(
        np.float64 if group.value.dtype == np.float64 else np.float32
    )
    is_blocks = _is_blocks(group, found)
    parts = []
    for path, shift in shifts.items():
        view = group.views[group.paths.index(path)]
        part = np.ldexp(found[path].astype(np.float64), shift - exponent).astype(dtype)
        parts.append(part if view is None else np.asarray(view.undo(part)))
    total = sum(parts[1:], start=parts[0])
    policy = weighing.policy
    if policy is None:
        _check_importance(group.paths[0], total, is_blocks=is_blocks)
        return Importance(total, exponent, is_blocks, _unseen(total, is_blocks=is_blocks))
    result = policy.apply_blocks(total) if is_blocks else policy.apply(total)
    if bool(result.report.is_fallback):
        return None
    unseen = unseen_by(policy, result.report)
    return Importance(np.asarray(result.importance), exponent, is_blocks, unseen)


def unseen_by(policy: CurvaturePolicy, report: Any) -> Unseen | None:
    """Return what a policy reports of a leaf without curvature for over half of its weights."""
    return Unseen(int(report.num_zero), policy.zeros) if report.is_mostly_zero else None


def _unseen(importance: Float[np.ndarray, "..."], *, is_blocks: bool) -> Unseen | None:
    """Count the weights whose given importance is 0, if that is over half."""
    own = np.diagonal(importance, axis1=1, axis2=2) if is_blocks else importance
    number = own.size - int(np.count_nonzero(own))
    return Unseen(number, "nothing") if number > own.size // 2 else None


def _is_blocks(group: Group, found: Mapping[str, np.ndarray]) -> bool:
    """Tell whether the importance of a leaf is by blocks, at all of its places."""
    number = 0
    for path, view in zip(group.paths, group.views, strict=True):
        own = group.value.shape if view is None else view.shape
        number += found[path].shape != own
    if number and (number < len(group.paths) or any(view is not None for view in group.views)):
        raise ValueError(
            f"importance at {group.paths[0]!r} is by blocks, but the leaf is tied to "
            f"{shorten(group.paths[1:])} with importances of weights or in another order of its "
            "axes; give importances of weights for all its places."
        )
    return number > 0


def exponents_of(name: str, values: Mapping[str, np.ndarray]) -> list[int]:
    """Return e with `2 ** e <= max |values| < 2 ** (e + 1)` of every array.

    Raises:
        ValueError: if something is not finite, naming its leaf.
    """
    exponents = []
    for path, value in values.items():
        num_bad, exponent = survey(value)
        if num_bad:
            refuse_not_finite(name, path, num_bad, value.size)
        exponents.append(exponent)
    return exponents


def refuse_not_finite(name: str, path: str, number: int, size: int) -> NoReturn:
    """Refuse a leaf with so many entries that are not finite."""
    raise ValueError(
        f"{name} must be finite, got {number} NaN or infinite among the {size} entries of {path!r}."
    )


def refuse_negative(path: str, number: int, size: int) -> NoReturn:
    """Refuse an importance with so many negative entries."""
    raise ValueError(
        f"importance must be at least 0, got {number} negative among the {size} entries of "
        f"{path!r}; pass jaxcomp.curvature.CurvaturePolicy().apply(importance).importance, or the "
        "DiagonalEstimate itself."
    )


def refuse_zeros(path: str) -> NoReturn:
    """Refuse an importance of zeros."""
    raise ValueError(
        f"importance is 0 throughout the leaf {path!r}, so it cannot weigh anything; pass "
        "jaxcomp.curvature.CurvaturePolicy().apply(importance).importance, which weighs such a "
        "leaf alike, or leave it out by select."
    )


def value_at(
    named: Mapping[str, Any], path: str, shape: tuple[int, ...], vector_size: int | None
) -> Any:
    """Return the importance at a path, of the shape of the weights, or of blocks.

    Raises:
        TypeError: if it is not real.
        ValueError: if there is none, or it has another shape.
    """
    if path not in named:
        raise ValueError(
            f"importance has no leaf {path!r}, which is quantized: it has {shorten(named)}; give "
            "it the structure of params."
        )
    value = named[path]
    allowed = f"the shape of the weights, {shape}"
    blocks = None
    if vector_size is not None:
        blocks = (-(-int(np.prod(shape)) // vector_size), vector_size, vector_size)
        allowed += f", or of blocks of its vectors, {blocks}"
    if jnp.shape(value) not in (shape, blocks):
        raise ValueError(f"importance at {path!r} must have {allowed}, got {jnp.shape(value)}.")
    dtype = value.dtype if is_array(value) else np.asarray(value).dtype
    if not jnp.issubdtype(dtype, jnp.integer) and not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"importance at {path!r} must be real numbers, got {dtype}.")
    return value


def _importance_at(
    named: Mapping[str, Any], path: str, shape: tuple[int, ...], vector_size: int | None
) -> np.ndarray:
    value = value_at(named, path, shape, vector_size)
    check_is_here(path, value)
    array = np.asarray(value)
    if jnp.issubdtype(array.dtype, jnp.integer):
        return array.astype(np.float32)
    return array.astype(np.float32) if array.dtype.itemsize < 2 else array


def _check_importance(
    path: str, importance: Float[np.ndarray, "*shape"], *, is_blocks: bool
) -> None:
    if is_blocks:
        _check_semidefinite(path, importance)
        return
    num_negative = int(np.count_nonzero(importance < 0))
    if num_negative:
        refuse_negative(path, num_negative, importance.size)
    if not np.any(importance):
        refuse_zeros(path)


def _check_semidefinite(path: str, blocks: Float[np.ndarray, "vectors m m"]) -> None:
    scale = np.max(np.abs(blocks), axis=(1, 2), initial=0.0, keepdims=True)
    scaled = blocks.astype(np.float64) / np.where(scale > 0, scale, 1)
    # A sum of outer products is semi-definite only up to rounding.
    slack = 8 * blocks.shape[-1] * float(np.finfo(blocks.dtype).eps)
    is_bad = np.max(np.abs(scaled - np.swapaxes(scaled, 1, 2)), axis=(1, 2)) > slack
    is_bad |= np.linalg.eigvalsh(scaled)[:, 0] < -slack
    if np.any(is_bad):
        raise ValueError(
            f"importance at {path!r} must be symmetric positive semi-definite blocks, got "
            f"{np.count_nonzero(is_bad)} of {len(blocks)} that are not; pass "
            "jaxcomp.curvature.CurvaturePolicy().apply_blocks(importance).importance, or the "
            "DiagonalEstimate itself."
        )
