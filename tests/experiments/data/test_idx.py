"""IDX files: bytes put together by hand, plain and gzip, and every way they can be wrong."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from jaxcomp.experiments.data import idx

PIXELS = bytes(range(2 * 3 * 4))
# By the format's description: zero, zero, type 8, three dimensions, then 2, 3 and 4 images.
IMAGES = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4]) + PIXELS
LABELS = bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9])


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize("name", ["images", "images.gz"])
def test_reads_plain_and_gzip_whatever_the_name(tmp_path: Path, name: str, compress) -> None:
    path = tmp_path / name
    path.write_bytes(compress(IMAGES))
    images = idx.read_idx(path, num_dims=3)
    assert images.dtype == np.uint8
    expected = [[[12 * i + 4 * j + k for k in range(4)] for j in range(3)] for i in range(2)]
    assert images.tolist() == expected
    path.write_bytes(compress(LABELS))
    assert idx.read_idx(path, num_dims=1).tolist() == [7, 9]


def test_sizes_are_big_endian(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    path.write_bytes(b"\0\0\x08\x01" + struct.pack(">I", 0x0102) + bytes(0x0102))
    assert idx.read_idx(path, num_dims=1).shape == (0x0102,)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "must start with 00 00 08, but starts with nothing"),
        (b"\0\0", "is not an IDX file of bytes"),
        (b"<html>not found</html>", "but starts with 3c 68 74"),
        (b"\0\0\x0d" + IMAGES[3:], "but starts with 00 00 0d"),
        (LABELS, "has 1 dimensions instead of 3"),
        (b"\0\0\x08\0\x05", "has 0 dimensions instead of 3"),
        (IMAGES[:4], "has 4 bytes but its header announces a longer header"),
        (IMAGES[:15], "has 15 bytes but its header announces a longer header"),
        (IMAGES[:16], "has 16 bytes but its header announces 40 bytes"),
        (IMAGES[:-1], "has 39 bytes but its header announces 40 bytes"),
        (IMAGES + b"\0", "has 41 bytes but its header announces 40 bytes"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "cut or damaged"),
    ],
)
def test_what_is_no_file_of_images(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "images"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        idx.read_idx(path, num_dims=3)
    path.write_bytes(gzip.compress(data))
    with pytest.raises(ValueError, match=message):
        idx.read_idx(path, num_dims=3)


@pytest.mark.parametrize("length", [-1, -9, 12, 3])
def test_cut_gzip(tmp_path: Path, length: int) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(IMAGES)[:length])
    with pytest.raises(ValueError, match=r"images.gz is damaged or cut gzip \(.*\); get it again"):
        idx.read_idx(path, num_dims=3)


def test_damaged_gzip(tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    whole = gzip.compress(IMAGES, mtime=0)
    for position in range(10, len(whole)):  # the first ten bytes hold nothing that is checked
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged or cut"):
            idx.read_idx(path, num_dims=3)


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"could not be read \(No such file or directory\)"):
        idx.read_idx(tmp_path / "images", num_dims=3)


def test_locate_takes_every_spelling_and_names_what_is_missing(tmp_path: Path) -> None:
    assert idx.locate(tmp_path) == ({}, idx.FILE_NAMES)
    for name in (
        "train-images-idx3-ubyte.gz",
        "train-labels.idx1-ubyte",
        "t10k-images.idx3-ubyte.gz",
    ):
        (tmp_path / name).touch()
    located = idx.locate(tmp_path)
    assert located.missing == ("t10k-labels-idx1-ubyte",)
    assert located.paths["train-labels-idx1-ubyte"] == tmp_path / "train-labels.idx1-ubyte"
    (tmp_path / "t10k-labels-idx1-ubyte").touch()
    assert idx.locate(tmp_path).missing == ()
