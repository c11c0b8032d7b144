"""Curvature of the mean loss over a data set that comes in batches.

A diagonal of a mean loss is the mean over batches weighted by their numbers of examples (of tokens,
if the loss is a mean over those); with a random estimator the standard error of that mean is known
exactly only if the samples themselves are averaged over the data set first: `z * (H z)` of all
batches with the same z is one sample of the full-data estimator. Axis letters: `C` probes in a
chunk, `n` examples in all batches.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from numbers import Real
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxcomp.curvature.estimate import (
    CompensatedSum,
    DiagonalEstimate,
    DiagonalSampler,
    Estimator,
    RunningMean,
    Sampling,
    check_batch,
    check_finite,
    checked_estimator,
    count_examples,
    for_each_sample,
    sample_like,
    starting_at,
    weight_of,
    zero_diagonal,
)
from jaxcomp.curvature.not_finite import where_it_began
from jaxcomp.curvature.units import estimate_in_units, in_units_of
from jaxcomp.numerics.checks import check_count
from jaxcomp.numerics.placement import (
    Placement,
    automatic_axes,
    placed,
    placement_of,
    to_automatic,
)
from jaxcomp.numerics.rewriting import quick_on_cpu
from jaxcomp.numerics.transformations import explicit_transfers
from jaxcomp.types import Batch, Params

DiagonalKernel = Callable[[Batch], DiagonalEstimate]
"""One batch -> the diagonal of its mean loss."""


@explicit_transfers
def over_batches(
    estimator: Estimator, batches: Iterable[Batch], *, probes_per_chunk: int = 8
) -> DiagonalEstimate:
    """Compute the diagonal of the mean loss over all examples of all batches.

    For an estimator such as `Hutchinson(loss_fn, params, key=key, num_probes=64)` the result is
    that on all examples at once, standard error included, however they are split: the
    products of a probe are summed over all batches, weighted by examples (by the weights of their
    positions, for a loss that is a mean over tokens), and divided once.
    Probes go in chunks; every chunk passes once over the batches. Memory, beside one batch, is
    about `2 C + 6` times that of the weights (the sums are compensated, so that thousands of
    batches add no rounding error). A ragged last batch costs one further compilation.

    (`mean_over_batches` does what can be done for any other function of a batch.)

    Args:
        estimator: `Hutchinson`, `HutchinsonBlocks`, `Fisher` or `GaussNewton`.
        batches: an iterable that can be passed over several times (a list, a loader whose
            `__iter__` starts anew), of pytrees of arrays that share their leading axis.
        probes_per_chunk: C, at most how many probes are held at once. Chunks are made even.

    Returns:
        Mean and standard error over the whole data set, structured like the estimator's, in nats
        per squared weight.

    Raises:
        ValueError: if there are no batches, a batch has no examples or leaves of different
            lengths, a later pass gives other numbers of examples than the first, all weights of
            positions are zero, or the result is not finite.
        TypeError: if `batches` is not iterable or can be passed over only once, or `estimator` is
            none.
    """
    sampling, probes_per_chunk = _check_arguments(estimator, batches, probes_per_chunk)
    num_samples = sampling.num_samples

    with automatic_axes(sampling.sampler) as leave:
        sampler, own = to_automatic(sampling.sampler), AutomaticBatches(batches)

        def run(sampler: DiagonalSampler) -> DiagonalEstimate:
            state = _full_data_estimate(sampler, num_samples, own, probes_per_chunk)
            return state.running.estimate(num_samples)

        estimate = estimate_in_units(run, sampler)
        return leave(check_finite(estimate, _looking_for(sampler, own)))


@explicit_transfers
def mean_over_batches(kernel: DiagonalKernel, batches: Iterable[Batch]) -> DiagonalEstimate:
    """Average the estimates of any function over batches, weighted by examples, in one pass.

    The standard error is the weighted sum of the batches' errors: an upper bound, whether or not
    the batches share their probes (too large by up to the root of the number of batches if they do
    not). For an estimator of this package `over_batches` says more.

    Args:
        kernel: `batch -> DiagonalEstimate` for the mean loss of a batch.
        batches: pytrees of arrays that share their leading axis.

    Raises:
        ValueError: if there are no batches, a batch has no examples or leaves of different
            lengths, or the result is not finite.
        TypeError: if `kernel` is not callable or returns something else than a `DiagonalEstimate`.
    """
    if not callable(kernel):
        raise TypeError(
            "kernel must be a function from a batch to a DiagonalEstimate, got "
            f"{type(kernel).__name__}."
        )
    return check_finite(_weighted_mean(kernel, batches))


class PreciseEstimate(NamedTuple):
    """An estimate made with as many probes as its precision took.

    Attributes:
        estimate: mean and standard error over the probes used.
        num_probes: how many that were.
        relative_error: `|standard_error|_2 / |mean|_2` of every leaf, scalars in its dtype;
            zero for a leaf of zeros.
        converged: whether all leaves are as precise as asked; otherwise the estimator's
            `num_probes` ran out.
    """

    estimate: DiagonalEstimate
    num_probes: int
    relative_error: Params
    converged: bool


@explicit_transfers
def over_batches_until(
    estimator: Estimator,
    batches: Iterable[Batch],
    *,
    relative_error: float,
    min_probes: int = 8,
    probes_per_chunk: int = 8,
) -> PreciseEstimate:
    """Compute what `over_batches` does, with as many probes as a given precision takes.

    Stops at the first number of probes, from `min_probes` on, at which `|standard_error|_2` is at
    most `relative_error * |mean|_2` in every leaf. That number, and the estimate, do not depend on
    `probes_per_chunk` but for rounding: chunks only decide how often the batches are passed over,
    and probes of the last chunk beyond the stop do not count. (The rule looks at the errors it
    stops on, so that the error of a leaf of few weights is somewhat too small; of a leaf of
    thousands it is not.) Memory and passes as for `over_batches`.

    Args:
        estimator: as for `over_batches`; its `num_probes` is the most that are drawn.
        batches: as for `over_batches`; `[batch]` for a single one.
        relative_error: largest relative error of a leaf, in Euclidean norm, above 0.
        min_probes: number of probes before the first look, at least 2.
        probes_per_chunk: at most how many probes are held at once.

    Raises:
        ValueError: as `over_batches`; or if `relative_error` is not a positive finite number or
            `min_probes` not an integer of at least 2.
        TypeError: as `over_batches`.
    """
    sampling, probes_per_chunk = _check_arguments(estimator, batches, probes_per_chunk)
    is_number = isinstance(relative_error, Real) and not isinstance(relative_error, bool)
    if not is_number or not math.isfinite(relative_error) or relative_error <= 0:
        raise ValueError(f"relative_error must be a finite number above 0, got {relative_error!r}.")
    min_probes = check_count("min_probes", min_probes, least=2)
    num_samples = sampling.num_samples
    states: list[_State] = []

    with automatic_axes(sampling.sampler) as leave:
        sampler, own = to_automatic(sampling.sampler), AutomaticBatches(batches)

        def run(sampler: DiagonalSampler) -> DiagonalEstimate:
            state = _full_data_estimate(
                sampler,
                num_samples,
                own,
                probes_per_chunk,
                float(relative_error),
                min(min_probes, num_samples),
            )
            states.append(state)
            return state.running.estimate(int(state.num_samples))

        estimate = estimate_in_units(run, sampler)
        check_finite(estimate, _looking_for(sampler, own))
        last = states[-1]  # in other units, if there were two
        found, errors = leave((estimate, _relative_errors(estimate)))
        return PreciseEstimate(found, int(last.num_samples), errors, bool(last.is_precise))


def _looking_for(sampler: DiagonalSampler, batches: Iterable[Batch]) -> Callable[[], str] | None:
    """Return what says where values that are not finite began, if the sampler lets it look."""
    evaluate = getattr(sampler, "evaluate", None)
    return None if evaluate is None else partial(where_it_began, evaluate, sampler.params, batches)


def _check_arguments(
    estimator: Estimator, batches: Iterable[Batch], probes_per_chunk: int
) -> tuple[Sampling, int]:
    probes_per_chunk = check_count("probes_per_chunk", probes_per_chunk)
    check_iterable_again(batches)
    return checked_estimator(estimator).sampling(), probes_per_chunk


def check_iterable_again(batches: Iterable[Batch]) -> None:
    """Refuse what can be iterated over once only; later passes would silently find nothing."""
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches must be an iterable of batches, got {type(batches).__name__}.")
    if isinstance(batches, Iterator):
        raise TypeError(
            f"batches must be iterable more than once, but a {type(batches).__name__} is used up "
            "by its first pass and every chunk of probes passes over all batches again; pass a "
            "list, or an object whose __iter__ starts anew."
        )


class AutomaticBatches:
    """Batches over automatic axes of their mesh, each when its turn comes."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return map(to_automatic, self._batches)


class _SizedBatch(NamedTuple):
    batch: Batch
    num_examples: int


def sized_batches(batches: Iterable[Batch]) -> Iterator[_SizedBatch]:
    """Give every batch with its number of examples, checked."""
    for index, batch in enumerate(batches):
        yield _SizedBatch(batch, count_examples(batch, name=f"batches[{index}]"))


class _State(NamedTuple):
    """The running mean of full-data samples, how many it holds and whether they are enough."""

    running: RunningMean
    num_samples: Int[Array, ""]
    is_precise: Bool[Array, ""]


def empty_state(like: Params) -> _State:
    """Return the state before the first sample, which is shaped like `like`."""
    return _State(RunningMean.empty(like), *jax.device_put((np.int32(0), np.bool_(False))))


def _full_data_estimate(
    sampler: DiagonalSampler,
    num_samples: int,
    batches: Iterable[Batch],
    max_chunk: int,
    relative_error: float | None = None,
    min_samples: int = 1,
) -> _State:
    """Average the samples over the data set, then over samples, `max_chunk` at a time."""
    num_chunks = -(-num_samples // max_chunk)
    chunk_size = -(-num_samples // num_chunks)
    sampler = jax.device_put(sampler)
    state = empty_state(sample_like(sampler))
    wanted = None if relative_error is None else np.asarray(relative_error, np.float64)
    limits = Limits(wanted, min_samples, num_samples)
    for chunk in _full_data_samples(sampler, batches, num_chunks, chunk_size):
        # Wait, and let the sums of this chunk go before those of the next are allocated.
        state = jax.block_until_ready(take_in(state, chunk, limits))
        del chunk
        if state.is_precise:
            break
    return state


class Limits(NamedTuple):
    """When to stop: at a relative error, but not before, nor after, a number of samples."""

    relative_error: Float[Array | np.ndarray, ""] | None  # never before, if there is none
    min_samples: Int[Array, ""] | int
    max_samples: Int[Array, ""] | int


class Samples(NamedTuple):
    """Full-data samples of one chunk of probes, before the division by the weight of the data."""

    total: Params
    indices: Int[Array, " C"]
    weight: Float[Array, ""]


def _full_data_samples(
    sampler: DiagonalSampler, batches: Iterable[Batch], num_chunks: int, chunk_size: int
) -> Iterator[Samples]:
    """Sum the samples over the data set, chunk by chunk, in one pass over the batches each."""
    num_examples_before = None
    for first in range(0, num_chunks * chunk_size, chunk_size):
        numbers = np.arange(first, first + chunk_size, dtype=jnp.result_type(int))
        indices = jax.device_put(numbers)
        total, weight, num_examples = _sum_over_batches(
            sampler, batches, indices, is_first=first == 0
        )
        _check_pass(num_examples, num_examples_before)
        if num_examples_before is None:
            check_weight(weight)
        num_examples_before = num_examples
        samples = Samples(total, indices, weight)
        del total
        yield samples
        del samples


def _sum_over_batches(
    sampler: DiagonalSampler,
    batches: Iterable[Batch],
    indices: Int[Array, " C"],
    *,
    is_first: bool,
) -> tuple[Params, Float[Array, ""], int]:
    """Sum the samples of one chunk over all examples, in one pass; and weigh and count those.

    Sum and correction of a `CompensatedSum` lie side by side, in arrays of shape (C, 2, ...).
    """
    total = None
    weight = CompensatedSum.empty(jnp.zeros(()))
    num_examples = 0
    for batch, size in sized_batches(batches):
        placement = placement_of(sample_like(sampler), batch)
        if total is None:
            total = _empty_sums(sample_like(sampler), indices.size, placement)
        # While a step runs the next batch is fetched, but not a second one after it.
        jax.block_until_ready(total)
        if is_first and num_examples == 0:
            check_batch(sampler, batch)
        here = starting_at(sampler, num_examples)
        total, weight = add_batch(total, weight, here, batch, indices, placement=placement)
        num_examples += size
    if total is None:
        total = _empty_sums(sample_like(sampler), indices.size, None)
    return total, weight.value(), num_examples


def _empty_sums(like: Params, num_rows: int, placement: Placement | None) -> Params:
    """Return the sums of a chunk of probes over no batches, where the weights are."""
    zeros = zero_diagonal(like, leading=(num_rows, 2))
    return zeros if placement is None else _like_weights(zeros, placement=placement)


@partial(jax.jit, static_argnames=("placement",), donate_argnames=("sums",))
def _like_weights(sums: Params, *, placement: Placement) -> Params:
    return placement.like_weights(sums, num_leading=2)


def check_weight(weight: Float[Array, ""]) -> None:
    """Refuse data of which nothing counts.

    Raises:
        ValueError: if the sum of all weights is zero.
    """
    if jax.device_get(weight) == 0:
        raise ValueError(
            "the weights of all positions of all batches are zero; at least one must be positive."
        )


def _check_pass(num_examples: int, num_examples_before: int | None) -> None:
    if num_examples_before is None and num_examples == 0:
        raise ValueError("batches is empty; pass at least one batch.")
    if num_examples_before not in (None, num_examples):
        raise ValueError(
            f"batches gave {num_examples_before} examples on one pass and {num_examples} on the "
            "next, but every chunk of probes must see the same data; pass a list, or an object "
            "whose __iter__ starts anew."
        )


@partial(jax.jit, static_argnames=("placement",), donate_argnames=("total", "weight"))
def add_batch(
    total: Params,
    weight: CompensatedSum,
    sampler: DiagonalSampler,
    batch: Batch,
    indices: Int[Array, " C"],
    *,
    placement: Placement | None = None,
) -> tuple[Params, CompensatedSum]:
    """Add the samples of one batch, times its weight, to the sums of a chunk; and its weight."""
    with placed(placement):
        total, weight = quick_on_cpu(_added)(total, weight, sampler, batch, indices)
    return (total if placement is None else placement.like_weights(total, 2)), weight


def _added(
    total: Params,
    weight: CompensatedSum,
    sampler: DiagonalSampler,
    batch: Batch,
    indices: Int[Array, " C"],
) -> tuple[Params, CompensatedSum]:
    own_weight = weight_of(sampler, batch)

    # In place: outputs of a scan would be a second copy, and so would two arrays, one of which is
    # set while its old value is still needed for the other.
    def step(row: Int[Array, ""], sample: Params, total: Params) -> Params:
        added = _sum_at(total, row).add(_times(sample, own_weight))
        pair = jax.tree.map(lambda *x: jnp.stack(x), *added)
        return jax.tree.map(lambda x, new: x.at[row].set(new), total, pair)

    total = for_each_sample(sampler.at(batch), indices, step, total)
    return total, weight.add(own_weight.astype(weight.total.dtype))


def _sum_at(total: Params, row: Int[Array, ""]) -> CompensatedSum:
    """Return the sum of one probe from the sums of a chunk, (C, 2, ...)."""
    pair = jax.tree.map(lambda x: x[row], total)
    return CompensatedSum(*(jax.tree.map(lambda x, i=i: x[i], pair) for i in range(2)))


@partial(jax.jit, donate_argnames=("state",))
def take_in(state: _State, samples: Samples, limits: Limits) -> _State:
    """Take the full-data samples of one chunk into the running mean, until there are enough."""

    def step(row: Int[Array, ""], state: _State) -> _State:
        sample = _divided(_sum_at(samples.total, row).value(), samples.weight)
        running = state.running.update(sample, state.num_samples)
        num_samples = state.num_samples + 1
        is_precise = jnp.asarray(False)
        if limits.relative_error is not None:
            is_precise = (num_samples >= limits.min_samples) & _is_precise(
                running, num_samples, limits.relative_error
            )
        is_full = state.is_precise | (state.num_samples >= limits.max_samples)
        new = _State(running, num_samples, is_precise)
        return jax.tree.map(partial(jnp.where, is_full), state, new)

    return lax.fori_loop(0, samples.indices.size, step, state)


def _is_precise(
    running: RunningMean, num_samples: Int[Array, ""], relative_error: Array | np.ndarray
) -> Bool[Array, ""]:
    """Compare the standard error of every leaf with its mean, in Euclidean norm."""
    is_precise = jnp.asarray(True)
    for mean, squares in zip(*map(jax.tree.leaves, running), strict=True):
        pairs = (num_samples * jnp.maximum(num_samples - 1, 1)).astype(mean.dtype)
        error, size = _norms(jnp.sqrt(squares) / jnp.sqrt(pairs), mean)
        is_precise &= error <= relative_error.astype(mean.dtype) * size
    return is_precise


def _norms(error: Float[Array, "..."], mean: Float[Array, "..."]) -> tuple[Array, Array]:
    """Return both norms in a common unit, near the largest entry: their squares cannot vanish."""
    largest = [jnp.max(jnp.abs(x), initial=0.0) for x in (error, mean)]
    unit = jnp.maximum(*largest)
    unit = jnp.where(unit > 0, unit, jnp.ones_like(unit))
    error_norm, mean_norm = (jnp.sqrt(jnp.sum(jnp.square(x / unit))) for x in (error, mean))
    return error_norm, mean_norm


@jax.jit
def _relative_errors(estimate: DiagonalEstimate) -> Params:
    def leaf(mean: Float[Array, "..."], error: Float[Array, "..."]) -> Float[Array, ""]:
        error_norm, mean_norm = _norms(error, mean)
        return jnp.where(error_norm > 0, error_norm / mean_norm, jnp.zeros_like(error_norm))

    return jax.tree.map(leaf, estimate.mean, estimate.standard_error)


def _weighted_mean(kernel: DiagonalKernel, batches: Iterable[Batch]) -> DiagonalEstimate:
    """Average the estimates of any kernel over batches, weighted by examples."""
    total = exponent = None
    num_examples = 0
    for batch, size in sized_batches(batches):
        estimate = kernel(batch)
        if not isinstance(estimate, DiagonalEstimate):
            raise TypeError(
                "kernel must return a DiagonalEstimate(mean, standard_error), got "
                f"{type(estimate).__name__}."
            )
        exponent = estimate.exponent if total is None else exponent
        numbers = in_units_of(estimate, exponent)._replace(exponent=None)
        total = CompensatedSum.empty(numbers) if total is None else total
        jax.block_until_ready(total)
        total = _add_estimate(total, numbers, _count(size))
        num_examples += size
    if total is None:
        raise ValueError("batches is empty; pass at least one batch.")
    return _mean(total, _count(num_examples))._replace(exponent=exponent)


@partial(jax.jit, donate_argnames=("total",))
def _add_estimate(
    total: CompensatedSum, estimate: DiagonalEstimate, num_examples: Float[Array, ""]
) -> CompensatedSum:
    return total.add(_times(estimate, num_examples))


@jax.jit
def _mean(total: CompensatedSum, num_examples: Float[Array, ""]) -> DiagonalEstimate:
    return _divided(total.value(), num_examples)


def _count(num_examples: int) -> np.ndarray:
    """Return a count that is traced and exact: float64, which is float32 where x64 is off."""
    return np.asarray(num_examples, np.float64)


def _times(tree: Params, count: Float[Array | np.ndarray, ""]) -> Params:
    """Multiply every leaf by a count, in the leaf's dtype."""
    return jax.tree.map(lambda x: x * count.astype(x.dtype), tree)


def _divided(tree: Params, count: Float[Array | np.ndarray, ""]) -> Params:
    """Divide every leaf by a count, in the leaf's dtype."""
    return jax.tree.map(lambda x: x / count.astype(x.dtype), tree)
