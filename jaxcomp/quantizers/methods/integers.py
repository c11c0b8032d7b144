"""Rounding to the nearest integer."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped

from jaxcomp.coding import sizes
from jaxcomp.numerics.checks import check_count
from jaxcomp.numerics.transformations import computed_once
from jaxcomp.quantizers.chunk_errors import Total, counts_of, measured
from jaxcomp.quantizers.curves import Curve, Point
from jaxcomp.quantizers.methods.base import ChunkCodes, Encoded, Method, scale_bits
from jaxcomp.quantizers.problems import Chunk, Problem, fetched
from jaxcomp.quantizers.scales import Rows, Scale

# Codes of the most bits, from the lowest on.
_NUM_CODES = 1 << 8


@dataclass(frozen=True)
class RoundToNearest(Method):
    """Symmetric integers times a scale, by default one for each channel; what hardware runs.

    Attributes:
        num_bits: 2 to 8.
    """

    name: ClassVar[str] = "round_to_nearest"
    label: ClassVar[str] = "integers"
    parameter_name: ClassVar[str] = "num_bits"
    parameter_header: ClassVar[str] = "bits"
    words: ClassVar[str] = "{} bits"
    default: ClassVar[float] = 8

    num_bits: int | None = None
    scale: Scale = field(default="channel", kw_only=True)

    @property
    def rows(self) -> Rows:
        return Rows(self.scale, self.group_size, self.channel_axis)

    def check(self, parameter: Any) -> None:
        check_count("num_bits", parameter, 2, 8)

    def candidates(self) -> np.ndarray:
        return np.arange(2, 9)

    def prepare(self, problem: Problem) -> Problem:
        """Return a tensor with the largest magnitude of each row, which is the last integer."""
        largest = problem.over_rows(np.abs, np.maximum, self.rows)
        return problem.with_scales(self.rows, largest.astype(problem.dtype))

    def curve(self, problem: Problem, parameters: Shaped[np.ndarray, " points"]) -> Curve:
        num_bits = jnp.asarray(parameters, jnp.int32)
        counts = np.zeros((len(parameters), _NUM_CODES), np.int64)
        totals = [Total() for _ in parameters]
        rounded = (
            (places, _measure(chunk, num_bits, dtype=problem.weights_dtype))
            for places, chunk in problem.chunks()
        )
        for _, (number, sums) in fetched(rounded):
            counts += number
            for point, total in enumerate(totals):
                total.add((sums[0][point], sums[1][point]))
        return Curve(
            parameter=np.asarray(parameters, np.float64),
            rate_bits=sizes.empirical_entropy_bits(counts),
            side_bits=np.full(len(parameters), scale_bits(problem)),
            distortion=np.asarray([total.errors(problem).distortion for total in totals]),
            converged=np.ones(len(parameters), bool),
        )

    def encode(self, problem: Problem, point: Point) -> Encoded:
        num_bits, total = int(point.parameter), Total()
        # The scale of a code, in place of that of the largest weight.
        largest = np.asarray(2 ** (num_bits - 1) - 1, problem.dtype)
        assert problem.scales is not None
        scaled = problem.with_scales(self.rows, problem.scales / largest)
        codes, counts = np.empty(problem.size, np.int8), np.zeros(_NUM_CODES, np.int64)
        rounded = (
            (places, _round(chunk, jnp.int32(num_bits), dtype=problem.weights_dtype))
            for places, chunk in scaled.chunks()
        )
        for places, (some, number, sums) in fetched(rounded):
            codes[places] = some[: places.stop - places.start]
            counts += number
            total.add(sums)
        lowest = _NUM_CODES // 2 - 2 ** (num_bits - 1)
        return Encoded(
            codes.reshape(problem.shape),
            None,
            scaled.scales_in_original_units(),
            counts[lowest : lowest + 2**num_bits].astype(np.int32),
            total.errors(problem),
        )

    def size(
        self, counts: Int[np.ndarray, "layers symbols"], *, num_scales: int, value_bits: int
    ) -> sizes.CodeSize:
        del value_bits
        num_bits = counts.shape[-1].bit_length() - 1  # every code is counted, also one that is 0
        return sizes.rounded_size(counts, num_bits=num_bits, num_scales=num_scales)


@partial(jax.jit, static_argnames=("dtype",))
def _round(chunk: Chunk, num_bits: Int[Array, ""], *, dtype: np.dtype) -> ChunkCodes:
    """Round a chunk to integers times its scales.

    Source: `round_to_nearest`.
    """
    assert chunk.scale is not None
    largest = _largest_code(num_bits, chunk.points.dtype)

    def rounded(points: Array, scale: Array) -> Array:
        # Rows of zeros become code 0.
        ratio = points / jnp.where(scale > 0, scale, 1)
        return jnp.clip(jnp.round(ratio), -largest, largest).astype(jnp.int8)

    codes = computed_once(chunk.num_padding >= 0, rounded, chunk.points, chunk.scale)
    sums = measured(chunk, codes.astype(chunk.points.dtype), dtype)
    index = codes.astype(jnp.int32) + _NUM_CODES // 2
    return codes, counts_of(chunk, index, _NUM_CODES), sums


@partial(jax.jit, static_argnames=("dtype",))
def _measure(
    chunk: Chunk, num_bits: Int[Array, " points"], *, dtype: np.dtype
) -> tuple[Array, Any]:
    """Return counts and sums of a chunk for each number of bits.

    Its scales are the largest magnitudes.
    """

    def of_bits(num_bits: Array) -> tuple[Array, Any]:
        assert chunk.scale is not None
        largest = _largest_code(num_bits, chunk.points.dtype)
        return _round(chunk._replace(scale=chunk.scale / largest), num_bits, dtype=dtype)[1:]

    return jax.lax.map(of_bits, num_bits)


def _largest_code(num_bits: Int[Array, ""], dtype: np.dtype) -> Array:
    return (jnp.left_shift(jnp.int32(1), num_bits - 1) - 1).astype(dtype)
