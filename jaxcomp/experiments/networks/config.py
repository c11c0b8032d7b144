"""Settings of the optimizer."""

import math
from dataclasses import dataclass

from jaxcomp.numerics.checks import check_count, check_positive


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of the optimizer; the defaults are the published ones.

    Attributes:
        epochs: passes over the training sample, at least 1.
        batch_size: examples per step, at least 1.
        learning_rate: positive.
        momentum: in [0, 1).
        weight_decay: times the weights, added to the gradient; at least 0.
        l1_penalty: of `|w|` beside the mean loss, by proximal steps; at least 0.

    Raises:
        ValueError: when made, for a value outside these ranges.
    """

    epochs: int = 25
    batch_size: int = 10
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    l1_penalty: float = 0.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            check_count(name, getattr(self, name))
        check_positive("learning_rate", self.learning_rate)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, got {self.momentum}.")
        for name in ("weight_decay", "l1_penalty"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}.")
