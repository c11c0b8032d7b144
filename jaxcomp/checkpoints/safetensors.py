"""Files of safetensors: mapped into memory, so that a tensor is read when its numbers are.

The layout: the length of a header in 8 bytes, the header in JSON (dtype, shape and place of every
tensor), then all tensors, little-endian, without gaps
(https://huggingface.co/docs/safetensors).
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxcomp.checkpoints.tensors import Checkpoint, Tensor, dtype_of
from jaxcomp.storage import MappedFile, PathLike, atomic_writer

Spec = tuple[str, str, tuple[int, ...]]
"""Name, dtype and shape of an array."""

_NAMES = {
    "bool": "BOOL",
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    "bfloat16": "BF16",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_MOST_HEADER = 100_000_000


def open_safetensors(path: Path) -> Checkpoint:
    """Open a file of safetensors.

    Raises:
        ValueError: if it is none, is cut, or has tensors of a dtype that NumPy lacks.
        OSError: if it cannot be read.
    """
    with open(path, "rb") as file:
        start = file.read(8)
        length, size = int.from_bytes(start, "little"), path.stat().st_size
        if start == b"version ":
            raise ValueError(f"{path} is a pointer of Git LFS; fetch the file by `git lfs pull`.")
        if not 2 <= length <= min(size - 8, _MOST_HEADER):
            raise ValueError(f"{path} is no file of safetensors, or it is cut; fetch it again.")
        header = _header(path, file.read(length))
    file = MappedFile(path)
    mapped = file.data[8 + length :]
    tensors = {}
    for name, own in header.items():
        dtype, shape, (first, last) = own
        count = math.prod(shape)
        is_inside = 0 <= first <= last <= len(mapped)
        if not is_inside or last - first != count * dtype_of(dtype).itemsize:
            raise ValueError(f"{path} is cut, or damaged at the tensor {name!r}; fetch it again.")
        tensors[name] = Tensor(dtype, shape, _reader(mapped[first:last], dtype, shape), file)
    return Checkpoint(path, "safetensors", (path,), tensors)


def write_safetensors(path: PathLike, specs: Sequence[Spec], arrays: Iterable[np.ndarray]) -> None:
    """Write a file of safetensors array by array, whole or not at all.

    Args:
        path: of the file.
        specs: name, dtype and shape of every array.
        arrays: in the same order; each is held only until it is written.

    Raises:
        ValueError: if the format lacks a dtype.
        OSError: if the file cannot be written.
    """
    check_dtypes(specs)
    with atomic_writer(path) as file:
        write_into(file, specs, arrays)


def check_dtypes(specs: Sequence[Spec]) -> None:
    """Refuse dtypes that the format lacks.

    Raises:
        ValueError: if there is one.
    """
    for name, dtype, _ in specs:
        if dtype not in _NAMES:
            raise ValueError(
                f"safetensors has no {dtype}, the dtype of {name!r}; write another format."
            )


def num_bytes(spec: Spec) -> int:
    """Return the bytes of an array."""
    _, dtype, shape = spec
    return dtype_of(dtype).itemsize * math.prod(shape)


def write_into(file: BinaryIO, specs: Sequence[Spec], arrays: Iterable[np.ndarray]) -> None:
    """Write a file of safetensors into an open one; the dtypes have been checked."""
    sizes = [num_bytes(spec) for spec in specs]
    # Large dtypes first: every tensor is aligned then.
    order = sorted(range(len(specs)), key=lambda n: -dtype_of(specs[n][1]).itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "np"}}
    offsets, start = [0] * len(specs), 0
    for number in order:
        name, dtype, shape = specs[number]
        offsets[number], end = start, start + sizes[number]
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
        start = end
    file.write(framed(header))
    begin = file.tell()
    for offset, array in zip(offsets, arrays, strict=True):
        file.seek(begin + offset)
        # Without a copy of its own, where it is little-endian and in order already.
        plain = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
        file.write(plain.reshape(-1).view(np.uint8).data)


def framed(header: dict[str, Any]) -> bytes:
    """Return a header as it stands in a file: its length, and JSON up to a multiple of 8 bytes."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _header(path: Path, text: bytes) -> dict[str, tuple[str, tuple[int, ...], tuple[int, int]]]:
    """Return dtype, shape and place of every tensor."""
    try:
        found = json.loads(text)
        found.pop("__metadata__", None)
        unknown = sorted({own["dtype"] for own in found.values()} - set(_DTYPES))
        if not unknown:
            return {
                name: (_DTYPES[own["dtype"]], _counts(own["shape"]), _pair(own["data_offsets"]))
                for name, own in found.items()
            }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no file of safetensors; fetch it again.") from error
    raise ValueError(
        f"{path} has tensors of the dtype {unknown[0]}, which cannot be read; convert them to one "
        f"of {', '.join(_DTYPES)}."
    )


def _counts(values: Any) -> tuple[int, ...]:
    if not all(type(value) is int and value >= 0 for value in values):
        raise ValueError("no count")
    return tuple(values)


def _pair(values: Any) -> tuple[int, int]:
    first, last = _counts(values)
    return first, last


def _reader(data: memoryview, dtype: str, shape: tuple[int, ...]) -> Any:
    def read() -> np.ndarray:
        if not len(data):
            return np.zeros(shape, dtype_of(dtype))
        return np.frombuffer(data, dtype_of(dtype).newbyteorder("<")).reshape(shape)

    return read
