"""Whether the examples of a batch depend on each other, which curvature by examples presumes not.

The squared gradients of single examples are taken one example at a time. A model that normalises
by the statistics of its batch (batch normalization in training mode) gives other outputs for an
example alone, such as zeros, and curvature without meaning. So a few examples are evaluated
together and one by one, once for each call of an estimator, and the results are compared: two
forward passes. Where the values are not known (inside `jit`, `vmap` or `grad`) nothing is compared.
Axis letter: `E` examples that are compared.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcomp.curvature.estimate import count_examples
from jaxcomp.numerics.checks import is_concrete
from jaxcomp.types import Batch, Params

NUM_COMPARED = 4
"""E at most: a batch of two could agree by chance, more costs more."""

_LEAST_TOLERANCE, _MOST_TOLERANCE = 1e-6, 0.1
"""Bounds of what rounding may explain, of the largest output. Measured on a CPU, in float32,
bfloat16 and float16, on perceptrons of 2 to 32 layers, LeNet-5, a language model, MiniLM and sums
of 65,536 terms: exactly 0, for examples one by one are mapped to the same products as a batch, but
for 4e-7 in a plain sum in float32. Only a bfloat16 sum of numbers of one sign minus its mean went
beyond (0.4), which has no digit left."""

_ADVICE = (
    "put the model into evaluation mode (dropout off, batch normalization by running statistics), "
    "such as by model.eval(), train=False or inference=True."
)


def check_outputs_are_independent(
    predict_fn: Callable[[Params, Any], Any], params: Params, inputs: Any
) -> None:
    """Refuse a model whose outputs for one example depend on the others; for use outside `jit`.

    Args:
        predict_fn: `(params, inputs) -> outputs`, a pytree as an argument of a compiled function.
        params: the weights.
        inputs: pytree with leading axis of examples. A single example is compared with nothing.

    Raises:
        ValueError: if outputs differ by more than rounding explains.
    """
    few = _few(inputs, "inputs", (predict_fn, params))
    if few is None:
        return
    found = _difference_of_outputs(predict_fn, params, few)
    if not is_concrete(found[0]):  # the function closes over what is not known
        return
    difference, tolerance = jax.device_get(found)
    if difference > tolerance:
        raise ValueError(
            f"the outputs for an example depend on the others in its batch (alone they differ by "
            f"{difference:.2g} of the largest output), but curvature is taken one example at a "
            f"time; {_ADVICE}"
        )


def check_losses_are_independent(
    loss_fn: Callable[[Params, Batch], Float[Array, ""]], params: Params, batch: Batch
) -> None:
    """Refuse a loss whose value for one example depends on the others; for use outside `jit`.

    The loss of a batch must be a mean of the losses of its examples, a weighted one (by tokens,
    say) if it likes, or their sum.

    Args:
        loss_fn: `(params, batch) -> scalar`, a pytree as an argument of a compiled function.
        params: the weights.
        batch: pytree with leading axis of examples; two examples or one are not compared, nor what
            is no scalar.

    Raises:
        ValueError: if no weights of the examples explain the loss of the batch.
    """
    few = _few(batch, "batch", (loss_fn, params))
    found = None if few is None else _losses(loss_fn, params, few)
    # Not known: the function closes over what is not.
    if found is None or not is_concrete(found.together):
        return
    losses = jax.device_get(found)
    if losses.are_explained() or count_examples(few) < 3:
        return
    if not _is_weighted_mean(loss_fn, params, few, float(losses.tolerance)):
        raise ValueError(
            f"the loss of a batch is no mean of the losses of its examples ({losses.together:.4g} "
            f"for {count_examples(few)} examples with {np.array2string(losses.alone, precision=4)} "
            f"each), but curvature is taken one example at a time; {_ADVICE}"
        )


def _few(batch: Any, name: str, others: Any) -> Any:
    """Return examples from all over the batch; None if there is nothing to be compared."""
    if not all(
        is_concrete(leaf) and not isinstance(leaf, jax.ShapeDtypeStruct)
        for leaf in jax.tree.leaves((batch, others))
    ):
        return None
    num_examples = count_examples(batch, name=name)
    if num_examples < 2:
        return None
    return _taken(batch, np.linspace(0, num_examples - 1, min(num_examples, NUM_COMPARED)))


def _taken(batch: Any, rows: Any) -> Any:
    """Return some examples: of arrays of NumPy by NumPy, of all others by one program."""
    rows = np.asarray(rows).astype(np.int32)
    leaves, structure = jax.tree.flatten(batch)
    places = [place for place, x in enumerate(leaves) if isinstance(x, jax.Array)]
    taken = _rows_of([leaves[place] for place in places], rows) if places else []
    found = dict(zip(places, taken, strict=True))
    return structure.unflatten(
        [found[place] if place in found else x[rows] for place, x in enumerate(leaves)]
    )


@jax.jit
def _rows_of(arrays: list[Array], rows: Int[np.ndarray, " E"]) -> list[Array]:
    return [array[rows] for array in arrays]


def _one_by_one(function: Callable[[Any], Any], few: Any) -> Any:
    """Evaluate a function of a batch on batches of one example each."""
    return jax.vmap(lambda example: function(jax.tree.map(lambda x: x[None], example)))(few)


@jax.jit
def _difference_of_outputs(
    predict_fn: Callable[[Params, Any], Any], params: Params, few: Any
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the largest difference, relative to the largest output, and what rounding explains."""
    with jax.default_matmul_precision("highest"):
        together = predict_fn(params, few)
        alone = _one_by_one(lambda example: predict_fn(params, example), few)
        tolerance = _tolerance(predict_fn, params, few)
    differences = [jnp.zeros(())]
    for whole, single in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        # (E, 1, ...) beside (E, ...): what has no axis of examples is no output of an example.
        is_output = jnp.ndim(whole) > 0 and jnp.shape(single) == (len(whole), 1, *whole.shape[1:])
        if not is_output or not jnp.issubdtype(whole.dtype, jnp.floating):
            continue
        # NaN and infinity say nothing here; they are found elsewhere.
        is_known = jnp.isfinite(whole) & jnp.isfinite(single[:, 0])
        size = jnp.max(jnp.where(is_known, jnp.abs(whole), 0), initial=0)
        size = jnp.maximum(size, jnp.max(jnp.where(is_known, jnp.abs(single[:, 0]), 0), initial=0))
        gap = jnp.max(jnp.where(is_known, jnp.abs(whole - single[:, 0]), 0), initial=0)
        relative = jnp.where(size > 0, gap / size, jnp.zeros_like(gap))
        differences.append(relative.astype(differences[0].dtype))
    return jnp.max(jnp.stack(differences)), jnp.asarray(tolerance, differences[0].dtype)


class _Losses(NamedTuple):
    """Losses of a few examples, alone and together, and what rounding explains of a loss."""

    alone: Float[Array, " E"]
    together: Float[Array, ""]
    tolerance: Float[Array, ""]

    def are_explained(self) -> bool:
        """Whether the loss of all is the mean or the sum of the losses, or nothing is known."""
        if not (np.all(np.isfinite(self.alone)) and np.isfinite(self.together)):
            return True
        slack = float(self.tolerance) * max(float(np.max(np.abs(self.alone))), 1e-30)
        mean, total = float(np.mean(self.alone)), float(np.sum(self.alone))
        return min(abs(float(self.together) - allowed) for allowed in (mean, total)) <= slack


@jax.jit
def _losses(loss_fn: Callable[[Params, Batch], Array], params: Params, few: Any) -> _Losses | None:
    """Return the losses of a few examples; None for what is no loss."""
    if getattr(jax.eval_shape(loss_fn, params, few), "shape", None) != ():
        return None
    with jax.default_matmul_precision("highest"):
        together = loss_fn(params, few)
        alone = _one_by_one(lambda example: loss_fn(params, example), few)
        tolerance = _tolerance(loss_fn, params, few)
    return _Losses(alone, together, jnp.asarray(tolerance, together.dtype))


def _is_weighted_mean(
    loss_fn: Callable[[Params, Batch], Array], params: Params, few: Any, tolerance: float
) -> bool:
    """Whether three examples have weights with which the loss of any of them is a weighted mean.

    For a set s of examples with the losses l and the weights w that says
    `sum over i in s of w_i (l_i - loss(s)) = 0`. Three pairs and all three are four such equations
    for three weights.
    """
    three = _taken(few, range(3))
    alone = np.asarray(_known_losses(loss_fn, params, three).alone, np.float64)
    equations = np.zeros((4, 3))
    for equation, rows in zip(equations, ([0, 1], [0, 2], [1, 2], [0, 1, 2]), strict=True):
        some = _known_losses(loss_fn, params, _taken(three, rows))
        equation[rows] = alone[rows] - float(some.together)
    slack = tolerance * max(float(np.max(np.abs(alone))), 1e-30)
    _, values, vectors = np.linalg.svd(equations)
    weights = vectors[-1] * np.sign(np.sum(vectors[-1]))
    return bool(values[-1] <= 2 * slack and np.all(weights >= -1e-3))


def _known_losses(loss_fn: Callable[[Params, Batch], Array], params: Params, few: Any) -> _Losses:
    losses = jax.device_get(_losses(loss_fn, params, few))
    assert losses is not None
    return losses


def _tolerance(function: Callable[..., Any], *arguments: Any) -> float:
    """Return the relative difference that rounding may make: by the shortest dtype within."""
    jaxpr: Any = jax.make_jaxpr(function)(*arguments)
    epsilon = max(_epsilons(jaxpr.jaxpr), default=0.0)
    return float(np.clip(4 * np.sqrt(epsilon), _LEAST_TOLERANCE, _MOST_TOLERANCE))


def _epsilons(jaxpr: Any) -> set[float]:
    """Return the machine epsilons of all floating numbers that a jaxpr meets."""
    found = set()
    for variable in (*jaxpr.invars, *(v for equation in jaxpr.eqns for v in equation.outvars)):
        dtype = getattr(variable.aval, "dtype", None)
        if dtype is not None and jnp.issubdtype(dtype, jnp.floating):
            found.add(float(jnp.finfo(dtype).eps))
    for equation in jaxpr.eqns:
        for parameter in jax.tree.leaves(equation.params, is_leaf=_is_jaxpr):
            if _is_jaxpr(parameter):
                found |= _epsilons(getattr(parameter, "jaxpr", parameter))
    return found


def _is_jaxpr(parameter: Any) -> bool:
    return hasattr(getattr(parameter, "jaxpr", parameter), "eqns")
