"""Trellis-coded quantization: integers that go with an entropy coder, chosen along paths."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from jaxcomp.coding import sizes
from jaxcomp.coding.trellis import symbol_counts
from jaxcomp.numerics.integers import largest_magnitude
from jaxcomp.numerics.units import LN2
from jaxcomp.quantizers.chunk_errors import Total, measured
from jaxcomp.quantizers.curves import Curve, Point
from jaxcomp.quantizers.methods.base import Encoded, Method, scale_bits
from jaxcomp.quantizers.methods.entropy_constrained import EntropyConstrained
from jaxcomp.quantizers.problems import Chunk, Problem, fetched, survey
from jaxcomp.quantizers.scales import Rows
from jaxcomp.quantizers.trellis_passes import (
    MOST,
    codes_in_chains,
    design_on_sample,
    num_chains,
)

Order = Literal["rows", "columns"]
ORDERS: tuple[Order, ...] = ("rows", "columns")

# The best step over the root of what a bit is worth, at high rate; where bits are few, by how much
# less: measured on normal and Laplace weights.
_STEP, _FINER = 1.65, 0.55
# Of few bits a weight, where much depends on the law of the weights, a finer step is tried too.
_FEW_BITS, _FINER_SHARE = 1.5, 0.7
# Weights for each of few values, at least.
_PER_VALUE = 16
# Chains that waste no more than a hundredth of what paths gain, at their beginning; weights, and
# deviations of the largest one, beyond which scalar quantization is left alone.
_LEAST_STEPS, _LEAST_WEIGHTS, _LARGEST = 16, 4096, 256.0


class _OnSample(NamedTuple):
    """One operating point, by a sample."""

    rate_bits: float
    side_bits: float
    distortion: float
    step: np.float32
    price: Float[np.ndarray, " K"]


@dataclass(frozen=True)
class TrellisCoded(Method):
    """The least distortion for the bits of an entropy coder, along paths through a trellis.

    Weights are integers times a step. Two quantizers take turns, led by what they gave before
    (`jaxcomp.quantizers.scalar.trellis`): about a sixth of a bit a weight less than
    `EntropyConstrained` at the same error. Left to `EntropyConstrained` are tensors of fewer than
    4,096 weights, those whose mean or outliers are far from what their other weights are, and those
    of at most 128 values, such as weights that were quantized before, which it can keep exactly.

    It visits weights one after the other: some six times the time of `EntropyConstrained` where
    the multiplier is given (a budget, which wants a curve and several trials, hides that), and some
    20 bytes of memory for each weight of the largest leaf, while it is compressed. Leaves that
    several devices share are therefore read on the host, and their codes put back.

    Attributes:
        multiplier: distortion that a bit is worth, relative to the distortion per weight of a
            single value; > 0. As of `EntropyConstrained`.
        order: how the paths go: "rows", through the weights of one column from row to row, or
            "columns", from column to column. None for the one along which the spread of the
            weights varies less.
        least_weights: of a tensor, or of a layer of a stack.
    """

    name: ClassVar[str] = "trellis_coded"
    label: ClassVar[str] = "trellis-coded"
    parameter_name: ClassVar[str] = "multiplier"
    parameter_header: ClassVar[str] = "slope"
    words: ClassVar[str] = "slope {}"
    default: ClassVar[float] = EntropyConstrained.default

    multiplier: float | None = None
    order: Order | None = None
    least_weights: int = _LEAST_WEIGHTS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in (None, *ORDERS):
            raise ValueError(f"order must be one of {ORDERS} or None, got {self.order!r}.")

    @property
    def rows(self) -> Rows:
        return Rows(self.scale, self.group_size, self.channel_axis)

    def check(self, parameter: Any) -> None:
        self._scalar.check(parameter)
        if parameter == 0:
            raise ValueError("multiplier must be above 0, got 0.")

    def candidates(self) -> np.ndarray:
        return self._scalar.candidates()

    def between(
        self, parameters: Shaped[np.ndarray, " points"], place: int
    ) -> Shaped[np.ndarray, " points"]:
        return self._scalar.between(parameters, place)

    def defaults(
        self, num_weights: Int[np.ndarray, " tensors"], num_layers: Int[np.ndarray, " tensors"]
    ) -> list[float]:
        return self._scalar.defaults(num_weights, num_layers)

    def family(self) -> Method:
        return self._scalar

    def number(self, parameter: float) -> str:
        return self._scalar.number(parameter)

    def suited(self, weights: Float[np.ndarray, "*shape"], *, is_stack: bool) -> Method:
        """Return the method with its order; scalar quantization where paths would gain nothing."""
        shape = weights.shape[1:] if is_stack else weights.shape
        size = int(np.prod(shape))
        # In units of a power of two: squares of what float64 holds may be more than it holds.
        unit = survey(weights)[1]
        is_odd = size < self.least_weights or not _is_centred(weights, unit)
        # Of few weights every one may have a value of its own.
        if is_odd or _has_few_values(weights, min(self._scalar.num_symbols, size // _PER_VALUE)):
            return self._scalar.at(self.multiplier)
        if self.order is not None and len(shape) > 1:  # a single axis has one order
            return self
        orders = _by_spread(weights, shape, unit)
        # Of chains that are too short, those along the other axis are long.
        long = (
            own for own in orders if size // num_chains(shape, order_number(own)) >= _LEAST_STEPS
        )
        return replace(self, order=next(long, orders[0]))

    def prepare(self, problem: Problem) -> Problem:
        """Return a tensor with the deviations of its channels, or 1 for all weights."""
        rows = self.rows
        if self.scale == "tensor" and self.group_size is None:
            return problem.with_scales(rows, np.ones(1, problem.dtype))
        squares = problem.over_rows(np.square, np.add, rows)
        deviations = np.sqrt(squares / rows.sizes(problem.shape))
        return problem.with_scales(
            rows, np.where(deviations > 0, deviations, 1).astype(problem.dtype)
        )

    def curve(self, problem: Problem, parameters: Shaped[np.ndarray, " points"]) -> Curve:
        """Return the operating points, by a sample of at most 16,384 weights, evenly spaced."""
        found = [self._on_sample(problem, float(one)) for one in parameters]
        distortions = np.asarray([one.distortion for one in found])
        return Curve(
            parameter=np.asarray(parameters, np.float64),
            rate_bits=np.asarray([one.rate_bits for one in found]),
            side_bits=np.asarray([one.side_bits for one in found]),
            distortion=0 * distortions if problem.weighs_nothing else distortions,
            converged=np.ones(len(parameters), bool),
            codebook=(
                np.asarray([one.step for one in found]),
                np.stack([one.price for one in found]),
            ),
        )

    def point(self, problem: Problem, parameter: float) -> Point:
        return self.curve(problem, np.asarray([parameter])).at(0)

    def encode(self, problem: Problem, point: Point) -> Encoded:
        step, price = point.codebook
        codes = codes_in_chains(problem, float(step), price, order_number(self.order))
        most = largest_magnitude(codes)
        counts = symbol_counts(codes)
        assert problem.scales is not None
        scaled = problem.with_scales(self.rows, problem.scales * problem.dtype.type(step))
        total = Total()
        compared = (
            (places, _measure(chunk, _filled(codes[places], chunk), dtype=problem.weights_dtype))
            for places, chunk in scaled.chunks()
        )
        for _, sums in fetched(compared):
            total.add(sums)
        return Encoded(
            codes.astype(np.int8 if 2 * most + 1 <= 256 else np.int16).reshape(problem.shape),
            None,
            scaled.scales_in_original_units(),
            counts.astype(np.int32),
            total.errors(problem),
        )

    def size(
        self, counts: Int[np.ndarray, "layers symbols"], *, num_scales: int, value_bits: int
    ) -> sizes.CodeSize:
        del value_bits
        return sizes.trellis_size(counts, num_scales=num_scales)

    def _on_sample(self, problem: Problem, multiplier: float) -> _OnSample:
        """Return one operating point, with the step that is best for it."""
        slope = multiplier * problem.moments.variance
        share = _STEP * (1 - _FINER * min(multiplier / (2 * LN2), 1.0))
        first = self._with_step(problem, slope, share)
        if first.rate_bits >= _FEW_BITS:
            return first
        worth = slope * problem.moments.importance * problem.size
        other = self._with_step(problem, slope, _FINER_SHARE * share)
        return min(first, other, key=lambda one: one.distortion + worth * one.rate_bits)

    def _with_step(self, problem: Problem, slope: float, share: float) -> _OnSample:
        """Return an operating point, given the step over the root of what a bit is worth."""
        least = problem.moments.largest / (MOST - 1)
        step = np.float32(max(share * np.sqrt(slope), least) or 1.0)
        found, values, mass = design_on_sample(problem, float(step), slope)
        integers = np.asarray(found.integers).ravel()[: values.size]
        times = problem.size / values.size
        counts = np.round(symbol_counts(integers) * times).astype(np.int64)
        size = sizes.trellis_size(counts, num_scales=0)
        error = values.astype(np.float64) - integers * np.float64(step)
        return _OnSample(
            float(size.entropy_bits) / problem.size,
            float(size.codebook_bits) + scale_bits(problem),
            times * float(np.sum(mass * error * error)),
            step,
            np.asarray(found.price),
        )

    @property
    def _scalar(self) -> EntropyConstrained:
        """What stands in for it where paths would gain nothing."""
        return EntropyConstrained(
            scale=self.scale, group_size=self.group_size, channel_axis=self.channel_axis
        )


def order_number(order: Order | None) -> int:
    """Return the number of an order in files: 1 for rows, as without one, 2 for columns."""
    return 1 + ORDERS.index(order or ORDERS[0])


def _by_spread(weights: Float[np.ndarray, "..."], shape: tuple[int, ...], unit: int) -> list[Order]:
    """Return both orders, first the one of which an adaptive coder has more.

    It learns what each column of a row is like: the rows of "columns" are those whose weights
    have a spread of their own.
    """
    if len(shape) < 2:
        return ["rows"]
    matrix = weights.reshape(-1, shape[-1])
    of_rows, of_columns = np.zeros(len(matrix)), np.zeros(matrix.shape[1])
    number = max(1, (1 << 20) // matrix.shape[1])
    for start in range(0, len(matrix), number):
        part = matrix[start : start + number].astype(np.float64)
        squares = np.square(np.ldexp(part, -unit))
        of_rows[start : start + number] = squares.sum(axis=1)
        of_columns += squares.sum(axis=0)
    return (
        ["columns", "rows"]
        if _unevenness(of_rows) > _unevenness(of_columns)
        else ["rows", "columns"]
    )


def _unevenness(energies: Float[np.ndarray, " parts"]) -> float:
    """Return what it saves to know them: the logarithm of their mean over their geometric mean."""
    known = np.maximum(energies, 1e-4 * energies.mean())
    return float(np.log(known.mean()) - np.log(known).mean()) if known.all() else 0.0


def _is_centred(weights: Float[np.ndarray, "..."], unit: int) -> bool:
    """Tell whether most of the weights are around 0, and none is too far."""
    largest, total, square = 0.0, 0.0, 0.0
    for part in _parts(weights):
        own = np.ldexp(part, -unit)
        largest = max(largest, float(np.abs(own).max()))
        total, square = total + float(own.sum()), square + float(own @ own)
    if square == 0:
        return False
    deviation = np.sqrt(square / weights.size)
    return abs(total / weights.size) < 0.5 * deviation and largest < _LARGEST * deviation


def _has_few_values(weights: Float[np.ndarray, "..."], most: int) -> bool:
    """Tell whether no more than so many values occur."""
    found = np.empty(0)
    for part in _parts(weights, 1 << 14):
        found = np.union1d(found, part)
        if found.size > most:
            return False
    return True


def _parts(
    weights: Float[np.ndarray, "..."], size: int = 1 << 20
) -> Iterator[Float[np.ndarray, " part"]]:
    """Yield the weights in float64, so many at a time."""
    flat = weights.reshape(-1)
    for start in range(0, flat.size, size):
        yield flat[start : start + size].astype(np.float64)


def _filled(codes: Int[np.ndarray, " places"], chunk: Chunk) -> Int[Array, " points"]:
    size = chunk.points.shape[0]
    return jax.device_put(np.concatenate([codes, np.zeros(size - len(codes), codes.dtype)]))


@partial(jax.jit, static_argnames=("dtype",))
def _measure(chunk: Chunk, codes: Int[Array, " points"], *, dtype: np.dtype) -> Any:
    return measured(chunk, codes.astype(chunk.points.dtype), dtype)
