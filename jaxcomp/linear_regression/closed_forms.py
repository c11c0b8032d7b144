"""Risks of least squares and of its compressed versions, in closed form.

Squared loss; every risk is in squared units of the outputs. With `b = e^{-2R/d}`, `a = 1 - b` and
R nats of the *whole* model, a Gaussian test channel sends

    What = m + a (W - m) + sqrt(a b) C^{1/2} N(0, I),

and the channels differ in C, in m and in what their codebook must know (`CHANNELS` says it). All
functions broadcast their arguments, are jitted and can be mapped; nothing here is drawn.

Sources: Bu, Gao, Zou, Veeravalli, doi:10.3390/e23101255, section 4 (the example, and the channels
centred at w*); moments of the inverse Wishart distribution: Mardia, Kent, Bibby, "Multivariate
Analysis" (1979), section 3.8.
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxcomp.linear_regression.problem import Setting, _as_floats, check_setting
from jaxcomp.numerics.precision import ROUNDING, in_float64, round_down, round_up

Channel = Literal["informed", "uninformed", "informed_zero_mean", "uninformed_zero_mean", "matched"]


class ChannelNote(NamedTuple):
    """What a channel is, in words for labels and tables."""

    label: str
    """A few words."""
    noise: str
    """The covariance C and the mean m of the formula above."""
    rate: str
    """What R measures."""
    codebook: str
    """What a decoder has to know beforehand to pay no more than R."""


CHANNELS: dict[Channel, ChannelNote] = {
    "informed": ChannelNote(
        "informed, m = w*",
        "C = s2 G^-1, m = w*",
        "I(W;What|X), exactly",
        "the true weights, and the inputs X of the sample at both ends",
    ),
    "uninformed": ChannelNote(
        "uninformed, m = w*",
        "C = s2 Sigma^-1/(n-d-1), m = w*",
        "an upper bound on I(W;What)",
        "the true weights and the input covariance",
    ),
    "informed_zero_mean": ChannelNote(
        "informed, m = 0",
        "C = s2 G^-1, m = 0",
        "I(W;What|X), exactly",
        "E[What], hence the true weights, and X at both ends",
    ),
    "uninformed_zero_mean": ChannelNote(
        "uninformed, m = 0",
        "C = s2 Sigma^-1/(n-d-1), m = 0",
        "an upper bound on I(W;What)",
        "E[What], hence the true weights, and the input covariance",
    ),
    "matched": ChannelNote(
        "matched to N(0, (B+V)/d Sigma^-1)",
        "C = (B+V)/d Sigma^-1, m = 0",
        "the mean length under the codebook N(0, a C), exactly",
        "the input covariance and the length B of the true weights, not their direction",
    ),
}


class Risks(NamedTuple):
    """Expected risks over samples, in squared units of the outputs."""

    empirical: Float[Array, "..."]
    """E L_S, on the examples that were learned from."""
    population: Float[Array, "..."]
    """E L_mu, on a new example."""
    generalization: Float[Array, "..."]
    """E[L_mu - L_S]."""


class ChannelRisks(NamedTuple):
    """Risks of a compressed solution, and what the compression costs."""

    rate_nats: Float[Array, "..."]
    """R of the whole model, as given; `CHANNELS[channel].rate` says what it measures."""
    codebook_rate_nats: Float[Array, "..."]
    """Mean length with a codebook centred at zero; R itself where that is the codebook meant."""
    distortion: Float[Array, "..."]
    """E[L_S(What) - L_S(W)]."""
    empirical: Float[Array, "..."]
    """E L_S(What)."""
    population: Float[Array, "..."]
    """E L_mu(What)."""
    generalization: Float[Array, "..."]
    """E[L_mu(What) - L_S(What)]."""


class DistortionRate(NamedTuple):
    """Bounds on `D(R)`, the least distortion of an uninformed compressor, rounded outward."""

    lower: Float[Array, "..."]
    """(d s2/n) e^{-2R/d}; attained if both ends know X, and R means I(W;What|X)."""
    achieved: Float[Array, "..."]
    """What the uninformed Gaussian channel with m = w* pays; at most `upper`."""
    upper: Float[Array, "..."]
    """V e^{-2R/d}."""


class BestRate(NamedTuple):
    """Where the population risk of a channel is least."""

    exists: Bool[Array, "..."]
    """Whether the least is at a rate above 0. If not, R = 0 wins: send nothing."""
    rate_nats: Float[Array, "..."]
    """R* of the whole model; 0 where no interior one exists; infinite if B is infinite."""
    population: Float[Array, "..."]
    """E L_mu there."""


def least_squares_risks(setting: Setting) -> Risks:
    """Return the risks of least squares itself.

    `E L_S = s2 (1 - d/n)`, `E L_mu = s2 + V` with `V = d s2/(n-d-1)`, hence the generalization
    error `s2 (d/n) (2 + (d+1)/(n-d-1))`.

    Args:
        setting: n > d + 1; fields broadcast.

    Returns:
        The risks.

    Raises:
        ValueError: if n <= d + 1, or another field is out of range.
    """
    check_setting(setting)
    return _least_squares_risks(setting)


def channel_risks(
    setting: Setting, rate_nats: Float[ArrayLike, "..."], *, channel: Channel
) -> ChannelRisks:
    """Return the risks of least squares sent through a Gaussian channel.

    Args:
        setting: n > d + 1; fields broadcast against the rates.
        rate_nats: R >= 0 of the whole model; infinity gives least squares back.
        channel: which one, static; `CHANNELS` says what each rate means and what its codebook
            must know.

    Returns:
        Rates, distortion and risks. The `codebook_rate_nats` of a channel with m = 0 adds
        `(a d/2) B/V` (uninformed) or `a n B/(2 s2)` (informed) nats, since its codebook no longer
        knows E[What].

    Raises:
        ValueError: on an unknown channel, or a setting that is out of range.
    """
    if channel not in CHANNELS:
        raise ValueError(f"channel must be one of {tuple(CHANNELS)}, got {channel!r}.")
    check_setting(setting)
    return _channel_risks(setting, jnp.asarray(rate_nats, float), channel=channel)


def shrinkage_risks(setting: Setting, rate_nats: Float[ArrayLike, "..."]) -> ChannelRisks:
    """Return the risks of `a W`, the noiseless mean of the channels with m = 0.

    It compresses nothing, hence its rates are infinite where a > 0; it is the control beside
    every channel of the same `a = 1 - e^{-2R/d}`, and always has the lower population risk.

    Args:
        setting: n > d + 1; fields broadcast against the rates.
        rate_nats: R >= 0, sets a.

    Returns:
        Rates, distortion and risks.

    Raises:
        ValueError: if the setting is out of range.
    """
    check_setting(setting)
    return _shrinkage_risks(setting, jnp.asarray(rate_nats, float))


def distortion_rate_bounds(setting: Setting, rate_nats: Float[ArrayLike, "..."]) -> DistortionRate:
    """Return what is known about the distortion-rate function of least squares.

    Distortion is the empirical risk paid, `(what-w)^T (G/n) (what-w)` at the minimiser w.

    Args:
        setting: n > d + 1; fields broadcast against the rates.
        rate_nats: R >= 0 of the whole model.

    Returns:
        A lower bound, what a channel achieves, and a simple upper bound.

    Raises:
        ValueError: if the setting is out of range.
    """
    check_setting(setting)
    return _distortion_rate_bounds(setting, rate_nats, dtype=jnp.result_type(float))


def best_rate(setting: Setting, *, channel: Channel) -> BestRate:
    """Return the rate at which the population risk of a channel is least.

    With m = w* the risk rises with the rate all the way: R = 0 wins (its codebook is the answer).
    With m = 0 it is U-shaped iff 2B > V: then `R* = (d/2) ln(2B/V)` with value
    `s2 + V - V^2/(4B)`, otherwise R = 0 wins. The matched channel is linear in e^{-2R/d}: R = 0
    wins if B <= V, and no finite rate does if B > V (the infimum is that of least squares).

    Args:
        setting: n > d + 1; fields broadcast.
        channel: which one, static.

    Returns:
        The best rate and its risk.

    Raises:
        ValueError: on an unknown channel, or a setting that is out of range.
    """
    if channel not in CHANNELS:
        raise ValueError(f"channel must be one of {tuple(CHANNELS)}, got {channel!r}.")
    check_setting(setting)
    return _best_rate(setting, channel=channel)


@jax.jit
def _least_squares_risks(setting: Setting) -> Risks:
    d, n, s2, _ = _as_floats(setting)
    # The gap from its own formula: the difference of two risks would lose digits at large n.
    gap = s2 * (d / n) * (2 + (d + 1) / (n - d - 1))
    return Risks(s2 * (1 - d / n), s2 + setting.excess_risk, gap)


@partial(jax.jit, static_argnames=("channel",))
def _channel_risks(setting: Setting, rate: Array, *, channel: Channel) -> ChannelRisks:
    d, n, s2, signal = _as_floats(setting)
    a, b = gain_and_loss(rate, d)
    V, overfit = setting.excess_risk, d * s2 / n
    knows_mean = channel in ("informed", "uninformed")
    B = jnp.zeros_like(signal) if knows_mean else signal
    extra = jnp.zeros_like(signal)
    if channel in ("informed", "informed_zero_mean"):
        distortion = b * b * B + b * overfit
        population = s2 + b * b * B + a * V
        generalization = a * (V + overfit)
        if not knows_mean:
            extra = a * n * B / (2 * s2)
    elif channel in ("uninformed", "uninformed_zero_mean"):
        distortion = b * b * B + b * (b * overfit + a * V)
        population = s2 + b * b * B + a * V
        generalization = a * a * V + (1 - b * b) * overfit
        if not knows_mean:
            extra = a * (d / 2) * B / V
    else:
        distortion = b * b * (B + overfit) + a * b * (B + V)
        population = s2 + a * V + b * B
        generalization = a * a * V + (1 - b * b) * overfit
    empirical = s2 - overfit + distortion
    parts = (rate, rate + extra, distortion, empirical, population, generalization)
    return ChannelRisks(*jnp.broadcast_arrays(*parts))


@jax.jit
def _shrinkage_risks(setting: Setting, rate: Array) -> ChannelRisks:
    d, n, s2, B = _as_floats(setting)
    a, b = gain_and_loss(rate, d)
    V, overfit = setting.excess_risk, d * s2 / n
    distortion = b * b * (B + overfit)
    population = s2 + a * a * V + b * b * B
    generalization = a * a * V + (1 - b * b) * overfit
    paid = jnp.where(a > 0, jnp.inf, 0.0)
    parts = (paid, paid, distortion, s2 - overfit + distortion, population, generalization)
    return ChannelRisks(*jnp.broadcast_arrays(*parts))


@in_float64("dtype")
def _distortion_rate_bounds(setting: Setting, rate: Array, *, dtype: jnp.dtype) -> DistortionRate:
    d, n, s2, _ = _as_floats(setting)
    a, b = gain_and_loss(rate, d)
    V, overfit = setting.excess_risk, d * s2 / n
    # What rounds the exponent rounds b by as much, relatively; b may be too small for a float.
    is_finite = jnp.isfinite(rate)
    rounding = ROUNDING * (1 + jnp.where(is_finite, rate, 0) / d)
    least = jnp.where(is_finite, jnp.finfo(b.dtype).tiny, 0)
    above = jnp.maximum(b, least) * (1 + rounding)
    bounds = (
        round_down(b * overfit * (1 - rounding), dtype),
        round_up(above * (b * overfit + a * V) * (1 + rounding), dtype),
        round_up(above * V * (1 + rounding), dtype),
    )
    return DistortionRate(*jnp.broadcast_arrays(*bounds))


@partial(jax.jit, static_argnames=("channel",))
def _best_rate(setting: Setting, *, channel: Channel) -> BestRate:
    d, _, s2, B = _as_floats(setting)
    V = setting.excess_risk
    d, s2, B, V = jnp.broadcast_arrays(d, s2, B, V)
    if channel in ("informed", "uninformed"):
        return BestRate(jnp.zeros(d.shape, bool), jnp.zeros_like(d), s2)
    if channel == "matched":
        rate = jnp.where(B > V, jnp.inf, 0.0)
        return BestRate(B > V, rate, s2 + jnp.minimum(B, V))
    exists = 2 * B > V
    guarded = jnp.where(exists, B, 1)
    rate = jnp.where(exists, d / 2 * jnp.log(2 * guarded / V), 0.0)
    population = jnp.where(exists, s2 + V - V * V / (4 * guarded), s2 + B)
    return BestRate(exists, rate, population)


def gain_and_loss(
    rate_nats: Float[Array, "..."], dim: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Return `a = 1 - e^{-2R/d}` and `b = e^{-2R/d}`, both to full relative precision."""
    exponent = -2 * rate_nats / dim
    return -jnp.expm1(exponent), jnp.exp(exponent)
