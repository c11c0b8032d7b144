"""Settings of the study: which problem, how many data sets, compressed at which rates."""

import math
from dataclasses import dataclass
from typing import Any

from jaxcomp.experiments.settings import Panel, asked

MAX_INFORMATION_DATASETS = 4000


@dataclass(frozen=True)
class StudyConfig:
    """Settings of a study.

    Attributes:
        dim: d, weights.
        num_examples: n of each simulation; the first one is drawn in detail.
        signal: B, variance of the outputs that the weights explain.
        noise_variance: s2.
        correlation: of neighbouring inputs, `Sigma_ij = correlation^|i - j|`.
        num_datasets: data sets drawn for every n.
        num_rates: places of the rate grid, 2 to 64: K = 1, 2, ... for the fixed-rate quantizers,
            equally spaced up to `max_bits` for channels and the entropy code.
        max_bits: highest rate of the channels, bits a weight.
        diameter_penalty: relative strength.
        adaptive: whether codebooks made from the weights they serve are included.
        decimals: what weights are rounded to for the learner's own information.
        num_penalties: ridge penalties for it, beside none.
        information_datasets: data sets drawn for it.
        chunk_size: data sets in one stored chunk.
        seed: of everything random.
    """

    dim: int = asked(50, "Weights d.", Panel.PROBLEM)
    num_examples: tuple[int, ...] = asked(
        (80, 160, 400, 1000, 5000),
        "Examples n of a data set, at least d + 8. May be repeated; the first is drawn in detail.",
        Panel.PROBLEM,
        "--num-examples",
        "-n",
    )
    signal: float = asked(
        2.0,
        "B, the variance of the outputs that the true weights explain. The population risk is "
        "U-shaped in the rate where 2B > V = d s2/(n-d-1).",
        Panel.PROBLEM,
    )
    noise_variance: float = asked(1.0, "s2 of the outputs.", Panel.PROBLEM)
    correlation: float = asked(
        0.0,
        "Of neighbouring inputs, between -1 and 1; inputs i and j have its |i-j|-th power.",
        Panel.PROBLEM,
    )
    num_datasets: int = asked(10_000, "Data sets drawn for each n.", Panel.SIMULATION, "--datasets")
    num_rates: int = asked(
        32,
        "Places of the rate grid: quantizers with K = 1, 2, ... centroids, channels at equally "
        "spaced rates.",
        Panel.SIMULATION,
    )
    max_bits: float = asked(5.0, "Highest rate of the channels, bits a weight.", Panel.GRID)
    diameter_penalty: float = asked(0.05, "Relative strength of the diameter penalty.", Panel.GRID)
    adaptive: bool = asked(
        True,
        "Also codebooks made from the weights they serve, with their bits counted.",
        Panel.GRID,
    )
    decimals: tuple[int, ...] = asked(
        (1, 2, 3),
        "Decimals that weights are rounded to for the learner's own information. May be repeated.",
        Panel.SIMULATION,
    )
    num_penalties: int = 8
    information_datasets: int = MAX_INFORMATION_DATASETS
    chunk_size: int = 1000
    seed: int = asked(0, "Of everything random.", Panel.RUN)

    def __post_init__(self) -> None:
        """Refuse what cannot be computed, in one sentence."""
        for name, least in (
            ("dim", 2),
            ("num_datasets", 4),
            ("num_rates", 2),
            ("num_penalties", 0),
            ("information_datasets", 100),
            ("chunk_size", 2),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if self.num_rates > 64:
            raise ValueError(f"num_rates must be at most 64, got {self.num_rates}.")
        if not self.num_examples or min(self.num_examples) < self.dim + 8:
            raise ValueError(
                f"num_examples must be at least dim + 8 = {self.dim + 8}, where the standard "
                f"errors of the risks can be trusted, got {self.num_examples}."
            )
        if len(set(self.num_examples)) != len(self.num_examples):
            raise ValueError(f"num_examples must be different, got {self.num_examples}.")
        if not self.decimals or min(self.decimals) < 0 or max(self.decimals) > 5:
            raise ValueError(f"decimals must lie between 0 and 5, got {self.decimals}.")
        for name in ("noise_variance", "max_bits"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be positive and finite, got {value}.")
        if not -1 < self.correlation < 1:
            raise ValueError(f"correlation must lie between -1 and 1, got {self.correlation}.")
        for name in ("signal", "diameter_penalty"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be finite and at least 0, got {value}.")


def preset(**overrides: Any) -> StudyConfig:
    """Return the settings of the study, some of them replaced.

    Args:
        **overrides: fields of `StudyConfig`. With fewer data sets than by default, the learner's
            own information is measured on fewer as well, unless its number is given.

    Raises:
        ValueError: for a value that is not allowed.
    """
    num_datasets = overrides.get("num_datasets", StudyConfig.num_datasets)
    fitting = {"information_datasets": min(MAX_INFORMATION_DATASETS, max(num_datasets, 100))}
    return StudyConfig(**{**fitting, **overrides})
