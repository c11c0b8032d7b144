"""Files: sections of arrays under a header, alone (`.jxc`) or as tensors of safetensors.

Section 4 of `docs/format.md`.
"""

import hashlib
import io
import json
import math
import os
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcomp.decoder.arrays import (
    DTYPES,
    WEIGHTS,
    Parts,
    added,
    bytes_of,
    check_size,
    read_parts,
    values_of,
)
from jaxcomp.decoder.streams import FormatError, Stack, require

MAGIC, HEADER_NAME, INDEX = b"JXC\x01", "jaxcomp.header", ".index.json"
KEPT = "kept"
"""The method of an array that was not compressed."""
_MOST_HEADER, _MOST_DEPTH, _MOST_AXES = 1 << 24, 64, 32
# What a header that is wrong raises where it is read.
ERRORS = (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError, zlib.error)


class Entry(NamedTuple):
    """A stored array: what the header says of it, and where its section lies."""

    dtype: str
    shape: tuple[int, ...]
    method: str
    coder: str  # of most of its symbols
    key: str  # implementation of random keys of which these are the data
    path: str
    offset: int
    length: int
    checksum: int


class File:
    """An open file of a compressed model: its arrays one by one, or the whole tree.

    `size` is its bytes, `sources` are the files that hold it, an index first; none for bytes.
    `checked` says what a look at all of it looks at.

    Args:
        source: path, or the bytes themselves; the path of an index (`.index.json`) where the model
            is in several files of safetensors.
        max_bytes: most bytes that all arrays may have; None for 256 MiB, or 1,024 times the file
            if that is more.

    Raises:
        FormatError: whatever is wrong with the file.
        OSError: if it cannot be read.
    """

    checked = "all checksums and the SHA-256"

    def __init__(
        self, source: str | os.PathLike[str] | bytes, max_bytes: int | None = None
    ) -> None:
        self._read_reference: Callable[[str], np.ndarray] | None = None
        self.sources: tuple[Path, ...] = ()
        self._index: dict[str, str] | None = None
        self._shards: dict[str, tuple[int, int]] = {}
        self._file: Any = self._opened(source)
        try:
            self.size = self._file.seek(0, os.SEEK_END)
            self._shards = self._shards or {"": (0, self.size)}
            self._limit = max(1 << 28, 1024 * self.size) if max_bytes is None else max_bytes
            offset, places = 12, None
            start = self._read(0, 12)
            if not start.startswith(MAGIC):
                start, offset, places = self._safetensors()
                require(start.startswith(MAGIC), "its header has another version")
            length, checksum = (int.from_bytes(part, "little") for part in (start[4:8], start[8:]))
            block = self._read(offset, length)
            require(zlib.crc32(block) == checksum, "the checksum of its header is wrong")
            self._parse(block, offset + length, places)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "File":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def parts(self, entry: Entry) -> Parts:
        """Return what is stored of an array, after a look at its checksum."""
        data = self._read(entry.offset, entry.length)
        require(zlib.crc32(data) == entry.checksum, f"the checksum of {entry.path!r} is wrong")
        stack = Stack(data, 2 * self._limit + (1 << 20))
        found = read_parts(stack, entry.dtype, entry.shape)
        stack.finish()
        return found

    def array(self, entry: Entry) -> np.ndarray:
        """Return one array as it is stored, after a look at its checksum."""
        return values_of(self.parts(entry), entry.dtype, entry.shape)

    def give_reference(self, read: Callable[[str], np.ndarray]) -> None:
        """Take the arrays by path of the model to which this file holds differences.

        Raises:
            FormatError: if its arrays are not those that the file was made with.
        """
        digest, numbers = self.reference or ("", frozenset())
        hashed = hashlib.sha256()
        for number in sorted(numbers):
            hashed.update(bytes_of(read(self.entries[number].path)).data)
        is_same = not numbers or hashed.hexdigest() == digest
        require(is_same, "the reference is another model than the one that it was made with")
        self._read_reference = read

    def weights(self, number: int, stored: np.ndarray) -> np.ndarray:
        """Return what a stored array stands for: itself, or with that of the reference."""
        if self.reference is None or number not in self.reference[1]:
            return stored
        entry = self.entries[number]
        require(self._read_reference, "it holds differences to another model; name its reference")
        assert self._read_reference is not None
        return added(stored, self._read_reference(entry.path), entry.dtype)

    def check_digest(self, digest: bytes) -> None:
        """Refuse arrays whose SHA-256, after that of the first line of the header, is another."""
        require(digest == self.digest, "the SHA-256 of its arrays is wrong")

    def tree(self) -> Any:
        """Return the whole tree, after a look at its SHA-256."""
        hashed, arrays = hashlib.sha256(self.identity), []
        for entry in self.entries:
            stored = self.array(entry)
            hashed.update(bytes_of(stored).data)
            arrays.append(self.weights(len(arrays), stored))
        self.check_digest(hashed.digest())
        slots = iter(self.slots)

        def at(_: str) -> np.ndarray:
            number, view = next(slots)
            return viewed(arrays[number], view)

        return walk(self.header["tree"], at)

    def _read(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        data = self._file.read(length)
        require(len(data) == length, "it is cut")
        return data

    def _opened(self, source: str | os.PathLike[str] | bytes) -> Any:
        """Open a file, or all those that an index names as one."""
        if isinstance(source, bytes):
            return io.BytesIO(source)
        path = Path(source)
        self.sources = (path,)
        if not path.name.endswith(INDEX):
            return open(path, "rb")
        with open(path, "rb") as file:
            text = file.read(_MOST_HEADER)
        try:
            self._index = index = _from_json(text)["weight_map"]
            names = list(dict.fromkeys(index.values()))
            are_names = all(type(name) is str and Path(name).name == name for name in names)
        except ERRORS as error:
            raise _as_format_error(error) from error
        require(names and are_names, "its index does not name files beside it")
        self.sources += tuple(path.with_name(name) for name in names)
        files = Joined(self.sources[1:])
        self._shards = dict(zip(names, files.places, strict=True))
        return files

    def _safetensors(self) -> tuple[bytes, int, dict[str, tuple[int, int]]]:
        """Return the first bytes of the header, the offset of the rest, and where tensors lie."""
        places: dict[str, tuple[int, int]] = {}
        for name, (begin, size) in self._shards.items():
            found = self._listed(begin, size)
            require(not places.keys() & found.keys(), "a name stands twice")
            is_indexed = self._index is None or all(self._index.get(own) == name for own in found)
            require(is_indexed, "its index is that of other files")
            places |= found
        require(self._index is None or len(places) == len(self._index), "a tensor is missing")
        require(HEADER_NAME in places, "it has no header")
        offset, _ = places.pop(HEADER_NAME)
        return self._read(offset, 12), offset + 12, places

    def _listed(self, begin: int, size: int) -> dict[str, tuple[int, int]]:
        """Return where the tensors of a file lie, given where it begins."""
        require(size >= 8, "it is cut")
        length = int.from_bytes(self._read(begin, 8), "little")
        require(length <= min(size - 8, _MOST_HEADER), "it does not begin as one")
        try:
            tensors = _from_json(self._read(begin + 8, length))
            tensors.pop("__metadata__", None)
            places = {name: tuple(own["data_offsets"]) for name, own in tensors.items()}
            require(all(own["dtype"] == "U8" for own in tensors.values()), "its tensors are not U8")
            end = 0
            for name, (first, last) in sorted(places.items(), key=lambda item: item[1]):
                is_next = type(first) is type(last) is int and first == end <= last
                require(is_next and tensors[name]["shape"] == [last - first], "its tensors overlap")
                places[name], end = (begin + 8 + length + first, last - first), last
        except ERRORS as error:
            raise _as_format_error(error) from error
        require(8 + length + end == size, "something follows its last tensor")
        return places

    def _parse(self, block: bytes, begin: int, places: dict[str, tuple[int, int]] | None) -> None:
        """Read the header, and check all that can be checked without the sections."""
        try:
            inflater = zlib.decompressobj(-15)
            lines = inflater.decompress(block, _MOST_HEADER).split(b"\n")
            require(inflater.eof and len(lines) == 2, "its header does not end")
            self.identity, self.header = lines[0], _from_json(lines[0])
            coding, checks = _from_json(lines[1]), inflater.unused_data
            spec = [(dtype, tuple(shape)) for dtype, *shape in self.header["arrays"]]
            for dtype, shape in spec:
                are_counts = all(type(axis) is int and axis >= 0 for axis in shape)
                are_counts = are_counts and math.prod(axis or 1 for axis in shape) < 1 << 60
                require(dtype in DTYPES and are_counts, "its arrays have wrong dtypes or shapes")
                require(len(shape) <= _MOST_AXES, "an array has too many axes")
            check_size(spec, self._limit)
            self.reference = _reference(self.header.get("reference"), spec)
            self.made, keys, paths = coding.get("made"), self.header.get("keys", {}), []
            walk(self.header["tree"], paths.append)
            require(len(set(paths)) == len(paths), "two arrays have one path")
            self.paths: list[str] = paths
            self.slots = _slots(self.header.get("ties", {}), paths, [shape for _, shape in spec])
            names: dict[int, str] = {}
            for path, (number, _) in zip(paths, self.slots, strict=True):
                names.setdefault(number, path)
            lengths, methods, codes = (coding[name] for name in ("lengths", "methods", "codes"))
            is_whole = len(lengths) == len(methods) == len(codes) == len(spec) == len(names)
            require(is_whole, "arrays are missing")
            require(len(checks) == 32 + 4 * len(spec), "its checksums are missing")
            self.digest, self.entries = checks[:32], []
            for number, (one, length, method) in enumerate(
                zip(spec, lengths, methods, strict=True)
            ):
                require(type(length) is int and length >= 0, "a section has no length")
                offset = begin
                if places is not None:
                    offset, found = places.pop(names[number])
                    require(found == length, "a tensor has another length")
                begin += length
                check = int.from_bytes(checks[32 + 4 * number : 36 + 4 * number], "little")
                key = keys.get(str(number), "")
                own = Entry(
                    *one, str(method), str(codes[number]), key, names[number], offset, length, check
                )
                self.entries.append(own)
            is_whole = begin == self.size if places is None else not places
            require(is_whole, "something is missing, or follows its last section")
        except ERRORS as error:
            raise _as_format_error(error) from error


class Joined:
    """Files that are read as one, each after the one before.

    Args:
        paths: of the files.

    Raises:
        OSError: if one cannot be opened.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files: list[Any] = []
        self.places: list[tuple[int, int]] = []
        """Where each begins, and its size."""
        self._at, end = 0, 0
        try:
            for path in paths:
                self._files.append(open(path, "rb"))  # noqa: SIM115
                self.places.append((end, self._files[-1].seek(0, os.SEEK_END)))
                end += self.places[-1][1]
        except BaseException:
            self.close()
            raise

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to an offset, from the beginning or the end."""
        self._at = offset + (sum(self.places[-1]) if whence == os.SEEK_END else 0)
        return self._at

    def read(self, length: int) -> bytes:
        """Read so many bytes of one of the files, fewer at its end."""
        for file, (begin, size) in zip(self._files, self.places, strict=True):
            if begin <= self._at < begin + size:
                file.seek(self._at - begin)
                return file.read(length)
        return b""

    def close(self) -> None:
        """Close all files."""
        for file in self._files:
            file.close()


def _as_format_error(error: BaseException) -> FormatError:
    return error if isinstance(error, FormatError) else FormatError("its header is wrong")


def _from_json(text: bytes) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        require(len(dict(pairs)) == len(pairs), "a name stands twice")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=unique)


def _reference(told: Any, spec: list[Any]) -> tuple[str, frozenset[int]] | None:
    """Return SHA-256 of the model to which arrays are differences, and the numbers of those."""
    if told is None:
        return None
    digest, numbers = told
    require(type(digest) is str and len(digest) == 64, "its reference has no SHA-256")
    are_known = all(type(n) is int and 0 <= n < len(spec) for n in numbers)
    require(are_known and len(set(numbers)) == len(numbers), "its differences are no arrays")
    require(all(spec[n][0] in WEIGHTS for n in numbers), "its differences are no weights")
    return digest, frozenset(numbers)


def _slots(ties: dict[str, Any], paths: list[str], shapes: list[Any]) -> list[tuple[int, Any]]:
    """Return the stored array of every path, and how it is seen there."""
    slots, number = [], 0
    for path in paths:
        if path not in ties:
            slots.append((number, None))
            number += 1
            continue
        stored, view = ties[path]
        require(type(stored) is int and 0 <= stored < number, "a tie leads to no earlier array")
        if view is not None:
            stored_order, order, shape = view
            for axes, own in ((stored_order, shapes[stored]), (order, shape)):
                require(sorted(axes) == list(range(len(own))), "a view has wrong axes")
            is_whole = all(type(axis) is int and axis >= 0 for axis in shape)
            is_whole = is_whole and math.prod(shape) == math.prod(shapes[stored])
            require(is_whole, "a view has a wrong shape")
        slots.append((stored, view))
    require(number == len(shapes) and set(ties) <= set(paths), "it has arrays of no path")
    return slots


def viewed(values: Any, view: Any) -> Any:
    """Return an array as it is seen where it is tied."""
    if view is None:
        return values
    stored_order, order, shape = view
    in_memory = values.transpose(stored_order).reshape([shape[axis] for axis in order])
    return in_memory.transpose([order.index(axis) for axis in range(len(order))])


def check_name(name: str) -> None:
    """Refuse a name that would lead out of a folder, if it were a path of files."""
    parts = name.replace("\\", "/").split("/")
    is_path = (not parts[0] and len(parts) > 1) or {".", ".."} & set(parts) or parts[0][1:2] == ":"
    require(not is_path and name.isprintable(), f"the name {name[:80]!r} is a path")


def walk(node: Any, leaf: Callable[[str], Any], depth: int = 0) -> Any:
    """Build a tree, given what stands at each path."""
    require(depth <= _MOST_DEPTH, "its tree is too deep")
    kind, *content = node

    def all_of(children: list[Any]) -> list[Any]:
        return [walk(child, leaf, depth + 1) for child in children]

    if kind == "none" or kind == "missing":
        return None
    if kind == "array":
        check_name(content[0])
        return leaf(content[0])
    if kind == "constant":
        require(type(content[0]) in (bool, int, float, str), "a constant is no number or text")
        return content[0]
    if kind == "float0":
        return np.zeros(content[0], np.dtype([("float0", "V")]))
    if kind in ("list", "tuple"):
        return tuple(all_of(content[0])) if kind == "tuple" else all_of(content[0])
    require(kind in ("dict", "OrderedDict", "fields"), "its tree has an unknown kind of node")
    keys = [_key(key) for key, _ in content[0]]
    require(len(set(keys)) == len(keys), "a name stands twice")
    pairs = zip(keys, all_of([child for _, child in content[0]]), strict=True)
    return OrderedDict(pairs) if kind == "OrderedDict" else dict(pairs)


def _key(plain: Any) -> Any:
    if isinstance(plain, list):
        return tuple(_key(part) for part in plain)
    require(type(plain) in (int, str), "a key is no number or text")
    if isinstance(plain, str):
        check_name(plain)
    return plain
