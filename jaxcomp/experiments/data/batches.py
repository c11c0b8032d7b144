"""The "python version" of CIFAR-10, in the folder `cifar-10-batches-py`: pickled dicts.

A pickle can run any program. These are read by a reader that knows arrays, text, numbers, lists
and dicts and refuses everything else.

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009).
"""

import importlib
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

from jaxcomp.experiments.data.files import Located, locate_batches, read_batches, read_bytes
from jaxcomp.experiments.data.records import planes_to_images

TRAIN_NAMES = tuple(f"data_batch_{index}" for index in range(1, 6))
TEST_NAME = "test_batch"

_NUM_PIXELS = 3 * 32 * 32
# What a pickled array consists of, under the names of NumPy 1 and 2.
_KNOWN = {
    ("_codecs", "encode"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.numeric", "_frombuffer"),
}


def locate(folder: Path) -> Located:
    """Look for the test file and the training files; one training file is enough."""
    return locate_batches(folder, TRAIN_NAMES, TEST_NAME)


def read_dataset(paths: dict[str, Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read the files that `locate` found, the training files in the order of their numbers.

    Args:
        paths: standard name -> file.

    Returns:
        Pool images `(N, 32, 32, 3)` uint8, pool labels `(N,)` int32, test images, test labels.

    Raises:
        ValueError: one sentence, see `read_batch`.
    """
    return read_batches(paths, TRAIN_NAMES, TEST_NAME, read_batch)


def read_batch(
    path: Path,
) -> tuple[UInt8[np.ndarray, "examples 32 32 3"], Int32[np.ndarray, " examples"]]:
    """Read one pickled batch, plain or gzip.

    Args:
        path: the file.

    Returns:
        Images and labels; the range of the labels is not checked here.

    Raises:
        ValueError: one sentence, if the file is no batch of CIFAR-10.
    """
    try:
        batch = _ArrayUnpickler(io.BytesIO(read_bytes(path)), encoding="bytes").load()
        named = {
            name.decode() if isinstance(name, bytes) else name: value
            for name, value in batch.items()
        }
        planes, labels = np.asarray(named["data"]), np.asarray(named["labels"])
    except ValueError as error:
        if str(path) in str(error):  # it could not be unpacked
            raise
        raise _not_a_batch(path, str(error)) from error
    except Exception as error:  # a damaged pickle can raise anything
        raise _not_a_batch(path, str(error) or type(error).__name__) from error
    if planes.dtype != np.uint8 or planes.ndim != 2 or planes.shape[1] != _NUM_PIXELS:
        raise _not_a_batch(path, f"its data are {planes.dtype} {planes.shape}")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise _not_a_batch(path, f"its labels are {labels.dtype} {labels.shape}")
    return planes_to_images(planes), labels.astype(np.int32)


def _not_a_batch(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"The file {path} is damaged or no batch of CIFAR-10 ({reason.rstrip('.')}); get it again."
    )


class _ArrayUnpickler(pickle.Unpickler):
    """Makes arrays and what Python itself has, and nothing else."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        # The old name of the module still works, with a warning.
        module_name = module_name.replace("numpy.core.", "numpy._core.")
        if (module_name, global_name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")
        return getattr(importlib.import_module(module_name), global_name)
