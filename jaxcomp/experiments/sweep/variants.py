"""The variants of a sweep: every way in which a trained network is changed and looked at again.

A variant is of one `kind`: the `original`, a `compressed` network, or a `control` that changes the
network without compressing it (so that an improvement can be told from shrinkage or
calibration), or `sensitivity`: one layer compressed, the others left alone.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from jaxcomp.quantizers import default_multipliers

Kind: TypeAlias = Literal["original", "compressed", "control", "sensitivity"]

TRAINED_OTHERWISE = ("early_stopping", "dropout", "dropout_early_stopping")
"""Controls that are other networks altogether."""
INTEGER_BITS = (8, 4)
SPARSITIES = (0.5, 0.75, 0.9)
LAST_LAYER_SCALES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
CLIP_QUANTILES = (0.001, 0.005, 0.02, 0.05, 0.1)
# From about 4.5 bits per weight down to none, each in as few digits as make a readable name.
MULTIPLIERS = tuple(float(f"{value:.3g}") for value in default_multipliers()[3:13])
# Weights that share an index in vector quantization.
VECTOR_SIZE = 2


@dataclass(frozen=True)
class Variant:
    """One way to change a network.

    Attributes:
        kind: original, compressed, control or sensitivity.
        method: what is done, by name; a user's method or control by the name that it was given.
        importance: what weighs a squared error (none, gauss_newton, ...); elsewhere the method or
            kind.
        penalty_form: of the diameter: none, monotone, published, linear.
        diameter_penalty: its relative strength.
        num_clusters: K of every layer; 0 where it does not apply. For `gaussian_noise`, the K
            of the plain K-means whose distortion the noise has. With optimal allocation, the K
            whose bits are shared between the layers.
        parameter: bits of integer rounding, sparsity of pruning, scale of the last layer,
            quantile of clipping, relative multiplier of entropy-constrained quantization,
            weights in a vector, the parameter of a user's method; NaN where there is none.
        layer: path of the only layer changed; empty for all of them.
        allocation: equal, or optimal: bits are shared between the layers.
    """

    kind: Kind
    method: str
    importance: str
    penalty_form: str = "none"
    diameter_penalty: float = 0.0
    num_clusters: int = 0
    parameter: float = math.nan
    layer: str = ""
    allocation: str = "equal"

    @property
    def id(self) -> str:
        """Readable name, unique within a setting, e.g. `kmeans/fisher/monotone-0.05/K8`."""
        parts: list[str] = [self.method]
        if self.importance not in (self.kind, self.method):
            parts.append(self.importance)
        if self.penalty_form != "none":
            parts.append(f"{self.penalty_form}-{short_number(self.diameter_penalty)}")
        if self.num_clusters:
            parts.append(f"K{self.num_clusters}")
        if not math.isnan(self.parameter):
            parts.append(short_number(self.parameter))
        if self.layer:
            parts.append(f"only:{self.layer}")
        if self.allocation != "equal":
            parts.append("allocated")
        return "/".join(parts)


ORIGINAL = Variant("original", "original", "original")


def short_number(value: float) -> str:
    """Write a number in as few digits as tell it from all others."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def compressed_variants(
    *,
    importance: Sequence[str],
    penalty_form: Sequence[str],
    diameter_penalty: Sequence[float],
    num_clusters: Sequence[int],
    baselines: bool,
    method: Sequence[str] = ("kmeans",),
    allocation: Sequence[str] = ("equal",),
) -> list[Variant]:
    """All compressed variants: every method over its axes, then the baselines.

    Bits are shared between layers where there is no penalty and a weight has an index of its own;
    everything else has the same K in every layer, whatever `allocation` says.
    """
    variants: list[Variant] = []
    for name in method:
        for weighed in importance:
            match name:
                case "kmeans":
                    variants += _kmeans_variants(
                        "kmeans", weighed, penalty_form, diameter_penalty, num_clusters, allocation
                    )
                case "optimal":
                    # Only the squared penalty has a global solver.
                    forms = [form for form in penalty_form if form == "monotone"]
                    variants += _kmeans_variants(
                        "optimal", weighed, forms, diameter_penalty, num_clusters, allocation
                    )
                case "entropy_constrained":
                    variants += [
                        Variant(
                            "compressed",
                            "entropy_constrained",
                            weighed,
                            parameter=multiplier,
                            allocation=shared,
                        )
                        for shared in allocation
                        for multiplier in MULTIPLIERS
                    ]
                case "vector":
                    variants += [
                        Variant(
                            "compressed",
                            "vector",
                            weighed,
                            num_clusters=k,
                            parameter=float(VECTOR_SIZE),
                        )
                        for k in num_clusters
                    ]
    if baselines:
        variants += [
            Variant("compressed", "uniform", "uniform", num_clusters=k) for k in num_clusters
        ]
        variants += [
            Variant("compressed", "round_to_nearest", "round_to_nearest", parameter=float(bits))
            for bits in INTEGER_BITS
        ]
        variants += [
            Variant("compressed", "magnitude_pruning", "magnitude_pruning", parameter=sparsity)
            for sparsity in SPARSITIES
        ]
    return variants


def _kmeans_variants(
    method: Literal["kmeans", "optimal"],
    importance: str,
    penalty_form: Sequence[str],
    diameter_penalty: Sequence[float],
    num_clusters: Sequence[int],
    allocation: Sequence[str],
) -> list[Variant]:
    kinds = [("none", 0.0, "equal")] if "equal" in allocation else []
    kinds += [
        (form, strength, "equal")
        for form in penalty_form
        for strength in diameter_penalty
        if strength > 0
    ]
    kinds += [("none", 0.0, "optimal")] if "optimal" in allocation else []
    return [
        Variant("compressed", method, importance, form, strength, k, allocation=shared)
        for form, strength, shared in kinds
        for k in num_clusters
    ]


def own_variants(
    methods: Mapping[str, tuple[float, ...]], importance: Sequence[str]
) -> list[Variant]:
    """Variants of a user's methods: each parameter with each importance.

    Args:
        methods: parameters by the name of the method.
        importance: what weighs a squared error.
    """
    return [
        Variant("compressed", name, weighed, parameter=parameter)
        for name, parameters in methods.items()
        for weighed in importance
        for parameter in parameters
    ]


def control_variants(
    *,
    num_clusters: Sequence[int],
    trained_otherwise: Collection[str],
    has_last_layer: bool,
    on_outputs: str = "temperature",
) -> list[Variant]:
    """Controls that compress nothing, the one on outputs (which needs no forward pass) first.

    Args:
        num_clusters: K of the plain K-means whose distortion the noise has.
        trained_otherwise: methods of the controls that are networks of their own.
        has_last_layer: whether the last layer is known.
        on_outputs: the control of the task.
    """
    variants = [Variant("control", on_outputs, "control")]
    if has_last_layer:
        variants += [
            Variant("control", "last_layer_scaled", "control", parameter=scale)
            for scale in LAST_LAYER_SCALES
        ]
    variants += [
        Variant("control", "weights_clipped", "control", parameter=q) for q in CLIP_QUANTILES
    ]
    variants += [
        Variant("control", "gaussian_noise", "control", num_clusters=k) for k in num_clusters
    ]
    return variants + otherwise_variants(trained_otherwise)


def otherwise_variants(methods: Collection[str]) -> list[Variant]:
    """Controls that are networks of their own: those of `TRAINED_OTHERWISE`, then a user's."""
    known = [method for method in TRAINED_OTHERWISE if method in methods]
    known += [method for method in methods if method not in TRAINED_OTHERWISE]
    return [Variant("control", method, "control") for method in known]


def sensitivity_variants(layers: Sequence[str], *, num_clusters: Sequence[int]) -> list[Variant]:
    """One layer at a time by plain K-means, the others left alone."""
    return [
        Variant("sensitivity", "kmeans", "none", num_clusters=k, layer=layer)
        for layer in layers
        for k in num_clusters
    ]
