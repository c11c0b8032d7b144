"""Scalar quantizers on histograms of moments, and the baselines beside them."""

from jaxcomp.quantizers.allocation import Allocation, allocate_rates, lower_convex_hull
from jaxcomp.quantizers.assignment import assign
from jaxcomp.quantizers.entropy_constrained import (
    RateDistortionCurve,
    assign_by_cost,
    default_multipliers,
    entropy_constrained,
    joint_moments,
    solve_entropy_constrained,
)
from jaxcomp.quantizers.lloyd import Codebook, QuantizationResult, kmeans, solve_kmeans
from jaxcomp.quantizers.moments import Moments, histogram_moments, pad_bins
from jaxcomp.quantizers.pruning import prune_by_magnitude
from jaxcomp.quantizers.rounding import RoundedWeights, round_to_nearest
from jaxcomp.quantizers.uniform import solve_uniform, uniform
from jaxcomp.quantizers.vector import (
    VectorQuantizationResult,
    join_vectors,
    split_vectors,
    vector_kmeans,
)

__all__ = [
    "Allocation",
    "Codebook",
    "Moments",
    "QuantizationResult",
    "RateDistortionCurve",
    "RoundedWeights",
    "VectorQuantizationResult",
    "allocate_rates",
    "assign",
    "assign_by_cost",
    "default_multipliers",
    "entropy_constrained",
    "histogram_moments",
    "join_vectors",
    "joint_moments",
    "kmeans",
    "lower_convex_hull",
    "pad_bins",
    "prune_by_magnitude",
    "round_to_nearest",
    "solve_entropy_constrained",
    "solve_kmeans",
    "solve_uniform",
    "split_vectors",
    "uniform",
    "vector_kmeans",
]
