"""Problems and slow, plain float64 versions of what the quantizers do, shared by their tests."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import jax
import numpy as np


def heavy_tailed(num_points: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Student-t weights (3 degrees of freedom) with Gamma importances, float32."""
    rng = np.random.default_rng(seed)
    points = 0.05 * rng.standard_t(3, num_points)
    importance = rng.gamma(0.5, size=num_points) + 1e-6
    return points.astype(np.float32), importance.astype(np.float32)


def nearest(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Index of the nearest centroid in float64, ties to the lowest index."""
    gaps = np.abs(points.astype(np.float64)[:, None] - centroids.astype(np.float64)[None, :])
    return np.argmin(gaps, axis=1)


def distortion(points: np.ndarray, importance: np.ndarray, centroids: np.ndarray) -> float:
    """Weighted squared distance to the nearest centroid, without an N x K matrix."""
    points, centroids = points.astype(np.float64), np.unique(centroids.astype(np.float64))
    index = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, points, side="left")
    return float(np.sum(importance.astype(np.float64) * (points - centroids[index]) ** 2))


def quantile_start(points: np.ndarray, num_clusters: int) -> np.ndarray:
    """Sorted points number floor((k + 1/2) N / K)."""
    order = (2 * np.arange(num_clusters) + 1) * len(points) // (2 * num_clusters)
    return np.sort(points)[order].astype(np.float64)


def penalty_term(diameter: float, beta: float, form: str) -> float:
    return {"none": 0.0, "linear": 0.5 * beta * diameter}.get(form, beta * diameter**2)


def objective(
    points: np.ndarray, importance: np.ndarray, centroids: np.ndarray, beta: float, form: str
) -> float:
    """Distortion plus penalty on the diameter of the centroids that serve any mass."""
    index = nearest(points, centroids)
    served = centroids.astype(np.float64)[np.unique(index[importance > 0])]
    diameter = served.max() - served.min()
    return distortion(points, importance, centroids) + penalty_term(diameter, beta, form)


def naive_lloyd(
    points: np.ndarray, importance: np.ndarray, centroids: np.ndarray, num_iterations: int
) -> np.ndarray:
    """Textbook weighted K-means in float64; a cluster without mass keeps its centre."""
    points, importance = points.astype(np.float64), importance.astype(np.float64)
    centroids = np.sort(centroids.astype(np.float64))
    for _ in range(num_iterations):
        index = nearest(points, centroids)
        for k in range(len(centroids)):
            mass = importance[index == k].sum()
            if mass > 0:
                centroids[k] = np.sum((importance * points)[index == k]) / mass
        centroids = np.sort(centroids)
    return centroids


def optimum(points, importance, max_clusters):
    """Best distortion with at most 1..K clusters, by dynamic programming in float64.

    Over the distinct values, quadratic in their number, interval costs about the interval's mean.
    """
    values, inverse = np.unique(np.asarray(points, np.float64), return_inverse=True)
    mass = np.bincount(inverse, np.asarray(importance, np.float64))
    values = values - np.average(values, weights=mass)
    size = len(values)
    cost = np.full((size + 1, size + 1), np.inf)
    for start in range(size):
        w, h = values[start:], mass[start:]
        offset = w - w[0]
        total, first = np.cumsum(h), np.cumsum(h * offset)
        mean = first / np.where(total > 0, total, 1)
        # About the mean: the textbook difference of sums would cancel.
        steps = np.zeros_like(w)
        steps[1:] = h[1:] * (offset[1:] - mean[:-1]) * (offset[1:] - mean[1:])
        cost[start, start + 1 :] = np.cumsum(steps)
    np.fill_diagonal(cost, 0)
    best = np.full((max_clusters, size + 1), np.inf)
    best[0] = cost[0]
    for k in range(1, max_clusters):
        best[k] = np.min(best[k - 1][:, None] + cost, axis=0)
    return best[:, -1]


@contextmanager
def count_compilations() -> Iterator[Callable[[], int]]:
    """Count the programs XLA compiles inside the block."""
    seen: list[str] = []

    def listen(event: str, duration: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield lambda: len(seen)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


class Restored(NamedTuple):
    """Moments in the units of the points, float64."""

    position: np.ndarray
    num_points: np.ndarray
    mass: np.ndarray
    second: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray


def restored(moments):
    """Return moments in the units of the points, `second` the sum of h (w - position)^2."""
    position, mass, deviation, minimum, maximum = (
        np.asarray(part, np.float64)
        for part in (
            moments.position,
            moments.mass,
            moments.deviation,
            moments.minimum,
            moments.maximum,
        )
    )
    exponent, mass_exponent = np.asarray(moments.exponent), np.asarray(moments.mass_exponent)
    unit, of_mass = exponent[..., None], mass_exponent[..., None]
    return Restored(
        position=np.ldexp(position, unit),
        num_points=np.asarray(moments.num_points),
        mass=np.ldexp(mass, of_mass),
        second=np.ldexp(mass * deviation**2, 2 * unit + of_mass),
        minimum=np.ldexp(minimum, exponent),
        maximum=np.ldexp(maximum, exponent),
    )
