"""The networks among which one is chosen by looking at the data, which is charged.

All of them are listed here, in an order that stays: 2^10, so that naming one takes 10 bits. What
else was looked at takes four more.
"""

import itertools
import json
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcomp.experiments.small_descriptions.features import Features, features_of
from jaxcomp.experiments.small_descriptions.random_filters import RandomFilters, filtered
from jaxcomp.types import Params

FEATURES: tuple[Features, ...] = tuple(
    Features(*chosen)
    for chosen in itertools.product(
        (False, True),
        (4, 5, 6, 7),
        (3, 4, 5, 6),
        ((0.7,), (0.7, 1.5)),
        (False, True),
        (1.5, 2.0, 3.0, 6.0),
        (3.0, 1e6),
    )
)
"""Candidates for the features; the place of one is its number."""

RANDOM_FILTERS: tuple[RandomFilters, ...] = tuple(RandomFilters(seed) for seed in range(1024))
"""Likewise where filters are random: the seed is the number."""

CHOICES: dict[str, int] = {"features": len(FEATURES), "constants": 108}
"""What was chosen by looking at training images, of so many candidates: charged.

Constants are guesses that stayed, but others were looked at: three sizes of upright images (5 to
7.5 pixels of 28), three spreads of windows, two numbers of orientations, two shapes of their
overlap, three units of the bias.
"""

BIAS_UNIT = 2.0
"""What one level of the bias adds to a logit; one of a weight adds its feature."""


@dataclass(frozen=True)
class Network:
    """Features and one linear layer on them; called with weights and images: `predict_fn`.

    Attributes:
        features: which.
        num_classes: of the logits.
    """

    features: Features | RandomFilters
    num_classes: int = 10

    def __call__(self, params: Params, inputs: Any) -> Float[Array, "n classes"]:
        """Return logits.

        Args:
            params: `weights` (F, classes) and `bias` (classes,), whole numbers.
            inputs: (n, s, s, 1) images from 0 to 1.
        """
        return logits_of(params, self.features_of(inputs))

    def features_of(self, inputs: Any) -> Float[Array, "n F"]:
        """Return what the layer reads."""
        if isinstance(self.features, RandomFilters):
            return filtered(inputs, self.features)
        return features_of(inputs, self.features)

    def description(self, *, transfer: bool = False) -> str:
        """Return what is fixed before the data, for `--fixed-architecture`: JSON.

        Everything but `CHOICES`, which are charged.

        Args:
            transfer: whether the arrays of a file are differences to a prior.
        """
        shapes = {
            "bias": [self.num_classes],
            "weights": [self.features.num_features, self.num_classes],
        }
        told = {
            "arrays": [[name, "int8", shape] for name, shape in shapes.items()],
            "choices": CHOICES,
            "function": "jaxcomp.experiments.small_descriptions.Network",
            "features": self.features._asdict(),
        }
        if transfer:
            told["differences"] = [*shapes]
        return json.dumps(told)


def network(number: int, *, random_filters: bool, num_classes: int = 10) -> Network:
    """Return the network of a candidate."""
    candidates = RANDOM_FILTERS if random_filters else FEATURES
    return Network(candidates[number], num_classes)


def logits_of(params: Params, features: Float[Array, "n F"]) -> Float[Array, "n classes"]:
    """Return the logits of a linear layer of whole numbers."""
    weights, bias = (jnp.asarray(params[name]).astype(jnp.float32) for name in ("weights", "bias"))
    return features @ weights + BIAS_UNIT * bias
