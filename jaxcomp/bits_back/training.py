"""Variational training of a mean-field Gaussian posterior: the description length, minimised.

The objective is the negative evidence lower bound in nats,

    n E_q[mean loss(w)] + kl_weight KL(q || p),

which for a loss that is the mean negative log-likelihood of n labels is the mean length of the
bits-back message of those labels. Weights are sampled by reparameterisation, `mean + scale z`. The
prior is a Gaussian for each leaf. Its scale is learned: for given q the best one is the root mean
square `t^2 = mean(m^2 + s^2)` in closed form, and it is used in every step. At the end it is
rounded to a power of `2^(1/8)`, which one byte says (`prior_bytes`) and which costs less than 0.002
nats per weight.

Training is deterministic: the same arguments give the same bits on the same machine, which is what
a receiver that learns the posterior again depends on.

Axes: `S` seeds, `n` examples.

Sources: Hinton and van Camp, COLT 1993, doi:10.1145/168304.168306; Graves, NeurIPS 2011;
Blundell et al., ICML 2015, arXiv:1505.05424, for the reparameterised gradient.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key

from jaxcomp.bits_back.posterior import Posterior, kl_nats
from jaxcomp.coding.distributions import Gaussian, PriorTree
from jaxcomp.numerics.checks import check_count, check_positive
from jaxcomp.numerics.segments import look_up
from jaxcomp.types import Batch, LossFn, Params, PRNGKey

InitFn: TypeAlias = Callable[[PRNGKey], Params]
"""`key -> params`, the means that training starts from."""

_STEPS_PER_OCTAVE = 8
_BYTE_OF_ONE = 128


@dataclass(frozen=True)
class VariationalConfig:
    """Settings of variational training; static, so each setting compiles once.

    Attributes:
        num_steps: of Adam, at least 1; the learning rate falls to 0 along a cosine.
        learning_rate: at the beginning, positive.
        batch_size: examples per step, drawn with replacement; None takes all in every step.
        num_samples: draws of the weights per step, at least 1.
        initial_scale: of every weight's posterior, positive.
        annealing_steps: over which the KL is faded in, from weight 0; at least 0. Without it the
            weights may be given up before they are of use.

    Raises:
        ValueError: when made, for a value outside these ranges.
    """

    num_steps: int = 2000
    learning_rate: float = 0.01
    batch_size: int | None = None
    num_samples: int = 1
    initial_scale: float = 0.02
    annealing_steps: int = 500

    def __post_init__(self) -> None:
        least = {"num_steps": 1, "num_samples": 1, "annealing_steps": 0}
        if self.batch_size is not None:
            least["batch_size"] = 1
        for name, bound in least.items():
            check_count(name, getattr(self, name), bound)
        for name in ("learning_rate", "initial_scale"):
            check_positive(name, getattr(self, name))


class VariationalFit(NamedTuple):
    """A learned posterior with its prior; with several seeds every leaf has them first."""

    posterior: Posterior
    """Mean and scale of every weight."""
    prior: PriorTree
    """`Gaussian` for each leaf, its scale a power of 2^(1/8)."""
    loss_history: Float[Array, "steps"]
    """Mean loss of the sampled weights in every step, nats."""


class NegativeElbo(NamedTuple):
    """Monte Carlo estimate of the negative evidence lower bound, nats."""

    total: Float[Array, ""]
    """Expected total loss plus KL."""
    standard_error: Float[Array, ""]
    """Of `total`, from the draws of the weights."""
    loss: Float[Array, ""]
    """Expected total loss: of n examples."""
    kl: Float[Array, ""]
    """`KL(q || p)`."""


def fit(
    loss_fn: LossFn,
    init_fn: InitFn,
    batch: Batch,
    key: Key[Array, "..."],
    *,
    config: VariationalConfig,
    kl_weight: Float[Array, "..."] | float = 1.0,
) -> VariationalFit:
    """Learn a mean-field Gaussian posterior and the scales of its prior.

    Args:
        loss_fn: `(params, batch) -> mean loss` in nats. Static: pass the same object each time.
        init_fn: `key -> params`, floating leaves. Static.
        batch: pytree of arrays with leading axis n: all examples.
        key: typed key, or (S,) of them: then S fits run side by side, each as it would alone.
        config: settings, static.
        kl_weight: of the KL in the objective, at least 0, traced: 1 for the description length;
            with several keys it may be an array (S,).

    Returns:
        Posterior, prior and history.

    Raises:
        ValueError: if a known `kl_weight` is negative, or does not fit the keys.
    """
    if not isinstance(kl_weight, Tracer) and np.any(np.asarray(kl_weight) < 0):
        raise ValueError(f"kl_weight must be at least 0, got {np.min(np.asarray(kl_weight)):g}.")
    if np.ndim(kl_weight) and np.shape(kl_weight) != key.shape:
        raise ValueError(
            f"kl_weight must be one number or one for each key, got shape {np.shape(kl_weight)} "
            f"for keys {key.shape}."
        )
    weight = jnp.broadcast_to(jnp.asarray(kl_weight, jnp.float32), key.shape)
    return _fit(loss_fn, init_fn, batch, key, weight, config)


@partial(jax.jit, static_argnames=("loss_fn", "init_fn", "config"))
def _fit(loss_fn, init_fn, batch, key, kl_weight, config):
    run = partial(_fit_one, loss_fn, init_fn, batch, config)
    return jax.vmap(run)(key, kl_weight) if key.ndim else run(key, kl_weight)


def _fit_one(
    loss_fn: LossFn,
    init_fn: InitFn,
    batch: Batch,
    config: VariationalConfig,
    key: PRNGKey,
    kl_weight: Array,
) -> VariationalFit:
    init_key, steps_key = jax.random.split(key)
    num_examples = jax.tree.leaves(batch)[0].shape[0]
    # One vector of all weights: a draw and an update are then one operation each.
    mean, unravel = ravel_pytree(init_fn(init_key))
    dtype = mean.dtype
    leaf_of_weight, sizes = _leaves_of_weights(unravel(mean))
    variational = mean, jnp.full_like(mean, math.log(config.initial_scale))
    optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.num_steps))

    def prior_scales(mean, scale):
        squares = jnp.square(mean) + jnp.square(scale)
        sums = _sums_over_leaves(squares, leaf_of_weight, sizes)
        low, high = _scale_of_exponent(-127.0), _scale_of_exponent(127.0)
        return jnp.clip(jnp.sqrt(sums / jnp.asarray(sizes, sums.dtype)), low, high)

    def objective(variational, batch, key, share):
        mean, log_scale = variational
        scale = jnp.exp(log_scale)
        noise = jax.random.normal(key, (config.num_samples, mean.size), mean.dtype)
        losses = [loss_fn(unravel(mean + scale * own), batch) for own in noise]
        loss = sum(losses) / config.num_samples
        # For the best prior the squares of KL(q || p) cancel and its logarithms remain.
        divergence = jnp.sum(
            look_up(jnp.log(prior_scales(mean, scale)), leaf_of_weight) - log_scale
        )
        # Per example, so that the learning rate does not depend on their number.
        return loss + share * kl_weight * divergence / num_examples, loss

    def step(state, number):
        variational, moments = state
        key, batch_key = jax.random.split(jax.random.fold_in(steps_key, number))
        chosen = batch
        if config.batch_size is not None:
            rows = jax.random.randint(batch_key, (config.batch_size,), 0, num_examples)
            chosen = jax.tree.map(lambda leaf: leaf[rows], batch)
        done = (number + 1).astype(dtype)
        share = jnp.minimum(done / max(config.annealing_steps, 1), 1.0)
        gradient, loss = jax.grad(objective, has_aux=True)(variational, chosen, key, share)
        updates, moments = optimizer.update(gradient, moments, variational)
        moved: Any = optax.apply_updates(variational, updates)
        return (moved, moments), loss

    state: Any = variational, optimizer.init(variational)
    (learned, _), history = jax.lax.scan(step, state, jnp.arange(config.num_steps))
    mean, scale = learned[0], jnp.exp(learned[1])
    exponents = jnp.round(_STEPS_PER_OCTAVE * jnp.log2(prior_scales(mean, scale)))
    posterior = Posterior(unravel(mean), unravel(scale))
    structure = jax.tree.structure(posterior.mean)
    priors = [Gaussian(own) for own in _scale_of_exponent(exponents)]
    return VariationalFit(posterior, jax.tree.unflatten(structure, priors), history)


def _leaves_of_weights(params: Params) -> tuple[Array, list[int]]:
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    numbers = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    return jnp.asarray(numbers), sizes


def _sums_over_leaves(
    values: Float[Array, " weights"], leaf_of_weight: Int[Array, " weights"], sizes: list[int]
) -> Float[Array, " leaves"]:
    """Sum over the weights of every leaf: scattered on a CPU, elsewhere leaf by leaf."""

    def by_scatter(values: Array) -> Array:
        return jax.ops.segment_sum(values, leaf_of_weight, len(sizes), indices_are_sorted=True)

    def by_leaf(values: Array) -> Array:
        leaves = jnp.split(values, np.cumsum(sizes)[:-1])
        return jnp.stack([jnp.sum(leaf) for leaf in leaves])

    return lax.platform_dependent(values, cpu=by_scatter, default=by_leaf)


def sample(posterior: Posterior, key: PRNGKey) -> Params:
    """Draw weights from the posterior.

    Args:
        posterior: q.
        key: typed key, consumed here.

    Returns:
        Weights, shaped like the mean.
    """
    mean, unravel = ravel_pytree(posterior.mean)
    scale, _ = ravel_pytree(posterior.scale)
    return unravel(mean + scale * jax.random.normal(key, mean.shape, mean.dtype))


def negative_elbo(
    loss_fn: LossFn,
    fitted: VariationalFit,
    batch: Batch,
    key: PRNGKey,
    *,
    num_samples: int = 64,
) -> NegativeElbo:
    """Estimate the mean length of the message: expected total loss plus KL, nats.

    Args:
        loss_fn: `(params, batch) -> mean loss` in nats. Static.
        fitted: of one seed.
        batch: all n examples.
        key: typed key, consumed here.
        num_samples: draws of the weights, at least 2. Static.

    Returns:
        The estimate with its standard error.

    Raises:
        ValueError: if `num_samples < 2`.
    """
    if num_samples < 2:
        raise ValueError(f"num_samples must be at least 2, got {num_samples}.")
    return _negative_elbo(loss_fn, fitted.posterior, fitted.prior, batch, key, num_samples)


@partial(jax.jit, static_argnames=("loss_fn", "num_samples"))
def _negative_elbo(loss_fn, posterior, prior, batch, key, num_samples):
    num_examples = jax.tree.leaves(batch)[0].shape[0]
    keys = jax.random.split(key, num_samples)
    losses = num_examples * jax.lax.map(lambda key: loss_fn(sample(posterior, key), batch), keys)
    divergence = kl_nats(posterior, prior)
    error = jnp.std(losses, ddof=1) / math.sqrt(num_samples)
    return NegativeElbo(jnp.mean(losses) + divergence, error, jnp.mean(losses), divergence)


def prior_bytes(prior: PriorTree) -> bytes:
    """Write the scales of a learned prior, one byte for each leaf."""
    scales = np.asarray([float(own) for own in jax.tree.leaves(prior)])
    exponents = np.rint(_STEPS_PER_OCTAVE * np.log2(scales)).astype(int) + _BYTE_OF_ONE
    return bytes(exponents.tolist())


def prior_from_bytes(side: Any, like: Params) -> PriorTree:
    """Read the scales of a learned prior.

    Args:
        side: from `prior_bytes`.
        like: pytree with as many leaves.

    Returns:
        `Gaussian` for each leaf.

    Raises:
        ValueError: if there are not as many bytes as leaves.
    """
    structure = jax.tree.structure(like)
    if len(side) != structure.num_leaves:
        raise ValueError(
            f"The side information has {len(side)} bytes, the weights {structure.num_leaves} "
            "leaves: one byte for each is expected."
        )
    exponents = [int(byte) - _BYTE_OF_ONE for byte in side]
    scales = [Gaussian(2.0 ** (exponent / _STEPS_PER_OCTAVE)) for exponent in exponents]
    return jax.tree.unflatten(structure, scales)


def _scale_of_exponent(exponent: Any) -> Any:
    return 2.0 ** (exponent / _STEPS_PER_OCTAVE)
