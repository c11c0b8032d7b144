"""Data without files: the digits inside scikit-learn, and OpenML behind a fake."""

import hashlib
import sys
import urllib.error
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sklearn.datasets

from jaxcomp.experiments import data
from jaxcomp.experiments.data import openml
from jaxcomp.experiments.data.digits import load_digits


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(data.DATA_DIR_VARIABLE, raising=False)


@pytest.fixture
def fake_openml(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Make `fetch_openml` give what a test wants, for tables of 3 + 2 rows; record the calls."""

    def install(rows: Any = None, targets: Any = None, error: Exception | None = None) -> list[Any]:
        calls = []

        def fetch(name: str, **options: Any) -> tuple[Any, Any]:
            calls.append((name, options))
            if error is not None:
                raise error
            return rows, targets

        monkeypatch.setattr(sklearn.datasets, "fetch_openml", fetch)
        return calls

    for name, table in openml.TABLES.items():
        monkeypatch.setitem(openml.TABLES, name, table._replace(num_pool=3, num_test=2))
    return install


def test_digits_are_those_of_scikit_learn_split_once() -> None:
    dataset = load_digits()
    pixels, targets = sklearn.datasets.load_digits(return_X_y=True)
    assert dataset.pool_images.shape == (1200, 8, 8, 1)
    assert dataset.test_images.shape == (597, 8, 8, 1)
    assert (dataset.num_classes, dataset.max_value, dataset.source) == (10, 16, "scikit-learn")
    images = np.concatenate([dataset.pool_images, dataset.test_images]).reshape(1797, 64)
    labels = np.concatenate([dataset.pool_labels, dataset.test_labels])
    together = np.column_stack([images, labels])
    expected = np.column_stack([pixels, targets])
    assert sorted(together.tolist()) == sorted(expected.tolist())


def test_digits_are_stratified() -> None:
    dataset = load_digits()
    pool, test = np.bincount(dataset.pool_labels), np.bincount(dataset.test_labels)
    assert np.all(np.abs(pool - (pool + test) * 1200 / 1797) < 1)


def test_the_split_of_the_digits_never_changes() -> None:
    dataset = load_digits()
    digest = hashlib.sha256(dataset.test_images.tobytes() + bytes(dataset.test_labels.tolist()))
    assert digest.hexdigest() == "2a8a4cd0b1986bb479d1f66509b2063f67c99d6a147038f3ae5d4063f3e1ea17"


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_openml_grey_images(fake_openml: Callable[..., list[Any]], name: str) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (5, 784)).astype(np.float64)
    targets = np.array(["3", "0", "9", "1", "2"], object)  # labels come as text
    calls = fake_openml(rows, targets)
    dataset = data.load(name, download=True)
    published = {"mnist": "mnist_784", "fashion-mnist": "Fashion-MNIST"}[name]
    assert calls == [(published, {"version": 1, "as_frame": False, "return_X_y": True})]
    np.testing.assert_array_equal(dataset.pool_images, rows[:3].reshape(3, 28, 28, 1))
    np.testing.assert_array_equal(dataset.test_images, rows[3:].reshape(2, 28, 28, 1))
    assert dataset.pool_labels.tolist() == [3, 0, 9]
    assert dataset.test_labels.tolist() == [1, 2]
    assert (dataset.name, dataset.source, dataset.max_value) == (name, "OpenML", 255)


def test_openml_colour_images(fake_openml: Callable[..., list[Any]]) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (5, 3072))
    calls = fake_openml(rows, np.arange(5))
    dataset = data.load("cifar10", download=True)
    assert calls[0][0] == "CIFAR_10"
    # Red, green and blue planes of 1,024 pixels, row by row.
    assert dataset.pool_images[1, 2, 7].tolist() == [
        rows[1, plane * 1024 + 2 * 32 + 7] for plane in range(3)
    ]
    assert dataset.test_images.shape == (2, 32, 32, 3)


def test_the_standard_split_sizes() -> None:
    sizes = {name: (table.num_pool, table.num_test) for name, table in openml.TABLES.items()}
    assert sizes == {
        "mnist": (60_000, 10_000),
        "fashion-mnist": (60_000, 10_000),
        "cifar10": (50_000, 10_000),
    }


def test_nothing_is_fetched_without_download(fake_openml: Callable[..., list[Any]]) -> None:
    calls = fake_openml(error=AssertionError("fetched"))
    with pytest.raises(ValueError, match="--download"):
        data.load("mnist")
    assert calls == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (urllib.error.URLError("no route to host"), "no route to host"),
        (TimeoutError(), "TimeoutError"),
        (ValueError("md5 checksum differs."), "md5 checksum differs"),
    ],
)
def test_a_failed_download(
    fake_openml: Callable[..., list[Any]], error: Exception, reason: str
) -> None:
    fake_openml(error=error)
    with pytest.raises(ValueError, match=rf"could not be fetched from OpenML \(.*{reason}.*\);"):
        data.load("mnist", download=True)


@pytest.mark.parametrize(
    ("rows", "targets", "message"),
    [
        (np.zeros((4, 784)), np.zeros(4), r"\(4, 784\) pixels and \(4,\) labels instead of"),
        (np.zeros((5, 784)), np.zeros(4), r"\(5, 784\) pixels and \(4,\) labels instead of"),
        (np.zeros((5, 64)), np.zeros(5), r"\(5, 64\) pixels"),
        (np.full((5, 784), 0.5), np.zeros(5), "pixels that are not whole numbers"),
        (np.full((5, 784), 256), np.zeros(5), "pixels that are not whole numbers"),
        (np.full((5, 784), np.nan), np.zeros(5), "pixels that are not whole numbers"),
        (np.zeros((5, 784)), np.array(["cat"] * 5), "labels that are not whole numbers"),
        (np.zeros((5, 784)), np.full(5, -1), "labels that are not whole numbers"),
        (np.zeros((5, 784)), np.full(5, 10), "has the label 10 at example 0"),
    ],
)
def test_another_table_than_expected(
    fake_openml: Callable[..., list[Any]], rows: np.ndarray, targets: np.ndarray, message: str
) -> None:
    fake_openml(rows, targets)
    with pytest.raises(ValueError, match=message):
        data.load("mnist", download=True)


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"digits is part of scikit-learn, .* jaxcomp\[sweep\]"):
        data.load("digits")
    with pytest.raises(ImportError, match=r"Downloading mnist needs scikit-learn, .*\[sweep\]"):
        data.load("mnist", download=True)
