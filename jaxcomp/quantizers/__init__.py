"""Scalar quantizers on histograms of moments, and the baselines beside them."""

from jaxcomp.quantizers.assignment import assign
from jaxcomp.quantizers.blocks import block_kmeans
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
from jaxcomp.quantizers.uniform import solve_uniform, uniform

__all__ = [
    "Codebook",
    "DiameterSolution",
    "DiameterSolver",
    "Moments",
    "OptimalCodebooks",
    "QuantizationResult",
    "RoundedWeights",
    "assign",
    "block_kmeans",
    "histogram_moments",
    "kmeans",
    "optimal_diameter_kmeans",
    "optimal_kmeans",
    "pad_bins",
    "plus_plus_start",
    "polish_kmeans",
    "prune_by_magnitude",
    "round_to_nearest",
    "solve_kmeans",
    "solve_optimal",
    "solve_optimal_diameter",
    "solve_uniform",
    "uniform",
]
