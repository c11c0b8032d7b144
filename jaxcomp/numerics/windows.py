"""Windows over the axes of an array: their maxima and sums, as slices and elementwise operations.

XLA's CPU back end runs windowed reductions and their derivatives one element at a time; slices and
elementwise operations it runs on vectors of numbers. Everything here equals the operation of
`jax.lax` of the same parameters, in values (sums up to rounding) and in which of equal numbers a
maximum is. All parameters are those of `lax.reduce_window`, one for each axis, padding in numbers.

Along an axis, window o begins at `o * stride - low` of the operand, whose own entries stand
`base_dilation` apart; the entries of a window stand `window_dilation` apart.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Shaped


@dataclass(frozen=True)
class Windows:
    """Where windows lie over an array.

    Attributes:
        shape: of a window.
        strides: from a window to the next.
        padding: entries before and after the array; negative ones are cut off.
        base_dilation: distance of the entries of the array.
        window_dilation: distance of the entries of a window.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    base_dilation: tuple[int, ...]
    window_dilation: tuple[int, ...]

    def counts(self, shape: Sequence[int]) -> tuple[int, ...]:
        """How many windows an array of this shape has along each axis."""
        padded = self._padded_shape(shape)
        return tuple(
            max((size - ((width - 1) * dilation + 1)) // stride + 1, 0)
            for size, width, dilation, stride in zip(
                padded, self.shape, self.window_dilation, self.strides, strict=True
            )
        )

    def _padded_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(
            low + (max(size - 1, 0) * dilation + min(size, 1)) + high
            for size, (low, high), dilation in zip(
                shape, self.padding, self.base_dilation, strict=True
            )
        )

    def pad(self, x: Shaped[Array, "..."], value: Shaped[Array, ""]) -> Shaped[Array, "..."]:
        """Pad and dilate an array."""
        config = [
            (low, high, dilation - 1)
            for (low, high), dilation in zip(self.padding, self.base_dilation, strict=True)
        ]
        return x if not any(map(any, config)) else lax.pad(x, value, config)

    def entries(self, padded: Shaped[Array, "..."], counts: Sequence[int]) -> Iterator[Array]:
        """Give, for every place in a window, that entry of all windows, shaped as `counts`."""
        for place in np.ndindex(*self.shape):
            first = [p * d for p, d in zip(place, self.window_dilation, strict=True)]
            yield _strided(padded, first, counts, self.strides)

    def gather(
        self, padded: Shaped[Array, "..."], counts: Sequence[int], axis: int
    ) -> Shaped[Array, "..."]:
        """Return what `entries` gives in one array, with the places in a window as a new axis.

        A loop, so that no more is compiled for many places than for one.
        """
        number = prod(self.shape)
        firsts = jnp.asarray(self._firsts((0,) * len(self.shape)))
        phases = _split_by_phase(padded, self.strides)
        whole = [*counts[:axis], number, *counts[axis:]]

        def step(place: Int[Array, ""], result: Array) -> Array:
            entry = lax.dynamic_slice(phases, list(firsts[place]), (1, *counts))
            entry = entry.reshape(*counts[:axis], 1, *counts[axis:])
            return lax.dynamic_update_slice_in_dim(result, entry, place, axis)

        return lax.fori_loop(0, number, step, jnp.zeros(whole, padded.dtype))

    def scatter(
        self, term_fn: Callable[[Int[Array, ""]], Array], shape: Sequence[int]
    ) -> Shaped[Array, "..."]:
        """Add entries of windows up where they come from: the transpose of `pad` and `gather`.

        Args:
            term_fn: number of a place in a window -> that entry of all windows, as `counts`.
            shape: of the array they lie over; it has no base dilation.
        """
        term = jax.eval_shape(term_fn, jax.ShapeDtypeStruct((), jnp.int32))
        firsts = self._firsts(tuple(low for low, _ in self.padding))
        lowest = firsts[:, 1:].min(axis=0)
        firsts[:, 1:] -= lowest
        sizes = firsts[:, 1:].max(axis=0) + np.asarray(term.shape, np.int32)
        starts = jnp.asarray(firsts)

        def step(place: Int[Array, ""], total: Array) -> Array:
            first = list(starts[place])
            before = lax.dynamic_slice(total, first, (1, *term.shape))
            added = before + jnp.expand_dims(term_fn(place), 0)
            return lax.dynamic_update_slice(total, added, first)

        total = jnp.zeros((prod(self.strides), *sizes.tolist()), term.dtype)
        total = lax.fori_loop(0, len(firsts), step, total)
        return _join_phases(total, self.strides, lowest.tolist(), shape)

    def _firsts(self, padding: Sequence[int]) -> Int[np.ndarray, "places axes"]:
        """Where the entries of all windows begin: the phase of the strides, and steps of them."""
        places = np.indices(self.shape, dtype=np.int32).reshape(len(self.shape), -1).T
        first = places * np.asarray(self.window_dilation, np.int32) - np.asarray(padding, np.int32)
        steps, phases = np.divmod(first, np.asarray(self.strides, np.int32))
        number = np.ravel_multi_index(tuple(phases.T), self.strides).astype(np.int32)
        return np.concatenate([np.expand_dims(number, 1), steps], axis=1)


def _split_by_phase(x: Shaped[Array, "..."], strides: Sequence[int]) -> Shaped[Array, "..."]:
    """Bring entries that are a multiple of the strides apart together: (phases, ...)."""
    if set(strides) == {1}:
        return jnp.expand_dims(x, 0)
    sizes = [-(-size // stride) for size, stride in zip(x.shape, strides, strict=True)]
    config = [
        (0, n * stride - size, 0) for n, size, stride in zip(sizes, x.shape, strides, strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), config)
    x = x.reshape([n for pair in zip(sizes, strides, strict=True) for n in pair])
    order = [*range(1, x.ndim, 2), *range(0, x.ndim, 2)]
    return jnp.transpose(x, order).reshape(-1, *sizes)


def _join_phases(
    phases: Shaped[Array, "..."],
    strides: Sequence[int],
    first: Sequence[int],
    shape: Sequence[int],
) -> Shaped[Array, "..."]:
    """Undo `_split_by_phase`, for phases that begin at `first`, up to `shape`."""
    sizes = [-(-size // stride) for size, stride in zip(shape, strides, strict=True)]
    config = [(0, 0, 0)] + [
        (start, size - start - found, 0)
        for start, size, found in zip(first, sizes, phases.shape[1:], strict=True)
    ]
    phases = lax.pad(phases, jnp.zeros((), phases.dtype), config)
    if set(strides) == {1}:
        return phases[0]
    rank = len(sizes)
    phases = phases.reshape(*strides, *sizes)
    whole = jnp.transpose(phases, [axis for a in range(rank) for axis in (rank + a, a)])
    whole = whole.reshape([n * stride for n, stride in zip(sizes, strides, strict=True)])
    return lax.slice(whole, [0] * rank, shape)


def _strided(
    x: Array, first: Sequence[int], counts: Sequence[int], strides: Sequence[int]
) -> Array:
    last = [f + (count - 1) * s + 1 for f, count, s in zip(first, counts, strides, strict=True)]
    return lax.slice(x, first, last, strides)


# --- Reductions -----------------------------------------------------------------------------------


def window_maxima(x: Float[Array, "..."], windows: Windows) -> Float[Array, "..."]:
    """Return what `lax.reduce_window` does with `lax.max` and minus infinity."""
    padded = windows.pad(x, jnp.asarray(-jnp.inf, x.dtype))
    return reduce(lax.max, windows.entries(padded, windows.counts(x.shape)))


def window_sums(x: Shaped[Array, "..."], windows: Windows) -> Shaped[Array, "..."]:
    """Return what `lax.reduce_window` does with `lax.add` and zero, axis by axis."""
    padded = windows.pad(x, jnp.zeros((), x.dtype))
    counts = windows.counts(x.shape)
    for axis, (width, stride, dilation) in enumerate(
        zip(windows.shape, windows.strides, windows.window_dilation, strict=True)
    ):
        shape = [*padded.shape[:axis], counts[axis], *padded.shape[axis + 1 :]]
        strides = [stride if a == axis else 1 for a in range(x.ndim)]
        total = None
        for place in range(width):
            first = [place * dilation if a == axis else 0 for a in range(x.ndim)]
            entry = _strided(padded, first, shape, strides)
            total = entry if total is None else total + entry
        assert total is not None
        padded = total
    return padded


def at_window_maxima(
    tangents: Float[Array, "..."], x: Float[Array, "..."], windows: Windows
) -> Float[Array, "..."]:
    """Return the entries of `tangents` where the maxima of the windows of `x` lie.

    That is the derivative of `window_maxima`. Of equal numbers the first in a window counts, in
    the order of its axes; where all are minus infinity the result is zero.
    """
    counts = windows.counts(x.shape)
    smallest = jnp.asarray(-jnp.inf, x.dtype)
    values = list(windows.entries(windows.pad(x, smallest), counts))
    zero = jnp.zeros((), tangents.dtype)
    candidates = list(windows.entries(windows.pad(tangents, zero), counts))
    largest = reduce(lax.max, values)
    chosen = candidates[-1]
    for value, candidate in zip(values[-2::-1], candidates[-2::-1], strict=True):
        chosen = lax.select(value == largest, candidate, chosen)
    return jnp.where(largest == smallest, zero, chosen)


def add_to_window_maxima(
    source: Float[Array, "..."], x: Float[Array, "..."], windows: Windows
) -> Float[Array, "..."]:
    """Return an array like `x`: the sum of what windows bring to the place of their maximum.

    That is the transposed derivative of `window_maxima` (no base dilation). Of equal numbers the
    first in a window counts.
    """
    counts = windows.counts(x.shape)
    places = _places_of_maxima(windows.pad(x, jnp.asarray(-jnp.inf, x.dtype)), windows, counts)
    zero = jnp.zeros((), source.dtype)
    if windows.shape == windows.strides and set(windows.window_dilation) == {1}:
        return _spread(source, places, windows, x.shape)

    def term(number: Int[Array, ""]) -> Array:
        return jnp.where(places == number, source, zero)

    return windows.scatter(term, x.shape)


def _places_of_maxima(
    padded: Float[Array, "..."], windows: Windows, counts: Sequence[int]
) -> Int[Array, "..."]:
    """Return the number of the first largest entry of every window."""
    entries = list(windows.entries(padded, counts))
    largest = reduce(lax.max, entries)
    places = jnp.full(counts, len(entries) - 1, jnp.int32)
    for number, entry in reversed(list(enumerate(entries[:-1]))):
        places = lax.select(entry == largest, jnp.full(counts, number, jnp.int32), places)
    return places


def _spread(
    source: Float[Array, "..."],
    places: Int[Array, "..."],
    windows: Windows,
    shape: Sequence[int],
) -> Float[Array, "..."]:
    """Put what each of adjoining windows brings to its place, zeros elsewhere."""
    numbers = np.arange(prod(windows.shape), dtype=np.int32).reshape(windows.shape)
    axes = [axis for axis, width in enumerate(windows.shape) if width > 1]
    # Along the last axis first, in an array of its own: the rest then copies long rows.
    for axis in axes[-1:]:
        numbers = np.tile(numbers, [n if a == axis else 1 for a, n in enumerate(source.shape)])
        source, places = lax.optimization_barrier(
            tuple(_repeat(x, axis, windows.shape[axis]) for x in (source, places))
        )
    for axis in axes[-2::-1]:
        numbers = np.tile(numbers, [n if a == axis else 1 for a, n in enumerate(source.shape)])
        source, places = (_repeat(x, axis, windows.shape[axis]) for x in (source, places))
    is_here = places == jnp.broadcast_to(numbers, places.shape)
    spread = jnp.where(is_here, source, jnp.zeros((), source.dtype))
    # What the windows do not reach, and without the padding.
    config = [
        (-low, size + low - covered, 0)
        for (low, _), size, covered in zip(windows.padding, shape, spread.shape, strict=True)
    ]
    return lax.pad(spread, jnp.zeros((), source.dtype), config) if any(map(any, config)) else spread


def _repeat(x: Array, axis: int, times: int) -> Array:
    """Repeat every entry along an axis."""
    shape = (*x.shape[: axis + 1], times, *x.shape[axis + 1 :])
    x = lax.broadcast_in_dim(x, shape, [a for a in range(x.ndim + 1) if a != axis + 1])
    return x.reshape(*shape[:axis], -1, *shape[axis + 2 :])
