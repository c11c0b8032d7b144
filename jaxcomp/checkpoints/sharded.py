"""Checkpoints in several files, as Hugging Face lays them out: an index, and the files it names."""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from jaxcomp.checkpoints.safetensors import (
    Spec,
    check_dtypes,
    num_bytes,
    write_into,
    write_safetensors,
)
from jaxcomp.checkpoints.tensors import Checkpoint
from jaxcomp.decoder.files import INDEX
from jaxcomp.storage import atomic_writer


def write_sharded(
    path: Path, specs: Sequence[Spec], arrays: Iterator[np.ndarray], shard_size: float
) -> tuple[Path, ...]:
    """Write safetensors in several files and their index, all of them whole or none.

    Args:
        path: such as `model.safetensors`; the files are `model-00001-of-00003.safetensors` and so
            on, the index `model.safetensors.index.json`.
        specs: name, dtype and shape of every array.
        arrays: in the same order; each is held only until it is written.
        shard_size: most bytes of the arrays of a file; an array that is larger has its own.

    Returns:
        The files, the index first; `path` alone if all fit into one.

    Raises:
        ValueError: if the format lacks a dtype.
        OSError: if a file cannot be written.
    """
    shards = _shards(specs, shard_size)
    if len(shards) < 2:
        write_safetensors(path, specs, arrays)
        return (path,)
    check_dtypes(specs)
    names = [shard_name(path, number, len(shards)) for number in range(len(shards))]
    index = path.with_name(f"{path.name}{INDEX}")
    with ExitStack() as stack:
        # What is opened first takes its name last: the index once all files are there.
        listed = stack.enter_context(atomic_writer(index))
        files = [stack.enter_context(atomic_writer(path.with_name(name))) for name in names]
        for file, shard in zip(files, shards, strict=True):
            write_into(file, shard, itertools.islice(arrays, len(shard)))
        next(arrays, None)  # what follows the last array may be a look at all of them
        weights = {own[0]: name for name, shard in zip(names, shards, strict=True) for own in shard}
        total = {"total_size": sum(map(num_bytes, specs))}
        told = {"metadata": total, "weight_map": dict(sorted(weights.items()))}
        listed.write(json.dumps(told, indent=2).encode())
    return (index, *(path.with_name(name) for name in names))


def files_named(path: Path, shard_size: float | None) -> tuple[Path, ...]:
    """Return the names under which a model may be written: of one file, or of the index of many."""
    return (path,) if shard_size is None else (path, path.with_name(f"{path.name}{INDEX}"))


def shard_name(path: Path, number: int, total: int) -> str:
    """Return the name of one of several files, counted from 0."""
    return f"{path.stem}-{number + 1:05d}-of-{total:05d}{path.suffix}"


def _shards(specs: Sequence[Spec], shard_size: float) -> list[list[Spec]]:
    """Deal arrays out in their order, as many to a file as it may hold."""
    shards: list[list[Spec]] = [[]]
    left = shard_size
    for spec in specs:
        size = num_bytes(spec)
        if shards[-1] and size > left:
            shards.append([])
            left = shard_size
        shards[-1].append(spec)
        left -= size
    return shards


def open_sharded(index: Path, open_file: Callable[[Path], Checkpoint]) -> Checkpoint:
    """Open all files that an index names.

    Args:
        index: such as `model.safetensors.index.json`: a JSON object with a `weight_map` from names
            of tensors to names of files beside it.
        open_file: opens one of them.

    Raises:
        ValueError: if the index is none, or a file or tensor that it names is missing.
    """
    try:
        weights = json.loads(index.read_bytes())["weight_map"]
        names = list(dict.fromkeys(weights.values()))
        are_names = all(isinstance(name, str) and Path(name).name == name for name in names)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{index} is no index of a checkpoint; fetch it again.") from error
    if not are_names or not names:
        raise ValueError(f"{index} does not name files beside it; fetch it again.")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ValueError(
            f"{index.parent} lacks {missing[0]}, one of {len(names)} files that {index.name} names "
            f"({len(missing)} missing); fetch what is missing."
        )
    shards = {name: open_file(index.parent / name) for name in names}
    for name, file in weights.items():
        if name not in shards[file].tensors:
            raise ValueError(f"{file} lacks the tensor {name!r} that {index.name} names in it.")
    return Checkpoint(
        path=index,
        format=shards[names[0]].format,
        files=(index, *(index.parent / name for name in names)),
        tensors={name: shards[file].tensors[name] for name, file in weights.items()},
    )
