"""Curvature of a loss: the weights that Hessian-weighted quantizers use.

Kernels on one batch (`gauss_newton_diagonal`, `hutchinson_diagonal`, `hutchinson_blocks`,
`fisher_diagonal`), drivers over data sets in batches (`over_batches`, and `over_batches_until` an
estimate is precise enough), what they will take in memory (`estimate_memory`), and the policy that
turns estimates into importance (`CurvaturePolicy`). The Hessian of each layer from its inputs
(`layer_hessians`, `find_layers`), that of linear regression (`linear_regression_hessian`), and
`adam_second_moments` of an optimizer's state.
"""

from jaxcomp.curvature.adam import adam_second_moments
from jaxcomp.curvature.batches import PreciseEstimate, over_batches, over_batches_until
from jaxcomp.curvature.blocks import hutchinson_blocks
from jaxcomp.curvature.estimate import DiagonalEstimate, check_finite
from jaxcomp.curvature.fisher import fisher_diagonal
from jaxcomp.curvature.gauss_newton import gauss_newton_diagonal
from jaxcomp.curvature.hutchinson import hutchinson_diagonal
from jaxcomp.curvature.layers import Layer, LayerHessian, find_layers, layer_hessians
from jaxcomp.curvature.linear_regression import linear_regression_hessian
from jaxcomp.curvature.memory import MemoryEstimate, estimate_memory
from jaxcomp.curvature.policy import CurvaturePolicy, LeafReport, PolicyResult

__all__ = [
    "CurvaturePolicy",
    "DiagonalEstimate",
    "Layer",
    "LayerHessian",
    "LeafReport",
    "MemoryEstimate",
    "PolicyResult",
    "PreciseEstimate",
    "adam_second_moments",
    "check_finite",
    "estimate_memory",
    "find_layers",
    "fisher_diagonal",
    "gauss_newton_diagonal",
    "hutchinson_blocks",
    "hutchinson_diagonal",
    "layer_hessians",
    "linear_regression_hessian",
    "over_batches",
    "over_batches_until",
]
