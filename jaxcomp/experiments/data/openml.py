"""Data sets from OpenML through scikit-learn, which keeps the download in the user's cache.

Source: Vanschoren, van Rijn, Bischl, Torgo, OpenML: networked science in machine learning (2014),
doi:10.1145/2641190.2641198.
"""

import http.client
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxcomp.experiments.data.dataset import Dataset, check_dataset
from jaxcomp.experiments.data.records import planes_to_images


class OpenMLTable(NamedTuple):
    """How a data set is kept on OpenML.

    Attributes:
        name: its name there (version 1).
        num_pool: how many rows, from the first one, are the training pool.
        num_test: how many rows follow; they are the test set.
        num_pixels: pixel columns of a row.
        to_images: rows `(N, num_pixels)` uint8 -> images `(N, H, W, C)` uint8.
    """

    name: str
    num_pool: int
    num_test: int
    num_pixels: int
    to_images: Callable[[np.ndarray], np.ndarray]


def _square_images(rows: np.ndarray) -> np.ndarray:
    """Turn rows of 784 pixels into images with one channel."""
    return rows.reshape(-1, 28, 28, 1)


TABLES = {
    "mnist": OpenMLTable("mnist_784", 60_000, 10_000, 784, _square_images),
    "fashion-mnist": OpenMLTable("Fashion-MNIST", 60_000, 10_000, 784, _square_images),
    "cifar10": OpenMLTable("CIFAR_10", 50_000, 10_000, 3072, planes_to_images),
}


def download(name: str) -> Dataset:
    """Fetch a data set from OpenML, or from scikit-learn's cache if it was fetched before.

    The rows there are the training images followed by the test images, so the standard split is
    the first `num_pool` rows and the rest. Parsing the table takes from seconds (MNIST) to more
    than a minute (CIFAR-10), each time.

    Args:
        name: `mnist`, `fashion-mnist` or `cifar10`.

    Returns:
        The data set.

    Raises:
        ImportError: if scikit-learn is not installed.
        ValueError: one sentence, if the download fails or holds something else than expected.
    """
    table = TABLES[name]
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            f"Downloading {name} needs scikit-learn, which is not installed; install "
            "jaxcomp[sweep]."
        ) from error
    try:
        rows, targets = datasets.fetch_openml(
            table.name, version=1, as_frame=False, return_X_y=True
        )
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ValueError(
            f"The data set {table.name} could not be fetched from OpenML "
            f"({str(error).rstrip('.') or type(error).__name__}); check the network and try "
            "again, or get the files yourself and pass their folder with --data-dir."
        ) from error
    rows, targets = np.asarray(rows), np.asarray(targets)
    shape = (table.num_pool + table.num_test, table.num_pixels)
    if rows.shape != shape or targets.shape != shape[:1]:
        raise ValueError(
            f"OpenML gave {table.name} with {rows.shape} pixels and {targets.shape} labels "
            f"instead of {shape} and {shape[:1]}; delete scikit-learn's cache and try again."
        )
    images = table.to_images(_to_bytes(table.name, rows, "pixels"))
    labels = _to_bytes(table.name, targets, "labels").astype(np.int32)
    split = table.num_pool
    return check_dataset(
        Dataset(
            name=name,
            pool_images=images[:split],
            pool_labels=labels[:split],
            test_images=images[split:],
            test_labels=labels[split:],
            num_classes=10,
            max_value=255,
            source="OpenML",
        )
    )


def _to_bytes(name: str, values: np.ndarray, what: str) -> np.ndarray:
    """Turn numbers, or labels kept as text, into bytes, and refuse any that are none."""
    try:
        numbers = values if values.dtype.kind in "uif" else values.astype(np.float64)
    except (ValueError, TypeError):
        numbers = np.full(1, np.nan)
    in_range = numbers.size > 0 and numbers.min() >= 0 and numbers.max() <= 255  # False for NaN
    result = numbers.astype(np.uint8) if in_range else np.zeros(1, np.uint8)
    if not in_range or not np.array_equal(result, numbers):
        raise ValueError(
            f"OpenML gave {name} with {what} that are not whole numbers from 0 to 255; delete "
            "scikit-learn's cache and try again."
        )
    return result
