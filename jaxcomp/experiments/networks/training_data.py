"""What networks learn from: the arrays of a training, checked before anything is compiled.

Axes: `M` models, `n` examples of one training sample, `P` examples of the pool.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike

from jaxcomp.experiments.networks.config import TrainingConfig
from jaxcomp.experiments.networks.network import Network
from jaxcomp.types import AnyArray


class TrainingData(NamedTuple):
    """Examples that networks learn from, and those that choose when to stop."""

    inputs: Float[AnyArray, "P ..."]
    """Pool of examples of the network's `input_shape`, float32."""
    train_indices: Int[AnyArray, "M n"]
    """Rows of the pool, one sample for each model; repetitions allowed."""
    train_labels: Int[AnyArray, "M n"]
    """Classes, aligned with `train_indices` (labels may be noisy, so they belong to the sample and
    not to the pool)."""
    validation_inputs: Float[AnyArray, "validation ..."]
    """Examples, apart from all training samples, that choose the early stop."""
    validation_labels: Int[AnyArray, "validation"]
    """Their classes."""


class Sample(NamedTuple):
    """Which examples train which model."""

    model_ids: tuple[int, ...]
    indices: Int[np.ndarray, "M n"]
    labels: Int[np.ndarray, "M n"]
    weight_decay: tuple[float, ...]
    l1_penalty: tuple[float, ...]

    def part(self, start: int, stop: int) -> "Sample":
        """Some of the models."""
        return Sample(
            self.model_ids[start:stop],
            self.indices[start:stop],
            self.labels[start:stop],
            self.weight_decay[start:stop],
            self.l1_penalty[start:stop],
        )


class DeviceData(NamedTuple):
    """Arrays on the device that all models share."""

    inputs: Float[Array, "P ..."]
    validation_inputs: Float[Array, "chunks examples ..."]
    validation_labels: Int[Array, "chunks examples"]  # -1 fills the last chunk


def chunks(
    inputs: Float[np.ndarray, "examples ..."], labels: Int[np.ndarray, "examples"], *, size: int
) -> tuple[Array, Array]:
    """Cut examples into chunks of one size on the device; the label -1 marks the filling."""
    num_examples = len(labels)
    num_chunks = -(-num_examples // size)
    size = -(-num_examples // num_chunks)
    missing = num_chunks * size - num_examples
    inputs = np.pad(inputs, [(0, missing)] + [(0, 0)] * (inputs.ndim - 1))
    labels = np.pad(labels, (0, missing), constant_values=-1)
    return jax.device_put(
        (
            inputs.reshape(num_chunks, size, *inputs.shape[1:]),
            labels.reshape(num_chunks, size),
        )
    )


def sample_of(
    data: TrainingData,
    config: TrainingConfig,
    model_ids: Sequence[int],
    weight_decay: Sequence[float] | None,
    l1_penalty: Sequence[float] | None,
) -> Sample:
    """Say which examples and penalties train which model.

    Args:
        data: the arrays.
        config: its penalties are those of all models that are given none.
        model_ids: number of each model.
        weight_decay: of each model.
        l1_penalty: of each model.

    Raises:
        TypeError: if indices or labels are not integers.
        ValueError: if penalties do not fit.
    """
    ids = tuple(model_ids)
    return Sample(
        ids,
        _integers("train_indices", data.train_indices),
        _integers("train_labels", data.train_labels),
        _penalties("weight_decay", weight_decay, config.weight_decay, len(ids)),
        _penalties("l1_penalty", l1_penalty, config.l1_penalty, len(ids)),
    )


def check(
    network: Network, config: TrainingConfig, seed: int, sample: Sample, data: TrainingData
) -> TrainingData:
    """Refuse data that do not fit the network or each other, before anything is compiled.

    Args:
        network: that is to learn.
        config: how.
        seed: of its weights.
        sample: which examples train which model.
        data: the arrays.

    Returns:
        The data with labels as they are computed with.
    """
    validation_labels = _integers("validation_labels", data.validation_labels)
    ids, indices, labels, *penalties = sample
    if indices.ndim != 2 or indices.shape != labels.shape or len(ids) != len(indices) or not ids:
        raise ValueError(
            "train_indices and train_labels must both be (models, examples) with one row for each "
            f"of the model_ids, got {indices.shape}, {labels.shape} and {len(ids)} ids."
        )
    if len(set(zip(ids, *penalties, strict=True))) < len(ids) or not all(
        0 <= number < 2**32 for number in (*ids, seed)
    ):
        raise ValueError(
            "model_ids must be different (for equal penalties), and they and the seed integers in "
            "[0, 2^32), got "
            f"{list(ids)} and {seed}."
        )
    if validation_labels.ndim != 1 or len(validation_labels) != len(data.validation_inputs):
        raise ValueError(
            "There must be one validation label for each validation input, got "
            f"{validation_labels.shape} labels and {len(data.validation_inputs)} inputs."
        )
    for name, array in (("inputs", data.inputs), ("validation_inputs", data.validation_inputs)):
        shape = np.shape(array)
        if shape[1:] != network.input_shape or shape[0] < 1:
            raise ValueError(
                f"{name} must be at least one example of shape {network.input_shape}, which the "
                f"network was built for, got an array {shape}."
            )
    if not 1 <= config.batch_size <= indices.shape[1]:
        raise ValueError(
            f"A batch of {config.batch_size} examples is larger than the training sample of "
            f"{indices.shape[1]}; choose a smaller batch_size."
        )
    if indices.min() < 0 or indices.max() >= len(data.inputs):
        raise ValueError(
            f"train_indices must be rows of the pool of {len(data.inputs)} examples, got values "
            f"from {indices.min()} to {indices.max()}."
        )
    for name, array in (("train_labels", labels), ("validation_labels", validation_labels)):
        if array.min() < 0 or array.max() >= network.num_classes:
            raise ValueError(
                f"{name} must be in 0 to {network.num_classes - 1}, the classes of the network, "
                f"got values from {array.min()} to {array.max()}."
            )
    return data._replace(validation_labels=validation_labels)


def _integers(name: str, array: ArrayLike) -> Int[np.ndarray, "..."]:
    result = np.asarray(array)
    if not np.issubdtype(result.dtype, np.integer):
        raise TypeError(f"{name} must be integers, got {result.dtype}.")
    return result.astype(np.int32)


def _penalties(
    name: str, values: Sequence[float] | None, default: float, num_models: int
) -> tuple[float, ...]:
    if values is None:
        return (float(default),) * num_models
    penalties = tuple(float(value) for value in values)
    if len(penalties) != num_models or not all(0 <= value < math.inf for value in penalties):
        raise ValueError(
            f"{name} must be one number of at least 0 for each of the {num_models} models, got "
            f"{list(penalties)}."
        )
    return penalties
