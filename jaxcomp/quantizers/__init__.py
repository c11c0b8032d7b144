"""Quantizers of weights: scalar, vector and entropy-constrained, and bits between layers.

Scalar ones work on histograms of moments: once a group of weights is reduced to one, nothing
depends on their number any more. Distortion is `sum h (w - c)^2` everywhere, twice the rise of the
loss that the curvature h predicts.
"""

from jaxcomp.quantizers.allocation import Allocation, allocate_rates, lower_convex_hull
from jaxcomp.quantizers.assignment import assign
from jaxcomp.quantizers.blocks import block_kmeans
from jaxcomp.quantizers.cells import joint_moments
from jaxcomp.quantizers.curves import Curve
from jaxcomp.quantizers.hessian_rounding import (
    RoundedLayer,
    layer_curve,
    round_layer,
    round_layer_to_rate,
)
from jaxcomp.quantizers.histograms import (
    Moments,
    histogram_moments,
    pad_bins,
)
from jaxcomp.quantizers.methods import (
    METHODS,
    EntropyConstrained,
    HessianRounding,
    KMeans,
    MagnitudePruning,
    Method,
    Optimal,
    RoundToNearest,
    TrellisCoded,
    Uniform,
    Vector,
)
from jaxcomp.quantizers.output_importance import output_importance
from jaxcomp.quantizers.output_refit import OutputRefit, refit_outputs
from jaxcomp.quantizers.pruning import prune_by_magnitude
from jaxcomp.quantizers.rounding import RoundedWeights, round_to_nearest
from jaxcomp.quantizers.rounding_passes import LayerCurve, RoundingSettings
from jaxcomp.quantizers.scalar.entropy_constrained import (
    RateDistortionCurve,
    assign_by_cost,
    default_multipliers,
    entropy_constrained,
    solve_entropy_constrained,
)
from jaxcomp.quantizers.scalar.lloyd import kmeans, solve_kmeans
from jaxcomp.quantizers.scalar.optimal import OptimalCodebooks, optimal_kmeans, solve_optimal
from jaxcomp.quantizers.scalar.optimal_diameter import (
    DiameterSolution,
    DiameterSolver,
    optimal_diameter_kmeans,
    solve_optimal_diameter,
)
from jaxcomp.quantizers.scalar.polish import plus_plus_start, polish_kmeans
from jaxcomp.quantizers.scalar.uniform import solve_uniform, uniform
from jaxcomp.quantizers.solution import Codebook, QuantizationResult, Solution
from jaxcomp.quantizers.vector import (
    VectorQuantizationResult,
    join_vectors,
    split_vectors,
    vector_kmeans,
)

__all__ = [
    "METHODS",
    "Allocation",
    "Codebook",
    "Curve",
    "DiameterSolution",
    "DiameterSolver",
    "EntropyConstrained",
    "HessianRounding",
    "KMeans",
    "LayerCurve",
    "MagnitudePruning",
    "Method",
    "Moments",
    "Optimal",
    "OptimalCodebooks",
    "OutputRefit",
    "QuantizationResult",
    "RateDistortionCurve",
    "RoundToNearest",
    "RoundedLayer",
    "RoundedWeights",
    "RoundingSettings",
    "Solution",
    "TrellisCoded",
    "Uniform",
    "Vector",
    "VectorQuantizationResult",
    "allocate_rates",
    "assign",
    "assign_by_cost",
    "block_kmeans",
    "default_multipliers",
    "entropy_constrained",
    "histogram_moments",
    "join_vectors",
    "joint_moments",
    "kmeans",
    "layer_curve",
    "lower_convex_hull",
    "optimal_diameter_kmeans",
    "optimal_kmeans",
    "output_importance",
    "pad_bins",
    "plus_plus_start",
    "polish_kmeans",
    "prune_by_magnitude",
    "refit_outputs",
    "round_layer",
    "round_layer_to_rate",
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
