"""Hidden units in the order that takes the fewest bytes.

The units of a hidden layer may stand in any order, as long as all arrays that have an entry for
each of them are in the same one. Codes by contexts look at neighbours, and units that weigh alike
have codes alike.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from jaxcomp.compressed.files import FileSizes
from jaxcomp.compressed.tensors import CompressedTensor, KeptLayout, KeptLeaf, TensorLayout, decode
from jaxcomp.compressed.tree import CompressedTree
from jaxcomp.numerics.host import placed_like, view
from jaxcomp.numerics.transformations import all_transfers
from jaxcomp.trees.leaves import Constant
from jaxcomp.trees.paths import shorten

Units = Sequence[tuple[str, int]]
"""Of a hidden layer: paths of arrays, and the axis of each along which its units lie. The last is
what reads them."""


@all_transfers
def sort_units(tree: CompressedTree, layers: Sequence[Units]) -> CompressedTree:
    """Sort the hidden units of layers where that makes the file shorter.

    Units go by the norm of the weights that read them, falling. The network computes what it did,
    up to the order in which sums are formed; its hidden layers are in another order.

    Args:
        tree: known values.
        layers: for each hidden layer the arrays that have its units, such as `[("fc1.weight", 0),
            ("fc1.bias", 0), ("fc2.weight", 1)]`: all of them, or the network is another one.

    Returns:
        The tree with the units of those layers sorted that are shorter so, by codes with contexts.

    Raises:
        ValueError: if there is no such array or axis, numbers of units differ, or an array cannot
            be sorted: vectors of weights, layers of a stack, tied arrays, or groups of weights with
            a scale each across the units.
    """
    sizes = FileSizes("best")
    leaves, layouts = list(tree.leaves), tree.layout.leaves
    for units in layers:
        numbers = [_place(tree, path) for path, _ in units]
        counts = {
            _length(layouts[n], leaves[n], *own) for n, own in zip(numbers, units, strict=True)
        }
        if len(counts) != 1:
            raise ValueError(
                f"the arrays of a layer must have as many units each, got {sorted(counts)} in "
                f"{shorten(path for path, _ in units)}."
            )
        order = _order(leaves[numbers[-1]], layouts[numbers[-1]], units[-1][1])
        moved = [
            _moved(leaves[number], layouts[number], axis, order)
            for number, (_, axis) in zip(numbers, units, strict=True)
        ]
        before = sum(sizes.of_leaf(leaves[number], layouts[number]) for number in numbers)
        after = sum(sizes.of_leaf(leaf, layouts[n]) for n, leaf in zip(numbers, moved, strict=True))
        if after < before:
            for number, leaf in zip(numbers, moved, strict=True):
                leaves[number] = leaf
    return CompressedTree(tuple(leaves), tree.layout)


def _place(tree: CompressedTree, path: str) -> int:
    """Return the number of the leaf at a path that stands nowhere else."""
    for number, layout in enumerate(tree.layout.leaves):
        if path in layout.paths:
            if len(layout.paths) > 1:
                raise ValueError(
                    f"the array {path!r} is tied to others, whose order is theirs; leave its layer "
                    "out."
                )
            return number
    paths = [path for layout in tree.layout.leaves for path in layout.paths]
    raise ValueError(f"there is no array {path!r}; arrays are {shorten(paths)}.")


def _length(
    layout: TensorLayout | KeptLayout, leaf: CompressedTensor | KeptLeaf, path: str, axis: int
) -> int:
    shape = layout.shape if isinstance(layout, TensorLayout) else np.shape(_kept(leaf, path))
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"{path!r} has the shape {shape} and no axis {axis}.")
    return shape[axis]


def _kept(leaf: Any, path: str) -> Any:
    if isinstance(leaf.value, Constant):
        raise ValueError(f"{path!r} is no array; leave it out.")
    return leaf.value


def _order(leaf: Any, layout: Any, axis: int) -> Int[np.ndarray, " units"]:
    values = decode(leaf, layout) if isinstance(leaf, CompressedTensor) else leaf.value
    squares = np.square(np.moveaxis(np.asarray(values, np.float64), axis, 0))
    return np.argsort(-squares.reshape(len(squares), -1).sum(axis=1), kind="stable")


def _moved(
    leaf: CompressedTensor | KeptLeaf,
    layout: TensorLayout | KeptLayout,
    axis: int,
    order: Int[np.ndarray, " units"],
) -> CompressedTensor | KeptLeaf:
    """Return a leaf with its units in an order."""
    if isinstance(leaf, KeptLeaf):
        return KeptLeaf(_taken(leaf.value, order, axis))
    assert isinstance(layout, TensorLayout)
    if layout.is_stack or leaf.codes.shape != layout.shape:
        raise ValueError(
            f"{layout.paths[0]!r} has layers of a stack, or codes of several weights each; leave "
            "its layer out."
        )
    scales, rows = leaf.scales, layout.method.rows
    if scales is not None and rows is not None:
        has_channels = rows.scale == "channel" and len(layout.shape) > 1
        axis %= len(layout.shape)
        if has_channels and rows.channel_axis % len(layout.shape) == axis:
            groups = np.reshape(view(scales), (len(order), -1))
            scales = placed_like(np.reshape(groups[order], scales.shape), scales)
        elif rows.group_size is not None:
            raise ValueError(
                f"groups of weights of {layout.paths[0]!r} share a scale across its units; leave "
                "its layer out."
            )
    return leaf._replace(codes=_taken(leaf.codes, order, axis), scales=scales)


def _taken(values: Any, order: Int[np.ndarray, " units"], axis: int) -> Any:
    # Codes of two and four bits have no kernel of their own everywhere.
    taken = np.take(np.asarray(values), order, axis)
    return jax.device_put(taken, values.sharding) if isinstance(values, jax.Array) else taken
