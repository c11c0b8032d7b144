"""Mean-field Gaussian posteriors, and how far they are from a prior.

A weight drawn from the posterior q instead of being fixed costs, net of the bits that its choice
returns, `KL(q || p)`. Quantized to cells of a step the divergence is that of the cell masses: it
tends to `KL(q || p)` from below as the step shrinks, by about `step^2/24 (1/s^2 - 1/t^2)` nats per
weight while the step is below s, and by far more beyond.

Everything but `kl_nats` runs on the host in float64.

Axes: `N` weights, `J` cells of a window.

Source: Hinton and van Camp, COLT 1993, doi:10.1145/168304.168306.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float
from scipy import special

from jaxcomp.priors.cells import upper_tail
from jaxcomp.priors.coding import scalar_steps
from jaxcomp.priors.families import Gaussian, Prior, PriorTree, StepTree, matched_priors
from jaxcomp.types import Params

LN2 = float(np.log(2.0))

_WINDOW_DEVIATIONS = 7.0
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
        totals.append(_kl_nats(jnp.asarray(mean), jnp.asarray(scale), own.scale))
    return jnp.sum(jnp.stack(totals))


@jax.jit
def _kl_nats(mean: Array, scale: Array, prior_scale: Array) -> Array:
    ratio = jnp.square(scale / prior_scale)
    return 0.5 * jnp.sum(ratio - 1 - jnp.log(ratio) + jnp.square(mean / prior_scale))


def discretized_kl(posterior: Posterior, prior: PriorTree, *, step: StepTree) -> CellDivergence:
    """Return divergence and entropy of a posterior on the cells of a step.

    Exact sums over cells where `scale < 32 step`; finer cells are taken together in powers of two
    until that holds, which moves the divergence by less than 2e-4 nats per weight where the
    posterior is not wider than the prior.

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
    kl, entropy, variance = np.sum(parts, axis=0)
    return CellDivergence(float(kl), float(entropy / LN2), float(np.sqrt(variance) / LN2))


def _leaf_divergence(
    mean: Float[np.ndarray, "N"], scale: Float[np.ndarray, "N"], prior: Prior, step: float
) -> Float[np.ndarray, "3"]:
    """Return divergence, entropy (nats) and variance of -log q of one leaf."""
    # Cells are joined in powers of two until a deviation spans fewer than 32 of them.
    bits = np.maximum(np.frexp(scale / step / 32.0)[1], 0)
    width = step * np.ldexp(1.0, bits)
    centre = np.rint(mean / width) * width
    reach = np.ceil(_WINDOW_DEVIATIONS * scale / width).astype(np.int64) + 1
    order = np.argsort(reach)
    total = np.zeros(3)
    for start in range(0, len(order), _WEIGHTS_PER_CHUNK):
        chosen = order[start : start + _WEIGHTS_PER_CHUNK]
        reach_here = int(reach[chosen[-1]])
        cells = np.arange(-reach_here, reach_here + 2) - 0.5
        edges = centre[chosen, None] + cells * width[chosen, None]
        z = (edges - mean[chosen, None]) / scale[chosen, None]
        mass = _interval_masses(z[:, :-1], z[:, 1:], lambda z: special.ndtr(-z))
        # The prior of joined cells is that of the middle one, as often as there are cells.
        middle = 0.5 * (edges[:, :-1] + edges[:, 1:])
        prior_mass = _prior_masses(middle, prior, step)
        log_mass = np.log(np.where(mass > 0, mass, 1.0))
        log_prior = np.log(np.maximum(prior_mass, 1e-300)) + bits[chosen, None] * LN2
        entropy = -np.sum(mass * log_mass, axis=1)
        total += (
            np.sum(mass * (log_mass - log_prior)),
            np.sum(entropy),
            np.sum(np.sum(mass * log_mass**2, axis=1) - entropy**2),
        )
        # The entropy of the cell is that of the joined one and of the place within it, uniform.
        total[1] += np.sum(bits[chosen]) * LN2
    return total


def _interval_masses(
    low: Float[np.ndarray, "N J"],
    high: Float[np.ndarray, "N J"],
    tail_fn: Callable[[np.ndarray], np.ndarray],
) -> Float[np.ndarray, "N J"]:
    """Return masses of intervals under a symmetric distribution, from its tails beyond |x|.

    Differences are taken on the side of zero where they do not cancel.
    """
    tail_low, tail_high = tail_fn(np.abs(low)), tail_fn(np.abs(high))
    beside = np.where(low > 0, tail_low - tail_high, tail_high - tail_low)
    return np.where((low <= 0) & (high > 0), 1 - tail_low - tail_high, beside)


def _prior_masses(
    centres: Float[np.ndarray, "..."], prior: Prior, step: float
) -> Float[np.ndarray, "..."]:
    low, high = centres - 0.5 * step, centres + 0.5 * step
    return _interval_masses(low, high, partial(upper_tail, prior))


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
        Bits, float64; minus infinity where q has no mass.

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
        mean, scale, leaf = (np.asarray(part, np.float64).ravel() for part in (mean, scale, leaf))
        centres = np.rint(leaf / width) * width
        low, high = (centres - 0.5 * width - mean) / scale, (centres + 0.5 * width - mean) / scale
        mass = _interval_masses(low, high, lambda z: special.ndtr(-z))
        prior_mass = _prior_masses(centres, own, width)
        with np.errstate(divide="ignore"):
            total += float(np.sum(np.log2(mass) - np.log2(prior_mass)))
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
                raise TypeError(f"the {name} of a posterior must be floating, got {leaf.dtype}.")
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
