"""Passes through a layer, and what is chosen between them on a sample of its outputs.

The first pass has the lengths of symbols of plain rounding; each later one has those, the classes
of inputs and the reconstruction factors of the pass before it. Exponent and slope of the spacings
are those of least `distortion + multiplier * bits`, and the multiplier of a rate is found by
secants.

Axes: `G` groups, `I` inputs, `O` outputs, `M` multipliers.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Int16

from jaxcomp.numerics.checks import check_count
from jaxcomp.numerics.transformations import counted_loop
from jaxcomp.numerics.units import LN2
from jaxcomp.quantizers.feedback import NUM_FACTORS, Grid, Problem, round_with_feedback
from jaxcomp.quantizers.input_classes import (
    bits_of,
    classes_by_magnitude,
    count_codes,
    length_bits,
)
from jaxcomp.quantizers.spacings import Spacing, mean_of_live, shortened, spacing_for

# Bits of c and of the reconstruction factors.
NUMBER_BITS = 32.0 * (1 + NUM_FACTORS)
# A sample has a tenth of the outputs, but so many weights if there are as many.
_SAMPLED = 10
_LEAST_SAMPLE = 1 << 16
# A class has so many weights at least.
_CLASS_SIZE = 1 << 13
_MAX_CLASSES = 16
# Secants for a number of bits, before exponent and slope are chosen and again after.
_NUM_SECANTS = 4
# Furthest step of a secant, in nats of the multiplier.
_MAX_STEP = 2.0


@dataclass(frozen=True)
class RoundingSettings:
    """How a layer is rounded; static.

    Attributes:
        exponents: of the spacings, to choose from.
        slopes: to choose from: what a bit is worth, over what it is at high rate.
        num_passes: from the last input to the first, at least 1.
        block_size: inputs between two updates of all that are left: only speed depends on it.
        num_classes: of inputs, with a table each; None for as many as have 8,192 weights, 16 at
            most.
        max_code: largest magnitude of a code, from 1 to 16,383.
    """

    exponents: tuple[float, ...] = (0.0, 0.5, 1.0)
    slopes: tuple[float, ...] = (1.0, 2.0, 4.0)
    num_passes: int = 3
    block_size: int = 128
    num_classes: int | None = None
    max_code: int = 1023

    def __post_init__(self) -> None:
        check_count("num_passes", self.num_passes)
        check_count("block_size", self.block_size)
        check_count("max_code", self.max_code, 1, (1 << 14) - 1)
        if self.num_classes is not None:
            check_count("num_classes", self.num_classes)
        for name in ("exponents", "slopes"):
            values = getattr(self, name)
            is_list = isinstance(values, tuple) and len(values) > 0
            if not is_list or not all(np.isfinite(v) and v >= 0 for v in values):
                raise ValueError(
                    f"{name} must be a tuple of finite numbers, at least 0, got {values!r}."
                )
        if min(self.slopes) == 0:
            raise ValueError(f"slopes must be positive, got {self.slopes!r}.")

    @property
    def pairs(self) -> Float[np.ndarray, "pairs 2"]:
        """All exponents with all slopes."""
        return np.array([(e, s) for e in self.exponents for s in self.slopes])

    @property
    def without_choices(self) -> "RoundingSettings":
        """What programs are compiled for: exponents and slopes are traced."""
        return replace(self, exponents=(0.0,), slopes=(1.0,))


DEFAULT_SETTINGS = RoundingSettings()


class Layer(NamedTuple):
    """A layer that is ready to be rounded.

    Attributes:
        weights: W (G, I, O).
        problem: what rounding needs to know.
        sharing: which inputs have one spacing (G, I); None if each has its own.
    """

    weights: Float[Array, "G I O"]
    problem: Problem
    sharing: Int[Array, "G I"] | None = None

    @property
    def mean_importance(self) -> Float[Array, ""]:
        """The mean of g over the outputs."""
        return jnp.mean(self.problem.output_importance)

    @property
    def sampled(self) -> "Layer":
        """The layer with evenly spaced outputs only."""
        step = _sample_step(self.weights.shape)
        return Layer(self.weights[..., ::step], self.problem.outputs(step), self.sharing)


class _Trial(NamedTuple):
    """What a layer would cost and lose with one exponent and slope, from a sample."""

    distortion: Float[Array, ""]
    bits: Float[Array, ""]


class LayerCurve(NamedTuple):
    """What a layer would cost and lose, from a sample of its outputs.

    Attributes:
        multiplier: (M,).
        rate_bits: (M,), per weight, everything counted.
        distortion: (M,), `sum g_o |e_o|^2`.
        exponent: (M,), as chosen.
        slope: (M,), as chosen.
    """

    multiplier: Float[Array, " M"]
    rate_bits: Float[Array, " M"]
    distortion: Float[Array, " M"]
    exponent: Float[Array, " M"]
    slope: Float[Array, " M"]


def num_classes_of(shape: tuple[int, ...], settings: RoundingSettings) -> int:
    """Return J for a layer of shape (G, I, O)."""
    if settings.num_classes is not None:
        return min(settings.num_classes, shape[0] * shape[1])
    most = min(_MAX_CLASSES, shape[0] * shape[1])
    return int(np.clip(int(np.prod(shape)) // _CLASS_SIZE, 1, most))


def _sample_step(shape: tuple[int, ...]) -> int:
    """Return how many outputs stand for one of a sample."""
    most = int(np.prod(shape)) // _LEAST_SAMPLE
    return int(np.clip(most, 1, min(_SAMPLED, shape[-1])))


def passes(
    layer: Layer,
    spacing: Spacing,
    multiplier: Float[Array, ""],
    *,
    num_classes: int,
    settings: RoundingSettings,
) -> tuple[Array, Array, Array, Array, Array]:
    """Return codes, errors, factors, classes and counts after all passes."""
    is_live = layer.problem.factor.is_live
    most, spacings = settings.max_code, spacing.of_inputs

    def tables(codes: Int16[Array, "G I O"]) -> tuple[Array, Array]:
        classes = classes_by_magnitude(codes, is_live, num_classes=num_classes)
        counts = count_codes(codes, classes, is_live, num_classes=num_classes, max_code=most)
        return classes, counts

    def one_pass(_: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        factors, classes, counts = state[3:]
        prices = multiplier * length_bits(counts).astype(spacings.dtype)
        found = round_with_feedback(
            layer.problem,
            Grid(spacings, factors),
            classes,
            prices,
            block_size=min(settings.block_size, layer.weights.shape[1]),
        )
        # A factor beyond would not be one of the bin that it is for.
        fitted = jnp.clip(found.fitted_factors, 0.5, 1.5)
        fitted = shortened(spacing.scale * fitted) / spacing.scale
        return found.codes, found.errors, factors, fitted, *tables(found.codes)

    plain = jnp.clip(jnp.round(layer.weights / spacings[..., None]), -most, most)
    plain = jnp.where(is_live[..., None], plain, 0).astype(jnp.int16)
    factors = jnp.ones(NUM_FACTORS, spacings.dtype)
    errors = jnp.zeros_like(layer.problem.output_importance)
    # Codes themselves are not needed by the next pass, so that one copy of them is enough.
    start = plain, errors, factors, factors, *tables(plain)
    codes, errors, factors, _, classes, counts = counted_loop(
        0, settings.num_passes, one_pass, start
    )
    return codes, errors, factors, classes, counts


def _trial(
    layer: Layer,
    multiplier: Float[Array, ""],
    exponent: Float[Array, ""],
    slope: Float[Array, ""],
    *,
    settings: RoundingSettings,
) -> _Trial:
    """Round a sample of a layer's outputs; return what all of them would cost and lose."""
    sample, factor = layer.sampled, layer.problem.factor
    spacing = spacing_for(factor, layer.mean_importance, multiplier, exponent, slope, layer.sharing)
    _, errors, _, classes, counts = passes(
        sample,
        spacing,
        multiplier,
        num_classes=num_classes_of(layer.weights.shape, settings),
        settings=settings,
    )
    num_times = layer.weights.shape[-1] / sample.weights.shape[-1]
    bits = bits_of(counts, classes, spacing.levels, factor.is_live, num_times=num_times)
    own = sample.problem.output_importance
    mass, of_sample = jnp.sum(layer.problem.output_importance), jnp.sum(own)
    share = jnp.where(of_sample > 0, mass / jnp.where(of_sample > 0, of_sample, 1), num_times)
    return _Trial(share * jnp.sum(own * errors), bits.total.astype(errors.dtype) + NUMBER_BITS)


def _best(
    layer: Layer,
    multiplier: Float[Array, ""],
    pairs: Float[Array, "pairs 2"],
    *,
    settings: RoundingSettings,
) -> tuple[Array, Array, _Trial]:
    """Return the exponent and slope of least cost, and what they cost and lose."""
    trials = lax.map(
        lambda pair: _trial(layer, multiplier, pair[0], pair[1], settings=settings), pairs
    )
    best = jnp.argmin(trials.distortion + multiplier * trials.bits)
    return pairs[best, 0], pairs[best, 1], jax.tree.map(lambda part: part[best], trials)


@partial(jax.jit, static_argnames=("settings",))
def choose_pair(
    layer: Layer,
    multiplier: Float[Array, ""],
    pairs: Float[Array, "pairs 2"],
    *,
    settings: RoundingSettings,
) -> tuple[Array, Array]:
    """Return the exponent and slope of least cost, of pairs (P, 2) of both."""
    if pairs.shape[0] == 1:
        return pairs[0, 0], pairs[0, 1]
    return _best(layer, multiplier, pairs, settings=settings)[:2]


@partial(jax.jit, static_argnames=("settings",))
def curve_of_sample(
    layer: Layer,
    multipliers: Float[Array, " M"],
    pairs: Float[Array, "pairs 2"],
    *,
    settings: RoundingSettings,
) -> LayerCurve:
    """Return a layer's operating points, each with its own exponent and slope of least cost."""

    def point(multiplier: Array) -> LayerCurve:
        exponent, slope, trial = _best(layer, multiplier, pairs, settings=settings)
        rate = trial.bits / layer.weights.size
        return LayerCurve(multiplier, rate, trial.distortion, exponent, slope)

    return lax.map(point, multipliers)


@jax.jit
def first_multiplier(layer: Layer, rate_bits: Float[Array, ""]) -> Float[Array, ""]:
    """Return the multiplier of Gaussian weights at high rate: `2 ln 2` distortions of a weight."""
    factor = layer.problem.factor
    pivots = jnp.where(factor.is_live, factor.pivots, 1)
    mean_pivot = jnp.exp2(mean_of_live(jnp.log2(pivots), factor.is_live))
    square = mean_of_live(jnp.mean(layer.weights**2, axis=-1), factor.is_live)
    square = jnp.where(square > 0, square, 1)
    return 2 * LN2 * layer.mean_importance * square * mean_pivot**2 * jnp.exp2(-2 * rate_bits)


@partial(jax.jit, static_argnames=("settings",))
def meet_rate(
    layer: Layer,
    multiplier: Float[Array, ""],
    rate_bits: Float[Array, ""],
    exponent: Float[Array, ""],
    slope: Float[Array, ""],
    *,
    settings: RoundingSettings,
) -> Float[Array, ""]:
    """Return the multiplier of a rate, by secants in its logarithm."""

    def step(_: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        before, rate_before, log_multiplier = state
        trial = _trial(layer, jnp.exp(log_multiplier), exponent, slope, settings=settings)
        rate = trial.bits / layer.weights.size
        distance = log_multiplier - before
        gradient = (rate - rate_before) / jnp.where(distance != 0, distance, 1)
        # Where a secant says nothing: half a bit for every factor of two.
        is_usable = jnp.isfinite(gradient) & (gradient < -0.02)
        gradient = jnp.where(is_usable, gradient, -0.5 / LN2)
        move = jnp.clip((rate_bits - rate) / gradient, -_MAX_STEP, _MAX_STEP)
        return log_multiplier, rate, log_multiplier + move

    start = jnp.log(multiplier)
    unknown = jnp.full_like(start, jnp.nan)
    return jnp.exp(counted_loop(0, _NUM_SECANTS, step, (start, unknown, start))[2])
