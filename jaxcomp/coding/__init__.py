"""Prior codes: in what sense a penalty on the weights compresses them.

Priors and the exact lengths of their codes (`code_length_bits`), streams that can really be
decoded (`encode`, `decode`), the step that curvature asks for (`optimal_step`), and the map between
an L2 penalty and a rate (`l2_rate_nats`).
"""

from jaxcomp.coding.ans import decode, encode
from jaxcomp.coding.distributions import (
    Gaussian,
    Laplace,
    Prior,
    ScaleMixture,
    SpikeAndSlab,
    fit,
    parameter_bits,
)
from jaxcomp.coding.lengths import code_length_bits, quantize
from jaxcomp.coding.penalties import (
    gaussian_from_weight_decay,
    l2_rate_nats,
    laplace_from_l1,
    prior_precision_from_rate,
    prior_precision_from_weight_decay,
)
from jaxcomp.coding.steps import StepChoice, optimal_step, predicted_loss_rise_nats

__all__ = [
    "Gaussian",
    "Laplace",
    "Prior",
    "ScaleMixture",
    "SpikeAndSlab",
    "StepChoice",
    "code_length_bits",
    "decode",
    "encode",
    "fit",
    "gaussian_from_weight_decay",
    "l2_rate_nats",
    "laplace_from_l1",
    "optimal_step",
    "parameter_bits",
    "predicted_loss_rise_nats",
    "prior_precision_from_rate",
    "prior_precision_from_weight_decay",
    "quantize",
]
