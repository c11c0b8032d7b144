"""Budgets of the loss on data: the smallest model whose loss rises by no more than a limit."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxcomp.compressed.tree import CompressedTree
from jaxcomp.curvature import DiagonalEstimate, GaussNewton, Layers, over_batches
from jaxcomp.evaluation.metrics import cross_entropy
from jaxcomp.numerics.host import as_array
from jaxcomp.numerics.transformations import all_transfers
from jaxcomp.types import Params

# Bits per weight between which the smallest is looked for, and how many times the interval is cut.
_LEAST_BITS, _MOST_BITS, _CUTS = 0.25, 8.0, 6
# More outputs than this of an example are looked at by labels that are drawn.
_MOST_OUTPUTS, _NUM_DRAWS = 32, 8


@dataclass(frozen=True)
class CalibrationData:
    """A function of weights, and what it is to do.

    Attributes:
        predict_fn: `(params, inputs) -> outputs`, in evaluation mode.
        loss: "softmax_cross_entropy", "squared_error", or `(outputs, target) -> scalar` of one
            example, as for `jaxcomp.curvature.GaussNewton`.
        batches: pairs `(inputs, targets)` with a leading axis of examples.
    """

    predict_fn: Callable[[Params, Any], Any]
    loss: Literal["softmax_cross_entropy", "squared_error"] | Callable[[Any, Any], Array]
    batches: Sequence[tuple[Any, Any]]

    def check(self, params: Params) -> None:
        """Refuse functions that do not take these weights and batches, before anything is done.

        Args:
            params: weights.

        Raises:
            ValueError: if `predict_fn` or `loss` fails, or `loss` is no number for an example.
        """
        inputs, targets = self.batches[0]
        outputs = traced("predict_fn(params, inputs)", self.predict_fn, params, inputs)
        if callable(self.loss):
            # Of each example on its own.
            losses = traced(
                "loss(outputs, target)",
                jax.vmap(self.loss),
                outputs,
                targets,
                hint=" (loss is called with the outputs and the target of one example, without an "
                "axis of examples)",
            )
            shape = getattr(losses, "shape", None)
            if shape is None or len(shape) != 1:
                raise ValueError(
                    "loss(outputs, target) is one number for the outputs and the target of one "
                    f"example, not an array of shape {None if shape is None else shape[1:]}."
                )

    @all_transfers
    def loss_of(self, params: Params) -> float:
        """Return the mean loss of weights over all examples (or positions, of tokens)."""
        params = jax.tree.map(as_array, params)
        total, number = 0.0, 0
        for inputs, targets in self.batches:
            losses = np.asarray(self._losses(params, inputs, targets), np.float64)
            total += float(losses.sum())
            number += losses.size
        loss = total / number
        if not math.isfinite(loss):
            raise ValueError(f"the loss on the data is {loss:g}; check predict_fn and the batches.")
        return loss

    @cached_property
    def _losses(self) -> Callable[..., Float[Array, "..."]]:
        @jax.jit
        def losses(params: Params, inputs: Any, targets: Any) -> Float[Array, "..."]:
            outputs = self.predict_fn(params, inputs)
            if callable(self.loss):
                return jax.vmap(self.loss)(outputs, targets)
            if self.loss == "softmax_cross_entropy":
                return cross_entropy(outputs, targets)
            return jnp.sum((outputs - targets) ** 2, axis=-1)

        return losses


def traced(
    call: str,
    function: Callable[..., Any],
    *arguments: Any,
    hint: str = "",
    of: str = "the first batch",
) -> Any:
    """Return shapes of what a user's function returns, or say in one sentence how it fails.

    Args:
        call: the call in words.
        function: what is called.
        *arguments: its arguments.
        hint: what may help, after the reason.
        of: what it is called on.

    Raises:
        ValueError: if it fails.
    """
    try:
        return jax.eval_shape(function, *arguments)
    except Exception as error:  # whatever a user's function raises
        what = str(error).strip().rstrip(".").splitlines() or [""]
        raise ValueError(
            f"{call} fails on {of}: {type(error).__name__}: {what[0]}{hint}."
        ) from error


def importance_of(params: Params, data: CalibrationData) -> DiagonalEstimate:
    """Return the diagonal of the Gauss-Newton matrix of the loss over all batches."""
    draws = _draws(params, data)
    return over_batches(GaussNewton(data.predict_fn, params, loss=data.loss, **draws), data.batches)


def layers_of(params: Params, data: CalibrationData) -> Layers:
    """Return the data as `HessianRounding` takes them."""
    return Layers(data.predict_fn, data.batches, loss=data.loss, **_draws(params, data))


def _draws(params: Params, data: CalibrationData) -> dict[str, Any]:
    """Say how many labels are drawn: none, for all outputs exactly, where these are few."""
    inputs, _ = data.batches[0]
    outputs = jax.eval_shape(data.predict_fn, params, inputs)
    number = math.prod(outputs.shape[1:]) if hasattr(outputs, "shape") else 0
    if number <= _MOST_OUTPUTS:
        return {}
    return {"num_label_samples": _NUM_DRAWS, "key": jax.random.key(0)}


def smallest_within_loss(
    compress_to: Callable[[float], CompressedTree],
    loss_of: Callable[[CompressedTree], float],
    loss_before: float,
    limit: float,
) -> CompressedTree:
    """Return the coarsest compression whose loss rises by no more than a limit.

    The loss is taken to fall with the bits: the interval of bits is cut in its geometric middle,
    and every tree that is returned was evaluated.

    Args:
        compress_to: bits per weight -> a tree.
        loss_of: the loss of a tree.
        loss_before: of the original.
        limit: on the rise.

    Raises:
        ValueError: if 8 bits per weight are not enough.
    """
    low, high = _LEAST_BITS, _MOST_BITS
    best = compress_to(high)
    rise = loss_of(best) - loss_before
    if rise > limit:
        raise ValueError(
            f"the loss rises by {rise:.3g} with 8 bits per weight already, more than the "
            f"{limit:g} allowed; allow more, or keep the tensors that matter most."
        )
    for _ in range(_CUTS):
        middle = math.sqrt(low * high)
        try:
            tree = compress_to(middle)
        except ValueError:  # fewer bits than the method has
            low = middle
            continue
        if loss_of(tree) - loss_before <= limit:
            best, high = tree, middle
        else:
            low = middle
    return best
