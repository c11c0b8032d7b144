"""Compressed models back to files that other programs read, array by array."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxcomp.checkpoints.npz import write_npz
from jaxcomp.checkpoints.orbax import write_orbax
from jaxcomp.checkpoints.references import give_reference
from jaxcomp.checkpoints.safetensors import write_safetensors
from jaxcomp.checkpoints.sharded import files_named, write_sharded
from jaxcomp.checkpoints.tensors import Checkpoint, dtype_of, is_weight, with_own_dtype
from jaxcomp.decoder import File, open_model
from jaxcomp.decoder.arrays import bytes_of
from jaxcomp.decoder.files import viewed, walk
from jaxcomp.storage import PathLike

Target = Literal["safetensors", "npz", "orbax"]
DTypeOfWeights = Literal["original", "float32", "bfloat16", "float16"]

Report = Callable[[int, int, str], None]


class Decompressed(NamedTuple):
    """What was written.

    Attributes:
        format: of the file.
        num_tensors: in it.
        size_bytes: of the arrays.
        digest: SHA-256 of the compressed tree, in hexadecimal, which the arrays had.
        left_out: numbers and text in the tree, which only Orbax holds.
        files: that were written, or the folder; an index first.
    """

    format: Target
    num_tensors: int
    size_bytes: int
    digest: str
    left_out: tuple[str, ...]
    files: tuple[Path, ...]


def decompress(
    source: PathLike,
    target: PathLike,
    *,
    format: Target | None = None,
    dtype: DTypeOfWeights = "original",
    reference: Checkpoint | None = None,
    shard_size: float | None = None,
    max_bytes: int | None = None,
    report: Report | None = None,
) -> Decompressed:
    """Write the weights of a compressed model to a file, whole or not at all.

    Checksums and the SHA-256 of the model are looked at on the way: nothing is left of a file whose
    arrays are others. One array is in memory at a time, but for Orbax.

    Args:
        source: the compressed model.
        target: where the weights go: a file, or a folder for Orbax.
        format: of the target; None for that of its name, Orbax without a suffix.
        dtype: of the weights (floating-point numbers of 16 bits or more); everything else stays as
            it is.
        reference: the model to which the file holds differences, if it does.
        shard_size: most bytes of the arrays of a file, for safetensors in several files and their
            index (Hugging Face's layout); None for one file.
        max_bytes: see `jaxcomp.decoder.File`.
        report: told `(arrays done, arrays in all, path)`.

    Raises:
        FormatError: if the compressed model is damaged.
        ImportError: without `constriction`, or without Orbax where it is to be written.
        ValueError: if the target is the source, exists as a folder, or its format is not known or
            lacks a dtype; or for several files of another format than safetensors.
        OSError: if a file cannot be read or written.
    """
    target = Path(target)
    format = format or _format_of(target)
    if shard_size is not None:
        if not shard_size > 0:
            raise ValueError(f"shard_size must be positive, got {shard_size:g}.")
        if format != "safetensors":
            raise ValueError(
                f"only safetensors come in several files, got {format}; leave shard_size out, or "
                "write safetensors."
            )
    if format == "orbax" and target.exists():
        raise ValueError(f"{target} exists; remove it, or name another folder.")
    files = (target,)
    with open_model(source, max_bytes) as file:
        give_reference(file, reference)
        for written in files_named(target, shard_size):
            refuse_same(written, file.sources)
        specs = []
        for path, (number, view) in zip(file.paths, file.slots, strict=True):
            entry = file.entries[number]
            own = dtype if dtype != "original" and is_weight(entry.dtype) else entry.dtype
            specs.append((path, own, entry.shape if view is None else tuple(view[2])))
        arrays = _with_dtypes(arrays_of(file, report), specs)
        if format == "orbax":
            tree = walk(file.header["tree"], lambda _: next(arrays))
            # What follows the last array is the look at the SHA-256.
            next(arrays, None)
            write_orbax(target, tree)
        elif shard_size is not None:
            files = write_sharded(target, specs, arrays, shard_size)
        else:
            write = write_safetensors if format == "safetensors" else write_npz
            write(target, specs, arrays)
        sizes = [
            dtype_of(own).itemsize * int(np.prod(shape, dtype=np.int64)) for _, own, shape in specs
        ]
        left_out = () if format == "orbax" else constants(file.header["tree"])
        return Decompressed(
            format, len(specs), sum(sizes), file.digest.hex(), tuple(left_out), files
        )


def refuse_same(target: Path, sources: Iterable[Path]) -> None:
    """Refuse to write over what is read.

    Raises:
        ValueError: if the target is one of the sources.
    """
    for source in sources:
        if target.exists() and source.exists() and os.path.samefile(target, source):
            raise ValueError(f"{target} is what is read; name another file to write.")


def constants(node: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the paths of numbers and text in the description of a tree."""
    kind, *content = node
    if kind == "constant":
        yield "/".join(path)
    elif kind in ("dict", "OrderedDict", "fields"):
        for key, child in content[0]:
            yield from constants(child, (*path, str(key)))
    elif kind in ("list", "tuple"):
        for place, child in enumerate(content[0]):
            yield from constants(child, (*path, str(place)))


def _format_of(target: Path) -> Target:
    found = {".safetensors": "safetensors", ".npz": "npz", "": "orbax"}.get(target.suffix)
    if found is None:
        raise ValueError(
            f"the name {target.name} tells no format; end it with .safetensors or .npz, without a "
            "suffix for a folder of Orbax, or name the format."
        )
    return found  # pyright: ignore[reportReturnType]


def arrays_of(file: File, report: Report | None = None) -> Iterator[np.ndarray]:
    """Yield the arrays at all paths, in their own dtypes; at last look at their SHA-256."""
    hashed, seen = hashlib.sha256(file.identity), 0
    for place, (number, view) in enumerate(file.slots):
        entry = file.entries[number]
        if report is not None:
            report(place, len(file.slots), entry.path)
        values = file.array(entry)
        if number == seen:  # stored arrays come in order, and again where they are tied
            hashed.update(bytes_of(values).data)
            seen += 1
        yield with_own_dtype(viewed(file.weights(number, values), view), entry.dtype)
    file.check_digest(hashed.digest())
    if report is not None:
        report(len(file.slots), len(file.slots), "")


def _with_dtypes(arrays: Iterator[np.ndarray], specs: Any) -> Iterator[np.ndarray]:
    # Not zipped: the last array is followed by a look at all of them.
    names = iter(specs)
    for values in arrays:
        _, dtype, _ = next(names)
        with np.errstate(over="ignore"):  # float16 has fewer exponents
            yield values.astype(dtype_of(dtype), copy=False)
