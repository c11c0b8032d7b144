"""Levels moved one by one as long as the certificate itself falls: errors and bits, no surrogate.

After training, weights of a linear layer are few whole numbers, and each can be tried one level up,
one down, and at 0: the scores of one class change, those of the others stay, so that the errors of
all moves of a class are counted in one pass over the examples. The best move of a class is made,
class after class, until none of them pays. What an error is worth in bits follows from the
certificate: see `errors_per_bit`.

Axes: `F` features, `n` examples, `C` classes, `M` moves.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxcomp.numerics.checks import check_count
from jaxcomp.numerics.transformations import explicit_transfers
from jaxcomp.types import AnyArray

_BITS_OF_NEW_LEVEL = 3.0  # about what a table of frequencies takes for one more
_MOST_BIAS = 127


class Refined(NamedTuple):
    """A layer after `refine`.

    Attributes:
        weights: (F, C) levels.
        bias: (C,) levels.
        num_errors: of the examples.
        num_moves: that were made.
    """

    weights: Int[Array, "F C"]
    bias: Int[Array, " C"]
    num_errors: Int[Array, ""]
    num_moves: Int[Array, ""]


def errors_per_bit(error: float, bound: float) -> float:
    """Return how many errors on the sample raise a certificate as much as one bit does.

    With `kl(error || bound) n = bits ln 2 + ln(1/delta)`, that is ln 2 over the derivative of
    `-kl` in the error.

    Args:
        error: on the sample, in (0, bound).
        bound: in (0, 1).
    """
    error = max(error, 1e-6)
    return math.log(2) / (math.log(bound / error) - math.log1p(-bound) + math.log1p(-error))


@explicit_transfers
def refine(
    features: Float[AnyArray, "F n"],
    labels: Int[AnyArray, " n"],
    weights: Int[AnyArray, "F C"],
    bias: Int[AnyArray, " C"],
    scores: Float[AnyArray, "C n"],
    *,
    most: int,
    bias_unit: float,
    price: float,
    max_moves: int = 1_000,
) -> Refined:
    """Lower `errors + price bits` by single levels, the best of each class in turn.

    Args:
        features: of each example.
        labels: from 0 to C - 1.
        weights: levels from -most to most, where to begin.
        bias: levels, from -127 to 127, of plain bytes that cost the same.
        scores: that the examples have beside those of the levels given: zeros, or those of a
            network that the levels are added to.
        most: the highest level. Static.
        bias_unit: what one level of the bias adds to a score.
        price: errors for a bit, see `errors_per_bit`.
        max_moves: after which it stops. Static.

    Returns:
        The levels and their errors. An example is right if the score of its label is above all
        others.

    Raises:
        ValueError: if a count is less than 1.
    """
    check_count("most", most)
    check_count("max_moves", max_moves)
    features, levels = jnp.asarray(features), jnp.asarray(weights, jnp.int32)
    unit = jnp.full((1, features.shape[1]), bias_unit, jnp.float32)
    rows = jnp.concatenate([features, unit])
    levels = jnp.concatenate([levels, jnp.asarray(bias, jnp.int32)[None]])
    scores = jnp.asarray(scores) + levels.T.astype(jnp.float32) @ rows
    levels, errors, moves = _refine(
        rows,
        jnp.asarray(labels, jnp.int32),
        levels,
        scores,
        jnp.asarray(price, jnp.float32),
        most=most,
        max_moves=max_moves,
    )
    return Refined(levels[:-1], levels[-1], errors, moves)


class _State(NamedTuple):
    levels: Array  # (F + 1, C)
    scores: Array  # (C, n)
    errors: Array
    moves: Array
    number: Array  # of the class whose turn it is
    idle: Array  # classes in a row for which no move paid


@partial(jax.jit, static_argnames=("most", "max_moves"))
def _refine(rows, labels, levels, scores, price, *, most, max_moves):
    num_classes = scores.shape[0]
    classes = jnp.arange(num_classes, dtype=jnp.int32)
    is_label = labels[None, :] == classes[:, None]
    limit = jnp.concatenate(
        [jnp.full(len(rows) - 1, most, jnp.int32), jnp.full(1, _MOST_BIAS, jnp.int32)]
    )
    is_priced = jnp.arange(len(rows)) < len(rows) - 1

    def turn(state: _State) -> _State:
        number = state.number
        own = jnp.max(jnp.where(is_label, state.scores, -jnp.inf), axis=0)
        is_rest = ~is_label & (classes != number)[:, None]
        rival = jnp.max(jnp.where(is_rest, state.scores, -jnp.inf), axis=0)
        # Right if the score of this class is above, or for other labels below, what it meets.
        is_own = labels == number
        sign = jnp.where(is_own, 1.0, -1.0)
        margin = sign * (state.scores[number] - jnp.where(is_own, rival, own))
        # What another class already gets wrong, no move of this one mends.
        margin = jnp.where(is_own | (rival < own), margin, -jnp.inf)
        before = state.levels[:, number]
        moves = jnp.stack([jnp.ones_like(before), -jnp.ones_like(before), -before], axis=1)
        after = before[:, None] + moves

        def errors_of(row):
            values, steps = row
            change = sign * values
            return lax.map(lambda step: jnp.sum(margin + step * change <= 0), steps)

        errors = lax.map(errors_of, (rows, moves.astype(jnp.float32)))
        bits = _change_of_bits(state.levels[:-1], most)
        places = (jnp.clip(before, -most, most) + most, jnp.clip(after, -most, most) + most)
        bits = jnp.where(is_priced[:, None], bits[places[0][:, None], places[1]], 0.0)
        gain = (state.errors - errors) - price * bits
        is_allowed = (jnp.abs(after) <= limit[:, None]) & (moves != 0)
        gain = jnp.where(is_allowed, gain, -jnp.inf)
        place = jnp.argmax(gain)
        row, move = place // moves.shape[1], place % moves.shape[1]
        is_made = gain[row, move] > 1e-3
        step = jnp.where(is_made, moves[row, move], 0)
        return _State(
            state.levels.at[row, number].add(step),
            state.scores.at[number].add(step * rows[row]),
            jnp.where(is_made, errors[row, move], state.errors),
            state.moves + is_made,
            (number + 1) % num_classes,
            jnp.where(is_made, 0, state.idle + 1),
        )

    rival = jnp.max(jnp.where(is_label, -jnp.inf, scores), axis=0)
    own = jnp.max(jnp.where(is_label, scores, -jnp.inf), axis=0)
    zero = jnp.zeros((), jnp.int32)
    state = _State(levels, scores, jnp.sum(own <= rival), zero, zero, zero)
    state = lax.while_loop(
        lambda state: (state.idle < num_classes) & (state.moves < max_moves), turn, state
    )
    return state.levels, state.errors, state.moves


def _change_of_bits(levels: Int[Array, "F C"], most: int) -> Float[Array, "K K"]:
    """Return by how much the bits of all change if one goes from a level to another."""
    size = 2 * most + 1
    counts = jnp.zeros(size, jnp.float32).at[levels.reshape(-1) + most].add(1.0)

    def bits(counts: Array) -> Array:
        logs = jnp.log2(jnp.maximum(counts, 1))
        return counts @ (jnp.log2(counts.sum()) - logs) + _BITS_OF_NEW_LEVEL * jnp.sum(counts > 0)

    one = jnp.eye(size, dtype=jnp.float32)
    moved = counts - one[:, None, :] + one[None, :, :]
    return jax.vmap(jax.vmap(bits))(moved) - bits(counts)
