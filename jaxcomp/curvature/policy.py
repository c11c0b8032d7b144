"""From an estimated curvature to weights that a quantizer can use: finite, positive, documented.

K-means and every other weighted quantizer here need weights h >= 0 with some mass; an estimated
diagonal has negative entries, and exact zeros where an input never fires. What is done about them
is one object, `CurvaturePolicy`, applied leaf by leaf, with a report of what it changed.
"""

import math
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxcomp.curvature.estimate import DiagonalEstimate, check_finite, diagonal_dtype
from jaxcomp.numerics.host import as_array
from jaxcomp.numerics.linear_algebra import eigh
from jaxcomp.numerics.scaling import is_zero
from jaxcomp.numerics.sums import number_of
from jaxcomp.numerics.transformations import always_compiled, compiled_quickly
from jaxcomp.types import Params


class LeafReport(NamedTuple):
    """What the policy changed in one leaf; scalars, with a leading axis under `jax.vmap`.

    Attributes:
        num_entries: entries of the leaf, int32.
        num_raised: entries that lay below the floor and were raised, to it or to the mean (all
            of them in a leaf that fell back), int32.
        num_negative: entries that were negative, int32.
        num_zero: entries that were exactly zero, int32: no example says anything about them.
        is_fallback: whether the leaf had no positive entry, so that all its weights are one.
        is_mostly_zero: whether over half of the entries were zero, but not all; what became of
            them is the policy's `zeros`.
    """

    num_entries: Int[Array, ""]
    num_raised: Int[Array, ""]
    num_negative: Int[Array, ""]
    num_zero: Int[Array, ""]
    is_fallback: Bool[Array, ""]
    is_mostly_zero: Bool[Array, ""]


Zeros = Literal["mean", "floor"]
"""What entries without curvature get in a leaf that has mostly such."""


class PolicyResult(NamedTuple):
    """Weights for a quantizer, and what was changed to get them.

    Attributes:
        importance: structured and shaped like the curvature, float32 (float64 for float64),
            positive (non-negative for a floor of zero), in nats per squared weight (times
            `2 ** exponent` for an estimate that has one, which `jaxcomp.compress` reads from the
            estimate itself); ones in a leaf that fell back.
        report: the same structure with a `LeafReport` in place of each leaf.
    """

    importance: Params
    report: PyTree[LeafReport]


@dataclass(frozen=True)
class CurvaturePolicy:
    """Raise what is negative or too small to a floor, relative to the leaf's mean curvature.

    The floor of a leaf is `relative_floor` times the mean of its *signed* estimates: noise of
    mean zero averages out over the many entries of a leaf, so this mean is precise where single
    entries are not (with 64 probes 30-45 % of them are negative on an over-fitted network, almost
    none below minus three standard errors). If that mean is not positive, the mean of the
    positive parts `max(h, 0)` takes its place. A leaf without any positive entry (dead, or not
    floating) says nothing about its weights: it gets ones, which is plain K-means, and the report
    says so.

    Why a floor of 1 %: beyond setting negative entries to zero, the floor adds at most
    `relative_floor` times the leaf's total, however many entries are raised, so one per cent
    hardly moves a centroid; yet the weights of dead inputs (exact zeros, of which there are many)
    keep a mass that places a centroid when a cluster holds nothing else, well above the rounding
    of float32 sums. The exact value matters little: for MNIST networks (784-128-128-10, 3,000
    images, 64 probes, K = 4, 8, 16) the training loss after K-means is the same, within the
    spread between networks, for floors from 0 to 0.1. A floor of zero leaves clusters without
    mass; one far above the mean is plain K-means.

    A leaf of which over half is exactly zero was hardly seen: 32 sentences meet 1.2 % of the rows
    of an embedding, and the next sentence meets others. Zero is then no knowledge that a weight
    does not matter. Such zeros get the mean above, that of all entries of the leaf, zeros among
    them: what is expected of an entry before it is known whether it is met. They cannot weigh like
    entries that were met, which are the frequent ones. (Rows of MiniLM's embedding that 32
    sentences do not meet have 0.75 of that mean on other sentences, those that 256 do not meet
    0.34; the median of the rows that are met is 52 and 11 times the mean:
    `benchmarks/weightings.md`.) The report says so in `is_mostly_zero`.

    The policy bounds, it does not denoise: an entry that noise made too large stays.

    Attributes:
        relative_floor: floor in units of the leaf's mean curvature, finite and >= 0.
        zeros: what zeros get in a leaf of which they are over half: `"mean"`, that of all its
            entries; or `"floor"`, as in any other leaf.

    Raises:
        ValueError: if `relative_floor` is negative or not finite, or `zeros` is neither.
    """

    relative_floor: float = 0.01
    zeros: Zeros = "mean"

    def __post_init__(self) -> None:
        floor = self.relative_floor
        if not isinstance(floor, Real) or not math.isfinite(floor) or floor < 0:
            raise ValueError(
                f"relative_floor must be a finite number >= 0, got {floor!r}; it is a fraction of "
                "the mean curvature of a leaf."
            )
        if self.zeros not in get_args(Zeros):
            raise ValueError(f"zeros must be one of {get_args(Zeros)}, got {self.zeros!r}.")

    @always_compiled
    def apply(self, curvature: DiagonalEstimate | Params) -> PolicyResult:
        """Turn curvature into importance, after checking it; for use outside `jit`.

        Args:
            curvature: an estimate (of which the mean is used) or a diagonal, real arrays.

        Raises:
            ValueError: if an entry is NaN or infinite, naming its leaf.
        """
        diagonal = check_finite(_diagonal(curvature))
        return _applied_once(diagonal, jax.device_put(self.relative_floor), zeros=self.zeros)

    @always_compiled
    def apply_blocks(self, blocks: DiagonalEstimate | Params) -> PolicyResult:
        """Do the same for blocks, of `hutchinson_blocks` say, through their eigenvalues.

        Eigenvalues below the floor are raised to it, so that every block is positive definite;
        the floor is relative to the mean eigenvalue of the leaf, which is its mean diagonal entry.
        That includes the rows of zeros that fill a last block up. A leaf without a positive
        eigenvalue gets unit matrices.

        Args:
            blocks: an estimate (of which the mean is used) or a tree of symmetric blocks
                (..., m, m).

        Returns:
            Blocks as `importance`; the report counts eigenvalues where it says entries.

        Raises:
            ValueError: if an entry is NaN or infinite, naming its leaf, or a leaf is not
                (..., m, m).
        """
        diagonal = check_finite(_diagonal(blocks))
        for path, leaf in jax.tree_util.tree_flatten_with_path(diagonal)[0]:
            shape = jnp.shape(leaf)
            if len(shape) < 2 or shape[-1] != shape[-2]:
                raise ValueError(
                    f"blocks{jax.tree_util.keystr(path)} must have the shape (..., m, m), got "
                    f"{shape}."
                )
        leaves, structure = jax.tree.flatten(diagonal)
        # Blocks of one size are decomposed together, of another by another program.
        places: dict[tuple[int, Any], list[int]] = {}
        for place, leaf in enumerate(leaves):
            kind = jnp.shape(leaf)[-1], diagonal_dtype(jnp.result_type(leaf))
            places.setdefault(kind, []).append(place)
        results: dict[int, tuple[Array, LeafReport]] = {}
        for group in places.values():
            blocks = [as_array(leaves[place]) for place in group]
            raised = _raise_eigenvalues(blocks, self.relative_floor, zeros=self.zeros)
            results |= zip(group, raised, strict=True)
        return _assembled(structure, [results[place] for place in range(len(leaves))])

    @always_compiled
    def apply_traced(self, curvature: DiagonalEstimate | Params) -> PolicyResult:
        """Do the same as a pure function, for use in `jit`, and in `vmap` over models.

        Nothing is checked: a leaf with NaN or infinite entries has NaN or infinite importance.
        """
        return _applied_traced(_diagonal(curvature), self.relative_floor, zeros=self.zeros)


def _diagonal(curvature: DiagonalEstimate | Params) -> Params:
    return curvature.mean if isinstance(curvature, DiagonalEstimate) else curvature


def _applied(diagonal: Params, relative_floor: Float[Array, ""], *, zeros: Zeros) -> PolicyResult:
    leaves, structure = jax.tree.flatten(diagonal)
    return _assembled(structure, [_raised(leaf, relative_floor, zeros) for leaf in leaves])


_applied_traced = jax.jit(_applied, static_argnames="zeros")
# Once for an estimate: twice the time for each weight is little beside that.
_applied_once = compiled_quickly(static_argnames="zeros")(_applied)


def _assembled(structure: Any, results: list[tuple[Array, LeafReport]]) -> PolicyResult:
    return PolicyResult(
        structure.unflatten([importance for importance, _ in results]),
        structure.unflatten([report for _, report in results]),
    )


def _raised(
    h: Float[Array, "*shape"], relative_floor: Float[Array, ""], zeros: Zeros
) -> tuple[Float[Array, "*shape"], LeafReport]:
    h = h.astype(diagonal_dtype(h.dtype))
    num_entries = max(h.size, 1)
    # In units of the largest entry: the sum of many may exceed the range of the dtype.
    unit = _largest(h)
    signed_mean = jnp.sum(h / unit) / num_entries
    positive_mean = jnp.sum(jnp.maximum(h / unit, 0.0)) / num_entries
    scale = jnp.where(signed_mean > 0, signed_mean, positive_mean)
    floor = relative_floor.astype(h.dtype) * scale * unit
    # Whether any entry is positive, or NaN; a maximum is cheaper to compile than what asks that.
    is_fallback = (jnp.max(h, initial=-jnp.inf) <= 0) & (number_of(jnp.isnan(h)) == 0)
    importance = jnp.where(is_fallback, jnp.ones_like(h), jnp.maximum(h, floor))
    without = is_zero(h)
    num_zero = number_of(without)
    is_mostly_zero = (num_zero > h.size // 2) & ~is_fallback
    if zeros == "mean":
        importance = jnp.where(is_mostly_zero & without, scale * unit, importance)
    report = LeafReport(
        num_entries=jnp.int32(h.size),
        num_raised=number_of(importance > h),
        num_negative=number_of(h < 0),
        num_zero=num_zero,
        is_fallback=is_fallback,
        is_mostly_zero=is_mostly_zero,
    )
    return importance, report


@partial(jax.jit, static_argnames="zeros")
def _raise_eigenvalues(
    leaves: list[Float[Array, "..."]], relative_floor: Float[Array, ""], *, zeros: Zeros
) -> list[tuple[Float[Array, "..."], LeafReport]]:
    """Raise the eigenvalues of leaves (..., m, m), all of one m, in one decomposition."""
    leaves = [leaf.astype(diagonal_dtype(leaf.dtype)) for leaf in leaves]
    size = leaves[0].shape[-1]
    units = [_largest(leaf) for leaf in leaves]
    flat = [(leaf / unit).reshape(-1, size, size) for leaf, unit in zip(leaves, units, strict=True)]
    values, vectors = eigh(jnp.concatenate(flat))
    results, start = [], 0
    for leaf, blocks, unit in zip(leaves, flat, units, strict=True):
        rows = slice(start, start + blocks.shape[0])
        raised, report = _raised(values[rows], relative_floor, zeros)
        with jax.default_matmul_precision("highest"):
            rebuilt = (vectors[rows] * jnp.expand_dims(raised, -2)) @ jnp.swapaxes(
                vectors[rows], -1, -2
            )
        rebuilt = 0.5 * (rebuilt + jnp.swapaxes(rebuilt, -1, -2))
        # A leaf without curvature has unit matrices, in no unit.
        rebuilt = rebuilt * jnp.where(report.is_fallback, 1, unit)
        results.append((rebuilt.reshape(leaf.shape), report))
        start += blocks.shape[0]
    return results


def _largest(values: Float[Array, "..."]) -> Float[Array, ""]:
    """Return the largest magnitude; 1 if all are 0."""
    largest = jnp.max(jnp.abs(values), initial=0)
    return jnp.where(largest > 0, largest, jnp.ones_like(largest))
