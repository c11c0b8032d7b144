"""Time the linear-regression simulation against a plain NumPy loop over data sets.

    python benchmarks/linear_regression.py [--num-datasets 10000] [--repeats 5] [--out result.json]

One problem for both: d = 50 weights, n = 80 examples, 32 rates (K = 1..32 centroids) and the five
designed quantizers, whose codebooks are the same for both. Every data set is drawn, solved,
quantized at every rate by every quantizer, and scored by empirical and population risk.

- `simulation`: `jaxcomp.linear_regression.simulate`, float32.
- `numpy_loop`: one data set after the other, `numpy.linalg.solve` and `numpy.searchsorted`,
  float64: what one would write without JAX. On fewer data sets; times are per data set and rate.

Compiling is reported apart; median and range of the repeats. Means of both are compared outside
the clock, in standard errors of their difference.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import jax
import numpy as np
from provenance import commit

from jaxcomp.linear_regression import (
    DESIGNED,
    DesignedCodebooks,
    Problem,
    codebooks_for,
    random_problem,
    simulate,
)

DIM, NUM_EXAMPLES = 50, 80
CLUSTERS = tuple(range(1, 33))


def numpy_loop(
    problem: Problem, codebooks: DesignedCodebooks, num_datasets: int, seed: int
) -> np.ndarray:
    """(data sets, 2, quantizers, rates): L_S and L_mu of every quantized solution."""
    rng = np.random.default_rng(seed)
    truth = np.asarray(problem.true_weights, np.float64)
    centroids, thresholds = np.asarray(codebooks.centroids), np.asarray(codebooks.thresholds)
    cells = np.asarray(codebooks.cell_centroids)
    steps, origin = np.asarray(codebooks.steps), float(codebooks.origin)
    half = cells.shape[1] // 2
    risks = np.empty((num_datasets, 2, len(DESIGNED), len(CLUSTERS)))
    for number in range(num_datasets):
        inputs = rng.normal(size=(NUM_EXAMPLES, DIM))
        outputs = inputs @ truth + rng.normal(size=NUM_EXAMPLES)
        weights = np.linalg.solve(inputs.T @ inputs, inputs.T @ outputs)
        for kind in range(len(DESIGNED)):
            for place in range(len(CLUSTERS)):
                if kind < len(centroids):
                    index = np.searchsorted(thresholds[kind, place], weights, side="left")
                    quantized = centroids[kind, place][index]
                else:
                    cell = np.clip(np.rint((weights - origin) / steps[place]), -half, half)
                    quantized = cells[place][cell.astype(int) + half]
                residual = outputs - inputs @ quantized
                error = quantized - truth
                risks[number, 0, kind, place] = residual @ residual / NUM_EXAMPLES
                risks[number, 1, kind, place] = 1.0 + error @ error
    return risks


def spread(times: list[float]) -> dict[str, float]:
    return {
        "time_seconds_median": float(np.median(times)),
        "time_seconds_least": min(times),
        "time_seconds_most": max(times),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-datasets", type=int, default=10_000)
    parser.add_argument("--loop-datasets", type=int, default=200, help="of the NumPy loop")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()

    keys = jax.random.split(jax.random.key(options.seed), 3)
    problem = random_problem(keys[0], DIM, signal=2.0)
    start = time.perf_counter()
    codebooks = jax.block_until_ready(
        codebooks_for(problem, keys[1], num_examples=NUM_EXAMPLES, num_clusters=CLUSTERS)
    )
    design_seconds = time.perf_counter() - start

    def run(num_datasets: int):
        return simulate(
            problem,
            keys[2],
            num_examples=NUM_EXAMPLES,
            num_datasets=num_datasets,
            num_clusters=CLUSTERS,
            compressors=DESIGNED,
            codebooks=codebooks,
            batch_size=128,
        )

    # The first call compiles; all chunks have one shape.
    chunk = min(512, options.num_datasets)
    first_started = time.perf_counter()
    run(chunk)
    first_seconds = time.perf_counter() - first_started
    start = time.perf_counter()
    run(chunk)
    compile_seconds = first_seconds - (time.perf_counter() - start)
    result, times = None, []
    for _ in range(options.repeats):
        start = time.perf_counter()
        result = run(options.num_datasets)
        times.append(time.perf_counter() - start)
    assert result is not None

    loop_times, risks = [], []
    for repeat in range(options.repeats):
        start = time.perf_counter()
        risks.append(numpy_loop(problem, codebooks, options.loop_datasets, options.seed + repeat))
        loop_times.append(time.perf_counter() - start)
    drawn = np.concatenate(risks)

    worst = 0.0
    for row, quantity in enumerate(("empirical_risk", "population_risk")):
        for kind, name in enumerate(DESIGNED):
            error = drawn[:, row, kind].std(axis=0, ddof=1) / np.sqrt(len(drawn))
            both = np.hypot(error, result.standard_error(quantity, name))
            mean = result.mean(quantity, name)
            gap = drawn[:, row, kind].mean(axis=0) - mean
            # One centroid makes L_mu the same for every data set: only rounding is left.
            both = np.maximum(both, 1e-6 * (1 + mean))
            worst = max(worst, float(np.max(np.abs(gap) / both)))

    ours = float(np.median(times)) / options.num_datasets / len(CLUSTERS)
    theirs = float(np.median(loop_times)) / options.loop_datasets / len(CLUSTERS)
    report = {
        "problem": {
            "dim": DIM,
            "num_examples": NUM_EXAMPLES,
            "num_rates": len(CLUSTERS),
            "compressors": DESIGNED,
            "num_datasets": options.num_datasets,
            "loop_datasets": options.loop_datasets,
            "dtype": "float32 (simulation), float64 (loop)",
            "seed": options.seed,
        },
        "design_seconds_with_compiling": design_seconds,
        "simulation": {
            "compile_seconds": compile_seconds,
            **spread(times),
            "microseconds_per_data_set_and_rate": 1e6 * ours,
            "seconds_in_all": design_seconds + compile_seconds + float(np.median(times)),
            "repeats": options.repeats,
        },
        "numpy_loop": {
            **spread(loop_times),
            "microseconds_per_data_set_and_rate": 1e6 * theirs,
            "repeats": options.repeats,
        },
        "loop_over_simulation": theirs / ours,
        "largest_difference_of_means_in_standard_errors": worst,
        "environment": {
            "device_kind": jax.devices()[0].device_kind,
            "platform": jax.default_backend(),
            "num_devices": jax.device_count(),
            "python": platform.python_version(),
            "jax": jax.__version__,
            "numpy": np.__version__,
            "commit": commit(),
        },
    }
    text = json.dumps(report, indent=2)
    sys.stdout.write(text + "\n")
    if options.out is not None:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
