"""The loader: where files may lie, what each message says, and data sets that do not fit."""

import os
from pathlib import Path

import numpy as np
import pytest

from jaxcomp.experiments import data
from jaxcomp.experiments.data import idx

DATA_DIR = os.environ.get(data.DATA_DIR_VARIABLE)


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(data.DATA_DIR_VARIABLE, raising=False)


def write_idx(path: Path, array: np.ndarray) -> None:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


def write_mnist(
    folder: Path,
    *,
    num_images: int = 3,
    labels: tuple[int, ...] = (0, 9, 4),
    test_shape: tuple[int, int] = (2, 2),
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    train_images, train_labels, test_images, test_labels = (folder / n for n in idx.FILE_NAMES)
    write_idx(train_images, np.arange(4 * num_images, dtype=np.uint8).reshape(num_images, 2, 2))
    write_idx(train_labels, np.array(labels, np.uint8))
    write_idx(test_images, np.full((1, *test_shape), 255, np.uint8))
    write_idx(test_labels, np.array([1], np.uint8))


def write_cifar10(folder: Path, labels: tuple[int, ...] = (1, 2)) -> None:
    folder.mkdir(parents=True)
    for name in ("data_batch_1.bin", "test_batch.bin"):
        (folder / name).write_bytes(b"".join(bytes([label]) + bytes(3072) for label in labels))


@pytest.mark.parametrize("where", ["itself", "parent"])
@pytest.mark.parametrize("how", ["argument", "text", "variable"])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_idx_files_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, how: str, name: str
) -> None:
    folder = tmp_path / (name if where == "parent" else "any")
    write_mnist(folder)
    given = folder if where == "itself" else tmp_path
    if how == "variable":
        monkeypatch.setenv(data.DATA_DIR_VARIABLE, str(given))
        dataset = data.load(name)
    else:
        dataset = data.load(name, data_dir=str(given) if how == "text" else given)
    assert dataset.name == name
    assert dataset.pool_images.shape == (3, 2, 2, 1)
    assert dataset.pool_images.dtype == np.uint8
    assert dataset.pool_images.ravel().tolist() == list(range(12))
    assert dataset.pool_labels.dtype == np.int32
    assert dataset.pool_labels.tolist() == [0, 9, 4]
    assert dataset.test_images.shape == (1, 2, 2, 1)
    assert dataset.test_labels.tolist() == [1]
    assert (dataset.num_classes, dataset.max_value) == (10, 255)
    assert dataset.source == "IDX files"


@pytest.mark.parametrize("folder", ["cifar10", "cifar-10-batches-bin", "cifar10-3k", "."])
def test_record_files_are_found(tmp_path: Path, folder: str) -> None:
    write_cifar10(tmp_path / "any" / folder)
    dataset = data.load("cifar10", data_dir=tmp_path / "any")
    assert dataset.pool_images.shape == (2, 32, 32, 3)
    assert dataset.pool_labels.tolist() == [1, 2]
    assert dataset.source == "CIFAR-10 binary records"


@pytest.mark.parametrize(
    ("name", "folder", "given"),
    [
        ("mnist", "MNIST/raw", "."),
        ("mnist", "MNIST/raw", "MNIST"),
        ("mnist", "MNIST/raw", "MNIST/raw"),
        ("mnist", "Mnist", "."),
        ("fashion-mnist", "FashionMNIST/raw", "."),
        ("fashion-mnist", "FashionMNIST/raw", "FashionMNIST/raw"),
        ("fashion-mnist", "fashion_mnist", "."),
    ],
)
def test_folders_of_torchvision_and_any_capitals(
    tmp_path: Path, name: str, folder: str, given: str
) -> None:
    write_mnist(tmp_path / folder)
    for file in (tmp_path / folder).iterdir():
        file.rename(file.with_name(file.name.upper()))
    assert data.load(name, data_dir=tmp_path / given).pool_labels.tolist() == [0, 9, 4]
    other = ({"mnist", "fashion-mnist"} - {name}).pop()
    with pytest.raises(ValueError, match=f"{other} was not found in the folder"):
        data.load(other, data_dir=tmp_path / given)


def test_a_folder_of_the_exact_name_goes_first(tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist" / "raw", labels=(1, 1, 1))
    (tmp_path / "mnist" / "raw" / "Train-Labels-idx1-ubyte").write_bytes(b"another file")
    assert data.load("mnist", data_dir=tmp_path).pool_labels.tolist() == [1, 1, 1]


def test_the_argument_goes_before_the_variable_and_home_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path / "mnist")
    monkeypatch.setenv(data.DATA_DIR_VARIABLE, str(tmp_path / "nothing"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert len(data.load("mnist", data_dir="~").pool_labels) == 3


def test_files_of_another_data_set_are_never_taken(tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist")
    with pytest.raises(ValueError, match="fashion-mnist was not found in the folder"):
        data.load("fashion-mnist", data_dir=tmp_path / "mnist")


def test_digits_need_no_folder(tmp_path: Path) -> None:
    assert data.load("digits", data_dir=tmp_path / "nothing").source == "scikit-learn"


# --- messages --------------------------------------------------------------------------------


def test_unknown_name() -> None:
    with pytest.raises(
        ValueError, match="'minst' is unknown; choose one of digits, mnist, fashion-mnist, cifar10"
    ):
        data.load("minst")


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("mnist", "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, "),
        ("cifar10", "one or more of data_batch_1.bin to data_batch_5.bin and test_batch.bin"),
    ],
)
@pytest.mark.parametrize("variable", [None, ""])
def test_no_folder_says_exactly_what_to_do(
    monkeypatch: pytest.MonkeyPatch, name: str, files: str, variable: str | None
) -> None:
    if variable is not None:
        monkeypatch.setenv(data.DATA_DIR_VARIABLE, variable)
    with pytest.raises(ValueError, match="needs files, and no data folder was given") as caught:
        data.load(name)
    message = str(caught.value)
    for part in (files, f"a folder {name}", "--data-dir", "JAXCOMP_DATA_DIR", "--download"):
        assert part in message


def test_missing_folder_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no folder .*nothing; give the folder"):
        data.load("mnist", data_dir=tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"mnist was not found in the folder .*; give the folder"):
        data.load("mnist", data_dir=tmp_path)
    write_mnist(tmp_path / "mnist")
    (tmp_path / "mnist" / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(ValueError, match=r"is not complete: .*mnist lacks t10k-images-idx3-ubyte;"):
        data.load("mnist", data_dir=tmp_path)
    write_cifar10(tmp_path / "cifar10")
    (tmp_path / "cifar10" / "test_batch.bin").unlink()
    with pytest.raises(ValueError, match=r"not complete: .*cifar10 lacks test_batch.bin; give"):
        data.load("cifar10", data_dir=tmp_path)


def test_damaged_files_are_not_passed_over_for_a_download(tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist")
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01")
    with pytest.raises(ValueError, match="cut or damaged"):
        data.load("mnist", data_dir=tmp_path, download=True)


def test_parts_that_do_not_fit_together(tmp_path: Path) -> None:
    write_mnist(tmp_path, num_images=2)
    with pytest.raises(ValueError, match="training pool of mnist has 2 images but 3 labels"):
        data.load("mnist", data_dir=tmp_path)
    write_mnist(tmp_path, labels=(0, 1, 10))
    with pytest.raises(
        ValueError, match="has the label 10 at example 2, but labels go from 0 to 9"
    ):
        data.load("mnist", data_dir=tmp_path)
    write_mnist(tmp_path, test_shape=(2, 3))
    with pytest.raises(ValueError, match=r"shape \(2, 2, 1\) in the .* but \(2, 3, 1\) in the"):
        data.load("mnist", data_dir=tmp_path)
    write_mnist(tmp_path, num_images=0, labels=())
    with pytest.raises(ValueError, match="training pool of mnist is empty"):
        data.load("mnist", data_dir=tmp_path)
    write_cifar10(tmp_path / "cifar10", labels=(3, 200))
    with pytest.raises(ValueError, match="cifar10 has the label 200 at example 1"):
        data.load("cifar10", data_dir=tmp_path)


def test_a_data_set_made_by_hand_is_checked() -> None:
    images, labels = np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2, np.int32)
    good = data.Dataset("own", images, labels, images, labels, 2, 16, "hand")
    assert data.check_dataset(good) is good
    with pytest.raises(TypeError, match="uint8 images and int32 labels, got float32 and int32"):
        data.check_dataset(good._replace(pool_images=images.astype(np.float32)))
    with pytest.raises(ValueError, match=r"got \(2, 4, 4\) and \(2,\); reshape them"):
        data.check_dataset(good._replace(test_images=images[..., 0]))
    with pytest.raises(ValueError, match="pixel of value 17, but pixels go from 0 to 16"):
        data.check_dataset(good._replace(test_images=images + np.uint8(17)))
    with pytest.raises(ValueError, match="has the label -1 at example 0"):
        data.check_dataset(good._replace(test_labels=labels - 1))


def test_fingerprint_follows_the_contents_only() -> None:
    images, labels = np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2, np.int32)
    dataset = data.Dataset("own", images, labels, images, labels, 2, 16, "hand")
    same = dataset._replace(name="other", source="elsewhere", pool_images=images.copy())
    assert same.fingerprint == dataset.fingerprint
    changed = [
        dataset._replace(pool_images=images + np.uint8(1)),
        dataset._replace(pool_labels=labels + 1),
        dataset._replace(test_images=images + np.uint8(1)),
        dataset._replace(test_labels=labels + 1),
        dataset._replace(num_classes=3),
        dataset._replace(max_value=255),
    ]
    assert len({item.fingerprint for item in [dataset, *changed]}) == 7


@pytest.mark.skipif(
    DATA_DIR is None
    or not any(not idx.locate(Path(DATA_DIR, folder)).missing for folder in ("mnist", ".")),
    reason="needs the real MNIST files in JAXCOMP_DATA_DIR",
)
def test_real_mnist() -> None:
    dataset = data.load("mnist", data_dir=DATA_DIR)
    # Class counts of the published training and test sets.
    train = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    test = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(dataset.pool_labels).tolist() == train
    assert np.bincount(dataset.test_labels).tolist() == test
    assert dataset.pool_images.shape == (60_000, 28, 28, 1)
    # The published mean and deviation of the training pixels, to the digits that are quoted.
    mean, deviation = data.standardization(dataset.pool_images, dataset.max_value)
    np.testing.assert_allclose([mean[0], deviation[0]], [0.1307, 0.3081], atol=5e-5)
