"""Arrays from streams: byte planes, codes with codebooks and scales.

Section 3 of `docs/format.md`. Numbers of types that NumPy lacks come as their bits: bfloat16 as
uint16, those of four bits and fewer one a byte.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxcomp.decoder.streams import BLOCK, Stack, require, symbols, trellis

_FLOATS_OF_8 = ("e3m4", "e4m3", "e4m3b11fnuz", "e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu")
# Bits, and the dtype of NumPy in which they come.
DTYPES: dict[str, tuple[int, str]] = {
    **{f"int{bits}": (bits, f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": (bits, f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": (bits, f"float{bits}") for bits in (16, 32, 64)},
    **{f"complex{bits}": (bits, f"complex{bits}") for bits in (64, 128)},
    **{f"int{bits}": (bits, "int8") for bits in (2, 4)},
    **{f"uint{bits}": (bits, "uint8") for bits in (2, 4)},
    "bool": (1, "bool"),
    "bfloat16": (16, "uint16"),
    "float4_e2m1fn": (4, "uint8"),
    **{f"float8_{name}": (8, "uint8") for name in _FLOATS_OF_8},
}
MOST_INTEGERS = 1 << 16
_SPREAD_AT_ONCE = 1 << 20
WEIGHTS = ("float16", "bfloat16", "float32", "float64")


def numbers(stack: Stack, dtype: str, count: int, columns: int) -> np.ndarray:
    """Pop numbers of a dtype: byte planes from the most significant on, or short ones whole."""
    width, stored = DTYPES[dtype]
    if width < 8:
        found = symbols(stack, 1 << width, count, columns).astype(stored)
        sign = 1 << (width - 1)
        return (found ^ sign) - sign if dtype in ("int2", "int4") else found
    stack.claim(count * width // 8, 0)
    is_plain, planes = width > 8 and stack.small(1), np.empty((count, width // 8), np.uint8)
    for plane in reversed(range(width // 8)):
        own = stack.plain(8, count) if is_plain else symbols(stack, 256, count, columns)
        planes[:, plane] = own
    return planes.reshape(-1).view(np.dtype(stored).newbyteorder("<")).astype(stored)


class Parts(NamedTuple):
    """What is stored of an array: itself as `codes`, or codes and what they stand for.

    `rows` says which weights share a scale: whether channels do, their axis, and the size of the
    groups that they are cut into (0 for none). `order` says how codes follow each other in a
    trellis: row by row (1), column by column (2), or not at all (0).
    """

    codes: np.ndarray
    is_stack: bool = False
    num_codes: int = 0
    rows: tuple[bool, int, int] | None = None
    scales: np.ndarray | None = None  # (layers, R)
    codebook: np.ndarray | None = None  # (layers, K, m)
    order: int = 0


def read_parts(stack: Stack, dtype: str, shape: tuple[int, ...]) -> Parts:
    """Pop what is stored of one array."""
    count, kind = math.prod(shape), stack.small(2)
    if kind == 0:
        return Parts(numbers(stack, dtype, count, columns_of(shape)).reshape(shape))
    if kind == 1:  # the places of what is not zero first
        found = np.zeros(count, DTYPES[dtype][1])
        there = np.flatnonzero(symbols(stack, 2, count, columns_of(shape)))
        found[there] = numbers(stack, dtype, len(there), BLOCK)
        return Parts(found.reshape(shape))
    require(dtype in WEIGHTS, "what has codes is of no dtype of weights")
    is_stack, has_scales = stack.small(1) > 0, stack.small(1)
    require(shape or not is_stack, "a stack has no layers")
    layers, own = (shape[0], shape[1:]) if is_stack else (1, shape)
    entry, rows, scales, codebook, floats = 1, None, None, None, dtype
    if has_scales:
        floats = "float64" if stack.small(1) else "float32"
        rows = stack.small(1) > 0, stack.number(), stack.number()
        length = num_scales(rows, own)
        scales = numbers(stack, floats, layers * length, BLOCK).reshape(layers, length)
    num_codes = max(stack.number(), 1)
    if kind == 2:
        entry = max(stack.number(), 1)
        codebook = numbers(stack, floats, layers * num_codes * entry, BLOCK)
        codebook = codebook.reshape(layers, num_codes, entry)
    order = stack.small(2) if kind == 3 else 0
    is_allowed = num_codes < 1 << 31 if kind == 2 else has_scales and num_codes <= MOST_INTEGERS
    require(is_allowed and order < 3, "its codes are of no kind that there is")
    kept = own if entry == 1 else (-(-math.prod(own) // entry),)
    count, columns = math.prod(kept), columns_of(kept)
    parts = []
    for _ in range(layers):
        if order:
            own = ordered(stack, num_codes // 2, count, columns, order)
        else:
            own = symbols(stack, num_codes, count, columns)
        parts.append(
            own if kind == 2 else _integers(own, num_codes, 0 if order else num_codes // 2)
        )
        del own
    if len(parts) == 1:
        codes = parts.pop()
    else:
        codes = np.stack(parts) if parts else np.zeros((0, count), np.uint8)
    codes = codes.reshape((layers, *kept) if is_stack else kept)
    return Parts(codes, is_stack, num_codes, rows, scales, codebook, order)


def _integers(symbols: np.ndarray, num_codes: int, zero: int) -> np.ndarray:
    """Return integers in the shortest dtype that holds so many of them, given the symbol of 0."""
    if num_codes <= 256:  # modulo 256
        return (symbols.astype(np.uint8) - np.uint8(zero)).view(np.int8)
    return (
        symbols.astype(np.int16) if not zero else (symbols.astype(np.int32) - zero).astype(np.int16)
    )


def ordered(stack: Stack, most: int, count: int, columns: int, order: int) -> np.ndarray:
    """Pop integers in trellises along the columns of rows, or along the rows of columns."""
    rows = count // columns
    require(order == 1 or rows * columns == count, "its rows are not whole")
    if order == 1 or not count:
        return trellis(stack, most, count, columns)
    return trellis(stack, most, count, rows).reshape(columns, rows).T.reshape(-1)


def columns_of(shape: tuple[int, ...]) -> int:
    """Return how many numbers are a row for contexts."""
    return max(shape[-1], 1) if len(shape) > 1 else BLOCK


def values_of(parts: Parts, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the numbers that parts stand for."""
    if parts.codebook is None and parts.scales is None:
        return parts.codes
    found = np.empty(shape, DTYPES[dtype][1])
    own = shape[1:] if parts.is_stack else shape
    for layer in range(shape[0] if parts.is_stack else 1):
        into = found[layer : layer + 1].reshape(own) if parts.is_stack else found
        values = parts.codes[layer] if parts.is_stack else parts.codes
        if parts.codebook is not None:
            values = parts.codebook[layer][values].reshape(-1)[: math.prod(own)].reshape(own)
        with np.errstate(all="ignore"):
            if parts.scales is None or parts.rows is None:
                into[...] = values
                continue
            # A part at a time: what is multiplied is wider than codes and weights.
            cut = own if parts.rows[0] and len(own) > 1 else (math.prod(own),)
            values, into = values.reshape(cut), into.reshape(cut)
            for part, each in _spread(parts.rows, parts.scales[layer], cut):
                scaled = values[part] * each
                into[part] = _rounded(scaled) if dtype == "bfloat16" else scaled
    return found


def _cut(rows: tuple[bool, int, int], shape: tuple[int, ...]) -> tuple[tuple[int, ...], int, int]:
    """Return the shape, axis and size of the groups of what is cut into rows."""
    has_channels, axis, group = rows
    if not has_channels or len(shape) < 2:
        shape, axis = (1, math.prod(shape)), 0
    require(axis < len(shape), "an axis of scales is not there")
    length = math.prod(shape[:axis] + shape[axis + 1 :])
    return shape, axis, max(min(group or length, length), 1)


def num_scales(rows: tuple[bool, int, int], shape: tuple[int, ...]) -> int:
    """Return how many scales an array has that is cut into such rows."""
    shape, axis, group = _cut(rows, shape)
    return shape[axis] * -(-math.prod(shape[:axis] + shape[axis + 1 :]) // group)


def _spread(
    rows: tuple[bool, int, int], scales: np.ndarray, shape: tuple[int, ...]
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the scales of some weights at a time, with their places on the first axis.

    Args:
        rows: which weights share a scale.
        scales: of the rows.
        shape: of the array; a single axis has no channels.
    """
    whole, axis, group = _cut(rows, shape)
    groups = scales.reshape(whole[axis], len(scales) // max(whole[axis], 1))
    inner = math.prod(shape[1:])
    step = max(1, _SPREAD_AT_ONCE // max(inner, 1))
    for start in range(0, shape[0], step):
        part = slice(start, min(start + step, shape[0]))
        if len(shape) == 1:
            yield part, groups[0][np.arange(part.start, part.stop) // group]
        elif axis == 0:
            each = groups[part][:, np.arange(inner) // group]
            yield part, each.reshape(-1, *shape[1:])
        else:
            length = inner // max(shape[axis], 1)
            each = groups[:, np.arange(start * length, part.stop * length) // group]
            others = (shape[axis], part.stop - start, *shape[1:axis], *shape[axis + 1 :])
            yield part, np.moveaxis(each.reshape(others), 0, axis)


def added(differences: np.ndarray, reference: np.ndarray, dtype: str) -> np.ndarray:
    """Return a reference and differences to it as one array, rounded to the dtype."""
    with np.errstate(all="ignore"):
        if dtype != "bfloat16":
            return reference + differences
        wide = [
            (bits.astype(np.uint32) << 16).view(np.float32) for bits in (reference, differences)
        ]
        return _rounded(wide[0] + wide[1])


def _rounded(values: np.ndarray) -> np.ndarray:
    """Return the bits of the nearest numbers of bfloat16."""
    bits = values.astype(np.float32).view(np.uint32)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, nearest).astype(np.uint16)


def decode_bare(
    data: bytes, spec: Sequence[tuple[str, tuple[int, ...]]], max_bytes: int = 1 << 28
) -> list[np.ndarray]:
    """Decode a bare stream: arrays of which dtypes and shapes are known.

    Raises:
        FormatError: if the stream is not one of just these arrays.
    """
    check_size(spec, max_bytes)
    stack = Stack(data, 2 * max_bytes + (1 << 20))
    arrays = [values_of(read_parts(stack, *one), *one) for one in spec]
    stack.finish()
    return arrays


def bytes_of(values: np.ndarray) -> np.ndarray:
    """Return the bytes of an array, little-endian, without a copy where they are such already."""
    return (
        values.astype(values.dtype.newbyteorder("<"), order="C", copy=False)
        .reshape(-1)
        .view(np.uint8)
    )


def check_size(spec: Any, max_bytes: int) -> None:
    """Refuse arrays that have more bytes in all than a limit."""
    size = sum(-(-DTYPES[dtype][0] // 8) * math.prod(shape) for dtype, shape in spec)
    require(
        size <= max_bytes,
        f"its arrays have {size:,} bytes, more than the {max_bytes:,} that max_bytes allows",
    )
