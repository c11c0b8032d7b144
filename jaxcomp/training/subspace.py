"""Networks in a random subspace: `w = w0 + P theta`, where only few coordinates are trained.

The matrix P is never stored. Its entries are signs from a counter, made by whole numbers of 32 bits
alone, so that every machine, NumPy and JAX have the same P from the same seed; then a file holds
theta, and the decoder needs P and w0 (fixed before the data) as a program. Columns of `Dense` and
`LowRank` have norm 1.

Axes: `D` weights of all leaves, in the order of the pytree, rows first; `d` coordinates.

Sources: Li, Farkhoor, Liu, Yosinski, arXiv:1804.08838 (dense); Lotfi, Finzi, Kapoor, Potapczynski,
Goldblum, Wilson, arXiv:2211.13609, section 4 (Kronecker sum); Appleby, MurmurHash3 (the mixing).
"""

import math
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int8, PyTree

from jaxcomp.numerics.checks import check_count
from jaxcomp.numerics.transformations import explicit_transfers
from jaxcomp.types import Params

_MOST_ENTRIES = 1 << 31
_GOLDEN = 0x9E3779B9  # 2^32 over the golden ratio, odd

_Words = TypeVar("_Words", np.ndarray, Array)
Signs = PyTree[Int8[np.ndarray, "..."]]


def random_words(counter: _Words, seed: int) -> _Words:
    """Return a word for each place of a counter, the same on every machine.

    Args:
        counter: uint32, of NumPy or of JAX, any shape.
        seed: from 0 to 2^32 - 1.

    Returns:
        uint32 of the same shape and kind.

    Raises:
        ValueError: if the seed is out of range.
    """
    if not 0 <= seed < 1 << 32:
        raise ValueError(f"seed must lie between 0 and 2^32 - 1, got {seed}.")
    first = _mixed(np.asarray([seed], np.uint32))[0]
    second = _mixed(np.asarray([seed ^ _GOLDEN], np.uint32))[0]
    return _mixed(_mixed(counter * np.uint32(_GOLDEN) + first) ^ second)


def random_signs(seed: int, shape: tuple[int, ...]) -> Int8[np.ndarray, "*shape"]:
    """Return -1 and 1: the highest bits of `random_words` of 0, 1, ..., rows first.

    Raises:
        ValueError: if the seed is out of range, or they are more than 2^31.
    """
    count = math.prod(shape)
    if count > _MOST_ENTRIES:
        raise ValueError(
            f"a projection of the shape {shape} has more than 2^31 entries; take KroneckerSum or "
            "LowRank, which need no matrix of all weights."
        )
    signs = np.empty(count, np.int8)
    for start in range(0, count, 1 << 22):  # words take eight times the room of signs
        places = np.arange(start, min(start + (1 << 22), count), dtype=np.uint32)
        signs[start : start + len(places)] = 2 * (random_words(places, seed) >> 31).astype(np.int8)
    return (signs - np.int8(1)).reshape(shape)


def _mixed(word: _Words) -> _Words:
    """Return the finaliser of MurmurHash3."""
    word = (word ^ (word >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    word = (word ^ (word >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return word ^ (word >> np.uint32(16))


class Subspace(Protocol):
    """A family of matrices P for a network of any pytree."""

    def signs(self, like: Params) -> Signs:
        """Return the signs that P is made of, for leaves of these shapes."""
        ...

    def coordinates(self, like: Params) -> Params:
        """Return theta of zeros, float32: the network is then w0 itself."""
        ...

    def expand(self, start: Params, theta: Params, signs: Signs) -> Params:
        """Return `w0 + P theta`, structured like w0 and in its dtypes. Pure, for any trace."""
        ...


class Dense(NamedTuple):
    """P has D rows and d columns of signs over the root of D.

    Attributes:
        dimension: d.
        seed: of the signs.
    """

    dimension: int
    seed: int = 0

    def signs(self, like: Params) -> Signs:
        """Return P times the root of D, (D, d); see `Subspace`."""
        check_count("dimension", self.dimension)
        return random_signs(self.seed, (_num_weights(like), self.dimension))

    def coordinates(self, like: Params) -> Params:
        """Return (d,) zeros; see `Subspace`."""
        return jnp.zeros(self.dimension, jnp.float32)

    @explicit_transfers
    def expand(self, start: Params, theta: Params, signs: Signs) -> Params:
        """See `Subspace`."""
        signs = jnp.asarray(signs)
        moves = signs.astype(jnp.float32) @ theta
        return _added(start, moves * np.float32(1 / math.sqrt(signs.shape[0])))


class KroneckerSum(NamedTuple):
    """P = (1 x R1 + R2 x 1)/root(2 D): weights as a square, a number for its row and its column.

    For d up to twice the root of D, beyond which coordinates repeat each other.

    Attributes:
        dimension: d.
        seed: of the signs R1 and R2.
    """

    dimension: int
    seed: int = 0

    def signs(self, like: Params) -> Signs:
        """Return R1 and R2, (2, side, d), where the side is the root of D, rounded up."""
        check_count("dimension", self.dimension)
        side = math.isqrt(_num_weights(like) - 1) + 1
        if self.dimension > 2 * side:
            raise ValueError(
                f"dimension must be at most {2 * side}, twice the side of the square of weights, "
                f"got {self.dimension}; take Dense."
            )
        return random_signs(self.seed, (2, side, self.dimension))

    def coordinates(self, like: Params) -> Params:
        """Return (d,) zeros; see `Subspace`."""
        return jnp.zeros(self.dimension, jnp.float32)

    @explicit_transfers
    def expand(self, start: Params, theta: Params, signs: Signs) -> Params:
        """See `Subspace`."""
        rows, columns = jnp.asarray(signs).astype(jnp.float32) @ theta
        count = _num_weights(start)
        moves = (rows[None, :] + columns[:, None]).reshape(-1)[:count]
        return _added(start, moves * np.float32(1 / math.sqrt(2 * count)))


class LowRank(NamedTuple):
    """Each matrix (m, n) moves by `A T B'/root(m n)`, each vector (m,) by `A t/root(m)`.

    A and B are signs of `rank` columns, or m or n if that is less. Leaves of more axes are matrices
    with the last axis as columns. `P = A x B` for each leaf on its own.

    Attributes:
        rank: r; a matrix has r^2 coordinates, a vector r.
        seed: of the signs, those of a leaf by its number.
    """

    rank: int
    seed: int = 0

    def signs(self, like: Params) -> Signs:
        """Return A and B, (m, r) and (n, r), of each leaf; A alone for a vector."""
        check_count("rank", self.rank)
        leaves, structure = jax.tree.flatten(like)
        found = []
        for number, leaf in enumerate(leaves):
            sides = _sides(leaf)
            found.append(
                tuple(
                    # Seeds in a row do: they are mixed.
                    random_signs((self.seed + 2 * number + k) % (1 << 32), (side, self._of(side)))
                    for k, side in enumerate(sides)
                )
            )
        return structure.unflatten(found)

    def coordinates(self, like: Params) -> Params:
        """Return zeros of the shape (r, r) or (r,) for each leaf, structured like the network."""

        def leaf(values: Array) -> Array:
            return jnp.zeros(tuple(self._of(side) for side in _sides(values)), jnp.float32)

        return jax.tree.map(leaf, like)

    @explicit_transfers
    def expand(self, start: Params, theta: Params, signs: Signs) -> Params:
        """See `Subspace`."""

        def leaf(values: Array, own: Array, sides: tuple[Any, ...]) -> Array:
            left, *right = (jnp.asarray(side).astype(jnp.float32) for side in sides)
            moves = left @ own
            if right:
                moves = moves @ right[0].T
            scale = np.float32(1 / math.sqrt(math.prod(_sides(values))))
            return values + (moves * scale).reshape(jnp.shape(values)).astype(values.dtype)

        return jax.tree.map(leaf, start, theta, signs)

    def _of(self, side: int) -> int:
        return min(self.rank, side)


def _sides(leaf: Any) -> tuple[int, ...]:
    shape = jnp.shape(leaf)
    if len(shape) < 2:
        return (math.prod(shape),)
    return math.prod(shape[:-1]), shape[-1]


def _num_weights(params: Params) -> int:
    count = sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(params))
    if not count:
        raise ValueError("the network has no weights; give a pytree of arrays.")
    return count


def _added(start: Params, moves: Array) -> Params:
    """Return a network moved by a vector of all its weights."""
    leaves, structure = jax.tree.flatten(start)
    ends = np.cumsum([math.prod(jnp.shape(leaf)) for leaf in leaves])
    parts = jnp.split(moves, ends[:-1].tolist())
    return structure.unflatten(
        jnp.asarray(leaf) + part.reshape(jnp.shape(leaf)).astype(jnp.asarray(leaf).dtype)
        for leaf, part in zip(leaves, parts, strict=True)
    )
