"""One loader for all data sets: from files, from inside scikit-learn, or from OpenML."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxcomp.data import idx, openml, records
from jaxcomp.data.dataset import Dataset, check_dataset
from jaxcomp.data.digits import load_digits
from jaxcomp.data.files import Located
from jaxcomp.storage import PathLike

DATA_DIR_VARIABLE = "JAXCOMP_DATA_DIR"
"""The environment variable that names the data folder when no argument does."""

_Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class _FileSet(NamedTuple):
    """How a data set is kept in files.

    Attributes:
        folders: names a folder with its files can have.
        expected: the files, in words.
        locate: looks for them in a folder.
        read: turns the paths found into pool images, pool labels, test images, test labels.
        source: what `Dataset.source` says.
    """

    folders: tuple[str, ...]
    expected: str
    locate: Callable[[Path], Located]
    read: Callable[[dict[str, Path]], _Arrays]
    source: str


_IDX_EXPECTED = f"{', '.join(idx.FILE_NAMES)} (each plain or .gz)"
_FILE_SETS = {
    "mnist": _FileSet(("mnist",), _IDX_EXPECTED, idx.locate, idx.read_dataset, "IDX files"),
    "fashion-mnist": _FileSet(
        ("fashion-mnist",), _IDX_EXPECTED, idx.locate, idx.read_dataset, "IDX files"
    ),
    "cifar10": _FileSet(
        ("cifar10", "cifar-10-batches-bin", "cifar10-3k"),
        f"one or more of {records.TRAIN_NAMES[0]} to {records.TRAIN_NAMES[-1]} and "
        f"{records.TEST_NAME} (each plain or .gz)",
        records.locate,
        records.read_dataset,
        "CIFAR-10 binary records",
    ),
}

DATASET_NAMES = ("digits", *_FILE_SETS)
"""What `load` knows."""


def load(name: str, *, data_dir: PathLike | None = None, download: bool = False) -> Dataset:
    """Load a data set whole into memory.

    `digits` is inside scikit-learn and needs nothing else. The others are read from files: from
    `data_dir`, else from the folder that the environment variable `JAXCOMP_DATA_DIR` names. That
    is the folder with the files itself or one that holds a folder of that name (`mnist`,
    `fashion-mnist`, `cifar10`; for CIFAR-10 also `cifar-10-batches-bin` or `cifar10-3k`). Files may
    be plain or gzip. Without the files, and only with `download=True`, the data set comes from
    OpenML through scikit-learn, which keeps it in the user's cache.

    Args:
        name: `digits`, `mnist`, `fashion-mnist` or `cifar10`.
        data_dir: the folder; a leading `~` is the user's home.
        download: whether the network may be used when the files are not there.

    Returns:
        The data set, checked.

    Raises:
        ImportError: if scikit-learn is needed and not installed.
        ValueError: one sentence, for an unknown name, missing files (it says what to do), or
            files that are damaged or do not fit together.
    """
    if name not in DATASET_NAMES:
        raise ValueError(
            f"The data set {name!r} is unknown; choose one of {', '.join(DATASET_NAMES)}."
        )
    if name == "digits":
        return load_digits()
    file_set = _FILE_SETS[name]
    directory = _data_directory(data_dir)
    candidates = [] if directory is None else _candidate_folders(name, directory)
    located = [file_set.locate(folder) for folder in candidates]
    for found in located:
        if not found.missing:
            return check_dataset(
                Dataset(
                    name,
                    *file_set.read(found.paths),
                    num_classes=10,
                    max_value=255,
                    source=file_set.source,
                )
            )
    if download:
        return openml.download(name)
    raise ValueError(
        f"{_what_is_missing(name, directory, located)}; give the folder that holds "
        f"{file_set.expected}, or one that holds a folder {name} with them, with --data-dir "
        f"(data_dir=) or the environment variable {DATA_DIR_VARIABLE}, or pass --download "
        "(download=True) to fetch them from OpenML."
    )


def _data_directory(data_dir: PathLike | None) -> Path | None:
    """Take the argument, else the environment variable (empty counts as not set)."""
    if data_dir is None:
        data_dir = os.environ.get(DATA_DIR_VARIABLE) or None
    return None if data_dir is None else Path(data_dir).expanduser()


def _candidate_folders(name: str, directory: Path) -> list[Path]:
    """List where the files may be, the folders of that name first.

    The files of MNIST and Fashion-MNIST have the same names, so a folder that bears the name of
    another data set is never taken for this one.
    """
    candidates = [directory / folder for folder in _FILE_SETS[name].folders]
    foreign = {
        folder
        for other, file_set in _FILE_SETS.items()
        if other != name
        for folder in file_set.folders
    }
    # resolved, because "." and ".." hide the name
    if directory.resolve().name not in foreign:
        candidates.append(directory)
    return candidates


def _what_is_missing(name: str, directory: Path | None, located: list[Located]) -> str:
    """Begin the message: what was looked for and not found."""
    if directory is None:
        return f"The data set {name} needs files, and no data folder was given"
    if not directory.is_dir():
        return f"The data set {name} was not found because there is no folder {directory}"
    partial = next((found for found in located if found.paths), None)
    if partial is None:
        return f"The data set {name} was not found in the folder {directory}"
    folder = next(iter(partial.paths.values())).parent
    return f"The data set {name} is not complete: {folder} lacks {', '.join(partial.missing)}"
