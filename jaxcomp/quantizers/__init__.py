"""Quantizers of weights: scalar, vector and entropy-constrained, and bits between layers.

Scalar ones work on histograms of moments: once a group of weights is reduced to one, nothing
depends on their number any more. Distortion is `sum h (w - c)^2` everywhere, twice the rise of the
loss that the curvature h predicts.
"""

from jaxcomp.quantizers.allocation import Allocation, allocate_rates, lower_convex_hull
from jaxcomp.quantizers.assignment import assign
from jaxcomp.quantizers.blocks import block_kmeans
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
from jaxcomp.quantizers.optimal import OptimalCodebooks, optimal_kmeans, solve_optimal
from jaxcomp.quantizers.optimal_diameter import (
    DiameterSolution,
    DiameterSolver,
    optimal_diameter_kmeans,
    solve_optimal_diameter,
)
from jaxcomp.quantizers.pruning import prune_by_magnitude
from jaxcomp.quantizers.refinement import plus_plus_start, polish_kmeans
from jaxcomp.quantizers.rounding import RoundedWeights, round_to_nearest
from jaxcomp.quantizers.straight_through import (
    FineTunedCodebook,
    fine_tune_codebook,
    look_up,
    quantize_ste,
)
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
    "DiameterSolution",
    "DiameterSolver",
    "FineTunedCodebook",
    "Moments",
    "OptimalCodebooks",
    "QuantizationResult",
    "RateDistortionCurve",
    "RoundedWeights",
    "VectorQuantizationResult",
    "allocate_rates",
    "assign",
    "assign_by_cost",
    "block_kmeans",
    "default_multipliers",
    "entropy_constrained",
    "fine_tune_codebook",
    "histogram_moments",
    "join_vectors",
    "joint_moments",
    "kmeans",
    "look_up",
    "lower_convex_hull",
    "optimal_diameter_kmeans",
    "optimal_kmeans",
    "pad_bins",
    "plus_plus_start",
    "polish_kmeans",
    "prune_by_magnitude",
    "quantize_ste",
    "round_to_nearest",
    "solve_entropy_constrained",
    "solve_kmeans",
    "solve_optimal",
    "solve_optimal_diameter",
    "solve_uniform",
    "split_vectors",
    "uniform",
    "vector_kmeans",
]
