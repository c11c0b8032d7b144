"""Scales of a tensor: one for all, one for each channel, or one for each group of a channel.

What is divided by its scale shares one codebook, so that channels of different spread lose no
resolution to each other. Rows are channels, or the groups of consecutive weights that a channel is
cut into.

Axes: `R` rows, `C` columns: the weights of a row, the last ones of a channel filled up with zeros.
"""

import math
from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped

Scale = Literal["tensor", "channel"]
SCALES: tuple[str, ...] = get_args(Scale)
# Bytes.
_ALIGNMENT = 64
# Weights of a row in a run that are filled in one by one.
_LONG_RUN = 1 << 10


class Rows(NamedTuple):
    """How a tensor is cut into rows that have a scale each; static.

    Attributes:
        scale: "tensor" or "channel". A tensor of fewer than two axes has one scale for all.
        group_size: weights of a channel that share a scale; None for all of them.
        channel_axis: axis of the channels.
    """

    scale: Scale = "channel"
    group_size: int | None = None
    channel_axis: int = -1

    def split(self, values: Shaped[Array, "*shape"]) -> Shaped[Array, "rows columns"]:
        """Return the rows of a tensor."""
        if not self._has_channels(values.shape):
            channels = values.reshape(1, -1)
        else:
            channels = jnp.moveaxis(values, self.channel_axis, 0)
            channels = channels.reshape(channels.shape[0], -1)
        if self.group_size is None:
            return channels
        channels = jnp.pad(channels, [(0, 0), (0, -channels.shape[1] % self.group_size)])
        return channels.reshape(-1, self.group_size)

    def join(
        self, rows: Shaped[Array, "rows columns"], shape: tuple[int, ...]
    ) -> Shaped[Array, "*shape"]:
        """Undo `split`."""
        if not self._has_channels(shape):
            return rows.reshape(-1)[: math.prod(shape)].reshape(shape)
        axis = self.channel_axis % len(shape)
        others = (*shape[:axis], *shape[axis + 1 :])
        channels = rows.reshape(shape[axis], -1)[:, : math.prod(others)]
        return jnp.moveaxis(channels.reshape(shape[axis], *others), 0, axis)

    def number(self, shape: tuple[int, ...]) -> int:
        """Return how many rows a tensor has."""
        num_channels = shape[self.channel_axis] if self._has_channels(shape) else 1
        return num_channels * self._groups(math.prod(shape) // num_channels)

    def sizes(self, shape: tuple[int, ...]) -> Int[np.ndarray, " rows"]:
        """Return how many weights every row has."""
        num_channels = shape[self.channel_axis] if self._has_channels(shape) else 1
        num_columns = math.prod(shape) // num_channels
        starts = np.arange(self._groups(num_columns)) * (self.group_size or num_columns)
        lengths = np.minimum(num_columns - starts, self.group_size or num_columns)
        return np.tile(lengths, num_channels)

    def of_places(
        self, places: Int[np.ndarray, " places"], shape: tuple[int, ...]
    ) -> Int[np.ndarray, " places"]:
        """Return the row of weights by their places in the flattened tensor."""
        if not self._has_channels(shape):
            return places // (self.group_size or max(math.prod(shape), 1))
        axis = self.channel_axis % len(shape)
        num_channels, inner = shape[axis], math.prod(shape[axis + 1 :])
        channel = places % num_channels if inner == 1 else (places // inner) % num_channels
        if self.group_size is None:
            return channel
        position = places // (num_channels * inner) * inner + places % inner
        num_groups = self._groups(math.prod(shape) // num_channels)
        return channel * num_groups + position // self.group_size

    def is_periodic(self, shape: tuple[int, ...]) -> bool:
        """Whether the row of a weight is its place modulo the number of rows."""
        if not self._has_channels(shape):
            return self.number(shape) == 1
        return (
            self.group_size is None and math.prod(shape[self.channel_axis % len(shape) + 1 :]) == 1
        )

    def of_run(
        self, values: Shaped[np.ndarray, " rows"], places: slice, shape: tuple[int, ...]
    ) -> Shaped[np.ndarray, " places"]:
        """Return the value of the row of consecutive weights: `values[of_places(...)]`, quickly."""
        start, stop = places.start, places.stop
        if not self._has_channels(shape) or self.group_size is not None:
            return values[self.of_places(np.arange(start, stop), shape)]
        axis = self.channel_axis % len(shape)
        num_channels, inner = shape[axis], math.prod(shape[axis + 1 :])
        first, last = start // inner, (stop - 1) // inner
        channels = values[np.arange(first, min(last + 1, first + num_channels)) % num_channels]
        each = np.resize(channels, last + 1 - first)
        if inner < _LONG_RUN:
            found = _aligned(each.size * inner, values.dtype)
            found.reshape(-1, inner)[:] = each[:, None]
            return found[start - first * inner : stop - first * inner]
        found = _aligned(stop - start, values.dtype)
        for number, value in enumerate(each, first):
            found[max(number * inner - start, 0) : (number + 1) * inner - start] = value
        return found

    def tiled(
        self, values: Shaped[np.ndarray, " rows"], length: int
    ) -> Shaped[np.ndarray, " places"]:
        """Return the values of the rows of weights from any first row on, `is_periodic`.

        The value of the row of so many weights from place p on begins at `p % rows`.
        """
        found = _aligned(length + values.size, values.dtype)
        found[:] = np.resize(values, found.size)
        return found

    def runs(
        self, places: slice, shape: tuple[int, ...]
    ) -> tuple[Int[np.ndarray, " runs"], Int[np.ndarray, " runs"]] | None:
        """Cut consecutive weights into runs of one row: its number, and where the run begins.

        None where rows are not runs of a channel.
        """
        if not self._has_channels(shape) or self.group_size is not None:
            return None
        axis = self.channel_axis % len(shape)
        num_channels, inner = shape[axis], math.prod(shape[axis + 1 :])
        numbers = np.arange(places.start // inner, (places.stop - 1) // inner + 1)
        return numbers % num_channels, np.maximum(numbers * inner - places.start, 0)

    def _groups(self, num_columns: int) -> int:
        return 1 if self.group_size is None else -(-num_columns // self.group_size)

    def _has_channels(self, shape: tuple[int, ...]) -> bool:
        return self.scale == "channel" and len(shape) >= 2


def _aligned(size: int, dtype: np.dtype) -> np.ndarray:
    """Return new memory that JAX takes as it is: it copies arrays that begin elsewhere."""
    memory = np.empty(size + _ALIGNMENT // dtype.itemsize, dtype)
    start = -memory.ctypes.data % _ALIGNMENT // dtype.itemsize
    return memory[start : start + size]


@partial(jax.jit, static_argnames=("rows", "shape"))
def spread(
    scales: Shaped[Array, " rows"], *, rows: Rows, shape: tuple[int, ...]
) -> Shaped[Array, "*shape"]:
    """Return the scale of every weight."""
    num_columns = rows.group_size or math.prod(shape) // scales.shape[0]
    return rows.join(jnp.broadcast_to(scales[:, None], (scales.shape[0], num_columns)), shape)
