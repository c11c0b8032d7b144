"""Settings of small descriptions: what is learned, by which features, at which prices of a bit."""

from dataclasses import dataclass
from typing import Any

from jaxcomp.experiments.settings import (
    DATASETS,
    Panel,
    asked,
    check_counts,
    check_delta,
    check_names,
    check_positive,
    check_prices,
    check_range,
)

NUM_FEATURES = 1024
"""Candidates for the features, `FEATURES` and `RANDOM_FILTERS` in `architectures.py`."""

PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "dataset": "digits",
        "features": 548,  # upright, 4 x 4 windows, frequencies below 4
        "penalties": (1.0, 4.0),
        "models": 2,
        "num_steps": 200,
        "batch_size": 600,
    },
    "mnist": {"dataset": "mnist", "features": 708},  # upright, 5 x 5 windows, below 5
    "fashion": {
        "dataset": "fashion-mnist",
        "features": 228,  # not upright, 5 x 5 windows, below 6
        "penalties": (4.0, 8.0, 16.0),
    },
    "lenet5": {"dataset": "mnist", "random_filters": True, "features": 0, "models": 2},
    "transfer": {
        "dataset": "mnist",
        "features": 708,
        "transfer": True,
        "penalties": (2.5, 5.0, 10.0),
    },
}


@dataclass(frozen=True)
class DescriptionConfig:
    """Settings of a run.

    Attributes:
        dataset: what is learned; its training pool is the sample of the certificates.
        features: number of the candidate.
        random_filters: whether the features are those of LeNet-5 with random filters instead, and
            their number the seed.
        transfer: whether weights are differences to those of a layer trained on scikit-learn's
            digits.
        penalties: prices of a bit, in description lengths: 1 is ln 2 nats for all examples.
        most: the highest level; weights are whole numbers from -most to most.
        models: seeds.
        num_steps: of training.
        batch_size: examples of a step.
        learning_rate: of Adam at the start, falling to 0 as a cosine.
        delta: of the certificates.
        seed: of everything random.
    """

    dataset: str = asked("digits", f"One of {', '.join(DATASETS)}.", Panel.DATA)
    features: int = asked(
        708,
        f"Number of the hand-written features among {NUM_FEATURES} candidates, a choice that is "
        "charged.",
        Panel.DATA,
    )
    random_filters: bool = asked(
        False,
        "Features of LeNet-5 with random filters instead; their number is the seed.",
        Panel.DATA,
    )
    transfer: bool = asked(
        False,
        "Weights are differences to those of a layer trained on scikit-learn's digits.",
        Panel.DATA,
    )
    penalties: tuple[float, ...] = asked(
        (5.0, 10.0, 20.0),
        "Price of a bit in training; 1 is the description length. May be repeated: a file each.",
        Panel.GRID,
        "--penalty",
    )
    most: int = asked(3, "Weights are whole numbers from -most to most.", Panel.GRID)
    models: int = asked(10, "Seeds.", Panel.RUN)
    num_steps: int = asked(800, "Steps of training.", Panel.TRAINING)
    batch_size: int = asked(6_000, "Examples of a step.", Panel.TRAINING)
    learning_rate: float = asked(0.05, "Of Adam, at the start.", Panel.TRAINING)
    delta: float = asked(
        0.05, "The probability that a certificate fails, over the examples.", Panel.CERTIFICATE
    )
    seed: int = asked(0, "Of everything random.", Panel.RUN)

    def __post_init__(self) -> None:
        """Refuse what cannot be computed, in one sentence."""
        check_names("data set", (self.dataset,), DATASETS)
        check_counts(self, ("most", "models", "num_steps", "batch_size"))
        check_positive(self, ("learning_rate",))
        check_range("features", (self.features,), 0, NUM_FEATURES)
        check_range("most", (self.most,), 1, 10)
        check_range("seed", (self.seed,), 0, 1 << 31)
        check_prices(self.penalties, "0")
        check_delta(self.delta)
        if self.dataset == "cifar10":
            raise ValueError(
                "the features are for images of one channel; choose another than cifar10."
            )


def preset(name: str = "quick", **overrides: Any) -> DescriptionConfig:
    """Return named settings, some of them replaced.

    Args:
        name: one of `PRESETS`.
        **overrides: fields of `DescriptionConfig`.

    Raises:
        ValueError: for an unknown name, or a value that is not allowed.
    """
    check_names("preset", (name,), tuple(PRESETS))
    return DescriptionConfig(**{**PRESETS[name], **overrides})
