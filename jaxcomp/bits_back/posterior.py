"""Mean-field Gaussian posteriors, and how far they are from a prior.

A weight drawn from the posterior q instead of being fixed costs, net of the bits that its choice
returns, `KL(q || p)`. Quantized to cells of a step the divergence is that of the cell masses: it
tends to `KL(q || p)` from below as the step shrinks, by about `step^2/24 (1/s^2 - 1/t^2)` nats per
weight while the step is below s, and by far more beyond.

Everything but `kl_nats` runs on the host in float64.

Axes: `N` weights, `J` cells of a window.

Source: Hinton and van Camp, COLT 1993, doi:10.1145/168304.168306.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float
from scipy import special

from jaxcomp.coding.ans import scalar_steps
from jaxcomp.coding.distributions import (
    Gaussian,
    Prior,
    PriorTree,
    ScaleMixture,
    SpikeAndSlab,
    StepTree,
    matched_priors,
)
from jaxcomp.coding.grid import leaf_dtype, nearest_multiple
from jaxcomp.coding.lengths import log_cell_mass, log_gaussian_cell
from jaxcomp.numerics.precision import in_float64, narrow, result_dtype
from jaxcomp.numerics.units import LN2
from jaxcomp.types import Params

_WINDOW_DEVIATIONS = 7.0
# A component at least so many joined cells wide is smooth; one has ended after so many deviations.
_LEAST_WIDTHS = 4
_MARK_DEVIATIONS = 14
_WEIGHTS_PER_CHUNK = 4096


class Posterior(NamedTuple):
    """Independent Gaussians, one for each weight."""

    mean: Params
    """Pytree of floating arrays."""
    scale: Params
    """Standard deviations, positive, shaped like `mean`."""


class CellDivergence(NamedTuple):
    """Divergence and entropy of a posterior on the cells of a step; totals over all weights."""

    kl_nats: float
    """`sum q log(q / p)` over cells: the mean net cost of a draw."""
    entropy_bits: float
    """`-sum q log2 q`: the mean number of payload bits that a draw takes."""
    entropy_deviation_bits: float
    """Standard deviation of `-log2 q` of a draw."""


def kl_nats(posterior: Posterior, prior: PriorTree) -> Float[Array, ""]:
    """Return `KL(q || p)` for Gaussian priors, summed over all weights.

    `sum log(t / s) + (s^2 + m^2) / (2 t^2) - 1/2`, without cells.

    Args:
        posterior: mean and scale; may be traced.
        prior: `Gaussian`, one for all weights or one per leaf; may be traced.

    Returns:
        Nats.

    Raises:
        TypeError: if a prior is not Gaussian: `discretized_kl` takes any.
        ValueError: if known scales are not positive, or shapes do not fit.
    """
    check_posterior(posterior)
    totals = []
    leaves = jax.tree.leaves(posterior.mean), jax.tree.leaves(posterior.scale)
    for mean, scale, own in zip(*leaves, matched_priors(prior, posterior.mean), strict=True):
        if not isinstance(own, Gaussian):
            raise TypeError(
                f"kl_nats has a closed form for Gaussian priors only, got {type(own).__name__}; "
                "use discretized_kl."
            )
        totals.append(_kl_nats(mean, scale, own.scale, result=result_dtype(mean, scale)))
    return sum(totals[1:], totals[0]) if totals else jnp.zeros(())


@in_float64("result")
def _kl_nats(mean: Array, scale: Array, prior_scale: Array, *, result: Any) -> Array:
    # Ratios by their logarithms: squares of ratios are out of range before the divergence is.
    log_ratio = jnp.log(scale) - jnp.log(prior_scale)
    squares = jnp.square(mean / prior_scale)
    total = 0.5 * jnp.sum(jnp.expm1(2 * log_ratio) - 2 * log_ratio + squares)
    return narrow(total, result)


def discretized_kl(posterior: Posterior, prior: PriorTree, *, step: StepTree) -> CellDivergence:
    """Return divergence and entropy of a posterior on the cells of a step.

    Exact sums over cells where `scale < 32 step`; finer cells are taken together in powers of two
    until that holds, with Sheppard's corrections: off by at most 1e-7 nats per weight and 3e-6 of
    the divergence (for a Laplace prior that is narrow against the posterior 3e-4 of it, since its
    kink is smeared). A spike, or a component of a mixture that is narrow against joined cells, is
    summed over its own cells. No mass has a floor.

    Args:
        posterior: with known values.
        prior: any; one for all weights or one per leaf.
        step: positive; one for all or one per leaf.

    Returns:
        Totals over all weights, float64.

    Raises:
        TypeError: if a prior is none.
        ValueError: if the posterior, the steps or the priors are out of range or do not fit.
    """
    check_posterior(posterior)
    priors, steps = _host_priors(prior, posterior), scalar_steps(step, posterior.mean)
    pairs = zip(jax.tree.leaves(posterior.mean), jax.tree.leaves(posterior.scale), strict=True)
    parts = [
        _leaf_divergence(
            np.asarray(mean, np.float64).ravel(), np.asarray(scale, np.float64).ravel(), own, width
        )
        for (mean, scale), own, width in zip(pairs, priors, steps, strict=True)
    ]
    kl, entropy, variance = sum(parts, np.zeros(3))
    return CellDivergence(float(kl), float(entropy / LN2), float(np.sqrt(variance) / LN2))


def _leaf_divergence(
    mean: Float[np.ndarray, "N"], scale: Float[np.ndarray, "N"], prior: Prior, step: float
) -> Float[np.ndarray, "3"]:
    """Return divergence, entropy (nats) and variance of -log q of one leaf."""
    # Cells are joined in powers of two until a deviation spans fewer than 32 of them.
    bits = np.maximum(np.frexp(scale / step / 32.0)[1], 0)
    total = np.zeros(3)
    for own_bits in np.unique(bits).tolist():
        own = np.flatnonzero(bits == own_bits)
        own = own[np.argsort(scale[own])]
        for start in range(0, len(own), _WEIGHTS_PER_CHUNK):
            chosen = own[start : start + _WEIGHTS_PER_CHUNK]
            total += _chunk_divergence(mean[chosen], scale[chosen], prior, step, own_bits)
    return total


def _chunk_divergence(
    mean: Float[np.ndarray, "N"],
    scale: Float[np.ndarray, "N"],
    prior: Prior,
    step: float,
    bits: int,
) -> Float[np.ndarray, "3"]:
    """Return the same of weights with equally many cells, 2^bits, in a joined one."""
    width = float(np.ldexp(step, bits))
    reach = int(np.ceil(_WINDOW_DEVIATIONS * scale.max() / width)) + 1
    mean, scale = mean[:, None], scale[:, None]
    centres = np.rint(mean / width) * width + np.arange(-reach, reach + 1) * width
    low, high = centres - 0.5 * width, centres + 0.5 * width
    mass = _interval_masses((low - mean) / scale, (high - mean) / scale)
    log_mass = np.log(np.where(mass > 0, mass, 1.0))
    entropy = -np.sum(mass * log_mass, axis=1)
    variance = np.sum(mass * log_mass**2, axis=1) - entropy**2

    # The prior of a joined cell is that of a cell in its middle, as often as there are cells.
    smooth = _smooth_part(prior, width) if bits else prior
    log_prior = log_cell_mass(centres, smooth, step) + bits * LN2
    kl = np.sum(mass * (log_mass - log_prior))
    # Both sums are those over cells up to the square of the width; Sheppard's corrections: the
    # curvature of log p, averaged under q, and that of log q, which is -1/s^2.
    excess = (1 - 4.0**-bits) / 24
    kl += excess * np.sum(mass[:, 1:-1] * np.diff(log_prior, 2, axis=1))
    narrowing = excess * np.sum((width / scale) ** 2) if bits else 0.0
    # What a prior has within less than a joined cell is added for the very cells that have it.
    kl += narrowing + _narrow_part(mean, scale, prior, smooth, step)
    # The entropy of the cell is that of the joined one and of the place within it, uniform.
    return np.array([kl, np.sum(entropy) + len(mean) * bits * LN2 - narrowing, np.sum(variance)])


def _smooth_part(prior: Any, width: float) -> Any:
    """Return the part of a prior that hardly bends within a joined cell; its mass may be below 1.

    A spike is left out, and so are components of a mixture that are narrow against the cell, but
    for the widest.
    """
    match prior:
        case SpikeAndSlab(spike, scale):
            slab: Any = np.reshape(1 - spike, (1,)), np.reshape(scale, (1,))
            return ScaleMixture(*slab)
        case ScaleMixture(shares, scales):
            is_wide = scales >= min(_LEAST_WIDTHS * width, np.max(scales))
            return ScaleMixture(shares[is_wide], scales[is_wide])
    return prior


def _narrow_part(
    mean: Float[np.ndarray, "N 1"],
    scale: Float[np.ndarray, "N 1"],
    prior: Any,
    smooth: Any,
    step: float,
) -> float:
    """Return `-sum q log(p / smooth p)`, from the cells around zero where the two differ."""
    match prior:
        case SpikeAndSlab():
            ends = np.array([0.5])
        case ScaleMixture(_, scales) if len(smooth.scales) < len(scales):
            # Sixteenths of the deviation of every component left out, at the edges of cells.
            left_out = scales[~np.isin(scales, smooth.scales)]
            marks = np.outer(left_out / step, np.arange(0, _MARK_DEVIATIONS, 1 / 16))
            ends = np.unique(np.floor(marks) + 0.5)
        case _:
            return 0.0
    edges = np.concatenate([-ends[::-1], ends])
    middle = 0.5 * (edges[1:] + edges[:-1]) * step
    log_ratio = log_cell_mass(middle, prior, step) - log_cell_mass(middle, smooth, step)
    z = (edges * step - mean) / scale
    return -float(np.sum(_interval_masses(z[:, :-1], z[:, 1:]) * log_ratio))


def _interval_masses(
    low: Float[np.ndarray, "N J"], high: Float[np.ndarray, "N J"]
) -> Float[np.ndarray, "N J"]:
    """Return masses of intervals under the standard Gaussian.

    Differences are taken on the side of zero where they do not cancel.
    """
    tail_low, tail_high = special.ndtr(-np.abs(low)), special.ndtr(-np.abs(high))
    beside = np.where(low > 0, tail_low - tail_high, tail_high - tail_low)
    return np.where((low <= 0) & (high > 0), 1 - tail_low - tail_high, beside)


def log_ratio_bits(
    posterior: Posterior, prior: PriorTree, weights: Params, *, step: StepTree
) -> float:
    """Return `sum log2 q(w) / p(w)` over the cells of given weights: the net cost of this draw.

    Args:
        posterior: q.
        prior: p; one for all weights or one per leaf.
        weights: multiples of the step, shaped like the posterior's mean.
        step: positive; one for all or one per leaf.

    Returns:
        Bits, float64, from logarithms of the masses: right however far out weights lie.

    Raises:
        ValueError: if something is out of range or does not fit.
    """
    check_posterior(posterior)
    priors, steps = _host_priors(prior, posterior), scalar_steps(step, posterior.mean)
    leaves = zip(
        *(jax.tree.leaves(part) for part in (posterior.mean, posterior.scale, weights)), strict=True
    )
    total = 0.0
    for (mean, scale, leaf), own, width in zip(leaves, priors, steps, strict=True):
        dtype = leaf_dtype(mean)
        mean, scale, leaf = (np.asarray(part, np.float64).ravel() for part in (mean, scale, leaf))
        centres = nearest_multiple(leaf, width, dtype=dtype)
        log_ratio = log_gaussian_cell(centres - mean, scale, width)
        log_ratio -= log_cell_mass(centres, own, width)
        total += float(np.sum(log_ratio)) / LN2
    return total


def _host_priors(prior: PriorTree, posterior: Posterior) -> list[Prior]:
    """Return checked priors of float64 NumPy fields: with others sums would be float32 ones."""
    result = []
    for own in matched_priors(prior, posterior.mean):
        fields: list[Any] = [np.asarray(field, np.float64) for field in own]
        result.append(type(own)(*fields))
    return result


def check_posterior(posterior: Any) -> None:
    """Refuse what is no posterior, or known values out of range."""
    if not isinstance(posterior, Posterior):
        raise TypeError(f"posterior must be a Posterior, got {type(posterior).__name__}.")
    means, structure = jax.tree.flatten(posterior.mean)
    scales, other = jax.tree.flatten(posterior.scale)
    if structure != other or any(
        np.shape(mean) != np.shape(scale) for mean, scale in zip(means, scales, strict=True)
    ):
        raise ValueError("mean and scale of a posterior must have the same leaves and shapes.")
    for name, leaves in (("mean", means), ("scale", scales)):
        for leaf in leaves:
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
                raise TypeError(
                    f"the {name} of a posterior must be floating, got {jnp.result_type(leaf)}."
                )
            if isinstance(leaf, Tracer):
                continue
            values = np.asarray(leaf)
            if not np.all(np.isfinite(values)):
                raise ValueError(f"the {name} of a posterior must be finite, got NaN or infinity.")
            if name == "scale" and not np.all(values > 0):
                raise ValueError(
                    f"the scale of a posterior must be positive, got {float(values.min()):g}; code "
                    "a weight without spread under the prior alone."
                )
