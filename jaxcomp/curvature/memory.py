"""How much memory a curvature will take, known from shapes before any of it is allocated.

The compiled program knows what it needs: arguments, results and scratch, down to the byte. So the
kernel is compiled for shapes alone, and what the driver over batches holds beside it (sums of a
chunk of probes, running mean, the next batch) is added. All sizes are in bytes.
"""

import itertools
import math
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxcomp.curvature import batches as driver
from jaxcomp.curvature.estimate import (
    CompensatedSum,
    DiagonalSampler,
    Estimator,
    Sampling,
    checked_estimator,
    count_examples,
    estimate_on_batch,
    sample_like,
    zero_diagonal,
)
from jaxcomp.numerics.checks import check_count
from jaxcomp.types import Batch

Shapes = PyTree[jax.ShapeDtypeStruct]

# One example may be a program of another kind, with copies that chunks of a few do without.
_FEW = 8


class MemoryEstimate(NamedTuple):
    """Predicted peak memory of a curvature, and the chunk sizes it holds for.

    Attributes:
        peak_bytes: the sum of the four parts below.
        weights_bytes: the weights and other arrays bound to the loss, which the caller holds.
        batch_bytes: one batch, or two with the driver over batches (one computes, one waits).
        state_bytes: the result; with the driver, running mean and sums of a chunk of probes.
        scratch_bytes: what the compiled program needs beside these.
        probes_per_chunk: for `over_batches`; 1 if there are no probes.
        examples_per_chunk: for the kernel; None if it has no such option or its own choice fits.
    """

    peak_bytes: int
    weights_bytes: int
    batch_bytes: int
    state_bytes: int
    scratch_bytes: int
    probes_per_chunk: int
    examples_per_chunk: int | None


def estimate_memory(
    estimator: Estimator,
    batch: Batch | Shapes,
    *,
    limit_bytes: int | None = None,
    many_batches: bool = True,
    probes_per_chunk: int = 8,
) -> MemoryEstimate:
    """Predict the peak memory of a curvature, and pick chunk sizes that stay under a limit.

    Nothing is allocated: arrays may be given by their shapes, `jax.ShapeDtypeStruct`. The estimator
    is compiled for them (once without a limit that binds, a handful of times with one), on the
    default device, whose memory it is. The prediction leaves out what the runtime itself takes,
    batches that the caller keeps, and arrays a loss function holds as constants.

    Example:
        fisher = Fisher(loss_fn, params)
        plan = estimate_memory(fisher, batch, limit_bytes=10**9)
        over_batches(replace(fisher, examples_per_chunk=plan.examples_per_chunk), batches)

    Args:
        estimator: `Hutchinson`, `HutchinsonBlocks`, `Fisher` or `GaussNewton`.
        batch: one batch, the largest, or its shapes.
        limit_bytes: largest peak; None for no limit.
        many_batches: whether for `over_batches(estimator, ...)`, or for `estimator(batch)` alone.
        probes_per_chunk: C of `over_batches`, at most. Under a limit fewer may be chosen (the
            result is the same, the batches are passed over more often), and if one at a time is
            still too much, fewer than the estimator's `examples_per_chunk`, if it has them.

    Returns:
        The prediction, with the largest chunk sizes that fit, up to those asked for.

    Raises:
        ValueError: if nothing fits under `limit_bytes`, with the need and what would fit; if
            `limit_bytes` or `probes_per_chunk` is not a positive integer; or as the estimator.
        TypeError: if `estimator` is none.
    """
    probes_per_chunk = check_count("probes_per_chunk", probes_per_chunk)
    if limit_bytes is not None:
        limit_bytes = check_count("limit_bytes", limit_bytes)
    sampling = checked_estimator(estimator).sampling()
    shapes = _shapes(batch)
    probes = min(probes_per_chunk, sampling.num_samples) if many_batches else 1
    has_chunks = hasattr(estimator, "examples_per_chunk")
    examples = getattr(estimator, "examples_per_chunk", None)
    plan = _Plan(estimator, shapes, many_batches, probes, examples, {}, {})
    estimate = plan.estimate()
    if limit_bytes is None or estimate.peak_bytes <= limit_bytes:
        return estimate
    for name in ("probes_per_chunk", "examples_per_chunk"):
        if name == "examples_per_chunk" and has_chunks and examples is None:
            # Its own choice is too much: any number up to all examples may be the answer.
            most = plan.examples_per_probe or plan.num_examples
            plan = plan._replace(examples_per_chunk=most)
        largest = getattr(plan, name)
        if largest is None or largest == 1:
            continue
        sizes = [1]
        if name == "examples_per_chunk":
            sizes.append(_without_rest(plan, min(_FEW, largest)))
        plans = [_with(plan, name, size) for size in sizes]
        # The second is compiled only if the first does not fit.
        fits = (own.estimate().peak_bytes <= limit_bytes for own in plans)
        smallest = next(itertools.compress(sizes, fits), None)
        if smallest is not None:
            return _largest_that_fits(plan, name, limit_bytes, smallest).estimate()
        plan = min(plans, key=lambda own: own.estimate().peak_bytes)
    raise ValueError(_refusal(plan, limit_bytes))


class _Plan(NamedTuple):
    """What is to be computed; its variants share the estimates they have compiled."""

    estimator: Estimator
    batch: Shapes
    many_batches: bool
    probes_per_chunk: int
    examples_per_chunk: int | None
    known: dict[tuple[int, int, int | None], MemoryEstimate]
    of_means: dict[int, int]  # the scratch of taking a chunk into the mean, by probes_per_chunk

    @property
    def num_examples(self) -> int:
        return count_examples(self.batch)

    @property
    def examples_per_probe(self) -> int | None:
        """Of which chunks must be divisors; None if all examples share their probes."""
        return getattr(self.estimator, "examples_per_probe", None)

    def with_examples(self, num_examples: int) -> "_Plan":
        def leaf(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((num_examples, *x.shape[1:]), x.dtype)

        return self._replace(batch=jax.tree.map(leaf, self.batch))

    def estimate(self) -> MemoryEstimate:
        key = (self.num_examples, self.probes_per_chunk, self.examples_per_chunk)
        if key not in self.known:
            self.known[key] = self._compile()
        return self.known[key]

    def _compile(self) -> MemoryEstimate:
        changed = {}
        if self.examples_per_chunk is not None:
            changed["examples_per_chunk"] = self.examples_per_chunk
        sampling = replace(self.estimator, **changed).sampling()
        sampler = _shapes(sampling.sampler)
        if self.many_batches:
            state, scratch = _driver_bytes(
                sampler, self.batch, self.probes_per_chunk, self.of_means
            )
            num_batches = 2
        else:
            state, scratch = _kernel_bytes(sampler, self.batch, sampling)
            num_batches = 1
        weights, data = _num_bytes(sampler), num_batches * _num_bytes(self.batch)
        return MemoryEstimate(
            peak_bytes=weights + data + state + scratch,
            weights_bytes=weights,
            batch_bytes=data,
            state_bytes=state,
            scratch_bytes=scratch,
            probes_per_chunk=self.probes_per_chunk,
            examples_per_chunk=self.examples_per_chunk,
        )


def _driver_bytes(
    sampler: DiagonalSampler, batch: Shapes, probes_per_chunk: int, of_means: dict[int, int]
) -> tuple[int, int]:
    """Return the bytes of the driver's state and the scratch of its larger step."""
    like = sample_like(sampler)
    total = jax.eval_shape(lambda: zero_diagonal(like, leading=(probes_per_chunk, 2)))
    state = jax.eval_shape(lambda: driver.empty_state(like))
    indices = jax.eval_shape(lambda: jnp.arange(probes_per_chunk))
    weight = jax.eval_shape(lambda: CompensatedSum.empty(jnp.zeros(())))
    add = driver.add_batch.lower(total, weight, sampler, batch, indices)
    if probes_per_chunk not in of_means:  # it does not depend on the batch
        samples = driver.Samples(total, indices, weight.total)
        limits = _shapes(driver.Limits(None, 1, 1))
        take = driver.take_in.lower(state, samples, limits)
        of_means[probes_per_chunk] = _scratch_bytes(take)
    return _num_bytes(total) + _num_bytes(state), max(
        _scratch_bytes(add), of_means[probes_per_chunk]
    )


def _kernel_bytes(sampler: DiagonalSampler, batch: Shapes, sampling: Sampling) -> tuple[int, int]:
    """Return the bytes of the result and of the scratch of a kernel on one batch."""
    lowered = estimate_on_batch.lower(sampler, batch, num_samples=sampling.num_samples)
    return _num_bytes(lowered.out_info), _scratch_bytes(lowered)


def _scratch_bytes(lowered: jax.stages.Lowered) -> int:
    """Compile, and return what the program needs beside its arguments and results."""
    analysis = lowered.compile().memory_analysis()
    if analysis is None:
        raise ValueError(
            f"the compiler for {jax.default_backend()} does not say how much memory a program "
            "takes; estimate it on another device, such as cpu."
        )
    return int(analysis.temp_size_in_bytes)


def _largest_that_fits(plan: _Plan, name: str, limit_bytes: int, smallest: int = 1) -> _Plan:
    """Return the plan with the largest chunk under the limit; the smallest is known to fit.

    Memory is nearly linear in the size of a chunk: a straight line gives the first guess. Where a
    guess is too large all the same, the line to it gives the next one, and no less than half of it,
    so that few programs are compiled whatever memory does between. Chunks that leave a rest take a
    copy of all examples: a size that leaves none is taken if it is not much smaller.
    """

    def peak(size: int) -> int:
        return _with(plan, name, size).estimate().peak_bytes

    def preferred(size: int) -> int:
        return _without_rest(plan, size) if name == "examples_per_chunk" else size

    size = plan.num_examples if name == "num_examples" else getattr(plan, name)
    low, least = peak(smallest), smallest
    while size > smallest and peak(size) > limit_bytes:
        share = (limit_bytes - low) / max(peak(size) - low, 1)
        guess = smallest + int((size - smallest) * share)
        size = max(preferred(min(max(guess, least), size - max(size // 16, 1))), smallest)
        least = max(size // 2, smallest)
    return _with(plan, name, size)


def _without_rest(plan: _Plan, size: int) -> int:
    """Return a chunk that is not much smaller and leaves no rest, if there is one.

    Where examples share their probes in blocks, there always is: no other is allowed.
    """
    block = plan.examples_per_probe
    above = size // 2 if block is None else 0
    whole = plan.num_examples if block is None else block
    return next((n for n in range(size, above, -1) if whole % n == 0), size)


def _with(plan: _Plan, name: str, size: int) -> _Plan:
    return plan.with_examples(size) if name == "num_examples" else plan._replace(**{name: size})


def _refusal(plan: _Plan, limit_bytes: int) -> str:
    """Say what the smallest chunks need and what would fit."""
    need = plan.estimate().peak_bytes
    smallest = plan.with_examples(1).estimate().peak_bytes
    name = type(plan.estimator).__name__
    text = (
        f"{name} on batches of {plan.num_examples:,} examples needs {_megabytes(need)} even in the "
        f"smallest chunks, but limit_bytes allows {_megabytes(limit_bytes)}; "
    )
    if smallest > limit_bytes:
        return text + f"even one example would need {_megabytes(smallest)}: raise the limit."
    fitting = _largest_that_fits(plan, "num_examples", limit_bytes)
    return text + f"batches of {fitting.num_examples:,} examples would fit."


def _shapes(tree: Any) -> Any:
    return jax.eval_shape(lambda x: x, tree)


def _num_bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _megabytes(num_bytes: int) -> str:
    """Write a size with one digit more than is needed to see that it is above a limit."""
    return f"{num_bytes / 1e6:,.4g} MB"
