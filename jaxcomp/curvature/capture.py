"""Layers of any function, found in its jaxpr: their inputs, and the gradients of their outputs.

A *matrix use* is a matrix product or a convolution with a weight as one operand; the weight may
have been reshaped, transposed or converted before. Every such use is brought into one normal form,

    z[g, p, o] = sum over i of a[g, p, i] w[g, i, o],

with the axis letters `G` groups (of a convolution, or the batch axes of a product), `P` positions
(pixels, tokens, heads; 1 for a dense layer on a vector), `I` inputs (fan-in) and `O` outputs. What
curvature needs of a layer is `a`, and the gradient of a loss with respect to `z`: a zero is added
to `z`, and differentiated. The gradient of one example's loss with respect to the weight is then
the sum over positions of `a[g, p, i] delta[g, p, o]`.

All this is for the function of *one example* (a batch of one), to be used under `jax.vmap`: so it
does not matter where a model keeps its batch axis, and products of the form "batch times weight"
come out again as single large ones. Weights that are used otherwise (biases, tied weights, weights
inside a `scan`, embeddings) are not captured; they are left to ordinary differentiation.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun
from jaxtyping import Array, Float, Shaped

_Steps = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class MatrixLayout:
    """How a weight is laid out as matrices `(G, I, O)`: a fixed rearrangement of its entries.

    Attributes:
        shape: of the weight.
        num_groups: G.
        num_inputs: I, fan-in of a group.
        num_outputs: O, outputs of a group.
        steps: the rearrangements, from the weight to the matrices.
    """

    shape: tuple[int, ...]
    num_groups: int
    num_inputs: int
    num_outputs: int
    steps: _Steps

    def to_matrices(self, weight: Shaped[Array, "..."]) -> Shaped[Array, "G I O"]:
        """Return the weight (or anything shaped like it) as one matrix for each group."""
        for kind, argument in self.steps:
            weight = (
                jnp.reshape(weight, argument)
                if kind == "reshape"
                else jnp.transpose(weight, argument)
            )
        return weight

    def from_matrices(self, matrices: Shaped[Array, "G I O"]) -> Shaped[Array, "..."]:
        """Undo `to_matrices`."""
        shapes = [self.shape]
        for kind, argument in self.steps:
            before = shapes[-1]
            shapes.append(
                argument if kind == "reshape" else tuple(before[axis] for axis in argument)
            )
        for (kind, argument), before in zip(self.steps[::-1], shapes[-2::-1], strict=True):
            matrices = (
                jnp.reshape(matrices, before)
                if kind == "reshape"
                else jnp.transpose(matrices, tuple(np.argsort(argument).tolist()))
            )
        return matrices


@dataclass(frozen=True)
class MatrixUse:
    """The one use of a weight in a matrix product or convolution, for one example.

    Attributes:
        position: of the weight among the floating leaves.
        layout: of the weight as matrices `(G, I, O)`.
        num_positions: P.
        output: shape and dtype of the perturbation that is added to the output.
        to_inputs: brings the captured operand into the normal form `(G, P, I)`.
        to_outputs: brings the gradient with respect to the perturbation into `(G, P, O)`.
    """

    position: int
    layout: MatrixLayout
    num_positions: int
    output: jax.ShapeDtypeStruct
    to_inputs: Callable[[Array], Float[Array, "G P I"]]
    to_outputs: Callable[[Array], Float[Array, "G P O"]]


@dataclass(frozen=True)
class Capture:
    """A function of weights and one example with its layers laid open.

    Attributes:
        uses: the captured weights, in the order of the leaves.
        outputs: shapes and dtypes of what the function returns.
        num_activations: numbers that evaluating one example makes, weights left out.
        run: `(perturbations, values, example) -> (outputs, operands)`: evaluates the function with
            a perturbation added to the output of each use, and returns what each use multiplies
            its weight with.
    """

    uses: tuple[MatrixUse, ...]
    outputs: Any
    num_activations: int
    run: Callable[[Sequence[Array], Sequence[Array], Any], tuple[Any, tuple[Array, ...]]]


def capture(
    function: Callable[[tuple[Array, ...], Any], Any],
    values: tuple[Array, ...],
    example: Any,
    *,
    is_wanted: Sequence[bool] | None = None,
) -> Capture:
    """Trace a function and find the matrix uses among its operations.

    Calls are opened where a weight passes through them (`jit`, `remat`, and the branch of
    `lax.platform_dependent` for the default backend). A weight is captured if its only use is as
    one operand of a `dot_general` or `conv_general_dilated`.

    Args:
        function: `(values, example) -> outputs`, pure.
        values: the floating leaves.
        example: a pytree of arrays, or of shapes and dtypes.
        is_wanted: for each leaf whether it may be captured; None for all.

    Returns:
        The capture; `run` holds the arrays that `function` closes over, and may be used under
        `jax.vmap` and differentiated.
    """
    closed, outputs = jax.make_jaxpr(function, return_shape=True)(values, example)
    structure = jax.tree.structure(outputs)
    num_leaves = len(values)
    flat = _opened(closed, num_leaves)
    found = _find_uses(flat, [True] * num_leaves if is_wanted is None else is_wanted)
    number_of = {place: number for number, (place, _, _) in enumerate(found)}

    def run(
        perturbations: Sequence[Array], leaves: Sequence[Array], example: Any
    ) -> tuple[Any, tuple[Array, ...]]:
        arguments = [*leaves, *jax.tree.leaves(example)]
        environment = {**flat.constants, **dict(zip(flat.inputs, arguments, strict=True))}

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else environment[atom]

        operands: list[Any] = [None] * len(found)
        for place, equation in enumerate(flat.equations):
            operands_here = [read(atom) for atom in equation.invars]
            results = _evaluate(equation, operands_here)
            if place in number_of:
                number = number_of[place]
                operands[number] = operands_here[1 - found[number][1]]
                results = [results[0] + perturbations[number]]
            environment.update(zip(equation.outvars, results, strict=True))
        return structure.unflatten([read(atom) for atom in flat.outputs]), tuple(operands)

    uses = tuple(use for _, _, use in found)
    return Capture(uses, outputs, _num_activations(flat, num_leaves), run)


# --- A jaxpr with its calls opened ---------------------------------------------------------------


class _Opened(NamedTuple):
    """Equations of a jaxpr and of the calls in it, in one list; all variables are distinct."""

    inputs: list[Var]
    outputs: list[Any]
    equations: list[JaxprEqn]
    constants: dict[Var, Any]


def _opened(closed: ClosedJaxpr, num_leaves: int) -> _Opened:
    """Open the calls that the first `num_leaves` arguments, or rearrangements of them, enter."""
    aliases: dict[Var, Any] = {}  # a variable of an opened call -> what it stands for
    constants: dict[Var, Any] = {}
    equations: list[JaxprEqn] = []
    weights: set[Var] = set(closed.jaxpr.invars[:num_leaves])
    branch_of: dict[Var, int] = {}

    def resolve(atom: Any) -> Any:
        return atom if isinstance(atom, Literal) else aliases.get(atom, atom)

    def open_jaxpr(closed: ClosedJaxpr) -> None:
        constants.update(zip(closed.jaxpr.constvars, closed.consts, strict=True))
        for equation in closed.jaxpr.eqns:
            arguments = [resolve(atom) for atom in equation.invars]
            equation = equation.replace(invars=arguments)
            name = equation.primitive.name
            if name == "platform_index":
                branch_of[equation.outvars[0]] = _platform_index(equation)
            enters = any(not isinstance(a, Literal) and a in weights for a in arguments)
            called = _called(equation, branch_of) if enters else None
            if called is None:
                equations.append(equation)
                if enters and name in _REARRANGING:
                    weights.update(equation.outvars)
                continue
            arguments = arguments[1:] if name == "cond" else arguments
            # Traced anew: two calls of one function would share their variables.
            inner = jax.make_jaxpr(jaxpr_as_fun(called))(
                *(jax.ShapeDtypeStruct(a.aval.shape, a.aval.dtype) for a in called.jaxpr.invars)
            )
            aliases.update(zip(inner.jaxpr.invars, arguments, strict=True))
            open_jaxpr(inner)
            results = [resolve(atom) for atom in inner.jaxpr.outvars]
            aliases.update(zip(equation.outvars, results, strict=True))

    open_jaxpr(closed)
    outputs = [resolve(atom) for atom in closed.jaxpr.outvars]
    return _Opened(list(closed.jaxpr.invars), outputs, equations, constants)


_REARRANGING = frozenset({"reshape", "transpose", "squeeze", "convert_element_type", "copy"})


def _called(equation: JaxprEqn, branch_of: dict[Var, int]) -> ClosedJaxpr | None:
    """Return the function that an equation calls, if it may be opened.

    Calls with derivatives of their own (`custom_jvp`, `custom_vjp`) stay closed: opened, they
    would be differentiated by other rules.
    """
    name, parameters = equation.primitive.name, equation.params
    if name in ("jit", "pjit", "closed_call", "core_call"):
        inner = parameters["jaxpr"] if "jaxpr" in parameters else parameters["call_jaxpr"]
        return inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())
    if name in ("remat2", "checkpoint", "remat"):
        return ClosedJaxpr(parameters["jaxpr"], ())
    if name == "cond" and not isinstance(equation.invars[0], Literal):
        branch = branch_of.get(equation.invars[0])
        return None if branch is None else parameters["branches"][branch]
    return None


def _platform_index(equation: JaxprEqn) -> int:
    """Which branch of `lax.platform_dependent` the default backend takes."""
    backend = jax.default_backend()
    names = {"gpu": ("gpu", "cuda", "rocm")}.get(backend, (backend,))
    for index, platforms in enumerate(equation.params["platforms"]):
        if platforms is None or any(name in platforms for name in names):
            return index
    raise ValueError(f"lax.platform_dependent has no branch for {backend}; give it a default.")


def _evaluate(equation: JaxprEqn, arguments: list[Any]) -> list[Any]:
    parameters = equation.primitive.get_bind_params(equation.params)
    with equation.ctx.manager:
        results = equation.primitive.bind(*arguments, **parameters)
    return list(results) if equation.primitive.multiple_results else [results]


# --- Finding the uses ----------------------------------------------------------------------------


def _find_uses(flat: _Opened, is_wanted: Sequence[bool]) -> list[tuple[int, int, MatrixUse]]:
    """Find the uses: the place of the equation, the side of the weight in it, and the use."""
    read = [atom for equation in flat.equations for atom in equation.invars] + flat.outputs
    num_readers = Counter(atom for atom in read if not isinstance(atom, Literal))
    # For every variable that is a mere rearrangement of one leaf: which leaf, and how.
    chains: dict[Var, tuple[int, _Steps]] = {
        variable: (position, ())
        for position, variable in enumerate(flat.inputs[: len(is_wanted)])
        if is_wanted[position] and num_readers[variable] == 1
    }
    found = []
    for place, equation in enumerate(flat.equations):
        variables: list[Any] = list(equation.invars)
        sides = [
            side
            for side, atom in enumerate(variables)
            if not isinstance(atom, Literal) and atom in chains
        ]
        # A product of two weights is left to differentiation.
        if len(sides) != 1:
            continue
        position, steps = chains[variables[sides[0]]]
        name, output = equation.primitive.name, equation.outvars[0]
        if name in _REARRANGING:
            step = _step(equation)
            if step is not None and num_readers[output] == 1:
                chains[output] = (position, steps + step)
        elif name in _NORMAL_FORMS:
            normal = _NORMAL_FORMS[name](equation, sides[0])
            if normal is not None:
                shape = _shape(flat.inputs[position])
                use = normal.use(position, shape, steps, output.aval)
                found.append((place, sides[0], use))
    return sorted(found, key=lambda entry: entry[2].position)


def _num_activations(flat: _Opened, num_leaves: int) -> int:
    """Count the numbers that are computed from the example, for one evaluation."""
    depends: set[Any] = set(flat.inputs[num_leaves:])
    count = 0
    for equation in flat.equations:
        if any(not isinstance(a, Literal) and a in depends for a in equation.invars):
            depends.update(equation.outvars)
            count += sum(prod(_shape(variable)) for variable in equation.outvars)
    return count


def _step(equation: JaxprEqn) -> _Steps | None:
    """Return a rearranging equation as steps of a `MatrixLayout`; None if it loses the weight."""
    name, output = equation.primitive.name, equation.outvars[0]
    if name == "transpose":
        return (("transpose", tuple(equation.params["permutation"])),)
    if name in ("reshape", "squeeze"):
        if equation.params.get("dimensions") is not None and name == "reshape":
            return None
        return (("reshape", _shape(output)),)
    aval: Any = output.aval
    return () if jnp.issubdtype(aval.dtype, jnp.floating) else None


def _shape(atom: Any) -> tuple[int, ...]:
    return tuple(atom.aval.shape)


class _Normal(NamedTuple):
    """The normal form of an equation: how each of its parts becomes `(G, P, I)` and so on."""

    sizes: tuple[int, int, int, int]  # G, P, I, O
    weight_steps: _Steps
    to_inputs: Callable[[Array], Array]
    to_outputs: Callable[[Array], Array]

    def use(self, position: int, shape: tuple[int, ...], steps: _Steps, output: Any) -> MatrixUse:
        groups, positions, num_inputs, num_outputs = self.sizes
        return MatrixUse(
            position,
            MatrixLayout(shape, groups, num_inputs, num_outputs, steps + self.weight_steps),
            positions,
            jax.ShapeDtypeStruct(output.shape, output.dtype),
            self.to_inputs,
            self.to_outputs,
        )


def _normal_product(equation: JaxprEqn, side: int) -> _Normal:
    """Normal form of `dot_general`: groups are its batch axes, positions the rows it meets."""
    contracting, batch = equation.params["dimension_numbers"]
    weight = _shape(equation.invars[side])
    other = _shape(equation.invars[1 - side])

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
        ("transpose", tuple(w_batch + w_contract + w_free)),
        ("reshape", (groups, num_inputs, num_outputs)),
    )
    return _Normal((groups, positions, num_inputs, num_outputs), steps, to_inputs, to_outputs)


def _normal_convolution(equation: JaxprEqn, side: int) -> _Normal | None:
    """Normal form of `conv_general_dilated`: the inputs are patches, the positions pixels."""
    parameters = equation.params
    if side != 1 or parameters["batch_group_count"] != 1:
        return None
    numbers = parameters["dimension_numbers"]
    image = _shape(equation.invars[0])
    kernel = _shape(equation.invars[1])
    output = _shape(equation.outvars[0])
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
        ("transpose", (kernel_out, kernel_in, *kernel_space)),
        ("reshape", (groups, num_outputs, num_inputs)),
        ("transpose", (0, 2, 1)),
    )
    return _Normal((groups, positions, num_inputs, num_outputs), steps, to_inputs, to_outputs)


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


_NORMAL_FORMS: dict[str, Callable[[JaxprEqn, int], _Normal | None]] = {
    "dot_general": _normal_product,
    "conv_general_dilated": _normal_convolution,
}
