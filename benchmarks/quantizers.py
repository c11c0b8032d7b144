"""Time a grid of K-means problems on one layer: moments first, against Lloyd on the raw weights.

    python benchmarks/quantizers.py [--num-points 200704] [--repeats 7] [--out result.json]

The same data for all: Student-t weights (3 degrees of freedom) with Gamma importances, seeded, and
8 numbers of clusters x 6 diameter penalties, 30 Lloyd iterations from the quantiles.

- `moments`: one histogram, then all problems by prefix sums (`solve_kmeans`).
- `raw`: the same start and centre updates, the sums over the N points anew in every iteration,
  one after the other in one compiled program.
- `sum`: the importances by `pairwise_sum`; by blocks of 256 neighbours, the plainest sum whose
  error grows with log N only; and by `jnp.sum`. Errors against `math.fsum`.
- `compress`: `jaxcomp.compress` of so many Student-t weights (`--compress-points`, 0 for none) by
  `KMeans(16)`, and by `RoundToNearest(4)` with one scale or one a channel, against the kernels that
  do the same on a whole array, `kmeans` and `round_to_nearest`, in alternate turns; nanoseconds of
  processor time a weight, the least of the turns.
- `scikit_learn`: `KMeans` with `sample_weight`, one problem without penalty from the same start.

Compilation is reported apart. Inputs lie on the device before the clock starts; median and range
of the repeats. What each method found is compared outside the clock, on the raw weights in
float64.
"""

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sklearn
from jax import lax
from jaxtyping import Array, Float
from provenance import commit
from sklearn.cluster import KMeans as ScikitLearnKMeans

import jaxcomp
from jaxcomp.numerics.sums import pairwise_sum
from jaxcomp.quantizers import (
    KMeans,
    RoundToNearest,
    assign,
    histogram_moments,
    kmeans,
    round_to_nearest,
    solve_kmeans,
)
from jaxcomp.quantizers.assignment import midpoints
from jaxcomp.quantizers.methods import Method
from jaxcomp.quantizers.scalar.diameter import Clusters, update_centres

NUM_CLUSTERS = (2, 3, 4, 6, 8, 12, 16, 32)
PENALTIES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)
NUM_ITERATIONS = 30
SCIKIT_LEARN_CLUSTERS = 8


def make_problem(num_points: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    points = 0.05 * rng.standard_t(3, num_points)
    importance = rng.gamma(0.5, size=num_points) + 1e-6
    return points.astype(np.float32), importance.astype(np.float32)


def solve_grid(
    points: Float[Array, " points"], importance: Float[Array, " points"], num_bins: int
) -> Float[Array, "clusters penalties centroids"]:
    """All problems from one histogram of moments."""
    moments = histogram_moments(points, importance, num_bins=num_bins)
    solutions = solve_kmeans(
        moments,
        jnp.asarray(NUM_CLUSTERS)[:, None],
        jnp.asarray(PENALTIES)[None, :],
        max_clusters=max(NUM_CLUSTERS),
        num_iterations=NUM_ITERATIONS,
    )
    return solutions.codebook.centroids


def blocked_sum(values: Float[Array, " points"], block: int = 256) -> Float[Array, ""]:
    """Sum blocks of neighbours, then their sums likewise."""
    while values.size > 1:
        values = jnp.sum(jnp.pad(values, (0, -values.size % block)).reshape(-1, block), axis=-1)
    return values[0]


def solve_grid_on_raw_points(
    points: Float[Array, " points"], importance: Float[Array, " points"]
) -> Float[Array, "clusters penalties centroids"]:
    """All problems, one after the other, every iteration over all points."""
    max_clusters = max(NUM_CLUSTERS)
    ordered = jnp.sort(points)
    total = jnp.sum(importance)

    def lloyd(arguments):
        num_clusters, penalty = arguments
        index = jnp.arange(max_clusters)
        is_live = index < num_clusters
        order = (2 * index + 1) * points.size // (2 * num_clusters)
        start = ordered[jnp.minimum(order, points.size - 1)]
        start = jnp.where(is_live, start, start[num_clusters - 1])

        def step(_, centroids):
            thresholds = jnp.where(is_live[1:], midpoints(centroids), jnp.inf)
            assignments = assign(points, thresholds).astype(jnp.int32)
            mass = jax.ops.segment_sum(importance, assignments, max_clusters)
            moment = jax.ops.segment_sum(importance * points, assignments, max_clusters)
            has_mass = mass > 0
            mean = moment / jnp.where(has_mass, mass, 1)
            clusters = Clusters(mass, mean, has_mass)
            moved = update_centres(clusters, penalty * total, penalty_form="monotone")
            low = jnp.min(jnp.where(has_mass, moved, jnp.inf))
            high = jnp.max(jnp.where(has_mass, moved, -jnp.inf))
            moved = jnp.where(has_mass, moved, jnp.clip(centroids, low, high))
            return jnp.where(is_live, moved, moved[num_clusters - 1])

        return lax.fori_loop(0, NUM_ITERATIONS, step, start)

    clusters, penalties = jnp.meshgrid(
        jnp.asarray(NUM_CLUSTERS), jnp.asarray(PENALTIES), indexing="ij"
    )
    centroids = lax.map(lloyd, (clusters.ravel(), penalties.ravel()))
    return centroids.reshape(*clusters.shape, max_clusters)


def objective(
    points: np.ndarray, importance: np.ndarray, centroids: np.ndarray, penalty: float
) -> float:
    """Distortion plus penalty of a codebook on the raw points, float64."""
    points, importance = points.astype(np.float64), importance.astype(np.float64)
    centroids = np.unique(centroids.astype(np.float64))
    index = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, points, side="left")
    used = centroids[np.unique(index)]
    spread = used.max() - used.min()
    distortion = np.sum(importance * (points - centroids[index]) ** 2)
    return float(distortion + penalty * importance.sum() * spread**2)


def timed(run: Callable[[], Any], repeats: int) -> tuple[Any, dict[str, float]]:
    """Return the last result and the median and range of the times, in seconds."""
    result, times = None, []
    for _ in range(repeats):
        start = time.perf_counter()
        result = jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    spread = {"median": float(np.median(times)), "least": min(times), "most": max(times)}
    return result, {f"time_seconds_{name}": value for name, value in spread.items()}


def timed_program(function, arguments: tuple[Array, ...], repeats: int):
    """Compile, run once, then time a program."""
    start = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - start
    jax.block_until_ready(program(*arguments))
    result, times = timed(lambda: program(*arguments), repeats)
    temporary = program.memory_analysis().temp_size_in_bytes
    return result, {
        "compile_seconds": compile_seconds,
        **times,
        "temporary_bytes": temporary,
        "repeats": repeats,
    }


def compression(num_points: int, repeats: int, seed: int) -> dict[str, Any]:
    """Time `compress` and the bare kernels in turns: processor time a weight, nanoseconds."""
    weights = jnp.asarray(make_problem(num_points // 4000 * 4000, seed)[0]).reshape(-1, 4000)
    flat = weights.ravel()

    def compressed(method: Method) -> Callable[[], Any]:
        return lambda: jaxcomp.compress({"kernel": weights}, method)

    runs = {
        "kmeans": lambda: kmeans(flat, num_clusters=16),
        "compress_kmeans": compressed(KMeans(16)),
        "round_to_nearest": lambda: round_to_nearest(flat, num_bits=4),
        "compress_round_to_nearest": compressed(RoundToNearest(4, scale="tensor")),
        "round_by_channel": lambda: round_to_nearest(weights, num_bits=4),
        "compress_round_by_channel": compressed(RoundToNearest(4)),
    }
    least = dict.fromkeys(runs, math.inf)
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = time.process_time()
            jax.block_until_ready(run())
            if turn > 0:  # the first one compiles
                least[name] = min(least[name], time.process_time() - start)
    ratios = {
        f"compress_over_{name}": least[f"compress_{name}"] / least[name]
        for name in ("kmeans", "round_to_nearest", "round_by_channel")
    }
    each = {f"{name}_ns": 1e9 * seconds / flat.size for name, seconds in least.items()}
    return {"num_points": flat.size, "repeats": repeats, **each, **ratios}


def compare(problem, centroids: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Compare the objectives of two grids of codebooks: ratios over all problems."""
    ratios = [
        objective(*problem, centroids[i, j], penalty)
        / objective(*problem, reference[i, j], penalty)
        for i in range(len(NUM_CLUSTERS))
        for j, penalty in enumerate(PENALTIES)
    ]
    return {
        "objective_over_raw_median": float(np.median(ratios)),
        "objective_over_raw_worst": max(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-points", type=int, default=200_704)
    parser.add_argument("--num-bins", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--raw-repeats", type=int, default=2, help="the slow baselines")
    parser.add_argument(
        "--compress-points", type=int, default=0, help="weights that `compress` gets"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()

    problem = make_problem(options.num_points, options.seed)
    arguments = tuple(jax.block_until_ready(jnp.asarray(part)) for part in problem)

    solve = partial(solve_grid, num_bins=options.num_bins)
    by_moments, moments_report = timed_program(solve, arguments, options.repeats)
    histogram = partial(histogram_moments, num_bins=options.num_bins)
    _, histogram_report = timed_program(histogram, arguments, options.repeats)
    exact = math.fsum(problem[1].tolist())
    sums = {}
    for name, add in (("pairwise", pairwise_sum), ("blocked", blocked_sum), ("plain", jnp.sum)):
        total, sums[name] = timed_program(add, arguments[1:], options.repeats)
        sums[name]["relative_error"] = abs(float(total) - exact) / exact
    by_raw, raw_report = timed_program(solve_grid_on_raw_points, arguments, options.raw_repeats)
    moments_report |= compare(problem, np.asarray(by_moments), np.asarray(by_raw))

    order = (2 * np.arange(SCIKIT_LEARN_CLUSTERS) + 1) * options.num_points
    start = np.sort(problem[0])[order // (2 * SCIKIT_LEARN_CLUSTERS)]
    model = ScikitLearnKMeans(
        SCIKIT_LEARN_CLUSTERS,
        init=start[:, None],
        n_init=1,
        max_iter=NUM_ITERATIONS,
        tol=0.0,
        algorithm="lloyd",
    )
    column = problem[0][:, None]
    fitted, sklearn_report = timed(
        lambda: model.fit(column, sample_weight=problem[1]).cluster_centers_[:, 0],
        options.raw_repeats,
    )
    row = NUM_CLUSTERS.index(SCIKIT_LEARN_CLUSTERS)
    ours = np.asarray(by_moments)[row, PENALTIES.index(0.0)]
    sklearn_report |= {
        "num_clusters": SCIKIT_LEARN_CLUSTERS,
        "num_problems": 1,
        "repeats": options.raw_repeats,
        "moments_objective_over_this": objective(*problem, ours, 0.0)
        / objective(*problem, fitted, 0.0),
    }

    report = {
        "problem": {
            "num_points": options.num_points,
            "num_bins": options.num_bins,
            "num_clusters": NUM_CLUSTERS,
            "penalties": PENALTIES,
            "num_problems": len(NUM_CLUSTERS) * len(PENALTIES),
            "num_iterations": NUM_ITERATIONS,
            "dtype": "float32",
            "seed": options.seed,
        },
        "moments": moments_report,
        "histogram_alone": histogram_report,
        "sum": sums,
        **(
            {"compress": compression(options.compress_points, options.repeats, options.seed)}
            if options.compress_points
            else {}
        ),
        "raw": raw_report,
        "scikit_learn": sklearn_report,
        "environment": {
            "device_kind": jax.devices()[0].device_kind,
            "platform": jax.default_backend(),
            "num_devices": jax.device_count(),
            "python": platform.python_version(),
            "jax": jax.__version__,
            "numpy": np.__version__,
            "scikit_learn": sklearn.__version__,
            "commit": commit(),
        },
    }
    text = json.dumps(report, indent=2)
    sys.stdout.write(text + "\n")
    if options.out is not None:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
