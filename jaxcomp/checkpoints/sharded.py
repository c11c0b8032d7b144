"""Checkpoints in several files, as Hugging Face lays them out: an index, and the files it names."""

import json
from collections.abc import Callable
from pathlib import Path

from jaxcomp.checkpoints.tensors import Checkpoint

INDEX = ".index.json"


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
