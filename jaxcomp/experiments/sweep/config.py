"""Settings of a sweep: what is trained, how it is compressed, on which data.

Everything that can change a number of the result is a field of `SweepConfig`; where results
and data files lie, and how loudly progress is told, is not. Three presets exist: `quick`, the
ninety-second tour on data that ships with scikit-learn, `paper`, the published experiment of Bu
et al. (2021) on MNIST, and `phase`, a map over sample sizes and label noise.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeAlias, get_args

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
    integer,
)
from jaxcomp.experiments.sweep.importance import ALLOWED, IMPORTANCES, is_importance
from jaxcomp.experiments.sweep.methods import ALLOCATIONS, METHODS

PenaltyForm: TypeAlias = Literal["monotone", "published", "linear"]

MODELS = ("mlp", "vgg")
PENALTY_FORMS: tuple[str, ...] = get_args(PenaltyForm)

MAX_CLUSTERS = 65_536
# The optimal solve holds the codebooks of every K up to the largest; vectors look at every centre.
MAX_SEARCHED_CLUSTERS = 1024


@dataclass(frozen=True)
class SweepConfig:
    """Settings of one sweep; the defaults are the `quick` preset.

    The axes of the grid (`dataset`, `model`, `train_size`, `label_noise`, `method`, `allocation`,
    `importance`, `penalty_form`, `diameter_penalty`, `num_clusters`) take one value or a sequence
    of values. A *setting* is one (dataset, model, training size, label noise): its networks are
    trained together and its claims are made together.

    Attributes:
        dataset: any of digits, mnist, fashion-mnist, cifar10.
        model: any of mlp, vgg.
        width: factor on every hidden width or channel count.
        dropout: rate after the hidden layers of the mlp, while training.
        dropout_control: rate of a second training of every network, a control that compresses
            nothing; 0 for none.
        num_models: independent networks for each setting.
        train_size: examples drawn for each network's training sample.
        replacement: whether they are drawn with replacement, as published.
        validation_size: examples of the validation set, from the rest of the training pool.
        label_noise: probability that a training label is replaced by another class.
        standardize: whether pixels get the training pool's mean and deviation, as published;
            otherwise they lie in [0, 1].
        epochs: passes over the training sample.
        batch_size: examples a step.
        learning_rate: of stochastic gradient descent with momentum.
        momentum: of the same.
        weight_decay: L2 penalty added to the gradient.
        method: quantizers: `kmeans`, Lloyd's iteration as published; `optimal`, the global
            optimum (under a penalty of the form `monotone` too); `entropy_constrained`, over ten
            multipliers instead of `num_clusters`; `vector`, K-means of pairs of weights.
        allocation: how bits are shared between layers: `equal`, the same K (or multiplier
            relative to the layer's spread) in all; `optimal`, for the least weighted distortion
            at as many bits in all. Penalised codebooks and vectors are always `equal`.
        importance: what weighs a squared error in K-means: `none`; `gauss_newton`, the exact
            diagonal of the Gauss-Newton matrix, which for these networks is that of the Hessian;
            `hutchinson` (or `hutchinson-N` with N probes), a random estimate of it; `fisher`,
            the empirical Fisher diagonal; `adam`, the roots of Adam's second moments.
        num_probes: of `hutchinson`.
        curvature_examples: training examples that the curvature is measured on.
        penalty_form: how the diameter of a codebook is penalised (THEORY of `quantizers`).
        diameter_penalty: relative strengths; 0, plain K-means, is always part of the grid.
        num_clusters: codebook sizes K, the same in every layer.
        num_iterations: Lloyd iterations at most (30 as published).
        num_bins: bins of the histogram of moments.
        baselines: whether round-to-nearest, pruning and uniform quantization are included.
        controls: whether the controls that compress nothing are included.
        seed: of everything random.
    """

    dataset: tuple[str, ...] = asked(
        ("digits",),
        "digits (in scikit-learn), mnist, fashion-mnist, cifar10. May be repeated.",
        Panel.DATA,
        choices=DATASETS,
    )
    model: tuple[str, ...] = asked(
        ("mlp",),
        "mlp (784-256-256-10) or vgg (3x3 convolutions, 32x32 images). May be repeated.",
        Panel.TRAINING,
        choices=MODELS,
    )
    width: float = asked(1.0, "Factor on all hidden widths.", Panel.TRAINING)
    dropout: float = asked(0.2, "Dropout rate of the mlp.", Panel.TRAINING)
    dropout_control: float = asked(
        0.0,
        "Train every network a second time with this dropout rate, as a control; 0: do not.",
        Panel.TRAINING,
    )
    num_models: int = asked(
        5,
        "Independent networks; intervals are over them and over the test examples.",
        Panel.TRAINING,
        "--models",
    )
    train_size: tuple[int, ...] = asked(
        (600,), "Training examples drawn for each network. May be repeated.", Panel.DATA
    )
    replacement: bool = asked(True, "Draw them with replacement, as published.", Panel.DATA)
    validation_size: int = asked(
        400,
        "Examples of the validation set: every choice and every temperature is made on it; the "
        "test set is looked at once.",
        Panel.DATA,
    )
    label_noise: tuple[float, ...] = asked(
        (0.0,), "Fraction of wrong training labels. May be repeated.", Panel.DATA
    )
    standardize: bool = asked(
        True,
        "Pixels with the training pool's mean and deviation, as published; or in [0, 1].",
        Panel.DATA,
    )
    epochs: int = asked(25, "Passes over the sample.", Panel.TRAINING)
    batch_size: int = asked(10, "Examples a step.", Panel.TRAINING)
    learning_rate: float = asked(0.01, "Of SGD with momentum 0.9.", Panel.TRAINING)
    momentum: float = 0.9
    weight_decay: float = asked(1e-4, "L2 penalty.", Panel.TRAINING)
    method: tuple[str, ...] = asked(
        ("kmeans",),
        "Quantizer: kmeans (Lloyd's iteration, as published), optimal (the best codebooks there "
        "are, of all sizes from one solve), entropy_constrained (least distortion for the bits of "
        "an entropy coder, ten rates), vector (pairs of weights). May be repeated.",
        Panel.GRID,
        choices=METHODS,
    )
    allocation: tuple[str, ...] = asked(
        ("equal",),
        "How layers share the bits: equal (the same K in each) or optimal (as many bits in all, "
        "where they lower the distortion most). May be repeated.",
        Panel.GRID,
        choices=ALLOCATIONS,
    )
    importance: tuple[str, ...] = asked(
        ("none", "gauss_newton"),
        "What weighs a weight's squared error in K-means: none, gauss_newton (exact curvature), "
        "hutchinson (random probes of the Hessian; hutchinson-16 with 16), fisher (squared "
        "gradients), adam (Adam's second moments). May be repeated.",
        Panel.GRID,
        choices=IMPORTANCES,
    )
    num_probes: int = asked(64, "Probes of hutchinson.", Panel.GRID)
    curvature_examples: int = asked(
        1000, "Training examples that curvature is measured on.", Panel.GRID
    )
    penalty_form: tuple[str, ...] = asked(
        ("monotone",),
        "How the diameter of a codebook is penalised: monotone, published or linear. May be "
        "repeated.",
        Panel.GRID,
        choices=PENALTY_FORMS,
    )
    diameter_penalty: tuple[float, ...] = asked(
        (0.0, 0.003, 0.01, 0.05),
        "Relative strength of the diameter penalty; 0 is always there. May be repeated.",
        Panel.GRID,
    )
    num_clusters: tuple[int, ...] = asked(
        (2, 3, 4, 6, 8, 16, 32), "Codebook size K of every layer. May be repeated.", Panel.GRID
    )
    num_iterations: int = 100
    num_bins: int = 4096
    baselines: bool = True
    controls: bool = True
    seed: int = asked(0, "Of everything random.", Panel.RUN)

    def __post_init__(self) -> None:
        """Turn single values into tuples, sort what has an order, and check everything."""
        for name in _AXES:
            object.__setattr__(self, name, as_tuple(getattr(self, name), name))
        clusters = sorted_clusters(self.num_clusters, "num_clusters")
        penalties = tuple(sorted({0.0, *(float(b) for b in self.diameter_penalty)}))
        object.__setattr__(self, "num_clusters", clusters)
        object.__setattr__(self, "diameter_penalty", penalties)
        sizes = tuple(integer(size, "train_size") for size in self.train_size)
        object.__setattr__(self, "train_size", sizes)
        object.__setattr__(self, "label_noise", tuple(float(p) for p in self.label_noise))
        _check(self)

    def settings(self) -> list["Setting"]:
        """Every (dataset, model, training size, label noise) of the grid, in a fixed order."""
        has_sizes = len(self.train_size) > 1
        return [
            Setting(dataset, model, noise, size if has_sizes else None)
            for dataset in self.dataset
            for model in self.model
            for size in self.train_size
            for noise in self.label_noise
        ]

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values, for a manifest; `from_dict` reads them back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "SweepConfig":
        """Settings from `to_dict`; an unknown name is a `ValueError`."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"unknown sweep settings {unknown}; this version knows {sorted(known)}."
            )
        return cls(**values)


@dataclass(frozen=True)
class Setting:
    """Networks that are trained and judged together.

    Attributes:
        dataset: what they learn.
        model: what they are.
        label_noise: share of wrong training labels.
        train_size: examples that each learns from, where settings differ in it; else None.
    """

    dataset: str
    model: str
    label_noise: float
    train_size: int | None = None

    @property
    def name(self) -> str:
        """Short name that is safe in a file name, e.g. `mnist-mlp-noise0.3`."""
        size = "" if self.train_size is None else f"-n{self.train_size}"
        return f"{self.dataset}-{self.model}{size}-noise{self.label_noise:g}"


def preset(name: str, **overrides: Any) -> SweepConfig:
    """Return the settings of a preset with some of them replaced.

    Args:
        name: `quick`: digits, 5 networks, some 80 variants, about a minute. `paper`: the
            published experiment (MNIST, 6,000 training draws, 20 networks, 25 epochs), 120
            quantized variants; with `label_noise` above 0 the regime where memorised labels
            leave something to gain: 3,000 draws, no dropout, 60 epochs. `phase`: four sample sizes
            and five shares of wrong labels, each with the question whether compression gives what
            temperature, shrinkage, dropout and early stopping do not; digits in a quarter of an
            hour, or with `dataset="mnist"` larger samples of that.
        **overrides: fields of `SweepConfig`. Data sets other than the preset's bring sample
            sizes that fit them, unless sizes are given.

    Raises:
        ValueError: on an unknown preset or field, or a value that is not allowed.
    """
    if name not in _PRESETS:
        raise ValueError(f"unknown preset {name!r}: choose one of {', '.join(_PRESETS)}.")
    known = {f.name for f in fields(SweepConfig)}
    unknown = sorted(set(overrides) - known)
    if unknown:
        raise ValueError(f"unknown sweep settings {unknown}; known are {sorted(known)}.")
    values = dict(_PRESETS[name])
    noise = as_tuple(overrides.get("label_noise", 0.0), "label_noise")
    if name == "paper" and any(float(p) > 0 for p in noise):
        values |= {"train_size": 3000, "dropout": 0.0, "epochs": 60}
    datasets = as_tuple(overrides.get("dataset", values.get("dataset", ("digits",))), "dataset")
    for dataset in datasets:
        values |= SAMPLE_SIZES.get(dataset, {}) if dataset not in values.get("dataset", ()) else {}
    if name == "phase" and "digits" not in datasets:
        values |= {"train_size": _LARGER_SAMPLES}
    return SweepConfig(**{**values, **overrides})


def sorted_clusters(value: Sequence[int] | int, name: str) -> tuple[int, ...]:
    """Return codebook sizes, ascending and each once; a size out of range is a `ValueError`."""
    clusters = tuple(sorted({integer(k, name) for k in as_tuple(value, name)}))
    if clusters[0] < 1 or clusters[-1] > MAX_CLUSTERS:
        raise ValueError(f"{name} must lie between 1 and {MAX_CLUSTERS:,}, got {clusters}.")
    return clusters


_AXES = (
    "dataset",
    "model",
    "train_size",
    "label_noise",
    "method",
    "allocation",
    "importance",
    "penalty_form",
    "diameter_penalty",
    "num_clusters",
)

_PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"dataset": ("digits",)},
    "paper": {
        "dataset": ("mnist",),
        "num_models": 20,
        "train_size": 6000,
        "validation_size": 5000,
        "num_iterations": 30,
        "num_clusters": (2, 3, 4, 6, 8, 12, 16, 32),
        "diameter_penalty": (0.0, 0.003, 0.01, 0.03, 0.05, 0.1, 0.3),
    },
    "phase": {
        "dataset": ("digits",),
        "train_size": (100, 200, 400, 800),
        "label_noise": (0.0, 0.1, 0.2, 0.3, 0.4),
        "replacement": False,
        "num_models": 6,
        "width": 0.5,
        "epochs": 60,
        "dropout": 0.0,
        "dropout_control": 0.5,
        "num_clusters": (3, 4, 8, 16, 32),
        "diameter_penalty": (0.0, 0.01, 0.05),
    },
}
# Of `phase`, where there are as many examples.
_LARGER_SAMPLES = (500, 1500, 6000, 20_000)


def _check(config: SweepConfig) -> None:
    check_names("dataset", config.dataset, DATASETS)
    check_names("model", config.model, MODELS)
    check_names("method", config.method, tuple(METHODS))
    check_names("allocation", config.allocation, tuple(ALLOCATIONS))
    for name in ("optimal", "vector"):
        if name in config.method and config.num_clusters[-1] > MAX_SEARCHED_CLUSTERS:
            raise ValueError(
                f"method {name!r} takes num_clusters up to {MAX_SEARCHED_CLUSTERS:,}, got "
                f"{config.num_clusters[-1]:,}; leave one of them out."
            )
    for name in config.importance:
        if not is_importance(name):
            raise ValueError(f"unknown importance {name!r}: choose from {ALLOWED} (N >= 2).")
    check_names("penalty_form", config.penalty_form, PENALTY_FORMS)
    check_counts(
        config,
        (
            "num_models",
            "validation_size",
            "epochs",
            "batch_size",
            "curvature_examples",
            "num_iterations",
        ),
    )
    if min(config.train_size) < 1:
        raise ValueError(f"train_size must be at least 1, got {min(config.train_size)}.")
    if integer(config.num_probes, "num_probes") < 2:
        raise ValueError(f"num_probes must be at least 2, got {config.num_probes}.")
    if integer(config.num_bins, "num_bins") < 16:
        raise ValueError(f"num_bins must be at least 16, got {config.num_bins}.")
    check_range("diameter_penalty", config.diameter_penalty, 0.0, float("inf"))
    check_range("label_noise", config.label_noise, 0.0, 1.0)
    check_range("dropout", (config.dropout, config.dropout_control), 0.0, 1.0)
    check_range("momentum", (config.momentum,), 0.0, 1.0)
    check_range("weight_decay", (config.weight_decay,), 0.0, float("inf"))
    check_positive(config, ("width", "learning_rate"))
