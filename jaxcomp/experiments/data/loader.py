"""One loader for all data sets: from files, from inside scikit-learn, or from OpenML."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxcomp.experiments.data import batches, idx, openml, records
from jaxcomp.experiments.data.dataset import Dataset, check_dataset
from jaxcomp.experiments.data.digits import load_digits
from jaxcomp.experiments.data.files import Located, folder_key, list_folder
from jaxcomp.storage import PathLike

DATA_DIR_VARIABLE = "JAXCOMP_DATA_DIR"
"""The environment variable that names the data folder when no argument does."""

_log = logging.getLogger(__name__)

_RAW = "raw"
_Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class _FileSet(NamedTuple):
    """How a data set is kept in files.

    Attributes:
        expected: the files, in words.
        locate: looks for them in a folder.
        read: turns the paths found into pool images, pool labels, test images, test labels.
        source: what `Dataset.source` says.
    """

    expected: str
    locate: Callable[[Path], Located]
    read: Callable[[dict[str, Path]], _Arrays]
    source: str


_IDX = _FileSet(
    f"{', '.join(idx.FILE_NAMES)} (each plain or .gz)", idx.locate, idx.read_dataset, "IDX files"
)
_RECORDS = _FileSet(
    f"one or more of {records.TRAIN_NAMES[0]} to {records.TRAIN_NAMES[-1]} and "
    f"{records.TEST_NAME} (each plain or .gz; also those of the python version, without .bin)",
    records.locate,
    records.read_dataset,
    "CIFAR-10 binary records",
)
_BATCHES = _FileSet(
    _RECORDS.expected, batches.locate, batches.read_dataset, "CIFAR-10 python batches"
)
_FILE_SETS = {"mnist": (_IDX,), "fashion-mnist": (_IDX,), "cifar10": (_RECORDS, _BATCHES)}

_FOLDERS = {
    "mnist": ("mnist",),
    "fashion-mnist": ("fashion-mnist",),
    "cifar10": ("cifar10", "cifar-10-batches-bin", "cifar-10-batches-py", "cifar10-3k"),
}
"""Names that a folder with the files can have, as `folder_key` compares them."""

DATASET_NAMES = ("digits", *_FILE_SETS)
"""What `load` knows."""


def load(name: str, *, data_dir: PathLike | None = None, download: bool = False) -> Dataset:
    """Load a data set whole into memory.

    `digits` is inside scikit-learn and needs nothing else. The others are read from files: from
    `data_dir`, else from the folder that the environment variable `JAXCOMP_DATA_DIR` names. That
    is the folder with the files itself or one that holds a folder of that name (`mnist`,
    `fashion-mnist`, `cifar10`; for CIFAR-10 also `cifar-10-batches-bin`, `cifar-10-batches-py` or
    `cifar10-3k`), in which the files may be in a folder `raw`, as torchvision has it. Capitals do
    not count (`FashionMNIST/raw`). Files may be plain or gzip. Without the files, and only with
    `download=True`, the data set comes from OpenML through scikit-learn, which keeps it in the
    user's cache.

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
    directory = _data_directory(data_dir)
    candidates = [] if directory is None else _candidate_folders(name, directory)
    located = []
    for folder in candidates:
        for file_set in _FILE_SETS[name]:
            found = file_set.locate(folder)
            if not found.missing:
                _log.info("%s: read from %s", name, folder)
                return check_dataset(
                    Dataset(
                        name,
                        *file_set.read(found.paths),
                        num_classes=10,
                        max_value=255,
                        source=file_set.source,
                    )
                )
            located.append(found)
    if download:
        _log.info("%s: not found in files, asked of OpenML", name)
        return openml.download(name)
    expected = _FILE_SETS[name][0].expected
    raise ValueError(
        f"{_what_is_missing(name, directory, located)}; give the folder that holds {expected}, or "
        f"one that holds a folder {name} with them, with --data-dir (data_dir=) "
        f"or the environment variable {DATA_DIR_VARIABLE}, or pass --download "
        "(download=True) to fetch them from OpenML."
    )


def _data_directory(data_dir: PathLike | None) -> Path | None:
    """Take the argument, else the environment variable (empty counts as not set)."""
    if data_dir is None:
        data_dir = os.environ.get(DATA_DIR_VARIABLE) or None
    if data_dir is None:
        return None
    try:
        return Path(data_dir).expanduser()
    except RuntimeError:  # there is no home
        return Path(data_dir)


def _candidate_folders(name: str, directory: Path) -> list[Path]:
    """List where the files may be, the folders of that name first.

    The files of MNIST and Fashion-MNIST have the same names, so a folder that bears the name of
    another data set is never taken for this one.
    """
    keys = {other: [folder_key(folder) for folder in _FOLDERS[other]] for other in _FOLDERS}
    named = [
        (keys[name].index(key), folder)
        for folder in list_folder(directory)
        if (key := folder_key(folder.name)) in keys[name] and folder.is_dir()
    ]
    candidates = [folder for _, folder in sorted(named)]
    # resolved, because "." and ".." hide the name
    resolved = directory.resolve()
    own = resolved.parent if folder_key(resolved.name) == _RAW else resolved
    foreign = {key for other in keys if other != name for key in keys[other]}
    if folder_key(own.name) not in foreign:
        candidates.append(directory)
    return [
        place
        for folder in candidates
        for place in (folder, *(raw for raw in list_folder(folder) if folder_key(raw.name) == _RAW))
    ]


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
