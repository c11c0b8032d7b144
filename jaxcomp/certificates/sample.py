"""Samples of distinct examples, and what a network makes of them.

Axes: `n` examples. Bounds count independent examples; one that stands twice in a sample was drawn
once. Examples are the same if the bytes of their inputs and their labels are.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxcomp.compressed.loss_budget import traced
from jaxcomp.numerics.host import as_array
from jaxcomp.types import Params, PredictFn

# Examples that are evaluated at a time.
_BATCH = 1_000


class Sample(NamedTuple):
    """Examples, and by what they are told apart.

    Attributes:
        inputs: (n, ...), on the host.
        labels: (n,) whole numbers, None for inputs alone.
        names: of each example, equal for equal ones.
    """

    inputs: np.ndarray
    labels: Int[np.ndarray, " n"] | None
    names: tuple[bytes, ...]

    def __len__(self) -> int:
        return len(self.names)

    def select(self, chosen: Any) -> "Sample":
        """Return the examples at these places."""
        chosen = np.asarray(chosen, np.intp)
        labels = None if self.labels is None else self.labels[chosen]
        return Sample(self.inputs[chosen], labels, tuple(self.names[place] for place in chosen))

    def distinct(self, seen: Collection[bytes] = ()) -> "Sample":
        """Return each example once, the first, without those of these names."""
        seen = set(seen)
        places = []
        for place, name in enumerate(self.names):
            if name not in seen:
                seen.add(name)
                places.append(place)
        return self if len(places) == len(self) else self.select(places)

    def unlabelled(self) -> "Sample":
        """Return the inputs alone."""
        return self if self.labels is None else Sample(self.inputs, None, _names(self.inputs, None))


def labelled_sample(examples: Any, what: str) -> Sample:
    """Return a sample of pairs.

    Args:
        examples: `(inputs, labels)`.
        what: name of the argument, for messages.

    Raises:
        TypeError: if it is no pair, or labels are no whole numbers.
        ValueError: if inputs and labels differ in number, or there are none.
    """
    if not (isinstance(examples, tuple | list) and len(examples) == 2):
        raise TypeError(f"{what} must be a pair (inputs, labels), got {type(examples).__name__}.")
    inputs, labels = (np.asarray(part) for part in examples)
    if labels.dtype.kind not in "iu":
        raise TypeError(
            f"{what} must have labels that are whole numbers, the classes, got {labels.dtype}."
        )
    if labels.ndim != 1 or inputs.ndim < 1 or len(inputs) != len(labels):
        raise ValueError(
            f"{what} must have one label for each input, got inputs of shape {inputs.shape} and "
            f"labels of shape {labels.shape}."
        )
    return _filled(inputs, labels.astype(np.int64), what)


def unlabelled_sample(inputs: Any, what: str) -> Sample:
    """Return a sample of inputs; see `labelled_sample`."""
    inputs = np.asarray(inputs)
    if inputs.dtype.kind not in "biuf" or inputs.ndim < 1:
        raise TypeError(
            f"{what} must be an array of inputs without labels, got {inputs.dtype} of shape "
            f"{inputs.shape}."
        )
    return _filled(inputs, None, what)


def _filled(inputs: np.ndarray, labels: np.ndarray | None, what: str) -> Sample:
    if not len(inputs):
        raise ValueError(f"{what} holds no example; give at least one.")
    # As the network sees them: float64 may be float32 there.
    inputs = inputs.astype(jax.dtypes.canonicalize_dtype(inputs.dtype), copy=False)
    return Sample(inputs, labels, _names(inputs, labels))


def _names(inputs: np.ndarray, labels: np.ndarray | None) -> tuple[bytes, ...]:
    rows = np.ascontiguousarray(inputs).reshape(len(inputs), -1).view(np.uint8)
    names = (hashlib.blake2b(row.data, digest_size=16).digest() for row in rows)
    if labels is None:
        return tuple(names)
    return tuple(
        name + int(label).to_bytes(8, "little", signed=True)
        for name, label in zip(names, labels, strict=True)
    )


@dataclass(frozen=True)
class Classifier:
    """A function of weights and inputs as one that names classes; equal for equal functions.

    Attributes:
        predict_fn: `(params, inputs) -> (n, classes)` logits, or `(n,)` classes as whole numbers;
            each example on its own. Hashable.
    """

    predict_fn: PredictFn

    def classes_of(self, params: Params, inputs: Array) -> Int[Array, " n"]:
        """Return the class of each input, the first of the highest logits; -1 where one is NaN.

        Traced: for functions that are compiled.
        """
        outputs = self.predict_fn(params, inputs)
        if jnp.issubdtype(outputs.dtype, jnp.integer):
            return outputs
        top = jnp.max(outputs, axis=-1)  # NaN if one is
        return jnp.where(jnp.isfinite(top), jnp.argmax(outputs, axis=-1), -1)

    def check(self, params: Params, sample: Sample, what: str) -> None:
        """Refuse weights or examples that the function does not take, before anything is computed.

        Raises:
            ValueError: if it fails, returns another shape, or labels are none of its classes.
        """
        inputs = sample.inputs[:_BATCH]
        outputs = traced("predict_fn(params, inputs)", self.predict_fn, params, inputs, of=what)
        shape, dtype = getattr(outputs, "shape", None), getattr(outputs, "dtype", None)
        is_classes = dtype is not None and jnp.issubdtype(dtype, jnp.integer)
        if shape is None or len(shape) != (1 if is_classes else 2) or shape[0] != len(inputs):
            raise ValueError(
                f"predict_fn(params, inputs) must return logits of shape ({len(inputs)}, classes) "
                f"for {len(inputs)} inputs, got {dtype} of shape {shape}."
            )
        if sample.labels is None:
            return
        most = np.inf if is_classes else shape[1]
        wrong = sample.labels[(sample.labels < 0) | (sample.labels >= most)]
        if len(wrong):
            raise ValueError(
                f"{what} has the label {wrong[0]}, but predict_fn has the classes 0 to "
                f"{most - 1:g}."
            )

    def predictions(self, params: Params, sample: Sample) -> Int[np.ndarray, " n"]:
        """Return the class of each example."""
        params = jax.tree.map(as_array, params)
        found = []
        for start in range(0, len(sample), _BATCH):
            inputs = sample.inputs[start : start + _BATCH]
            number = len(inputs)
            if start and number < _BATCH:  # one shape is compiled once
                inputs = np.concatenate([inputs, sample.inputs[: _BATCH - number]])
            found.append(np.asarray(_compiled(self, params, inputs))[:number])
        return np.concatenate(found)

    def num_errors(self, params: Params, sample: Sample) -> int:
        """Return how many examples get another class than their label."""
        return int(np.sum(self.predictions(params, sample) != sample.labels))


@partial(jax.jit, static_argnames="classifier")
def _compiled(classifier: Classifier, params: Params, inputs: Any) -> Int[Array, " n"]:
    return classifier.classes_of(params, inputs)
