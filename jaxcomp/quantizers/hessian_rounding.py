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

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int16

from jaxcomp.numerics.checks import (
    check_finite,
    check_floating,
    check_positive,
    is_concrete,
)
from jaxcomp.numerics.transformations import always_compiled, without_derivative
from jaxcomp.quantizers.feedback import Grid, factor_inputs, problem_of
from jaxcomp.quantizers.histograms import accumulation_dtype
from jaxcomp.quantizers.input_classes import Bits, bits_of
from jaxcomp.quantizers.rounding_passes import (
    DEFAULT_SETTINGS,
    NUMBER_BITS,
    Layer,
    LayerCurve,
    RoundingSettings,
    choose_pair,
    curve_of_sample,
    first_multiplier,
    meet_rate,
    num_classes_of,
    passes,
)
from jaxcomp.quantizers.spacings import Spacing, spacing_for


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
    sharing: Int[Array, "G I"] | None = None,
    settings: RoundingSettings = DEFAULT_SETTINGS,
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
        sharing: from 0 to G I - 1, equal for inputs that have one spacing, such as those of a
            channel at all positions of a convolution; by default each has its own. Bits of
            spacings are counted for every input all the same.
        settings: static.

    Returns:
        Codes, what they stand for, errors and bits. Constant to every derivative.

    Raises:
        TypeError: if an array is not floating.
        ValueError: on shapes that do not fit, NaN or infinity, negative importances, an S with
            eigenvalues far below 0 or a multiplier that is not positive. Values are checked only
            outside `jit` and `vmap`.
    """
    check_positive("multiplier", multiplier)
    layer = _prepared(
        weights,
        second_moments,
        cross_moments,
        output_importance,
        damping,
        sharing,
        settings=settings,
    )
    multiplier = jnp.asarray(multiplier, layer.weights.dtype)
    compiled, pairs = settings.without_choices, _pairs(layer, settings)
    choice = choose_pair(layer, multiplier, pairs, settings=compiled)
    return _round(layer, multiplier, *choice, settings=compiled)


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
    sharing: Int[Array, "G I"] | None = None,
    settings: RoundingSettings = DEFAULT_SETTINGS,
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
        sharing: (G, I).
        settings: static.

    Returns:
        As `round_layer`.

    Raises:
        TypeError: as `round_layer`.
        ValueError: as `round_layer`, and unless `rate_bits` is positive.
    """
    check_positive("rate_bits", rate_bits)
    layer = _prepared(
        weights,
        second_moments,
        cross_moments,
        output_importance,
        damping,
        sharing,
        settings=settings,
    )
    rate = jnp.asarray(rate_bits, layer.weights.dtype)
    compiled, pairs = settings.without_choices, _pairs(layer, settings)
    multiplier = first_multiplier(layer, rate)
    # First with a pair in the middle, then with that of least cost there.
    middle = pairs[pairs.shape[0] // 2]
    multiplier = meet_rate(layer, multiplier, rate, middle[0], middle[1], settings=compiled)
    choice = choose_pair(layer, multiplier, pairs, settings=compiled)
    multiplier = meet_rate(layer, multiplier, rate, *choice, settings=compiled)
    return _round(layer, multiplier, *choice, settings=compiled)


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
    sharing: Int[Array, "G I"] | None = None,
    settings: RoundingSettings = DEFAULT_SETTINGS,
) -> LayerCurve:
    """Return rate and distortion of a layer at several multipliers, from a sample of its outputs.

    Args:
        weights: see `round_layer`, and so the others.
        second_moments: S (G, I, I).
        multipliers: (M,), > 0.
        cross_moments: C (G, I, I).
        output_importance: g (G, O).
        damping: over the mean diagonal.
        sharing: (G, I).
        settings: static.

    Returns:
        The operating points.

    Raises:
        TypeError: as `round_layer`.
        ValueError: as `round_layer`.
    """
    check_positive("multipliers", multipliers)
    layer = _prepared(
        weights,
        second_moments,
        cross_moments,
        output_importance,
        damping,
        sharing,
        settings=settings,
    )
    multipliers = jnp.asarray(multipliers, layer.weights.dtype)
    compiled = settings.without_choices
    return curve_of_sample(layer, multipliers, _pairs(layer, settings), settings=compiled)


def _pairs(layer: "Layer", settings: RoundingSettings) -> Float[Array, "pairs 2"]:
    return jnp.asarray(settings.pairs, layer.weights.dtype)


def _prepared(
    weights: Any,
    second_moments: Any,
    cross_moments: Any,
    output_importance: Any,
    damping: Any,
    sharing: Any,
    *,
    settings: RoundingSettings,
) -> Layer:
    """Check a layer and decompose its inputs."""
    if not isinstance(settings, RoundingSettings):
        raise TypeError(f"settings must be RoundingSettings, got {type(settings).__name__}.")
    weights = check_floating(weights, "weights")
    if weights.ndim != 3 or weights.size == 0:
        raise ValueError(
            "weights must be (groups, inputs, outputs) with at least one of each, (1, inputs, "
            f"outputs) for a dense layer, got shape {weights.shape}."
        )
    dtype = accumulation_dtype(weights.dtype)
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
    if sharing is not None:
        sharing = jnp.asarray(sharing)
        if sharing.shape != weights.shape[:2] or not jnp.issubdtype(sharing.dtype, jnp.integer):
            raise ValueError(
                f"sharing must be integers of shape {weights.shape[:2]}, got {sharing.dtype} of "
                f"shape {sharing.shape}."
            )
    _check_importance(arrays["output_importance"])
    if is_concrete(damping) and not (np.isfinite(damping) and damping >= 0):
        raise ValueError(f"damping must be finite and at least 0, got {damping}.")
    arrays = {name: value.astype(dtype) for name, value in arrays.items()}
    factor = factor_inputs(arrays["second_moments"], damping)
    _check_definite(arrays["second_moments"], factor.damping, damping)
    problem = problem_of(
        arrays["weights"], factor, arrays.get("cross_moments"), arrays["output_importance"]
    )
    return Layer(arrays["weights"], problem, sharing)


def _check_definite(
    second_moments: Float[Array, "G I I"], found: Float[Array, ""], damping: Any
) -> None:
    """Refuse a matrix that no rounding error made indefinite."""
    if not all(is_concrete(part) for part in (second_moments, found, damping)):
        return
    least = float(jnp.min(jnp.diagonal(second_moments, axis1=-2, axis2=-1)))
    if least < 0 or not float(found) <= max(1, float(damping)):
        raise ValueError(
            "second_moments must be positive semi-definite, got a matrix with an eigenvalue far "
            "below 0."
        )


def _check_importance(output_importance: Float[Array, "G O"]) -> None:
    if not is_concrete(output_importance):
        return
    least = float(jnp.min(output_importance))
    if least < 0:
        raise ValueError(f"output_importance must be at least 0, got {least:g}.")
    if not float(jnp.max(output_importance)) > 0:
        raise ValueError("output_importance must not be 0 for all outputs.")


@partial(jax.jit, static_argnames=("settings",))
def _round(
    layer: Layer,
    multiplier: Float[Array, ""],
    exponent: Float[Array, ""],
    slope: Float[Array, ""],
    *,
    settings: RoundingSettings,
) -> RoundedLayer:
    factor = layer.problem.factor
    spacing = spacing_for(factor, layer.mean_importance, multiplier, exponent, slope, layer.sharing)
    codes, errors, factors, classes, counts = passes(
        layer,
        spacing,
        multiplier,
        num_classes=num_classes_of(layer.weights.shape, settings),
        settings=settings,
    )
    bits = bits_of(counts, classes, spacing.levels, factor.is_live)
    bits = bits._replace(tables=bits.tables + NUMBER_BITS)
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
