"""Compressed trees in files: written whole or not at all, read array by array.

`docs/format.md` specifies the bytes, `jaxcomp.decoder` reads them without JAX. A file holds what
is stored of every leaf, and so decodes to exactly the weights that the tree has.
"""

import hashlib
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxcomp.checkpoints.references import digest_of
from jaxcomp.checkpoints.safetensors import framed, num_bytes
from jaxcomp.checkpoints.sharded import write_sharded
from jaxcomp.checkpoints.tensors import Tensor
from jaxcomp.coding.streams import Effort, StackWriter
from jaxcomp.compressed.format import leaf_of
from jaxcomp.compressed.sections import (
    Section,
    Sections,
    StoredArray,
    code_of,
    section_of,
    stored_array,
    stored_parts,
    write_leaf,
    writer_of,
)
from jaxcomp.compressed.tensors import (
    CompressedTensor,
    KeptLayout,
    KeptLeaf,
    TensorLayout,
    kept_value,
)
from jaxcomp.compressed.tree import CompressedTree, TreeLayout
from jaxcomp.compressed.workers import ALONE, Workers
from jaxcomp.decoder import File, FormatError, is_random_codes
from jaxcomp.decoder.arrays import bytes_of, values_of
from jaxcomp.decoder.files import HEADER_NAME, KEPT, MAGIC, Entry, walk
from jaxcomp.decoder.streams import require
from jaxcomp.long_call import LongCall
from jaxcomp.numerics.checks import is_concrete
from jaxcomp.storage import PathLike, atomic_writer, write_bytes_atomic
from jaxcomp.storage.files import to_plain
from jaxcomp.trees.description import describe_tree, rebuild_tree
from jaxcomp.trees.leaves import Constant, View, is_array
from jaxcomp.trees.paths import leaves_by_path
from jaxcomp.trees.tied import Slot
from jaxcomp.types import Params

Container = Literal["jxc", "safetensors", "bare"]


class Reference(NamedTuple):
    """Another model, and the paths at which a tree holds differences to it."""

    tensors: Mapping[str, Tensor]
    paths: frozenset[str]


def to_bytes(
    tree: CompressedTree,
    *,
    container: Container = "jxc",
    effort: Effort | None = None,
    made: Mapping[str, Any] | None = None,
    reference: Reference | None = None,
    shared: Sections | None = None,
) -> bytes:
    """Return the file of a compressed tree.

    Args:
        tree: known values.
        container: "jxc"; "safetensors", the same streams as tensors of bytes that other programs
            list; "bare", one stream without names, checks or structure, which only
            `jaxcomp.decoder.decode_bare` reads, given the dtype and shape of each array.
        effort: "fast" for static codes, "best" for contexts of earlier rows too; None for the
            best below 1,000,000 codes of an array.
        made: how the tree was made, as JSON can say it; costs its bytes. None for nothing.
        reference: of which arrays differences to another model are in the tree; None for none.
        shared: arrays that are kept in many trees, each of which is coded once; None for none.

    Raises:
        ImportError: without `constriction` (install `jaxcomp[coding]`).
        TypeError: inside `jit`, or if an array has a dtype that files do not hold.
        ValueError: if a name in the tree would be a path of files.
    """
    if container not in ("jxc", "safetensors", "bare"):
        raise ValueError(f"container must be jxc, safetensors or bare, got {container!r}.")
    if effort not in (None, "fast", "best"):
        raise ValueError(f"effort must be fast, best or None, got {effort!r}.")
    if not all(is_concrete(value) for value in jax.tree.leaves(tree.leaves)):
        raise TypeError("files need arrays with known values; write them outside jit and vmap.")
    if container == "bare":
        writer = StackWriter()
        for number in _described(tree).order:
            leaf, layout = tree.leaves[number], tree.layout.leaves[number]
            write_leaf(writer, stored_parts(leaf, layout), stored_array(leaf, layout), effort)
        return writer.to_bytes()
    file = Encoded(
        tree, container=container, effort=effort, made=made, reference=reference, sections=shared
    )
    return b"".join(file.chunks())


class Encoded:
    """The file of a compressed tree: its sections are coded, but not held if they lie elsewhere.

    Args:
        tree: see `to_bytes`.
        container: "jxc" or "safetensors"; see `to_bytes`.
        effort: see `to_bytes`.
        made: see `to_bytes`.
        reference: see `to_bytes`.
        sections: where the codes of arrays lie, or None to hold them.
        workers: who codes the arrays.

    Raises:
        ImportError, TypeError, ValueError: as `to_bytes`.
    """

    def __init__(
        self,
        tree: CompressedTree,
        *,
        container: Literal["jxc", "safetensors"] = "jxc",
        effort: Effort | None = None,
        made: Mapping[str, Any] | None = None,
        reference: Reference | None = None,
        sections: Sections | None = None,
        workers: Workers = ALONE,
    ) -> None:
        described = _described(tree)
        self._stored = [(tree.leaves[n], tree.layout.leaves[n]) for n in described.order]
        self._arrays = [stored_array(*one) for one in self._stored]
        self._first = _identity(described, self._arrays, reference)
        self._names = [path for path in _paths(described.description) if path not in described.ties]
        self._is_jxc, self._lies = container == "jxc", sections
        if HEADER_NAME in self._names and not self._is_jxc:
            raise ValueError(
                f"the leaf {HEADER_NAME!r} has the name of the header in a file of safetensors; "
                "rename it, or write a .jxc."
            )
        self._sections: list[Section] = []
        with LongCall("coding", len(self._stored)) as report:
            coded = workers.each(
                lambda one: section_of(one[0], one[1], effort, sections),
                self._stored,
                [math.prod(one.shape) for one in self._arrays],
            )
            for place in range(len(self._stored)):
                report(place, len(self._stored), "")
                self._sections.append(next(coded))
        codes = [section.code for section in self._sections]
        self._block = _block(self._first, self._arrays, codes, self.lengths, made)

    @property
    def lengths(self) -> list[int]:
        """Bytes of the sections."""
        return [section.num_bytes for section in self._sections]

    @property
    def size_bytes(self) -> int:
        """Bytes of the file."""
        return len(self._frame()) + self._header_size + sum(self.lengths)

    @property
    def bits_per_weight(self) -> float:
        """Bits of the compressed arrays over their numbers; NaN for none."""
        compressed = [
            (length, math.prod(one.shape))
            for length, one in zip(self.lengths, self._arrays, strict=True)
            if one.method != KEPT
        ]
        number = sum(size for _, size in compressed)
        return 8 * sum(length for length, _ in compressed) / number if number else math.nan

    def tensors(self) -> Iterator[tuple[str, int]]:
        """Yield names and bytes of the tensors of safetensors, the header first."""
        yield HEADER_NAME, self._header_size
        yield from zip(self._names, self.lengths, strict=True)

    def parts(self) -> Iterator[bytes]:
        """Yield the header and the sections, each when it is asked for."""
        yield self._header()
        for section in self._sections:
            yield section.read()

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes of the file, a few at a time."""
        yield self._frame()
        yield from self.parts()

    def write(self, path: Path, shard_size: float | None = None) -> Path:
        """Write the file, whole or not at all, and return what it is read by.

        Args:
            path: of the file.
            shard_size: most bytes of the tensors of a file, for safetensors in several files and
                their index; see `jaxcomp.checkpoints.sharded.write_sharded`.

        Raises:
            OSError: if a file cannot be written.
        """
        specs = [(name, "uint8", (size,)) for name, size in self.tensors()]
        if shard_size is not None and sum(map(num_bytes, specs)) > shard_size:
            arrays = (np.frombuffer(part, np.uint8) for part in self.parts())
            return write_sharded(path, specs, arrays, shard_size)[0]
        with atomic_writer(path) as file:
            for chunk in self.chunks():
                file.write(chunk)
        return path

    @property
    def _header_size(self) -> int:
        return len(MAGIC) + 8 + len(self._block) + 32 + 4 * len(self._arrays)

    def _frame(self) -> bytes:
        """Return what is in front of the header: the list of the tensors, in safetensors."""
        if self._is_jxc:
            return b""
        listed: dict[str, Any] = {"__metadata__": {"format": "jaxcomp 1"}}
        start = 0
        for name, size in self.tensors():
            offsets = [start, start + size]
            listed[name] = {"dtype": "U8", "shape": [size], "data_offsets": offsets}
            start += size
        return framed(listed)

    def _header(self) -> bytes:
        hashed = hashlib.sha256(self._first)
        with LongCall("checking sums", len(self._stored)) as report:
            for place, (one, array) in enumerate(zip(self._stored, self._arrays, strict=True)):
                report(place, len(self._stored), "")
                values = values_of(stored_parts(*one), array.dtype, array.shape)
                hashed.update(bytes_of(values).data)
                # Before the next one is there.
                del values
                if self._lies is not None:
                    self._lies.release()
        block = self._block + hashed.digest()
        block += b"".join(own.checksum.to_bytes(4, "little") for own in self._sections)
        head = MAGIC + b"".join(n.to_bytes(4, "little") for n in (len(block), zlib.crc32(block)))
        return head + block


class FileSizes:
    """Sizes of files (.jxc) of trees that share leaves: each leaf is coded once.

    Args:
        effort: see `to_bytes`.
        sections: where the codes of arrays lie; None to forget them.
    """

    def __init__(self, effort: Effort | None = None, sections: Sections | None = None) -> None:
        self._effort: Effort | None = effort
        self._sections = sections
        # The leaves too, so that no other has the number of one that is gone.
        self._known: dict[int, tuple[Any, StoredArray, str, int]] = {}

    def of_leaf(self, leaf: CompressedTensor | KeptLeaf, layout: TensorLayout | KeptLayout) -> int:
        """Return the bytes of the section of a leaf."""
        return self._of(leaf, layout)[2]

    def of_tree(self, tree: CompressedTree) -> int:
        """Return the bytes of the file of a tree; without `constriction` some more.

        Tensors that are None, as long as they are not known, have empty sections.
        """
        described = _described(tree)
        known = [
            self._of(tree.leaves[number], tree.layout.leaves[number]) for number in described.order
        ]
        stored = [one for one, _, _ in known]
        lengths = [length for _, _, length in known]
        first = _identity(described, stored)
        block = _block(first, stored, [code for _, code, _ in known], lengths, None)
        return len(MAGIC) + 8 + len(block) + 32 + 4 * len(stored) + sum(lengths)

    def _of(
        self, leaf: CompressedTensor | KeptLeaf | None, layout: TensorLayout | KeptLayout
    ) -> tuple[StoredArray, str, int]:
        if leaf is None:
            assert isinstance(layout, TensorLayout)
            return StoredArray(layout.dtype.name, layout.shape, layout.method.name, ""), "t", 0
        if id(leaf) not in self._known:
            if self._sections is None:
                writer = writer_of(leaf, layout, self._effort)
                code, size = code_of(writer), writer.num_bytes()
            else:
                section = section_of(leaf, layout, self._effort, self._sections)
                code, size = section.code, section.num_bytes
            self._known[id(leaf)] = leaf, stored_array(leaf, layout), code, size
        return self._known[id(leaf)][1:]


def _identity(
    described: "_Described", stored: list[StoredArray], reference: Reference | None = None
) -> bytes:
    """Return the first line of a header: what the arrays are."""
    identity: dict[str, Any] = {
        "tree": described.description,
        "arrays": [[one.dtype, *one.shape] for one in stored],
    }
    if described.ties:
        identity["ties"] = described.ties
    if any(one.key for one in stored):
        identity["keys"] = {str(n): one.key for n, one in enumerate(stored) if one.key}
    if reference is not None:
        names = [path for path in _paths(described.description) if path not in described.ties]
        numbers = [number for number, path in enumerate(names) if path in reference.paths]
        read = [reference.tensors[names[number]] for number in numbers]
        identity["reference"] = [digest_of(read), numbers]
    return _to_json(identity)


def _block(
    first: bytes,
    stored: list[StoredArray],
    codes: Sequence[str],
    lengths: list[int],
    made: Mapping[str, Any] | None,
) -> bytes:
    """Return the text of a header, compressed.

    Args:
        first: its first line.
        stored: the arrays.
        codes: a letter for each.
        lengths: of their sections.
        made: how the tree was made.
    """
    coding: dict[str, Any] = {
        "lengths": lengths,
        "methods": [one.method for one in stored],
        "codes": "".join(codes),
    }
    if made is not None:
        coding["made"] = to_plain(made, "made")
    deflate = zlib.compressobj(9, wbits=-15)
    return deflate.compress(first + b"\n" + _to_json(coding)) + deflate.flush()


def save(
    tree: CompressedTree,
    path: PathLike,
    *,
    container: Container | None = None,
    effort: Effort | None = None,
    made: Mapping[str, Any] | None = None,
) -> int:
    """Write a compressed tree to a file, whole or not at all, and return its size in bytes.

    Args:
        tree: see `to_bytes`.
        path: of the file.
        container: see `to_bytes`; None for that of the path: safetensors if it ends so, else jxc.
        effort: see `to_bytes`.
        made: see `to_bytes`.

    Raises:
        ImportError, TypeError, ValueError: as `to_bytes`.
        OSError: if the file cannot be written.
    """
    if container is None:
        container = "safetensors" if Path(path).suffix == ".safetensors" else "jxc"
    data = to_bytes(tree, container=container, effort=effort, made=made)
    write_bytes_atomic(path, data)
    return len(data)


def load(
    source: PathLike | bytes, *, like: Params | None = None, max_bytes: int | None = None
) -> CompressedTree:
    """Read a compressed tree from a file, jxc or safetensors.

    Its weights are those of the tree that was written, bit for bit. What the compression lost is
    not in the file, and not a number in the report.

    Args:
        source: path of the file, or its bytes.
        like: a tree of the same paths, whose structure, functions and other constants the result
            takes over; needed where the original was no tree of dicts, lists and tuples.
        max_bytes: most bytes that all arrays may have once decoded; None for 256 MiB, or 1,024
            times the file if that is more.

    Raises:
        FormatError: if the file is damaged, cut, or none of jaxcomp.
        ImportError: without `constriction`.
        OSError: if the file cannot be read.
        ValueError: if `like` does not fit, or is needed; or if the file holds differences to
            another model, or random codes.
    """
    if is_random_codes(source):
        name = "data" if isinstance(source, bytes) else repr(str(source))
        raise ValueError(
            "the file holds random codes, whose arrays are no codes of their own; its network is "
            f"`jaxcomp.decoder.read_random_codes({name}).tree()`."
        )
    with File(source, max_bytes) as file:
        if file.reference is not None:
            raise ValueError(
                "the file holds differences to another model; give it its weights by "
                "`jaxcomp.checkpoints.decompress`, or by `jaxcomp decompress --reference`."
            )
        description = file.header["tree"]
        paths = _paths(description)
        marks = {path: np.zeros(0, np.int8) for path in paths}
        try:
            tree = rebuild_tree(description, marks, like=like)
            named = leaves_by_path(tree)
        except (TypeError, OverflowError, ValueError) as error:
            if isinstance(error, ValueError) and (
                like is not None or b'["missing",' in file.identity
            ):
                raise
            raise FormatError("its tree is wrong") from error
        require(set(paths) <= set(named), "its paths are not those of its tree")
        places = dict(zip(paths, file.slots, strict=True))
        owners: dict[int, list[str]] = {}
        for path in named:
            if path in places:
                owners.setdefault(places[path][0], []).append(path)
        hashed = hashlib.sha256(file.identity)
        leaves, layouts = [], []
        for number, entry in enumerate(file.entries):
            parts = file.parts(entry)
            hashed.update(bytes_of(values_of(parts, entry.dtype, entry.shape)).data)
            leaf, layout = leaf_of(parts, entry, tuple(owners[number]))
            leaves.append(leaf)
            layouts.append(layout)
        file.check_digest(hashed.digest())
        slots = []
        for path, value in named.items():
            if path in places:
                number, view = places[path]
                slots.append(Slot(number, _view_of(view, file.entries[number])))
            else:
                slots.append(Slot(len(leaves), None))
                constant = _constant(path, value)
                leaves.append(constant[0])
                layouts.append(constant[1])
    structure = jax.tree.structure(tree)
    return CompressedTree(tuple(leaves), TreeLayout(structure, tuple(slots), tuple(layouts)))


class _Described(NamedTuple):
    """The description of a tree, the numbers of its arrays in order, and its ties."""

    description: Any
    order: list[int]
    ties: dict[str, Any]


def _described(tree: CompressedTree) -> _Described:
    layout = tree.layout
    values = [_skeleton(tree.leaves[slot.number]) for slot in layout.slots]
    skeleton = layout.structure.unflatten(values)
    description = describe_tree(skeleton)
    slots = dict(zip(leaves_by_path(skeleton), layout.slots, strict=True))
    try:
        walk(description, lambda _: None)
    except FormatError as error:
        raise ValueError(f"the tree cannot be stored: {error.what}; change it.") from error
    order: list[int] = []
    ties: dict[str, Any] = {}
    for path in _paths(description):
        slot = slots[path]
        if slot.number not in order:
            assert slot.view is None  # trees list their leaves in the order of JAX
            order.append(slot.number)
            continue
        view = slot.view
        told = None if view is None else [view.stored_order, view.order, view.shape]
        ties[path] = [order.index(slot.number), told]
    return _Described(description, order, ties)


def _skeleton(leaf: CompressedTensor | KeptLeaf) -> Any:
    """Return a constant as it is, an array as an empty one."""
    value = kept_value(leaf) if isinstance(leaf, KeptLeaf) else None
    is_constant = isinstance(leaf, KeptLeaf) and not is_array(value)
    return value if is_constant else np.zeros(0, np.int8)


def _paths(description: Any) -> list[str]:
    """Return the paths of all arrays of a described tree."""
    paths: list[str] = []
    walk(description, paths.append)
    return paths


def _to_json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _view_of(view: Any, entry: Entry) -> View | None:
    if view is None:
        return None
    stored_order, order, shape = view
    return View(tuple(stored_order), entry.shape, tuple(order), tuple(shape))


def _constant(path: str, value: Any) -> tuple[KeptLeaf, KeptLayout]:
    """Return a leaf that is in no section: of the description, or of the tree `like`."""
    held = value if is_array(value) else Constant(value)
    return KeptLeaf(held), KeptLayout((path,), "no array of the file")
