"""Tensors that many devices share, as methods take them: no device reads the part of another.

What a method asks of a tensor are sums over its weights, each a table as long as there are bins,
and few of its weights by their places (a sample of at most some hundred thousand gives the bins).
Codes stay where their weights are.

Sums about one point are added up in float64 (`filled_about_one`). Those about the lowest point of
every bin are made of the same chunks as those of a tensor that the host deals out (`problems`), in
whatever parts devices hold them: where there is a CPU, in float64, bins and codes are those of one
device. A table of all chunks is as long as many of them: beyond `_MOST_CHUNKS` each device adds up
what it has, and numbers of the codebook may differ in their last digit.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Shaped, UInt

from jaxcomp.numerics import across
from jaxcomp.numerics.scaling import normalise
from jaxcomp.quantizers.binning import DensityBins
from jaxcomp.quantizers.bins import BinSums, PointBins, sums_of_bins
from jaxcomp.quantizers.one_pass import Frame, as_words, sums_about_one
from jaxcomp.quantizers.placed import Axes, Spread, run_on_parts
from jaxcomp.quantizers.problems import CHUNK, SMALL_CHUNK, Chunk, Problem

_WHOLE = PartitionSpec()
_MOST_CHUNKS = 64


@dataclass(frozen=True, eq=False)
class PlacedProblem(Problem):
    """The weights of a leaf on the devices that share them; see `Problem`.

    Attributes:
        weights: an array of JAX; so is the importance, where there is one, in the same parts.
        where: how it is spread, as one group.
    """

    where: Spread = field(kw_only=True)

    def points(self, places: slice | Int[np.ndarray, " points"]) -> np.ndarray:
        """Return weights in units, by their places in the flattened tensor; few, please."""
        return Problem(_fetched(self.weights, places, self.where), self.exponent).points(
            slice(None)
        )

    def importance_of(self, places: slice | Int[np.ndarray, " points"]) -> np.ndarray | None:
        """Return importances, likewise."""
        if self.importance is None:
            return None
        return _fetched(self.importance, places, self.where)

    def extremes(self) -> tuple[float, float, float, float]:
        """Return the least and largest weight, the sum of importances and the largest one."""
        found = self._run(_extremes, result=_WHOLE, dtype=self.dtype)
        low, high, total, largest = (float(part) for part in jax.device_get(found))
        return low, high, total, largest

    def energy(self) -> float:
        """Return the sum of the squared weights, in units."""
        parts = jax.device_get(self._run(_energy, result=_WHOLE, dtype=self.dtype))
        return float(sum(np.float64(part) for part in parts))

    def filled(
        self,
        index_of: Callable[..., tuple[Array, Array | None, Array]],
        rules: Any,
        *,
        num_cells: int,
        **options: int,
    ) -> Iterator[tuple[BinSums, np.ndarray]]:
        """Yield the sums of chunks over cells, and the largest point of each.

        Args:
            index_of: `(points, importance, rules, **options) -> (points, weights, cell)`, of (1, n)
                points in units and their importances, or None.
            rules: what it reads.
            num_cells: how many cells there are.
            options: static.
        """
        num_chunks = _num_chunks(self.size)
        if num_chunks > _MOST_CHUNKS or self.where.mesh.devices.flat[0].platform != "cpu":
            num_chunks = 1
        sums, highest = jax.device_get(
            self._run(
                _filled,
                (rules,),
                result=_WHOLE,
                dtype=self.dtype,
                index_of=index_of,
                num_cells=num_cells,
                num_chunks=num_chunks,
                size=self.size,
                cuts=self.where.cuts,
                keywords=tuple(options.items()),
            )
        )

        def part(table: Any, chunk: int) -> Any:
            return table.reshape(num_chunks, 1, num_cells)[chunk]

        for chunk in range(num_chunks):
            yield BinSums(*(part(table, chunk) for table in sums)), part(highest, chunk)

    def filled_about_one(
        self, rule: DensityBins, frame: Frame, *, num_bins: int
    ) -> tuple[UInt[np.ndarray, "4 bins 2"], np.ndarray]:
        """Return the sums over every bin, in words, and whether they are sums: `sums_about_one`.

        On CPUs only.
        """
        tables = (rule, frame)
        found = self._run(
            _filled_about_one, tables, result=_WHOLE, dtype=self.dtype, num_bins=num_bins
        )
        return jax.device_get(found)

    def encoded(
        self, encode: Callable[..., Any], tables: tuple[Any, ...], dtype: np.dtype
    ) -> tuple[Array, np.ndarray, list[tuple[Any, Any]]]:
        """Return codes where the weights are, how often each occurs, and errors by device.

        Args:
            encode: `(chunk, *tables, dtype=dtype) -> (codes, counts, sums)`, see `measured`.
            tables: of a codebook.
            dtype: of what is stored.
        """
        own = PartitionSpec(*(cut or None for cut in self.where.cuts))
        codes, counts, sums = self._run(
            _encoded,
            (tables,),
            result=(own, _WHOLE, _WHOLE),
            dtype=self.dtype,
            encode=encode,
            stored_dtype=dtype,
        )
        counts, sums = jax.device_get((counts, sums))
        return codes, counts, list(zip(*sums, strict=True))

    def _run(self, kernel: Callable[..., Any], tables: tuple[Any, ...] = (), **options: Any) -> Any:
        unit = np.int32(self.exponent)
        arrays = (self.weights, self.importance)
        return run_on_parts(kernel, self.where, arrays, (unit, *tables), **options)


def survey_of_parts(values: Float[Array, "*shape"], spread: Spread) -> tuple[int, int]:
    """As `survey`, of an array that devices share."""
    num_bad, largest = jax.device_get(run_on_parts(_survey, spread, (values,), result=_WHOLE))
    if int(num_bad) or not largest > 0:
        return int(num_bad), 0
    return 0, int(np.frexp(np.float64(largest))[1]) - 1


def _survey(values: Array) -> tuple[Array, Array]:
    # Magnitudes as float32: exact, but for numbers of float64 near a power of two.
    exact = values if values.dtype.itemsize >= 4 else values.astype(jnp.float32)
    num_bad = across.total(jnp.sum(~jnp.isfinite(exact), dtype=jnp.int32))
    return num_bad, across.most(jnp.max(jnp.abs(exact)))


def _num_chunks(size: int) -> int:
    large, rest = divmod(size, CHUNK)
    return large + -(-rest // SMALL_CHUNK)


def _fetched(
    values: Shaped[Any, "*shape"], places: slice | Int[np.ndarray, " points"], spread: Spread
) -> np.ndarray:
    """Return values by their places in the flattened array, on the host."""
    own = np.arange(places.start, places.stop) if isinstance(places, slice) else places
    index = np.stack(np.unravel_index(np.asarray(own), values.shape)).astype(np.int32)
    found = run_on_parts(_of_places, spread, (values,), (index,), result=_WHOLE, cuts=spread.cuts)
    return np.asarray(found)


def _of_places(
    part: Shaped[Array, "*own"], index: Int[Array, "axes points"], *, cuts: tuple[Axes, ...]
) -> Shaped[Array, " points"]:
    is_own, inside = jnp.ones(index.shape[1:], bool), []
    for size, cut, own in zip(part.shape, cuts, index, strict=True):
        local = own - lax.axis_index(cut) * size if cut else own
        is_own &= (local >= 0) & (local < size)
        inside.append(jnp.clip(local, 0, size - 1))
    return across.of_owners(part[tuple(inside)], is_own)


def _in_units(weights: Array, exponent: Int[Array, ""], dtype: np.dtype) -> Array:
    """Return the weights of this device in units of their problem, (1, n)."""
    points = weights.reshape(1, -1).astype(dtype)
    return normalise(points, jnp.broadcast_to(exponent, (1,)))


def _extremes(weights, importance, exponent, *, dtype):
    points = _in_units(weights, exponent, dtype)
    low, high = across.least(jnp.min(points)), across.most(jnp.max(points))
    if importance is None:
        zero = jnp.zeros((), dtype)
        return low, high, zero, zero
    return low, high, _sum(importance, power=1)[0], across.most(jnp.max(importance))


def _energy(weights, importance, exponent, *, dtype):
    del importance
    return _sum(_in_units(weights, exponent, dtype), power=2)


def _sum(values: Array, *, power: int) -> tuple[Array, Array]:
    """Return the sum of powers: a number, and on a CPU what it lacks."""

    def exactly(values: Array) -> tuple[Array, Array]:
        with jax.enable_x64(True):
            total = across.total(jnp.sum(values.astype(jnp.float64) ** power))
            high = total.astype(values.dtype)
            return high, (total - high.astype(jnp.float64)).astype(values.dtype)

    def plainly(values: Array) -> tuple[Array, Array]:
        total = across.total(jnp.sum(values**power))
        return total, jnp.zeros_like(total)

    return lax.platform_dependent(values, cpu=exactly, default=plainly)


def _filled(
    weights,
    importance,
    exponent,
    rules,
    *,
    dtype,
    index_of,
    num_cells,
    num_chunks,
    size,
    cuts,
    keywords,
):
    points = _in_units(weights, exponent, dtype)
    importance = None if importance is None else importance.reshape(1, -1)
    points, mass, cell = index_of(points, importance, rules, **dict(keywords))
    if num_chunks > 1:
        place = across.flat_places(weights.shape, cuts, np.dtype(np.uint32)).reshape(1, -1)
        whole = size // CHUNK * CHUNK
        late = (place - whole) // SMALL_CHUNK + whole // CHUNK
        chunk = jnp.where(place < whole, place // CHUNK, late).astype(jnp.int32)
        cell = cell + chunk * num_cells
    bins = PointBins.of(cell, num_chunks * num_cells)
    return sums_of_bins(points, mass, bins), bins.maximum(points)


def _filled_about_one(weights, importance, exponent, rule, frame, *, dtype, num_bins):
    points = _in_units(weights, exponent, dtype)[0]
    importance = None if importance is None else importance.reshape(-1)
    with jax.enable_x64(True):
        sums, is_normal = sums_about_one(
            points, importance, rule, frame, num_bins=num_bins, num_padding=None
        )
        return as_words(sums), is_normal


def _encoded(weights, importance, exponent, tables, *, dtype, encode, stored_dtype):
    points = _in_units(weights, exponent, dtype)[0]
    importance = None if importance is None else importance.reshape(-1)
    chunk = Chunk(points, importance, None, jnp.int32(0))
    codes, counts, sums = encode(chunk, *tables, dtype=stored_dtype)
    sums = lax.all_gather(sums, across.axes_of_points())
    return codes.reshape(weights.shape), across.total(counts), sums
