"""Pickled CIFAR-10: both pickles that are around, and those that would run a program."""

import collections
import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest

from jaxcomp.experiments import data
from jaxcomp.experiments.data import batches

PLANES = np.random.default_rng(0).integers(0, 256, (3, 3072), np.uint8)
LABELS = [3, 0, 9]

# What Python 2 and NumPy 1 wrote, as the published files hold it: a dict with one array of bytes.
PYTHON2 = (
    b"\x80\x02}q\x00(U\x04dataq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\n"
    b"q\x03K\x00\x85U\x01b\x87Rq\x04(K\x01K\x03M\x00\x0c\x86cnumpy\ndtype\nq\x05U\x02u1K\x00K\x01\x87R"
    b"q\x06(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T\x00\x24\x00\x00"
    + PLANES.tobytes()
    + b"tbU\x06labelsq\x07]q\x08(K\x03K\x00K\teu."
)


@pytest.mark.parametrize("protocol", [*range(pickle.HIGHEST_PROTOCOL + 1), "python 2"])
@pytest.mark.parametrize("names", [bytes, str])
def test_images_and_labels(tmp_path: Path, protocol, names) -> None:
    batch = {b"data": PLANES, b"labels": LABELS, b"filenames": [b"a.png"]}
    if names is str:
        batch = {name.decode(): value for name, value in batch.items()}
    written = PYTHON2 if protocol == "python 2" else pickle.dumps(batch, protocol)
    path = tmp_path / "data_batch_1"
    path.write_bytes(gzip.compress(written) if protocol == 2 else written)
    images, labels = batches.read_batch(path)
    assert labels.dtype == np.int32
    assert labels.tolist() == LABELS
    assert images.shape == (3, 32, 32, 3)
    assert images[1, 2, 7].tolist() == [PLANES[1, plane * 1024 + 2 * 32 + 7] for plane in range(3)]


def test_the_folder_of_torchvision(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("data_batch_2", "data_batch_1", "test_batch"):
        labels = [name == "data_batch_2"] * 3
        (folder / name).write_bytes(pickle.dumps({b"data": PLANES, b"labels": [*map(int, labels)]}))
    dataset = data.load("cifar10", data_dir=tmp_path)
    assert dataset.source == "CIFAR-10 python batches"
    assert dataset.pool_labels.tolist() == [0, 0, 0, 1, 1, 1]
    (folder / "test_batch").unlink()
    with pytest.raises(ValueError, match="cifar-10-batches-py lacks "):
        data.load("cifar10", data_dir=tmp_path)


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (b"", "is damaged or no batch"),
        (b"<!DOCTYPE html>", "is damaged or no batch"),
        (PYTHON2[:-2000], "is damaged or no batch"),
        (pickle.dumps([1, 2]), "is damaged or no batch"),
        (pickle.dumps({b"data": PLANES, b"fine_labels": LABELS}), "'labels'"),
        (pickle.dumps({b"data": PLANES[:, :100], b"labels": LABELS}), r"uint8 \(3, 100\)"),
        (pickle.dumps({b"data": PLANES, b"labels": [0.5]}), r"labels are float64 \(1,\)"),
        (pickle.dumps(collections.OrderedDict(data=PLANES)), "asks for collections.OrderedDict"),
    ],
)
def test_what_is_no_batch(tmp_path: Path, written: bytes, message: str) -> None:
    path = tmp_path / "test_batch"
    path.write_bytes(written)
    with pytest.raises(ValueError, match=message):
        batches.read_batch(path)


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "test_batch"
    path.write_bytes(pickle.dumps({b"data": Hostile(tmp_path / "run")}))
    with pytest.raises(ValueError, match="it asks for "):
        batches.read_batch(path)
    assert not (tmp_path / "run").exists()
