"""Three parts that never meet: training samples, the validation set, and the test set.

Axis letters: `M` models, `n` training examples of one model, `s` validation examples.

The validation set is drawn first from the training pool, without replacement, and is common to
all models. Every model draws its own training sample from the rest of the pool. So the validation
set shares no example with any training sample, and the test set, which is no part of the
pool, shares none with either.

Label noise is the experiment's corruption of what is learned: it changes the labels of the
training samples only. The validation set is the trusted one, on which variants and
temperatures are chosen, and the test set measures the truth; both keep their clean labels.

Each draw has a stream of its own, addressed by the seed, its purpose and the model index, so
that model m is the same however many models there are, and the same examples are drawn whatever
the label noise is.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from jaxcomp.experiments.data.dataset import Dataset
from jaxcomp.numerics.checks import check_count

_VALIDATION_STREAM, _TRAIN_STREAM, _NOISE_STREAM = 1, 2, 3


class Parts(NamedTuple):
    """Which examples of the pool are learned by which model, and which ones select.

    Attributes:
        train_indices: `(M, n)` int32 into the pool, in the order drawn.
        train_labels: `(M, n)` int32, with label noise.
        validation_indices: `(s,)` int32 into the pool, ascending, common to all models.
    """

    train_indices: Int32[np.ndarray, "models examples"]
    train_labels: Int32[np.ndarray, "models examples"]
    validation_indices: Int32[np.ndarray, " validation"]


def draw_parts(
    dataset: Dataset,
    *,
    num_models: int,
    train_size: int,
    validation_size: int,
    replacement: bool,
    label_noise: float,
    seed: int,
) -> Parts:
    """Draw the validation set and every model's training sample, deterministically.

    With label noise p, every example of the pool has, independently per model, its label
    replaced with probability p by one of the other classes, each as likely. An example that
    comes several times in a sample has the same label every time, and with the same seed the
    labels wrong at p are also wrong at any larger p.

    Args:
        dataset: the data set; only its pool is used.
        num_models: M, at least 1.
        train_size: n, at least 1. Without replacement at most what the validation set leaves.
        validation_size: s, at least 1 and smaller than the pool.
        replacement: whether a training sample may hold an example more than once.
        label_noise: p, from 0 up to but not including 1.
        seed: at least 0; the same seed gives the same parts.

    Returns:
        Indices into the pool and labels.

    Raises:
        TypeError: if a size or the seed is not an integer.
        ValueError: one sentence, if a size is below 1, if the parts do not fit the pool, or if
            `label_noise` or `seed` is out of range.
    """
    check_count("num_models", num_models)
    check_count("train_size", train_size)
    check_count("validation_size", validation_size)
    check_count("seed", seed, 0)
    if not 0 <= label_noise < 1:
        raise ValueError(
            f"label_noise must be a probability from 0 up to but not including 1, got "
            f"{label_noise}; 0 keeps every label."
        )
    if label_noise > 0 and dataset.num_classes < 2:
        raise ValueError(
            f"label_noise needs at least 2 classes to exchange labels, got {dataset.num_classes}; "
            "use 0."
        )
    pool_size = len(dataset.pool_labels)
    _check_fit(dataset.name, pool_size, train_size, validation_size, replacement)

    shuffled = _generator(seed, _VALIDATION_STREAM).permutation(pool_size)
    validation = np.sort(shuffled[:validation_size])
    rest = np.sort(shuffled[validation_size:])
    train_indices = np.empty((num_models, train_size), np.int32)
    train_labels = np.empty((num_models, train_size), np.int32)
    for model in range(num_models):
        generator = _generator(seed, _TRAIN_STREAM, model)
        train_indices[model] = generator.choice(rest, train_size, replace=replacement)
        labels = _noisy_labels(
            dataset.pool_labels,
            dataset.num_classes,
            label_noise,
            _generator(seed, _NOISE_STREAM, model),
        )
        train_labels[model] = labels[train_indices[model]]
    return Parts(train_indices, train_labels, validation.astype(np.int32))


def _check_fit(
    name: str, pool_size: int, train_size: int, validation_size: int, replacement: bool
) -> None:
    """Refuse parts that the pool cannot fill."""
    num_left = pool_size - validation_size
    if num_left < 1:
        raise ValueError(
            f"A validation set of {validation_size} leaves nothing to train on: the training "
            f"pool of {name} has {pool_size} examples; reduce the size of the validation set."
        )
    if not replacement and train_size > num_left:
        raise ValueError(
            f"A training sample of {train_size} without replacement and a validation set of "
            f"{validation_size} need {train_size + validation_size} examples, but the training "
            f"pool of {name} has {pool_size}; reduce the training size to at most {num_left}, "
            "reduce the size of the validation set, or draw with replacement."
        )


def _generator(seed: int, *address: int) -> np.random.Generator:
    """Give the stream of one draw; a spawn key cannot collide with a seed as a list could."""
    return np.random.default_rng(np.random.SeedSequence(int(seed), spawn_key=address))


def _noisy_labels(
    labels: np.ndarray, num_classes: int, label_noise: float, generator: np.random.Generator
) -> np.ndarray:
    """Move each label with probability `label_noise` to another class, uniformly."""
    if label_noise == 0:
        return labels
    is_wrong = generator.random(labels.size) < label_noise
    shift = generator.integers(1, num_classes, labels.size)
    return np.where(is_wrong, (labels + shift) % num_classes, labels)
