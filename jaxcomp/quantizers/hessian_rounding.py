"""Layers rounded with feedback for an entropy coder: the strongest quantizer after training.

What `jaxcomp.quantizers.feedback` leaves open is chosen here, for a multiplier that says how much
distortion a bit is worth, or for a number of bits:

- *Spacings* `a_i = c (p / L_ii)^exponent`, p the geometric mean of the pivots. With exponent 1 the
  rate at high rate is 0.2546 bit above the rate-distortion function for every S, which is
  `1/2 log2(AM(L_ii^2) / GM(L_ii^2))` less than with 0, one step. At low rate 0 or 1/2 may need
  fewer bits.
- *Steps*. At high rate a bit is worth `(ln 2 / 6) mean(g (L_ii a_i)^2)`; at low rate a finer grid
  wins, on which a bit is worth `slope` times as much.
- *Lengths* of symbols are those of the pass before, for classes of inputs; the first pass has those
  of plain rounding. *Reconstruction factors* are the least squares of the pass before.

Exponent and slope are those of least `distortion + multiplier * bits` on a sample of the outputs.

**Units.** With g the mean of squared loss gradients in an output, the distortion
`sum over outputs of g_o |e_o|^2` is twice the predicted rise of the loss in nats, as everywhere:
one multiplier, twice the nats that a bit is worth, serves all layers of a network. Squares of
weights and of inputs, and their products with g, have to be within the range of float32.

Axes: `G` groups, `I` inputs, `O` outputs, `J` classes, `T` symbols, `M` multipliers.

Sources: WaterSIC, arXiv:2603.04956 (exponent 1); Chou, Lookabaugh, Gray, IEEE Trans. ASSP 37,
1989 (entropy-constrained choices); and those of `jaxcomp.quantizers.feedback`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int16

from jaxcomp.numerics.checks import (
    check_count,
    check_finite,
    check_floating,
    check_positive,
    is_concrete,
)
from jaxcomp.numerics.transformations import always_compiled, counted_loop, without_derivative
from jaxcomp.numerics.units import LN2
from jaxcomp.quantizers.feedback import (
    NUM_FACTORS,
    Grid,
    Problem,
    factor_inputs,
    problem_of,
    round_with_feedback,
)
from jaxcomp.quantizers.input_classes import (
    Bits,
    bits_of,
    classes_by_magnitude,
    count_codes,
    length_bits,
)
from jaxcomp.quantizers.spacings import Spacing, mean_of_live, spacing_for

# Bits of c and of the reconstruction factors.
_NUMBER_BITS = 32.0 * (1 + NUM_FACTORS)
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


class RoundedLayer(NamedTuple):
    """A layer after rounding.

    Attributes:
        codes: z (G, I, O) int16, 0 for inputs that are always 0.
        spacing: of the inputs.
        factors: rho (3,): code z of input i stands for `a_i rho[min(|z|, 3) - 1] z`.
        errors: (G, O), damped squared error of every output: with S, damped, and without drift
            the diagonal of `(W - Q)^T S (W - Q)`; with drift less a constant.
        classes: (G, I), of the inputs.
        counts: (J, T), how often each code occurs in each class; z at place z + (T - 1)/2.
        bits: ideal lengths, with c and the factors among the tables.
        multiplier: (), distortion that a bit was worth.
        damping: (), what was added to the diagonal of S, over its mean.
        is_live: (G, I), which inputs are not always 0.
    """

    codes: Int16[Array, "G I O"]
    spacing: Spacing
    factors: Float[Array, "3"]
    errors: Float[Array, "G O"]
    classes: Int[Array, "G I"]
    counts: Int[Array, "J T"]
    bits: Bits
    multiplier: Float[Array, ""]
    damping: Float[Array, ""]
    is_live: Bool[Array, "G I"]

    @property
    def values(self) -> Float[Array, "G I O"]:
        """Q, the weights that the codes stand for."""
        return Grid(self.spacing.of_inputs, self.factors).values(self.codes)

    @property
    def rate_bits(self) -> Float[Array, ""]:
        """Bits per weight, everything counted."""
        return self.bits.total / self.codes.size


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


@without_derivative
@always_compiled
def round_layer(
    weights: Float[Array, "G I O"],
    second_moments: Float[Array, "G I I"],
    multiplier: Float[Array, ""] | float,
    *,
    cross_moments: Float[Array, "G I I"] | None = None,
    output_importance: Float[Array, "G O"] | None = None,
    damping: Float[Array, ""] | float = 1e-3,
    settings: RoundingSettings = RoundingSettings(),
) -> RoundedLayer:
    """Round a layer at a number of bits that a multiplier decides.

    Args:
        weights: W (G, I, O), floating: the weight of a layer by its `MatrixLayout.to_matrices`,
            (1, I, O) if it is dense.
        second_moments: S = E[xh xh^T] (G, I, I) of the inputs that the rounded layer will have,
            half of `layer_hessians`; summed over positions where a layer meets several of them in
            an example. The weights of an input that is always 0 become 0 and cost nothing.
        multiplier: distortion that a bit is worth, > 0. At R bits per weight and high rate it is
            about `2 ln 2` times the distortion per weight.
        cross_moments: C = E[xh x^T], where the layer was trained on other inputs x; by default
            they are the same.
        output_importance: g (G, O) >= 0, such as `output_importance` finds; by default 1.
        damping: what is added to the diagonal of S, over its mean, >= 0; 1e-4 to 1e-2. Where
            rounding leaves S indefinite it is ten times as much, or a hundred, ...
        settings: static.

    Returns:
        Codes, what they stand for, errors and bits. Constant to every derivative.

    Raises:
        TypeError: if an array is not floating.
        ValueError: on shapes that do not fit, NaN or infinity, negative importances or a
            multiplier that is not positive. Values are checked only outside `jit` and `vmap`.
    """
    check_positive("multiplier", multiplier)
    layer = _prepared(
        weights, second_moments, cross_moments, output_importance, damping, settings=settings
    )
    multiplier = jnp.asarray(multiplier, layer.weights.dtype)
    choice = _choose(layer, multiplier, settings=settings)
    return _round(layer, multiplier, *choice, settings=settings)


@without_derivative
@always_compiled
def round_layer_to_rate(
    weights: Float[Array, "G I O"],
    second_moments: Float[Array, "G I I"],
    rate_bits: Float[Array, ""] | float,
    *,
    cross_moments: Float[Array, "G I I"] | None = None,
    output_importance: Float[Array, "G O"] | None = None,
    damping: Float[Array, ""] | float = 1e-3,
    settings: RoundingSettings = RoundingSettings(),
) -> RoundedLayer:
    """Round a layer to about so many bits per weight, everything counted.

    The multiplier is found by secants on a sample of the outputs, so that the rate is met to a
    percent or two.

    Args:
        weights: see `round_layer`, and so the others.
        second_moments: S (G, I, I).
        rate_bits: bits per weight, > 0; weights of inputs that are always 0 are counted.
        cross_moments: C (G, I, I).
        output_importance: g (G, O).
        damping: over the mean diagonal.
        settings: static.

    Returns:
        As `round_layer`.

    Raises:
        TypeError: as `round_layer`.
        ValueError: as `round_layer`, and unless `rate_bits` is positive.
    """
    check_positive("rate_bits", rate_bits)
    layer = _prepared(
        weights, second_moments, cross_moments, output_importance, damping, settings=settings
    )
    rate = jnp.asarray(rate_bits, layer.weights.dtype)
    # First with a choice in the middle, then with that of least cost there.
    middle = tuple(
        jnp.asarray(values[len(values) // 2], layer.weights.dtype)
        for values in (settings.exponents, settings.slopes)
    )
    multiplier = _meet_rate(layer, _first_multiplier(layer, rate), rate, *middle, settings=settings)
    choice = _choose(layer, multiplier, settings=settings)
    multiplier = _meet_rate(layer, multiplier, rate, *choice, settings=settings)
    return _round(layer, multiplier, *choice, settings=settings)


@without_derivative
@always_compiled
def layer_curve(
    weights: Float[Array, "G I O"],
    second_moments: Float[Array, "G I I"],
    multipliers: Float[Array, " M"],
    *,
    cross_moments: Float[Array, "G I I"] | None = None,
    output_importance: Float[Array, "G O"] | None = None,
    damping: Float[Array, ""] | float = 1e-3,
    settings: RoundingSettings = RoundingSettings(),
) -> LayerCurve:
    """Return rate and distortion of a layer at several multipliers, from a sample of its outputs.

    Args:
        weights: see `round_layer`, and so the others.
        second_moments: S (G, I, I).
        multipliers: (M,), > 0.
        cross_moments: C (G, I, I).
        output_importance: g (G, O).
        damping: over the mean diagonal.
        settings: static.

    Returns:
        The operating points.

    Raises:
        TypeError: as `round_layer`.
        ValueError: as `round_layer`.
    """
    check_positive("multipliers", multipliers)
    layer = _prepared(
        weights, second_moments, cross_moments, output_importance, damping, settings=settings
    )
    return _curve(layer, jnp.asarray(multipliers, layer.weights.dtype), settings=settings)


class _Layer(NamedTuple):
    """A layer, checked and decomposed, and a sample of its outputs."""

    weights: Float[Array, "G I O"]
    problem: Problem

    def outputs(self, step: int) -> "_Layer":
        return _Layer(self.weights[..., ::step], self.problem.outputs(step))

    @property
    def sampled(self) -> "_Layer":
        return self.outputs(_sample_step(self.weights.shape))


class _Trial(NamedTuple):
    """What a layer would cost and lose with one exponent and slope, from a sample."""

    distortion: Float[Array, ""]
    bits: Float[Array, ""]


def _prepared(
    weights: Any,
    second_moments: Any,
    cross_moments: Any,
    output_importance: Any,
    damping: Any,
    *,
    settings: RoundingSettings,
) -> _Layer:
    """Check a layer and decompose its inputs."""
    if not isinstance(settings, RoundingSettings):
        raise TypeError(f"settings must be RoundingSettings, got {type(settings).__name__}.")
    weights = check_floating(weights, "weights")
    if weights.ndim != 3 or weights.size == 0:
        raise ValueError(
            "weights must be (groups, inputs, outputs) with at least one of each, (1, inputs, "
            f"outputs) for a dense layer, got shape {weights.shape}."
        )
    dtype = jnp.promote_types(weights.dtype, jnp.float32)
    num_groups, num_inputs, num_outputs = weights.shape
    if output_importance is None:
        output_importance = jnp.ones((num_groups, num_outputs), dtype)
    arrays = {"weights": weights}
    square = (num_groups, num_inputs, num_inputs)
    for name, value, shape in (
        ("second_moments", second_moments, square),
        ("cross_moments", cross_moments, square),
        ("output_importance", output_importance, (num_groups, num_outputs)),
    ):
        if value is not None:
            value = check_floating(value, name)
            if value.shape != shape:
                raise ValueError(
                    f"{name} must have shape {shape} for weights of shape {weights.shape}, got "
                    f"{value.shape}."
                )
            arrays[name] = value
    for name, value in arrays.items():
        check_finite(value, name)
    _check_importance(arrays["output_importance"])
    if is_concrete(damping) and not (np.isfinite(damping) and damping >= 0):
        raise ValueError(f"damping must be finite and at least 0, got {damping}.")
    arrays = {name: value.astype(dtype) for name, value in arrays.items()}
    factor = factor_inputs(arrays["second_moments"], damping)
    problem = problem_of(
        arrays["weights"], factor, arrays.get("cross_moments"), arrays["output_importance"]
    )
    return _Layer(arrays["weights"], problem)


def _check_importance(output_importance: Float[Array, "G O"]) -> None:
    if not is_concrete(output_importance):
        return
    least = float(jnp.min(output_importance))
    if least < 0:
        raise ValueError(f"output_importance must be at least 0, got {least:g}.")
    if not float(jnp.max(output_importance)) > 0:
        raise ValueError("output_importance must not be 0 for all outputs.")


def _mean_importance(layer: _Layer) -> Float[Array, ""]:
    return jnp.mean(layer.problem.output_importance)


# --- Passes -----------------------------------------------------------------------------------


def _num_classes(shape: tuple[int, ...], settings: RoundingSettings) -> int:
    if settings.num_classes is not None:
        return min(settings.num_classes, shape[0] * shape[1])
    most = min(_MAX_CLASSES, shape[0] * shape[1])
    return int(np.clip(int(np.prod(shape)) // _CLASS_SIZE, 1, most))


def _sample_step(shape: tuple[int, ...]) -> int:
    """Return how many outputs stand for one of a sample."""
    most = int(np.prod(shape)) // _LEAST_SAMPLE
    return int(np.clip(most, 1, min(_SAMPLED, shape[-1])))


def _passes(
    layer: _Layer,
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
        *_, factors, classes, counts = state
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


@partial(jax.jit, static_argnames=("settings",))
def _round(
    layer: _Layer,
    multiplier: Float[Array, ""],
    exponent: Float[Array, ""],
    slope: Float[Array, ""],
    *,
    settings: RoundingSettings,
) -> RoundedLayer:
    factor = layer.problem.factor
    spacing = spacing_for(factor, _mean_importance(layer), multiplier, exponent, slope)
    codes, errors, factors, classes, counts = _passes(
        layer,
        spacing,
        multiplier,
        num_classes=_num_classes(layer.weights.shape, settings),
        settings=settings,
    )
    bits = bits_of(counts, classes, spacing.levels, factor.is_live)
    bits = bits._replace(tables=bits.tables + _NUMBER_BITS)
    # Whoever sees a factor that could not be found sees it in the errors.
    return RoundedLayer(
        codes,
        spacing,
        factors,
        errors,
        classes,
        counts,
        bits,
        multiplier,
        factor.damping,
        factor.is_live,
    )


# --- Choices on a sample ------------------------------------------------------------------------


def _trial(
    layer: _Layer,
    multiplier: Float[Array, ""],
    exponent: Float[Array, ""],
    slope: Float[Array, ""],
    *,
    settings: RoundingSettings,
) -> _Trial:
    """Round a sample of a layer's outputs; return what all of them would cost and lose."""
    sample, factor = layer.sampled, layer.problem.factor
    spacing = spacing_for(factor, _mean_importance(layer), multiplier, exponent, slope)
    _, errors, _, classes, counts = _passes(
        sample,
        spacing,
        multiplier,
        num_classes=_num_classes(layer.weights.shape, settings),
        settings=settings,
    )
    num_times = layer.weights.shape[-1] / sample.weights.shape[-1]
    bits = bits_of(counts, classes, spacing.levels, factor.is_live, num_times=num_times)
    own = sample.problem.output_importance
    mass, of_sample = jnp.sum(layer.problem.output_importance), jnp.sum(own)
    share = jnp.where(of_sample > 0, mass / jnp.where(of_sample > 0, of_sample, 1), num_times)
    return _Trial(share * jnp.sum(own * errors), bits.total.astype(errors.dtype) + _NUMBER_BITS)


def _best(
    layer: _Layer, multiplier: Float[Array, ""], *, settings: RoundingSettings
) -> tuple[Array, Array, _Trial]:
    """Return the exponent and slope of least cost, and what they cost and lose."""
    pairs = np.array([(e, s) for e in settings.exponents for s in settings.slopes])
    exponents, slopes = (jnp.asarray(pairs[:, k], multiplier.dtype) for k in (0, 1))
    trials = lax.map(
        lambda pair: _trial(layer, multiplier, *pair, settings=settings), (exponents, slopes)
    )
    best = jnp.argmin(trials.distortion + multiplier * trials.bits)
    return exponents[best], slopes[best], jax.tree.map(lambda part: part[best], trials)


@partial(jax.jit, static_argnames=("settings",))
def _choose(
    layer: _Layer, multiplier: Float[Array, ""], *, settings: RoundingSettings
) -> tuple[Array, Array]:
    return _best(layer, multiplier, settings=settings)[:2]


@partial(jax.jit, static_argnames=("settings",))
def _curve(
    layer: _Layer, multipliers: Float[Array, " M"], *, settings: RoundingSettings
) -> LayerCurve:
    def point(multiplier: Array) -> LayerCurve:
        exponent, slope, trial = _best(layer, multiplier, settings=settings)
        rate = trial.bits / layer.weights.size
        return LayerCurve(multiplier, rate, trial.distortion, exponent, slope)

    return lax.map(point, multipliers)


@jax.jit
def _first_multiplier(layer: _Layer, rate_bits: Float[Array, ""]) -> Float[Array, ""]:
    """Return the multiplier of Gaussian weights at high rate: `2 ln 2` distortions of a weight."""
    factor = layer.problem.factor
    pivots = jnp.where(factor.is_live, factor.pivots, 1)
    mean_pivot = jnp.exp2(mean_of_live(jnp.log2(pivots), factor.is_live))
    square = mean_of_live(jnp.mean(layer.weights**2, axis=-1), factor.is_live)
    square = jnp.where(square > 0, square, 1)
    return 2 * LN2 * _mean_importance(layer) * square * mean_pivot**2 * jnp.exp2(-2 * rate_bits)


@partial(jax.jit, static_argnames=("settings",))
def _meet_rate(
    layer: _Layer,
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
