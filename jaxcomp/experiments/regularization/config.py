"""Settings of the experiment: which penalties at which strengths, on which data, coded how."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NamedTuple, TypeAlias

from jaxcomp.experiments.settings import (
    DATASETS,
    SAMPLE_SIZES,
    Panel,
    as_tuple,
    asked,
    check_counts,
    check_names,
    check_positive,
    check_range,
    from_plain,
)

Kind: TypeAlias = Literal["none", "l2", "l1", "dropout", "early stopping", "temperature"]

MAX_DECIMALS = 5

# Of float32 weights: those up to 2^7 still have cells of their own at this step.
MIN_STEP = 2.0**-16


class Variant(NamedTuple):
    """One way to train: a penalty at a strength, or a rival."""

    kind: Kind
    strength: float = 0.0

    @property
    def id(self) -> str:
        """Its name in tables and files."""
        if self.kind in ("none", "early stopping", "temperature"):
            return self.kind.replace(" ", "-")
        return f"{self.kind}-{self.strength:g}"

    @property
    def label(self) -> str:
        """Its name in sentences."""
        symbol = {"l2": "L2", "l1": "L1"}.get(self.kind, self.kind)
        return symbol if self.strength == 0 else f"{symbol} {self.strength:g}"


@dataclass(frozen=True)
class RegularizationConfig:
    """Settings of one run; the defaults are those of the command on digits.

    Attributes:
        dataset: digits, mnist, fashion-mnist or cifar10.
        width: factor on the 256 units of each of the two hidden layers.
        num_models: networks for every strength; the m-th starts from the same weights and learns
            the same examples in the same order at every strength, so that differences are paired.
        train_size: distinct examples drawn for each network.
        validation_size: examples on which strengths, temperatures and the early stop are chosen.
        label_noise: probability that a training label is wrong.
        standardize: pixels with the pool's mean and deviation, or in [0, 1].
        epochs: passes over the training sample.
        batch_size: examples a step.
        learning_rate: of stochastic gradient descent with momentum.
        momentum: of the same.
        l2: strengths of `l2/2 |w|^2` beside the mean loss, positive; 0 is always there.
        l1: strengths of `l1 |w|`, positive.
        dropout: rates of the rival; may be empty.
        step: to which weights are rounded where all networks are coded alike.
        num_steps: steps 1/2, 1/4, ... among which a description is the shortest.
        curvature_examples: training examples for the Gauss-Newton diagonal.
        decimals: to which solutions of drawn linear problems are rounded.
        num_problems: linear problems drawn.
        delta: of the certificate, which holds with probability 1 - delta.
        seed: of everything random.

    Raises:
        ValueError: when made, for a value that is not allowed.
    """

    dataset: str = asked(
        "digits",
        "digits (in scikit-learn), mnist, fashion-mnist, cifar10. Default: digits.",
        Panel.DATA,
        choices=DATASETS,
    )
    width: float = asked(
        0.5, "Factor on the 256 units of both hidden layers. Default: 0.5.", Panel.TRAINING
    )
    num_models: int = asked(
        8,
        "Networks for every strength; intervals are over them. Default: 8.",
        Panel.TRAINING,
        "--models",
    )
    train_size: int = asked(
        600,
        "Distinct training examples drawn for each network. Default: 600 on digits, 6000 on mnist.",
        Panel.DATA,
    )
    validation_size: int = asked(
        400,
        "Examples of the validation set: strengths, temperatures and the early stop are chosen on "
        "it; the test set is looked at once. Default: 400 on digits, 5000 on mnist.",
        Panel.DATA,
    )
    label_noise: float = asked(0.0, "Fraction of wrong training labels.", Panel.DATA)
    standardize: bool = True
    epochs: int = asked(60, "Passes over the sample.", Panel.TRAINING)
    batch_size: int = asked(20, "Examples a step.", Panel.TRAINING)
    learning_rate: float = asked(0.02, "Of SGD with momentum 0.9.", Panel.TRAINING)
    momentum: float = 0.9
    l2: tuple[float, ...] = asked(
        (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
        "Strength of l2/2 |w|^2 beside the mean loss. May be repeated; no penalty is always there. "
        "Default: seven from 0.0001 to 0.1.",
        Panel.PENALTIES,
    )
    l1: tuple[float, ...] = asked(
        (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
        "Strength of l1 |w|, by proximal steps, which reach exact zeros. May be repeated. "
        "Default: seven from 0.00001 to 0.01.",
        Panel.PENALTIES,
    )
    dropout: tuple[float, ...] = asked(
        (0.2, 0.5),
        "Rate of the rival dropout. May be repeated. Default: 0.2 0.5.",
        Panel.PENALTIES,
    )
    step: float = asked(
        1 / 128,
        "Weights are rounded to it where all networks are coded alike. Default: 1/128.",
        Panel.CODES,
    )
    num_steps: int = 8
    curvature_examples: int = 300
    decimals: tuple[int, ...] = asked(
        (1, 2),
        "Decimals to which solutions of drawn linear problems are rounded, to count the models "
        "that remain. May be repeated. Default: 1 2.",
        Panel.CODES,
    )
    num_problems: int = asked(10_000, "Such problems drawn. Default: 10000.", Panel.CODES)
    delta: float = 0.05
    seed: int = asked(0, "Of everything random.", Panel.RUN)

    def __post_init__(self) -> None:
        """Sort strengths, each once, and check everything."""
        for name in ("l2", "l1", "dropout", "decimals"):
            value = getattr(self, name)
            found = () if name == "dropout" and not value else as_tuple(value, name)
            object.__setattr__(self, name, tuple(sorted(set(found))))
        check_names("dataset", (self.dataset,), DATASETS)
        counts = ("num_models", "train_size", "validation_size", "epochs", "batch_size")
        check_counts(self, (*counts, "num_steps", "curvature_examples", "num_problems"))
        check_positive(self, ("width", "learning_rate", "step"))
        for name in ("l2", "l1"):
            if not all(0 < value < float("inf") for value in getattr(self, name)):
                raise ValueError(
                    f"{name} must hold positive strengths, got {getattr(self, name)}; no penalty "
                    "is always part of the run."
                )
        if self.step < MIN_STEP:
            raise ValueError(f"step must be at least 2^-16 = {MIN_STEP:.3g}, got {self.step:g}.")
        check_range("dropout", self.dropout, 0.0, 1.0)
        check_range("label_noise", (self.label_noise,), 0.0, 1.0)
        check_range("momentum", (self.momentum,), 0.0, 1.0)
        # Beyond it the penalty alone makes descent with momentum diverge, whatever the loss.
        limit = 2 * (1 + self.momentum) / self.learning_rate
        if any(strength >= limit for strength in self.l2):
            raise ValueError(
                f"l2 must be below 2 (1 + momentum) / learning_rate = {limit:g}, where training "
                f"becomes unstable, got {max(self.l2):g}."
            )
        names = [variant.id for variant in self.variants()]
        if len(set(names)) < len(names):
            repeated = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(
                f"strengths must differ in six digits, got more than one {', '.join(repeated)}."
            )
        if not 0 < self.delta < 1:
            raise ValueError(f"delta must lie between 0 and 1, got {self.delta}.")
        if min(self.decimals) < 0 or max(self.decimals) > MAX_DECIMALS:
            raise ValueError(
                f"decimals must lie between 0 and {MAX_DECIMALS}, got {self.decimals}."
            )
        if self.num_problems < 100:
            raise ValueError(f"num_problems must be at least 100, got {self.num_problems}.")

    def variants(self) -> list[Variant]:
        """Every way to train, in the order of the table."""
        return [
            Variant("none"),
            *(Variant("l2", strength) for strength in self.l2),
            *(Variant("l1", strength) for strength in self.l1),
            *(Variant("dropout", rate) for rate in self.dropout),
            Variant("early stopping"),
            Variant("temperature"),
        ]

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values, for a manifest; `from_dict` reads them back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RegularizationConfig":
        """Settings from `to_dict`; an unknown name is a `ValueError`."""
        _check_known(values)
        return from_plain(cls, values)


# Larger samples need fewer passes, and larger images shorter steps.
_SCHEDULE: dict[str, dict[str, Any]] = {
    name: {"epochs": 30, "batch_size": 50, "learning_rate": 0.01}
    for name in ("mnist", "fashion-mnist")
}


def preset(dataset: str = "digits", **overrides: Any) -> RegularizationConfig:
    """Return settings that fit a data set, some of them replaced.

    Args:
        dataset: its sample sizes and passes are taken unless others are given.
        **overrides: fields of `RegularizationConfig`.

    Raises:
        ValueError: on an unknown field, or a value that is not allowed.
    """
    _check_known(overrides)
    fitting: dict[str, Any] = {**SAMPLE_SIZES.get(dataset, {}), **_SCHEDULE.get(dataset, {})}
    return RegularizationConfig(**{"dataset": dataset, **fitting, **overrides})


def _check_known(values: dict[str, Any]) -> None:
    known = {field.name for field in fields(RegularizationConfig)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"unknown settings {unknown}; known are {sorted(known)}.")
