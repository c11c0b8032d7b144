"""Curvature of the mean loss over a data set that comes in batches.

A diagonal of a mean loss is the mean over batches weighted by their numbers of examples; with a
random estimator the standard error of that mean is known exactly only if the samples themselves
are averaged over the data set first: `z * (H z)` of all batches with the same z is one sample of
the full-data estimator. Axis letters: `C` probes in a chunk, `n` examples in all batches.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxcomp.curvature.estimate import (
    CompensatedSum,
    DiagonalEstimate,
    DiagonalSampler,
    RunningMean,
    check_finite,
    check_positive_count,
    count_examples,
    find_sampling,
    sample_like,
    zero_diagonal,
)
from jaxcomp.types import Batch, Params

DiagonalKernel = Callable[[Batch], DiagonalEstimate]
"""One batch -> the diagonal of its mean loss."""


def over_batches(
    kernel: DiagonalKernel, batches: Iterable[Batch], *, probes_per_chunk: int = 8
) -> DiagonalEstimate:
    """Compute the diagonal of the mean loss over all examples of all batches.

    For a `functools.partial` of `hutchinson_diagonal` or `fisher_diagonal`, such as
    `partial(hutchinson_diagonal, loss_fn, params, key=key, num_probes=64)`, the result is that of
    the kernel on all examples at once, standard error included, however they are split: the
    products of a probe are summed over all batches, weighted by examples, and divided once.
    Probes go in chunks; every chunk passes once over the batches. Memory, beside one batch, is
    about `2 C + 6` times that of the weights (the sums are compensated, so that thousands of
    batches add no rounding error). A ragged last batch costs one further compilation.

    Any other callable works too: its means are averaged, weighted by examples, and the standard
    error is the weighted sum of the batches' errors: an upper bound, whether or not the batches
    share their probes (too large by up to the root of the number of batches if they do not).

    Args:
        kernel: `batch -> DiagonalEstimate` for the mean loss of a batch.
        batches: an iterable that can be passed over several times (a list, a loader whose
            `__iter__` starts anew), of pytrees of arrays that share their leading axis.
        probes_per_chunk: C, at most how many probes are held at once. Chunks are made even.

    Returns:
        Mean and standard error over the whole data set, structured like the kernel's, in nats per
        squared weight.

    Raises:
        ValueError: if there are no batches, a batch has no examples or leaves of different
            lengths, a later pass gives other numbers of examples than the first, or the result is
            not finite.
        TypeError: if `batches` is not iterable or can be passed over only once, or `kernel` is
            not callable or returns something else than a `DiagonalEstimate`.
    """
    probes_per_chunk = check_positive_count("probes_per_chunk", probes_per_chunk)
    if not callable(kernel):
        raise TypeError(
            "kernel must be a function from a batch to a DiagonalEstimate, got "
            f"{type(kernel).__name__}."
        )
    _check_iterable_again(batches)
    sampling = find_sampling(kernel)
    if sampling is None:
        return check_finite(_weighted_mean(kernel, batches))
    return check_finite(_full_data_estimate(*sampling, batches, probes_per_chunk))


def _check_iterable_again(batches: Iterable[Batch]) -> None:
    """Refuse what can be iterated over once only; later passes would silently find nothing."""
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches must be an iterable of batches, got {type(batches).__name__}.")
    if isinstance(batches, Iterator):
        raise TypeError(
            f"batches must be iterable more than once, but a {type(batches).__name__} is used up "
            "by its first pass and every chunk of probes passes over all batches again; pass a "
            "list, or an object whose __iter__ starts anew."
        )


class _SizedBatch(NamedTuple):
    batch: Batch
    num_examples: int


def _sized(batches: Iterable[Batch]) -> Iterator[_SizedBatch]:
    for index, batch in enumerate(batches):
        yield _SizedBatch(batch, count_examples(batch, name=f"batches[{index}]"))


def _full_data_estimate(
    sampler: DiagonalSampler, num_samples: int, batches: Iterable[Batch], max_chunk: int
) -> DiagonalEstimate:
    """Average the samples over the data set, then over samples, `max_chunk` at a time."""
    num_chunks = -(-num_samples // max_chunk)
    chunk_size = -(-num_samples // num_chunks)
    sampler = jax.device_put(sampler)
    running = RunningMean.empty(sample_like(sampler))
    for chunk in _full_data_samples(sampler, batches, num_chunks, chunk_size):
        running = _take_in(running, *chunk, num_samples)
        del chunk  # before the next one allocates its own
    return running.estimate(num_samples)


class _Samples(NamedTuple):
    """Full-data samples of one chunk of probes, before the division by the examples."""

    total: Params
    indices: Int[Array, " C"]
    num_examples: np.ndarray


def _full_data_samples(
    sampler: DiagonalSampler, batches: Iterable[Batch], num_chunks: int, chunk_size: int
) -> Iterator[_Samples]:
    """Sum the samples over the data set, chunk by chunk, in one pass over the batches each."""
    num_examples_before = None
    for first in range(0, num_chunks * chunk_size, chunk_size):
        indices = jnp.arange(chunk_size) + first
        total, num_examples = _sum_over_batches(sampler, batches, indices)
        _check_pass(num_examples, num_examples_before)
        num_examples_before = num_examples
        samples = _Samples(total, indices, _count(num_examples))
        del total
        yield samples
        del samples


def _sum_over_batches(
    sampler: DiagonalSampler, batches: Iterable[Batch], indices: Int[Array, " C"]
) -> tuple[Params, int]:
    """Sum the samples of one chunk over all examples, in one pass; and count the examples.

    Sum and correction of a `CompensatedSum` lie side by side, in arrays of shape (C, 2, ...).
    """
    total = zero_diagonal(sample_like(sampler), leading=(indices.size, 2))
    num_examples = 0
    for batch, size in _sized(batches):
        # While a step runs the next batch is fetched, but not a second one after it.
        jax.block_until_ready(total)
        total = _add_batch(total, sampler, batch, indices, _count(size))
        num_examples += size
    return total, num_examples


def _check_pass(num_examples: int, num_examples_before: int | None) -> None:
    if num_examples_before is None and num_examples == 0:
        raise ValueError("batches is empty; pass at least one batch.")
    if num_examples_before not in (None, num_examples):
        raise ValueError(
            f"batches gave {num_examples_before} examples on one pass and {num_examples} on the "
            "next, but every chunk of probes must see the same data; pass a list, or an object "
            "whose __iter__ starts anew."
        )


@partial(jax.jit, donate_argnames=("total",))
def _add_batch(
    total: Params,
    sampler: DiagonalSampler,
    batch: Batch,
    indices: Int[Array, " C"],
    num_examples: Float[Array, ""],
) -> Params:
    """Add the samples of one batch, times its number of examples, to the sums of a chunk."""
    sample = sampler.at(batch)

    # In place: outputs of a scan would be a second copy, and so would two arrays, one of which is
    # set while its old value is still needed for the other.
    def step(row: Int[Array, ""], total: Params) -> Params:
        added = _sum_at(total, row).add(_times(sample(indices[row]), num_examples))
        pair = jax.tree.map(lambda *x: jnp.stack(x), *added)
        return jax.tree.map(lambda x, new: x.at[row].set(new), total, pair)

    return lax.fori_loop(0, indices.size, step, total)


def _sum_at(total: Params, row: Int[Array, ""]) -> CompensatedSum:
    """Return the sum of one probe from the sums of a chunk, (C, 2, ...)."""
    pair = jax.tree.map(lambda x: x[row], total)
    return CompensatedSum(*(jax.tree.map(lambda x, i=i: x[i], pair) for i in range(2)))


@partial(jax.jit, donate_argnames=("running",))
def _take_in(
    running: RunningMean,
    total: Params,
    indices: Int[Array, " C"],
    num_examples: Float[Array, ""],
    num_samples: Int[Array, ""],
) -> RunningMean:
    """Take the full-data samples of one chunk into the running mean; surplus ones do not count."""

    def step(row: Int[Array, ""], running: RunningMean) -> RunningMean:
        sample = _divided(_sum_at(total, row).value(), num_examples)
        updated = running.update(sample, indices[row])
        keep = partial(jnp.where, indices[row] < num_samples)
        return jax.tree.map(keep, updated, running)

    return lax.fori_loop(0, indices.size, step, running)


def _weighted_mean(kernel: DiagonalKernel, batches: Iterable[Batch]) -> DiagonalEstimate:
    """Average the estimates of any kernel over batches, weighted by examples."""
    total = None
    num_examples = 0
    for batch, size in _sized(batches):
        estimate = kernel(batch)
        if not isinstance(estimate, DiagonalEstimate):
            raise TypeError(
                "kernel must return a DiagonalEstimate(mean, standard_error), got "
                f"{type(estimate).__name__}."
            )
        total = CompensatedSum.empty(estimate) if total is None else total
        jax.block_until_ready(total)
        total = _add_estimate(total, estimate, _count(size))
        num_examples += size
    if total is None:
        raise ValueError("batches is empty; pass at least one batch.")
    return _divided(total.value(), _count(num_examples))


@partial(jax.jit, donate_argnames=("total",))
def _add_estimate(
    total: CompensatedSum, estimate: DiagonalEstimate, num_examples: Float[Array, ""]
) -> CompensatedSum:
    return total.add(_times(estimate, num_examples))


def _count(num_examples: int) -> np.ndarray:
    """Return a count that is traced and exact: float64, which is float32 where x64 is off."""
    return np.asarray(num_examples, np.float64)


def _times(tree: Params, count: Float[Array | np.ndarray, ""]) -> Params:
    """Multiply every leaf by a count, in the leaf's dtype."""
    return jax.tree.map(lambda x: x * count.astype(x.dtype), tree)


def _divided(tree: Params, count: Float[Array | np.ndarray, ""]) -> Params:
    """Divide every leaf by a count, in the leaf's dtype."""
    return jax.tree.map(lambda x: x / count.astype(x.dtype), tree)
