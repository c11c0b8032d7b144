"""Priors of network weights, and how they are fitted.

All priors have mean zero and a density that falls with the distance from it. One prior may serve
all weights, or each leaf of a pytree has its own; the fields are arrays, so they may be traced.
`jaxcomp.coding.lengths` makes codes of them.

Axes: `N` weights, `C` components of a mixture.

Source: Blundell et al., ICML 2015, arXiv:1505.05424, for the mixture of two scales.
"""

import math
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from jaxcomp.coding.grid import grid_step, leaf_dtype, nearest_index
from jaxcomp.numerics.checks import check_positive
from jaxcomp.types import Params


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


def parameter_bits(prior: PriorTree) -> int:
    """Return the bits that a fitted prior's own parameters cost: 32 for each number."""
    leaves = jax.tree.leaves(prior)
    return 32 * sum(int(np.size(leaf)) for leaf in leaves)


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
        The prior, or a pytree of priors like `weights`; parameters are NumPy float32, whatever the
        dtype of the weights.

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
        return fit_one(leaves)
    return jax.tree.unflatten(structure, [fit_one([leaf]) for leaf in leaves])


def _fit_one(
    leaves: list[Any], *, family: type[Prior], step: float | None, num_components: int
) -> Prior:
    # On the host: weights come in many shapes, and each would be compiled for. Divided by a power
    # of two, since the square of a small weight can underflow.
    values = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])
    exponent = int(np.frexp(np.max(np.abs(values)))[1])
    values = np.ldexp(values, -exponent)
    if family is Gaussian:
        return Gaussian(_parameter(np.sqrt(np.mean(np.square(values))), exponent))
    if family is Laplace:
        return Laplace(_parameter(np.mean(np.abs(values)), exponent))
    if family is ScaleMixture:
        mixture = _fit_scale_mixture(jnp.asarray(values, float), num_components)
        shares, scales = (np.asarray(field) for field in mixture)
        return ScaleMixture(_parameter(shares), _parameter(scales, exponent))
    assert step is not None
    is_zero = np.concatenate([_is_zero_cell(leaf, step) for leaf in leaves])
    num_zero = float(np.mean(is_zero))
    # Without any other weight the slab is one step wide.
    scale = float(step)
    if num_zero < 1:
        scale = float(np.ldexp(np.sqrt(np.mean(np.square(values[~is_zero]))), exponent))
    in_zero_cell = math.erf(0.5 * (step / scale) / math.sqrt(2))
    spike = (num_zero - in_zero_cell) / (1 - in_zero_cell)
    # Inside (0, 1), also once it is rounded to float32.
    margin = max(0.5 / values.size, 2.0**-24)
    return SpikeAndSlab(_parameter(min(max(spike, margin), 1 - margin)), _parameter(scale))


def _is_zero_cell(leaf: Any, step: float) -> Bool[np.ndarray, "N"]:
    dtype = leaf_dtype(leaf)
    own = grid_step(np.float64(step), dtype=dtype)
    return nearest_index(np.asarray(leaf, np.float64).ravel(), own, dtype=dtype) == 0


def _parameter(value: Any, exponent: int = 0) -> Array:
    """Return `value 2^exponent` as float32, which is what `parameter_bits` charges for.

    Weights beyond the range of float32 have a prior beyond it, which stays in float64.
    """
    value = np.ldexp(np.asarray(value, np.float64), exponent)
    info = np.finfo(np.float32)
    fits = np.all((value >= info.tiny) & (value <= info.max))
    rounded: Any = value.astype(np.float32) if fits else value
    return rounded


@partial(jax.jit, static_argnames="num_components")
def _fit_scale_mixture(weights: Array, num_components: int) -> ScaleMixture:
    squares = jnp.square(weights)
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
    return ScaleMixture(shares, scales)


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


def check_weights(weights: Any, *, are_finite: bool = True) -> None:
    """Refuse weights that are not floating, or masked, or known and not finite."""
    if isinstance(weights, np.ma.MaskedArray):
        raise TypeError("weights must not be masked, which means nothing here: fill them first.")
    dtype = jnp.result_type(weights)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"weights must be floating, got {dtype}; leave other leaves out.")
    if are_finite and not isinstance(weights, Tracer):
        num_bad = int(np.sum(~np.isfinite(np.asarray(weights, np.float64))))
        if num_bad:
            raise ValueError(
                f"weights must be finite, got {num_bad} NaN or infinite of {np.size(weights)}."
            )


def check_step(step: Any) -> None:
    """Refuse a known step that is not a positive finite number."""
    check_positive("step", step)


def check_prior(prior: Any) -> None:
    """Refuse what is no prior, or known parameters out of range."""
    if not isinstance(prior, PRIORS):
        raise TypeError(not_a_prior(prior))
    match prior:
        case Gaussian(scale) | Laplace(scale):
            check_positive("scale", scale)
        case SpikeAndSlab(spike, scale):
            check_positive("scale", scale)
            if not isinstance(spike, Tracer) and not np.all(
                (np.asarray(spike) > 0) & (np.asarray(spike) < 1)
            ):
                raise ValueError(f"spike must lie between 0 and 1, both excluded, got {spike}.")
        case ScaleMixture(shares, scales):
            check_positive("scales", scales)
            check_positive("shares", shares)
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


def not_a_prior(prior: Any) -> str:
    """Return the message of the error."""
    return f"prior must be one of {_names()}, got {type(prior).__name__}."


def _names() -> str:
    return ", ".join(family.__name__ for family in PRIORS)
