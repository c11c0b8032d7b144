"""IDX files, the format of MNIST and Fashion-MNIST: a header and unsigned bytes.

Header: two zero bytes, one byte for the type (8 = unsigned byte), one byte for the number of
dimensions, then every size as a big-endian 32-bit integer; the data follow in C order.

Source: LeCun, Cortes, Burges, The MNIST database of handwritten digits ("The IDX file format").
"""

import math
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from jaxcomp.experiments.data.files import Located, find_file, read_bytes

FILE_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
"""The standard names of training images, training labels, test images, test labels."""

_UNSIGNED_BYTE = 8


def locate(folder: Path) -> Located:
    """Look for the four files, plain or gzip, also spelled `train-images.idx3-ubyte`."""
    found = {name: find_file(folder, (name, name.replace("-idx", ".idx"))) for name in FILE_NAMES}
    return Located(
        paths={name: path for name, path in found.items() if path is not None},
        missing=tuple(name for name, path in found.items() if path is None),
    )


def read_dataset(paths: dict[str, Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read the four files that `locate` found.

    Args:
        paths: standard name -> file.

    Returns:
        Pool images `(N, H, W, 1)` uint8, pool labels `(N,)` int32, test images, test labels.

    Raises:
        ValueError: one sentence, see `read_idx`.
    """
    train_images, train_labels, test_images, test_labels = FILE_NAMES
    return (
        read_idx(paths[train_images], num_dims=3)[..., np.newaxis],
        read_idx(paths[train_labels], num_dims=1).astype(np.int32),
        read_idx(paths[test_images], num_dims=3)[..., np.newaxis],
        read_idx(paths[test_labels], num_dims=1).astype(np.int32),
    )


def read_idx(path: Path, *, num_dims: int) -> UInt8[np.ndarray, "..."]:
    """Read one IDX file of unsigned bytes, plain or gzip.

    Args:
        path: the file.
        num_dims: how many dimensions it must have: 3 for images, 1 for labels.

    Returns:
        The array, read-only.

    Raises:
        ValueError: one sentence, for a wrong mark at the start, another type or number of
            dimensions, or a length that the header does not announce.
    """
    data = read_bytes(path)
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != _UNSIGNED_BYTE:
        raise ValueError(
            f"The file {path} is not an IDX file of bytes (it must start with 00 00 08, but "
            f"starts with {data[:3].hex(' ') or 'nothing'}); get it again."
        )
    if data[3] != num_dims:
        raise ValueError(
            f"The IDX file {path} has {data[3]} dimensions instead of {num_dims} (images have 3, "
            "labels have 1); check that its name fits its contents."
        )
    start = 4 + 4 * num_dims
    shape = tuple(int.from_bytes(data[at : at + 4], "big") for at in range(4, start, 4))
    expected = start + math.prod(shape)
    # A cut header reads as sizes that are too small, so its length is tested by itself.
    if len(data) < start or len(data) != expected:
        announced = f"{expected} bytes" if len(data) >= start else "a longer header"
        raise ValueError(
            f"The IDX file {path} is cut or damaged (it has {len(data)} bytes but its header "
            f"announces {announced}); get it again."
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
