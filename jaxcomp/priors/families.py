"""Priors of network weights, and the length of the code that each of them is.

A weight is rounded to the cell `[(k - 1/2) step, (k + 1/2) step]`, and the cell is coded under a
prior with distribution function F, so it costs `-log2(F(upper) - F(lower))` bits. For a step well
below the prior's width that is `-log2(p(w) step)`: a Gaussian prior makes an L2 penalty a code
length up to a constant, a Laplace prior an L1 penalty, and a spike at zero a stream that really
gets shorter by zeros.

All priors have mean zero and a density that falls with the distance from it. One prior may serve
all weights, or each leaf of a pytree has its own; the fields are arrays, so they may be traced.

Axes: `C` components of a mixture, `Q` quadrature nodes.

Sources: Hinton and van Camp, "Keeping the neural networks simple by minimizing the description
length of the weights", COLT 1993, doi:10.1145/168304.168306; Blundell et al., ICML 2015,
arXiv:1505.05424, for the mixture of two scales.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.scipy.special import log_ndtr, logsumexp, ndtr
from jaxtyping import Array, Float

from jaxcomp.types import Params

LN2 = math.log(2.0)


class Gaussian(NamedTuple):
    """`N(0, scale^2)`: the prior of an L2 penalty."""

    scale: Float[Array, ""] | float
    """Standard deviation, positive."""


class Laplace(NamedTuple):
    """Density `exp(-|w| / scale) / (2 scale)`: the prior of an L1 penalty."""

    scale: Float[Array, ""] | float
    """Mean of |w|, positive."""


class SpikeAndSlab(NamedTuple):
    """A point mass at zero, and a Gaussian for the rest."""

    spike: Float[Array, ""] | float
    """Probability of the point mass, in (0, 1)."""
    scale: Float[Array, ""] | float
    """Standard deviation of the Gaussian, positive."""


class ScaleMixture(NamedTuple):
    """A mixture of Gaussians of mean zero."""

    shares: Float[Array, "C"]
    """Probabilities of the components: positive, with sum 1."""
    scales: Float[Array, "C"]
    """Their standard deviations, positive."""


Prior: TypeAlias = Gaussian | Laplace | SpikeAndSlab | ScaleMixture
PRIORS = (Gaussian, Laplace, SpikeAndSlab, ScaleMixture)

PriorTree: TypeAlias = Any
"""One prior for all weights, or a pytree like the weights with a prior in place of every leaf."""

StepTree: TypeAlias = Any
"""One step for all weights, or a pytree like the weights with a step in place of every leaf."""


def code_length_bits(weights: Params, prior: PriorTree, *, step: StepTree) -> Params:
    """Return the ideal code length of every weight, rounded to a multiple of the step.

    The mass of a cell is computed in the log domain, from the survival function where the cell
    lies in a tail, so lengths are right however far out a weight lies and however fine the step.

    Args:
        weights: floating array or pytree of them, finite.
        prior: one for all, or one per leaf.
        step: positive, traced; one for all (for a single array it may broadcast against it), or
            one per leaf.

    Returns:
        Bits, shaped like `weights`. They do not include the prior's parameters
        (`parameter_bits`) or the step.

    Raises:
        TypeError: if a leaf is not floating or `prior` is not a prior.
        ValueError: if a known weight is not finite, a step or a parameter is out of range, or a
            pytree of priors or steps does not fit the weights.
    """
    leaves, structure = jax.tree.flatten(weights)
    priors, steps = matched_priors(prior, weights), matched_steps(step, weights)
    for leaf in leaves:
        check_weights(leaf)
    return jax.tree.unflatten(
        structure,
        [
            _code_length_bits(jnp.asarray(leaf), own, own_step)
            for leaf, own, own_step in zip(leaves, priors, steps, strict=True)
        ],
    )


@jax.jit
def _code_length_bits(
    weights: Float[Array, "..."], prior: Prior, step: Float[Array, "..."]
) -> Float[Array, "..."]:
    step = jnp.asarray(step, weights.dtype)
    step = jnp.broadcast_to(step, weights.shape)
    prior = jax.tree.map(lambda field: jnp.asarray(field, weights.dtype), prior)
    return log_cell_mass(quantize(weights, step=step), prior, step) * (-1 / LN2)


def quantize(weights: Params, *, step: StepTree) -> Params:
    """Round weights to the nearest multiple of the step (ties to even).

    Args:
        weights: floating array or pytree of them.
        step: positive; one for all or one per leaf.

    Returns:
        The centres of the cells, shaped like `weights`.

    Raises:
        ValueError: if a known step is not positive or does not fit.
    """
    leaves, structure = jax.tree.flatten(weights)
    steps = matched_steps(step, weights)
    rounded = []
    for leaf, own in zip(leaves, steps, strict=True):
        leaf = jnp.asarray(leaf)
        own = jnp.broadcast_to(jnp.asarray(own, leaf.dtype), leaf.shape)
        rounded.append(jnp.round(leaf / own) * own)
    return jax.tree.unflatten(structure, rounded)


def log_cell_mass(
    centres: Float[Array, "*shape"], prior: Prior, step: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Return the log of the prior's mass, in nats, between `centres - step/2` and `+ step/2`."""
    match prior:
        case Gaussian(scale):
            return _log_gaussian_cell(centres, scale, step)
        case Laplace(scale):
            return _log_laplace_cell(centres, scale, step)
        case SpikeAndSlab(spike, scale):
            slab = jnp.log1p(-spike) + _log_gaussian_cell(centres, scale, step)
            # The cell of zero is the only one that the point mass can lie in.
            has_spike = jnp.abs(centres) < 0.5 * step
            return jnp.where(has_spike, jnp.logaddexp(jnp.log(spike), slab), slab)
        case ScaleMixture(shares, scales):
            cells = jax.vmap(_log_gaussian_cell, in_axes=(None, 0, None))(centres, scales, step)
            log_shares = jnp.log(shares).reshape(-1, *[1] * centres.ndim)
            return logsumexp(cells + jnp.broadcast_to(log_shares, cells.shape), axis=0)
    raise TypeError(_not_a_prior(prior))


# Eight nodes integrate exp(-z u - u^2 / 2) over a cell with |z| h <= 2 and h <= 1 to 1e-10.
_NODES, _NODE_WEIGHTS = (part.tolist() for part in np.polynomial.legendre.leggauss(8))


def _log_gaussian_cell(centres: Array, scale: Array | float, step: Array) -> Array:
    """Integrate narrow cells by quadrature; difference the tails of wide ones.

    The difference of two survival functions cancels where a cell is narrow, the quadrature fails
    where the density falls by orders of magnitude within one: each is used where it is exact.
    """
    z = jnp.abs(centres) / scale
    half = 0.5 * step / scale
    is_narrow = (z * half <= 2) & (half <= 1)

    # The argument of the branch that is not taken is replaced, so that it stays finite.
    narrow_z, narrow_half = jnp.where(is_narrow, z, 0), jnp.where(is_narrow, half, 1)
    integral = sum(
        weight * jnp.exp(-narrow_half * node * (narrow_z + 0.5 * narrow_half * node))
        for node, weight in zip(_NODES, _NODE_WEIGHTS, strict=True)
    )
    narrow = (
        jnp.log(narrow_half * integral) - 0.5 * narrow_z * narrow_z - 0.5 * math.log(2 * math.pi)
    )

    wide_z, wide_half = jnp.where(is_narrow, 0, z), jnp.where(is_narrow, 2, half)
    lower, upper = wide_z - wide_half, wide_z + wide_half
    is_around_zero = lower < 0
    tail_lower = log_ndtr(-jnp.where(is_around_zero, 0, lower))
    tail = tail_lower + jnp.log1p(-jnp.exp(log_ndtr(-upper) - tail_lower))
    centre = jnp.log1p(-(ndtr(jnp.where(is_around_zero, lower, -1)) + ndtr(-upper)))
    return jnp.where(is_narrow, narrow, jnp.where(is_around_zero, centre, tail))


def _log_laplace_cell(centres: Array, scale: Array | float, step: Array) -> Array:
    distance, half = jnp.abs(centres) / scale, 0.5 * step / scale
    # log(1 - exp(-x)) without cancellation at either end.
    centre = jnp.log(-jnp.expm1(-half))
    tail = -(distance - half) + jnp.log(-jnp.expm1(-2 * half)) - LN2
    return jnp.where(distance < half, centre, tail)


def parameter_bits(prior: PriorTree) -> int:
    """Return the bits that a fitted prior's own parameters cost: 32 for each number."""
    leaves = jax.tree.leaves(prior)
    return 32 * sum(int(np.size(leaf)) for leaf in leaves)


_Family: TypeAlias = Callable[[Array, Array], Prior]


def fit(
    weights: Params,
    family: type[Prior],
    *,
    step: float | None = None,
    is_shared: bool = True,
    num_components: int = 2,
) -> PriorTree:
    """Fit a prior to weights by maximum likelihood.

    Closed form for Gaussian and Laplace; 200 steps of expectation maximisation for a scale
    mixture; for spike and slab the spike is the share of weights that round to zero beyond what
    the Gaussian of the others explains. A fitted prior has to be sent too: `parameter_bits`.

    Args:
        weights: floating array or pytree of them, finite, not all zero.
        family: `Gaussian`, `Laplace`, `SpikeAndSlab` or `ScaleMixture`.
        step: of the quantization; needed by `SpikeAndSlab` only.
        is_shared: one prior for all weights, or one for each leaf.
        num_components: C of `ScaleMixture`, at least 2.

    Returns:
        The prior, or a pytree of priors like `weights`.

    Raises:
        TypeError: if `family` is none of the four.
        ValueError: on weights that are not finite or are all zero, a step that is missing or not
            positive, or fewer than 2 components.
    """
    if family not in PRIORS:
        raise TypeError(f"family must be one of {_names()}, got {family!r}.")
    if num_components < 2:
        raise ValueError(f"num_components must be at least 2, got {num_components}.")
    if family is SpikeAndSlab:
        if step is None:
            raise ValueError("step is needed to fit a spike and slab: pass that of the code.")
        check_step(step)
    leaves, structure = jax.tree.flatten(weights)
    for leaf in leaves:
        check_weights(leaf)
        if not is_shared and not np.any(np.asarray(leaf)):
            raise ValueError("weights must not be all zero in a leaf that has its own prior.")
    if is_shared and not any(np.any(np.asarray(leaf)) for leaf in leaves):
        raise ValueError("weights must not be all zero, got no other value to fit a prior to.")
    fit_one = partial(_fit_one, family=family, step=step, num_components=num_components)
    if is_shared:
        return fit_one(jnp.concatenate([jnp.ravel(leaf) for leaf in leaves]))
    return jax.tree.unflatten(structure, [fit_one(jnp.ravel(leaf)) for leaf in leaves])


def _fit_one(
    weights: Float[Array, "N"], *, family: type[Prior], step: float | None, num_components: int
) -> Prior:
    if family is ScaleMixture:
        return _fit_scale_mixture(weights, num_components)
    # Sums on the host: weights come in many shapes, and each would be compiled for.
    values = np.asarray(weights, np.float64)
    if family is Gaussian:
        return Gaussian(jnp.asarray(_root_mean_square(values), weights.dtype))
    if family is Laplace:
        return Laplace(jnp.asarray(np.mean(np.abs(values)), weights.dtype))
    assert step is not None
    spike, scale = _fit_spike_and_slab(values, step)
    return SpikeAndSlab(jnp.asarray(spike, weights.dtype), jnp.asarray(scale, weights.dtype))


def _root_mean_square(values: Float[np.ndarray, "N"]) -> float:
    # Divided by the largest, since the square of a small weight can underflow.
    largest = float(np.max(np.abs(values)))
    return largest * math.sqrt(np.mean(np.square(values / largest))) if largest > 0 else 0.0


def _fit_spike_and_slab(values: Float[np.ndarray, "N"], step: float) -> tuple[float, float]:
    is_zero = np.rint(values / step) == 0
    num_zero = float(np.mean(is_zero))
    margin = 1 / values.size
    # Without any other weight the slab is one step wide.
    scale = _root_mean_square(values[~is_zero]) if num_zero < 1 else step
    in_zero_cell = math.erf(0.5 * step / scale / math.sqrt(2))
    spike = (num_zero - in_zero_cell) / (1 - in_zero_cell)
    return min(max(spike, 0.5 * margin), 1 - 0.5 * margin), scale


@partial(jax.jit, static_argnames="num_components")
def _fit_scale_mixture(weights: Array, num_components: int) -> ScaleMixture:
    largest = jnp.max(jnp.abs(weights))
    squares = jnp.square(weights / largest)
    spread = jnp.sqrt(jnp.mean(squares))
    factors = jnp.logspace(-1, 0.5, num_components).astype(weights.dtype)
    start = jnp.full(num_components, 1 / num_components, weights.dtype), spread * factors

    def iterate(_, state):
        shares, scales = state
        exponents = -0.5 * squares.reshape(-1, 1) / jnp.square(scales).reshape(1, -1) + (
            jnp.log(shares) - jnp.log(scales)
        ).reshape(1, -1)
        posterior = jax.nn.softmax(exponents, axis=1)
        mass = jnp.sum(posterior, axis=0)
        moment = jnp.sum(posterior * squares.reshape(-1, 1), axis=0)
        floor = jnp.asarray(1e-6, weights.dtype) * spread
        scales = jnp.maximum(jnp.sqrt(moment / jnp.maximum(mass, 1e-6)), floor)
        shares = jnp.maximum(mass / weights.size, 1e-6)
        return shares / jnp.sum(shares), scales

    shares, scales = jax.lax.fori_loop(0, 200, iterate, start)
    return ScaleMixture(shares, scales * largest)


def matched_priors(prior: PriorTree, weights: Params) -> list[Prior]:
    """Return one checked prior for every leaf of the weights."""
    structure = jax.tree.structure(weights)
    if isinstance(prior, PRIORS):
        check_prior(prior)
        return [prior] * structure.num_leaves
    priors, found = jax.tree.flatten(prior, is_leaf=lambda node: isinstance(node, PRIORS))
    for own in priors:
        check_prior(own)
    if found != structure:
        raise ValueError(
            f"prior must be one prior or a pytree of priors like the weights, got {found} for "
            f"weights {structure}."
        )
    return priors


def matched_steps(step: StepTree, weights: Params) -> list[Any]:
    """Return one checked step for every leaf of the weights."""
    structure = jax.tree.structure(weights)
    steps, found = jax.tree.flatten(step)
    for own in steps:
        check_step(own)
    if jax.tree.structure(0.0) == found:
        return steps * structure.num_leaves
    if found != structure:
        raise ValueError(
            f"step must be one number or a pytree of numbers like the weights, got {found} for "
            f"weights {structure}."
        )
    return steps


def check_weights(weights: Any) -> None:
    """Refuse weights that are not floating, or known and not finite."""
    dtype = jnp.result_type(weights)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"weights must be floating, got {dtype}; leave other leaves out.")
    if not isinstance(weights, Tracer):
        num_bad = int(np.sum(~np.isfinite(np.asarray(weights, np.float64))))
        if num_bad:
            raise ValueError(
                f"weights must be finite, got {num_bad} NaN or infinite of {np.size(weights)}."
            )


def check_step(step: Any) -> None:
    """Refuse a known step that is not a positive finite number."""
    _check_positive("step", step)


def check_prior(prior: Any) -> None:
    """Refuse what is no prior, or known parameters out of range."""
    if not isinstance(prior, PRIORS):
        raise TypeError(_not_a_prior(prior))
    match prior:
        case Gaussian(scale) | Laplace(scale):
            _check_positive("scale", scale)
        case SpikeAndSlab(spike, scale):
            _check_positive("scale", scale)
            if not isinstance(spike, Tracer) and not np.all(
                (np.asarray(spike) > 0) & (np.asarray(spike) < 1)
            ):
                raise ValueError(f"spike must lie between 0 and 1, both excluded, got {spike}.")
        case ScaleMixture(shares, scales):
            _check_positive("scales", scales)
            _check_positive("shares", shares)
            if np.ndim(shares) == 0 or np.shape(shares) != np.shape(scales):
                raise ValueError(
                    f"shares and scales must have one entry for each component, got shapes "
                    f"{np.shape(shares)} and {np.shape(scales)}."
                )
            if not isinstance(shares, Tracer):
                total = float(np.sum(np.asarray(shares, np.float64)))
                # A few roundings of float32.
                if abs(total - 1) > 1e-5:
                    raise ValueError(f"shares must have the sum 1, got {total:g}.")


def _check_positive(name: str, value: Any) -> None:
    if isinstance(value, Tracer):
        return
    values = np.asarray(value, np.float64)
    if not np.all((values > 0) & np.isfinite(values)):
        worst = values[~((values > 0) & np.isfinite(values))].flat[0]
        raise ValueError(f"{name} must be positive and finite, got {worst:g}.")


def _not_a_prior(prior: Any) -> str:
    return f"prior must be one of {_names()}, got {type(prior).__name__}."


def _names() -> str:
    return ", ".join(family.__name__ for family in PRIORS)
