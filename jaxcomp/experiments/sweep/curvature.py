"""How each importance of a sweep is measured at a trained network."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcomp.adapters import freeze
from jaxcomp.curvature import (
    CurvaturePolicy,
    DiagonalEstimate,
    Fisher,
    GaussNewton,
    Hutchinson,
    adam_second_moments,
    check_finite,
    over_batches,
)
from jaxcomp.curvature.units import in_units_of
from jaxcomp.experiments.samples import distinct, filled_up
from jaxcomp.experiments.sweep.importance import PROBES
from jaxcomp.experiments.sweep.tasks import Classification, Task
from jaxcomp.trees.selection import Select
from jaxcomp.types import Params, PredictFn

Layers = dict[str, jax.Array]

BATCH_SIZE = 256
# Above this many outputs of an example labels are sampled, since the exact diagonal costs a pass
# for each.
MAX_EXACT_OUTPUTS = 64
NUM_LABEL_SAMPLES = 16
# Whose curvature in the outputs is the same for all targets.
_LOSSES_WITHOUT_TARGETS = ("softmax_cross_entropy", "squared_error")
# Steps of Adam are on small batches, as in training.
ADAM_BATCH_SIZE = 10


class Curvatures(NamedTuple):
    """Importance of every weight.

    Attributes:
        importance: by name, non-negative values by path; None for equal ones.
        reference: the Gauss-Newton diagonal, which predicts the rise of the training loss.
        num_raised: by name, entries that the policy raised.
    """

    importance: dict[str, Layers | None]
    reference: Layers
    num_raised: dict[str, int]


def measure_curvature(
    predict_fn: PredictFn,
    params: Params,
    examples: tuple[np.ndarray, np.ndarray],
    names: Sequence[str],
    *,
    select: Select,
    num_probes: int,
    key: jax.Array,
    policy: CurvaturePolicy | None = None,
    task: Task = Classification(),  # noqa: B008
    calibration: float = 1.0,
) -> Curvatures:
    """Measure the curvature of the mean loss at a network, and what weighs it.

    Args:
        predict_fn: `(params, inputs) -> outputs`, evaluation mode.
        params: all arrays of the network.
        examples: inputs, and targets as the task has them.
        names: of the importances, see `IMPORTANCES`.
        select: the weights whose curvature is wanted; all others are constants.
        num_probes: of `hutchinson`.
        key: for probes and sampled labels; consumed.
        policy: for negative and vanishing entries; the default one if None.
        task: what the network is for.
        calibration: of the raw loss, whose curvature `reference` is.

    Raises:
        ValueError: if an estimate is not finite.
    """
    policy = CurvaturePolicy() if policy is None else policy
    # What stays constant is traced by nobody, and arrays of NumPy take no traced index.
    params = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, params)
    predict, layers = freeze(predict_fn, params, select)
    loss, _ = freeze(task.loss_fn(predict_fn), params, select)
    inputs, labels = examples
    batches = _batches(inputs, labels, BATCH_SIZE)
    shape = jax.eval_shape(predict, layers, inputs[:1]).shape
    factor = task.curvature_factor(calibration, shape[-1])
    is_exact = math.prod(shape[1:]) <= MAX_EXACT_OUTPUTS
    sampled: dict[str, Any] = (
        {} if is_exact else {"num_label_samples": NUM_LABEL_SAMPLES, "key": key}
    )

    def measure(name: str) -> DiagonalEstimate:
        match = PROBES.fullmatch(name)
        if name == "gauss_newton":
            wanted = task.curvature_targets(labels)
            newton = GaussNewton(predict, layers, loss=task.output_loss, **sampled)
            # Drawn labels differ between repeated examples; other losses may look at the targets.
            is_counted = is_exact and task.output_loss in _LOSSES_WITHOUT_TARGETS
            if is_counted and isinstance(wanted, np.ndarray):
                parts = _counted_batches(inputs, wanted, BATCH_SIZE // 2)
            else:
                parts = _batches(inputs, wanted, BATCH_SIZE)
            estimate = over_batches(newton, parts)
            return estimate if factor == 1 else _times(estimate, factor)
        if name == "fisher":
            return over_batches(Fisher(loss, layers), batches)
        if name == "adam":
            return _adam(loss, layers, inputs, labels)
        probes = num_probes if match is None else int(match[1])
        hutchinson = Hutchinson(loss, layers, key=key, num_probes=probes)
        return over_batches(hutchinson, batches)

    def plain(estimate: DiagonalEstimate) -> DiagonalEstimate:
        # Layers are weighed against each other, without units of their own.
        return check_finite(in_units_of(estimate, None))

    with jax.default_matmul_precision("highest"):
        reference = plain(measure("gauss_newton"))
        importance: dict[str, Layers | None] = {"none": None}
        num_raised: dict[str, int] = {"none": 0}
        for name in names:
            if name != "none":
                estimate = reference if name == "gauss_newton" else plain(measure(name))
                importance[name], report = policy.apply(estimate)
                raised = jax.device_get([leaf.num_raised for leaf in report.values()])
                num_raised[name] = int(np.sum(raised))
    return Curvatures(importance, reference.mean, num_raised)


def _batches(inputs: np.ndarray, targets: Any, size: int) -> list[tuple[Any, Any]]:
    """Cut examples into batches of at most a size: of one size, if more than half of it can be."""
    # A ragged last batch costs a compilation of its own.
    number = len(inputs)
    even = (own for own in range(min(size, number), size // 2, -1) if number % own == 0)
    size = next(even, size)
    return [
        jax.tree.map(lambda array, i=i: array[i : i + size], (inputs, targets))
        for i in range(0, len(inputs), size)
    ]


def _counted_batches(
    inputs: np.ndarray, targets: np.ndarray, size: int
) -> list[tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]]:
    """Cut the distinct inputs into batches of one size, with how often each is there as weights.

    What fills up the last batch, and so the one shape that networks share, weighs nothing.
    """
    first, places = distinct(inputs)
    size = min(size, len(inputs))
    number = -(-len(first) // size) * size
    filled = filled_up(first, number)
    weights = np.bincount(places, minlength=number).astype(np.float32)
    unread = np.zeros((number, *targets.shape[1:]), targets.dtype)
    return [
        (filled[i : i + size], (unread[i : i + size], weights[i : i + size]))
        for i in range(0, number, size)
    ]


def _times(estimate: DiagonalEstimate, factor: float) -> DiagonalEstimate:
    mean, error = (
        jax.tree.map(lambda leaf: factor * leaf, tree)
        for tree in (estimate.mean, estimate.standard_error)
    )
    return estimate._replace(mean=mean, standard_error=error)


def _adam(loss: Any, layers: Layers, inputs: np.ndarray, labels: np.ndarray) -> DiagonalEstimate:
    """Second moments that Adam gathers at the trained weights, over one pass of small batches."""
    size = min(ADAM_BATCH_SIZE, len(labels))
    num_batches = len(labels) // size
    cut = num_batches * size
    batches = (
        inputs[:cut].reshape(num_batches, size, *inputs.shape[1:]),
        labels[:cut].reshape(num_batches, size, *labels.shape[1:]),
    )
    return adam_second_moments(_adam_state(loss, layers, batches))


@jax.jit
def _adam_state(loss: Any, layers: Layers, batches: tuple[Any, Any]) -> Any:
    adam = optax.scale_by_adam()

    def step(state: Any, batch: tuple[Any, Any]) -> tuple[Any, None]:
        _, state = adam.update(jax.grad(loss)(layers, batch), state)
        return state, None

    return jax.lax.scan(step, adam.init(layers), batches)[0]
