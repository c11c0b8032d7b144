"""How good a network is, and how sure one may be of it: scores, calibration, intervals."""

from jaxcomp.evaluation import calibration, metrics, statistics

__all__ = ["calibration", "metrics", "statistics"]
