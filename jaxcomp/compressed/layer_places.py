"""Where the weights of a captured layer lie in their tensor, and which method they get for it."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jaxcomp.curvature.layer_inputs import OpenNetwork
from jaxcomp.curvature.layouts import MatrixLayout
from jaxcomp.numerics.host import as_array
from jaxcomp.quantizers.methods import HessianRounding, Method
from jaxcomp.trees.tied import Group


class LayerPlaces(NamedTuple):
    """The matrices of one tensor, or of one layer of a stack.

    Attributes:
        places: (G, I, O), of weights in the flattened tensor, or in that of the layer.
        axis: of it along which the inputs lie one by one, or the longest at each of whose places
            some of them lie, with all their outputs (the channels of a convolution, each at all
            positions of a kernel); None if there is none.
    """

    places: Int[np.ndarray, "G I O"]
    axis: int | None


def layer_places(layout: MatrixLayout, *, is_stack: bool) -> LayerPlaces | None:
    """Return where the weights of a layer lie; of a stack, of each of its layers.

    Args:
        layout: of the whole tensor.
        is_stack: whether its first axis is one of layers that are compressed one by one.

    Returns:
        The places; None if the groups of the layout are not the layers of the stack one by one.
    """
    shape = layout.shape
    index = np.arange(int(np.prod(shape)), dtype=np.int32).reshape(shape)
    places = np.asarray(layout.to_matrices(as_array(index)))
    if is_stack:
        own, size = len(places) // shape[0], int(np.prod(shape[1:]))
        if own * shape[0] != len(places):
            return None
        blocks = places.reshape(shape[0], own, *places.shape[1:])
        first = np.arange(shape[0], dtype=np.int32).reshape(-1, 1, 1, 1) * size
        if not np.array_equal(blocks - first, np.broadcast_to(blocks[:1], blocks.shape)):
            return None
        places, shape = blocks[0], shape[1:]
    return LayerPlaces(places, _axis_of_inputs(places, shape))


def _axis_of_inputs(places: Int[np.ndarray, "G I O"], shape: tuple[int, ...]) -> int | None:
    longest = None
    for axis in range(len(shape) if len(shape) > 1 else 0):
        stride = int(np.prod(shape[axis + 1 :]))
        along = places // stride % shape[axis]
        number = len(np.unique(along[..., 0]))
        if number != shape[axis] or not np.all(along == along[..., :1]):
            continue
        if number == along[..., 0].size:
            return axis
        if number > 1 and (longest is None or number > shape[longest]):
            longest = axis
    return longest


def method_for(
    method: Method, group: Group, network: OpenNetwork | None, *, is_stack: bool
) -> Method:
    """Return the method of a leaf: its own, or what stands in for it where no layer is known.

    Raises:
        ValueError: if the method needs layers, and there are none.
    """
    if not isinstance(method, HessianRounding):
        return method
    if network is None:
        raise ValueError(
            "HessianRounding needs the inputs of layers; pass "
            "layers=jaxcomp.curvature.Layers(predict_fn, batches), or choose a method that needs "
            "no data, such as EntropyConstrained()."
        )
    use = network.uses.get(group.paths[0])
    # A tied array enters several layers, of which each would need other inputs.
    if use is None or len(group.paths) > 1:
        return method.otherwise
    found = layer_places(use.layout, is_stack=is_stack)
    if found is None:
        return method.otherwise
    return replace(method, channel_axis=-1 if found.axis is None else found.axis)
