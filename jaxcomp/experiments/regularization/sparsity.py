"""What an L1 penalty has switched off can be taken out: a smaller network of the same output.

An input without outgoing weights changes nothing, nor does a hidden unit without them; a hidden
unit without incoming weights is a constant, `relu(bias)`, which the biases of the next layer take
in. Removing one may leave another without weights, so this goes on until nothing changes.

Host, for chains of dense layers with ReLU between them, as `jaxcomp.experiments.networks` builds
them.
"""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from jaxcomp.types import Params


class SmallerNetwork(NamedTuple):
    """A network without what does nothing."""

    params: Params
    """`{layer: {"kernel", "bias"}}` as before, with smaller arrays."""
    inputs: Int[np.ndarray, "kept"]
    """Which inputs (flattened) it takes, ascending."""
    num_units: tuple[int, ...]
    """Hidden units left in each layer."""
    num_weights: int
    """Numbers left, biases included."""


def smaller_network(
    params: Mapping[str, Mapping[str, Any]], *, absorbs_constants: bool = True
) -> SmallerNetwork:
    """Remove dead inputs and hidden units of a multilayer perceptron.

    Args:
        params: `{layer: {"kernel": (in, out), "bias": (out,)}}`, layers in the order of their
            names, each reading what the one before it puts out.
        absorbs_constants: whether units that are a positive constant go into the next biases;
            without, biases stay what they were (multiples of a step, say).

    Returns:
        The smaller network: equal output for `inputs[:, kept]`, to rounding.

    Raises:
        ValueError: if the layers do not fit each other.
    """
    names = sorted(params)
    kernels = [np.array(params[name]["kernel"]) for name in names]
    biases = [np.array(params[name]["bias"]) for name in names]
    if any(kernel.ndim != 2 for kernel in kernels) or any(
        before.shape[1] != after.shape[0] for before, after in itertools.pairwise(kernels)
    ):
        raise ValueError(
            "params must be dense layers that read each other's outputs, got kernels of shapes "
            f"{[kernel.shape for kernel in kernels]}."
        )
    inputs = np.arange(len(kernels[0]))
    size = -1
    while size != (size := sum(kernel.size for kernel in kernels)):
        for layer in range(len(kernels) - 1):
            after = kernels[layer + 1]
            is_used = after.any(axis=1)
            is_constant = ~kernels[layer].any(axis=0)
            constant = np.where(is_constant & is_used, np.maximum(biases[layer], 0), 0)
            if absorbs_constants:
                biases[layer + 1] = biases[layer + 1] + constant.astype(after.dtype) @ after
                is_kept = is_used & ~is_constant
            else:
                is_kept = is_used & (~is_constant | (constant > 0))
            kernels[layer] = kernels[layer][:, is_kept]
            biases[layer] = biases[layer][is_kept]
            kernels[layer + 1] = after[is_kept]
        is_read = kernels[0].any(axis=1)
        inputs, kernels[0] = inputs[is_read], kernels[0][is_read]
    return SmallerNetwork(
        {
            name: {"kernel": kernel, "bias": bias}
            for name, kernel, bias in zip(names, kernels, biases, strict=True)
        },
        inputs,
        tuple(len(bias) for bias in biases[:-1]),
        sum(kernel.size + bias.size for kernel, bias in zip(kernels, biases, strict=True)),
    )
