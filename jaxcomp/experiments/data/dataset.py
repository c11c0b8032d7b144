"""A labelled image data set in memory, with a training pool and a test set.

Axis letters: `N` examples, `H` height, `W` width, `C` channels.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from jaxcomp import storage


class Dataset(NamedTuple):
    """Images and labels; the pool and the test set share no example.

    Attributes:
        name: as given to `jaxcomp.experiments.data.load`, for example `mnist`.
        pool_images: `(N, H, W, C)` uint8, the training pool: training and validation sets
            are drawn from it.
        pool_labels: `(N,)` int32, from 0 to `num_classes - 1`.
        test_images: `(N, H, W, C)` uint8.
        test_labels: `(N,)` int32.
        num_classes: number of classes.
        max_value: the value of a full pixel, 255 or 16; inputs are pixels divided by it.
        source: where the data came from, for example `IDX files`; no path.
    """

    name: str
    pool_images: UInt8[np.ndarray, "pool height width channels"]
    pool_labels: Int32[np.ndarray, " pool"]
    test_images: UInt8[np.ndarray, "test height width channels"]
    test_labels: Int32[np.ndarray, " test"]
    num_classes: int
    max_value: int
    source: str

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of the arrays, the classes and the pixel scale.

        The name and the source do not count: the same images from other files are the same data.
        Reads all arrays, so keep the result instead of asking again.
        """
        return storage.fingerprint(
            {
                "pool_images": self.pool_images,
                "pool_labels": self.pool_labels,
                "test_images": self.test_images,
                "test_labels": self.test_labels,
                "num_classes": self.num_classes,
                "max_value": self.max_value,
            }
        )


def check_dataset(dataset: Dataset) -> Dataset:
    """Check that images, labels, classes and the pixel scale fit together.

    Args:
        dataset: the data set to check.

    Returns:
        The same data set.

    Raises:
        TypeError: if images are not uint8 or labels not int32.
        ValueError: one sentence, if a part is empty, if images and labels differ in length, if a
            label or a pixel is out of range, or if the two parts have images of other shapes.
    """
    _check_part(dataset, "training pool", dataset.pool_images, dataset.pool_labels)
    _check_part(dataset, "test set", dataset.test_images, dataset.test_labels)
    if dataset.pool_images.shape[1:] != dataset.test_images.shape[1:]:
        raise ValueError(
            f"The images of {dataset.name} have the shape {dataset.pool_images.shape[1:]} in the "
            f"training pool but {dataset.test_images.shape[1:]} in the test set; both must come "
            "from the same data set."
        )
    return dataset


def _check_part(dataset: Dataset, part: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Check one of the two parts."""
    where = f"The {part} of {dataset.name}"
    if images.dtype != np.uint8 or labels.dtype != np.int32:
        raise TypeError(
            f"{where} must have uint8 images and int32 labels, got {images.dtype} and "
            f"{labels.dtype}; convert them."
        )
    if images.ndim != 4 or labels.ndim != 1:
        raise ValueError(
            f"{where} must have images of shape (N, H, W, C) and labels of shape (N,), got "
            f"{images.shape} and {labels.shape}; reshape them."
        )
    if len(images) != len(labels):
        raise ValueError(
            f"{where} has {len(images)} images but {len(labels)} labels; take both from the same "
            "download."
        )
    if images.size == 0:
        raise ValueError(f"{where} is empty; get the files again.")
    wrong = np.flatnonzero((labels < 0) | (labels >= dataset.num_classes))
    if wrong.size:
        raise ValueError(
            f"{where} has the label {labels[wrong[0]]} at example {wrong[0]}, but labels go from "
            f"0 to {dataset.num_classes - 1}; the file is damaged or of another data set."
        )
    if images.max() > dataset.max_value:
        raise ValueError(
            f"{where} has a pixel of value {images.max()}, but pixels go from 0 to "
            f"{dataset.max_value}; the file is damaged or of another data set."
        )
