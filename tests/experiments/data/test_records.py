"""CIFAR-10 records: an image put together pixel by pixel, and files that are no records."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from jaxcomp.experiments.data import records


def record(label: int, image: np.ndarray) -> bytes:
    """Write one record with loops, as the format's page describes it."""
    planes = [image[row, column, c] for c in range(3) for row in range(32) for column in range(32)]
    return bytes([label, *(int(value) for value in planes)])


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_planes_become_channels(tmp_path: Path, compress) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    path = tmp_path / "test_batch.bin"
    path.write_bytes(compress(record(3, images[0]) + record(250, images[1])))
    read, labels = records.read_records(path)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, images)
    assert labels.dtype == np.int32
    assert labels.tolist() == [3, 250]


@pytest.mark.parametrize("size", [0, 1, 3072, 3074, 2 * 3073 - 1])
def test_a_file_that_is_not_a_whole_number_of_records(tmp_path: Path, size: int) -> None:
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(bytes(size))
    with pytest.raises(ValueError, match=f"has {size} bytes, which is not a whole number"):
        records.read_records(path)


def test_any_training_files_are_read_in_order(tmp_path: Path) -> None:
    names = [records.TRAIN_NAMES[0], records.TEST_NAME]
    assert records.locate(tmp_path) == ({}, tuple(names))
    image = np.zeros((32, 32, 3), np.uint8)
    (tmp_path / "data_batch_5.bin").write_bytes(record(5, image))
    assert records.locate(tmp_path).missing == ("test_batch.bin",)
    (tmp_path / "data_batch_2.bin.gz").write_bytes(gzip.compress(record(2, image) * 2))
    (tmp_path / "test_batch.bin").write_bytes(record(9, image))
    located = records.locate(tmp_path)
    assert located.missing == ()
    pool_images, pool_labels, test_images, test_labels = records.read_dataset(located.paths)
    assert pool_labels.tolist() == [2, 2, 5]
    assert pool_images.shape == (3, 32, 32, 3)
    assert test_labels.tolist() == [9]
    assert test_images.shape == (1, 32, 32, 3)
