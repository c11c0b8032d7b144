"""Estimates of the diagonal of a loss Hessian: the result, and how samples are averaged into it.

Every estimator of this package is a `DiagonalSampler`: linearised on one batch, it returns
sample number `i` of the diagonal, a mean over the examples of that batch. A kernel averages its
samples over one batch; `jaxcomp.curvature.over_batches` first averages each sample over the
whole data set. Both end in the running mean below (Welford 1962, doi:10.2307/1266577).

All curvature is that of a mean loss in nats, so a diagonal entry has the unit nats per squared
weight. Diagonals are float32, or float64 for float64 weights, whatever the dtype of the weights;
leaves that are not floating (integer codes, counters, random keys) have the curvature zero. What is
no array and no number (a function among the fields of a module) is a constant of the loss, and None
in the result.
"""

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PyTree

from jaxcomp.curvature.units import estimate_in_units
from jaxcomp.numerics.host import as_array
from jaxcomp.numerics.placement import (
    Placement,
    automatic_axes,
    placed,
    placement_of,
    to_automatic,
)
from jaxcomp.numerics.rewriting import quick_on_cpu
from jaxcomp.numerics.transformations import always_compiled, explicit_transfers
from jaxcomp.types import Batch, LossFn, Params


class DiagonalEstimate(NamedTuple):
    """Estimated diagonal of the Hessian of a mean loss, in nats per squared weight.

    Attributes:
        mean: the estimate, structured and shaped like the weights, float32 (float64 for float64
            weights); zeros for leaves that are not floating.
        standard_error: standard error of `mean` over random probes, of the same structure; zeros
            where the estimator is exact. It does not cover the choice of the data.
        exponent: None, but for weights of extreme size (above some 1e12, below 1e-12), the
            curvature of which float32 cannot hold: then an int32 for each leaf, and that leaf's
            curvature, and its error, are the numbers here times `2 ** exponent`.
    """

    mean: Params
    standard_error: Params
    exponent: PyTree | None = None


SampleFn = Callable[[Int[Array, ""]], Params]
"""Index of a sample -> that sample of the diagonal, structured like the weights."""


class SampleBlocks(NamedTuple):
    """A `SampleFn` of which several samples at once cost less than one by one.

    Attributes:
        block: indices (S,) -> these samples, with S as the first axis of every leaf.
        most: how many may be held at once.
    """

    block: Callable[[Int[Array, " S"]], Params]
    most: int

    def __call__(self, index: Int[Array, ""]) -> Params:
        """Return one sample."""
        return jax.tree.map(lambda x: x[0], self.block(jnp.reshape(index, 1)))


_Carry = TypeVar("_Carry")


def for_each_sample(
    sample: SampleFn,
    indices: Int[Array, " C"],
    step: Callable[[Int[Array, ""], Params, _Carry], _Carry],
    start: _Carry,
) -> _Carry:
    """Pass samples on one after the other; some at once are computed where that costs less.

    Args:
        sample: the samples.
        indices: which.
        step: `(row, sample, state) -> state`; row is the place of its index.
        start: the first state.
    """
    size = 1
    if isinstance(sample, SampleBlocks):
        sizes = range(min(sample.most, indices.size), 0, -1)
        size = next(size for size in sizes if indices.size % size == 0)

    def one(row: Int[Array, ""], state: _Carry) -> _Carry:
        return step(row, sample(indices[row]), state)

    def several(number: Int[Array, ""], state: _Carry) -> _Carry:
        assert isinstance(sample, SampleBlocks)
        first = number * size
        found = sample.block(lax.dynamic_slice_in_dim(indices, first, size))

        def next_one(place: Int[Array, ""], state: _Carry) -> _Carry:
            return step(first + place, jax.tree.map(lambda x: x[place], found), state)

        return lax.fori_loop(0, size, next_one, state)

    return lax.fori_loop(0, indices.size // size, one if size == 1 else several, start)


class DiagonalSampler(Protocol):
    """An estimator before averaging: a pytree, so that its arrays are traced under `jit`."""

    @property
    def params(self) -> Params:
        """The weights; a sample has their structure, and their shapes unless `sample_like` tells.

        A sampler whose samples are not shaped like the weights has, beside the weights, an
        attribute `sample_like`: a tree of arrays or `jax.ShapeDtypeStruct`, one for each weight.
        One whose samples depend on the place of a batch in the data set has a method
        `starting_at(example)` that returns the sampler for batches that start there. One whose
        batches do not count by their examples (but by tokens, say) has a method `weight(batch)`.
        One that can tell a batch it is not defined for has a method `check(batch)` that raises a
        `ValueError`. One with a method `evaluate(params, batch)`, what curvature is taken of, can
        say where numbers that are not finite began.
        """
        ...

    def at(self, batch: Batch) -> SampleFn:
        """Prepare `batch` once; sample `i` must be the mean over examples of the same quantity.

        The mean by weight, if the sampler has one; 0 for a batch of the weight 0.
        """
        ...


class Sampling(NamedTuple):
    """A sampler and how many of its samples make an estimate (1 for an exact diagonal)."""

    sampler: DiagonalSampler
    num_samples: int


@functools.partial(jax.jit, static_argnames=("num_samples", "placement"))
def estimate_on_batch(
    sampler: DiagonalSampler,
    batch: Batch,
    *,
    num_samples: int,
    placement: Placement | None = None,
) -> DiagonalEstimate:
    """Average the first `num_samples` samples of one batch; pure, compiled once per shapes."""

    def estimate(sampler: DiagonalSampler, batch: Batch) -> DiagonalEstimate:
        with placed(placement):
            return mean_and_standard_error(sampler.at(batch), sample_like(sampler), num_samples)

    found = quick_on_cpu(estimate)(sampler, batch)
    if placement is None:
        return found
    mean, error = map(placement.like_weights, (found.mean, found.standard_error))
    return found._replace(mean=mean, standard_error=error)


@dataclass(frozen=True, eq=False)
class Estimator(ABC):
    """How a diagonal is estimated: everything but the data.

    Call it with a batch for the estimate on that batch. `over_batches` averages its samples over
    a data set, which is more than the mean of the estimates of batches: see there.
    """

    @abstractmethod
    def sampling(self) -> Sampling:
        """Return the sampler, after a check of all options."""

    @explicit_transfers
    def __call__(self, batch: Batch) -> DiagonalEstimate:
        """Return the estimate for the mean loss of one batch; pure."""
        sampler, num_samples = self.sampling()
        with automatic_axes(sampler, batch) as leave:
            sampler, batch = to_automatic((sampler, batch))
            check_batch(sampler, batch)
            run = functools.partial(
                estimate_on_batch,
                batch=batch,
                num_samples=num_samples,
                placement=placement_of(sample_like(sampler), batch),
            )
            return leave(estimate_in_units(run, sampler))


def checked_estimator(estimator: Any) -> Estimator:
    """Refuse what is no estimator."""
    if not isinstance(estimator, Estimator):
        raise TypeError(
            "estimator must be one of jaxcomp.curvature, such as Hutchinson(loss_fn, params, "
            "key=key, num_probes=64) or GaussNewton(predict_fn, params), so that its samples and "
            f"its memory are known, got {type(estimator).__name__}; mean_over_batches takes any "
            "function of a batch."
        )
    return estimator


def sample_like(sampler: DiagonalSampler) -> Params:
    """Return a tree of the shapes of one sample, and of the dtypes of the weights."""
    return getattr(sampler, "sample_like", sampler.params)


def check_batch(sampler: DiagonalSampler, batch: Batch) -> None:
    """Let a sampler refuse a batch; for use outside `jit`, where values are known."""
    check = getattr(sampler, "check", None)
    if check is not None:
        check(batch)


def weight_of(sampler: DiagonalSampler, batch: Batch) -> Float[Array, ""]:
    """Return how much a batch counts in a mean over batches: by its examples, if nothing else."""
    weight = getattr(sampler, "weight", None)
    if weight is None:
        return jnp.asarray(count_examples(batch), jnp.result_type(float))
    return weight(batch)


def starting_at(sampler: DiagonalSampler, example: int) -> DiagonalSampler:
    """Return the sampler for a batch whose first example has this number in the data set."""
    place = getattr(sampler, "starting_at", None)
    return sampler if place is None else place(example)


def mean_and_standard_error(sample: SampleFn, like: Params, num_samples: int) -> DiagonalEstimate:
    """Average `sample(0), ..., sample(num_samples - 1)` in a running mean of O(n) memory."""

    def step(row: Int[Array, ""], sample: Params, running: "RunningMean") -> "RunningMean":
        return running.update(sample, row)

    running = for_each_sample(sample, jnp.arange(num_samples), step, RunningMean.empty(like))
    return running.estimate(num_samples)


class RunningMean(NamedTuple):
    """Welford's running mean and sum of squared deviations, structured like the weights.

    The sum grows by `n / (n + 1)` times the square of `x - mean`, n samples being in. The usual
    product of the deviations from the old mean and from the new one is the same number, but a
    compiler that fuses rounds them apart: it can be negative, and not 0 for the first sample.
    """

    mean: Params
    squared_deviation: Params

    @classmethod
    def empty(cls, like: Params) -> "RunningMean":
        """Return the state before the first sample, which is shaped like `like`."""
        return cls(zero_diagonal(like), zero_diagonal(like))

    def update(self, sample: Params, index: Int[Array, ""]) -> "RunningMean":
        """Take in sample number `index`, counted from 0."""

        def leaf(mean, squared_deviation, x):
            before = jnp.asarray(index).astype(mean.dtype)
            deviation = x - mean
            share = deviation / (before + 1)
            return mean + share, squared_deviation + before / (before + 1) * jnp.square(deviation)

        return RunningMean(*_map_pairs(leaf, *self, sample))

    def estimate(self, num_samples: int) -> DiagonalEstimate:
        """Return mean and standard error `sqrt(M2 / (S (S - 1)))`, zero for one exact sample."""
        # The root first: the square of a small error may vanish where the error does not.
        scale = 1.0 / math.sqrt(num_samples * max(num_samples - 1, 1))
        return DiagonalEstimate(self.mean, _root_times(self.squared_deviation, np.asarray(scale)))


@jax.jit
def _root_times(squares: Params, scale: Float[Array, ""]) -> Params:
    return jax.tree.map(lambda leaf: jnp.sqrt(leaf) * scale.astype(leaf.dtype), squares)


class CompensatedSum(NamedTuple):
    """A sum of many trees without drift: what rounding took away is summed beside it.

    Error-free addition of Knuth, The Art of Computer Programming 2, section 4.2.2, theorem B.
    """

    total: Params
    correction: Params

    @classmethod
    def empty(cls, like: Params) -> "CompensatedSum":
        """Return the sum of nothing."""
        return cls(jax.tree.map(jnp.zeros_like, like), jax.tree.map(jnp.zeros_like, like))

    def add(self, term: Params) -> "CompensatedSum":
        """Add one tree of the dtypes of the sum."""

        def leaf(total, correction, x):
            new = total + x
            from_x = new - total
            lost = (total - (new - from_x)) + (x - from_x)
            return new, correction + lost

        return CompensatedSum(*_map_pairs(leaf, *self, term))

    def value(self) -> Params:
        """Return the corrected sum."""
        return jax.tree.map(jnp.add, self.total, self.correction)


def _map_pairs(leaf_fn: Callable[..., tuple[Array, Array]], first: Params, *rest: Params):
    """Map a function of leaves that returns a pair; two trees come back."""
    leaves, structure = jax.tree.flatten(first)
    pairs = [
        leaf_fn(*arrays)
        for arrays in zip(leaves, *(jax.tree.leaves(tree) for tree in rest), strict=True)
    ]
    return (structure.unflatten([a for a, _ in pairs]), structure.unflatten([b for _, b in pairs]))


def diagonal_dtype(dtype: DTypeLike) -> np.dtype:
    """Return the dtype of curvature: float64 for float64 weights, float32 for all others."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def zero_diagonal(params: Params, leading: tuple[int, ...] = ()) -> Params:
    """Return zeros for the diagonal of `params` (arrays or their shapes), with leading axes."""
    leaves, structure = jax.tree.flatten(params)
    found = []
    for shape, dtype in map(shape_and_dtype, leaves):
        found.append((leading + shape, diagonal_dtype(dtype)))
    return structure.unflatten(_zeros(tuple(found)))


@functools.partial(jax.jit, static_argnames="shapes")
def _zeros(shapes: tuple[tuple[tuple[int, ...], np.dtype], ...]) -> list[Array]:
    """Return zeros for all leaves, from one program."""
    return [jnp.zeros(shape, dtype) for shape, dtype in shapes]


def shape_and_dtype(x: Any) -> tuple[tuple[int, ...], Any]:
    """Return both for an array, a `jax.ShapeDtypeStruct` or a Python number."""
    if isinstance(x, jax.ShapeDtypeStruct):
        return x.shape, x.dtype
    return jnp.shape(x), jnp.result_type(x)


class FloatingLeaves(NamedTuple):
    """The leaves of a tree of weights that have a curvature, and the way back to the tree.

    Attributes:
        values: the floating leaves, in the order of `jax.tree.leaves`.
        positions: their indices among all leaves.
        others: all leaves, of which those that are not floating are kept as constants.
        structure: tree structure of the weights.
    """

    values: tuple[Array, ...]
    positions: tuple[int, ...]
    others: tuple[Any, ...]
    structure: Any

    def rebuild(self, values: tuple[Array, ...]) -> Params:
        """Return the weights with other values in the floating leaves."""
        leaves = list(self.others)
        for position, value in zip(self.positions, values, strict=True):
            leaves[position] = value
        return self.structure.unflatten(leaves)

    def diagonal(self, values: tuple[Array, ...]) -> Params:
        """Return a tree in the dtypes of the diagonal, zero where a leaf is not floating."""
        leaves = [jnp.zeros(jnp.shape(x), diagonal_dtype(jnp.result_type(x))) for x in self.others]
        for position, value in zip(self.positions, values, strict=True):
            leaves[position] = value.astype(leaves[position].dtype)
        return self.structure.unflatten(leaves)


def floating_leaves(params: Params) -> FloatingLeaves:
    """Separate the leaves with a curvature from those that are passed over.

    Raises:
        TypeError: if a leaf is complex.
        ValueError: if none is floating.
    """
    with_paths, structure = jax.tree_util.tree_flatten_with_path(params)
    leaves = tuple(leaf for _, leaf in with_paths)
    positions = []
    for position, (path, leaf) in enumerate(with_paths):
        dtype = jnp.result_type(leaf)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} is {dtype}, but curvature is defined here for "
                "real weights only; pass its real and imaginary part as two leaves."
            )
        if jnp.issubdtype(dtype, jnp.floating):
            positions.append(position)
    if not positions:
        raise ValueError(
            "params has no floating array among its leaves, so that there is nothing to take "
            "curvature of; pass the weights as arrays (mutable variables of a module frozen, such "
            "as by penzai's pz.freeze_params)."
        )
    values = tuple(jnp.asarray(leaves[position]) for position in positions)
    return FloatingLeaves(values, tuple(positions), leaves, structure)


def scalar_loss(
    loss_fn: LossFn, leaves: FloatingLeaves, batch: Batch
) -> Callable[[tuple[Array, ...]], Float[Array, ""]]:
    """Return the loss of one batch as a function of the floating leaves, checked while traced.

    Raises:
        ValueError: when the returned function is traced, if the loss is not one floating scalar.
    """

    def loss(values: tuple[Array, ...]) -> Float[Array, ""]:
        # Reduced products (TF32, bfloat16 passes) would show as noise in second derivatives.
        with jax.default_matmul_precision("highest"):
            value = loss_fn(leaves.rebuild(values), batch)
        if not jax.tree_util.treedef_is_leaf(jax.tree.structure(value)):
            raise ValueError(
                "loss_fn must return one scalar, the mean loss of the batch, but returned a "
                f"{type(value).__name__}; return the loss alone."
            )
        if jnp.shape(value) != ():
            raise ValueError(
                "loss_fn must return one scalar, the mean loss of the batch, but returned an array "
                f"of shape {jnp.shape(value)}; average it over the examples."
            )
        if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise ValueError(
                "loss_fn must return a floating scalar, the mean loss of the batch, but returned "
                f"{jnp.result_type(value)}; count losses as floating numbers."
            )
        return jnp.asarray(value)

    return loss


def shapes_of_one(batch: Batch) -> Batch:
    """Return shapes and dtypes of a batch of one example, like the examples of this one."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((1, *jnp.shape(x)[1:]), jnp.result_type(x)), batch
    )


def count_examples(batch: Batch, name: str = "batch") -> int:
    """Return the length of the leading axis that the leaves of a batch share.

    Raises:
        ValueError: if there is no leaf, no example, a leaf without axes, or leaves that differ.
    """
    with_paths, _ = jax.tree_util.tree_flatten_with_path(batch)
    lengths = {}
    for path, leaf in with_paths:
        shape, _ = shape_and_dtype(leaf)
        if not shape:
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} is a scalar, but every leaf of a batch needs "
                "a leading axis of examples; bind constants to loss_fn instead."
            )
        lengths[jax.tree_util.keystr(path)] = shape[0]
    if not lengths:
        raise ValueError(f"{name} has no arrays; pass a pytree of arrays with a leading axis.")
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name}{path}: {length}" for path, length in lengths.items())
        raise ValueError(
            f"the leaves of {name} must share the leading axis of examples, got {found}."
        )
    num_examples = next(iter(lengths.values()))
    if num_examples == 0:
        raise ValueError(f"{name} has no examples; leave empty batches out.")
    return num_examples


@always_compiled
def check_finite(
    curvature: DiagonalEstimate | PyTree, where_it_began: Callable[[], str] | None = None
) -> DiagonalEstimate | PyTree:
    """Return `curvature` unchanged if all of it is finite; a host boundary, not for use in `jit`.

    Args:
        curvature: an estimate, or any tree of arrays (a diagonal).
        where_it_began: looks for the first number that was not finite, and says so in a clause;
            called only if there is one.

    Raises:
        ValueError: naming the first leaf with NaN or infinite entries, and how many.
    """
    with_paths, _ = jax.tree_util.tree_flatten_with_path(curvature)
    leaves = [as_array(leaf) for _, leaf in with_paths]
    if not any(map(np.isnan, jax.device_get(_nan_if_not_finite(leaves)))):
        return curvature
    counts = jax.device_get(_count_not_finite(leaves))
    for (path, leaf), count in zip(with_paths, counts, strict=True):
        if count:
            found = (
                f"curvature{jax.tree_util.keystr(path)} has {int(count)} NaN or infinite entries "
                f"of {math.prod(jnp.shape(leaf))}"
            )
            if where_it_began is None:
                raise ValueError(
                    f"{found}; check that the weights and the loss are finite (over_batches of an "
                    "estimator says in which layer it began)."
                )
            raise ValueError(
                f"{found}: {where_it_began()}; mend what is computed there, or leave that out."
            )
    return curvature


@jax.jit
def _nan_if_not_finite(leaves: list[Array]) -> list[Array]:
    """Return NaN for each array with NaN or infinite entries, else 0: this is soon compiled."""
    return [jnp.sum(leaf * jnp.zeros((), leaf.dtype)) for leaf in leaves]


@jax.jit
def _count_not_finite(leaves: list[Array]) -> list[Int[Array, ""]]:
    """Count the NaN and infinite entries of each array."""
    return [jnp.sum(~jnp.isfinite(leaf), dtype=jnp.int32) for leaf in leaves]
