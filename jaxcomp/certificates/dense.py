"""The network that needs no file of the user's: dense layers with rectifiers between them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcomp.trees.paths import leaves_by_path, shorten
from jaxcomp.types import Params


@dataclass(frozen=True)
class DensePredictFn:
    """A chain of dense layers as a function; equal for equal chains.

    Attributes:
        layers: of each layer the path of its matrix, that of its bias (empty for none), and whether
            the matrix is (out, in).
    """

    layers: tuple[tuple[str, str, bool], ...]

    def __call__(self, params: Params, inputs: Any) -> Float[Array, "batch classes"]:
        """Compute logits of inputs, flattened for each example, in full precision."""
        leaves = leaves_by_path(params)
        values = jnp.reshape(jnp.asarray(inputs), (len(inputs), -1))
        with jax.default_matmul_precision("highest"):
            for number, (matrix, bias, is_transposed) in enumerate(self.layers):
                values = jax.nn.relu(values) if number else values
                weights = leaves[matrix]
                values = values @ (weights.T if is_transposed else weights)
                values = values + leaves[bias] if bias else values
        return values


def dense_predict_fn(params: Params) -> DensePredictFn:
    """Return the function of a tree that is a chain of dense layers with rectifiers between them.

    Layers are in the order of their names, numbers in them by value. A matrix is (out, in) if its
    name ends with `weight`, as PyTorch has it, else (in, out); a bias beside it is added.

    Args:
        params: arrays by path, at most one matrix and one vector to a layer.

    Raises:
        ValueError: if the tree is no such chain.
    """
    layers: dict[str, dict[int, str]] = {}
    leaves = leaves_by_path(params)
    for path, leaf in leaves.items():
        name = re.split(r"[./]", path)[-1]
        kinds = layers.setdefault(path.removesuffix(name), {})
        number = getattr(leaf, "ndim", 0)
        if number not in (1, 2) or number in kinds:
            raise _no_chain(leaves)
        kinds[number] = path
    chain, width = [], None
    for _, kinds in sorted(layers.items(), key=lambda item: _natural(item[0])):
        if 2 not in kinds:
            raise _no_chain(leaves)
        is_transposed = kinds[2].endswith("weight")
        shape = leaves[kinds[2]].shape
        inner, outer = reversed(shape) if is_transposed else shape
        bias = kinds.get(1, "")
        if (width is not None and inner != width) or (bias and leaves[bias].shape != (outer,)):
            raise _no_chain(leaves)
        chain.append((kinds[2], bias, is_transposed))
        width = outer
    if not chain:
        raise _no_chain(leaves)
    return DensePredictFn(tuple(chain))


def _natural(name: str) -> list[Any]:
    """Return what sorts names with the numbers in them by value."""
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in re.split(r"(\d+)", name)
    ]


def _no_chain(leaves: Mapping[str, Any]) -> ValueError:
    return ValueError(
        f"the arrays {shorten(leaves)} are no chain of dense layers (a matrix and at most one bias "
        "each); name a Python file that defines predict_fn(params, inputs), by --hook or "
        "predict_fn=."
    )
