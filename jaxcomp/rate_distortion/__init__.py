"""Limits of lossy compression."""

from jaxcomp.rate_distortion.gaussian import gaussian_distortion, gaussian_rate
