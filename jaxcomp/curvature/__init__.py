"""Curvature of a loss: the weights that Hessian-weighted quantizers use.

Kernels on one batch (`gauss_newton_diagonal`, `hutchinson_diagonal`, `hutchinson_blocks`,
`fisher_diagonal`); the same as objects that know all but the data (`GaussNewton`, `Hutchinson`,
`HutchinsonBlocks`, `Fisher`), for data sets in batches (`over_batches`, `over_batches_until` an
estimate is precise enough) and for what they will take in memory (`estimate_memory`); the policy
that turns estimates into importance (`CurvaturePolicy`). The Hessian of each layer from its inputs
(`layer_hessians`, `find_layers`) and what `jaxcomp.compress` needs of layers (`Layers`), the
Hessian of linear regression (`linear_regression_hessian`), and `adam_second_moments` of an
optimizer's state.
"""

from jaxcomp.curvature.adam import adam_second_moments
from jaxcomp.curvature.batches import (
    PreciseEstimate,
    mean_over_batches,
    over_batches,
    over_batches_until,
)
from jaxcomp.curvature.blocks import HutchinsonBlocks, hutchinson_blocks
from jaxcomp.curvature.estimate import DiagonalEstimate, Estimator, check_finite
from jaxcomp.curvature.fisher import Fisher, fisher_diagonal
from jaxcomp.curvature.gauss_newton import GaussNewton, gauss_newton_diagonal
from jaxcomp.curvature.hutchinson import Hutchinson, hutchinson_diagonal
from jaxcomp.curvature.layer_inputs import InputMoments, Layers
from jaxcomp.curvature.layers import Layer, LayerHessian, find_layers, layer_hessians
from jaxcomp.curvature.linear_regression import linear_regression_hessian
from jaxcomp.curvature.memory import MemoryEstimate, estimate_memory
from jaxcomp.curvature.output_losses import PerPosition
from jaxcomp.curvature.policy import CurvaturePolicy, LeafReport, PolicyResult

__all__ = [
    "CurvaturePolicy",
    "DiagonalEstimate",
    "Estimator",
    "Fisher",
    "GaussNewton",
    "Hutchinson",
    "HutchinsonBlocks",
    "InputMoments",
    "Layer",
    "LayerHessian",
    "Layers",
    "LeafReport",
    "MemoryEstimate",
    "PerPosition",
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
    "mean_over_batches",
    "over_batches",
    "over_batches_until",
]
