"""Units of layers whose inputs, or gradients, are so large or small that their squares are lost.

A layer whose weights are near 1e-30 and whose outputs are ordinary numbers has inputs near 1e30: no
float32 holds what `A^T A` is made of. In units of a power of two (see
`jaxcomp.numerics.scaling`) these are ordinary numbers, and the Hessian has an exponent. Looked at
only after sums turned out to be lost, so that nothing else pays for it.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Int

from jaxcomp.curvature.capture import MatrixUse
from jaxcomp.curvature.estimate import floating_leaves
from jaxcomp.curvature.per_example import OpenLayers, open_layers
from jaxcomp.curvature.units import extreme_exponents, if_extreme
from jaxcomp.numerics.scaling import group_exponent
from jaxcomp.types import Params

Units = tuple[Int[np.ndarray, " G"], ...]
"""Of each layer u, by group: its inputs (or gradients) count `2^u` times."""


def input_units(
    function: Partial, params: Params, inputs: object, positions: tuple[int, ...]
) -> Units:
    """Return units in which the inputs of layers are ordinary numbers; 0 where they are.

    Args:
        function: of a model.
        params: its weights.
        inputs: of a batch.
        positions: of the layers' weights among the floating leaves.
    """
    found = _exponents_of_inputs(function, params, inputs, positions=positions)
    return tuple(-if_extreme(np.asarray(one), jnp.float32) for one in found)


def weight_units(params: Params, uses: dict[str, MatrixUse]) -> Units:
    """Return units in which the weights of layers are ordinary numbers.

    Gradients of weights that matter are ordinary numbers in the same units.
    """
    found = extreme_exponents(params) or (0,) * len(floating_leaves(params).values)
    return tuple(
        np.full(use.layout.num_groups, found[use.position], np.int32) for use in uses.values()
    )


def chosen_of(layers: OpenLayers, positions: tuple[int, ...]) -> list[int]:
    """Return numbers of the uses of the leaves at these positions."""
    number_of = {use.position: number for number, use in enumerate(layers.capture.uses)}
    return [number_of[position] for position in positions]


@partial(jax.jit, static_argnames=("positions",))
def _exponents_of_inputs(
    function: Partial, params: Params, inputs: object, *, positions: tuple[int, ...]
) -> list[Int[Array, " G"]]:
    layers = open_layers(function, floating_leaves(params), inputs, is_differentiated=False)
    found = layers._replace(others=()).inputs_of_uses(inputs)
    chosen = [found[number] for number in chosen_of(layers, positions)]
    return [group_exponent(a, axis=(0, 2, 3)) for a in chosen]
