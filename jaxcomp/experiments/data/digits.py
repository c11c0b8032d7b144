"""The digits inside scikit-learn: the data set that needs no file and no network.

Source: Alpaydin, Kaynak, Optical Recognition of Handwritten Digits, UCI (1998),
doi:10.24432/C50P49.
"""

import gzip
import importlib.util
from pathlib import Path

import numpy as np

from jaxcomp.experiments.data.dataset import Dataset, check_dataset

POOL_SIZE = 1200
"""Examples in the training pool; the other 597 of the 1,797 are the test set."""

_SPLIT_SEED = 20240


def load_digits() -> Dataset:
    """Load 1,797 handwritten digits of 8 x 8 pixels with values from 0 to 16.

    The data set has no official split. This one is fixed for good: in each class the examples
    are ordered by the output of PCG64 with a fixed seed (raw bits, which NumPy keeps the same in
    every version) and the first ones go to the pool, so many that the pool has 1,200 examples
    and each class the same share of both parts, up to one example. Both parts keep the order of
    scikit-learn. Writers appear in both parts.

    Returns:
        The data set, with a pool of 1,200 and a test set of 597.

    Raises:
        ImportError: if scikit-learn is not installed.
    """
    images, labels = _read()
    images = np.asarray(images).reshape(-1, 8, 8, 1).astype(np.uint8)
    labels = np.asarray(labels).astype(np.int32)
    in_pool = _stratified_mask(labels, POOL_SIZE)
    return check_dataset(
        Dataset(
            name="digits",
            pool_images=images[in_pool],
            pool_labels=labels[in_pool],
            test_images=images[~in_pool],
            test_labels=labels[~in_pool],
            num_classes=10,
            max_value=16,
            source="scikit-learn",
        )
    )


def _read() -> tuple[np.ndarray, np.ndarray]:
    """Return pixels and labels from the file of scikit-learn.

    It is read without importing scikit-learn, which takes a second, unless it is somewhere else.
    """
    found = importlib.util.find_spec("sklearn")
    if found is None:
        raise ImportError(
            "The data set digits is part of scikit-learn, which is not installed; install "
            "jaxcomp[sweep]."
        )
    for folder in found.submodule_search_locations or ():
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.exists():
            with gzip.open(file, "rt") as lines:
                rows = np.loadtxt(lines, delimiter=",")
            return rows[:, :-1], rows[:, -1]
    from sklearn import datasets

    images, labels = datasets.load_digits(return_X_y=True)
    return np.asarray(images), np.asarray(labels)


def _stratified_mask(labels: np.ndarray, num_chosen: int) -> np.ndarray:
    """Choose `num_chosen` examples, each class by its share (largest remainders round up)."""
    counts = np.bincount(labels)
    shares = counts * num_chosen / labels.size
    quotas = np.floor(shares).astype(int)
    largest_first = np.argsort(quotas - shares, kind="stable")
    quotas[largest_first[: num_chosen - quotas.sum()]] += 1
    rank = np.random.PCG64(_SPLIT_SEED).random_raw(labels.size)
    mask = np.zeros(labels.size, bool)
    for label, quota in enumerate(quotas):
        members = np.flatnonzero(labels == label)
        mask[members[np.argsort(rank[members], kind="stable")[:quota]]] = True
    return mask
