"""Time bits back on many weights: encode and decode on one core, and the coder alone.

    python benchmarks/bits_back.py [--num-weights 1000000] [--repeats 5] [--out result.json]

One problem for all: a seeded posterior of three leaves with scales over a factor of 20, a Gaussian
prior, a payload of random words that is long enough.

- `encode`, `decode`: whole messages, whitening, checks, checksums and tables included.
- `coder_draw`, `coder_put_back`: `constriction` alone on Gaussians of one support that were
  prepared and sorted before the clock starts, the floor of any such code.
- `prior_encode`, `prior_decode`: `jaxcomp.coding` on the same weights.

Median and range of the repeats. The weights and the payload are compared outside the clock.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from constriction import stream

from jaxcomp import bits_back, coding

STEPS = (0.02, 0.002, 0.00002)


def make_problem(num_weights: int, seed: int) -> tuple[bits_back.Posterior, coding.Gaussian]:
    rng = np.random.default_rng(seed)
    sizes = np.split(np.arange(num_weights), [num_weights // 2, num_weights * 7 // 8])
    mean = [rng.normal(0, 0.1, len(part)).astype(np.float32) for part in sizes]
    scale = [
        np.exp(rng.uniform(np.log(0.005), np.log(0.1), len(part))).astype(np.float32)
        for part in sizes
    ]
    return bits_back.Posterior(mean, scale), coding.Gaussian(0.12)


def timed(run: Callable[[], Any], repeats: int, num_weights: int) -> tuple[Any, dict[str, float]]:
    run()
    result, times = None, []
    for _ in range(repeats):
        start = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - start)
    return result, {
        "time_seconds_median": float(np.median(times)),
        "time_seconds_least": min(times),
        "time_seconds_most": max(times),
        "million_weights_per_second": num_weights / float(np.median(times)) / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-weights", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    num_weights, repeats = options.num_weights, options.repeats

    posterior, prior = make_problem(num_weights, options.seed)
    rng = np.random.default_rng(options.seed + 1)
    cases = {}
    for step in STEPS:
        num_words = bits_back.payload_bits(posterior, step=step) // 32 + 1
        payload = rng.integers(0, 2**32, num_words, dtype=np.uint32)
        message, encoding = timed(
            lambda payload=payload, step=step: bits_back.encode(
                posterior, prior, payload, step=step
            ),
            repeats,
            num_weights,
        )
        receiver = bits_back.KnownPosterior(posterior, prior)
        decoded, decoding = timed(
            lambda message=message, receiver=receiver: bits_back.decode(message, receiver),
            repeats,
            num_weights,
        )
        assert np.array_equal(decoded.payload, payload)
        words, prior_encoding = timed(
            lambda decoded=decoded, step=step: coding.encode(decoded.weights, prior, step=step),
            repeats,
            num_weights,
        )
        back, prior_decoding = timed(
            lambda words=words: coding.decode(words, prior, like=posterior.mean),
            repeats,
            num_weights,
        )
        assert all(np.array_equal(a, b) for a, b in zip(back, decoded.weights, strict=True))
        cases[f"step {step:g}"] = {
            "encode": encoding,
            "decode": decoding,
            "prior_encode": prior_encoding,
            "prior_decode": prior_decoding,
            "gross_bits_per_weight": message.num_gross_bits / num_weights,
            "net_bits_per_weight": message.num_net_bits / num_weights,
        }

    mean, scale = rng.uniform(15.5, 16.5, num_weights), rng.uniform(2.0, 2.5, num_weights)
    words = rng.integers(0, 2**32, num_weights, dtype=np.uint32)
    family = stream.model.QuantizedGaussian(0, 31)
    drawn, coder_draw = timed(
        lambda: stream.stack.AnsCoder(words, seal=True).decode(family, mean, scale),
        repeats,
        num_weights,
    )
    _, coder_put_back = timed(
        lambda: stream.stack.AnsCoder().encode_reverse(drawn, family, mean, scale),
        repeats,
        num_weights,
    )
    result = {
        "problem": {
            "num_weights": num_weights,
            "steps": STEPS,
            "repeats": repeats,
            "dtype": "float32",
            "seed": options.seed,
        },
        "messages": cases,
        "coder_draw": coder_draw,
        "coder_put_back": coder_put_back,
        "environment": {
            "processor": platform.machine(),
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("numpy", "scipy", "constriction", "jax")},
        },
    }
    text = json.dumps(result, indent=2)
    sys.stdout.write(text + "\n")
    if options.out is not None:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
