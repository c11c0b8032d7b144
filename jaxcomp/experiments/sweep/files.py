"""Compressed networks of a sweep as files: written, decoded again, compared bit for bit, counted.

A variant takes as many bytes as its file has (`.jxc`: names, shapes, checks, and all arrays of the
network, biases too). What the file decodes to is compared with the network bit for bit, so that
the network that is evaluated is that of the file. The codes are the quick ones: the best would take
longer than everything else in a sweep.
"""

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from jaxcomp.compressed.files import to_bytes
from jaxcomp.compressed.format import plain
from jaxcomp.compressed.sections import SharedLeaves
from jaxcomp.compressed.tensors import CompressedTensor, KeptLayout, KeptLeaf, TensorLayout
from jaxcomp.compressed.tree import CompressedTree, TreeLayout
from jaxcomp.decoder import File
from jaxcomp.decoder.arrays import bytes_of
from jaxcomp.trees.description import KEY, dtype_name, plain_array
from jaxcomp.trees.paths import leaves_by_path
from jaxcomp.trees.tied import Slot
from jaxcomp.types import Params

Stored = tuple[CompressedTensor, TensorLayout]
"""What is stored of a layer, and what it was."""

# A limit is for files of others.
_NO_LIMIT = 1 << 62


def can_be_written() -> bool:
    """Tell whether files can be made: whether `constriction` is installed."""
    return importlib.util.find_spec("constriction") is not None


class SharedFiles(SharedLeaves):
    """Arrays that are kept in the files of many variants: coded, and decoded, once.

    Args:
        arrays: those that may be kept; the very objects.
    """

    def __init__(self, arrays: Iterable[Any]) -> None:
        super().__init__(arrays)
        self._decoded: set[tuple[int, str, bytes]] = set()

    def is_decoded(self, leaf: Any, dtype: str, section: bytes) -> bool:
        """Tell whether an array was found in the same section of a file before."""
        return (id(leaf), dtype, section) in self._decoded

    def was_decoded(self, leaf: Any, dtype: str, section: bytes) -> None:
        """Take down that an array was found in a section, if it is one of these."""
        if self.has(leaf):
            self._decoded.add((id(leaf), dtype, section))


def file_of(
    params: Params,
    stored: Mapping[str, Stored],
    stacks: Sequence[tuple[str, int]] = (),
    shared: SharedFiles | None = None,
) -> bytes:
    """Return the file of a compressed network, after a look at what it decodes to.

    Args:
        params: all arrays of the network, as it is evaluated.
        stored: what is stored of its compressed layers, by name.
        stacks: leaves that are stacks of layers, and the axis of the layers; in the file they are
            lists of layers.
        shared: arrays that are kept in the files of many variants.

    Raises:
        RuntimeError: if the file decodes to another network.
        TypeError: if an array has a dtype that files do not hold.
    """
    values = _apart(params, stacks)
    data = to_bytes(_tree(params, values, stored, stacks), effort="fast", shared=shared)
    shared = SharedFiles(()) if shared is None else shared
    expected = {path: leaf for parts in values.values() for path, leaf in parts.items()}
    with File(data, _NO_LIMIT) as file:
        is_same = {entry.path for entry in file.entries} == expected.keys()
        for entry in file.entries if is_same else ():
            leaf, section = expected[entry.path], data[entry.offset : entry.offset + entry.length]
            if shared.is_decoded(leaf, entry.dtype, section):
                continue
            if not np.array_equal(bytes_of(file.array(entry)), _bits(leaf)):
                is_same = False
                break
            shared.was_decoded(leaf, entry.dtype, section)
    if not is_same:
        raise RuntimeError("the file of a variant does not decode to its network.")
    return data


def num_bytes(params: Params) -> int:
    """Return the bytes of all arrays of a network, as they are in memory."""
    return sum(_bits(leaf).size for leaf in jax.tree.leaves(params))


def _apart(params: Params, stacks: Sequence[tuple[str, int]]) -> dict[str, dict[str, Any]]:
    """Return the arrays of every leaf by their paths in the file: layers of a stack are several."""
    axes = dict(stacks)
    found: dict[str, dict[str, Any]] = {}
    for path, leaf in leaves_by_path(params).items():
        if path in axes:
            layers = jnp.moveaxis(jnp.asarray(leaf), axes[path], 0)
            found[path] = {f"{path}/{number}": layer for number, layer in enumerate(layers)}
        else:
            found[path] = {path: leaf}
    return found


def _tree(
    params: Params,
    values: Mapping[str, Mapping[str, Any]],
    stored: Mapping[str, Stored],
    stacks: Sequence[tuple[str, int]],
) -> CompressedTree:
    is_stack = {path for path, _ in stacks}
    leaves: list[CompressedTensor | KeptLeaf] = []
    layouts: list[TensorLayout | KeptLayout] = []
    nodes: list[Any] = []
    for path, parts in values.items():
        for number, (place, value) in enumerate(parts.items()):
            name = f"{path}[{number}]" if path in is_stack else path
            leaf, layout = stored.get(name, (KeptLeaf(value), KeptLayout((place,), "no layer")))
            leaves.append(leaf)
            layouts.append(layout)
        nodes.append([0] * len(parts) if path in is_stack else 0)
    structure = jax.tree.structure(jax.tree.structure(params).unflatten(nodes))
    slots = tuple(Slot(number, None) for number in range(len(leaves)))
    return CompressedTree(tuple(leaves), TreeLayout(structure, slots, tuple(layouts)))


def _bits(leaf: Any) -> UInt8[np.ndarray, " bytes"]:
    """Return an array as the bytes that the decoder gives for it."""
    value = plain_array(leaf) if dtype_name(leaf).startswith(KEY) else leaf
    return bytes_of(plain(value)[0])
