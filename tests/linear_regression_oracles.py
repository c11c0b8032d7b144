"""Plain NumPy in float64: draw data sets, solve them, send the solutions through channels."""

from typing import NamedTuple

import numpy as np


class Draws(NamedTuple):
    """(M, ...) data sets of one problem."""

    truth: np.ndarray
    covariance: np.ndarray
    noise_variance: float
    num_examples: int
    gram: np.ndarray
    weights: np.ndarray
    empirical: np.ndarray


def problem(dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(dim, dim))
    return rng.normal(size=dim) / np.sqrt(dim), mix @ mix.T / dim + 0.5 * np.eye(dim)


def draw(truth, covariance, noise_variance, num_examples, num_datasets, seed=1) -> Draws:
    rng = np.random.default_rng(seed)
    dim = truth.size
    inputs = rng.normal(size=(num_datasets, num_examples, dim)) @ np.linalg.cholesky(covariance).T
    noise = np.sqrt(noise_variance) * rng.normal(size=(num_datasets, num_examples))
    outputs = inputs @ truth + noise
    gram = np.einsum("mni,mnj->mij", inputs, inputs)
    weights = np.linalg.solve(gram, np.einsum("mni,mn->mi", inputs, outputs)[..., None])[..., 0]
    residual = outputs - np.einsum("mni,mi->mn", inputs, weights)
    empirical = np.mean(residual**2, axis=1)
    return Draws(truth, covariance, noise_variance, num_examples, gram, weights, empirical)


def population_risk(draws: Draws, weights: np.ndarray) -> np.ndarray:
    error = weights - draws.truth
    return draws.noise_variance + np.einsum("mi,ij,mj->m", error, draws.covariance, error)


def distortion(draws: Draws, weights: np.ndarray) -> np.ndarray:
    moved = weights - draws.weights
    return np.einsum("mi,mij,mj->m", moved, draws.gram, moved) / draws.num_examples


def channel(draws: Draws, rate: float, name: str, seed=2):
    """The output, and `ln p(output|W) / q(output)` for the codebook q centred where the rate says.

    For channels that know E What, q is centred at `m + a (w* - m)`; `zero_centred` at 0.
    """
    rng = np.random.default_rng(seed)
    num_datasets, dim = draws.weights.shape
    n, s2, sigma = draws.num_examples, draws.noise_variance, draws.covariance
    b = np.exp(-2 * rate / dim)
    a = 1 - b
    V = dim * s2 / (n - dim - 1)
    B = draws.truth @ sigma @ draws.truth
    precision = {
        "informed": draws.gram / s2,
        "uninformed": sigma * (n - dim - 1) / s2,
        "matched": sigma * dim / (B + V),
    }[name.removesuffix("_zero_mean")]
    factor = np.linalg.cholesky(precision)
    mean = draws.truth if name in ("informed", "uninformed") else np.zeros(dim)
    normal = rng.normal(size=(num_datasets, dim))
    noise = np.linalg.solve(np.swapaxes(factor, -1, -2), normal[..., None])[..., 0]
    output = mean + a * (draws.weights - mean) + np.sqrt(a * b) * noise

    def log_ratio(centre):
        gap = output - centre
        square = np.einsum("mi,mij,mj->m", gap, np.broadcast_to(precision, draws.gram.shape), gap)
        return rate + 0.5 * (square / a - np.sum(normal**2, axis=1))

    return output, log_ratio(mean + a * (draws.truth - mean)), log_ratio(np.zeros(dim))


def z_score(values: np.ndarray, expected: float) -> float:
    """How many standard errors the mean of draws is away from what was expected."""
    return float((values.mean() - expected) / (values.std(ddof=1) / np.sqrt(values.size)))
