"""Curvature of a loss: the weights that Hessian-weighted quantizers use.

Kernels on one batch (`hutchinson_diagonal`, `fisher_diagonal`), a driver over data sets in
batches (`over_batches`), and the policy that turns estimates into importance (`CurvaturePolicy`).
"""

from jaxcomp.curvature.batches import over_batches
from jaxcomp.curvature.estimate import DiagonalEstimate, check_finite
from jaxcomp.curvature.fisher import fisher_diagonal
from jaxcomp.curvature.gauss_newton import gauss_newton_diagonal
from jaxcomp.curvature.hutchinson import hutchinson_diagonal
from jaxcomp.curvature.policy import CurvaturePolicy, LeafReport, PolicyResult

__all__ = [
    "CurvaturePolicy",
    "DiagonalEstimate",
    "LeafReport",
    "PolicyResult",
    "check_finite",
    "fisher_diagonal",
    "gauss_newton_diagonal",
    "hutchinson_diagonal",
    "over_batches",
]
