"""Arrays in files that tell when they are damaged, and trees of them.

Arrays are kept in the `.npz` layout of NumPy (a zip archive of `.npy` members, never pickled)
with a member `metadata.json`; `numpy.load` reads the arrays too. The zip comment, which is the
end of the file, is the SHA-256 of every byte before it. One check before anything is parsed
thus finds every damaged or cut file. Equal contents give equal bytes: members are sorted,
uncompressed (compressors change between versions) and carry a fixed date.
"""

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Shaped
from numpy.typing import ArrayLike

from jaxcomp.storage.files import PathLike, atomic_writer, reason, to_plain

_FORMAT = "jaxcomp arrays"
_VERSION = 1
_METADATA_MEMBER = "metadata.json"
_DIGEST_BYTES = 64  # a SHA-256 in hexadecimal
_STORABLE_KINDS = "biufcSU"
_MOST_HEADER_BYTES = 1 << 16  # of a .npy file
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest date zip knows


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
        "metadata": to_plain(metadata if metadata is not None else {}, "metadata"),
    }
    with atomic_writer(path) as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            archive.comment = b"0" * _DIGEST_BYTES  # keeps the place of the digest
            with archive.open(_zip_member(_METADATA_MEMBER), "w") as member:
                member.write(json.dumps(header, sort_keys=True).encode())
            for name in sorted(checked):
                write_npy_member(archive, _zip_member(f"{_escape(name)}.npy"), checked[name])
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
            f"The file {path} could not be read ({reason(error)}); delete it and run again."
        ) from error
    return arrays, header["metadata"]


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


def write_npy_member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, array: Shaped[np.ndarray, "..."]
) -> None:
    """Write an array as a `.npy` member, in the same bytes on every version of Python.

    Sizes of 64 bits, which 3.11.2 writes otherwise than 3.11.4, are left to arrays that need them.

    Args:
        archive: open for writing.
        info: the name and the date of the member.
        array: of a dtype that `.npy` can keep.
    """
    info.file_size = array.nbytes + _MOST_HEADER_BYTES
    with archive.open(info, "w") as member:
        np.lib.format.write_array(member, array, allow_pickle=False)


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
