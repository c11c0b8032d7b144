"""Setting the smallest weights to zero."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int, Shaped

from jaxcomp.coding import sizes
from jaxcomp.quantizers.curves import Curve, Point
from jaxcomp.quantizers.methods.base import Encoded, Method
from jaxcomp.quantizers.problems import Errors, Problem

# Bits of a magnitude that are looked at together.
_DIGIT_BITS = 16
_NUM_DIGITS = 1 << _DIGIT_BITS


@dataclass(frozen=True)
class MagnitudePruning(Method):
    """The smallest weights set to zero, the others kept at full precision.

    Attributes:
        sparsity: share of the weights that are set to zero, in [0, 1].
    """

    name: ClassVar[str] = "magnitude_pruning"
    label: ClassVar[str] = "pruning"
    parameter_name: ClassVar[str] = "sparsity"
    parameter_header: ClassVar[str] = "zeros"
    words: ClassVar[str] = "{} zeros"
    default: ClassVar[float] = 0.5
    keeps_weights: ClassVar[bool] = True

    sparsity: float | None = None

    def check(self, parameter: Any) -> None:
        is_number = isinstance(parameter, int | float | np.number)
        if not is_number or isinstance(parameter, bool) or not 0 <= parameter <= 1:
            raise ValueError(f"sparsity must be a fraction from 0 to 1, got {parameter!r}.")

    def candidates(self) -> np.ndarray:
        return np.concatenate([np.arange(0, 0.95, 0.05), np.arange(0.95, 0.999, 0.01), [1.0]])

    def between(
        self, parameters: Shaped[np.ndarray, " points"], place: int
    ) -> Shaped[np.ndarray, " points"]:
        """Return shares from one neighbour to the other."""
        low, high = parameters[max(place - 1, 0)], parameters[min(place + 1, len(parameters) - 1)]
        return np.linspace(low, high, len(parameters))

    def number(self, parameter: float) -> str:
        return f"{parameter:.1%}"

    def curve(self, problem: Problem, parameters: Shaped[np.ndarray, " points"]) -> Curve:
        """Return the operating points; magnitudes are told apart to one part in 128 or better."""
        parameters = np.asarray(parameters, np.float64)
        number, lost = np.zeros(_NUM_DIGITS), np.zeros(_NUM_DIGITS)
        for places in problem.parts():
            digit = _magnitudes(problem, places) >> (_num_bits(problem) - _DIGIT_BITS)
            squares = problem.points(places).astype(np.float64) ** 2
            mass = problem.importance_of(places)
            weighted = squares if mass is None else squares * mass
            number += np.bincount(digit, minlength=_NUM_DIGITS)
            lost += np.bincount(digit, weights=weighted, minlength=_NUM_DIGITS)
        zeros = _num_zeros(problem, parameters)
        upto = np.concatenate([[0.0], np.cumsum(number)]), np.concatenate([[0.0], np.cumsum(lost)])
        # Within a digit magnitudes are nearly the same: what is lost grows evenly.
        is_there = np.concatenate([[True], number > 0])
        distortion = np.interp(zeros, upto[0][is_there], upto[1][is_there])
        size = sizes.pruned_size(problem.size, problem.size - zeros, value_bits=problem.value_bits)
        return Curve(
            parameter=parameters,
            rate_bits=size.entropy_bits / problem.size,
            side_bits=np.zeros(len(parameters)),
            distortion=0 * distortion if problem.weighs_nothing else distortion,
            converged=np.ones(len(parameters), bool),
        )

    def encode(self, problem: Problem, point: Point) -> Encoded:
        limit, num_ties = _limit(problem, int(_num_zeros(problem, point.parameter)))
        left = np.array(problem.weights).reshape(-1)
        squared_error = distortion = 0.0
        for places in problem.parts():
            magnitude = _magnitudes(problem, places)
            # Of equal magnitudes those that come first.
            is_tied = magnitude == limit
            rank = np.cumsum(is_tied)
            is_pruned = (magnitude < limit) | (is_tied & (rank <= num_ties))
            num_ties -= min(num_ties, int(rank[-1]))
            left[places][is_pruned] = 0
            squares = problem.points(places)[is_pruned].astype(np.float64) ** 2
            mass = problem.importance_of(places)
            squared_error += float(np.sum(squares))
            distortion += float(np.sum(squares if mass is None else squares * mass[is_pruned]))
        num_left = int(np.count_nonzero(left))
        return Encoded(
            left.reshape(problem.shape),
            None,
            None,
            np.asarray([problem.size - num_left, num_left], np.int32),
            Errors(0.0 if problem.weighs_nothing else distortion, squared_error, problem.energy()),
        )

    def decode(self, codes: Any, codebook: Any, scales: Any, *, shape: Any, dtype: Any) -> Any:
        """Return the weights that are left, as they are stored."""
        del codebook, scales, shape, dtype
        return codes

    def size(
        self, counts: Int[np.ndarray, "layers symbols"], *, num_scales: int, value_bits: int
    ) -> sizes.CodeSize:
        del num_scales
        return sizes.pruned_size(counts.sum(axis=-1), counts[:, 1], value_bits=value_bits)


def _num_zeros(problem: Problem, sparsity: Any) -> Int[np.ndarray, "..."]:
    number = np.round(np.asarray(sparsity, np.float64) * problem.size)
    return np.clip(number, 0, problem.size).astype(np.int64)


def _num_bits(problem: Problem) -> int:
    return 8 * problem.weights.dtype.itemsize


def _magnitudes(problem: Problem, places: slice) -> Shaped[np.ndarray, " places"]:
    """Return unsigned integers in the order of the magnitudes: their bits."""
    some = np.ascontiguousarray(problem.weights.reshape(-1)[places])
    num_bits = _num_bits(problem)
    bits = some.view(np.dtype(f"uint{num_bits}"))
    return bits & bits.dtype.type((1 << (num_bits - 1)) - 1)


def _limit(problem: Problem, num_zeros: int) -> tuple[int, int]:
    """Return the magnitude up to which weights go, and how many of just this magnitude do.

    The rank is found digit by digit from the top, each in a pass over the weights.
    """
    prefix, rank = 0, num_zeros
    for shift in range(_num_bits(problem) - _DIGIT_BITS, -1, -_DIGIT_BITS):
        number = np.zeros(_NUM_DIGITS, np.int64)
        for places in problem.parts():
            rest = _magnitudes(problem, places) >> shift
            own = rest[(rest >> _DIGIT_BITS) == prefix] & (_NUM_DIGITS - 1)
            number += np.bincount(own.astype(np.int64), minlength=_NUM_DIGITS)
        upto = np.cumsum(number)
        digit = int(np.searchsorted(upto, rank, side="left"))
        rank -= int(upto[digit - 1]) if digit else 0
        prefix = (prefix << _DIGIT_BITS) | digit
    return prefix, rank
