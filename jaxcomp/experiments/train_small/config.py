"""Settings of training for the file: which network, at which prices of a bit."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxcomp.experiments.settings import (
    Panel,
    asked,
    check_counts,
    check_delta,
    check_names,
    check_positive,
    check_prices,
    check_range,
)

NETWORKS = ("digits", "lenet-300-100", "lenet-5")
DATASETS = ("digits", "mnist", "fashion-mnist")

CODERS = ("entropy", "random-codes")

VALIDATION_SIZES = {"digits": 240, "mnist": 5_000, "fashion-mnist": 5_000}
"""The last examples of the pool, which no network is trained on."""

PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "dataset": "digits",
        "network": "digits",
        "coders": ("entropy", "random-codes"),
        "penalties": (0.06, 0.2, 0.6),
        "sizes": (600, 1_100),
        "models": 3,
        "pretraining_epochs": 30,
        "epochs": 100,
        "batch_size": 96,
        "shift": 0,  # a pixel is an eighth of the image
    },
    "lenet-300-100": {"dataset": "mnist", "network": "lenet-300-100"},
    "lenet-5": {
        "dataset": "mnist",
        "network": "lenet-5",
        "penalties": (0.5, 1.0),
        "models": 3,
        "pretraining_epochs": 3,
        "epochs": 20,
        "batch_size": 200,
    },
}


class Point(NamedTuple):
    """One point of the curve.

    Attributes:
        coder: one of `CODERS`.
        setting: the price of a bit, or the bytes of the file.
    """

    coder: str
    setting: float

    def __str__(self) -> str:
        is_priced = self.coder == "entropy"
        return f"price {self.setting:g}" if is_priced else f"random codes, {self.setting:,.0f} B"


@dataclass(frozen=True)
class TrainSmallConfig:
    """Settings of a run.

    Attributes:
        dataset: what is learned.
        network: one of `NETWORKS`.
        coders: of `CODERS`: integers under a price for the bits of their stream, or indices of
            random candidates.
        penalties: prices of a bit, in description lengths: 1 is ln 2 nats for all examples. For
            "entropy".
        sizes: bytes of whole files. For "random-codes".
        block_bits: of an index. For "random-codes".
        models: seeds, trained together.
        pretraining_epochs: without a price, shared by all prices.
        epochs: at each price.
        batch_size: examples of a step.
        learning_rate: of latents, by Adam, at its height; falls to 0 as a cosine.
        warm: share of the epochs in which the price rises to its height.
        shift: pixels by which images are shifted at random in training.
        rounds_again: whether kernels are also rounded with feedback after training, at the price
            of training; validation data choose. At prices of small files it has only lost.
        delta: of the certificates.
        seed: of everything random.
    """

    dataset: str = asked("digits", f"One of {', '.join(DATASETS)}.", Panel.DATA)
    network: str = asked("digits", f"One of {', '.join(NETWORKS)}.", Panel.TRAINING)
    coders: tuple[str, ...] = asked(
        ("entropy",),
        "How weights are sent: entropy (integers at a price of a bit), random-codes (indices in a "
        "file of given size). May be repeated: a curve each.",
        Panel.GRID,
        "--coder",
        choices=CODERS,
    )
    penalties: tuple[float, ...] = asked(
        (0.1, 0.2, 0.4, 0.8),
        "Price of a bit in training; 1 is the description length. May be repeated: a file each.",
        Panel.GRID,
        "--penalty",
    )
    sizes: tuple[int, ...] = asked(
        (2_000, 4_000),
        "Bytes of a file of random codes. May be repeated: a file each.",
        Panel.GRID,
        "--size",
    )
    block_bits: int = asked(12, "Bits of an index of random codes, 1 to 16.", Panel.GRID)
    models: int = asked(5, "Seeds.", Panel.RUN)
    pretraining_epochs: int = asked(
        6, "Epochs without a price, from which all prices start.", Panel.TRAINING
    )
    epochs: int = asked(20, "Epochs at each price.", Panel.TRAINING)
    batch_size: int = asked(500, "Examples of a step.", Panel.TRAINING)
    learning_rate: float = asked(0.02, "Of latents, in steps, by Adam.", Panel.TRAINING)
    warm: float = asked(
        0.3, "Share of the epochs in which the price rises to its height.", Panel.TRAINING
    )
    shift: int = asked(
        1, "Pixels by which images are shifted at random in training; 0 for none.", Panel.TRAINING
    )
    rounds_again: bool = asked(
        False, "Also round kernels with feedback after training; validation chooses.", Panel.GRID
    )
    delta: float = asked(
        0.05, "The probability that a certificate fails, over the examples.", Panel.CERTIFICATE
    )
    seed: int = asked(0, "Of everything random.", Panel.RUN)

    def __post_init__(self) -> None:
        """Refuse what cannot be computed, in one sentence."""
        check_names("data set", (self.dataset,), DATASETS)
        check_names("network", (self.network,), NETWORKS)
        check_names("coder", self.coders, CODERS)
        if not self.coders or len(set(self.coders)) != len(self.coders):
            raise ValueError(f"coders must be one or both of {', '.join(CODERS)}, each once.")
        check_counts(self, ("models", "pretraining_epochs", "epochs", "batch_size"))
        check_positive(self, ("learning_rate", "warm"))
        check_range("shift", (self.shift,), 0, 5)
        check_range("seed", (self.seed,), 0, 1 << 20)
        check_range("models", (self.models,), 1, 501)
        check_prices(self.penalties, "1e-6")
        check_delta(self.delta)
        check_range("block_bits", (self.block_bits,), 1, 17)
        check_range("sizes", self.sizes, 1, 1 << 24)
        if not self.sizes or len(set(self.sizes)) != len(self.sizes):
            raise ValueError(f"sizes must be one or several, and different, got {self.sizes}.")
        if self.network == "lenet-5" and self.dataset == "digits":
            raise ValueError("lenet-5 needs images of 28 x 28 pixels; choose mnist for it.")

    @property
    def points(self) -> tuple[Point, ...]:
        """What is trained: each coder at each of its settings."""
        settings = {"entropy": self.penalties, "random-codes": self.sizes}
        return tuple(Point(coder, own) for coder in self.coders for own in settings[coder])


def preset(name: str = "quick", **overrides: Any) -> TrainSmallConfig:
    """Return named settings, some of them replaced.

    Args:
        name: one of `PRESETS`.
        **overrides: fields of `TrainSmallConfig`.

    Raises:
        ValueError: for an unknown name, or a value that is not allowed.
    """
    check_names("preset", (name,), tuple(PRESETS))
    return TrainSmallConfig(**{**PRESETS[name], **overrides})
