"""Compressed leaves in the form in which they are stored, and back.

`jaxcomp.decoder` knows nothing of JAX or of methods: an array is `Parts`, in dtypes that NumPy
has. Here they become leaves of a `CompressedTree`, of all dtypes that JAX has.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp.checkpoints.tensors import with_own_dtype
from jaxcomp.coding.trellis import symbol_counts
from jaxcomp.compressed.report import Measures
from jaxcomp.compressed.tensors import (
    CompressedTensor,
    KeptLayout,
    KeptLeaf,
    TensorLayout,
    on_device,
    packed,
)
from jaxcomp.decoder.arrays import DTYPES, WEIGHTS, Parts
from jaxcomp.decoder.files import KEPT, Entry
from jaxcomp.decoder.streams import FormatError, require
from jaxcomp.numerics.host import whole
from jaxcomp.numerics.integers import largest_magnitude
from jaxcomp.quantizers.assignment import assignment_dtype
from jaxcomp.quantizers.methods import (
    CodebookMethod,
    Method,
    RoundToNearest,
    TrellisCoded,
    Vector,
    method_named,
)
from jaxcomp.quantizers.methods.trellis_coded import ORDERS, order_number


def plain(values: Any) -> tuple[np.ndarray, str]:
    """Return an array in a dtype that NumPy has, and the name of its own.

    Raises:
        TypeError: if it has a dtype that files do not hold.
    """
    values = whole(values)
    name = values.dtype.name
    if name not in DTYPES:
        raise TypeError(
            f"an array of {name} cannot be stored; convert it to one of {', '.join(DTYPES)}."
        )
    stored = DTYPES[name][1]
    is_number = name.startswith(("int", "uint"))
    return (values.astype(stored, copy=False) if is_number else values.view(stored)), name


def parts_of(leaf: CompressedTensor, layout: TensorLayout) -> Parts:
    """Return what is stored of a compressed leaf."""
    if layout.method.keeps_weights:
        return Parts(plain(leaf.codes)[0])
    layers = layout.shape[0] if layout.is_stack else 1
    own = layout.shape[1:] if layout.is_stack else layout.shape
    rows = scales = codebook = None
    num_codes = leaf.counts.shape[-1]
    if leaf.scales is not None:
        cut = layout.method.rows
        assert cut is not None
        has_channels = cut.scale == "channel" and len(own) > 1
        axis = cut.channel_axis % len(own) if has_channels else 0
        rows = has_channels, axis, cut.group_size or 0
        scales = plain(leaf.scales)[0].reshape(layers, -1)
    if leaf.codebook is not None:
        codebook = plain(leaf.codebook)[0]
        num_codes = codebook.shape[1 if layout.is_stack else 0]
        codebook = codebook.reshape(layers, num_codes, -1)
    if isinstance(layout.method, TrellisCoded):
        order = order_number(layout.method.order)
        codes = whole(leaf.codes)
        num_codes = 2 * largest_magnitude(codes) + 1
        return Parts(codes, layout.is_stack, num_codes, rows, scales, None, order)
    # Unsigned: as short as they can be, since all codes of a leaf are in memory here.
    integers = np.int8 if codebook is None else np.min_scalar_type(max(num_codes - 1, 0))
    codes = whole(leaf.codes).astype(integers, copy=False)
    return Parts(codes, layout.is_stack, num_codes, rows, scales, codebook)


def leaf_of(
    parts: Parts, entry: Entry, paths: tuple[str, ...]
) -> tuple[CompressedTensor | KeptLeaf, TensorLayout | KeptLayout]:
    """Return a leaf of a compressed tree, and its layout.

    Raises:
        FormatError: if it is not what its method makes.
    """
    if entry.method == KEPT:
        require(parts.codebook is None and parts.scales is None, "a kept array has codes")
        return KeptLeaf(_kept(parts, entry)), KeptLayout(paths, "kept in the file")
    kind = method_named(entry.method)
    if kind is None:
        raise FormatError(f"the method {entry.method[:40]!r} is unknown")
    method = _method_of(parts, kind, entry)
    layout = TensorLayout(
        paths=paths,
        method=method,
        shape=entry.shape,
        dtype=np.dtype(getattr(jnp, entry.dtype)),
        is_weighted=False,
        is_stack=parts.is_stack,
    )
    if method.keeps_weights:
        codes = with_own_dtype(parts.codes, entry.dtype)
        num_left = int(np.count_nonzero(codes))
        counts = np.asarray([codes.size - num_left, num_left], np.int32)
        return _tensor(on_device(codes), None, None, counts, math.nan), layout
    codes, scales = parts.codes, parts.scales
    layers = codes.reshape(entry.shape[0] if parts.is_stack else 1, -1).astype(np.int64)
    require(len(layers), "a stack has no layers")
    if isinstance(method, TrellisCoded):
        counts = _padded([symbol_counts(own) for own in layers])
    else:
        lowest = 0 if parts.codebook is not None else -(parts.num_codes // 2)
        counts = np.stack([np.bincount(own - lowest, minlength=parts.num_codes) for own in layers])
    codebook = None
    if parts.codebook is not None:
        codebook = parts.codebook[..., 0] if parts.codebook.shape[-1] == 1 else parts.codebook
        codebook = with_own_dtype(codebook, _name_of(codebook))
        codes = packed(codes.astype(assignment_dtype(parts.num_codes)), parts.codebook[0])
    if not parts.is_stack:
        counts = counts[0]
        codebook, scales = (None if part is None else part[0] for part in (codebook, scales))
    parameter = _parameter(method, parts.num_codes)
    return _tensor(on_device(codes), codebook, scales, counts.astype(np.int32), parameter), layout


def _padded(counts: list[np.ndarray]) -> np.ndarray:
    """Return counts of layers, with zeros behind those that are short."""
    size = max(own.size for own in counts)
    return np.stack([np.pad(own, (0, size - own.size)) for own in counts])


def _name_of(floats: np.ndarray) -> str:
    """Return the dtype of floats as the decoder returns them."""
    return "bfloat16" if floats.dtype == np.uint16 else floats.dtype.name


def _method_of(parts: Parts, kind: type[Method], entry: Entry) -> Method:
    """Return the method of a leaf as far as its codes show it, without its parameter."""
    what = f"{entry.path!r} is not what {entry.method} makes"
    require(entry.dtype in WEIGHTS, what)
    has_codes = parts.codebook is not None or parts.scales is not None
    require(has_codes != kind.keeps_weights, what)
    if not has_codes:
        return kind()
    options: dict[str, Any] = {}
    if parts.codebook is not None:
        if issubclass(kind, Vector):
            options["vector_size"] = parts.codebook.shape[-1]
        else:
            require(parts.codebook.shape[-1] == 1, what)
    require(issubclass(kind, CodebookMethod) == (parts.codebook is not None), what)
    require(kind is not RoundToNearest or parts.num_codes.bit_count() == 1, what)
    require(kind is not RoundToNearest or parts.num_codes <= 256, what)
    require(kind is TrellisCoded or not parts.order, what)
    require(kind is not TrellisCoded or parts.num_codes & 1, what)
    if kind is TrellisCoded:
        options["order"] = ORDERS[max(parts.order, 1) - 1]
    if parts.rows is not None:
        has_channels, axis, group = parts.rows
        own = entry.shape[1:] if parts.is_stack else entry.shape
        # An array of fewer than two axes has no channels, whatever its method says.
        is_by_channel = has_channels or (not group and issubclass(kind, CodebookMethod))
        require(has_channels or not is_by_channel or len(own) < 2, what)
        options |= {"scale": "channel" if is_by_channel else "tensor", "channel_axis": axis}
        options["group_size"] = group or None
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise FormatError(what) from error


def _parameter(method: Method, num_codes: int) -> float:
    """Return the parameter of a method as far as codes show it; NaN if they do not."""
    if method.parameter_name == "num_bits":
        return float(num_codes.bit_length() - 1)
    return float(num_codes) if method.parameter_name == "num_clusters" else math.nan


def _tensor(
    codes: Any,
    codebook: np.ndarray | None,
    scales: np.ndarray | None,
    counts: np.ndarray,
    parameter: float,
) -> CompressedTensor:
    """Return what is stored of a leaf; how far it is from the original no file says."""
    layers = counts.shape[:-1]
    unknown: Any = np.full(layers, np.nan, np.float32)
    exponent: Any = np.zeros(layers, np.int32)
    converged: Any = np.ones(layers, bool)
    rest = {
        "counts": counts,
        "parameter": np.full(layers, parameter, np.float32),
        "measures": Measures(unknown, unknown, unknown, converged, exponent, exponent, exponent),
    }
    return CompressedTensor(
        codes=codes,
        codebook=None if codebook is None else on_device(codebook),
        scales=None if scales is None else on_device(scales),
        **jax.device_put(rest),
    )


def _kept(parts: Parts, entry: Entry) -> Any:
    values = parts.codes
    if entry.key:
        try:
            return jax.random.wrap_key_data(jnp.asarray(values), impl=entry.key)
        except (TypeError, ValueError) as error:
            what = f"{entry.path!r} holds no random keys"
            raise FormatError(what) from error
    values = with_own_dtype(values, entry.dtype)
    # Wider than what JAX has at the moment: as an array of NumPy.
    is_narrowed = jax.dtypes.canonicalize_dtype(values.dtype) != values.dtype
    return values if is_narrowed else jax.device_put(values)
