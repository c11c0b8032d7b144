"""Compressed trees as quantized arrays of qwix, which runs on their integers.

A `qwix.QArray` is an array of integers and an array of scales of as many axes; each axis of the
scales divides that of the integers.

Axes: `K` codes, `R` rows with a scale.
"""

import importlib
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxcomp.compressed.tensors import CompressedTensor, KeptLeaf, TensorLayout, decode, kept_value
from jaxcomp.compressed.tree import CompressedTree
from jaxcomp.numerics.transformations import all_transfers
from jaxcomp.quantizers.scales import Rows
from jaxcomp.trees.leaves import is_wide
from jaxcomp.types import Params

# Entries of a codebook lie on a grid if they are off by no more than rounding.
_ROUNDING = 4 * float(np.finfo(np.float32).eps)
_INT4, _INT8 = (-8, 7), (-128, 127)


@all_transfers
def to_qwix(tree: CompressedTree) -> Params:
    """Return the weights of a compressed tree, those on a grid as arrays of integers of qwix.

    A tensor becomes a `qwix.QArray` if its weights are whole numbers times a scale, the numbers fit
    8 bits, and the scales are laid out as qwix has them: after `RoundToNearest` always, unless
    groups cross the rows of a tensor. The integers are int4 if they fit, else int8; the scales have
    the dtype of the weights, as qwix makes them, so that bfloat16 weights are rounded once more.
    Everything else comes as `CompressedTree.params` gives it.

    For functions that call `qwix.dot_general`, `qwix.einsum` and the like with their weights. For a
    module of Flax NNX made by `qwix.quantize_model` put `{"array": {"qvalue": one.qvalue, "scale":
    one.scale}}` in place of every such array, and the pure dict of that through
    `qwix.process_prequantized_params` into `nnx.update`.

    Args:
        tree: known values.

    Raises:
        ImportError: without `qwix` (install `jaxcomp[qwix]`).
        ValueError: if no tensor is on such a grid.
    """
    try:
        qwix = importlib.import_module("qwix")
    except ImportError as error:
        raise ImportError(
            "Arrays of integers need qwix, which is not installed; install jaxcomp[qwix]."
        ) from error
    viewed = {slot.number for slot in tree.layout.slots if slot.view is not None}
    values: list[Any] = []
    found = 0
    for number, (leaf, layout) in enumerate(zip(tree.leaves, tree.layout.leaves, strict=True)):
        if isinstance(leaf, KeptLeaf):
            values.append(kept_value(leaf))
            continue
        assert isinstance(layout, TensorLayout)
        # What is seen in another order elsewhere is no array of one layout.
        grid = None if number in viewed else _grid_of(leaf, layout)
        values.append(decode(leaf, layout) if grid is None else qwix.QArray(*grid))
        found += grid is not None
    if not found:
        raise ValueError(
            "no tensor is a grid of integers of 8 bits or fewer times scales; compress with "
            "RoundToNearest, or use params()."
        )
    return tree.layout.structure.unflatten(
        [
            values[slot.number] if slot.view is None else slot.view.apply(values[slot.number])
            for slot in tree.layout.slots
        ]
    )


class _Grid(NamedTuple):
    """A tensor as integers and scales, both with all of its axes."""

    integers: Any
    scales: Any


def _grid_of(leaf: CompressedTensor, layout: TensorLayout) -> _Grid | None:
    """Return a tensor as integers and scales; None if it is no such grid."""
    is_plain = not layout.method.keeps_weights and leaf.codes.shape == layout.shape
    if not is_plain or is_wide(layout.dtype):
        return None
    layers = layout.shape[0] if layout.is_stack else 1
    own = layout.shape[1:] if layout.is_stack else layout.shape
    codes = np.asarray(leaf.codes).astype(np.int32).reshape(layers, *own)
    scales = np.ones((layers, *[1] * len(own)), np.float32)
    if leaf.scales is not None:
        rows = layout.method.rows
        assert rows is not None
        shape = _scale_shape(rows, own)
        if shape is None:
            return None
        scales = np.stack(
            [_laid_out(part, rows, shape) for part in np.asarray(leaf.scales).reshape(layers, -1)]
        )
    if leaf.codebook is not None:
        codebooks = np.asarray(leaf.codebook, np.float64).reshape(layers, -1)
        grids = [_integers(*part) for part in zip(codebooks, codes, strict=True)]
        if any(grid is None for grid in grids):
            return None
        starts, steps = (np.asarray(part) for part in zip(*grids, strict=True))  # pyright: ignore
        codes = codes + starts.reshape(layers, *[1] * len(own))
        scales = scales * steps.reshape(layers, *[1] * len(own))
    lowest, highest = int(codes.min(initial=0)), int(codes.max(initial=0))
    if lowest < _INT8[0] or highest > _INT8[1]:
        return None
    is_short = lowest >= _INT4[0] and highest <= _INT4[1]
    integers = codes.astype(np.int8).astype(jnp.int4 if is_short else jnp.int8)
    scales = scales.astype(np.float32).astype(layout.dtype)
    if not layout.is_stack:
        integers, scales = integers.reshape(own), scales.reshape(scales.shape[1:])
    return jax.device_put(_Grid(integers, scales))


def _integers(
    codebook: Float[np.ndarray, " codes"], codes: Int[np.ndarray, "..."]
) -> tuple[int, float] | None:
    """Return a and s of a codebook whose entries in use are `s (a + k)`; None if they are not."""
    used = np.unique(codes)
    if not len(used):
        return 0, 1.0
    values, largest = codebook[used], float(np.abs(codebook[used]).max())
    if len(used) > 1:
        step = float((values[-1] - values[0]) / (used[-1] - used[0]))
    else:
        step = largest or 1.0
    if not step or not math.isfinite(step):
        return None
    start = round(float(values[0] / step)) - int(used[0])
    is_near = np.abs(values - step * (start + used)) <= _ROUNDING * largest
    return (start, step) if is_near.all() else None


def _scale_shape(rows: Rows, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the axes of scales; None where a group is no block of neighbours along one axis."""
    has_channels = rows.scale == "channel" and len(shape) >= 2
    axis = rows.channel_axis % len(shape) if has_channels else None
    others = [size for place, size in enumerate(shape) if place != axis]
    found = [1] * len(others)
    left = rows.group_size
    if left is not None and left < math.prod(others):
        for place in reversed(range(len(others))):
            if left % others[place] == 0:
                left //= others[place]
            elif others[place] % left == 0:
                found[place], left = others[place] // left, 1
                found[:place] = others[:place]
                break
            else:
                return None
        if left != 1:
            return None
    if axis is not None:
        found.insert(axis, shape[axis])
    return tuple(found)


def _laid_out(
    scales: Float[np.ndarray, " rows"], rows: Rows, shape: tuple[int, ...]
) -> Float[np.ndarray, "..."]:
    """Return scales, those of the first channel first, as an array of a shape."""
    if rows.scale != "channel" or len(shape) < 2:
        return scales.reshape(shape)
    axis = rows.channel_axis % len(shape)
    others = shape[:axis] + shape[axis + 1 :]
    return np.moveaxis(scales.reshape(shape[axis], *others), 0, axis)
