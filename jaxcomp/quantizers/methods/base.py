"""What a method of compression is: from a tensor to operating points, codes and weights again.

A method is a frozen dataclass: hashable, static, the one place that says what a quantizer is
called, what its one parameter is and what its codes cost. Arrays that it takes and gives are in
ordinary units: weights far from 1 come divided by a power of two (`jaxcomp.compressed.problems`).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from jaxcomp.coding import sizes
from jaxcomp.numerics.checks import is_concrete
from jaxcomp.numerics.scaling import group_exponent, normalise, restore
from jaxcomp.quantizers.curves import Curve, Point
from jaxcomp.quantizers.histograms import accumulation_dtype
from jaxcomp.quantizers.scales import SCALES, Rows, Scale, deviations, spread
from jaxcomp.types import AnyArray

# What is stored beside a codebook is in float32.
_SCALE_BITS = 32


class Encoded(NamedTuple):
    """A tensor after one operating point of a method.

    Attributes:
        codes: integers shaped like the tensor (one for each vector of a vector quantizer), or the
            weights that are left.
        codebook: (K,) or (K, m), in the dtype of the weights (float32 beside scales); None where
            codes are numbers themselves.
        scales: (R,), see `jaxcomp.quantizers.scales`; None for none.
        counts: (symbols,) int32, how often each code occurs.
    """

    codes: Any
    codebook: Float[AnyArray, "clusters ..."] | None
    scales: Float[AnyArray, " rows"] | None
    counts: Int[Any, " symbols"]


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

    @abstractmethod
    def check(self, parameter: Any) -> None:
        """Refuse a parameter that the method does not have."""

    @abstractmethod
    def candidates(self) -> np.ndarray:
        """Return the parameters among which a budget chooses."""

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

    def number(self, parameter: float) -> str:
        """Write a parameter as it stands in a table."""
        return f"{int(parameter):,}"

    def describe(self, parameter: float) -> str:
        """Say what a parameter means, in a word or two."""
        return self.words.format(self.number(parameter))

    @abstractmethod
    def curve(
        self,
        weights: Float[Array, "*shape"],
        importance: Float[Array, "*shape"] | None,
        parameters: Shaped[np.ndarray, " points"],
    ) -> Curve:
        """Return the operating points of a tensor.

        Args:
            weights: finite, of ordinary size.
            importance: h >= 0 of every weight; None for 1.
            parameters: (M,) to look at.
        """

    def point(
        self,
        weights: Float[Array, "*shape"],
        importance: Float[Array, "*shape"] | None,
        parameter: float,
    ) -> Point:
        """Return one operating point; nothing is measured where the parameter says all of it."""
        del weights, importance
        return Point(float(parameter))

    @abstractmethod
    def encode(
        self,
        weights: Float[Array, "*shape"],
        importance: Float[Array, "*shape"] | None,
        point: Point,
    ) -> Encoded:
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
        is_wide = isinstance(codebook if scales is None else scales, np.ndarray)
        if is_wide and is_concrete(codes):
            # Wider than what JAX has at the moment.
            codes = np.asarray(codes)
            codebook = None if codebook is None else np.asarray(codebook)
        values = codes if codebook is None else _look_up(codebook, codes)
        values = self._join(values, shape)
        if scales is None:
            return values
        rows = self.rows
        assert rows is not None
        if isinstance(scales, np.ndarray) and isinstance(values, np.ndarray):
            row = spread(jnp.arange(len(scales), dtype=jnp.int32), rows=rows, shape=shape)
            return (values * scales[np.asarray(row)]).astype(dtype)
        return _rescaled(values, jnp.asarray(scales), rows=rows, shape=shape, dtype=dtype)

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

    def point(
        self,
        weights: Float[Array, "*shape"],
        importance: Float[Array, "*shape"] | None,
        parameter: float,
    ) -> Point:
        return self.curve(weights, importance, np.asarray([parameter])).at(0)

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

    def scaled(
        self, weights: Float[Array, "*shape"], importance: Float[Array, "*shape"] | None
    ) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"] | None, Float[Array, " rows"] | None]:
        """Divide weights by the deviations of their rows; an error counts what it did before."""
        return (
            (weights, importance, None)
            if self.rows is None
            else _scaled(weights, importance, rows=self.rows)
        )


def scale_bits(scales: Float[Array, " rows"] | None) -> float:
    """Return what scales cost."""
    return 0.0 if scales is None else float(_SCALE_BITS * scales.size)


def _look_up(codebook: Any, codes: Any) -> Any:
    if isinstance(codebook, np.ndarray) and isinstance(codes, np.ndarray):
        return codebook[codes.astype(np.int64)]
    return jnp.asarray(codebook)[codes.astype(jnp.int32)]


# One program for a shape: operation by operation each would compile a dozen.
@partial(jax.jit, static_argnames=("rows",))
def _scaled(
    weights: Float[Array, "*shape"], importance: Float[Array, "*shape"] | None, *, rows: Rows
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"], Float[Array, " rows"]]:
    scales = deviations(weights, rows=rows)
    each = spread(scales, rows=rows, shape=weights.shape)
    units = weights.astype(accumulation_dtype(weights.dtype)) / each
    squared = each * each
    return units, squared if importance is None else importance * squared, scales


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


def check_count(name: str, value: Any, least: int = 1, most: int | None = None) -> None:
    """Refuse what is not a whole number in a range.

    Raises:
        TypeError: if it is no integer.
        ValueError: if it is out of range.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    if value < least or (most is not None and value > most):
        allowed = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be {allowed}, got {value}.")


def power_of_two(number: int) -> int:
    """Return the least power of two that is not smaller."""
    return 1 << (int(number) - 1).bit_length()
