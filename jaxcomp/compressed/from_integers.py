"""A compressed tree of integers that training has found already: nothing is left to choose."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from jaxcomp.compressed.report import Measures
from jaxcomp.compressed.selected import select_leaves
from jaxcomp.compressed.tensors import CompressedTensor
from jaxcomp.compressed.tree import CompressedTree
from jaxcomp.curvature import CurvaturePolicy
from jaxcomp.numerics.integers import largest_magnitude
from jaxcomp.numerics.transformations import all_transfers
from jaxcomp.quantizers.methods import RoundToNearest
from jaxcomp.trees.paths import leaves_by_path, replace_leaves, shorten
from jaxcomp.types import AnyArray, Params

_LARGEST = 127


@all_transfers
def from_integers(
    params: Params,
    integers: Mapping[str, Int[AnyArray, "..."]],
    steps: Mapping[str, Float[AnyArray, ""] | float],
) -> CompressedTree:
    """Return a compressed tree whose leaves are `step * integers`.

    Args:
        params: a network; what is not among the integers is kept as it is.
        integers: by path, shaped like the leaves, magnitudes up to 127, such as
            `jaxcomp.training.rounded` returns them.
        steps: by path, positive; in float32.

    Returns:
        The tree: `params()` is the network, `save` writes it.

    Raises:
        ValueError: on a path without a leaf, another shape, integers that are larger or no
            integers, a missing step or one that is not positive.
    """
    leaves = leaves_by_path(params)
    codes, values = {}, {}
    for path, given in integers.items():
        if path not in leaves or path not in steps:
            raise ValueError(
                f"integers of {path!r} need a leaf and a step: leaves are {shorten(leaves)}, steps "
                f"are there for {shorten(steps)}."
            )
        codes[path] = _codes(path, given, np.shape(leaves[path]))
        step = np.float32(steps[path])
        if not (np.isfinite(step) and step > 0):
            raise ValueError(f"steps must be positive and finite, got {step} for {path!r}.")
        values[path] = codes[path].astype(np.float32) * step
    method = RoundToNearest(8, scale="tensor")
    selected = select_leaves(
        replace_leaves(params, values),
        method,
        (None, CurvaturePolicy()),
        lambda path, _: path in codes,
        (),
    )
    stored = {}
    for number, tensor in selected.tensors.items():
        path = tensor.paths[0]
        own, largest = codes[path], largest_magnitude(codes[path])
        num_codes = 1 << (largest.bit_length() + 1)
        energy = np.float32(np.sum(np.square(values[path], dtype=np.float64)))
        counts: Any = _counts(own, num_codes).astype(np.int32)
        parameter: Any = np.float32(num_codes.bit_length() - 1)
        leaf = CompressedTensor(
            codes=own,
            codebook=None,
            scales=np.asarray([steps[path]], np.float32),
            counts=counts,
            parameter=parameter,
            measures=_exact(energy),
        )
        stored[number] = jax.device_put(leaf), tensor.layout
    return selected.tree(stored)


def _codes(path: str, given: Any, shape: tuple[int, ...]) -> Int[np.ndarray, "..."]:
    """Return integers as they are stored, once they are such."""
    found = np.asarray(given)
    if found.shape != shape:
        raise ValueError(f"integers of {path!r} must have its shape {shape}, got {found.shape}.")
    if not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"integers of {path!r} must be of a dtype of such, got {found.dtype}.")
    if largest_magnitude(found) > _LARGEST:
        raise ValueError(f"integers of {path!r} must lie between -{_LARGEST} and {_LARGEST}.")
    return found.astype(np.int8)


def _counts(codes: Int[np.ndarray, "..."], num_codes: int) -> Int[np.ndarray, " symbols"]:
    """Return how often each code occurs, from the lowest on."""
    places = codes.reshape(-1).astype(np.int64) + num_codes // 2
    return np.bincount(places, minlength=num_codes)


def _exact(energy: Any) -> Measures:
    """Return the errors of weights that are the integers times their step."""
    zero: Any = np.float32(0)
    exponent: Any = np.int32(0)
    is_fixed: Any = np.bool_(True)
    return Measures(zero, zero, energy, is_fixed, exponent, exponent, exponent)
