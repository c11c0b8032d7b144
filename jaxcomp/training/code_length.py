"""Training weights under a price for the bits that their stream takes.

A coded leaf is `step * integers`. Behind each integer stands a latent, a real number in units of
the step; the network sees the nearest integer times the step (straight-through), and the price
sees `-log2 P(latent + u)`, u uniform in [-1/2, 1/2], with `P(x) = F(x + 1/2) - F(x - 1/2)` and F a
symmetric distribution of each leaf. Steps and distributions are trained with the latents:

    latents = initial_latents(params)
    def objective(latents, batch):
        params, bits = weights_and_bits(latents)
        return loss_fn(params, batch) + nats_per_bit * bits / num_examples

Its gradient goes to any optimizer of optax; everything is pure and goes through `vmap` over seeds.
`rounded` is what is stored then, and `jaxcomp.compressed.from_integers` makes a file of it.

Source: Oktay, Balle, Singh, Shrivastava, arXiv:1906.06624, with one step a leaf for their linear
transforms, and logistic distributions for their networks.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxcomp.numerics.transformations import always_compiled
from jaxcomp.trees.paths import leaves_by_path, replace_leaves, shorten
from jaxcomp.trees.selection import Select, decide
from jaxcomp.types import Params, PRNGKey

MOST = 63
"""The largest magnitude of an integer."""

# Where distributions begin: most weights are zero, some are small, few are large.
_SHARES = (2.0, 0.0, -2.0)
_SCALES = (0.15, 0.5, 2.0)
# Logarithms of scales: a spike that no other than zero belongs to, or all integers alike.
_LEAST_SCALE, _LARGEST_SCALE = math.log(0.03), math.log(64.0)
_RMS_PER_STEP = 0.4  # of weights that a training without a price has left
_STEP_OF_ZEROS = 0.1  # of leaves that begin as zeros, such as biases


class Prior(NamedTuple):
    """A mixture of logistic distributions around zero.

    Attributes:
        logits: (components,) of their shares.
        log_scales: (components,) of their scales, in steps.
    """

    logits: Float[Array, " components"]
    log_scales: Float[Array, " components"]


class Latents(NamedTuple):
    """What is trained.

    Attributes:
        weights: structured like the network; coded leaves in steps, others as they are.
        log_steps: of each coded leaf, by its path, ().
        priors: of each coded leaf, by its path.
    """

    weights: Params
    log_steps: dict[str, Float[Array, ""]]
    priors: dict[str, Prior]


class Rounded(NamedTuple):
    """What is stored of coded leaves.

    Attributes:
        integers: by path, int32, shaped like the leaf, magnitudes up to `MOST`.
        steps: by path, (), what they are times of.
    """

    integers: dict[str, Int[Array, "..."]]
    steps: dict[str, Float[Array, ""]]


def initial_latents(
    params: Params,
    *,
    steps: Mapping[str, float] | float | None = None,
    select: Select = None,
) -> Latents:
    """Return where training begins: the weights themselves, in steps.

    Args:
        params: a network, best one that was trained without a price for some epochs.
        steps: of coded leaves, > 0; by path, one for all, or None for 2.5 times the root mean
            square of each.
        select: which leaves are coded; see `jaxcomp.compress`. Coding biases, too, is worth it
            where files are so small.

    Returns:
        Latents, in float32.

    Raises:
        ValueError: if no leaf is coded, a coded leaf has no step, or a step is not positive.
    """
    chosen = [path for path, own in decide(params, select).items() if own.is_compressed]
    if not chosen:
        raise ValueError("no leaf is coded; name some by select, such as select='*'.")
    leaves, values, log_steps = leaves_by_path(params), {}, {}
    for path in chosen:
        value = jnp.asarray(leaves[path], jnp.float32)
        step = _step(steps, path, value)
        values[path], log_steps[path] = value / step, jnp.log(jnp.asarray(step, jnp.float32))
    priors = {
        path: Prior(jnp.asarray(_SHARES, jnp.float32), jnp.log(jnp.asarray(_SCALES, jnp.float32)))
        for path in chosen
    }
    return Latents(replace_leaves(params, values), log_steps, priors)


def _step(
    steps: Mapping[str, float] | float | None, path: str, value: Array
) -> Float[Array, ""] | float:
    """Return the step at which a leaf begins."""
    if steps is None:
        size = jnp.sqrt(jnp.mean(value**2)) / _RMS_PER_STEP
        return jnp.where(size > 0, size, _STEP_OF_ZEROS)
    if isinstance(steps, Mapping) and path not in steps:
        raise ValueError(f"steps has none for {path!r}; it has some for {shorten(steps)}.")
    step = steps[path] if isinstance(steps, Mapping) else steps
    if not (np.isfinite(step) and step > 0):
        raise ValueError(f"steps must be positive and finite, got {step!r} for {path!r}.")
    return step


@always_compiled
@jax.jit
def weights_and_bits(
    latents: Latents, key: PRNGKey | None = None
) -> tuple[Params, Float[Array, ""]]:
    """Return the network as it will be stored, and the bits of its coded leaves.

    Weights are rounded, and their derivative is that of the latents (straight-through). The
    derivative of the bits is that of the mean over u of `-log2 P(latent + u)`: exact without a
    key, `f(latent + 1/2) - f(latent - 1/2)` with `f = -log2 P`, and that of one draw with a key.

    Args:
        latents: from `initial_latents`.
        key: draws u, consumed here; None for the exact mean.

    Returns:
        Weights, structured like the network, and bits: without a key those of the rounded
        integers by their distributions, which a stream has, too, with a key those of the draw.
    """
    leaves, values = leaves_by_path(latents.weights), {}
    bits = jnp.float32(0)
    for number, (path, log_step) in enumerate(latents.log_steps.items()):
        own, prior = leaves[path], latents.priors[path]
        values[path] = jnp.exp(log_step) * nearest_integers(own)
        if key is None:
            bits += _expected_bits(own, prior)
        else:
            u = jax.random.uniform(jax.random.fold_in(key, number), own.shape, own.dtype)
            bits += jnp.sum(bits_of(own + (u - 0.5), prior))
    return replace_leaves(latents.weights, values), bits


def nearest_integers(latents: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the nearest integers, differentiated as if they were the latents themselves."""
    integers = jnp.clip(jnp.round(latents), -MOST, MOST)
    return latents + lax.stop_gradient(integers - latents)


def rounded(latents: Latents) -> Rounded:
    """Return what is stored: integers, and the steps that they are times of."""
    leaves = leaves_by_path(latents.weights)
    integers = {
        path: jnp.clip(jnp.round(leaves[path]), -MOST, MOST).astype(jnp.int32)
        for path in latents.log_steps
    }
    return Rounded(integers, {path: jnp.exp(own) for path, own in latents.log_steps.items()})


def bits_of(values: Float[Array, "..."], prior: Prior) -> Float[Array, "..."]:
    """Return `-log2(F(x + 1/2) - F(x - 1/2))`, exact in the tails.

    For a logistic distribution of scale s the difference is `sigmoid((1/2 + x)/s)
    sigmoid((1/2 - x)/s) (1 - exp(-1/s))`.

    Args:
        values: in steps, any shape.
        prior: of the leaf.
    """
    shares = jax.nn.log_softmax(prior.logits)
    scales = _scales(prior)
    logarithms = [
        shares[number]
        + jax.nn.log_sigmoid((0.5 + values) / scale)
        + jax.nn.log_sigmoid((0.5 - values) / scale)
        + jnp.log(-jnp.expm1(-1 / scale))
        for number, scale in enumerate(scales)
    ]
    return -jax.nn.logsumexp(jnp.stack(logarithms), axis=0) / math.log(2)


def _scales(prior: Prior) -> Float[Array, " components"]:
    return jnp.exp(jnp.clip(prior.log_scales, _LEAST_SCALE, _LARGEST_SCALE))


def _expected_bits(latents: Float[Array, "..."], prior: Prior) -> Float[Array, ""]:
    """Return the bits of the nearest integers, with the derivative of the mean over u."""
    held, fixed = lax.stop_gradient((latents, prior))
    slope = _slope(held, fixed)
    integers = (jnp.clip(jnp.round(held), -MOST, MOST) + MOST).astype(jnp.int32)
    counts = jnp.zeros(2 * MOST + 1, jnp.float32).at[integers.reshape(-1)].add(1.0)
    table = bits_of(jnp.arange(-MOST, MOST + 1, dtype=jnp.float32), prior)
    return counts @ table + jnp.sum(slope * (latents - held))


def _slope(values: Float[Array, "..."], prior: Prior) -> Float[Array, "..."]:
    """Return `f(x + 1/2) - f(x - 1/2)`, `f = -log2 P`, by P itself: the dearest of a step."""
    shares = jax.nn.softmax(prior.logits)
    above, below = jnp.float32(0), jnp.float32(0)
    for number, scale in enumerate(_scales(prior)):
        share = -shares[number] * jnp.expm1(-1 / scale)
        # Of the three points half a step apart both differences have the middle one.
        low, high = jax.nn.sigmoid(-values / scale), jax.nn.sigmoid(values / scale)
        above += share * jax.nn.sigmoid((1 + values) / scale) * low
        below += share * jax.nn.sigmoid((1 - values) / scale) * high
    tiny = jnp.finfo(jnp.float32).tiny
    return jnp.log2(jnp.maximum(below, tiny)) - jnp.log2(jnp.maximum(above, tiny))
