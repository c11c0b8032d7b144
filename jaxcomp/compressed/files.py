"""Compressed trees in files: written whole or not at all, read array by array.

`docs/format.md` specifies the bytes, `jaxcomp.decoder` reads them without JAX. A file holds what
is stored of every leaf, and so decodes to exactly the weights that the tree has.
"""

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxcomp.checkpoints.references import digest_of
from jaxcomp.checkpoints.safetensors import framed
from jaxcomp.checkpoints.tensors import Tensor
from jaxcomp.coding.arrays import write_parts
from jaxcomp.coding.streams import Effort, StackWriter
from jaxcomp.compressed.format import leaf_of, parts_of, plain
from jaxcomp.compressed.tensors import (
    CompressedTensor,
    KeptLayout,
    KeptLeaf,
    TensorLayout,
    kept_value,
)
from jaxcomp.compressed.tree import CompressedTree, TreeLayout
from jaxcomp.decoder import File, FormatError
from jaxcomp.decoder.arrays import Parts, bytes_of, values_of
from jaxcomp.decoder.files import HEADER_NAME, KEPT, MAGIC, Entry, walk
from jaxcomp.decoder.streams import require
from jaxcomp.long_call import LongCall
from jaxcomp.numerics.checks import is_concrete
from jaxcomp.storage import PathLike, write_bytes_atomic
from jaxcomp.storage.files import to_plain
from jaxcomp.trees.description import KEY, describe_tree, dtype_name, plain_array, rebuild_tree
from jaxcomp.trees.leaves import Constant, View, is_array
from jaxcomp.trees.paths import leaves_by_path
from jaxcomp.trees.tied import Slot
from jaxcomp.types import Params

Container = Literal["jxc", "safetensors", "bare"]

# Above this many codes an array has static codes only, unless more effort is asked for.
_BEST_BELOW = 1_000_000


class Reference(NamedTuple):
    """Another model, and the paths at which a tree holds differences to it."""

    tensors: Mapping[str, Tensor]
    paths: frozenset[str]


class _Stored(NamedTuple):
    """One stored array, ready to be written."""

    parts: Parts
    dtype: str
    shape: tuple[int, ...]
    method: str
    key: str


def to_bytes(
    tree: CompressedTree,
    *,
    container: Container = "jxc",
    effort: Effort | None = None,
    made: Mapping[str, Any] | None = None,
    reference: Reference | None = None,
    shared: "SharedLeaves | None" = None,
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
    described = _described(tree)
    if container == "bare":
        writer = StackWriter()
        for number in described.order:
            _write(writer, _stored(tree, number), effort)
        return writer.to_bytes()
    stored = [_stored(tree, number) for number in described.order]
    first = _identity(described, stored, reference)
    hashed, sections, codes = hashlib.sha256(first), [], []
    with LongCall("coding", len(stored)) as report:
        for place, (number, one) in enumerate(zip(described.order, stored, strict=True)):
            report(place, len(stored), "")
            leaf = tree.leaves[number]
            own = None if shared is None else shared.section(leaf, one, effort)
            section = own or _section(one, effort)
            codes.append(_code_of(section))
            # At once: what is to be written takes more than the bytes.
            sections.append(section.to_bytes())
            del section, own
            hashed.update(bytes_of(values_of(one.parts, one.dtype, one.shape)).data)
    block = _block(first, stored, codes, [len(section) for section in sections], made)
    block += hashed.digest()
    block += b"".join(zlib.crc32(section).to_bytes(4, "little") for section in sections)
    header = MAGIC + b"".join(n.to_bytes(4, "little") for n in (len(block), zlib.crc32(block)))
    header += block
    if container == "jxc":
        return header + b"".join(sections)
    names = [path for path in _paths(described.description) if path not in described.ties]
    if HEADER_NAME in names:
        raise ValueError(
            f"the leaf {HEADER_NAME!r} has the name of the header in a file of safetensors; rename "
            "it, or write a .jxc."
        )
    return _safetensors({HEADER_NAME: header, **dict(zip(names, sections, strict=True))})


class SharedLeaves:
    """Arrays that are kept in many trees: the code of each is found once.

    Args:
        arrays: those that may be kept; the very objects.
    """

    def __init__(self, arrays: Iterable[Any]) -> None:
        self._arrays = {id(array): array for array in arrays}
        self._sections: dict[tuple[int, Effort | None], StackWriter] = {}

    def section(
        self, leaf: CompressedTensor | KeptLeaf, one: _Stored, effort: Effort | None
    ) -> StackWriter | None:
        """Return the code of a leaf if it is one of these, else None."""
        if not isinstance(leaf, KeptLeaf) or id(leaf.value) not in self._arrays:
            return None
        key = id(leaf.value), effort
        if key not in self._sections:
            self._sections[key] = _section(one, effort)
        return self._sections[key]


class FileSizes:
    """Sizes of files (.jxc) of trees that share leaves: each leaf is coded once.

    Args:
        effort: see `to_bytes`.
    """

    def __init__(self, effort: Effort | None = None) -> None:
        self._effort: Effort | None = effort
        # The leaves too, so that no other has the number of one that is gone.
        self._known: dict[int, tuple[Any, _Stored, str, int]] = {}

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
    ) -> tuple["_Stored", str, int]:
        if leaf is None:
            assert isinstance(layout, TensorLayout)
            none = Parts(np.zeros(0, np.uint8))
            brief = _Stored(none, layout.dtype.name, layout.shape, layout.method.name, "")
            return brief, "t", 0
        if id(leaf) not in self._known:
            one = _stored_leaf(leaf, layout)
            section = _section(one, self._effort)
            # What was coded is not needed any more, only what the header says of it.
            brief = one._replace(parts=Parts(np.zeros(0, np.uint8)))
            self._known[id(leaf)] = leaf, brief, _code_of(section), section.num_bytes()
        return self._known[id(leaf)][1:]


def _identity(
    described: "_Described", stored: list[_Stored], reference: Reference | None = None
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
    stored: list[_Stored],
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


def _section(one: _Stored, effort: Effort | None) -> StackWriter:
    writer = StackWriter()
    _write(writer, one, effort)
    return writer


def _code_of(section: StackWriter) -> str:
    """Return the letter of the code of most symbols."""
    return max(section.bits_by_code or "p", key=lambda code: section.bits_by_code.get(code, 0.0))


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
            another model.
    """
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


def _stored(tree: CompressedTree, number: int) -> _Stored:
    return _stored_leaf(tree.leaves[number], tree.layout.leaves[number])


def _stored_leaf(leaf: CompressedTensor | KeptLeaf, layout: TensorLayout | KeptLayout) -> _Stored:
    if isinstance(leaf, CompressedTensor) and isinstance(layout, TensorLayout):
        parts = parts_of(leaf, layout)
        return _Stored(parts, layout.dtype.name, layout.shape, layout.method.name, "")
    assert isinstance(leaf, KeptLeaf)
    value = kept_value(leaf)
    key = dtype_name(value).removeprefix(KEY) if dtype_name(value).startswith(KEY) else ""
    values, name = plain(plain_array(value) if key else value)
    return _Stored(Parts(values), name, values.shape, KEPT, key)


def _write(writer: StackWriter, one: _Stored, effort: Effort | None) -> None:
    if effort is None:
        effort = "best" if one.parts.codes.size < _BEST_BELOW else "fast"
    write_parts(writer, one.parts, one.dtype, one.shape, effort)


def _to_json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _safetensors(tensors: Mapping[str, bytes]) -> bytes:
    """Return a file of safetensors with tensors of bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "jaxcomp 1"}}
    start = 0
    for name, data in tensors.items():
        offsets = [start, start + len(data)]
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": offsets}
        start += len(data)
    return framed(header) + b"".join(tensors.values())


def _view_of(view: Any, entry: Entry) -> View | None:
    if view is None:
        return None
    stored_order, order, shape = view
    return View(tuple(stored_order), entry.shape, tuple(order), tuple(shape))


def _constant(path: str, value: Any) -> tuple[KeptLeaf, KeptLayout]:
    """Return a leaf that is in no section: of the description, or of the tree `like`."""
    held = value if is_array(value) else Constant(value)
    return KeptLeaf(held), KeptLayout((path,), "no array of the file")
