"""Examples in blocks that have many inputs in common, for networks that begin with a product.

Most pixels of an image are background, and images that are alike have it in the same places. In a
block of them `x W = c W + v W'`: the row `c` holds what all of them have and is multiplied once,
`v` the other inputs and `W'` their rows of the kernel. Outputs are the same but for the order of
sums.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxcomp.curvature.products import body_of
from jaxcomp.numerics.equations import evaluate_equation, evaluate_jaxpr
from jaxcomp.types import AnyArray, Params, PredictFn

# Small enough that few inputs vary in a block, large enough for products at full speed.
BLOCK = 512
# Data below this many numbers are scored before they are ordered.
LEAST_SIZE = 1 << 22
# More than this share of varying inputs is not worth the rows that are picked.
MOST_VARYING = 0.8
# Blocks are computed with as many varying inputs as the next of these shares: each is a loop.
_SHARES = (*(number / 16 for number in range(4, 13)), 1.0)
_NUM_SAMPLED, _NUM_DIRECTIONS, _NUM_ITERATIONS = 1024, 16, 3
_RARE = 1e-2


class CommonInputs(NamedTuple):
    """Blocks of examples, those with few varying inputs first.

    Axes: `F` inputs of an example.

    Attributes:
        varying: inputs of every example that vary in its block; then zeros.
        columns: int32, which they are; then the others.
        common: what all examples of a block have; 0 where they vary.
        ends: int32; at which block those end that each loop computes.
    """

    varying: Float[AnyArray, "blocks block F"]
    columns: Int[AnyArray, "blocks F"]
    common: Float[AnyArray, "blocks F"]
    ends: Int[AnyArray, " loops"]


def in_common(
    examples: Shaped[np.ndarray, "n ..."], num_blocks: int
) -> tuple[CommonInputs, Int[np.ndarray, " n"]] | None:
    """Put examples into blocks of `BLOCK` that have much in common.

    Args:
        examples: n >= 1.
        num_blocks: as which they come, at least as many as they take; the last are not computed.

    Returns:
        The blocks, and of every example where it is among theirs; None if too little is common.
    """
    flat = examples.reshape(len(examples), -1)
    rng = np.random.default_rng(0)
    usual = np.median(flat[_some_of(rng, len(flat))], axis=0).astype(flat.dtype)
    differs = flat != usual
    if differs.mean() > MOST_VARYING / 2:
        return None
    order = _in_order(differs, rng)
    cuts = range(BLOCK, len(flat), BLOCK)
    blocks = np.split(order, cuts)
    varies = np.stack([(flat[own] != flat[own[0]]).any(axis=0) for own in blocks])
    width = varies.sum(axis=1)
    if width.mean() > MOST_VARYING * flat.shape[1]:
        return None
    few_first = np.argsort(width, kind="stable")
    width, varies = width[few_first], varies[few_first]
    varying = np.zeros((num_blocks, BLOCK, flat.shape[1]), flat.dtype)
    columns = np.zeros((num_blocks, flat.shape[1]), np.int32)
    columns[: len(blocks)] = np.argsort(~varies, axis=1, kind="stable")
    common = np.zeros((num_blocks, flat.shape[1]), flat.dtype)
    where = np.empty(len(flat), np.int64)
    for number, block in enumerate(few_first):
        rows, own = blocks[block], columns[number, : width[number]]
        varying[number, : len(rows), : len(own)] = flat[np.ix_(rows, own)]
        common[number] = np.where(varies[number], 0, flat[rows[0]])
        where[rows] = number * BLOCK + np.arange(len(rows))
    ends = np.searchsorted(width, _widths(flat.shape[1]), side="right").astype(np.int32)
    return CommonInputs(varying, columns, common, ends), where


@partial(jax.jit, static_argnames=("predict_fn", "shape"))
def predict_in_common(
    predict_fn: PredictFn, params: Params, inputs: CommonInputs, shape: tuple[int, ...]
) -> Float[Array, "blocks block ..."]:
    """Outputs for all blocks, zeros for those that are not computed.

    Args:
        predict_fn: `(params, inputs) -> outputs` that `multiplies_inputs`.
        params: of the network.
        inputs: blocks of examples.
        shape: of one example.
    """
    with jax.default_matmul_precision("highest"):
        return _predict(predict_fn, params, inputs, shape)


def _predict(
    predict_fn: PredictFn, params: Params, inputs: CommonInputs, shape: tuple[int, ...]
) -> Float[Array, "blocks block ..."]:
    varying, columns, common, ends = map(jnp.asarray, inputs)
    num_blocks, block, num_inputs = varying.shape
    leaves = jax.tree.leaves(params)
    example = jax.ShapeDtypeStruct((block, *shape), varying.dtype)
    closed, like = jax.make_jaxpr(predict_fn, return_shape=True)(params, example)
    outputs = jnp.zeros((num_blocks, *like.shape), like.dtype)
    start = jnp.zeros((), jnp.int32)
    for end, width in zip(ends, _widths(num_inputs), strict=True):

        def predict(number: Array, outputs: Array, width: int = int(width)) -> Array:
            own = _Inputs(
                (block, *shape),
                varying[number, :, :width],
                columns[number, :width],
                common[number],
            )
            (found,) = _evaluate(closed, [*leaves, own])
            return outputs.at[number].set(found)

        outputs = jax.lax.fori_loop(start, end, predict, outputs)
        start = end
    return outputs


def multiplies_inputs(
    predict_fn: PredictFn, params: Params, example: Shaped[AnyArray, "1 ..."]
) -> bool:
    """Tell whether a network does nothing with its inputs but to multiply them by kernels.

    Flattening an example before is allowed; the kernels are of dense layers, `(inputs, outputs)`.
    """
    example = jnp.asarray(example)
    flat = example.reshape(len(example), -1)

    def predict(params: Params, flat: Array) -> list[Any]:
        closed = jax.make_jaxpr(predict_fn)(params, example)
        columns = jnp.arange(flat.shape[1])
        own = _Inputs(example.shape, flat, columns, jnp.zeros_like(flat[0]))
        return _evaluate(closed, [*jax.tree.leaves(params), own])

    try:
        return len(jax.eval_shape(predict, params, flat)) == 1
    except _OtherwiseUsedError:
        return False


def _widths(num_inputs: int) -> Int[np.ndarray, " loops"]:
    return np.ceil(np.asarray(_SHARES) * num_inputs).astype(np.int64)


def _some_of(rng: np.random.Generator, number: int) -> Int[np.ndarray, " s"]:
    return rng.choice(number, min(number, _NUM_SAMPLED), replace=False)


def _in_order(differs: Bool[np.ndarray, "n F"], rng: np.random.Generator) -> Int[np.ndarray, " n"]:
    """Order examples so that blocks of them differ from the usual in few places.

    They are halved again and again along the direction in which they differ most. A place where few
    examples differ is what makes a block of them wide, so it counts more. All is computed in
    float64, and rounded before it is compared: the order is the same whatever the rounding of
    products.
    """
    share = 1 / (differs.mean(axis=0) + _RARE)
    sample = differs[_some_of(rng, len(differs))] * share
    sample -= sample.mean(axis=0)
    directions = rng.normal(size=(differs.shape[1], _NUM_DIRECTIONS))
    for _ in range(_NUM_ITERATIONS):
        directions, _ = np.linalg.qr(sample.T @ (sample @ directions))
    directions *= share[:, None]
    pieces = np.split(differs, range(_NUM_SAMPLED, len(differs), _NUM_SAMPLED))
    features = np.concatenate([piece.astype(np.float64) @ directions for piece in pieces])

    def halved(rows: Int[np.ndarray, " m"]) -> list[np.ndarray]:
        if len(rows) <= BLOCK:
            return [rows]
        own = features[rows]
        own -= own.mean(axis=0)
        _, vectors = np.linalg.eigh(own.T @ own)
        half = max(len(rows) // BLOCK // 2, 1) * BLOCK  # only the last block may be short
        along = (own @ vectors[:, -1]).astype(np.float32)
        parted = rows[np.argpartition(along, half)]
        return [*halved(parted[:half]), *halved(parted[half:])]

    return np.concatenate(halved(np.arange(len(differs))))


class _OtherwiseUsedError(Exception):
    """Inputs are used in another way than to be multiplied by a kernel."""


class _Inputs(NamedTuple):
    """What stands for the inputs of one block."""

    shape: tuple[int, ...]
    varying: Float[Array, "block width"]
    columns: Int[Array, " width"]
    common: Float[Array, " F"]


def _evaluate(closed: ClosedJaxpr, arguments: list[Any]) -> list[Any]:
    results = evaluate_jaxpr(closed, arguments, _evaluate_equation)
    if any(isinstance(value, _Inputs) for value in results):
        raise _OtherwiseUsedError("output")
    return results


def _evaluate_equation(equation: JaxprEqn, values: list[Any]) -> list[Any]:
    if any(isinstance(value, _Inputs) for value in values):
        return _of_inputs(equation, values)
    return evaluate_equation(equation, values)


def _of_inputs(equation: JaxprEqn, values: list[Any]) -> list[Any]:
    called = body_of(equation)
    if called is not None:
        return _evaluate(called, values)
    first, name = values[0], equation.primitive.name
    result: Any = equation.outvars[0].aval
    if isinstance(first, _Inputs):
        if name == "reshape":
            is_by_example = result.shape[0] == first.shape[0]
            if is_by_example and equation.params["dimensions"] is None:
                return [first._replace(shape=result.shape)]
        elif name == "dot_general" and not isinstance(kernel := values[1], _Inputs):
            is_dense = equation.params["dimension_numbers"] == (((1,), (0,)), ((), ()))
            # Two sums of half precision are one rounding more, which is no longer little.
            if is_dense and len(first.shape) == 2 and result.dtype.itemsize >= 4:
                return _product(equation, first, kernel)
    raise _OtherwiseUsedError(name)


def _product(equation: JaxprEqn, inputs: _Inputs, kernel: Array) -> list[Array]:
    """Multiply what varies by its rows of a kernel, and what is common once."""
    (varying,) = evaluate_equation(equation, [inputs.varying, kernel[inputs.columns]])
    (common,) = evaluate_equation(equation, [inputs.common[None], kernel])
    return [varying + common]
