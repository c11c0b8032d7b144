"""Setting the smallest weights to zero."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from jaxcomp.coding import sizes
from jaxcomp.numerics.scaling import is_zero
from jaxcomp.quantizers.curves import Curve, Point
from jaxcomp.quantizers.methods.base import Encoded, Method
from jaxcomp.quantizers.pruning import prune_by_magnitude


@dataclass(frozen=True)
class MagnitudePruning(Method):
    """The smallest weights set to zero, the others kept at full precision.

    Attributes:
        sparsity: share of the weights that are set to zero, in [0, 1].
    """

    name: ClassVar[str] = "magnitude_pruning"
    label: ClassVar[str] = "pruning"
    parameter_name: ClassVar[str] = "sparsity"
    parameter_header: ClassVar[str] = "zeros"
    words: ClassVar[str] = "{} zeros"
    default: ClassVar[float] = 0.5
    keeps_weights: ClassVar[bool] = True

    sparsity: float | None = None

    def check(self, parameter: Any) -> None:
        is_number = isinstance(parameter, int | float | np.number)
        if not is_number or isinstance(parameter, bool) or not 0 <= parameter <= 1:
            raise ValueError(f"sparsity must be a fraction from 0 to 1, got {parameter!r}.")

    def candidates(self) -> np.ndarray:
        return np.concatenate([np.arange(0, 0.95, 0.05), np.arange(0.95, 0.999, 0.01), [1.0]])

    def number(self, parameter: float) -> str:
        return f"{parameter:.1%}"

    def curve(
        self,
        weights: Float[Array, "*shape"],
        importance: Float[Array, "*shape"] | None,
        parameters: Shaped[np.ndarray, " points"],
    ) -> Curve:
        parameters = np.asarray(parameters, np.float64)
        flat = np.asarray(weights, np.float64).ravel()
        order = np.argsort(np.abs(flat), kind="stable")
        lost = flat[order] ** 2
        if importance is not None:
            lost = lost * np.asarray(importance, np.float64).ravel()[order]
        upto = np.concatenate([[0.0], np.cumsum(lost)])
        zeros = np.floor(parameters * flat.size).astype(np.int64)
        size = sizes.pruned_size(
            flat.size, flat.size - zeros, value_bits=8 * weights.dtype.itemsize
        )
        return Curve(
            parameter=parameters,
            rate_bits=size.entropy_bits / flat.size,
            side_bits=np.zeros(len(parameters)),
            distortion=upto[zeros],
            converged=np.ones(len(parameters), bool),
        )

    def encode(
        self,
        weights: Float[Array, "*shape"],
        importance: Float[Array, "*shape"] | None,
        point: Point,
    ) -> Encoded:
        left = prune_by_magnitude(weights, point.parameter)
        num_zeros = int(jnp.sum(is_zero(left), dtype=jnp.int32))
        counts = np.asarray([num_zeros, left.size - num_zeros], np.int32)
        return Encoded(left, None, None, counts)

    def decode(self, codes: Any, codebook: Any, scales: Any, *, shape: Any, dtype: Any) -> Any:
        """Return the weights that are left, as they are stored."""
        del codebook, scales, shape, dtype
        return codes

    def size(
        self, counts: Int[np.ndarray, "layers symbols"], *, num_scales: int, value_bits: int
    ) -> sizes.CodeSize:
        del num_scales
        return sizes.pruned_size(counts.sum(axis=-1), counts[:, 1], value_bits=value_bits)
