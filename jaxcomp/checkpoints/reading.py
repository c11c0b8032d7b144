"""Open any checkpoint: the format is told by what is there, not asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from jaxcomp.checkpoints.decompression import constants
from jaxcomp.checkpoints.npz import open_npz
from jaxcomp.checkpoints.orbax import is_orbax, open_orbax
from jaxcomp.checkpoints.pytorch import open_pytorch
from jaxcomp.checkpoints.references import give_reference
from jaxcomp.checkpoints.safetensors import open_safetensors
from jaxcomp.checkpoints.sharded import open_sharded
from jaxcomp.checkpoints.tensors import Checkpoint, Tensor, with_own_dtype
from jaxcomp.decoder import File, is_compressed, open_model
from jaxcomp.decoder.files import INDEX, viewed
from jaxcomp.storage import PathLike

_FORMATS = (
    "a compressed model (.jxc, .jxr), safetensors, an index of safetensors in several files or its "
    "folder, a state dictionary of PyTorch (.pt, .pth, .bin), .npz, or a folder of Orbax"
)
_PYTORCH = (".pt", ".pth", ".bin", ".ckpt")
# What folders of Hugging Face call their weights.
_IN_FOLDERS = (
    f"model.safetensors{INDEX}",
    "model.safetensors",
    f"pytorch_model.bin{INDEX}",
    "pytorch_model.bin",
)


@contextmanager
def open_checkpoint(
    path: PathLike, *, reference: Checkpoint | None = None, max_bytes: int | None = None
) -> Iterator[Checkpoint]:
    """Open a checkpoint for the time of a `with` block.

    Safetensors are mapped into memory: a tensor is read when its numbers are. Nothing is unpickled
    but tensors.

    Args:
        path: a compressed model, safetensors, a state dictionary of PyTorch, an archive of NumPy,
            an index of files in Hugging Face's layout or their folder, or a folder of Orbax.
        reference: the model to which a compressed one holds differences, if it does.
        max_bytes: most bytes that the arrays of a compressed model may have; see
            `jaxcomp.decoder.File`.

    Raises:
        FormatError: if a compressed model is damaged.
        ImportError: if what reads the format is not installed.
        ValueError: if nothing is there, or it is none of these.
        OSError: if it cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"there is no {path}; name {_FORMATS}.")
    inside = (path / name for name in _IN_FOLDERS if (path / name).exists())
    path = next(inside, path)
    if is_compressed(path):
        with open_model(path, max_bytes) as file:
            give_reference(file, reference)
            yield _of_compressed(path, file)
    else:
        yield _open_file(path) if path.is_file() else _open_folder(path)


def _open_file(path: Path) -> Checkpoint:
    if path.name.endswith(INDEX):
        return open_sharded(path, _open_file)
    if path.suffix == ".safetensors":
        return open_safetensors(path)
    if path.suffix == ".npz":
        return open_npz(path)
    if path.suffix in _PYTORCH:
        return open_pytorch(path)
    raise ValueError(f"{path} has no name of a format that is known; name {_FORMATS}.")


def _open_folder(path: Path) -> Checkpoint:
    if is_orbax(path):
        return open_orbax(path)
    inside = sorted(entry.name for entry in path.iterdir() if is_orbax(entry))
    if inside:
        raise ValueError(
            f"{path} holds the checkpoints {', '.join(inside[:4])}; name one of them, such as "
            f"{path / inside[-1]}."
        )
    raise ValueError(f"{path} is a folder without a checkpoint; name {_FORMATS}.")


def _of_compressed(path: Path, file: File) -> Checkpoint:
    tensors = {}
    for place, (number, view) in zip(file.paths, file.slots, strict=True):
        entry = file.entries[number]

        def read(number=number, view=view) -> np.ndarray:
            entry = file.entries[number]
            values = file.weights(number, file.array(entry))
            return with_own_dtype(viewed(values, view), entry.dtype)

        shape = entry.shape if view is None else tuple(view[2])
        tensors[place] = Tensor(entry.dtype, shape, read)
    left_out = tuple(constants(file.header["tree"]))
    return Checkpoint(path, "jaxcomp", file.sources, tensors, left_out=left_out)
