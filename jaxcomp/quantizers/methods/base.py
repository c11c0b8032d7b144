"""What a method of compression is: from a tensor to operating points, codes and weights again.

A method is a frozen dataclass: hashable, static, the one place that says what a quantizer is
called, what its one parameter is and what its codes cost. Tensors come as they are dealt out in
chunks (`jaxcomp.quantizers.problems`), so that what is compiled does not depend on their shapes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from jaxcomp.coding import sizes
from jaxcomp.numerics.checks import check_count, is_concrete
from jaxcomp.numerics.host import is_on_host
from jaxcomp.numerics.scaling import group_exponent, normalise, restore
from jaxcomp.quantizers.assignment import assignment_dtype
from jaxcomp.quantizers.chunk_errors import Total
from jaxcomp.quantizers.curves import Curve, Point
from jaxcomp.quantizers.placed_problems import PlacedProblem
from jaxcomp.quantizers.problems import Errors, Problem, fetched
from jaxcomp.quantizers.scales import SCALES, Rows, Scale, spread
from jaxcomp.trees.leaves import is_wide
from jaxcomp.types import AnyArray

# What is stored beside a codebook is in float32.
_SCALE_BITS = 32


class Encoded(NamedTuple):
    """A tensor after one operating point of a method, on the host, in the units of the original.

    Attributes:
        codes: integers shaped like the tensor (one for each vector of a vector quantizer), or the
            weights that are left.
        codebook: (K,) or (K, m), in the dtype of the weights (float32 beside scales); None where
            codes are numbers themselves.
        scales: (R,), see `jaxcomp.quantizers.scales`; None for none.
        counts: (symbols,) int32, how often each code occurs.
        errors: in the units of the problem.
    """

    codes: Any
    codebook: Float[np.ndarray, "clusters ..."] | None
    scales: Float[np.ndarray, " rows"] | None
    counts: Int[np.ndarray, " symbols"]
    errors: Errors

    def cut(self, size: int) -> "Encoded":
        """Return the same with so many entries of the codebook, the first ones."""
        assert self.codebook is not None
        return self._replace(codebook=self.codebook[:size], counts=self.counts[:size])


# Of a chunk: its codes, how often each occurs, and what `measured` finds.
ChunkCodes = tuple[Any, Any, Any]


@dataclass(frozen=True)
class Method(ABC):
    """One way to compress a tensor; its subclasses are the methods there are.

    The first field of each is its *parameter*, the one number that says how far it goes. None
    leaves it to a budget, or to the method's default.

    Attributes:
        scale: "tensor", one scale for all weights, or "channel", one for each index of the last
            axis of a tensor with two axes or more.
        group_size: weights of a channel that share a scale; None for all of them.
        channel_axis: axis of the channels, of a layer of a stack without that of the layers.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    parameter_name: ClassVar[str]
    parameter_header: ClassVar[str]
    # What a parameter means, around its number.
    words: ClassVar[str]
    default: ClassVar[float]
    # What has to be known beside the weights.
    needs: ClassVar[Literal["nothing", "layer_hessian"]] = "nothing"
    # Whether `codes` are the weights that are left, as they were.
    keeps_weights: ClassVar[bool] = False

    scale: Scale = field(default="tensor", kw_only=True)
    group_size: int | None = field(default=None, kw_only=True)
    channel_axis: int = field(default=-1, kw_only=True)

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ValueError(f"scale must be one of {SCALES}, got {self.scale!r}.")
        if self.group_size is not None:
            check_count("group_size", self.group_size)
        if not isinstance(self.channel_axis, int | np.integer):
            raise TypeError(f"channel_axis must be an integer, got {self.channel_axis!r}.")
        if self.parameter is not None:
            self.check(self.parameter)

    @property
    def parameter(self) -> Any:
        """The method's own parameter; None if a budget is to choose it."""
        return getattr(self, self.parameter_name)

    def at(self, parameter: Any) -> Self:
        """Return the method with another parameter, None for one that a budget chooses."""
        return replace(self, **{self.parameter_name: parameter})

    @property
    def rows(self) -> Rows | None:
        """How tensors are cut into rows with a scale each; None if there is no scale."""
        if self.scale == "tensor" and self.group_size is None:
            return None
        return Rows(self.scale, self.group_size, self.channel_axis)

    @property
    def works_on_parts(self) -> bool:
        """Whether sums over weights are all it needs: no device reads the part of another then."""
        return False

    @abstractmethod
    def check(self, parameter: Any) -> None:
        """Refuse a parameter that the method does not have."""

    @abstractmethod
    def candidates(self) -> np.ndarray:
        """Return the parameters among which a budget chooses."""

    def between(
        self, parameters: Shaped[np.ndarray, " points"], place: int
    ) -> Shaped[np.ndarray, " points"] | None:
        """Return as many parameters around one of several; None if none lies between two.

        A budget is a matter of hundredths of a bit: where a curve goes on between its points, it
        is looked at more closely around the one that was chosen.

        Args:
            parameters: in order.
            place: of the one that was chosen.
        """
        del parameters, place
        return None

    def defaults(
        self, num_weights: Int[np.ndarray, " tensors"], num_layers: Int[np.ndarray, " tensors"]
    ) -> list[Any]:
        """Return the parameters of tensors that neither a budget nor an importance tells apart.

        Args:
            num_weights: of each tensor, or of a layer where it is a stack of them.
            num_layers: of each tensor; 1 where it is no stack.
        """
        del num_layers
        return [self.default] * len(num_weights)

    def family(self) -> "Method":
        """Return the method that has the defaults of all that `suited` may have made of it."""
        return self

    def number(self, parameter: float) -> str:
        """Write a parameter as it stands in a table."""
        return f"{int(parameter):,}"

    def describe(self, parameter: float) -> str:
        """Say what a parameter means, in a word or two."""
        return self.words.format(self.number(parameter))

    def suited(self, weights: Float[np.ndarray, "*shape"], *, is_stack: bool) -> "Method":
        """Return the method as it suits a leaf: with what its values decide, or another one.

        Args:
            weights: of the leaf, finite.
            is_stack: whether they are a stack of layers.
        """
        del weights, is_stack
        return self

    def prepare(self, problem: Problem) -> Problem:
        """Return a tensor with what the method divides it by, if anything."""
        return problem

    @abstractmethod
    def curve(self, problem: Problem, parameters: Shaped[np.ndarray, " points"]) -> Curve:
        """Return the operating points of a tensor.

        Args:
            problem: the tensor, prepared.
            parameters: (M,) to look at.
        """

    def point(self, problem: Problem, parameter: float) -> Point:
        """Return one operating point; nothing is measured where the parameter says all of it."""
        del problem
        return Point(float(parameter))

    def curves(
        self,
        problems: Iterable[Problem],
        parameters: Iterable[Shaped[np.ndarray, " points"]],
    ) -> Iterator[Curve]:
        """Yield the curves of several tensors, in order; one by one, unless a method can do better.

        Args:
            problems: the tensors, prepared; no more of them are taken than are solved together.
            parameters: (M,) to look at, of each.
        """
        for problem, own in zip(problems, parameters, strict=True):
            yield self.curve(problem, own)

    def points(self, problems: Iterable[Problem], parameters: Iterable[Any]) -> Iterator[Point]:
        """Yield one operating point of each of several tensors, likewise.

        Args:
            problems: the tensors, prepared.
            parameters: of each.
        """
        for problem, parameter in zip(problems, parameters, strict=True):
            yield self.point(problem, parameter)

    @abstractmethod
    def encode(self, problem: Problem, point: Point) -> Encoded:
        """Apply one operating point of a tensor to it."""

    def decode(
        self,
        codes: Any,
        codebook: Float[AnyArray, "clusters ..."] | None,
        scales: Float[AnyArray, " rows"] | None,
        *,
        shape: tuple[int, ...],
        dtype: np.dtype,
    ) -> Float[AnyArray, "*shape"]:
        """Return the weights that codes stand for."""
        if is_on_host(codes, codebook, scales):
            # Nothing is compiled for the shape; wider than what JAX has at the moment, if need be.
            return self._decoded_on_host(codes, codebook, scales, shape=shape, dtype=dtype)
        is_known = isinstance(codes, jax.Array) and is_concrete(codes)
        if codebook is not None and is_known and not codes.is_fully_addressable:
            codebook = np.asarray(codebook)  # which devices of other processes have as well
        values = codes if codebook is None else jnp.asarray(codebook)[codes.astype(jnp.int32)]
        values = self._join(values, shape)
        if scales is None:
            return values
        rows = self.rows
        assert rows is not None
        return _rescaled(values, jnp.asarray(scales), rows=rows, shape=shape, dtype=dtype)

    def _decoded_on_host(
        self, codes: Any, codebook: Any, scales: Any, *, shape: tuple[int, ...], dtype: np.dtype
    ) -> Float[AnyArray, "*shape"]:
        values = np.asarray(codes)
        if codebook is not None:
            values = np.asarray(codebook)[values.astype(np.int32)]
        values = self._join(values, shape)
        if scales is not None:
            rows = self.rows
            assert rows is not None
            places = np.arange(values.size)
            each = np.asarray(scales)[rows.of_places(places, shape)]
            values = (values * each.reshape(shape)).astype(dtype)
        return values if is_wide(values.dtype) else jax.device_put(values)

    def _join(self, values: Any, shape: tuple[int, ...]) -> Any:
        return values.reshape(shape)

    @abstractmethod
    def size(
        self, counts: Int[np.ndarray, "layers symbols"], *, num_scales: int, value_bits: int
    ) -> sizes.CodeSize:
        """Return the sizes of the layers of a tensor, by what its codes occur; see `coding.sizes`.

        Args:
            counts: (layers, symbols).
            num_scales: of a layer.
            value_bits: bits of one weight of the original.
        """


@dataclass(frozen=True)
class CodebookMethod(Method):
    """A method whose codes are entries of a codebook: of weights, or of weights over scales."""

    def prepare(self, problem: Problem) -> Problem:
        """Return a tensor with the deviations of its rows; an error counts what it did before."""
        rows = self.rows
        if rows is None:
            return problem
        squares = problem.over_rows(np.square, np.add, rows)
        deviations = np.sqrt(squares / rows.sizes(problem.shape))
        scales = np.where(deviations > 0, deviations, 1).astype(problem.dtype)
        return problem.with_scales(rows, scales)

    def point(self, problem: Problem, parameter: float) -> Point:
        return self.curve(problem, np.asarray([parameter])).at(0)

    def size(
        self, counts: Int[np.ndarray, "layers symbols"], *, num_scales: int, value_bits: int
    ) -> sizes.CodeSize:
        bits = value_bits if self.rows is None else _SCALE_BITS
        size = sizes.code_size(
            counts,
            # Those that can be used: a tensor may have fewer weights than clusters were asked for.
            num_clusters=counts.shape[-1],
            centroid_bits=bits * self.entry_size,
        )
        return sizes.with_scales(size, num_scales, scale_bits=_SCALE_BITS)

    @property
    def entry_size(self) -> int:
        """Weights that an entry of the codebook stands for."""
        return 1

    def _encoded(
        self,
        problem: Problem,
        codebook: Float[np.ndarray, "clusters ..."],
        encode: Callable[..., ChunkCodes],
        *tables: Any,
    ) -> Encoded:
        """Give every chunk its codes, and measure what it becomes.

        Args:
            problem: the tensor.
            codebook: (K,) or (K, m) in units, over scales; padded by its last entry to a size that
                many codebooks share, of which only those that occur are kept.
            encode: `(chunk, *tables, codebook, dtype=dtype)`, the codebook and the dtype as they
                are stored.
            tables: what else it needs.
        """
        size = self.entry_size
        own = codebook if problem.scales is not None else problem.in_original_units(codebook)
        stored = codebook if problem.scales is not None else problem.in_units(own)
        counts, total = np.zeros(len(own), np.int64), Total()
        dtype = problem.weights_dtype
        if isinstance(problem, PlacedProblem):
            codes, counts, sums = problem.encoded(encode, (*tables, stored), dtype)
            for part in sums:
                total.add(part)
            return Encoded(codes, own, None, counts, total.errors(problem))
        codes = np.empty(-(-problem.size // size), assignment_dtype(len(own)))
        encoded = (
            (places, encode(chunk, *tables, stored, dtype=dtype))
            for places, chunk in problem.chunks(size)
        )
        for places, (some, number, sums) in fetched(encoded):
            start, stop = places.start // size, -(-places.stop // size)
            codes[start:stop] = some[: stop - start]
            counts += number
            total.add(sums)
        return Encoded(
            codes.reshape(problem.shape) if size == 1 else codes,
            own,
            problem.scales_in_original_units(),
            counts.astype(np.int32),
            total.errors(problem),
        )


def method_named(name: str) -> type[Method] | None:
    """Return the method of this name, one of the package or of a user; None if there is none.

    A class counts as soon as it is defined; of several with a name the last one, as in a notebook
    whose cell was run twice.
    """
    found, waiting = None, [Method]
    while waiting:
        kind = waiting.pop(0)
        waiting += kind.__subclasses__()
        if vars(kind).get("name") == name:
            found = kind
    return found


def scale_bits(problem: Problem) -> float:
    """Return what the scales of a tensor cost."""
    return 0.0 if problem.scales is None else float(_SCALE_BITS * problem.scales.size)


@partial(jax.jit, static_argnames=("rows", "shape", "dtype"))
def _rescaled(
    values: Shaped[Array, "*shape"],
    scales: Float[Array, " rows"],
    *,
    rows: Rows,
    shape: tuple[int, ...],
    dtype: np.dtype,
) -> Float[Array, "*shape"]:
    # In units of the largest scale: the product of a code and a subnormal scale would be 0.
    exponent = group_exponent(scales)
    units = spread(normalise(scales, exponent), rows=rows, shape=shape)
    product = values.astype(units.dtype) * units
    return restore(product, exponent, axis=tuple(range(len(shape)))).astype(dtype)


def power_of_two(number: int) -> int:
    """Return the least power of two that is not smaller."""
    return 1 << (int(number) - 1).bit_length()
