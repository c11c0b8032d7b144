"""Archives of NumPy: one array a member, nothing pickled."""

import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcomp.checkpoints.tensors import Checkpoint, Tensor, dtype_of
from jaxcomp.storage import PathLike, atomic_writer
from jaxcomp.storage.arrays import write_npy_member

_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest date zip knows: the same bytes on every call


def open_npz(path: Path) -> Checkpoint:
    """Open an archive; its arrays are read one by one.

    Raises:
        ValueError: if it is none, or holds what NumPy cannot read without pickle.
        OSError: if it cannot be read.
    """
    tensors, left_out = {}, []
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                if not member.endswith(".npy"):
                    left_out.append(member)
                    continue
                with archive.open(member) as file:
                    shape, dtype = _header(file)
                name = member.removesuffix(".npy")
                if dtype.kind not in "biufc":
                    raise ValueError(
                        f"{path} holds {name!r} of the dtype {dtype}, which is none of numbers; "
                        "leave it out of the archive, or save it as float32."
                    )
                tensors[name] = Tensor(dtype.newbyteorder("=").name, shape, _reader(path, member))
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise ValueError(f"{path} is no archive of NumPy, or it is damaged.") from error
    return Checkpoint(path, "npz", (path,), tensors, left_out=tuple(left_out))


def write_npz(
    path: PathLike, specs: Sequence[tuple[str, str, tuple[int, ...]]], arrays: Iterable[np.ndarray]
) -> None:
    """Write an archive array by array, whole or not at all; see `write_safetensors`.

    Raises:
        ValueError: if NumPy lacks a dtype.
        OSError: if the file cannot be written.
    """
    for name, dtype, _ in specs:
        if dtype_of(dtype).kind not in "biufc":
            raise ValueError(
                f"npz has no {dtype}, the dtype of {name!r}; write safetensors, or weights in "
                "float32."
            )
    with atomic_writer(path) as file, zipfile.ZipFile(file, "w") as archive:
        for (name, _, _), array in zip(specs, arrays, strict=True):
            write_npy_member(archive, zipfile.ZipInfo(f"{name}.npy", _DATE), array)


def _header(file: Any) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read(file)
    return shape, dtype


def _reader(path: Path, member: str) -> Any:
    def read() -> np.ndarray:
        try:
            with zipfile.ZipFile(path) as archive, archive.open(member) as file:
                values = np.lib.format.read_array(file, allow_pickle=False)
        except (zipfile.BadZipFile, EOFError) as error:
            raise ValueError(f"{path} is damaged at {member!r}.") from error
        return values.astype(values.dtype.newbyteorder("="), copy=False)

    return read
