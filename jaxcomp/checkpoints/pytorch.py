"""State dictionaries of PyTorch, read without running what a pickle may hold.

PyTorch is imported here only, and only when such a file is opened.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxcomp.checkpoints.tensors import Checkpoint, Tensor

# What PyTorch raises on files that are damaged or hold other objects.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    KeyError,
    ValueError,
    AttributeError,
)
_MODELS = ("state_dict", "model_state_dict", "model")


def open_pytorch(path: Path) -> Checkpoint:
    """Open a state dictionary, or a dict that holds one among other things.

    Raises:
        ImportError: without PyTorch.
        ValueError: if the file is none, or holds objects other than tensors and plain data.
        OSError: if it cannot be read.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            f"{path} is a file of PyTorch, which is not installed; install torch, or save the "
            "model as safetensors."
        ) from error
    try:
        content = _load(path, torch)
    except _UNREADABLE as error:
        raise ValueError(
            f"{path} cannot be read as tensors alone: it is damaged or holds other objects, which "
            "are never unpickled; save the model's state_dict(), or safetensors."
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{path} holds a {type(content).__name__} instead of a state dictionary; save the "
            "model's state_dict()."
        )
    left_out: list[str] = []
    for name in _MODELS:
        inner = content.get(name)
        if isinstance(inner, Mapping) and any(_is_tensor(own, torch) for own in inner.values()):
            left_out = [str(other) for other in content if other != name]
            content = inner
            break
    tensors = {}
    for name, value in content.items():
        if _is_tensor(value, torch):
            array = array_of_tensor(str(name), value, torch)
            tensors[str(name)] = Tensor(array.dtype.name, array.shape, lambda array=array: array)
        else:
            left_out.append(str(name))
    return Checkpoint(path, "pytorch", (path,), tensors, left_out=tuple(left_out))


def array_of_tensor(path: str, tensor: Any, torch: Any) -> np.ndarray:
    """Return a tensor as an array, of the same memory if it is the processor's.

    Raises:
        TypeError: for a tensor that is not dense.
    """
    if tensor.layout != torch.strided:
        raise TypeError(
            f"the leaf {path!r} is a tensor of the layout {tensor.layout}; pass a dense one, such "
            "as leaf.to_dense()."
        )
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    name = str(tensor.dtype).removeprefix("torch.")
    if name == "bfloat16" or name.startswith("float8"):
        # NumPy has no such dtypes of its own.
        bits = torch.int16 if name == "bfloat16" else torch.uint8
        return tensor.view(bits).numpy().view(np.dtype(getattr(ml_dtypes, name)))
    return tensor.numpy()


def _load(path: Path, torch: Any) -> Any:
    options = {"map_location": "cpu", "weights_only": True}
    try:
        return torch.load(path, mmap=True, **options)
    except RuntimeError:
        # Files of before PyTorch 1.6 cannot be mapped.
        return torch.load(path, **options)


def _is_tensor(value: Any, torch: Any) -> bool:
    return isinstance(value, torch.Tensor)
