"""The data of one experiment: a pool with training samples, validation set and test set.

Axes: `M` networks, `n` examples of a training sample, `P` examples of the pool.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from jaxcomp.experiments import data, networks


class Examples(NamedTuple):
    """Inputs and labels."""

    inputs: np.ndarray
    labels: np.ndarray


class Samples(NamedTuple):
    """Three parts that never meet; all inputs are scaled alike."""

    pool: Float[np.ndarray, "P ..."]
    """Inputs that the training samples are drawn from."""
    train_indices: Int[np.ndarray, "M n"]
    """Rows of the pool."""
    train_labels: Int[np.ndarray, "M n"]
    """Their labels, with label noise."""
    validation: Examples
    """Choices and temperatures are made on it."""
    test: Examples
    """Only final numbers see it."""
    num_classes: int
    fingerprint: str
    """Of the data set."""

    def train(self, model: int) -> Examples:
        """The training sample of one network."""
        return Examples(self.pool[self.train_indices[model]], self.train_labels[model])

    def training_data(self, repeated: int = 1) -> networks.TrainingData:
        """What the networks learn from, all samples one after the other, `repeated` times."""
        return networks.TrainingData(
            inputs=self.pool,
            train_indices=np.tile(self.train_indices, (repeated, 1)),
            train_labels=np.tile(self.train_labels, (repeated, 1)),
            validation_inputs=self.validation.inputs,
            validation_labels=self.validation.labels,
        )


def draw_samples(
    name: str,
    *,
    data_dir: Path | str | None,
    download: bool,
    num_models: int,
    train_size: int,
    validation_size: int,
    replacement: bool,
    label_noise: float,
    standardize: bool,
    seed: int,
) -> Samples:
    """Load a data set and draw its parts (see `data.load` and `data.draw_parts`).

    Args:
        name: of the data set.
        data_dir: folder with data files.
        download: whether missing files may be fetched.
        num_models: M.
        train_size: n.
        validation_size: examples of the validation set.
        replacement: whether a training sample may hold an example twice.
        label_noise: probability that a training label is wrong.
        standardize: pixels with the pool's mean and deviation, or in [0, 1].
        seed: of the draws.

    Returns:
        The parts.

    Raises:
        ValueError: on data that are missing or do not fit.
    """
    dataset = data.load(name, data_dir=data_dir, download=download)
    drawn = data.draw_parts(
        dataset,
        num_models=num_models,
        train_size=train_size,
        validation_size=validation_size,
        replacement=replacement,
        label_noise=label_noise,
        seed=seed,
    )
    scale = data.standardization(dataset.pool_images, dataset.max_value) if standardize else None
    pool = data.to_inputs(dataset.pool_images, dataset.max_value, scale)
    return Samples(
        pool,
        drawn.train_indices,
        drawn.train_labels,
        Examples(pool[drawn.validation_indices], dataset.pool_labels[drawn.validation_indices]),
        Examples(
            data.to_inputs(dataset.test_images, dataset.max_value, scale), dataset.test_labels
        ),
        dataset.num_classes,
        dataset.fingerprint,
    )


def distinct(
    examples: Shaped[np.ndarray, "n ..."],
) -> tuple[Shaped[np.ndarray, "d ..."], Int[np.ndarray, " n"]]:
    """Return every example once, and of each where it is among these.

    They are in the order in which they come first, and alike if they are to the bit.

    Args:
        examples: n >= 1, of any dtype without references.

    Returns:
        The distinct examples, and int indices into them.
    """
    known: dict[bytes, int] = {}
    places = np.array([known.setdefault(own.tobytes(), len(known)) for own in examples])
    _, first = np.unique(places, return_index=True)
    return examples[first], places


def filled_up(examples: Shaped[np.ndarray, "n ..."], number: int) -> Shaped[np.ndarray, "m ..."]:
    """Return so many examples, at least as many as there are; those that are missing are zeros."""
    filled = np.zeros((number, *examples.shape[1:]), examples.dtype)
    filled[: len(examples)] = examples
    return filled
