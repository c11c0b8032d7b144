"""Training weights of few levels under a price for the bits of their stream.

Weights are whole numbers from `-most` to `most`; behind each stands a real number that is trained.
The network sees the nearest level (straight-through), the price sees what a level costs now, by the
frequencies of all levels of the same array as a table of the stream would have them, and between
two levels the mean of their costs: real numbers move towards levels that are cheap.

Sources: Bengio, Leonard, Courville, arXiv:1308.3432 (straight-through); Oktay, Balle, Singh,
Shrivastava, arXiv:1906.06624 (entropy-penalised training).
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxcomp.numerics.checks import check_count
from jaxcomp.numerics.transformations import always_compiled, explicit_transfers
from jaxcomp.types import Batch, Params, PRNGKey

if TYPE_CHECKING:
    import optax

LevelLossFn: TypeAlias = Callable[[Params, Params, Batch], Float[Array, ""]]
"""`(levels, free, batch) -> mean loss`, nats; levels are floating and whole."""


class FewLevels(NamedTuple):
    """Weights after `train_few_levels`.

    Attributes:
        levels: structured like the weights given, float32, whole numbers.
        free: what was trained beside them at full precision.
        losses: (steps,) loss of the batch before each step, nats, without the price.
    """

    levels: Params
    free: Params
    losses: Float[Array, " steps"]


@always_compiled
def level_costs_bits(levels: Float[Array, "..."], *, most: int) -> Float[Array, " levels"]:
    """Return what each level costs by the frequencies of all, half a weight added to each.

    Args:
        levels: whole numbers from -most to most.
        most: the highest level. Static.

    Returns:
        (2 most + 1,) bits.
    """
    places = (levels.reshape(-1) + most).astype(jnp.int32)
    counts = jnp.zeros(2 * most + 1, jnp.float32).at[places].add(1.0) + 0.5
    return jnp.log2(counts.sum()) - jnp.log2(counts)


@always_compiled
def interpolated_bits(
    weights: Float[Array, "..."], costs: Float[Array, " levels"]
) -> Float[Array, ""]:
    """Return what weights cost, between two levels in proportion; beyond them like the last ones.

    Args:
        weights: any shape; levels are the whole numbers around 0.
        costs: (2 most + 1,) bits of each.
    """
    most = (costs.shape[0] - 1) // 2
    place = jnp.clip(weights.reshape(-1) + most, 0, 2 * most - 1e-3)
    below = lax.stop_gradient(jnp.floor(place))
    share, index = place - below, below.astype(jnp.int32)
    return jnp.sum(costs[index] * (1 - share) + costs[index + 1] * share)


@explicit_transfers
def train_few_levels(
    loss_fn: LevelLossFn,
    weights: Params,
    free: Params,
    batch: Batch,
    key: PRNGKey,
    *,
    most: int,
    nats_per_bit: Float[Array, ""] | float,
    optimizer: "optax.GradientTransformation",
    num_steps: int,
    batch_size: int,
) -> FewLevels:
    """Minimise `mean loss + nats_per_bit bits/n` over whole numbers from -most to most.

    Args:
        loss_fn: `(levels, free, batch) -> scalar`. Static: pass the same function object each time.
        weights: pytree of floating arrays, where to begin.
        free: pytree trained at full precision, such as the temperature of the logits.
        batch: pytree of arrays with the leading axis n: all examples.
        key: orders the examples, consumed here.
        most: the highest level, at least 1: 1 to 9 are 3 to 19 levels. Static.
        nats_per_bit: price; ln 2 is the description length.
        optimizer: such as `optax.adam(0.05)`, of weights and `free` together. Static.
        num_steps: of it. Static.
        batch_size: examples of a step, at most n. Static.

    Returns:
        Levels, what was trained beside them, and the losses.

    Raises:
        ValueError: if a count is less than 1, or examples are fewer than those of a step.
    """
    for name, count in (("most", most), ("num_steps", num_steps), ("batch_size", batch_size)):
        check_count(name, count)
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    if len(lengths) != 1 or min(lengths) < (batch_size,):
        raise ValueError(
            f"batch must be arrays with one leading axis of at least batch_size = {batch_size} "
            f"examples, got leading axes {sorted(lengths)}."
        )
    return _train(
        weights,
        free,
        batch,
        key,
        jnp.asarray(nats_per_bit, jnp.float32),
        loss_fn=loss_fn,
        optimizer=optimizer,
        most=most,
        num_steps=num_steps,
        batch_size=batch_size,
    )


def nearest_levels(weights: Params, *, most: int) -> Params:
    """Return the nearest levels, differentiated as if they were the weights themselves."""

    def leaf(values: Array) -> Array:
        values = jnp.clip(values, -most, most)
        return values + lax.stop_gradient(jnp.round(values) - values)

    return jax.tree.map(leaf, weights)


@partial(jax.jit, static_argnames=("loss_fn", "optimizer", "most", "num_steps", "batch_size"))
def _train(
    weights, free, batch, key, nats_per_bit, *, loss_fn, optimizer, most, num_steps, batch_size
):
    num_examples = jax.tree.leaves(batch)[0].shape[0]
    order = jax.random.permutation(key, num_examples)
    batch = jax.tree.map(lambda leaf: leaf[order], batch)
    num_starts = num_examples - batch_size + 1

    def objective(trained, examples):
        weights, free = trained
        loss = loss_fn(nearest_levels(weights, most=most), free, examples)
        bits = jnp.float32(0)
        for leaf in jax.tree.leaves(weights):
            now = lax.stop_gradient(jnp.round(jnp.clip(leaf, -most, most)))
            bits += interpolated_bits(leaf, level_costs_bits(now, most=most))
        return loss + nats_per_bit * bits / num_examples, loss

    def step(state, number):
        trained, moments = state
        start = (number * batch_size) % num_starts
        examples = jax.tree.map(
            lambda leaf: lax.dynamic_slice_in_dim(leaf, start, batch_size), batch
        )
        gradient, loss = jax.grad(objective, has_aux=True)(trained, examples)
        updates, moments = optimizer.update(gradient, moments, trained)
        return (jax.tree.map(jnp.add, trained, updates), moments), loss

    trained = (jax.tree.map(jnp.asarray, weights), jax.tree.map(jnp.asarray, free))
    (trained, _), losses = lax.scan(
        step, (trained, optimizer.init(trained)), jnp.arange(num_steps, dtype=jnp.int32)
    )
    levels = jax.tree.map(lambda leaf: jnp.round(jnp.clip(leaf, -most, most)), trained[0])
    return FewLevels(levels, trained[1], losses)


def bits_of_levels(levels: Params, *, most: int) -> Float[Array, ""]:
    """Return what levels cost by their own frequencies, without the tables that say these."""
    total = jnp.float32(0)
    for leaf in jax.tree.leaves(levels):
        total += interpolated_bits(leaf, level_costs_bits(leaf, most=most))
    return total
