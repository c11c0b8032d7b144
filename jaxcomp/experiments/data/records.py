"""Binary CIFAR-10 records: one label byte, then the red, green and blue planes of a 32 x 32 image.

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009); the layout is
that of the "binary version" of the data set.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

from jaxcomp.experiments.data.files import Located, locate_batches, read_batches, read_bytes

TRAIN_NAMES = tuple(f"data_batch_{index}.bin" for index in range(1, 6))
TEST_NAME = "test_batch.bin"
IMAGE_SHAPE = (32, 32, 3)

_RECORD_BYTES = 1 + 3 * 32 * 32


def locate(folder: Path) -> Located:
    """Look for the test file and the training files, plain or gzip; one training file is enough."""
    return locate_batches(folder, TRAIN_NAMES, TEST_NAME)


def read_dataset(paths: dict[str, Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read the files that `locate` found, the training files in the order of their numbers.

    Args:
        paths: standard name -> file.

    Returns:
        Pool images `(N, 32, 32, 3)` uint8, pool labels `(N,)` int32, test images, test labels.

    Raises:
        ValueError: one sentence, see `read_records`.
    """
    return read_batches(paths, TRAIN_NAMES, TEST_NAME, read_records)


def read_records(
    path: Path,
) -> tuple[UInt8[np.ndarray, "examples 32 32 3"], Int32[np.ndarray, " examples"]]:
    """Read one file of records, plain or gzip.

    Args:
        path: the file.

    Returns:
        Images and labels; the labels are not checked here.

    Raises:
        ValueError: one sentence, if the file is not a whole number of records.
    """
    data = np.frombuffer(read_bytes(path), np.uint8)
    if data.size == 0 or data.size % _RECORD_BYTES:
        raise ValueError(
            f"The record file {path} has {data.size} bytes, which is not a whole number of "
            f"records of {_RECORD_BYTES} bytes; it is cut or no CIFAR-10 file, get it again."
        )
    records = data.reshape(-1, _RECORD_BYTES)
    return planes_to_images(records[:, 1:]), records[:, 0].astype(np.int32)


def planes_to_images(
    planes: UInt8[np.ndarray, "examples 3072"],
) -> UInt8[np.ndarray, "examples 32 32 3"]:
    """Turn rows of a red, a green and a blue plane into images, channels last."""
    height, width, channels = IMAGE_SHAPE
    images = planes.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images)
