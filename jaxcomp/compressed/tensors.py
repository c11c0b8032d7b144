"""A tensor in codes: what is stored of it, and the weights that it stands for.

Axes: `layers` of a stack, absent for a tensor that is none; `K` clusters, `R` rows with a scale.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from jaxcomp.coding.sizes import CodeSize
from jaxcomp.compressed.importance import Unseen
from jaxcomp.compressed.report import LayerReport, Measures, layer_report
from jaxcomp.numerics.checks import is_concrete
from jaxcomp.numerics.host import is_on_host, view
from jaxcomp.numerics.placement import automatic_axes, to_automatic
from jaxcomp.quantizers.curves import Point
from jaxcomp.quantizers.methods import Method
from jaxcomp.quantizers.problems import Errors, Problem
from jaxcomp.trees.leaves import Constant, is_wide
from jaxcomp.types import AnyArray


class KeptLeaf(NamedTuple):
    """A leaf that is not compressed, as it came; what is no array is held as a `Constant`."""

    value: Any


class CompressedTensor(NamedTuple):
    """What is stored of a compressed leaf.

    Attributes:
        codes: shaped like the leaf, in the shortest dtype that holds them, of 2, 4, 8, 16 or 32
            bits (a vector quantizer has one code for each vector); or the weights that are left
            after pruning.
        codebook: (K,) ascending, or (K, m), in the dtype of the weights, or float32 beside scales;
            (layers, K) of a stack. None where the codes are numbers themselves.
        scales: (R,) or (layers, R), see `jaxcomp.quantizers.scales`; None for none.
        counts: (symbols,) or (layers, symbols) int32, how often each code occurs.
        parameter: () or (layers,) float32, the operating point of the method.
        measures: error and diagnostics; (layers,) each, of a stack.
    """

    codes: Shaped[AnyArray, "..."]
    codebook: Float[AnyArray, "*layers clusters"] | None
    scales: Float[AnyArray, "*layers rows"] | None
    counts: Int[Array, "*layers symbols"]
    parameter: Float[Array, "*layers"]
    measures: Measures


class KeptLayout(NamedTuple):
    """Static part of a kept leaf: where it stands (several paths if tied), why it is kept."""

    paths: tuple[str, ...]
    reason: str


class TensorLayout(NamedTuple):
    """Static part of a compressed leaf: where it stands (several paths if tied), what it was.

    The method is without its parameter, so that trees of different operating points share one
    compilation. `unseen` are weights without importance, if that is over half of them.
    """

    paths: tuple[str, ...]
    method: Method
    shape: tuple[int, ...]
    dtype: np.dtype
    is_weighted: bool
    is_stack: bool
    unseen: Unseen | None = None


def kept_value(leaf: KeptLeaf) -> Any:
    """Return a kept leaf as it came."""
    return leaf.value.value if isinstance(leaf.value, Constant) else leaf.value


def decode(leaf: CompressedTensor, layout: TensorLayout) -> Any:
    """Return the weights of a leaf, with the sharding of its codes."""
    with automatic_axes(leaf.codes) as leave:
        own = leaf._replace(codes=to_automatic(leaf.codes))
        return leave(_like(own.codes, _decoded(own, layout)))


def _decoded(leaf: CompressedTensor, layout: TensorLayout) -> Any:
    method, dtype = layout.method, layout.dtype
    shape = layout.shape[1:] if layout.is_stack else layout.shape

    def values_of(codes: Any, codebook: Any, scales: Any) -> Any:
        return method.decode(codes, codebook, scales, shape=shape, dtype=dtype)

    stored = (leaf.codes, leaf.codebook, leaf.scales)
    if not layout.is_stack:
        return values_of(*stored)
    if not is_on_host(*stored):
        return jax.vmap(values_of)(*stored)
    on_host = [None if part is None else view(part) for part in stored]
    layers = [
        view(values_of(*(None if part is None else part[number] for part in on_host)))
        for number in range(layout.shape[0])
    ]
    return on_device(np.stack(layers))


def _like(stored: Any, values: Any) -> Any:
    """Put weights where their codes are, spread over devices as they are."""
    is_known = isinstance(values, jax.Array) and isinstance(stored, jax.Array)
    if not is_known or not is_concrete(values) or values.sharding == stored.sharding:
        return values
    if stored.shape != values.shape and len(stored.sharding.device_set) > 1:
        return values
    return jax.device_put(values, stored.sharding)


def packed(codes: Any, codebook: Any) -> Shaped[AnyArray, "..."]:
    """Return codes in the shortest dtype that JAX has for them; signed without a codebook."""
    if codebook is None:
        return codes  # weights, or int8: which of them occur does not decide their dtype
    for dtype, number in ((jnp.uint2, 4), (jnp.uint4, 16)):
        if codebook.shape[0] <= number:
            return codes.astype(dtype)
    return codes


def tensor_of(problem: Problem, point: Point, method: Method) -> CompressedTensor:
    """Apply one operating point of a method to a tensor; its codes stay on the host."""
    return tensor_on_device(tensor_on_host(problem, point, method))


def tensor_on_host(problem: Problem, point: Point, method: Method) -> CompressedTensor:
    """Apply one operating point of a method to a tensor; all that is found stays on the host."""
    encoded = method.encode(problem, point)
    counts: Any = encoded.counts
    parameter: Any = np.float32(point.parameter)
    return CompressedTensor(
        codes=encoded.codes,
        codebook=encoded.codebook,
        scales=encoded.scales,
        counts=counts,
        parameter=parameter,
        measures=_measures_of(encoded.errors, problem, converged=point.converged),
    )


def tensor_on_device(leaf: CompressedTensor) -> CompressedTensor:
    """Give JAX what it can hold of a tensor on the host, all but the codes."""
    tables = {"codebook": leaf.codebook, "scales": leaf.scales}
    # All at once: what a device is given one by one costs more than the numbers themselves.
    put = jax.device_put(
        {"counts": leaf.counts, "parameter": leaf.parameter, "measures": leaf.measures}
        | {name: own for name, own in tables.items() if own is not None and not is_wide(own.dtype)}
    )
    return leaf._replace(**put)


def on_device(values: Any) -> AnyArray:
    """Return an array of JAX; those wider than JAX has stay with NumPy."""
    return values if is_wide(values.dtype) else jax.device_put(values)


def _measures_of(errors: Errors, problem: Problem, *, converged: bool) -> Measures:
    """Return the errors of a tensor as they are stored, on the host: numbers and powers of two."""
    number, exponent = np.frexp(np.asarray(errors))
    # Sums of squares: twice the power of two.
    unit = np.asarray([problem.distortion_exponent, 2 * problem.exponent, 2 * problem.exponent])
    exponent = np.where(number == 0, 0, exponent + unit).astype(np.int32)
    distortion, squared_error, energy = number.astype(problem.dtype)
    of_distortion, of_error, of_energy = exponent
    is_fixed: Any = np.bool_(converged)
    return Measures(
        distortion,
        squared_error,
        energy,
        is_fixed,
        distortion_exponent=of_distortion,
        error_exponent=of_error,
        energy_exponent=of_energy,
    )


def size_of(leaf: CompressedTensor, layout: TensorLayout) -> CodeSize:
    """Return the size of a leaf in bits, all layers of a stack together."""
    counts = np.asarray(leaf.counts)
    scales = leaf.scales
    size = layout.method.size(
        counts.reshape(-1, counts.shape[-1]),
        num_scales=0 if scales is None else scales.shape[-1],
        value_bits=8 * layout.dtype.itemsize,
    )
    return CodeSize(*(np.sum(part) for part in size))


def report_of(leaf: CompressedTensor, layout: TensorLayout) -> LayerReport:
    """Return the numbers of a leaf; its arrays must be known."""
    counts = np.asarray(leaf.counts)
    counts = counts.reshape(-1, counts.shape[-1])
    parameter = float(np.mean(np.asarray(leaf.parameter)))
    used = np.count_nonzero(counts, axis=-1)
    num_used = int(used.min())
    if layout.method.keeps_weights:
        num_zeros, num_used = (int(number) for number in counts.sum(axis=0))
        parameter = num_zeros / (num_zeros + num_used)
    elif leaf.codebook is None:
        num_used = int(used.max())
    return layer_report(
        size_of(leaf, layout),
        leaf.measures,
        method=layout.method,
        paths=layout.paths,
        like=jax.ShapeDtypeStruct(layout.shape, layout.dtype),
        parameter=parameter,
        num_used=num_used,
        num_codebooks=len(counts),
        is_weighted=layout.is_weighted,
        unseen=layout.unseen,
    )
