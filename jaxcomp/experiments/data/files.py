"""Finding the files of a data set in a folder and reading them, plain or gzip."""

import gzip
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

_GZIP_MAGIC = b"\x1f\x8b"


class Located(NamedTuple):
    """What one folder holds of a data set.

    Attributes:
        paths: the files found, by their role.
        missing: the standard names of the files that are not there; empty when complete.
    """

    paths: dict[str, Path]
    missing: tuple[str, ...]


def folder_key(name: str) -> str:
    """Return what names of folders are compared by: `Fashion_MNIST` is `fashion-mnist`."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def find_file(folder: Path, names: Sequence[str]) -> Path | None:
    """Find a file under the first of several names, each plain or with the suffix `.gz`.

    Small and capital letters count as the same where no name fits exactly.

    Args:
        folder: where to look.
        names: spellings of the name without `.gz`, the preferred one first.

    Returns:
        The path, or `None` if no such file exists.
    """
    asked = [spelling for name in names for spelling in (name, f"{name}.gz")]
    for spelling in asked:
        if (folder / spelling).is_file():
            return folder / spelling
    there = {path.name.casefold(): path for path in list_folder(folder) if path.is_file()}
    return next((there[key] for name in asked if (key := name.casefold()) in there), None)


def list_folder(folder: Path) -> list[Path]:
    """Return what is in a folder, in the order of the names; nothing if it cannot be listed."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def locate_batches(folder: Path, train_names: Sequence[str], test_name: str) -> Located:
    """Look for numbered training files, of which one is enough, and a test file, plain or gzip."""
    found = {name: find_file(folder, (name,)) for name in (*train_names, test_name)}
    paths = {name: path for name, path in found.items() if path is not None}
    missing = [] if any(name in paths for name in train_names) else [train_names[0]]
    if test_name not in paths:
        missing.append(test_name)
    return Located(paths, tuple(missing))


def read_batches(
    paths: Mapping[str, Path],
    train_names: Sequence[str],
    test_name: str,
    read: Callable[[Path], tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read the files that `locate_batches` found, the training files in the order of their names.

    Args:
        paths: standard name -> file.
        train_names: standard names of the training files, of which those in `paths` are read.
        test_name: standard name of the test file.
        read: images and labels of one file.

    Returns:
        Pool images and labels, joined, then test images and labels, as `read` gives them.
    """
    batches = [read(paths[name]) for name in train_names if name in paths]
    pool_images = np.concatenate([images for images, _ in batches])
    pool_labels = np.concatenate([labels for _, labels in batches])
    return pool_images, pool_labels, *read(paths[test_name])


def read_bytes(path: Path) -> bytes:
    """Read a file and unpack it if it is gzip.

    The contents decide, so a plain file saved under a name with `.gz` or the other way round is
    read as what it is; no file read here can start with the gzip mark when plain.

    Args:
        path: the file.

    Returns:
        The unpacked bytes.

    Raises:
        ValueError: one sentence, if the file cannot be read or unpacked.
    """
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data.startswith(_GZIP_MAGIC) else data
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"The file {path} is damaged or cut gzip ({str(error).rstrip('.')}); get it again."
        ) from error
    except OSError as error:
        raise ValueError(
            f"The file {path} could not be read ({error.strerror}); check its permissions."
        ) from error
