"""Matrix products and convolutions with a weight, brought into one form.

    z[g, p, o] = sum over i of a[g, p, i] w[g, i, o],

with the axis letters `G` groups (of a convolution, or the batch axes of a product), `P` positions
(pixels, tokens, heads; 1 for a dense layer on a vector), `I` inputs (fan-in) and `O` outputs.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn
from jaxtyping import Array, Float

from jaxcomp.curvature.layouts import Step
from jaxcomp.numerics.equations import shape_of


class NormalForm(NamedTuple):
    """How the parts of a product are rearranged.

    Attributes:
        sizes: G, P, I and O.
        weight_steps: from the operand that is the weight to `(G, I, O)`.
        to_inputs: from the other operand to `(G, P, I)`.
        to_outputs: from what is shaped like the result to `(G, P, O)`.
    """

    sizes: tuple[int, int, int, int]
    weight_steps: tuple[Step, ...]
    to_inputs: Callable[[Array], Float[Array, "G P I"]]
    to_outputs: Callable[[Array], Float[Array, "G P O"]]


def normal_form(equation: JaxprEqn, side: int) -> NormalForm | None:
    """Return the normal form of an equation whose operand number `side` is a weight.

    None if it is no product, or one without this form: of a convolution the weight must be the
    kernel, and examples must not be convolved with kernels of their own.
    """
    known = {"dot_general": _of_product, "conv_general_dilated": _of_convolution}
    make = known.get(equation.primitive.name)
    return None if make is None else make(equation, side)


def _of_product(equation: JaxprEqn, side: int) -> NormalForm:
    """Normal form of `dot_general`: groups are its batch axes, positions the rows it meets."""
    contracting, batch = equation.params["dimension_numbers"]
    weight = shape_of(equation.invars[side])
    other = shape_of(equation.invars[1 - side])

    def order(shape: tuple[int, ...], operand: int) -> tuple[list[int], list[int], list[int]]:
        used = (*batch[operand], *contracting[operand])
        free = [axis for axis in range(len(shape)) if axis not in used]
        return list(batch[operand]), list(contracting[operand]), free

    w_batch, w_contract, w_free = order(weight, side)
    x_batch, x_contract, x_free = order(other, 1 - side)
    groups = prod(weight[axis] for axis in w_batch)
    num_inputs = prod(weight[axis] for axis in w_contract)
    num_outputs = prod(weight[axis] for axis in w_free)
    positions = prod(other[axis] for axis in x_free)
    x_order = tuple(x_batch + x_free + x_contract)

    def to_inputs(operand: Array) -> Array:
        return jnp.transpose(operand, x_order).reshape(groups, positions, num_inputs)

    def to_outputs(gradient: Array) -> Array:
        # The result has the batch axes, then the free axes of the left, then of the right operand.
        if side == 1:
            return gradient.reshape(groups, positions, num_outputs)
        return jnp.swapaxes(gradient.reshape(groups, num_outputs, positions), 1, 2)

    steps = (
        Step("transpose", tuple(w_batch + w_contract + w_free)),
        Step("reshape", (groups, num_inputs, num_outputs)),
    )
    return NormalForm((groups, positions, num_inputs, num_outputs), steps, to_inputs, to_outputs)


def _of_convolution(equation: JaxprEqn, side: int) -> NormalForm | None:
    """Normal form of `conv_general_dilated`: the inputs are patches, the positions pixels."""
    parameters = equation.params
    if side != 1 or parameters["batch_group_count"] != 1:
        return None
    numbers = parameters["dimension_numbers"]
    image = shape_of(equation.invars[0])
    kernel = shape_of(equation.invars[1])
    output = shape_of(equation.outvars[0])
    groups = parameters["feature_group_count"]
    kernel_out, kernel_in, *kernel_space = numbers.rhs_spec
    window = tuple(kernel[axis] for axis in kernel_space)
    pixels = prod(output[axis] for axis in numbers.out_spec[2:])
    num_images = output[numbers.out_spec[0]]
    num_outputs = kernel[kernel_out] // groups
    num_inputs = kernel[kernel_in] * prod(window)
    positions = num_images * pixels

    def to_inputs(operand: Array) -> Array:
        patches = _patches(
            jnp.transpose(operand, numbers.lhs_spec),
            window,
            strides=parameters["window_strides"],
            padding=parameters["padding"],
            image_dilation=parameters["lhs_dilation"],
            kernel_dilation=parameters["rhs_dilation"],
        )  # (window, images, channels, *space)
        patches = patches.reshape(
            prod(window), num_images, groups, image[numbers.lhs_spec[1]] // groups, pixels
        )
        # (G, images, pixels, channels, window)
        patches = jnp.transpose(patches, (2, 1, 4, 3, 0))
        return patches.reshape(groups, positions, num_inputs)

    def to_outputs(gradient: Array) -> Array:
        gradient = jnp.transpose(gradient, numbers.out_spec)
        gradient = gradient.reshape(num_images, groups, num_outputs, pixels)
        return jnp.transpose(gradient, (1, 0, 3, 2)).reshape(groups, positions, num_outputs)

    steps = (
        Step("transpose", (kernel_out, kernel_in, *kernel_space)),
        Step("reshape", (groups, num_outputs, num_inputs)),
        Step("transpose", (0, 2, 1)),
    )
    return NormalForm((groups, positions, num_inputs, num_outputs), steps, to_inputs, to_outputs)


def _patches(
    image: Array,
    window: tuple[int, ...],
    *,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    image_dilation: Sequence[int],
    kernel_dilation: Sequence[int],
) -> Array:
    """Cut the patches of a convolution out of `(images, channels, *space)`, as slices.

    (`lax.conv_general_dilated_patches` convolves with one-hot kernels, which costs a convolution.)
    """
    config = [(0, 0, 0), (0, 0, 0)] + [
        (low, high, dilation - 1)
        for (low, high), dilation in zip(padding, image_dilation, strict=True)
    ]
    padded = lax.pad(image, jnp.zeros((), image.dtype), config)
    counts = [
        (size - ((width - 1) * dilation + 1)) // stride + 1
        for size, width, dilation, stride in zip(
            padded.shape[2:], window, kernel_dilation, strides, strict=True
        )
    ]
    slices = []
    for offset in np.ndindex(*window):
        first = [o * d for o, d in zip(offset, kernel_dilation, strict=True)]
        last = [
            f + (count - 1) * stride + 1
            for f, count, stride in zip(first, counts, strides, strict=True)
        ]
        slices.append(
            lax.slice(padded, (0, 0, *first), (*padded.shape[:2], *last), (1, 1, *strides))
        )
    return jnp.stack(slices)
