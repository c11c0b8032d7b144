"""Steps of Adam on networks and on their latents, all seeds in one program.

Axes: `M` seeds, `S` steps of an epoch, `B` examples of a step, `N` images.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Key, UInt8

from jaxcomp.evaluation import metrics
from jaxcomp.experiments.train_small.networks import predict_fn
from jaxcomp.training import Coded, RandomCode, encode, sampled_weights, weights_and_bits
from jaxcomp.types import AnyArray, Params, PRNGKey

_ADAM = optax.scale_by_adam()
_PER_LATENT = 0.05  # rate of steps over that of latents
_PER_POSTERIOR = 2.5  # and that of means and shares of random codes
_RISE = 100  # steps until the full rate
_GROUPS = 10  # of a batch, each shifted alike
_AT_ONCE = 1_000


class Images(NamedTuple):
    """Labelled images as they are loaded.

    Attributes:
        pixels: (N, H, W, C) uint8.
        labels: (N,) int32.
        max_value: of a full pixel.
    """

    pixels: UInt8[AnyArray, "N H W C"]
    labels: Int[AnyArray, " N"]
    max_value: int


class Phase(NamedTuple):
    """What is the same for all steps; static.

    Attributes:
        network: its name.
        is_priced: whether latents are trained under a price, or weights without.
        shift: pixels up to which images are shifted.
        max_value: of a full pixel.
        code: of random codes, of whose posterior a sample is drawn at each step; else None.
    """

    network: str
    is_priced: bool
    shift: int
    max_value: int
    code: RandomCode | None = None


class Schedule(NamedTuple):
    """Numbers of a training; traced.

    Attributes:
        learning_rate: at its height; falls to 0 as a cosine.
        nats_per_bit: of the mean loss, at its height.
        warm: share of the steps in which it rises.
        num_steps: in all.
    """

    learning_rate: Float[Array, ""]
    nats_per_bit: Float[Array, ""]
    warm: Float[Array, ""]
    num_steps: Float[Array, ""]


class State(NamedTuple):
    """Where a training stands; every array has the seeds first.

    Attributes:
        trained: Latents, weights, or Posterior.
        moments: of Adam.
        loss_sum: (M,) nats, of the steps of this epoch.
        bits: (M,) of the last step.
        coded: of random codes, the blocks that are sent already; else None.
    """

    trained: Any
    moments: Any
    loss_sum: Float[Array, " M"]
    bits: Float[Array, " M"]
    coded: Coded | None = None


def initial_state(trained: Any, coded: Coded | None = None) -> State:
    """Return the state before the first step; `trained` and `coded` have the seeds first."""
    zeros = jax.device_put(np.zeros(jax.tree.leaves(trained)[0].shape[0], np.float32))
    return State(trained, _moments_at_rest(trained), zeros, zeros, coded)


@jax.jit
def _moments_at_rest(trained: Any) -> Any:
    return jax.vmap(_ADAM.init)(trained)


@partial(jax.jit, static_argnames=("code",))
def code_blocks(
    state: State, keys: Key[Array, " M"], start: Int[Array, ""], stop: Int[Array, ""], *, code: Any
) -> State:
    """Choose candidates of some blocks of random codes, of all seeds from the same candidates.

    Args:
        state: before.
        keys: of the training.
        start: the first block.
        stop: the block after the last one.
        code: static.
    """

    def of_model(posterior: Any, key: PRNGKey, coded: Any) -> Any:
        own = jax.random.fold_in(key, _FOR_CODING)
        return encode(code, posterior, own, coded, start=start, stop=stop)

    return state._replace(coded=jax.vmap(of_model)(state.trained, keys, state.coded))


_FOR_CODING = 0x7FFFFFFF  # beyond the number of any step


@partial(jax.jit, static_argnames=("phase",), donate_argnums=(0,))
def run_steps(
    state: State,
    padded: UInt8[Array, "N rows columns C"],
    labels: Int[Array, " N"],
    order: Int[Array, "M S B"],
    keys: Key[Array, " M"],
    schedule: Schedule,
    first: Int[Array, ""],
    stop: Int[Array, ""],
    done: Int[Array, ""],
    *,
    phase: Phase,
) -> State:
    """Take some steps of an epoch.

    Args:
        state: before; given away.
        padded: images with `shift` pixels of zeros around each.
        labels: of them.
        order: which examples each step has.
        keys: of the shifts, of the whole training.
        schedule: rates.
        first: step of the epoch.
        stop: the step after the last one.
        done: steps before this epoch.
        phase: static.
    """

    def of_model(inputs: Any) -> State:
        own, examples, key = inputs

        def step(number: Any, own: State) -> State:
            return _step(own, padded, labels, examples[number], key, schedule, done + number, phase)

        return lax.fori_loop(first, stop, step, own)

    return _each_model(of_model, (state, order, keys))


def _each_model(function: Any, inputs: Any) -> Any:
    """Map over seeds: one after the other on CPUs, whose cores a product fills, else at once."""
    if jax.default_backend() == "cpu":
        return lax.map(function, inputs)
    return jax.vmap(function)(inputs)


def _step(
    state: State,
    padded: Any,
    labels: Any,
    examples: Any,
    key: PRNGKey,
    schedule: Schedule,
    number: Any,
    phase: Phase,
) -> State:
    share = number.astype(jnp.float32) / schedule.num_steps
    rate = schedule.learning_rate * 0.5 * (1 + jnp.cos(math.pi * share))
    rate *= jnp.minimum(1.0, (number + 1) / _RISE)
    price = schedule.nats_per_bit * jnp.minimum(1.0, share / schedule.warm)
    pixels = _shifted(padded[examples], jax.random.fold_in(key, number), phase.shift)
    images = pixels.astype(jnp.float32) / phase.max_value

    def objective(trained: Any) -> tuple[Any, Any]:
        params, bits = trained, jnp.float32(0)
        if phase.is_priced:
            params, bits = weights_and_bits(trained)
        elif phase.code is not None:
            own = jax.random.fold_in(jax.random.fold_in(key, number), 1)
            params = sampled_weights(phase.code, trained, own, state.coded)
        logits = predict_fn(phase.network)(params, images)
        loss = jnp.mean(metrics.cross_entropy(logits, labels[examples]))
        return loss + price * bits, (loss, bits)

    gradient, (loss, bits) = jax.grad(objective, has_aux=True)(state.trained)
    direction: Any
    direction, moments = _ADAM.update(gradient, state.moments)
    if phase.is_priced:
        slow = jax.tree.map(lambda own: _PER_LATENT * own, direction.log_steps)
        direction = direction._replace(log_steps=slow)
    if phase.code is not None:
        rate *= _PER_POSTERIOR
    trained = jax.tree.map(lambda own, move: own - rate * move, state.trained, direction)
    return State(trained, moments, state.loss_sum + loss, bits, state.coded)


def _shifted(pixels: Any, key: PRNGKey, shift: int) -> Any:
    """Cut images out of padded ones; a part of the batch has one place."""
    if shift == 0:
        return pixels
    count, rows, columns, channels = pixels.shape
    size = (rows - 2 * shift, columns - 2 * shift, channels)
    bounds = [part[0] for part in np.array_split(np.arange(count), min(_GROUPS, count))]
    places = jax.random.randint(key, (len(bounds), 2), 0, 2 * shift + 1)
    parts = [
        lax.dynamic_slice(pixels[start:end], (0, *place, 0), (end - start, *size))
        for start, end, place in zip(bounds, [*bounds[1:], count], places, strict=True)
    ]
    return jnp.concatenate(parts)


def evaluate(params: Params, images: Images, network: str) -> tuple[float, int]:
    """Return the mean loss in nats, and the number of errors, of one network."""
    loss, wrong = 0.0, 0
    for start in range(0, len(images.labels), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        found = _evaluate(
            params,
            images.pixels[part],
            images.labels[part],
            network=network,
            max_value=images.max_value,
        )
        loss, wrong = loss + float(found[0]), wrong + int(found[1])
    return loss / len(images.labels), wrong


@partial(jax.jit, static_argnames=("network", "max_value"))
def _evaluate(params: Any, pixels: Any, labels: Any, *, network: str, max_value: int) -> Any:
    logits = predict_fn(network)(params, pixels.astype(jnp.float32) / max_value)
    wrong = jnp.sum(~metrics.correct(logits, labels).astype(bool))
    return jnp.sum(metrics.cross_entropy(logits, labels)), wrong


@partial(jax.jit, static_argnames=("network", "max_value"))
def mean_losses(
    params: Params, images: Any, labels: Any, *, network: str, max_value: int
) -> Float[Array, " M"]:
    """Return the mean loss of each seed on some images."""

    def of_model(own: Any) -> Any:
        logits = predict_fn(network)(own, images.astype(jnp.float32) / max_value)
        return jnp.mean(metrics.cross_entropy(logits, labels))

    return _each_model(of_model, params)
