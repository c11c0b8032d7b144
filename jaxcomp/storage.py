"""Files that survive: atomic writes, checked arrays, JSON, and fingerprints of settings.

A file written here is either whole or absent: the bytes go to a temporary file in the same
folder, reach the disk (`fsync`), and take the final name in one step (`os.replace`). So a run
that is killed leaves at most a hidden temporary file, which `remove_temporary_files` clears.

Arrays are kept in the `.npz` layout of NumPy (a zip archive of `.npy` members, never pickled)
with a member `metadata.json`; `numpy.load` reads the arrays too. The zip comment, which is the
end of the file, is the SHA-256 of every byte before it. One check before anything is parsed
thus finds every damaged or cut file. Equal contents give equal bytes: members are sorted,
uncompressed (compressors change between versions) and carry a fixed date.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import re
import secrets
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

import numpy as np
from numpy.typing import ArrayLike

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

PathLike: TypeAlias = str | os.PathLike[str]

_FORMAT = "jaxcomp arrays"
_VERSION = 1
_METADATA_MEMBER = "metadata.json"
_DIGEST_BYTES = 64  # a SHA-256 in hexadecimal
_STORABLE_KINDS = "biufcSU"
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest date zip knows
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
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
            f"The file {path} could not be written ({_reason(error)}); free some space, change "
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


def save_arrays(
    path: PathLike,
    arrays: Mapping[str, ArrayLike],
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write named arrays and metadata to one checked file; equal contents give equal bytes.

    Args:
        path: where the file goes, by habit with the suffix `.npz`; missing folders are made.
        arrays: name -> array of booleans, numbers or text, of any shape. A nested tree goes
            through `flatten_tree` first.
        metadata: what JSON can say (`str` keys; NumPy numbers become numbers, tuples become
            lists). Numbers that are not finite survive the round trip.

    Raises:
        TypeError: for a dtype that `.npy` cannot keep (objects, bfloat16), a name or key that
            is not a string, or metadata that JSON cannot say.
        ValueError: for an empty name.
        OSError: one sentence, if the file cannot be written.
    """
    checked = {_checked_name(name): _storable(name, array) for name, array in arrays.items()}
    header = {
        "format": _FORMAT,
        "version": _VERSION,
        "metadata": _plain(metadata if metadata is not None else {}, "metadata"),
    }
    with atomic_writer(path) as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            archive.comment = b"0" * _DIGEST_BYTES  # keeps the place of the digest
            with archive.open(_zip_member(_METADATA_MEMBER), "w", force_zip64=True) as member:
                member.write(json.dumps(header, sort_keys=True).encode())
            for name in sorted(checked):
                with archive.open(
                    _zip_member(f"{_escape(name)}.npy"), "w", force_zip64=True
                ) as member:
                    np.lib.format.write_array(member, checked[name], allow_pickle=False)
        digest = _digest_without_end(file)
        file.seek(-_DIGEST_BYTES, os.SEEK_END)
        file.write(digest)


def load_arrays(path: PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `save_arrays` wrote, after checking every byte of the file.

    Args:
        path: the file.

    Returns:
        The arrays by name (in the order of the names; fresh and writable) and the metadata
        (an empty dict if none was given).

    Raises:
        ValueError: one sentence, if the file is missing, cut, damaged, of another origin or of
            a later format.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            expected = _last_bytes(file)
            if expected != _digest_without_end(file):
                raise ValueError(
                    f"The file {path} is damaged, cut or not written by jaxcomp (its checksum "
                    "does not match); delete it and run again."
                )
            with zipfile.ZipFile(file) as archive:
                header = json.loads(archive.read(_METADATA_MEMBER))
                if (header["format"], header["version"]) != (_FORMAT, _VERSION):
                    raise ValueError(
                        f"The file {path} has the format {header['format']!r} version "
                        f"{header['version']!r}, but this jaxcomp reads {_FORMAT!r} version "
                        f"{_VERSION}; use the jaxcomp that wrote it or delete it and run again."
                    )
                arrays = {}
                for name in archive.namelist():
                    if name == _METADATA_MEMBER:
                        continue
                    with archive.open(name) as member:
                        arrays[_unescape(name.removesuffix(".npy"))] = np.lib.format.read_array(
                            member, allow_pickle=False
                        )
    except FileNotFoundError as error:
        raise ValueError(
            f"The file {path} does not exist; check the path or run again to make it."
        ) from error
    except (OSError, zipfile.BadZipFile, KeyError, TypeError) as error:
        raise ValueError(
            f"The file {path} could not be read ({_reason(error)}); delete it and run again."
        ) from error
    return arrays, header["metadata"]


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
    plain = _plain(value, "value", keep_non_finite=False)
    text = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes_atomic(path, (text + "\n").encode())


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
            f"The file {path} could not be read as JSON ({_reason(error)}); delete it and run "
            "again."
        ) from error


def flatten_tree(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Turn nested dicts into one dict with names such as `params/dense_0/kernel`.

    An empty dict inside the tree is kept as a name that ends in `/` with an array of no entries,
    so that `unflatten_tree` gives back exactly the same tree.

    Args:
        tree: nested dicts with `str` keys; whatever is not a dict is a leaf.

    Returns:
        Name -> leaf, in the order of the tree.

    Raises:
        TypeError: for a key that is not a string, or a list or tuple in the tree.
        ValueError: for a key that is empty or holds a slash.
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if not isinstance(key, str):
            raise TypeError(f"A tree to store must have keys of type str, got {key!r}; rename it.")
        if not key or "/" in key:
            raise ValueError(
                f"A tree to store cannot have the key {key!r}: keys are not empty and hold no "
                "slash, which separates the levels; rename it."
            )
        if isinstance(value, list | tuple):
            raise TypeError(
                f"A tree to store is made of nested dicts, got a {type(value).__name__} at "
                f"{key!r}; use a dict with keys '0', '1', ... instead."
            )
        if not isinstance(value, Mapping):
            flat[key] = value
        elif value:
            flat |= {f"{key}/{name}": leaf for name, leaf in flatten_tree(value).items()}
        else:
            flat[f"{key}/"] = np.zeros(0, np.uint8)
    return flat


def unflatten_tree(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `flatten_tree`.

    Args:
        flat: name -> leaf, names with `/` between the levels.

    Returns:
        Nested dicts.

    Raises:
        ValueError: if a name has an empty level or is a leaf and a folder at once.
    """
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *folders, last = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {}) if folder else None
            if not isinstance(node, dict):
                break
        if not isinstance(node, dict) or last in node or (not last and (node or not folders)):
            raise ValueError(
                f"The name {name!r} does not fit a tree: every level needs a name, and no name "
                "can be a leaf and a folder at once."
            )
        if last:
            node[last] = leaf
    return tree


def fingerprint(value: Any) -> str:
    """Hash settings and data: equal values have equal fingerprints, in every process.

    The order of the keys of a dict does not count; tuples count as lists; NumPy numbers count as
    the Python numbers they equal. `1`, `1.0` and `True` differ. Arrays count by dtype, shape and
    bytes; the memory layout and the byte order do not matter.

    Args:
        value: nested dicts with `str` keys, lists, tuples, dataclasses, text, numbers, `None`
            and arrays (NumPy, or anything with a dtype that NumPy can read).

    Returns:
        SHA-256 in hexadecimal, 64 characters.

    Raises:
        TypeError: for a value that has no such canonical form (a function, a set, a path).
    """
    text = json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


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
            f"The {noun} {path} cannot be written ({_reason(error)}); change its permissions or "
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


class FolderLock:
    """One holder at a time for a folder: a lock on a file in it, held until `release`.

    The system frees the lock when its process ends, however that happens, so that nothing stays
    locked after a crash. On network file systems the lock holds between machines where the server
    keeps locks (NFS 4, SMB, Lustre mounted with `flock`); where a file system has none, holders are
    not told apart, as if there were no lock.

    Args:
        folder: a folder that is there and can be written.
    """

    NAME = ".jaxcomp.lock"

    def __init__(self, folder: PathLike) -> None:
        self._path = Path(folder) / self.NAME
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Take the lock without waiting; False if someone else holds it.

        Raises:
            OSError: one sentence, if the file of the lock cannot be made.
        """
        while True:
            try:
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise OSError(
                    f"The file {self._path} could not be made ({_reason(error)}); change the "
                    "permissions or choose another folder."
                ) from error
            if not _lock(descriptor):
                os.close(descriptor)
                return False
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(descriptor), os.stat(self._path)):
                    self._descriptor = descriptor
                    return True
            # Its last holder has taken the file away in the meantime: this lock is on no name.
            os.close(descriptor)

    def release(self) -> None:
        """Free the folder, if it is held, and leave no file behind."""
        if self._descriptor is None:
            return
        # Before the lock goes: whoever opened the file by then sees that it has lost its name.
        with contextlib.suppress(OSError):  # Windows removes no open file
            self._path.unlink()
        os.close(self._descriptor)
        self._descriptor = None


def _lock(descriptor: int) -> bool:
    """Lock an open file, if the file system can; False if someone else has."""
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _NO_LOCKS
    return True


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
            f"The file {path} could not be read ({_reason(error)}); run again to make it."
        ) from error


def _reason(error: Exception) -> str:
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


def _zip_member(name: str) -> zipfile.ZipInfo:
    """Describe a member so that its header does not depend on the clock or the system."""
    info = zipfile.ZipInfo(name, date_time=_ZIP_DATE)
    info.create_system = 3
    info.external_attr = 0o644 << 16
    return info


def _last_bytes(file: BinaryIO) -> bytes:
    """Read the place of the digest (less, if the file is shorter)."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - _DIGEST_BYTES, 0))
    return file.read()


def _digest_without_end(file: BinaryIO) -> bytes:
    """Hash all but the place of the digest, one megabyte at a time."""
    remaining = max(file.seek(0, os.SEEK_END) - _DIGEST_BYTES, 0)
    file.seek(0)
    digest = hashlib.sha256()
    while remaining > 0:
        chunk = file.read(min(remaining, 1 << 20))
        if not chunk:
            break
        digest.update(chunk)
        remaining -= len(chunk)
    return digest.hexdigest().encode()


def _checked_name(name: str) -> str:
    """Refuse what is no name."""
    if not isinstance(name, str):
        raise TypeError(f"Names of arrays must be of type str, got {name!r}; rename it.")
    if not name:
        raise ValueError("The name of an array cannot be empty; name it.")
    return name


def _escape(name: str) -> str:
    """Write the characters that a zip member cannot keep as `%` and six hexadecimal digits."""
    return re.sub(r"[%\\\0\ud800-\udfff]", lambda found: f"%{ord(found[0]):06x}", name)


def _unescape(name: str) -> str:
    return re.sub(r"%([0-9a-f]{6})", lambda found: chr(int(found[1], 16)), name)


def _storable(name: str, array: ArrayLike) -> np.ndarray:
    """Bring an array into the one layout that is written, or refuse its dtype."""
    # ascontiguousarray would turn a scalar into a vector.
    result = np.asarray(array, order="C")
    if result.dtype.kind not in _STORABLE_KINDS:
        raise TypeError(
            f"The array {name!r} has the dtype {result.dtype}, which cannot be stored; convert "
            "it to booleans, integers, floating numbers or text of NumPy first."
        )
    return result


def _plain(value: Any, where: str, *, keep_non_finite: bool = True) -> Any:
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
            _plain(item, f"{where}[{index}]", keep_non_finite=keep_non_finite)
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
        key: _plain(item, f"{where}[{key!r}]", keep_non_finite=keep_non_finite)
        for key, item in value.items()
    }


def _canonical(value: Any) -> Any:
    """Turn a value into JSON in which different kinds of things cannot look alike.

    Every list starts with a tag, so no list that a caller gives can pass for an array.
    """
    if isinstance(value, np.generic) and value.dtype.kind in "biufU":
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return ["dataclass", type(value).__name__, _canonical(fields)]
    if isinstance(value, list | tuple):
        return ["sequence", *(_canonical(item) for item in value)]
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(
                f"A fingerprint needs dicts with keys of type str, got the keys {list(value)!r}; "
                "rename them."
            )
        return {key: _canonical(item) for key, item in value.items()}
    # Arrays of JAX have a dtype too; typed keys and objects have no bytes to hash.
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        array = np.asarray(value, order="C")
        if array.dtype.kind != "O":
            array = array.astype(array.dtype.newbyteorder("<"), copy=False)
            digest = hashlib.sha256(array.tobytes()).hexdigest()
            return ["array", array.dtype.name, list(array.shape), digest]
    raise TypeError(
        f"A fingerprint of a {type(value).__name__} does not exist; use dicts, lists, text, "
        "numbers, None, dataclasses or arrays of numbers."
    )
