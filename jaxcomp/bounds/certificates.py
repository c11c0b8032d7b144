"""Certificates: bounds that hold with probability 1 - delta over the training examples.

`occam` is for one network in a file, `pac_bayes_kl` and `catoni` for a random one; `choice_bits`
and `self_delimiting_bits` say what was spent.

Sources: Langford, JMLR 6 (2005), for the binomial tail; Maurer, arXiv:cs/0411099; Catoni,
arXiv:0712.0248; Lotfi et al., arXiv:2211.13609.
"""

from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxcomp.bounds.arguments import (
    Number,
    check_at_least_zero,
    check_certificate,
    valid,
)
from jaxcomp.bounds.binomial import binomial_inverse, whole_errors
from jaxcomp.bounds.relative_entropy import upper_inverse
from jaxcomp.numerics.checks import check_count, check_positive, is_concrete
from jaxcomp.numerics.precision import ROUNDING, bound_in_float64
from jaxcomp.numerics.units import LN2

Tail = Literal["binomial", "chernoff"]
TAILS: tuple[str, ...] = get_args(Tail)


def occam(
    train_error: Number,
    size_bits: Number,
    *,
    num_examples: Number,
    delta: Number,
    tail: Tail = "binomial",
) -> Float[Array, "*shape"]:
    """Bound the population error of a network that a file of B bits decodes to.

    With probability at least 1 - delta over n independent examples, for all self-delimiting files
    at once, so that seeds, penalties and the choice of the best of many files cost nothing; what
    the decoder needs and the file lacks must be charged (`choice_bits`, `self_delimiting_bits`).
    0-1 loss only. Examples drawn with replacement count once: n and the error refer to the
    distinct ones.

    Args:
        train_error: share of the n examples that the decoded network gets wrong. For the binomial
            tail the number of errors is the largest whole one of which this is the share as
            rounded in its dtype (a hundredth of an error is allowed in any dtype), or else the next
            one above; hence the derivative by it is 0.
        size_bits: B >= 0, all that the decoder needs.
        num_examples: n >= 1, a whole number.
        delta: in (0, 1), the probability that the bound fails. The four broadcast.
        tail: "binomial", the largest p with `P(Binomial(n, p) <= errors) >= delta 2^-B`, exact;
            "chernoff", `kl(train_error || p) <= (B ln 2 + ln(1/delta)) / n`, a little looser.
            Static.

    Returns:
        The bound, at most 1 (where it says nothing); NaN for arguments out of range.

    Raises:
        ValueError: on an unknown tail, or numbers out of range.

    Source: Langford (2005), section 3 and theorem 4.6.
    """
    if tail not in TAILS:
        raise ValueError(f"tail must be one of {TAILS}, got {tail!r}.")
    check_certificate(train_error, num_examples, delta)
    check_at_least_zero(size_bits, "size_bits")
    if tail == "chernoff":
        return _occam_chernoff(train_error, size_bits, num_examples, delta)
    # A Python number is a float64.
    dtype = getattr(train_error, "dtype", np.float64)
    eps = jnp.finfo(dtype if jnp.issubdtype(dtype, jnp.floating) else np.float64).eps
    return _occam_binomial(train_error, size_bits, num_examples, delta, float(eps))


@bound_in_float64()
def _occam_chernoff(train_error, size_bits, num_examples, delta):
    train_error, size_bits, n, delta = jnp.broadcast_arrays(
        train_error, size_bits, num_examples, delta
    )
    complexity = size_bits * LN2 - jnp.log(delta)
    return valid(upper_inverse(train_error, complexity / n), size_bits, n, delta)


@bound_in_float64()
def _occam_binomial(train_error, size_bits, num_examples, delta, eps):
    train_error, size_bits, n, delta = jnp.broadcast_arrays(
        train_error, size_bits, num_examples, delta
    )
    complexity = size_bits * LN2 - jnp.log(delta)
    errors = lax.stop_gradient(whole_errors(train_error, n, eps))
    return valid(binomial_inverse(errors, n, -complexity), size_bits, n, delta)


def pac_bayes_kl(
    train_error: Number,
    complexity_nats: Number,
    *,
    num_examples: Number,
    delta: Number,
    num_draws: Number | None = None,
    delta_draws: Number | None = None,
) -> Float[Array, "*shape"]:
    """Bound the population error of a random network, `w ~ q`, averaged over q.

    With probability at least 1 - delta over n independent examples, for all q at once:
    `kl(E err_S || E err_mu) <= (KL(q || prior) + ln(2 sqrt(n) / delta)) / n`, the prior fixed
    before the data were seen or paid for. A deterministic network in a file of B bits is the
    special case `KL = B ln 2`; `occam` is sharper for it.

    Args:
        train_error: the mean training error of q; or, with `num_draws`, its mean over that many
            independent draws of q.
        complexity_nats: KL(q || prior) >= 0; see `gaussian_complexity`.
        num_examples: n >= 1.
        delta: in (0, 1). All arguments broadcast.
        num_draws: m, if the training error was estimated from m draws of q.
        delta_draws: probability allowed to that estimate, required with `num_draws`; the bound
            then holds with probability 1 - delta - delta_draws.

    Returns:
        The bound, at most 1 (where it says nothing).

    Raises:
        ValueError: on numbers out of range, or one of `num_draws` and `delta_draws` without the
            other.

    Source: Maurer (2004), theorem 5; Langford and Caruana, NIPS 2001, for the draws.
    """
    check_certificate(train_error, num_examples, delta)
    check_at_least_zero(complexity_nats, "complexity_nats")
    if (num_draws is None) != (delta_draws is None):
        raise ValueError("num_draws and delta_draws must be given together, got only one of them.")
    if num_draws is not None and delta_draws is not None:
        check_certificate(train_error, num_draws, delta_draws, suffix="draws")
        train_error = _sampled_error(train_error, num_draws, delta_draws)
    return _pac_bayes_kl(train_error, complexity_nats, num_examples, delta)


@bound_in_float64()
def _sampled_error(mean, num_draws, delta):
    mean, num_draws, delta = jnp.broadcast_arrays(mean, num_draws, delta)
    return valid(upper_inverse(mean, -jnp.log(delta) / num_draws), mean, num_draws, delta)


@bound_in_float64()
def _pac_bayes_kl(train_error, complexity, n, delta):
    train_error, complexity, n, delta = jnp.broadcast_arrays(train_error, complexity, n, delta)
    divergence = (complexity + LN2 + 0.5 * jnp.log(n) - jnp.log(delta)) / n
    return valid(upper_inverse(train_error, divergence), complexity, n, delta)


def catoni(
    train_error: Number,
    complexity_nats: Number,
    *,
    num_examples: Number,
    delta: Number,
    temperature: Number | None = None,
    num_temperatures: int = 64,
) -> Float[Array, "*shape"]:
    """Bound the population error of a random network by Catoni's inequality.

    For a temperature C fixed before the data were seen, with probability at least 1 - delta for all
    q at once: `(1 - exp(-C err_S - (KL + ln(1/delta)) / n)) / (1 - exp(-C))`. The best C is that of
    `pac_bayes_kl` without its `ln(2 sqrt n)`, but it depends on the data: without a `temperature`
    a grid of them is paid for by a union bound.

    Args:
        train_error: mean training error of q.
        complexity_nats: KL(q || prior) >= 0.
        num_examples: n >= 1.
        delta: in (0, 1). All arguments broadcast.
        temperature: C > 0, fixed beforehand; None tries `num_temperatures` of them, evenly spaced
            in ln C between 1e-3 and 10, each with `delta / num_temperatures`.
        num_temperatures: size of that grid, static.

    Returns:
        The bound, at most 1.

    Raises:
        ValueError: on numbers out of range.

    Source: Catoni (2007), theorem 1.2.1.
    """
    check_certificate(train_error, num_examples, delta)
    check_at_least_zero(complexity_nats, "complexity_nats")
    if temperature is None:
        check_count("num_temperatures", num_temperatures)
        grid = np.geomspace(1e-3, 10.0, num_temperatures)
        return _catoni_grid(train_error, complexity_nats, num_examples, delta, grid)
    check_positive("temperature", temperature)
    return _catoni(train_error, complexity_nats, num_examples, delta, temperature)


def _catoni_bound(train_error, complexity, n, delta, temperature):
    exponent = temperature * train_error + (complexity - jnp.log(delta)) / n
    found = jnp.expm1(-exponent) / jnp.expm1(-temperature) * (1 + ROUNDING)
    is_valid = (train_error >= 0) & (train_error <= 1) & (temperature > 0)
    cost = jnp.where(is_valid, lax.stop_gradient(complexity), -1)
    return valid(jnp.minimum(found, 1), cost, n, delta)


@bound_in_float64()
def _catoni(*arguments):
    return _catoni_bound(*jnp.broadcast_arrays(*arguments))


@bound_in_float64()
def _catoni_grid(train_error, complexity, n, delta, grid):
    train_error, complexity, n, delta = (
        value[..., None] for value in jnp.broadcast_arrays(train_error, complexity, n, delta)
    )
    grid = grid.reshape((1,) * (train_error.ndim - 1) + grid.shape)
    bounds = _catoni_bound(train_error, complexity, n, delta / grid.size, grid)
    return jnp.min(bounds, axis=-1)


def choice_bits(*num_candidates: Number) -> Float[Array, "*shape"]:
    """Return the price in bits of choices made by looking at the data, `sum log2(candidates)`.

    A bound that holds for one hypothesis fixed beforehand holds for the best of k at this price:
    architectures, priors, codebooks, code parameters that the decoder must be told. Choices that
    the file already contains (the weights, the penalties that made them) cost nothing more.

    Args:
        num_candidates: number of candidates of each independent choice, at least 1; they
            broadcast.

    Returns:
        Bits, to be added to the size of the file; 0 for no choice.

    Raises:
        ValueError: if a number is below 1.
    """
    for number in num_candidates:
        if is_concrete(number) and not np.all(np.asarray(number) >= 1):
            raise ValueError(f"num_candidates must be at least 1, got {np.min(number):g}.")
    return _choice_bits(*num_candidates)


@bound_in_float64()
def _choice_bits(*num_candidates):
    return sum((_log2(number) for number in num_candidates), start=jnp.zeros(()))


def _log2(number: Array) -> Array:
    """Return log2, exact for powers of two and else never below it."""
    mantissa, exponent = jnp.frexp(number)
    return jnp.where(
        mantissa == 0.5, (exponent - 1).astype(number.dtype), jnp.log2(number) * (1 + ROUNDING)
    )


def self_delimiting_bits(size_bytes: Number) -> Float[Array, "*shape"]:
    """Return `log2(L (L + 1))`, what makes a file of L bytes self-delimiting.

    A file system knows where a file ends; a prefix code must say it. The lengths L = 1, 2, ... get
    probability `1 / (L (L + 1))`, which sums to 1.

    Args:
        size_bytes: L >= 1.

    Returns:
        Bits to be added to `8 L`.

    Raises:
        ValueError: if a length is below 1.
    """
    if is_concrete(size_bytes) and not np.all(np.asarray(size_bytes) >= 1):
        raise ValueError(f"size_bytes must be at least 1, got {np.min(size_bytes):g}.")
    return _self_delimiting_bits(size_bytes)


@bound_in_float64()
def _self_delimiting_bits(size_bytes):
    return _log2(size_bytes) + _log2(size_bytes + 1)
