"""Tensors as methods take them: in units of a power of two, dealt out in chunks of few sizes.

A program is compiled for the shapes that it meets, and holds whole arrays in memory. (So does
`jnp.asarray` of an array of NumPy, but not `jax.device_put`.) A tensor of
any shape is therefore visited in chunks of two sizes, the last one filled up: what is compiled for
one tensor serves all, and beside the weights and their codes there is never more than a few
chunks. The weights stay where the host can read them, a file mapped into memory included.

Results do not depend on the scale of the weights: where that is far from 1, they are quantized in
units of a power of two, and errors are always measured in such units, in which no square is out of
range.

Axes: `N` points of a chunk, `R` rows with a scale each.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxcomp.quantizers.scales import Rows
from jaxcomp.trees.leaves import is_wide

# Points of a chunk: as many as fit the cache of a core, and for what is left a sixteenth.
CHUNK, SMALL_CHUNK = 1 << 18, 1 << 14
# Octaves around 1 in which no square of a weight or an error is out of range, so that weights of
# such size are quantized as they are.
_ORDINARY_OCTAVES = 30

_Result = TypeVar("_Result")


class Chunk(NamedTuple):
    """Some consecutive weights of a tensor, or some spread over it, on the device.

    Attributes:
        points: (N,) float32 (float64) in the units of the tensor; the last ones may be copies of
            the first that do not count.
        importance: (N,) of each, 0 for copies; None for 1.
        scale: (N,) what each is divided by before it is quantized, or (1,) for all; None for 1.
        num_padding: () int32, how many copies there are.
        blocks: (N / m, m, m) Hessians of m consecutive weights each, in place of importances.
    """

    points: Float[Array, " points"]
    importance: Float[Array, " points"] | None
    scale: Float[Array, " points"] | None
    num_padding: Int[Array, ""]
    blocks: Float[Array, "vectors m m"] | None = None

    def is_point(self) -> Bool[Array, " points"]:
        """Return which points count."""
        size = self.points.shape[0]
        return jnp.arange(size, dtype=jnp.int32) < size - self.num_padding

    def scaled(self) -> tuple[Float[Array, " points"], Float[Array, " points"] | None]:
        """Return points over their scales, and what a squared error of these counts."""
        if self.scale is None:
            return self.points, self.importance
        squared = self.scale * self.scale
        if self.importance is None:
            weights = jnp.where(self.is_point(), squared, 0)
        else:
            weights = self.importance * squared
        return self.points / self.scale, weights


class Errors(NamedTuple):
    """What became of a tensor, in the squared units of its weights, float64.

    Attributes:
        distortion: `sum h (w - c)^2`, h in its units.
        squared_error: `sum (w - c)^2`.
        energy: `sum w^2`.
    """

    distortion: float
    squared_error: float
    energy: float


class Moments(NamedTuple):
    """What the weights of a tensor are like, over their scales.

    Attributes:
        importance: mean h, of what is divided by the scales.
        variance: `sum h (w - mean)^2` over `sum h`.
        largest: magnitude.
    """

    importance: float
    variance: float
    largest: float


class LayerInputs(NamedTuple):
    """What a layer meets: with weights in units of the problem, errors are in ordinary units.

    The inputs may be in units of their own, in which their squares are in range: then g is too.

    Attributes:
        places: (G, I, O), of the weights of its matrices in the flattened tensor.
        axis: of the tensor along which the inputs lie, one by one or some at each of its places
            (a channel at all positions of a kernel); None if there is none.
        second_moments: S = E[xh xh^T] (G, I, I).
        cross_moments: C = E[xh x^T] (G, I, I); None if the inputs are those of the original.
        output_importance: g (G, O): `g S` is the Hessian of the weights that enter an output.
        damping: what is added to the diagonal of S, over its mean.
    """

    places: Int[np.ndarray, "G I O"]
    axis: int | None
    second_moments: Float[Any, "G I I"]
    cross_moments: Float[Any, "G I I"] | None
    output_importance: Float[Any, "G O"]
    damping: float = 1e-3


@dataclass(frozen=True, eq=False)
class Problem:
    """The weights of a leaf or layer, on the host, as they are quantized.

    Attributes:
        weights: as they came, of any shape and floating dtype; finite.
        exponent: they are quantized in units of `2 ** exponent`: 0 for those of ordinary size.
        importance: h >= 0 of each in units of `2 ** importance_exponent`, of which none is above
            2; None for 1.
        importance_exponent: see `importance`.
        weighs_nothing: whether h is 0 throughout, so that no error counts. The importance is None
            then, since something has to say which errors are better.
        rows: how the tensor is cut into rows with a scale each; None for no scale.
        scales: (R,) float32 (float64) in the units of the weights.
        blocks: (ceil(size / m), m, m) Hessians H of m consecutive weights of the flattened tensor
            each, in units like `importance` and in place of it: the distortion is `e^T H e`.
        layer: what is known of the inputs and outputs of a layer, for methods that need it.
    """

    weights: Float[np.ndarray, "*shape"]
    exponent: int
    importance: Float[np.ndarray, "*shape"] | None = None
    importance_exponent: int = 0
    weighs_nothing: bool = False
    rows: Rows | None = None
    scales: Float[np.ndarray, " rows"] | None = None
    blocks: Float[np.ndarray, "vectors m m"] | None = None
    layer: LayerInputs | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        return self.weights.shape

    @property
    def size(self) -> int:
        """How many weights there are."""
        return self.weights.size

    @property
    def dtype(self) -> np.dtype:
        """The dtype in which points are: float32, or float64 if JAX has it for these weights."""
        is_double = self.weights.dtype == np.float64 and not is_wide(self.weights.dtype)
        return np.dtype(np.float64 if is_double else np.float32)

    @property
    def distortion_exponent(self) -> int:
        """Distortions are in units of `2 ** distortion_exponent`."""
        return 2 * self.exponent + self.importance_exponent

    @property
    def weights_dtype(self) -> np.dtype:
        """The dtype in which decoded weights are rounded, as far as JAX has it."""
        return self.dtype if self._is_wide else self.weights.dtype

    @property
    def codebook_dtype(self) -> np.dtype:
        """The dtype in which centroids are stored, as far as JAX has it."""
        return self.dtype if self.scales is not None else self.weights_dtype

    @property
    def value_bits(self) -> int:
        """Bits of one weight of the original; beside scales, of one number of the codebook."""
        return 8 * (self.dtype if self.scales is not None else self.weights.dtype).itemsize

    @property
    def _is_wide(self) -> bool:
        return is_wide(self.weights.dtype)

    def with_scales(self, rows: Rows, scales: Float[np.ndarray, " rows"]) -> "Problem":
        """Return the same weights, to be divided by the scales of their rows."""
        return replace(self, rows=rows, scales=scales)

    def in_original_units(self, values: Shaped[Any, "..."]) -> np.ndarray:
        """Return numbers in these units as ordinary ones, in the dtype of the weights."""
        wide = np.ldexp(np.asarray(values).astype(np.float64), self.exponent)
        return wide.astype(self.weights.dtype)

    def scales_in_original_units(self) -> Float[np.ndarray, " rows"] | None:
        """Return the scales as ordinary numbers; float32, or the dtype of wider weights."""
        if self.scales is None:
            return None
        wide = np.ldexp(self.scales.astype(np.float64), self.exponent)
        return wide.astype(self.weights.dtype if self._is_wide else self.dtype)

    def in_units(self, values: Shaped[Any, "..."]) -> np.ndarray:
        """Undo it, after the rounding that it may have brought; float32 (float64)."""
        wide = np.ldexp(np.asarray(values).astype(np.float64), -self.exponent)
        return wide.astype(self.dtype)

    def parts(self, size: int = CHUNK) -> Iterator[slice]:
        """Return consecutive places, so many at a time."""
        for start in range(0, self.size, size):
            yield slice(start, min(start + size, self.size))

    def points(self, places: slice | Int[np.ndarray, " points"]) -> np.ndarray:
        """Return weights in units, by their places in the flattened tensor; not to be changed."""
        some = self.weights.reshape(-1)[places]
        if self.exponent == 0:
            return some.astype(self.dtype, copy=False)
        # float16 has no room for what is scaled.
        exact = some if some.dtype.itemsize >= 4 else some.astype(np.float32)
        return np.ldexp(exact, -self.exponent).astype(self.dtype)

    def importance_of(self, places: slice | Int[np.ndarray, " points"]) -> np.ndarray | None:
        """Return importances, likewise."""
        return None if self.importance is None else self.importance.reshape(-1)[places]

    def scale_of(self, places: slice | Int[np.ndarray, " points"]) -> np.ndarray | None:
        """Return the scale of weights, likewise, (1,) if they all have one."""
        if self.scales is None or self.rows is None or self.scales.size == 1:
            return self.scales
        if isinstance(places, slice):
            if self._tiled_scales is not None and places.stop - places.start <= CHUNK:
                first = places.start % self.scales.size
                return self._tiled_scales[first : first + places.stop - places.start]
            return self.rows.of_run(self.scales, places, self.shape)
        return self.scales[self.rows.of_places(places, self.shape)]

    @cached_property
    def _tiled_scales(self) -> np.ndarray | None:
        """The scales of a chunk and more, where they come round and round; None where not."""
        scales, rows = self.scales, self.rows
        if scales is None or rows is None or scales.size > CHUNK:
            return None
        return rows.tiled(scales, CHUNK) if rows.is_periodic(self.shape) else None

    def scaled(
        self, places: slice | Int[np.ndarray, " points"]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return weights over their scales, and what a squared error of these counts."""
        values, importance = self.points(places), self.importance_of(places)
        if self.scales is None or self.scales.size == 1:
            return values, importance
        scale = self.scale_of(places)
        assert scale is not None
        squared = scale * scale
        return values / scale, squared if importance is None else importance * squared

    @cached_property
    def moments(self) -> Moments:
        """The moments of the weights, found in one pass; asked for at every operating point."""
        sums, largest = np.zeros(3), 0.0
        for places in self.parts():
            values, importance = self.scaled(places)
            wide = values.astype(np.float64)
            mass = np.ones(1) if importance is None else importance.astype(np.float64)
            sums += [
                values.size if importance is None else mass.sum(),
                np.sum(mass * wide),
                np.sum(mass * wide * wide),
            ]
            largest = max(largest, float(np.abs(values).max()))
        mass, first, second = sums.tolist()
        variance = max(second - first * first / mass, 0.0) / mass if mass > 0 else 0.0
        return Moments(mass / self.size, variance, largest)

    def chunks(self, group: int = 1) -> Iterator[tuple[slice, Chunk]]:
        """Deal the tensor out: places in the flattened tensor, and the chunk of them.

        Args:
            group: weights that must not be parted; chunks have a multiple of them.
        """
        large, small = (size // group * group for size in (CHUNK, SMALL_CHUNK))
        whole = self.size // large * large
        for start in range(0, whole, large):
            yield slice(start, start + large), self.chunk(slice(start, start + large), large)
        for start in range(whole, self.size, small):
            places = slice(start, min(start + small, self.size))
            yield places, self.chunk(places, small)

    def sample(self, size: int) -> Chunk:
        """Return so many weights, evenly spread over the tensor; all, if it has no more."""
        if self.size <= size:
            return self.chunk(slice(0, self.size), size)
        return self.chunk(self.spread(size), size)

    def spread(self, size: int) -> Int[np.ndarray, " points"]:
        """Return so many places, evenly spread over the tensor."""
        return np.arange(size, dtype=np.int64) * self.size // size

    def chunk(self, places: slice | Int[np.ndarray, " points"], size: int | None = None) -> Chunk:
        """Return the weights of some places on the device, filled up to a size."""
        points = self.points(places)
        padding = 0 if size is None else size - points.size

        def filled(values: np.ndarray | None, filling: Any) -> Array | None:
            if values is None:
                return None
            if padding:
                values = np.concatenate([values, np.full(padding, filling, values.dtype)])
            return jax.device_put(values)

        own = filled(points, points[0])
        assert own is not None
        if self.scales is None or self.scales.size > 1:
            scale = self.scale_of(places)
            scale = filled(scale, None if scale is None else scale[0])
        else:
            scale = self._one_scale
        return Chunk(
            own,
            filled(self.importance_of(places), 0),
            scale,
            jax.device_put(np.int32(padding)) if padding else self._no_padding,
            self._blocks_of(places, own.size),
        )

    @cached_property
    def _one_scale(self) -> Array:
        """The scale of all weights, on the device for all chunks."""
        return jax.device_put(self.scales)

    @cached_property
    def _no_padding(self) -> Array:
        """The number of copies in a whole chunk, likewise."""
        return jax.device_put(np.int32(0))

    def _blocks_of(self, places: slice | Int[np.ndarray, " points"], size: int) -> Array | None:
        """Return the blocks of whole vectors at these places; zeros for what is filled up."""
        if self.blocks is None:
            return None
        vector_size = self.blocks.shape[-1]
        numbers = _numbers(places)[::vector_size] // vector_size
        blocks = np.zeros((size // vector_size, *self.blocks.shape[1:]), self.dtype)
        blocks[: len(numbers)] = self.blocks[numbers]
        return jax.device_put(blocks)

    def extremes(self) -> tuple[float, float, float, float]:
        """Return least and largest weight over its scale, sum and largest of what errors count.

        The last two are 0 where all errors count alike.
        """
        low, high, total, largest = np.inf, -np.inf, 0.0, 0.0
        for places in self.parts():
            points, scale = self.points(places), self.scale_of(places)
            mass = self.importance_of(places)
            if scale is not None:
                points = points / scale
                mass = scale * scale * (1 if mass is None else mass)
            low, high = min(low, float(points.min())), max(high, float(points.max()))
            if mass is not None:
                total += float(np.sum(mass, dtype=np.float64))
                largest = max(largest, float(mass.max()))
        return low, high, total, largest

    def energy(self) -> float:
        """Return the sum of the squared weights, in units."""
        wide = (self.points(places).astype(np.float64) for places in self.parts())
        return float(sum(np.dot(part, part) for part in wide))

    def over_rows(
        self, terms: Callable[[np.ndarray], np.ndarray], add: np.ufunc, rows: Rows
    ) -> Float[np.ndarray, " rows"]:
        """Combine a term of every weight over its row, in float64.

        Args:
            terms: of weights in units, >= 0.
            add: how two are combined, such as `np.add`.
            rows: how the tensor is cut.
        """
        total = np.zeros(rows.number(self.shape))
        is_periodic = total.size <= CHUNK and rows.is_periodic(self.shape)
        for places in self.parts(CHUNK // total.size * total.size if is_periodic else CHUNK):
            points = self.points(places)
            # The largest number is the same in any dtype.
            values = terms(points if add is np.maximum else points.astype(np.float64))
            if is_periodic:
                total = add(total, add.reduce(values.reshape(-1, total.size), axis=0))
            elif (runs := rows.runs(places, self.shape)) is not None:
                add.at(total, runs[0], add.reduceat(values, runs[1]))
            else:
                add.at(total, rows.of_places(_numbers(places), self.shape), values)
        return total


def problem_of(
    weights: Float[np.ndarray, "*shape"],
    *,
    exponent: int,
    importance: Float[np.ndarray, "*shape"] | None = None,
    importance_exponent: int = 0,
    blocks: Float[np.ndarray, "vectors m m"] | None = None,
) -> Problem:
    """Return the weights of a leaf or layer as methods take them.

    Args:
        weights: as they came; finite.
        exponent: that of the largest one, `2 ** exponent <= max |w| < 2 ** (exponent + 1)`.
        importance: of each, in units of `2 ** importance_exponent`, or None.
        importance_exponent: see `importance`.
        blocks: Hessians of consecutive weights in place of it, likewise.
    """
    shift = unit_of(weights.dtype, exponent)
    # In the order of its places: else every chunk would be cut from a copy of the whole.
    problem = Problem(np.asarray(weights, order="C"), shift)
    given = importance if blocks is None else blocks
    if given is None:
        return problem
    if not np.any(given):
        return replace(problem, weighs_nothing=True)
    if importance is not None:
        importance = np.asarray(importance, order="C")
    return replace(
        problem, importance=importance, importance_exponent=importance_exponent, blocks=blocks
    )


def unit_of(dtype: np.dtype, exponent: int) -> int:
    """Return the exponent of the units in which weights are quantized, by that of the largest."""
    # As few octaves as are needed: an outlier far away must not push the others out of range.
    if is_wide(dtype):
        return exponent
    return exponent - min(max(exponent, -_ORDINARY_OCTAVES), _ORDINARY_OCTAVES)


def as_problem(
    weights: Float[Any, "*shape"], importance: Float[Any, "*shape"] | None = None
) -> Problem:
    """Return arrays as methods take them.

    Args:
        weights: floating, finite; arrays of JAX or NumPy.
        importance: h >= 0 of each, finite; None for 1.
    """
    weights = np.asarray(weights)
    exponent = survey(weights)[1]
    problem = problem_of(weights, exponent=exponent)
    if importance is None:
        return problem
    importance = np.asarray(importance)
    unit = survey(importance)[1]
    units = np.ldexp(importance.astype(np.float64), -unit).astype(problem.dtype)
    return problem_of(weights, exponent=exponent, importance=units, importance_exponent=unit)


def survey(values: Float[np.ndarray, "*shape"]) -> tuple[int, int]:
    """Return how many entries are not finite, and e with `2 ** e <= max |value| < 2 ** (e + 1)`.

    e is 0 for zeros, and where something is not finite.
    """
    flat, largest, num_bad = values.reshape(-1), 0.0, 0
    for start in range(0, flat.size, CHUNK):
        part = flat[start : start + CHUNK]
        exact = part if part.dtype.itemsize >= 4 else part.astype(np.float32)
        most = max(abs(float(exact.min())), abs(float(exact.max())))
        if not np.isfinite(most):
            num_bad += int(np.count_nonzero(~np.isfinite(exact)))
        else:
            largest = max(largest, most)
    return num_bad, 0 if num_bad or largest == 0 else int(np.frexp(largest)[1]) - 1


def fetched(results: Iterable[tuple[slice, _Result]]) -> Iterator[tuple[slice, _Result]]:
    """Bring results of chunks to the host, each while the device works on the next."""
    waiting: tuple[slice, _Result] | None = None
    for result in results:
        if waiting is not None:
            yield waiting[0], jax.device_get(waiting[1])
        waiting = result
    if waiting is not None:
        yield waiting[0], jax.device_get(waiting[1])


def _numbers(places: slice | Int[np.ndarray, " points"]) -> Int[np.ndarray, " points"]:
    return np.arange(places.start, places.stop) if isinstance(places, slice) else places
