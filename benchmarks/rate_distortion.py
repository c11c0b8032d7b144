"""Time Blahut-Arimoto at certified gaps: jaxcomp against dit and against a plain NumPy loop.

    python benchmarks/rate_distortion.py [--num-symbols 64 256] [--num-slopes 256] [--out FILE]

Three sources of N symbols with N reproductions: a Gaussian and a Laplacian on a grid with squared
error (where the best output leaves most reproductions out), and random probabilities with random
distances. All at the same slopes, spaced evenly in the logarithm, gap 1e-6 nats.

- `jaxcomp`: all slopes in one compiled call; compilation apart.
- `numpy`: the textbook iteration, kernel kept, two products a step, until the same certificate.
- `dit`: `dit.rate_distortion`'s iteration from the uniform start, once instead of its default of
  100 restarts, with as many iterations as the same certificate needs. dit offers no certificate
  and stops when the distortion changes by less than 1e-5 of itself, so its own function cannot be
  asked for a gap: its step is timed, and multiplied by the steps of the same iteration in `numpy`.
  What dit does at its own stopping rule (100 iterations at most) is reported too, with the gap it
  leaves.

The peers are timed on some slopes only, the same for all; an iteration that has not got there
after `--max-steps` counts as if it had (the ratio is then too small). All gaps are computed outside
the clock, in NumPy.

Then the limit of whole layers (`layer_curve`, 16 slopes): heavy-tailed weights, importances over
decades, to 5 and to 8 bits a weight, with the largest certified gap. It has no peer.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from provenance import commit

from jaxcomp.rate_distortion import blahut_arimoto, layer_curve

GAP_NATS = 1e-6
SOURCES = ("gaussian", "laplacian", "random")


def make_problem(kind: str, num_symbols: int, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Return probabilities, distances and the largest slope, where the rate is near its end."""
    if kind == "random":
        rng = np.random.default_rng(seed)
        return rng.dirichlet(np.ones(num_symbols)), rng.random((num_symbols, num_symbols)), 300.0
    grid = np.linspace(-4, 4, num_symbols) * (1 if kind == "gaussian" else 2)
    p = np.exp(-(grid**2) / 2) if kind == "gaussian" else np.exp(-np.abs(grid))
    return p / p.sum(), (grid[:, None] - grid[None, :]) ** 2, 1000.0


def gap_of(p: np.ndarray, kernel: np.ndarray, q: np.ndarray) -> float:
    c = (p / (kernel @ q)) @ kernel
    output = q * c
    used = output > 0
    return float(np.log(c.max()) - np.sum(output[used] * np.log(c[used])))


def numpy_loop(p: np.ndarray, kernel: np.ndarray, max_steps: int) -> tuple[np.ndarray, int]:
    q = np.full(kernel.shape[1], 1 / kernel.shape[1])
    for step in range(max_steps):
        c = (p / (kernel @ q)) @ kernel
        output = q * c
        # The certificate costs as much as a step's other vectors: every tenth step.
        if step % 10 == 0 and np.log(c.max()) - output @ np.log(np.maximum(c, 1e-300)) <= GAP_NATS:
            return q, step + 1
        q = output
    return q, max_steps


def time_dit(p: np.ndarray, d: np.ndarray, slope: float) -> tuple[float, int, float] | None:
    """Return seconds per iteration of dit, iterations it makes by itself, and the gap it leaves."""
    try:
        from dit.rate_distortion.blahut_arimoto import _blahut_arimoto
    except ImportError:
        return None
    calls = 0

    def distortion(p_x, q_y_x):
        nonlocal calls
        calls += 1
        return d

    num_symbols = len(p)
    start = np.full(d.shape, 1 / num_symbols)
    begin = time.perf_counter()
    _, joint = _blahut_arimoto(p, slope / np.log(2), start, distortion)
    seconds = time.perf_counter() - begin
    # Two calls an iteration, one before.
    iterations = max((calls - 1) // 2, 1)
    kernel = np.exp(-slope * d)
    return seconds / iterations, iterations, gap_of(p, kernel, joint.sum(axis=0))


def measure(kind: str, num_symbols: int, options: argparse.Namespace) -> dict[str, float]:
    p, d, largest = make_problem(kind, num_symbols, options.seed)
    slopes = np.geomspace(largest / 3000, largest, options.num_slopes)

    def solve():
        return jax.block_until_ready(blahut_arimoto(p, d, slopes, gap_nats=GAP_NATS))

    begin = time.perf_counter()
    found = solve()
    first_seconds = time.perf_counter() - begin
    times = []
    for _ in range(options.repeats):
        begin = time.perf_counter()
        found = solve()
        times.append(time.perf_counter() - begin)
    per_slope = float(np.median(times)) / len(slopes)

    checked = [
        gap_of(p, np.exp(-s * (d - d.min(axis=1, keepdims=True))), np.asarray(q, np.float64))
        for s, q in zip(slopes, found.output_probabilities, strict=True)
    ]
    report = {
        "jaxcomp_seconds_per_slope": per_slope,
        "jaxcomp_seconds_per_slope_least": min(times) / len(slopes),
        "jaxcomp_seconds_per_slope_most": max(times) / len(slopes),
        "compile_and_first_run_seconds": first_seconds,
        "jaxcomp_share_converged": float(np.mean(np.asarray(found.converged))),
        "jaxcomp_gap_nats_largest": float(np.max(found.gap_nats)),
        # Of the output distribution as it was returned, rounded to the default dtype.
        "jaxcomp_gap_nats_largest_recomputed": max(checked),
    }
    chosen = slopes[:: max(1, len(slopes) // options.peer_slopes)]
    numpy_seconds, steps, reached = [], [], []
    dit_step, dit_own, dit_gap = [], [], []
    for s in chosen:
        kernel = np.exp(-s * d)
        begin = time.perf_counter()
        q, taken = numpy_loop(p, kernel, options.max_steps)
        numpy_seconds.append(time.perf_counter() - begin)
        steps.append(taken)
        reached.append(gap_of(p, kernel, q) <= GAP_NATS)
        timed = time_dit(p, d, float(s))
        if timed is not None:
            dit_step.append(timed[0])
            dit_own.append(timed[0] * timed[1])
            dit_gap.append(timed[2])
    report |= {
        "peer_slopes": len(chosen),
        "numpy_seconds_per_slope": float(np.mean(numpy_seconds)),
        "numpy_steps_mean": float(np.mean(steps)),
        "numpy_share_converged": float(np.mean(reached)),
        "numpy_over_jaxcomp": float(np.mean(numpy_seconds)) / per_slope,
    }
    if dit_step:
        seconds = float(np.mean(np.array(dit_step) * steps))
        report |= {
            "dit_seconds_per_slope": seconds,
            "dit_over_jaxcomp": seconds / per_slope,
            "dit_own_rule_seconds_per_slope": float(np.mean(dit_own)),
            "dit_own_rule_gap_nats_median": float(np.median(dit_gap)),
            "dit_own_rule_share_at_gap": float(np.mean(np.array(dit_gap) <= GAP_NATS)),
        }
    return report


def measure_layer(num_weights: int, max_bits: float, options: argparse.Namespace) -> dict:
    rng = np.random.default_rng(options.seed)
    weights = 0.06 * rng.standard_t(6, num_weights)
    importance = np.exp(2 * rng.normal(size=num_weights))
    times = []
    for _ in range(options.repeats):
        begin = time.perf_counter()
        curve = layer_curve(weights, importance, num_slopes=16, max_bits=max_bits)
        times.append(time.perf_counter() - begin)
    return {
        "seconds_median": float(np.median(times)),
        "seconds_least": min(times),
        "seconds_most": max(times),
        "highest_rate_bits": float(curve.rate_bits[-1]),
        "gap_bits_largest": float(curve.gap_bits.max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-symbols", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--num-slopes", type=int, default=256)
    parser.add_argument("--layer-weights", type=int, nargs="*", default=[200_000, 60_000, 2_500])
    parser.add_argument("--peer-slopes", type=int, default=8)
    parser.add_argument("--max-steps", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    report = {
        "problem": {
            "num_symbols": options.num_symbols,
            "num_slopes": options.num_slopes,
            "gap_nats": GAP_NATS,
            "dtype": "float64 inside, " + str(jnp.result_type(float)) + " outside",
            "max_steps": options.max_steps,
            "seed": options.seed,
        },
        "results": {
            f"{kind}_{number}": measure(kind, number, options)
            for number in options.num_symbols
            for kind in SOURCES
        },
        "layers": {
            f"{number}_weights_{bits:g}_bits": measure_layer(number, bits, options)
            for number in options.layer_weights
            for bits in (5.0, 8.0)
        },
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
