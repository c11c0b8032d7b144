"""The cells of a sweep: every way in which a trained network is changed and looked at again.

A cell is of one `kind`: the `original`, a `compressed` network, or a `control` that changes the
network without compressing it (so that an improvement can be told from shrinkage or
calibration), or `sensitivity`: one layer compressed, the others left alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["original", "compressed", "control", "sensitivity"]
Method: TypeAlias = Literal[
    "original",
    "kmeans",
    "uniform",
    "round_to_nearest",
    "magnitude_pruning",
    "temperature",
    "last_layer_scaled",
    "weights_clipped",
    "gaussian_noise",
    "early_stopping",
]

INTEGER_BITS = (8, 4)
SPARSITIES = (0.5, 0.75, 0.9)
LAST_LAYER_SCALES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
CLIP_QUANTILES = (0.001, 0.005, 0.02, 0.05, 0.1)


@dataclass(frozen=True)
class Cell:
    """One way to change a network.

    Attributes:
        kind: original, compressed, control or sensitivity.
        method: what is done.
        weighting: K-means importance (none, gauss_newton, ...); elsewhere the method or kind.
        penalty_form: of the diameter: none, monotone, published, linear.
        diameter_penalty: its relative strength.
        num_clusters: K of every layer; 0 where it does not apply. For `gaussian_noise`, the K
            of the plain K-means whose distortion the noise has.
        parameter: bits of integer rounding, sparsity of pruning, scale of the last layer,
            quantile of clipping; NaN where there is none.
        layer: path of the only layer changed; empty for all of them.
    """

    kind: Kind
    method: Method
    weighting: str
    penalty_form: str = "none"
    diameter_penalty: float = 0.0
    num_clusters: int = 0
    parameter: float = math.nan
    layer: str = ""

    @property
    def id(self) -> str:
        """Readable name, unique within a setting, e.g. `kmeans/fisher/monotone-0.05/K8`."""
        parts: list[str] = [self.method]
        if self.method == "kmeans":
            parts.append(self.weighting)
        if self.penalty_form != "none":
            parts.append(f"{self.penalty_form}-{short_number(self.diameter_penalty)}")
        if self.num_clusters:
            parts.append(f"K{self.num_clusters}")
        if not math.isnan(self.parameter):
            parts.append(short_number(self.parameter))
        if self.layer:
            parts.append(f"only:{self.layer}")
        return "/".join(parts)


ORIGINAL = Cell("original", "original", "original")


def short_number(value: float) -> str:
    """Write a number in as few digits as tell it from all others."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def compressed_cells(
    *,
    weighting: Sequence[str],
    penalty_form: Sequence[str],
    diameter_penalty: Sequence[float],
    num_clusters: Sequence[int],
    baselines: bool,
) -> list[Cell]:
    """All compressed cells: K-means over every axis, then the baselines."""
    penalties = [("none", 0.0)] + [
        (form, strength) for form in penalty_form for strength in diameter_penalty if strength > 0
    ]
    cells = [
        Cell("compressed", "kmeans", weight, form, strength, k)
        for weight in weighting
        for form, strength in penalties
        for k in num_clusters
    ]
    if baselines:
        cells += [Cell("compressed", "uniform", "uniform", num_clusters=k) for k in num_clusters]
        cells += [
            Cell("compressed", "round_to_nearest", "round_to_nearest", parameter=float(bits))
            for bits in INTEGER_BITS
        ]
        cells += [
            Cell("compressed", "magnitude_pruning", "magnitude_pruning", parameter=sparsity)
            for sparsity in SPARSITIES
        ]
    return cells


def control_cells(
    *, num_clusters: Sequence[int], has_early_stopping: bool, has_last_layer: bool
) -> list[Cell]:
    """Controls that compress nothing, `temperature` (which needs no forward pass) first."""
    cells = [Cell("control", "temperature", "control")]
    if has_last_layer:
        cells += [
            Cell("control", "last_layer_scaled", "control", parameter=scale)
            for scale in LAST_LAYER_SCALES
        ]
    cells += [Cell("control", "weights_clipped", "control", parameter=q) for q in CLIP_QUANTILES]
    cells += [Cell("control", "gaussian_noise", "control", num_clusters=k) for k in num_clusters]
    if has_early_stopping:
        cells.append(Cell("control", "early_stopping", "control"))
    return cells


def sensitivity_cells(layers: Sequence[str], *, num_clusters: Sequence[int]) -> list[Cell]:
    """One layer at a time by plain K-means, the others left alone."""
    return [
        Cell("sensitivity", "kmeans", "none", num_clusters=k, layer=layer)
        for layer in layers
        for k in num_clusters
    ]
