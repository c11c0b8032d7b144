"""Steps of stochastic gradient descent, of many networks at once; pure functions of arrays.

Plain SGD with momentum and L2 weight decay added to the gradient (of all trainable parameters),
as `torch.optim.SGD`. An L1 penalty enters by proximal steps: after the gradient step every weight
moves towards zero by `rate l1 / (1 - momentum)` and stays there if it gets that far, which the
gradient of |w| never brings about. The factor is that of the gradient: momentum makes each count
`1 / (1 - momentum)` times, so that a weight rests where `|dL/dw| = l1`, as the penalised loss wants
it.

A pass of the loop begins by moving the weights along the velocity that the pass before has left,
and ends with the new velocity; the last move follows the loop. So both change in place: with the
move at the end of a pass XLA computes the velocity a second time for it, and has to copy all
weights and velocities in every step.

Axes: `M` models, `n` examples of one training sample, `P` examples of the pool.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from jaxcomp.experiments.networks.network import Network
from jaxcomp.experiments.reproducibility import KEY_IMPLEMENTATION
from jaxcomp.numerics.transformations import compiled_quickly
from jaxcomp.types import Params


class Rates(NamedTuple):
    """Numbers of the optimizer, traced; of all models, or of one."""

    learning_rate: Float[Array, "*M"]
    momentum: Float[Array, "*M"]
    weight_decay: Float[Array, "*M"]
    l1_penalty: Float[Array, "*M"]


class Keys(NamedTuple):
    """One key for each use and model."""

    weights: Key[Array, "M"]
    order: Key[Array, "M"]
    dropout: Key[Array, "M"]


class Learner(NamedTuple):
    """What a training step changes; the models are the first axis of every leaf."""

    variables: Params
    velocity: Params  # of the parameters
    loss_sum: Float[Array, "M"]  # over the steps of the epoch so far


class Epoch(NamedTuple):
    """The examples of every model in the order of one epoch, cut into batches."""

    order: Int[Array, "M steps batch"]  # rows of the pool
    labels: Int[Array, "M steps batch"]
    steps_before: Int[Array, ""]


class Best(NamedTuple):
    """The epoch with the lowest validation loss so far."""

    variables: Params
    loss: Float[Array, "M"]
    epoch: Int[Array, "M"]


@compiled_quickly()
def model_keys(seed: int, model_ids: Int[Array, "M"]) -> Keys:
    """The keys of every model, folded from the seed and its number."""
    # The implementation is named: the numbers must not depend on a global setting of JAX.
    base = jax.random.key(seed, impl=KEY_IMPLEMENTATION)
    keys = jax.vmap(lambda number: jax.random.split(jax.random.fold_in(base, number), 3))(model_ids)
    return Keys(keys[:, 0], keys[:, 1], keys[:, 2])


@compiled_quickly(static_argnames=("network",))
def initial_learner(keys: Key[Array, "M"], *, network: Network) -> Learner:
    """Models before the first step."""
    variables = jax.vmap(network.init)(keys)
    at_rest = jax.tree.map(jnp.zeros_like, variables["params"])
    return Learner(variables, at_rest, jnp.zeros(len(keys), jnp.float32))


@compiled_quickly(static_argnames=("num_steps", "batch_size"))
def epoch_order(
    keys: Key[Array, "M"],
    epoch: int,
    indices: Int[Array, "M n"],
    labels: Int[Array, "M n"],
    *,
    num_steps: int,
    batch_size: int,
) -> Epoch:
    """Put every model's examples into the order of this epoch, cut into batches."""

    def shuffle(
        key: Key[Array, ""], rows: Int[Array, "n"], classes: Int[Array, "n"]
    ) -> tuple[Array, Array]:
        order = jax.random.permutation(jax.random.fold_in(key, epoch), rows.shape[0])
        order = order[: num_steps * batch_size].reshape(num_steps, batch_size)
        return rows[order], classes[order]

    return Epoch(*jax.vmap(shuffle)(keys, indices, labels), jnp.asarray(epoch * num_steps))


@partial(jax.jit, static_argnames=("network", "is_proximal"), donate_argnames=("learner",))
def run_steps(
    learner: Learner,
    inputs: Float[Array, "P ..."],
    epoch: Epoch,
    keys: Key[Array, "M"],
    rates: Rates,
    first: int,
    stop: int,
    *,
    network: Network,
    is_proximal: bool,
) -> Learner:
    """Train all models for the steps `first` to `stop` of an epoch (traced: compiled once)."""
    order, labels, steps_before = epoch

    def of_one(
        rates: Rates, learner: Learner, order: Array, labels: Array, key: Key[Array, ""]
    ) -> Learner:
        def step(number: Array, learner: Learner) -> Learner:
            # Before the first of these steps it has moved: at the rate 0 weights stay, to the bit.
            rate = jnp.where(number == first, 0, rates.learning_rate)
            learner = _move(is_proximal, rates._replace(learning_rate=rate), learner)
            steps = number + steps_before
            return _step(network, inputs, steps, rates, learner, order[number], labels[number], key)

        return _move(is_proximal, rates, jax.lax.fori_loop(first, stop, step, learner))

    # Around the loop: of arrays that are reshaped within it XLA makes copies.
    return _over_models(of_one)(rates, learner, order, labels, keys)


def _move(is_proximal: bool, rates: Rates, learner: Learner) -> Learner:
    """Move one model along its velocity."""
    params = jax.tree.map(
        partial(moved, rates, is_proximal=is_proximal),
        learner.variables["params"],
        learner.velocity,
    )
    return learner._replace(variables=learner.variables | {"params": params})


def _step(
    network: Network,
    inputs: Float[Array, "P ..."],
    number: Int[Array, ""],
    rates: Rates,
    learner: Learner,
    rows: Int[Array, "batch"],
    labels: Int[Array, "batch"],
    key: Key[Array, ""],
) -> Learner:
    """The new velocity of one model; `number` counts the steps from the beginning of training."""
    params, statistics = learner.variables["params"], learner.variables["statistics"]

    def loss_fn(params: Params) -> tuple[Array, Any]:
        variables = {"params": params, "statistics": statistics}
        return network.train_loss(variables, inputs[rows], labels, jax.random.fold_in(key, number))

    (loss, statistics), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
    velocity = jax.tree.map(partial(accelerated, rates), params, gradient, learner.velocity)
    variables = {"params": params, "statistics": statistics}
    return Learner(variables, velocity, learner.loss_sum + loss)


def accelerated(rates: Rates, weights: Array, gradient: Array, velocity: Array) -> Array:
    """The new velocity: v <- momentum v + (g + decay w)."""
    return (gradient + rates.weight_decay * weights) + rates.momentum * velocity


def moved(rates: Rates, weights: Array, velocity: Array, *, is_proximal: bool) -> Array:
    """Weights after a step along the velocity, w <- w - rate v, and the proximal map after it."""
    weights = weights + -rates.learning_rate * velocity
    if not is_proximal:
        return weights
    threshold = rates.learning_rate * rates.l1_penalty / (1 - rates.momentum)
    return soft_threshold(weights, threshold)


def soft_threshold(weights: Array, threshold: Array) -> Array:
    """Move weights towards zero by a distance, not beyond it: the proximal map of |w|."""
    return jnp.sign(weights) * jnp.maximum(jnp.abs(weights) - threshold, 0)


@partial(jax.jit, static_argnames=("network",))
def mean_validation_loss(
    variables: Params,
    inputs: Float[Array, "chunks examples ..."],
    labels: Int[Array, "chunks examples"],
    *,
    network: Network,
) -> Float[Array, "M"]:
    """Mean cross-entropy of every model in evaluation mode, nats."""

    def one_model(own: Params) -> Array:
        def add(total: Array, chunk: tuple[Array, Array]) -> tuple[Array, None]:
            logits = network.score(own, chunk[0])
            is_filling = chunk[1] < 0
            losses = optax.softmax_cross_entropy_with_integer_labels(
                logits, jnp.where(is_filling, 0, chunk[1])
            )
            return total + jnp.where(is_filling, 0.0, losses).sum(), None

        total, _ = jax.lax.scan(add, jnp.zeros((), jnp.float32), (inputs, labels))
        return total / (labels >= 0).sum()

    return _over_models(one_model)(variables)


def _over_models(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function of one model take all: a program of one model is that model's own."""

    def of_all(*arguments: Any) -> Any:
        if jax.tree.leaves(arguments)[0].shape[0] > 1:
            return jax.vmap(function)(*arguments)
        own = jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[1:]), arguments)
        return jax.tree.map(lambda leaf: leaf[None], function(*own))

    return of_all


@compiled_quickly()
def better(
    best: Best, variables: Params, losses: Float[Array, "M"], epoch: Int[Array, ""] | int
) -> Best:
    """Keep, for each model, the variables with the lower loss; the earlier ones if equal."""
    is_better = losses < best.loss

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(is_better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return Best(
        jax.tree.map(choose, variables, best.variables),
        choose(losses, best.loss),
        jnp.where(is_better, epoch, best.epoch),
    )
