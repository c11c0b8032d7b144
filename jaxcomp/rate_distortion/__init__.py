"""Limits of lossy compression, and how far real quantizers are from them."""

from jaxcomp.rate_distortion.discrete import RateDistortionPoints, blahut_arimoto
from jaxcomp.rate_distortion.gaussian import gaussian_distortion, gaussian_rate
from jaxcomp.rate_distortion.limits import (
    Distance,
    LayerCurve,
    Source,
    add_curves,
    distance_to_limit,
    layer_curve,
    layer_source,
    network_curve,
)
from jaxcomp.rate_distortion.network_limit import NetworkLimit
from jaxcomp.rate_distortion.shannon import (
    density_entropy,
    gaussian_entropy,
    generalised_gaussian_entropy,
    laplacian_entropy,
    shannon_distortion,
    shannon_rate,
)
from jaxcomp.rate_distortion.squared_error import SquaredErrorPoints, squared_error_curve

__all__ = [
    "Distance",
    "LayerCurve",
    "NetworkLimit",
    "RateDistortionPoints",
    "Source",
    "SquaredErrorPoints",
    "add_curves",
    "blahut_arimoto",
    "density_entropy",
    "distance_to_limit",
    "gaussian_distortion",
    "gaussian_entropy",
    "gaussian_rate",
    "generalised_gaussian_entropy",
    "laplacian_entropy",
    "layer_curve",
    "layer_source",
    "network_curve",
    "shannon_distortion",
    "shannon_rate",
    "squared_error_curve",
]
