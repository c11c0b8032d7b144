"""What weighs the squared error of a weight in K-means: the names, and how each is measured."""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxcomp.adapters import CrossEntropyLoss, freeze
from jaxcomp.curvature import (
    CurvaturePolicy,
    DiagonalEstimate,
    adam_second_moments,
    fisher_diagonal,
    gauss_newton_diagonal,
    hutchinson_diagonal,
    over_batches,
)
from jaxcomp.trees.selection import Select
from jaxcomp.types import Params, PredictFn

Layers = dict[str, jax.Array]

BATCH_SIZE = 256
# Above this many classes labels are sampled, since the exact diagonal costs a pass for each.
MAX_EXACT_CLASSES = 64
NUM_LABEL_SAMPLES = 16
# Steps of Adam are on small batches, as in training.
ADAM_BATCH_SIZE = 10


class ImportanceName(NamedTuple):
    """How an importance is spoken of.

    Attributes:
        label: in a table or picture.
        sentence: the quantizer, in a sentence.
        colour: in pictures.
        description: what it is, for `--help`.
    """

    label: str
    sentence: str
    colour: str
    description: str


IMPORTANCES: dict[str, ImportanceName] = {
    "none": ImportanceName("unweighted", "K-means", "#0072B2", "all weights alike"),
    "gauss_newton": ImportanceName(
        "Gauss-Newton",
        "Gauss-Newton-weighted K-means",
        "#D55E00",
        "exact diagonal of the Gauss-Newton matrix",
    ),
    "hutchinson": ImportanceName(
        "Hutchinson",
        "Hutchinson-weighted K-means",
        "#CC79A7",
        "random probes of the Hessian's diagonal; hutchinson-16 with 16 of them",
    ),
    "fisher": ImportanceName(
        "Fisher", "Fisher-weighted K-means", "#009E73", "squared gradients at the true labels"
    ),
    "adam": ImportanceName(
        "Adam", "Adam-weighted K-means", "#E69F00", "roots of Adam's second moments"
    ),
}
ALLOWED = ", ".join([*IMPORTANCES, "hutchinson-N"])

_PROBES = re.compile(r"hutchinson-(\d+)")


def is_importance(name: str) -> bool:
    """Tell whether there is an importance of that name."""
    match = _PROBES.fullmatch(name)
    return name in IMPORTANCES or (match is not None and int(match[1]) >= 2)


def importance_name(name: str) -> ImportanceName:
    """Return how an importance is spoken of; an unknown one by its own name."""
    match = _PROBES.fullmatch(name)
    if match is not None:
        known = IMPORTANCES["hutchinson"]
        return known._replace(
            label=f"{known.label} ({match[1]} probes)",
            sentence=f"Hutchinson-weighted K-means ({match[1]} probes)",
        )
    return IMPORTANCES.get(name, ImportanceName(name, f"{name}-weighted K-means", "#6b6b6b", name))


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
) -> Curvatures:
    """Measure the curvature of the mean cross-entropy at a network, and what weighs it.

    Args:
        predict_fn: `(params, inputs) -> logits`, evaluation mode.
        params: all arrays of the network.
        examples: inputs and integer labels.
        names: of the importances, see `IMPORTANCES`.
        select: the weights whose curvature is wanted; all others are constants.
        num_probes: of `hutchinson`.
        key: for probes and sampled labels; consumed.
        policy: for negative and vanishing entries; the default one if None.

    Raises:
        ValueError: if an estimate is not finite.
    """
    policy = CurvaturePolicy() if policy is None else policy
    predict, layers = freeze(predict_fn, params, select)
    loss, _ = freeze(CrossEntropyLoss(predict_fn), params, select)
    inputs, labels = examples
    batches = _batches(inputs, labels, BATCH_SIZE)
    num_classes = jax.eval_shape(predict, layers, inputs[:1]).shape[-1]
    sampled: dict[str, Any] = (
        {}
        if num_classes <= MAX_EXACT_CLASSES
        else {"num_label_samples": NUM_LABEL_SAMPLES, "key": key}
    )

    def measure(name: str) -> DiagonalEstimate:
        match = _PROBES.fullmatch(name)
        if name == "gauss_newton":
            return over_batches(partial(gauss_newton_diagonal, predict, layers, **sampled), batches)
        if name == "fisher":
            return over_batches(partial(fisher_diagonal, loss, layers), batches)
        if name == "adam":
            return _adam(loss, layers, inputs, labels)
        probes = num_probes if match is None else int(match[1])
        kernel = partial(hutchinson_diagonal, loss, layers, key=key, num_probes=probes)
        return over_batches(kernel, batches)

    with jax.default_matmul_precision("highest"):
        reference = measure("gauss_newton")
        importance: dict[str, Layers | None] = {"none": None}
        num_raised: dict[str, int] = {"none": 0}
        for name in names:
            if name != "none":
                estimate = reference if name == "gauss_newton" else measure(name)
                importance[name], report = policy.apply(estimate)
                num_raised[name] = int(sum(np.sum(leaf.num_raised) for leaf in report.values()))
    return Curvatures(importance, reference.mean, num_raised)


def _batches(inputs: np.ndarray, labels: np.ndarray, size: int) -> list[tuple[Any, Any]]:
    return [(inputs[i : i + size], labels[i : i + size]) for i in range(0, len(labels), size)]


def _adam(loss: Any, layers: Layers, inputs: np.ndarray, labels: np.ndarray) -> DiagonalEstimate:
    """Second moments that Adam gathers at the trained weights, over one pass of small batches."""
    size = min(ADAM_BATCH_SIZE, len(labels))
    num_batches = len(labels) // size
    cut = num_batches * size
    batches = (
        inputs[:cut].reshape(num_batches, size, *inputs.shape[1:]),
        labels[:cut].reshape(num_batches, size),
    )
    return adam_second_moments(_adam_state(loss, layers, batches))


@jax.jit
def _adam_state(loss: Any, layers: Layers, batches: tuple[Any, Any]) -> Any:
    adam = optax.scale_by_adam()

    def step(state: Any, batch: tuple[Any, Any]) -> tuple[Any, None]:
        _, state = adam.update(jax.grad(loss)(layers, batch), state)
        return state, None

    return jax.lax.scan(step, adam.init(layers), batches)[0]
