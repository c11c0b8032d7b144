"""Leaves of every kind as arrays that JAX can hold, and the way back.

Trees come from many libraries: NumPy arrays of another byte order or of 64 bits, PyTorch's tensors,
views of one buffer, and leaves that are no arrays at all (functions and numbers among the fields of
a module). Arrays become arrays that JAX takes; the rest are *constants*, which never enter a
compiled function.
"""

import sys
import warnings
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Shaped

from jaxcomp.checkpoints.pytorch import array_of_tensor
from jaxcomp.trees.paths import leaves_by_path, replace_leaves, shorten
from jaxcomp.types import AnyArray, Params


def readable_leaves(params: Params, *, may_be_shared: bool = False) -> dict[str, Any]:
    """Map every leaf's path to the leaf in a form that JAX reads.

    PyTorch's tensors become NumPy arrays of the same memory, NumPy arrays of another byte order
    ones of the machine's. Everything else is the very object.

    Args:
        params: the tree.
        may_be_shared: whether devices of other processes may hold parts of arrays.

    Raises:
        TypeError: for a masked array, a module of PyTorch, or a sparse tensor.
        ValueError: if two leaves have the same path, or other processes hold a part of one.
    """
    named = leaves_by_path(params)
    if not may_be_shared:
        for path, leaf in named.items():
            check_is_here(path, leaf)
    return {path: _readable(path, leaf) for path, leaf in named.items()}


def is_array(leaf: Any) -> bool:
    """Tell whether a leaf can be an argument of a compiled function, as it is."""
    if isinstance(leaf, jax.Array):
        return True
    # Fields, objects, text and dates mean nothing to JAX; its own short dtypes are of kind V.
    return isinstance(leaf, np.ndarray) and (
        leaf.dtype.kind in "biufc" or (leaf.dtype.kind == "V" and leaf.dtype.fields is None)
    )


def is_argument(leaf: Any) -> bool:
    """Tell whether a compiled function takes a leaf: an array, its shape and dtype, or a number."""
    is_number = isinstance(leaf, bool | int | float | complex | np.bool_ | np.number)
    return is_number or isinstance(leaf, jax.ShapeDtypeStruct) or is_array(leaf)


def is_wide(dtype: Any) -> bool:
    """Tell whether JAX would now cut floating-point numbers of a dtype of NumPy."""
    dtype = np.dtype(dtype)
    return dtype.kind == "f" and dtype.itemsize > jax.dtypes.canonicalize_dtype(np.float64).itemsize


def warn_of_wide(leaves: Mapping[str, Any]) -> None:
    """Say once which leaves are computed in fewer bits than they have, to the package's caller."""
    arrays = {path: leaf for path, leaf in leaves.items() if isinstance(leaf, np.ndarray)}
    wide = [path for path, leaf in arrays.items() if is_wide(leaf.dtype)]
    if wide:
        warnings.warn(
            f"{len(wide)} leaves are float64 while JAX computes in 32 bits ({shorten(wide, 4)}): "
            "they are computed in float32 and given back as float64; set jax_enable_x64 to compute "
            "in float64.",
            UserWarning,
            stacklevel=_levels_to_caller(),
        )


def _levels_to_caller() -> int:
    """How far up the stack the first frame outside this package is, for the function that warns."""
    frame, levels = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("jaxcomp."):
        frame, levels = frame.f_back, levels + 1
    return levels


@jax.tree_util.register_static
class Constant:
    """A leaf that is no array: equal to another if the values are, or are one object."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Constant):
            return False
        if self.value is other.value:
            return True
        both = isinstance(self.value, Hashable) and isinstance(other.value, Hashable)
        # The types too: 1, 1.0 and True are equal.
        return both and type(self.value) is type(other.value) and bool(self.value == other.value)

    def __hash__(self) -> int:
        try:
            return hash(self.value)
        except TypeError:
            return id(self.value)

    def __repr__(self) -> str:
        return f"Constant({self.value!r})"


@dataclass(frozen=True)
class Frame:
    """A tree without its arrays: the constants among its leaves, in their places."""

    structure: Any  # a PyTreeDef of all leaves
    constants: tuple[Constant | None, ...]

    @property
    def is_empty(self) -> bool:
        """Whether all leaves are arrays."""
        return all(constant is None for constant in self.constants)

    def fill(self, arrays: Params) -> Params:
        """Put the constants back beside the arrays that `split_constants` returned."""
        leaves = iter(jax.tree.leaves(arrays))
        return self.structure.unflatten(
            [next(leaves) if held is None else held.value for held in self.constants]
        )


def split_constants(
    params: Params, is_kept: Callable[[Any], bool] = is_array
) -> tuple[Params, Frame]:
    """Separate the arrays of a tree from all other leaves.

    Args:
        params: any pytree.
        is_kept: which leaves are no constants.

    Returns:
        The tree with None in place of every constant, so that paths stay as they were, and the
        frame that puts the constants back.
    """
    leaves, structure = jax.tree.flatten(params)
    constants = tuple(None if is_kept(leaf) else Constant(leaf) for leaf in leaves)
    frame = Frame(structure, constants)
    if frame.is_empty:
        return params, frame
    return structure.unflatten([leaf if is_kept(leaf) else None for leaf in leaves]), frame


@dataclass(frozen=True)
class Framed:
    """A function of a whole tree as one of its arrays alone; equal for equal functions."""

    function: Callable[..., Any]
    frame: Frame

    def __call__(self, arrays: Params, *arguments: Any) -> Any:
        """Call the function on the whole tree."""
        return self.function(self.frame.fill(arrays), *arguments)


class View(NamedTuple):
    """One array as another view of the same memory: axes in another order, cut elsewhere.

    Attributes:
        stored_order: axes of the stored array, from the slowest in memory to the fastest.
        stored_shape: shape of the stored array.
        order: axes of the view, likewise.
        shape: shape of the view.
    """

    stored_order: tuple[int, ...]
    stored_shape: tuple[int, ...]
    order: tuple[int, ...]
    shape: tuple[int, ...]

    def apply(self, stored: Shaped[AnyArray, "..."]) -> Shaped[AnyArray, "..."]:
        """Return the view of what is stored."""
        return _reordered(stored, self.stored_order, self.order, self.shape)

    def undo(self, view: Shaped[AnyArray, "..."]) -> Shaped[AnyArray, "..."]:
        """Return what is stored from the view."""
        return _reordered(view, self.order, self.stored_order, self.stored_shape)


class Memory(NamedTuple):
    """Where an array lies: equal keys are the same numbers, in some order of the axes."""

    key: Hashable
    order: tuple[int, ...]


def memory_of(leaf: Any) -> Memory | None:
    """Return where an array lies in memory; None for what is no array.

    Arrays of JAX are told by the object. Views of NumPy that cover the same memory are the same
    array: transposed, reshaped, or made twice. Views that overlap in part are different ones.
    """
    if isinstance(leaf, jax.Array):
        return Memory(("object", id(leaf)), tuple(range(leaf.ndim)))
    if not isinstance(leaf, np.ndarray):
        return None
    order = tuple(sorted(range(leaf.ndim), key=lambda axis: -leaf.strides[axis]))
    place = (leaf.__array_interface__["data"][0], leaf.dtype.str)
    long = [axis for axis in order if leaf.shape[axis] > 1]
    if leaf.size == 0 or any(leaf.strides[axis] <= 0 for axis in long):
        return Memory(("object", id(leaf)), tuple(range(leaf.ndim)))
    runs: list[tuple[int, int]] = []
    for axis in long:
        size, stride = leaf.shape[axis], leaf.strides[axis]
        if runs and runs[-1][1] == size * stride:
            runs[-1] = (runs[-1][0] * size, stride)
        else:
            runs.append((size, stride))
    return Memory((*place, *runs), order)


def view_between(
    stored: Shaped[AnyArray, "..."],
    stored_order: tuple[int, ...],
    leaf: Shaped[AnyArray, "..."],
    order: tuple[int, ...],
) -> View | None:
    """Return how a leaf is seen in a stored array of the same memory; None if it is as stored."""
    if stored.shape == leaf.shape and stored_order == order:
        return None
    return View(stored_order, tuple(stored.shape), order, tuple(leaf.shape))


def _reordered(
    values: Shaped[AnyArray, "..."],
    order: tuple[int, ...],
    new_order: tuple[int, ...],
    new_shape: tuple[int, ...],
) -> Shaped[AnyArray, "..."]:
    in_memory = values.transpose(order).reshape([new_shape[axis] for axis in new_order])
    return in_memory.transpose(tuple(np.argsort(new_order).tolist()))


def with_readable_leaves(params: Params, *, may_be_shared: bool = False) -> Params:
    """Return the tree with its leaves in a form that JAX reads; see `readable_leaves`."""
    before = leaves_by_path(params)
    changed = {
        path: readable
        for path, readable in readable_leaves(params, may_be_shared=may_be_shared).items()
        if readable is not before[path]
    }
    return replace_leaves(params, changed) if changed else params


def check_is_here(path: str, leaf: Any, hint: str = "") -> None:
    """Refuse an array of which this process holds a part alone.

    Args:
        path: of the leaf.
        leaf: any.
        hint: what else may be done about it, behind a comma.

    Raises:
        ValueError: if devices of other processes hold others.
    """
    is_known = isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer)
    if is_known and not leaf.is_fully_addressable and not leaf.is_fully_replicated:
        raise ValueError(
            f"the leaf {path!r} is spread over devices of several processes, of which this one "
            "reads only its own; gather it first (jax.experimental.multihost_utils."
            f"process_allgather), or compress a checkpoint of it in one process{hint}."
        )


def _readable(path: str, leaf: Any) -> Any:
    torch: Any = sys.modules.get("torch")
    if torch is not None and isinstance(leaf, torch.Tensor):
        return array_of_tensor(path, leaf, torch)
    if torch is not None and isinstance(leaf, torch.nn.Module):
        raise TypeError(
            f"{path or 'params'} is a module of PyTorch, {type(leaf).__name__}, which is no tree "
            "of arrays; pass its state_dict()."
        )
    if isinstance(leaf, np.ma.MaskedArray):
        raise TypeError(
            f"the leaf {path!r} is a masked array, whose masked entries have no value; fill them "
            "first, such as by leaf.filled(0)."
        )
    if isinstance(leaf, np.ndarray) and not leaf.dtype.isnative:
        return leaf.astype(leaf.dtype.newbyteorder("="))
    return leaf
