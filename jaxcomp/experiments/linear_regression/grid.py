"""What settings stand for: the problem, the places of the rate grid, the compressors."""

import jax
import numpy as np
from jaxtyping import Float

from jaxcomp.experiments.linear_regression.config import StudyConfig
from jaxcomp.experiments.reproducibility import random_key
from jaxcomp.linear_regression.closed_forms import CHANNELS
from jaxcomp.linear_regression.codebooks import ADAPTIVE, DESIGNED
from jaxcomp.linear_regression.problem import Problem, correlated_covariance, random_problem
from jaxcomp.linear_regression.simulation import CONTROLS
from jaxcomp.numerics.units import LN2

# Streams of random numbers; each is folded into the study's seed.
PROBLEM_STREAM, DESIGN_STREAM, DATA_SETS_STREAM, INFORMATION_STREAM = range(4)


def problem_of(config: StudyConfig) -> Problem:
    """True weights in a random direction, and the covariance of the inputs."""
    return random_problem(
        jax.random.fold_in(random_key(config.seed), PROBLEM_STREAM),
        config.dim,
        signal=config.signal,
        noise_variance=config.noise_variance,
        covariance=correlated_covariance(config.dim, config.correlation),
    )


def compressors_of(config: StudyConfig) -> tuple[str, ...]:
    """Names in the order of the table."""
    kept = (*CHANNELS, *CONTROLS, *DESIGNED)
    return (*kept, *ADAPTIVE) if config.adaptive else kept


def rates_nats_of(config: StudyConfig) -> Float[np.ndarray, "R"]:
    """Rates of the whole model, for channels, shrinkage and the entropy code."""
    return config.dim * LN2 * np.linspace(0, config.max_bits, config.num_rates)
