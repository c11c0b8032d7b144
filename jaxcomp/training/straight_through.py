"""Training through a codebook: straight-through quantization, and fine-tuning of the centroids.

Two ways to go on training a quantized network. `quantize_ste` quantizes in the forward pass and
hands the gradient through to the weights as if it had not, so that weights can change clusters.
`fine_tune_codebook` keeps the assignments, and with them the entropy-coded size, and moves only the
centroids: the gradient of a centroid is the sum of the gradients of its weights.

Sources: Bengio, Leonard, Courville, arXiv:1308.3432 (straight-through); Han, Mao, Dally,
arXiv:1510.00149, section 3 (centroid fine-tuning).
"""

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int, PyTree, Shaped

from jaxcomp.numerics import segments
from jaxcomp.numerics.checks import check_floating, is_concrete
from jaxcomp.numerics.transformations import always_compiled, explicit_transfers
from jaxcomp.quantizers.assignment import assign, nearest_thresholds
from jaxcomp.quantizers.histograms import (
    accumulation_dtype,
)
from jaxcomp.types import Batch, LossFn, Params

if TYPE_CHECKING:
    import optax

Assignments: TypeAlias = PyTree[Int[Array, "..."] | None]
"""Cluster of every weight, structured like the network; None for a leaf that is no codebook."""


class FineTunedCodebook(NamedTuple):
    """Centroids after `fine_tune_codebook`.

    Attributes:
        centroids: structured and shaped like those given, same dtypes.
        losses: (steps,) loss before each step, nats.
    """

    centroids: Params
    losses: Float[Array, " steps"]


@always_compiled
def quantize_ste(
    weights: Float[Array, "*shape"], centroids: Float[Array, " clusters"]
) -> Float[Array, "*shape"]:
    """Replace every weight by its nearest centroid; differentiate as if nothing had happened.

    The value: exactly a centroid, ties to the lower one. The derivative, in forward and in reverse
    mode: with respect to the weights that of the identity; with respect to the centroids the true
    one, for fixed assignments (the gradient is the sum over the weights of each). Stop the one that
    is not wanted with `jax.lax.stop_gradient` on its argument. A codebook that `kmeans` or another
    solver fits to the same weights is a constant already.

    Args:
        weights: floating, any shape.
        centroids: (K,), floating, in any order.

    Returns:
        The quantized weights, in the dtype of the weights.

    Raises:
        TypeError: if either is not floating.
        ValueError: if the centroids are no vector with at least one entry.
    """
    weights = check_floating(weights, "weights")
    centroids = check_floating(centroids, "centroids")
    if centroids.ndim != 1 or centroids.size == 0:
        raise ValueError(
            f"centroids must be a vector of at least one entry, got shape {centroids.shape}."
        )
    return _straight_through(weights, centroids)


@explicit_transfers
def look_up(centroids: Params, assignments: Assignments) -> Params:
    """Return the weights that codebooks and assignments stand for.

    Args:
        centroids: a pytree; for a leaf that is quantized its codebook (K,) or (K, m), for another
            the leaf itself.
        assignments: a pytree of the same structure; for a codebook the clusters, shaped like the
            layer (for vectors: like its points), otherwise None.

    Returns:
        Weights, structured like the arguments: `centroids[assignments]`, or the leaf itself.
    """

    def leaf(index: Int[Array, "..."] | None, values: Shaped[Array, "..."]) -> Array:
        if index is None:
            return values
        values, index = jnp.asarray(values), jnp.asarray(index, jnp.int32)
        return segments.look_up(values, index) if values.ndim == 1 else values[index]

    return jax.tree.map(leaf, assignments, centroids, is_leaf=lambda node: node is None)


@explicit_transfers
def fine_tune_codebook(
    loss_fn: LossFn,
    centroids: Params,
    assignments: Assignments,
    batches: Batch,
    *,
    optimizer: "optax.GradientTransformation",
) -> FineTunedCodebook:
    """Train the centroids of a quantized network for some steps, its assignments fixed.

    Leaves that are not quantized stay as they are. The descent runs in float32 for centroids of
    lower precision and rounds once, at the end.

    Args:
        loss_fn: `(params, batch) -> scalar`, mean loss in nats, of the weights as `look_up`
            returns them. Static: pass the same function object each time.
        centroids: codebooks and kept leaves, see `look_up`.
        assignments: clusters and None, of the same structure.
        batches: pytree of arrays with a leading axis (steps, ...): one batch for each step.
        optimizer: such as `optax.adam(1e-3)`. Static, like `loss_fn`.

    Returns:
        The centroids and the loss before each step.

    Raises:
        ValueError: if the two trees differ in structure, nothing is quantized, an assignment is
            beyond its codebook, or the batches have no step or different numbers of them.
        TypeError: if a codebook is not floating or assignments are not integers.
    """
    structure = jax.tree.structure(assignments, is_leaf=lambda node: node is None)
    indices, codebooks = structure.flatten_up_to(assignments), _flatten_like(structure, centroids)
    is_codebook = tuple(index is not None for index in indices)
    if not any(is_codebook):
        raise ValueError("assignments must name the clusters of at least one leaf, all are None.")
    for index, codebook in zip(indices, codebooks, strict=True):
        if index is not None:
            _check_codebook(jnp.asarray(index), check_floating(codebook, "centroids"))
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batches)}
    if len(lengths) != 1 or not all(lengths) or lengths == {(0,)}:
        raise ValueError(
            "batches must be arrays with one leading axis of at least one step, got leading axes "
            f"{sorted(lengths)}."
        )
    return _fine_tune(
        centroids, assignments, batches, loss_fn=loss_fn, optimizer=optimizer, trained=is_codebook
    )


@partial(jax.jit, static_argnames=("loss_fn", "optimizer", "trained"))
def _fine_tune(centroids, assignments, batches, *, loss_fn, optimizer, trained):
    structure = jax.tree.structure(assignments, is_leaf=lambda node: node is None)
    leaves = structure.flatten_up_to(centroids)
    codebooks = [
        jnp.asarray(leaf).astype(accumulation_dtype(jnp.asarray(leaf).dtype))
        for leaf, is_trained in zip(leaves, trained, strict=True)
        if is_trained
    ]

    def fill(codebooks: list[Array]) -> Any:
        """Put the codebooks back among the leaves, in the dtypes they are stored in."""
        values = iter(codebooks)
        return structure.unflatten(
            next(values).astype(jnp.asarray(leaf).dtype) if is_trained else leaf
            for leaf, is_trained in zip(leaves, trained, strict=True)
        )

    def loss(codebooks: list[Array], batch: Batch) -> Array:
        return loss_fn(look_up(fill(codebooks), assignments), batch)

    def step(state, batch):
        codebooks, optimizer_state = state
        value, gradient = jax.value_and_grad(loss)(codebooks, batch)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, codebooks)
        codebooks = jax.tree.map(jnp.add, codebooks, updates)
        return (codebooks, optimizer_state), value

    (codebooks, _), losses = lax.scan(step, (codebooks, optimizer.init(codebooks)), batches)
    return FineTunedCodebook(fill(codebooks), losses)


@jax.custom_jvp
def _straight_through(weights, centroids):
    return _nearest(weights, centroids)[0]


@partial(_straight_through.defjvp, symbolic_zeros=True)
def _(primals, tangents):
    quantized, index = _nearest(*primals)
    of_weights, of_centroids = (
        None if isinstance(tangent, SymbolicZero) else tangent for tangent in tangents
    )
    if of_centroids is None:
        return quantized, of_weights
    return quantized, _change(of_weights, of_centroids, index, dtype=quantized.dtype)


@jax.jit
def _nearest(weights, centroids):
    order = jnp.argsort(centroids)
    thresholds = nearest_thresholds(centroids[order].astype(accumulation_dtype(centroids.dtype)))
    index = order[assign(weights.reshape(-1), thresholds).astype(jnp.int32)]
    quantized = centroids[index].astype(weights.dtype).reshape(weights.shape)
    return quantized, index.reshape(weights.shape)


@partial(jax.jit, static_argnames=("dtype",))
def _change(of_weights, of_centroids, index, *, dtype):
    # Wide where it is added up in reverse: the changes of all weights of a centroid.
    wide = of_centroids.astype(accumulation_dtype(of_centroids.dtype))
    moved = segments.look_up_tangents(wide, index).astype(dtype)
    return moved if of_weights is None else of_weights + moved


def _flatten_like(structure: Any, centroids: Params) -> list[Any]:
    try:
        return structure.flatten_up_to(centroids)
    except (ValueError, TypeError) as error:
        raise ValueError(f"centroids and assignments must have one structure: {error}") from error


def _check_codebook(index: Array, codebook: Array) -> None:
    if not jnp.issubdtype(index.dtype, jnp.integer):
        raise TypeError(f"assignments must be integers, got {index.dtype}.")
    if codebook.ndim == 0 or codebook.size == 0:
        raise ValueError(f"a codebook must have at least one entry, got shape {codebook.shape}.")
    if is_concrete(index) and index.size:
        with jax.ensure_compile_time_eval():
            lowest, highest = int(jnp.min(index)), int(jnp.max(index))
        if lowest < 0 or highest >= codebook.shape[0]:
            raise ValueError(
                f"assignments must be from 0 to {codebook.shape[0] - 1}, the places of the "
                f"codebook, got {lowest} to {highest}."
            )
