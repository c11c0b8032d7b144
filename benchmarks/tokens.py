"""Time curvature of a loss per token against one gradient, and compare their peak memory.

    python benchmarks/tokens.py [--large] [--num-examples 2] [--repeats 3] [--out FILE]

A language model of seeded weights: blocks of causal attention and a perceptron, written in a loop
over the blocks, and a mean cross-entropy per token. The small one (the default) has 2 blocks of
width 64, 64 tokens and 2,000 classes; the large one 12 blocks of width 512, 256 tokens and 32,000
classes, 70 million weights. Timed are one gradient and one sampled label for every token
(`num_label_samples`), in turns; ratios are medians over the turns of the ratio in the same turn.
Peak memory is what the compiled program says that it needs: arguments, results and scratch.
"""

import argparse
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from curvature import Case, print_times, time_in_turns
from language_model import Size, make_params, mean_loss, predict
from provenance import commit

from jaxcomp.curvature import GaussNewton, estimate_memory

NUM_LABEL_SAMPLES = 2


SMALL = Size(num_blocks=2, width=64, num_heads=4, num_tokens=64, num_classes=2000)
LARGE = Size(num_blocks=12, width=512, num_heads=8, num_tokens=256, num_classes=32_000)


def make_cases(size: Size, num_examples: int) -> list[Case]:
    params = make_params(size)
    shape = (2, num_examples, size.num_tokens)
    tokens, labels = np.random.default_rng(1).integers(0, size.num_classes, shape)
    batch = jnp.asarray(tokens), jnp.asarray(labels)
    gradient = jax.jit(jax.grad(mean_loss))
    analysis = gradient.lower(params, batch).compile().memory_analysis()
    peak_bytes = (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
    )
    sampled = GaussNewton(
        predict, params, num_label_samples=NUM_LABEL_SAMPLES, key=jax.random.key(0)
    )
    plan = estimate_memory(sampled, batch, many_batches=False)
    return [
        Case("gradient", lambda: gradient(params, batch), peak_bytes=peak_bytes),
        Case("gauss_newton_sampled", lambda: sampled(batch), NUM_LABEL_SAMPLES, plan.peak_bytes),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--large", action="store_true", help="the model of 70 million weights")
    parser.add_argument("--num-examples", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()

    size = LARGE if options.large else SMALL
    cases = make_cases(size, options.num_examples)
    times = time_in_turns("tokens", cases, options.repeats)
    print_times(times)
    memory_ratio = times[1]["peak_bytes"] / times[0]["peak_bytes"]
    sys.stdout.write(f"peak memory of a sample: {memory_ratio:.2f} x that of a gradient\n\n")
    report = {
        "size": vars(size),
        "options": {"num_examples": options.num_examples, "repeats": options.repeats},
        "times": times,
        "peak_memory_in_gradients": memory_ratio,
        "environment": {
            "device_kind": jax.devices()[0].device_kind,
            "platform": jax.default_backend(),
            "jax": jax.__version__,
            "commit": commit(),
        },
    }
    text = json.dumps(report, indent=2) + "\n"
    sys.stdout.write(text)
    if options.out is not None:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
