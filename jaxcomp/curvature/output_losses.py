"""Losses of a model's outputs, and columns S of their Hessians: `S S^T = d^2 loss / d outputs^2`.

The outputs of one example have the axes of its *positions* first (tokens, pixels; none for a
classifier), then one of classes or features. The loss of an example adds up over positions, so its
Hessian is block diagonal: exact columns are those of one position after the other, and one random
column s with `E[s s^T] = S S^T` combines them all. For softmax cross-entropy that is
`p - e_y` at every position with a label y of its own, drawn from the model's probabilities p; for
the squared error, and any other loss, columns with random signs.

What the mean loss is a mean of is `reduction`: with the weight v of each position (1 if none are
given) and the loss l of each position,

- `"mean"`: `sum of v l / sum of v` over all positions of all examples, a mean per token: what a
  training loss is that ends in `jnp.mean`, or divides by the number of tokens that are no padding;
- `"example_mean"`: that mean within each example (0 if it has no weight), then the mean over
  examples;
- `"sum"`: the sum of `v l` within each example, then the mean over examples.

All three are the same for a classifier without weights. Axis letters: `E` examples of a chunk, `T`
positions of an example, `V` classes or features.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from jaxcomp.curvature.estimate import diagonal_dtype
from jaxcomp.curvature.functions import as_partial
from jaxcomp.curvature.per_example import Columns
from jaxcomp.curvature.separability import independent_axes
from jaxcomp.numerics.checks import check_count
from jaxcomp.numerics.linear_algebra import eigh
from jaxcomp.types import PRNGKey

OutputLoss = Callable[[Array, Any], Float[Array, ""]]
"""`(outputs, target) -> loss` of one example, in nats, convex in the outputs."""

Reduction = Literal["mean", "example_mean", "sum"]
REDUCTIONS: tuple[str, ...] = get_args(Reduction)

MAX_COLUMNS = 1024
"""Exact columns of one example, and outputs that one dense Hessian links, unless asked for more."""


@dataclass(frozen=True)
class PerPosition:
    """A loss of one position, which adds up over the positions of an example.

    For a loss whose structure cannot be found: of any function of outputs and target the package
    finds by itself over which axes it is a sum, unless it loops or sorts over them.

    Attributes:
        loss_fn: `(outputs (V,), target) -> scalar` of one position, in nats, convex in the outputs.
            The arrays of the target have the axes of positions; a plain pair of them is
            `(target, weights)`.
    """

    loss_fn: OutputLoss


_Named = Literal["softmax_cross_entropy", "squared_error"]
Loss = _Named | OutputLoss | PerPosition
LOSSES: tuple[_Named, ...] = get_args(_Named)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossOfOutputs:
    """A loss with all its options checked; a pytree, so that arrays bound to it are traced.

    Attributes:
        kind: which loss; a function is one of an example or of a position.
        function: the function; None for the other two.
        reduction: what the mean loss is a mean of.
        max_columns: columns of one example at most, see `MAX_COLUMNS`.
    """

    kind: Literal["softmax_cross_entropy", "squared_error", "of_example", "of_position"] = field(
        metadata={"static": True}
    )
    function: Partial | None
    reduction: Reduction = field(metadata={"static": True})
    max_columns: int = field(metadata={"static": True})

    @property
    def has_positions(self) -> bool:
        """Whether positions have weights, and the reduction a meaning."""
        return self.kind != "of_example"

    def total_weight(
        self, output_shape: tuple[int, ...], targets: Any, num_examples: int
    ) -> Float[Array, ""]:
        """Return what the sum over the examples of a batch is divided by; 0 if all weights are.

        Args:
            output_shape: of one example.
            targets: of the batch.
            num_examples: in the batch.
        """
        dtype = jnp.result_type(float)
        if not self.has_positions or self.reduction != "mean":
            return jnp.asarray(num_examples, dtype)
        weights = _weights_of(targets)
        if weights is None:
            return jnp.asarray(num_examples * prod(output_shape[:-1]), dtype)
        return jnp.sum(jnp.asarray(weights, dtype))


def checked_loss(
    loss: Loss, reduction: Reduction = "mean", max_columns: int = MAX_COLUMNS
) -> LossOfOutputs:
    """Check a loss and its options.

    Raises:
        ValueError: naming the losses and reductions there are; or for a number of columns that is
            not positive.
    """
    max_columns = check_count("max_columns", max_columns)
    if not (
        loss in LOSSES if isinstance(loss, str) else callable(loss) or isinstance(loss, PerPosition)
    ):
        raise ValueError(
            f"loss must be one of {', '.join(LOSSES)}, a function (outputs, target) -> scalar of "
            f"one example, or PerPosition of a function of one position, got {loss!r}."
        )
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}.")
    if isinstance(loss, str):
        kind = LOSSES[LOSSES.index(loss)]
        return LossOfOutputs(kind, None, reduction, max_columns)
    name, signature = "loss", "(outputs, target) -> scalar"
    if isinstance(loss, PerPosition):
        function = as_partial(loss.loss_fn, name=name, signature=signature)
        return LossOfOutputs("of_position", function, reduction, max_columns)
    if reduction != "mean":
        raise ValueError(
            f"reduction={reduction!r} is for losses that are known position by position: a "
            "function of a whole example adds up its positions itself; leave reduction out, or "
            "pass PerPosition of a function of one position."
        )
    function = as_partial(loss, name=name, signature=signature)
    return LossOfOutputs("of_example", function, reduction, max_columns)


# --- Columns -------------------------------------------------------------------------------------


class OutputHessian(NamedTuple):
    """How the Hessian of a loss in the outputs of one example falls into blocks.

    Attributes:
        loss: the loss.
        shape: of the outputs of one example.
        block_axes: axes of the outputs that one block spans; over the others it is block diagonal.
    """

    loss: LossOfOutputs
    shape: tuple[int, ...]
    block_axes: tuple[int, ...]

    @property
    def block_size(self) -> int:
        """V, outputs in a block."""
        return prod(self.shape[axis] for axis in self.block_axes)

    @property
    def num_blocks(self) -> int:
        """T, number of blocks."""
        return prod(self.shape) // max(self.block_size, 1)

    @property
    def num_held(self) -> int:
        """Numbers that are held for one example, beside the outputs and one column."""
        is_dense = self.loss.function is not None
        return prod(self.shape) * (3 * self.block_size if is_dense else 3)

    def exact(self, outputs: Float[Array, "E *shape"], targets: Any) -> Columns:
        """Return all columns of a chunk, which are made one by one."""
        factors = jax.vmap(self._factor)(outputs, targets)

        def at(index: Int[Array, ""]) -> Float[Array, "E *shape"]:
            columns = jax.vmap(self._column, in_axes=(0, None))(factors, index)
            return columns.astype(outputs.dtype)

        return Columns(prod(self.shape), at)

    def drawn(
        self,
        outputs: Float[Array, "E *shape"],
        targets: Any,
        key: PRNGKey,
        samples: Int[Array, " S"],
        examples: Int[Array, " E"],
    ) -> Columns:
        """Return S random columns for each example, the square of each with the right mean.

        They are keyed by the numbers of samples and examples, whatever else is drawn with them.
        """

        def at(index: Int[Array, ""]) -> Float[Array, "E *shape"]:
            of_sample = jax.random.fold_in(key, samples[index])
            keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(of_sample, examples)
            return jax.vmap(self._draw)(outputs, targets, keys).astype(outputs.dtype)

        return Columns(samples.size, at)

    def _factor(self, outputs: Float[Array, "*shape"], target: Any) -> Any:
        """What columns are made of: roots of weights and probabilities, or rows of blocks."""
        blocks = self._to_blocks(outputs)
        if self.loss.kind == "softmax_cross_entropy":
            return self._root_weights(target, blocks.dtype), jax.nn.softmax(blocks)
        if self.loss.kind == "squared_error":
            return self._root_weights(target, blocks.dtype)
        dense = self._dense_blocks(outputs, target)
        if self.block_size == 1:
            rows = jnp.sqrt(jnp.maximum(dense, 0.0))
        else:
            values, vectors = eigh(dense)
            rows = jnp.sqrt(jnp.maximum(values, 0.0))[..., None] * jnp.swapaxes(vectors, -1, -2)
        return self._root_weights(target, rows.dtype)[..., None] * rows

    def _column(self, factor: Any, index: Int[Array, ""]) -> Float[Array, "*shape"]:
        """Column number `index`: that of one row of one block, zero in all other blocks."""
        number, row = jnp.divmod(index, self.block_size)
        at_row = jnp.arange(self.block_size, dtype=index.dtype) == row
        if self.loss.kind == "softmax_cross_entropy":
            root, p = factor[0][number], factor[1][number]
            values = root * jnp.sqrt(p[row]) * (at_row.astype(p.dtype) - p)
        elif self.loss.kind == "squared_error":
            values = (
                np.sqrt(2.0).astype(factor.dtype) * factor[number] * at_row.astype(factor.dtype)
            )
        else:
            values = factor[number, row]
        at_block = jnp.arange(self.num_blocks, dtype=index.dtype) == number
        return self._from_blocks(
            jnp.where(at_block.reshape(-1, 1), values.reshape(1, -1), jnp.zeros((), values.dtype))
        )

    def _draw(
        self, outputs: Float[Array, "*shape"], target: Any, key: PRNGKey
    ) -> Float[Array, "*shape"]:
        blocks = self._to_blocks(outputs)
        if self.loss.kind == "softmax_cross_entropy":
            labels = jax.random.categorical(key, blocks).reshape(-1, 1)
            is_label = jnp.arange(self.block_size, dtype=labels.dtype).reshape(1, -1) == labels
            columns = jax.nn.softmax(blocks) - is_label.astype(blocks.dtype)
            columns = columns * self._root_weights(target, blocks.dtype)
        elif self.loss.kind == "squared_error":
            signs = jax.random.rademacher(key, blocks.shape, blocks.dtype)
            scale = np.sqrt(2.0).astype(blocks.dtype)
            columns = scale * signs * self._root_weights(target, blocks.dtype)
        else:
            rows = self._factor(outputs, target)
            signs = jax.random.rademacher(key, rows.shape[:2], rows.dtype)
            columns = jnp.einsum("tc,tcv->tv", signs, rows)
        return self._from_blocks(columns)

    def _root_weights(self, target: Any, dtype: Any) -> Float[Array, "T 1"]:
        """Roots of the weights of the positions of one example, in its sum."""
        weights = _weights_of(target) if self.loss.has_positions else None
        if weights is None:
            weights = jnp.ones((self.num_blocks, 1), dtype)
        weights = jnp.asarray(weights, dtype).reshape(self.num_blocks, 1)
        if self.loss.has_positions and self.loss.reduction == "example_mean":
            total = jnp.sum(weights)
            weights = weights / jnp.where(total > 0, total, jnp.ones_like(total))
        return jnp.sqrt(weights)

    def _dense_blocks(self, outputs: Float[Array, "*shape"], target: Any) -> Float[Array, "T V V"]:
        """Blocks of the Hessian of a function, all of them by V products with it."""
        function = self.loss.function
        assert function is not None
        blocks = self._to_blocks(outputs)
        if self.loss.kind == "of_position":
            return jax.vmap(jax.hessian(function))(blocks, _by_position(target, self.shape[:-1]))

        def loss(blocks: Float[Array, "T V"]) -> Float[Array, ""]:
            return function(self._from_blocks(blocks), target)

        def product(direction: Float[Array, " V"]) -> Float[Array, "T V"]:
            # No two blocks are linked: each sees its own part of the direction alone.
            tangent = jnp.broadcast_to(direction.reshape(1, -1), blocks.shape)
            return jax.jvp(jax.grad(loss), (blocks,), (tangent,))[1]

        return jnp.swapaxes(jax.vmap(product)(jnp.eye(self.block_size, dtype=blocks.dtype)), 0, 1)

    def _to_blocks(self, outputs: Float[Array, "*shape"]) -> Float[Array, "T V"]:
        """Outputs of one example, in at least 32 bits, block by block."""
        outputs = outputs.astype(diagonal_dtype(outputs.dtype))
        return jnp.transpose(outputs, self._order()).reshape(self.num_blocks, self.block_size)

    def _from_blocks(self, blocks: Float[Array, "T V"]) -> Float[Array, "*shape"]:
        order = self._order()
        moved = blocks.reshape([self.shape[axis] for axis in order])
        return jnp.transpose(moved, tuple(np.argsort(order).tolist()))

    def _order(self) -> tuple[int, ...]:
        others = [axis for axis in range(len(self.shape)) if axis not in self.block_axes]
        return (*others, *self.block_axes)


def output_hessian(
    loss: LossOfOutputs, outputs: jax.ShapeDtypeStruct, targets: Any, *, is_exact: bool
) -> OutputHessian:
    """Find the blocks of the outputs' Hessian, and refuse what would be too many columns.

    Args:
        loss: the loss.
        outputs: shape and dtype of the outputs of one example.
        targets: of a batch.
        is_exact: whether all columns are wanted, or one that is drawn.

    Raises:
        ValueError: if the outputs do not fit the loss, weights not the outputs, or there are more
            columns, or more outputs in a block of a function, than `max_columns`.
    """
    shape = tuple(outputs.shape)
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(jnp.shape(x)[1:], jnp.result_type(x)), targets
    )
    block_axes = (len(shape) - 1,) if shape else ()
    if loss.kind == "of_example":
        block_axes = _axes_of_blocks(loss, outputs, target)
    else:
        _check_positions(loss, outputs, target)
    hessian = OutputHessian(loss, shape, block_axes)
    if is_exact and prod(shape) > loss.max_columns:
        raise ValueError(
            f"the exact diagonal takes {prod(shape):,} backward passes for an example, one for "
            f"each of {hessian.num_blocks:,} x {hessian.block_size:,} outputs, more than "
            f"max_columns={loss.max_columns:,}: pass num_label_samples and a key to draw labels "
            "from the model, one backward pass each, or raise max_columns."
        )
    if loss.function is not None and hessian.block_size > loss.max_columns:
        may_be_split = hessian.num_blocks == 1 and len(shape) > 1
        what = (
            "PerPosition of a function of one position if it adds up over positions"
            if may_be_split
            else f"its name if it is one of {', '.join(LOSSES)}"
        )
        raise ValueError(
            f"the loss links {hessian.block_size:,} of the {prod(shape):,} outputs of an example "
            "with each other, as far as can be seen, so that its Hessian has dense matrices of "
            f"that size, more than max_columns={loss.max_columns:,}: pass as loss {what}, or raise "
            "max_columns."
        )
    return hessian


def _axes_of_blocks(
    loss: LossOfOutputs, outputs: jax.ShapeDtypeStruct, target: Any
) -> tuple[int, ...]:
    assert loss.function is not None
    outputs = jax.ShapeDtypeStruct(outputs.shape, diagonal_dtype(outputs.dtype))
    _check_scalar(jax.eval_shape(loss.function, outputs, target).shape, "example")
    separate = independent_axes(loss.function, outputs, target)
    return tuple(axis for axis in range(len(outputs.shape)) if axis not in separate)


def _check_scalar(shape: tuple[int, ...], what: str) -> None:
    if shape != ():
        raise ValueError(f"loss must return a scalar for one {what}, got the shape {shape}.")


def _check_positions(loss: LossOfOutputs, outputs: jax.ShapeDtypeStruct, target: Any) -> None:
    shape, dtype = tuple(outputs.shape), diagonal_dtype(outputs.dtype)
    if not shape and loss.kind != "squared_error":
        raise ValueError(
            "the loss needs outputs (batch, ..., classes), got outputs of shape ('batch',); pass "
            "loss as a function (outputs, target) -> scalar of one example."
        )
    positions = shape[:-1]
    weights = _weights_of(target)
    if weights is not None and tuple(weights.shape) != positions:
        raise ValueError(
            "targets are a pair, (targets, weights), so that the weights need the shape of the "
            f"positions, {('batch', *positions)}, got {('batch', *weights.shape)}; pass targets of "
            "several parts as a dictionary."
        )
    if loss.function is not None:
        found = [tuple(x.shape) for x in jax.tree.leaves(target)]
        if any(found_shape[: len(positions)] != positions for found_shape in found):
            raise ValueError(
                f"the targets of a loss of one position need the axes {('batch', *positions)} of "
                f"the outputs first, got the shapes {[('batch', *x) for x in found]}."
            )
        blocks = jax.ShapeDtypeStruct((prod(positions), shape[-1]), dtype)
        own = jax.eval_shape(lambda t: _by_position(t, positions), target)
        _check_scalar(jax.eval_shape(jax.vmap(loss.function), blocks, own).shape[1:], "position")


def _weights_of(target: Any) -> Any:
    """Return the weights of the positions, if the target is a plain pair; else None."""
    return target[1] if type(target) in (tuple, list) and len(target) == 2 else None


def _by_position(target: Any, positions: tuple[int, ...]) -> Any:
    """Return the targets of all positions of an example, without weights, along one axis."""
    own = target if _weights_of(target) is None else target[0]
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(positions) :]), own)
