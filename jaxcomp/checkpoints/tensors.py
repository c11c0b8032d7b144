"""What a checkpoint holds: tensors by path, each read when it is asked for.

Dtypes go by their names in NumPy and `ml_dtypes`, such as `float32` or `bfloat16`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import ml_dtypes
import numpy as np

from jaxcomp.storage import MappedFile

Format = Literal["safetensors", "npz", "pytorch", "orbax", "jaxcomp"]


class Tensor(NamedTuple):
    """One array of a checkpoint, not read yet.

    Attributes:
        dtype: its name.
        shape: of the array.
        read: returns the array, in its own dtype.
        mapped: the file that it is read from where it is touched; None where all is read at once.
    """

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    mapped: MappedFile | None = None


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint.

    Attributes:
        path: as it was named.
        format: of its files.
        files: all of them, or the folder that holds them.
        tensors: its arrays by path.
        nested: its tree, where it has one; None for a flat dict by path.
        left_out: what is no array of the model, such as the state of an optimizer.
    """

    path: Path
    format: Format
    files: tuple[Path, ...]
    tensors: Mapping[str, Tensor]
    nested: Any = None
    left_out: tuple[str, ...] = ()

    def tree(self) -> Any:
        """Return the tree of its arrays; those of a mapped file are not read yet."""
        if self.nested is not None:
            return self.nested
        return {path: tensor.read() for path, tensor in self.tensors.items()}

    def release(self) -> None:
        """Give back the memory of what was read of mapped files; their arrays stay valid."""
        files = {id(one.mapped): one.mapped for one in self.tensors.values()}
        for file in files.values():
            if file is not None:
                file.release()


def dtype_of(name: str) -> np.dtype:
    """Return a dtype of NumPy or `ml_dtypes` by its name."""
    return np.dtype(name if name in np.sctypeDict else getattr(ml_dtypes, name))


def with_own_dtype(values: np.ndarray, name: str) -> np.ndarray:
    """Return what `jaxcomp.decoder` gives, bits where NumPy lacks a dtype, in its own dtype."""
    dtype = dtype_of(name)
    if values.dtype == dtype:
        return values
    return values.astype(dtype) if name.startswith(("int", "uint")) else values.view(dtype)


def is_weight(dtype: str) -> bool:
    """Tell whether a dtype is one of floating-point numbers of 16 bits or more."""
    return dtype in ("float16", "bfloat16", "float32", "float64")


def tensors_of(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Tensor]]:
    """Yield the arrays of nested dicts, lists and tuples by their paths, in order."""
    if isinstance(tree, Mapping):
        children: Any = tree.items()
    elif isinstance(tree, list | tuple):
        children = enumerate(tree)
    else:
        if isinstance(tree, np.ndarray):
            yield "/".join(path), Tensor(tree.dtype.name, tree.shape, lambda: tree)
        return
    for key, child in children:
        yield from tensors_of(child, (*path, str(key)))
