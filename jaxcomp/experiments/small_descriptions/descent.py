"""A linear layer of few levels: trained, refined by its own certificate, written as a bare stream.

Axes: `n` examples, `F` features, `C` classes.
"""

import math
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxcomp import bounds
from jaxcomp.certificates.claims import file_bound
from jaxcomp.coding.arrays import write_parts
from jaxcomp.coding.streams import StackWriter
from jaxcomp.decoder.arrays import Parts
from jaxcomp.experiments.small_descriptions.architectures import BIAS_UNIT, CHOICES, logits_of
from jaxcomp.experiments.small_descriptions.config import DescriptionConfig
from jaxcomp.experiments.small_descriptions.refinement import errors_per_bit, refine
from jaxcomp.training import train_few_levels

_REFINEMENTS = 2  # each at the price that the certificate before it says
_START = 0.3  # standard deviation of weights at the start, in levels


class Examples(NamedTuple):
    """Features and labels.

    Attributes:
        features: (n, F) float32.
        labels: (n,) int32.
    """

    features: Float[np.ndarray, "n F"]
    labels: Int[np.ndarray, " n"]


class Layer(NamedTuple):
    """Whole numbers: what a file holds, or what its differences refer to.

    Attributes:
        weights: (F, C) int8.
        bias: (C,) int8.
    """

    weights: Int[np.ndarray, "F C"]
    bias: Int[np.ndarray, " C"]

    def added_to(self, other: "Layer") -> "Layer":
        """Return the sum of two."""
        return Layer(self.weights + other.weights, self.bias + other.bias)

    def stream(self) -> bytes:
        """Return the bare stream of the layer, arrays by name."""
        writer = StackWriter()
        for values in (self.bias, self.weights):
            write_parts(writer, Parts(values), "int8", values.shape, "best")
        return writer.to_bytes()

    def num_errors(self, examples: Examples) -> int:
        """Return how many examples get another class than their label."""
        logits = np.asarray(_logits(self._asdict(), examples.features))
        return int(np.sum(logits.argmax(axis=1) != examples.labels))


_logits = jax.jit(logits_of)


def nothing(num_features: int, num_classes: int) -> Layer:
    """Return a layer of zeros."""
    return Layer(np.zeros((num_features, num_classes), np.int8), np.zeros(num_classes, np.int8))


def size_bits(num_bytes: int) -> float:
    """Return what a stream of so many bytes is charged: itself, its length, and the choices."""
    return 8 * num_bytes + float(bounds.self_delimiting_bits(num_bytes)) + bits_of_choices()


def bits_of_choices() -> float:
    """Return what naming one of all candidates is charged."""
    return float(bounds.choice_bits(*CHOICES.values()))


def bound_of(layer: Layer, num_errors: int, num_examples: int, delta: float) -> float:
    """Return the certificate of a layer by its own stream."""
    bits = size_bits(len(layer.stream()))
    return float(file_bound(num_errors, num_examples, bits, delta))


def trained(
    examples: Examples,
    start: Layer,
    config: DescriptionConfig,
    *,
    penalty: float,
    most: int,
    seed: int,
) -> Layer:
    """Return the levels that are added to a layer, trained at a price for their bits.

    Args:
        examples: all of them.
        start: what is there before: zeros, or a layer trained on other data.
        config: steps, batches and learning rate.
        penalty: price of a bit, in description lengths.
        most: the highest level.
        seed: of the start and of the order of examples.
    """
    first, second = jax.random.split(jax.random.key(seed))
    # Centred, so that no weight moves the bias; whoever decodes has it in the bias.
    mean = examples.features.mean(axis=0)
    centred = examples.features - mean
    offset = centred @ start.weights.astype(np.float32)
    weights = _START * jax.random.normal(first, start.weights.shape, jnp.float32)
    free = {
        "log_scale": jnp.float32(-1.5),
        "bias": jnp.zeros(start.bias.shape, jnp.float32),
    }
    found = train_few_levels(
        _loss,
        weights,
        free,
        (centred, offset, examples.labels),
        second,
        most=most,
        nats_per_bit=penalty * math.log(2),
        optimizer=_optimizer(config.learning_rate, config.num_steps),
        num_steps=config.num_steps,
        batch_size=min(config.batch_size, len(centred)),
    )
    levels = np.asarray(found.levels).astype(np.int8)
    both = levels + start.weights
    bias = np.asarray(found.free["bias"]) - mean @ both.astype(np.float32)
    bias = np.round((bias - bias.mean()) / BIAS_UNIT) - start.bias
    return Layer(levels, bias.clip(-127, 127).astype(np.int8))


def refined(
    examples: Examples, start: Layer, layer: Layer, *, most: int, delta: float
) -> tuple[Layer, int]:
    """Return the levels moved one by one as long as their certificate falls, and their errors."""
    count = len(examples.labels)
    rows, labels = jnp.asarray(examples.features.T), jnp.asarray(examples.labels)
    scores = np.asarray(_logits(start._asdict(), examples.features)).T
    errors = layer.added_to(start).num_errors(examples)
    best, bound = (layer, errors), bound_of(layer, errors, count, delta)
    for _ in range(_REFINEMENTS):
        layer, errors = best
        if bound >= 1 or not errors:
            break
        found = refine(
            rows,
            labels,
            layer.weights.astype(np.int32),
            layer.bias.astype(np.int32),
            scores,
            most=most,
            bias_unit=BIAS_UNIT,
            price=errors_per_bit(errors / count, bound),
        )
        layer = Layer(*(np.asarray(part).astype(np.int8) for part in (found.weights, found.bias)))
        errors = layer.added_to(start).num_errors(examples)
        now = bound_of(layer, errors, count, delta)
        if now >= bound:
            break
        best, bound = (layer, errors), now
    return best


def _loss(levels: Array, free: dict[str, Array], batch: Any) -> Array:
    features, offset, labels = batch
    logits = jnp.exp(free["log_scale"]) * (offset + features @ levels + free["bias"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@cache
def _optimizer(learning_rate: float, num_steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))
