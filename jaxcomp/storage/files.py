"""Files that are whole or absent, JSON, and folders that can be written.

The bytes go to a temporary file in the same folder, reach the disk (`fsync`), and take the final
name in one step (`os.replace`).
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

import numpy as np

PathLike: TypeAlias = str | os.PathLike[str]

_TEMPORARY_NAME = re.compile(r"\..+\.[0-9]+-[0-9a-f]{8}\.tmp")


@contextlib.contextmanager
def atomic_writer(path: PathLike) -> Iterator[BinaryIO]:
    """Open a binary file that takes the name `path` only once the block ends without an error.

    Until then the bytes are in a hidden temporary file beside `path`, and an older file at
    `path` stays as it was. Missing folders are made.

    Args:
        path: where the finished file goes.

    Yields:
        A binary file, readable, writable and seekable.

    Raises:
        OSError: one sentence, if the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # "x" fails on an existing file; unlike tempfile it keeps the user's permissions.
            with open(temporary, "x+b") as file:
                yield cast(BinaryIO, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_directory(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(
            f"The file {path} could not be written ({reason(error)}); free some space, change "
            "the permissions or choose another folder."
        ) from error


def write_bytes_atomic(path: PathLike, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old file or the whole new one.

    Args:
        path: where the file goes; missing folders are made.
        data: the bytes of the file.

    Raises:
        OSError: one sentence, if the file cannot be written.
    """
    with atomic_writer(path) as file:
        file.write(data)


def write_json(path: PathLike, value: Any) -> None:
    """Write `value` as indented, standard JSON, atomically.

    Args:
        path: where the file goes; missing folders are made.
        value: nested dicts with `str` keys, lists, tuples, dataclasses, text, numbers, `None`,
            NumPy numbers and arrays. A number that is not finite becomes `null`: standard JSON
            has no word for it.

    Raises:
        TypeError: for a value or key that JSON cannot say.
        OSError: one sentence, if the file cannot be written.
    """
    plain = to_plain(value, "value", keep_non_finite=False)
    text = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes_atomic(path, (text + "\n").encode())


def json_line(value: Any) -> str:
    """Return a value, as `write_json` takes it, as one line of standard JSON."""
    return json.dumps(to_plain(value, "value", keep_non_finite=False), allow_nan=False)


def read_json(path: PathLike) -> Any:
    """Read a JSON file.

    Args:
        path: the file.

    Returns:
        Its contents as dicts, lists, text, numbers and `None`.

    Raises:
        ValueError: one sentence, if the file is missing or not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(
            f"The file {path} does not exist; check the path or run again to make it."
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The file {path} could not be read as JSON ({reason(error)}); delete it and run again."
        ) from error


def ensure_writable_directory(path: PathLike, *, noun: str = "output folder") -> Path:
    """Make the folder if it is missing and prove that files can be written in it.

    Args:
        path: the folder; a leading `~` is the user's home.
        noun: what messages call it.

    Returns:
        The folder.

    Raises:
        ValueError: one sentence, if it is a file, cannot be made or cannot be written.
    """
    path = Path(path)
    try:
        path = path.expanduser()
        if path.exists() and not path.is_dir():
            raise ValueError(f"The {noun} {path} is a file; choose another folder.")
        probe = path / f".probe.{os.getpid()}-{secrets.token_hex(4)}.tmp"
        path.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(b"probe")  # permission bits alone do not show a full disk
        finally:
            probe.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        raise ValueError(
            f"The {noun} {path} cannot be written ({reason(error)}); change its permissions or "
            "choose another folder."
        ) from error
    return path


def remove_temporary_files(directory: PathLike, *, older_than_seconds: float = 0.0) -> int:
    """Delete the temporary files that killed runs left in one folder (not in its folders).

    Args:
        directory: the folder. With the default age no other process may be writing there.
        older_than_seconds: only files at least this old, by the clock of this machine.

    Returns:
        How many were deleted.
    """
    num_removed = 0
    for path in Path(directory).iterdir():
        if not _TEMPORARY_NAME.fullmatch(path.name):
            continue
        with contextlib.suppress(FileNotFoundError):  # its writer was faster
            if time.time() - path.stat().st_mtime >= older_than_seconds:
                path.unlink()
                num_removed += 1
    return num_removed


def digest_of_file(path: PathLike) -> str:
    """Hash the bytes of a file.

    Returns:
        SHA-256 in hexadecimal.

    Raises:
        ValueError: one sentence, if the file is missing or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(
            f"The file {path} could not be read ({reason(error)}); run again to make it."
        ) from error


def reason(error: Exception) -> str:
    """Say in a few words what went wrong, without the path (the sentence has it)."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).rstrip(".") or type(error).__name__


def _sync_directory(directory: Path) -> None:
    """Bring a new name to the disk; only POSIX systems can, and some file systems refuse."""
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def to_plain(value: Any, where: str, *, keep_non_finite: bool = True) -> Any:
    """Turn a value into what the json module can write, strictly."""
    if isinstance(value, np.generic):
        value = value.item()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, float) and not keep_non_finite and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [
            to_plain(item, f"{where}[{index}]", keep_non_finite=keep_non_finite)
            for index, item in enumerate(value)
        ]
    if not isinstance(value, Mapping):
        raise TypeError(
            f"{where} is of type {type(value).__name__}, which JSON cannot say; use dicts, "
            "lists, text, numbers or None."
        )
    for key in value:
        if not isinstance(key, str):
            raise TypeError(
                f"{where} has the key {key!r}, but keys in JSON are of type str; rename it."
            )
    return {
        key: to_plain(item, f"{where}[{key!r}]", keep_non_finite=keep_non_finite)
        for key, item in value.items()
    }
