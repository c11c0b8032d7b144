"""Finding the files of a data set in a folder and reading them, plain or gzip."""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_GZIP_MAGIC = b"\x1f\x8b"


class Located(NamedTuple):
    """What one folder holds of a data set.

    Attributes:
        paths: the files found, by their role.
        missing: the standard names of the files that are not there; empty when complete.
    """

    paths: dict[str, Path]
    missing: tuple[str, ...]


def find_file(folder: Path, names: Sequence[str]) -> Path | None:
    """Find a file under the first of several names, each plain or with the suffix `.gz`.

    Args:
        folder: where to look.
        names: spellings of the name without `.gz`, the preferred one first.

    Returns:
        The path, or `None` if no such file exists.
    """
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    return None


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
