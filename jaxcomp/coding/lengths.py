"""The length of the code that a prior is.

A weight is rounded to the cell `[(k - 1/2) step, (k + 1/2) step]`, and the cell is coded under a
prior with distribution function F, so it costs `-log2(F(upper) - F(lower))` bits. For a step well
below the prior's width that is `-log2(p(w) step)`: a Gaussian prior makes an L2 penalty a code
length up to a constant, a Laplace prior an L1 penalty, and a spike at zero a stream that really
gets shorter by zeros.

A length depends on ratios of weight, step and scale, which half precision and float32 cannot hold:
they are formed in float64, whatever the dtype of the weights. The logarithm of a mass is formed
from those of survival functions, so that no mass is too small and none needs a floor; the same
formulas serve kernels (JAX) and sums on the host (NumPy, SciPy).

Axes: `C` components of a mixture.

Source: Hinton and van Camp, "Keeping the neural networks simple by minimizing the description
length of the weights", COLT 1993, doi:10.1145/168304.168306.
"""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import special as jax_special
from jaxtyping import Array, Float
from scipy import special as scipy_special

from jaxcomp.coding.distributions import (
    Gaussian,
    Laplace,
    Prior,
    PriorTree,
    ScaleMixture,
    SpikeAndSlab,
    StepTree,
    check_weights,
    matched_priors,
    matched_steps,
    not_a_prior,
)
from jaxcomp.coding.grid import grid_step, leaf_dtype, nearest_multiple
from jaxcomp.numerics.precision import in_float64, narrow, result_dtype
from jaxcomp.numerics.units import LN2
from jaxcomp.types import Params


def code_length_bits(weights: Params, prior: PriorTree, *, step: StepTree) -> Params:
    """Return the ideal code length of every weight, rounded to a multiple of the step.

    Lengths are right however far out a weight lies and however fine or coarse the step, at any
    scale: they stay the same when weights, prior and step are all multiplied by a power of two.

    Args:
        weights: floating array or pytree of them, finite.
        prior: one for all, or one per leaf.
        step: positive, traced; one for all (for a single array it may broadcast against it), or
            one per leaf.

    Returns:
        Bits, shaped like `weights`, float32 or the wider dtype of the weights; infinite only
        beyond that dtype's range. They do not include the prior's parameters (`parameter_bits`)
        or the step. They can be differentiated in prior and step; a rounded weight has derivative
        0 in the weight.

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
            _code_length_bits(
                leaf, own, own_step, dtype=leaf_dtype(leaf), result=result_dtype(leaf)
            )
            for leaf, own, own_step in zip(leaves, priors, steps, strict=True)
        ],
    )


@in_float64("dtype", "result")
def _code_length_bits(
    weights: Array, prior: Prior, step: Array, *, dtype: Any, result: Any
) -> Array:
    step = _matched_step(step, weights, dtype)
    centres = nearest_multiple(weights, step, dtype=dtype)
    return log_cell_mass(centres, prior, step, dtype=result) * (-1 / LN2)


def quantize(weights: Params, *, step: StepTree) -> Params:
    """Round weights to the nearest multiple of the step: the weights that `encode` sends.

    The step is rounded to float32 (float64 for float64 weights), the quotient formed in float64,
    ties go to the even multiple, and the product is rounded to the weights' dtype: see
    `jaxcomp.coding.grid`. A multiple that the dtype cannot hold is replaced by the largest that
    it can.

    Args:
        weights: floating array or pytree of them.
        step: positive, traced; one for all (for a single array it may broadcast against it), or
            one per leaf.

    Returns:
        The centres of the cells, shaped like `weights`. Float64 weights come back as JAX's default
        floating dtype; they are rounded to cells before that.

    Raises:
        TypeError: if a leaf is not floating.
        ValueError: if a known step is not positive or does not fit, or a known weight is beyond
            the range of the result.
    """
    leaves, structure = jax.tree.flatten(weights)
    steps = matched_steps(step, weights)
    rounded = []
    for leaf, own in zip(leaves, steps, strict=True):
        check_weights(leaf, are_finite=False)
        # What JAX makes of it: float64 only under `jax_enable_x64`.
        result = np.dtype(jnp.result_type(leaf))
        _check_range(leaf, result)
        rounded.append(_quantize(leaf, own, dtype=leaf_dtype(leaf), result=result))
    return jax.tree.unflatten(structure, rounded)


@in_float64("dtype", "result")
def _quantize(weights: Array, step: Array, *, dtype: Any, result: Any) -> Array:
    step = _matched_step(step, weights, dtype)
    return narrow(nearest_multiple(weights, step, dtype=dtype), result)


def _matched_step(step: Array, weights: Array, dtype: Any) -> Array:
    step = grid_step(step, dtype=dtype)
    return jnp.broadcast_to(step, weights.shape) if step.ndim else step


def _check_range(leaf: Any, dtype: np.dtype) -> None:
    """Refuse known float64 weights that float32 cannot hold."""
    if isinstance(leaf, jax.Array) or np.asarray(leaf).dtype == dtype:
        return
    values = np.abs(np.asarray(leaf, np.float64))
    largest = float(np.max(values, initial=0.0, where=np.isfinite(values)))
    if largest > float(jnp.finfo(dtype).max):
        raise ValueError(
            f"weights must lie in the range of {dtype}, got {largest:g}: turn on jax_enable_x64 to "
            "round them in float64."
        )


def log_cell_mass(
    centres: Float[Any, "*shape"], prior: Any, step: Float[Any, "..."], *, dtype: Any = np.float64
) -> Float[Any, "*shape"]:
    """Return the log of the prior's mass, in nats, between `centres - step/2` and `+ step/2`.

    Args:
        centres: float64, of NumPy or of JAX.
        prior: with float64 fields of the same kind.
        step: one number, or shaped like the centres.
        dtype: of the result. Ratios are formed in float64, functions of them in this dtype, which
            is several times as fast in float32.

    Returns:
        Nats.
    """
    xp = np if isinstance(centres, np.ndarray) else jnp
    special: Any = scipy_special if isinstance(centres, np.ndarray) else jax_special
    match prior:
        case Gaussian(scale):
            return log_gaussian_cell(centres, scale, step, dtype=dtype)
        case Laplace(scale):
            return _log_laplace_cell(centres, scale, step, dtype)
        case SpikeAndSlab(spike, scale):
            slab = log_gaussian_cell(centres, scale, step, dtype=dtype)
            slab = xp.log1p(-spike).astype(dtype) + slab
            # The cell of zero is the only one that the point mass can lie in.
            has_spike = xp.abs(centres) < 0.5 * step
            return xp.where(has_spike, xp.logaddexp(xp.log(spike).astype(dtype), slab), slab)
        case ScaleMixture(shares, scales):
            components = (-1, *[1] * centres.ndim)
            log_shares = xp.log(shares).astype(dtype).reshape(components)
            own_step = step[None] if xp.ndim(step) else step
            cells = log_gaussian_cell(
                centres[None], scales.reshape(components), own_step, dtype=dtype
            )
            return special.logsumexp(cells + log_shares, axis=0)
    raise TypeError(not_a_prior(prior))


# Eight nodes integrate exp(-z u - u^2 / 2) over a cell with |z| h <= 2 and h <= 1 to 1e-10.
_NODES, _NODE_WEIGHTS = (part.tolist() for part in np.polynomial.legendre.leggauss(8))
_LOG_ROOT_2_PI = 0.5 * math.log(2 * math.pi)

# Beyond so many deviations a survival function is its asymptotic series to 1e-12.
_FAR = 50.0
# And so many are as good as infinitely many beside a tail that begins before `_FAR`.
_BEYOND = 1000.0
# The square of so many is beyond float32's range, the ratio of two is not. For float64 likewise.
_OUTSIDE = {np.dtype(np.float32): 1e25, np.dtype(np.float64): 1e160}


def log_gaussian_cell(
    centres: Float[Any, "..."], scale: Any, step: Float[Any, "..."], *, dtype: Any = np.float64
) -> Float[Any, "..."]:
    """Return the log of a Gaussian's mass between `centres - step/2` and `+ step/2`.

    Narrow cells are integrated by quadrature, of wide ones the tails are subtracted: the difference
    of two survival functions cancels where a cell is narrow, and quadrature fails where the density
    falls by orders of magnitude within one.

    Args:
        centres: distance of the cell's centre from the mean, float64.
        scale: standard deviation; broadcasts against the centres.
        step: width of the cell; likewise.
        dtype: of the result, as for `log_cell_mass`.

    Returns:
        Nats.
    """
    xp = np if isinstance(centres, np.ndarray) else jnp
    with np.errstate(over="ignore"):
        z, half = xp.abs(centres) / scale, 0.5 * (step / scale)
        log_half = xp.log(step) - xp.log(scale) - LN2
        fall = z * half
        lower, upper = z - half, z + half
        # The host has so many thin cells that a series for them is worth a case of its own.
        is_thin = (fall <= 0.03) & (half <= 0.03) & (xp is np)
        is_narrow = (fall <= 2) & (half <= 1)
        is_far = ~is_narrow & (lower > _FAR)
        outside = _OUTSIDE[np.dtype(dtype)]
        z, half, log_half, fall, lower, upper = (
            xp.clip(part, -outside, outside).astype(dtype)
            for part in (z, half, log_half, fall, lower, upper)
        )
        cases = (
            (is_narrow & ~is_thin, _log_narrow_mass, (z, half, log_half), (0.0, 1.0, 0.0)),
            (~is_narrow & ~is_far, _log_tail_mass, (lower, upper), (0.0, 1.0)),
            (is_far, _log_far_mass, (lower, upper, fall), (_FAR, 2 * _FAR, _FAR)),
        )
        thin = (is_thin, _log_thin_mass, (z, half, log_half), (0.0, 1.0, 0.0))
        return _by_cases(thin, *cases) if xp is np else _by_cases(*cases)


_Case: TypeAlias = tuple[Any, Callable[..., Any], tuple[Any, ...], tuple[float, ...]]


def _by_cases(*cases: _Case) -> Any:
    """Choose a formula for every cell; a case has mask, formula, arguments, and harmless ones.

    JAX evaluates all of them everywhere, with harmless arguments where another one is chosen, so
    that values and derivatives stay finite. On the host each is evaluated where it is needed.
    """
    if not isinstance(cases[0][0], np.ndarray):
        result = None
        for mask, formula, arguments, harmless in cases:
            safe = (jnp.where(mask, *pair) for pair in zip(arguments, harmless, strict=True))
            found = formula(*safe)
            result = found if result is None else jnp.where(mask, found, result)
        return result
    result = np.empty(cases[0][0].shape)
    for mask, formula, arguments, _ in cases:
        if mask.any():
            result[mask] = formula(*(np.broadcast_to(own, mask.shape)[mask] for own in arguments))
    return result


def _log_narrow_mass(z: Any, half: Any, log_half: Any) -> Any:
    xp = np if isinstance(z, np.ndarray) else jnp
    integral = sum(
        weight * xp.exp(-half * node * (z + 0.5 * half * node))
        for node, weight in zip(_NODES, _NODE_WEIGHTS, strict=True)
    )
    return log_half + xp.log(integral) - 0.5 * z * z - _LOG_ROOT_2_PI


def _log_thin_mass(z: Any, half: Any, log_half: Any) -> Any:
    """The same from the integrand's series in `half`, to the fourth power."""
    square, h2 = z * z, half * half
    series = h2 / 6 * (square - 1 + h2 / 20 * (square * (square - 6) + 3))
    return log_half + LN2 + np.log1p(series) - 0.5 * square - _LOG_ROOT_2_PI


def _log_tail_mass(lower: Any, upper: Any) -> Any:
    """Log of the survival function at the lower edge, and what the upper one takes off."""
    is_host = isinstance(lower, np.ndarray)
    xp, special = (np, scipy_special) if is_host else (jnp, jax_special)
    begin = special.log_ndtr(-xp.maximum(lower, -_BEYOND))
    return begin + xp.log1p(-xp.exp(special.log_ndtr(-xp.minimum(upper, _BEYOND)) - begin))


def _log_far_mass(lower: Any, upper: Any, fall: Any) -> Any:
    """The same from the series, with the difference of the two squares as a product."""
    xp = np if isinstance(lower, np.ndarray) else jnp
    inverse = 1 / lower
    square = inverse * inverse
    series = xp.log1p(-(1 - (3 - 15 * square) * square) * square)
    begin = series - 0.5 * lower * lower - xp.log(lower) - _LOG_ROOT_2_PI
    return begin + xp.log1p(-xp.exp(-2 * fall) * (lower / upper))


def _log_laplace_cell(centres: Any, scale: Any, step: Any, dtype: Any) -> Any:
    xp = np if isinstance(centres, np.ndarray) else jnp
    small = float(jnp.finfo(dtype).eps) ** 0.5
    outside = _OUTSIDE[np.dtype(dtype)]
    with np.errstate(over="ignore"):
        distance, half = xp.abs(centres) / scale, 0.5 * (step / scale)
        log_half = xp.log(step) - xp.log(scale) - LN2
        is_around_zero, is_small = distance < half, half < small
        inner, outer = xp.where(is_around_zero, half - distance, 1.0), half + distance
        # Where half is small, what is left out is below its square.
        second = 0.5 * (half + xp.where(is_around_zero, distance / half, 0.0) * distance)
        inner, outer, second, half, log_half, fall = (
            xp.clip(part, -outside, outside).astype(dtype)
            for part in (inner, outer, second, half, log_half, distance - half)
        )
    # Sums of 1 - exp(-x), without cancellation; harmless arguments where the series is taken.
    inner, outer = xp.where(is_small, 1.0, inner), xp.where(is_small, 1.0, outer)
    centre = xp.log(-0.5 * (xp.expm1(-inner) + xp.expm1(-outer)))
    centre = xp.where(is_small, log_half - second, centre)
    both = xp.log(-xp.expm1(-2 * xp.where(is_small, 1.0, half)))
    tail = xp.where(is_small, log_half + LN2 - half, both) - fall - LN2
    return xp.where(is_around_zero, centre, tail)
