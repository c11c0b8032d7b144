"""Sections of files: what is stored of each array, coded on its own.

A section lies in memory or elsewhere (`Sections`), so that a file is put together without holding
all of it.
"""

import zlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

from jaxcomp.coding.arrays import write_parts
from jaxcomp.coding.streams import Effort, StackWriter
from jaxcomp.compressed.format import parts_of, plain
from jaxcomp.compressed.tensors import (
    CompressedTensor,
    KeptLayout,
    KeptLeaf,
    TensorLayout,
    kept_value,
)
from jaxcomp.decoder.arrays import Parts
from jaxcomp.decoder.files import KEPT
from jaxcomp.trees.description import KEY, dtype_name, plain_array

# Above this many codes an array has static codes only, unless more effort is asked for.
_BEST_BELOW = 1_000_000


class StoredArray(NamedTuple):
    """What a header says of a stored array; `key` is the implementation of random keys."""

    dtype: str
    shape: tuple[int, ...]
    method: str
    key: str


class Section(NamedTuple):
    """One array in codes.

    Attributes:
        code: the letter of the code of most symbols.
        num_bytes: of the section.
        checksum: CRC-32 of its bytes.
        read: returns the bytes.
    """

    code: str
    num_bytes: int
    checksum: int
    read: Callable[[], bytes]


class Sections(Protocol):
    """Where the codes of arrays lie, so that each is found once."""

    def section(
        self,
        leaf: CompressedTensor | KeptLeaf,
        layout: TensorLayout | KeptLayout,
        effort: Effort,
        make: Callable[[], tuple[str, bytes]],
    ) -> Section:
        """Return the section of a leaf.

        Args:
            leaf: the leaf.
            layout: of the leaf.
            effort: with which it is coded.
            make: returns its letter and its bytes, where it is not there yet.
        """
        ...

    def release(self) -> None:
        """Give back the memory of leaves that lie in files."""
        ...


class SharedLeaves:
    """Arrays that are kept in many trees: the code of each is found once.

    Args:
        arrays: those that may be kept; the very objects.
    """

    def __init__(self, arrays: Iterable[Any]) -> None:
        self._arrays = {id(array): array for array in arrays}
        self._sections: dict[tuple[int, Effort], Section] = {}

    def has(self, array: Any) -> bool:
        """Tell whether an array is one of these."""
        return id(array) in self._arrays

    def section(
        self,
        leaf: CompressedTensor | KeptLeaf,
        layout: TensorLayout | KeptLayout,
        effort: Effort,
        make: Callable[[], tuple[str, bytes]],
    ) -> Section:
        """Return the code of a leaf, found before if it is one of these."""
        del layout
        if not isinstance(leaf, KeptLeaf) or not self.has(leaf.value):
            return held(*make())
        key = id(leaf.value), effort
        if key not in self._sections:
            self._sections[key] = held(*make())
        return self._sections[key]

    def release(self) -> None:
        """Do nothing: the arrays are the caller's."""


def held(code: str, data: bytes) -> Section:
    """Return a section that lies in memory."""
    return Section(code, len(data), zlib.crc32(data), lambda: data)


def stored_array(
    leaf: CompressedTensor | KeptLeaf, layout: TensorLayout | KeptLayout
) -> StoredArray:
    """Return what a header says of a leaf."""
    if isinstance(leaf, CompressedTensor) and isinstance(layout, TensorLayout):
        return StoredArray(layout.dtype.name, layout.shape, layout.method.name, "")
    values, name, key = _kept(leaf)
    return StoredArray(name, values.shape, KEPT, key)


def stored_parts(leaf: CompressedTensor | KeptLeaf, layout: TensorLayout | KeptLayout) -> Parts:
    """Return what is stored of a leaf, ready to be written."""
    if isinstance(leaf, CompressedTensor) and isinstance(layout, TensorLayout):
        return parts_of(leaf, layout)
    return Parts(_kept(leaf)[0])


def _kept(leaf: CompressedTensor | KeptLeaf) -> tuple[Any, str, str]:
    """Return an array that is kept in a dtype that NumPy has, its own one, and the kind of keys."""
    assert isinstance(leaf, KeptLeaf)
    value = kept_value(leaf)
    key = dtype_name(value).removeprefix(KEY) if dtype_name(value).startswith(KEY) else ""
    return *plain(plain_array(value) if key else value), key


def section_of(
    leaf: CompressedTensor | KeptLeaf,
    layout: TensorLayout | KeptLayout,
    effort: Effort | None,
    sections: Sections | None,
) -> Section:
    """Return the section of a leaf, from where it lies or made.

    Args:
        leaf: the leaf.
        layout: of the leaf.
        effort: see `jaxcomp.compressed.files.to_bytes`.
        sections: where sections lie; None to hold it in memory.
    """

    def make() -> tuple[str, bytes]:
        writer = writer_of(leaf, layout, effort)
        return code_of(writer), writer.to_bytes()

    if sections is None:
        return held(*make())
    values = leaf.codes if isinstance(leaf, CompressedTensor) else _kept(leaf)[0]
    return sections.section(leaf, layout, _effort(values.size, effort), make)


def writer_of(
    leaf: CompressedTensor | KeptLeaf, layout: TensorLayout | KeptLayout, effort: Effort | None
) -> StackWriter:
    """Return the code of a leaf, not yet as bytes."""
    writer = StackWriter()
    write_leaf(writer, stored_parts(leaf, layout), stored_array(leaf, layout), effort)
    return writer


def write_leaf(
    writer: StackWriter, parts: Parts, stored: StoredArray, effort: Effort | None
) -> None:
    """Write what is stored of a leaf."""
    write_parts(writer, parts, stored.dtype, stored.shape, _effort(parts.codes.size, effort))


def _effort(num_codes: int, effort: Effort | None) -> Effort:
    if effort is None:
        return "best" if num_codes < _BEST_BELOW else "fast"
    return effort


def code_of(section: StackWriter) -> str:
    """Return the letter of the code of most symbols."""
    return max(section.bits_by_code or "p", key=lambda code: section.bits_by_code.get(code, 0.0))
