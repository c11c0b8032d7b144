"""How short can training labels be sent? Bits back end to end, beside the prequential code.

    python benchmarks/label_codes.py [--data digits] [--out result.json]
    JAXCOMP_DATA_DIR=DATA python benchmarks/label_codes.py --data mnist

Four codes of the labels of a whole training pool, to a receiver who has the inputs:

- `uniform`: log2 10 bits each.
- `bits_back`: Hinton and van Camp. The message is made, decoded by a receiver that repeats the
  training, and checked: labels and payload come back bit for bit. Its net length stands beside the
  negative evidence lower bound, its mean over payloads.
- `two_part`: the posterior's means, rounded to the step of least description length under the
  fitted prior, and the labels given them: what the message would cost without bits back.
- `prequential`: blocks of labels that double, each under a network of the same shape trained by
  Adam on all labels before. No weights are sent.

Times are wall clock, compilation included.
"""

import argparse
import json
import platform
import sys
import time
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcomp import bits_back, coding
from jaxcomp.experiments import data

SETTINGS = {
    "digits": {
        "num_hidden": 16,
        "config": bits_back.VariationalConfig(num_steps=4000, learning_rate=0.03),
        "first_block": 50,
        "adam_steps": 500,
        "step": 0.01,
    },
    "mnist": {
        "num_hidden": 64,
        "config": bits_back.VariationalConfig(
            num_steps=12_000, learning_rate=0.01, batch_size=500, annealing_steps=3000
        ),
        "first_block": 250,
        "adam_steps": 1500,
        "step": 0.01,
    },
}


def predict(params: Any, inputs: jax.Array) -> jax.Array:
    hidden = jnp.matmul(inputs, params["hidden"]["kernel"], precision="highest")
    hidden = jax.nn.relu(hidden + params["hidden"]["bias"])
    logits = jnp.matmul(hidden, params["output"]["kernel"], precision="highest")
    return logits + params["output"]["bias"]


def init(key: jax.Array, *, num_inputs: int, num_hidden: int) -> Any:
    hidden, output = jax.random.split(key)
    return {
        "hidden": {
            "kernel": jax.random.normal(hidden, (num_inputs, num_hidden)) / num_inputs**0.5,
            "bias": jnp.zeros(num_hidden),
        },
        "output": {
            "kernel": jax.random.normal(output, (num_hidden, 10)) / num_hidden**0.5,
            "bias": jnp.zeros(10),
        },
    }


@partial(jax.jit, static_argnames=("init_fn", "num_steps"))
def train_on_first(inputs, labels, num_known, key, *, init_fn, num_steps):
    """Train by Adam on the first labels only; their number is traced, so it compiles once."""
    init_key, rows_key = jax.random.split(key)
    loss_fn = bits_back.CrossEntropy(predict)
    optimizer = optax.adamw(optax.cosine_decay_schedule(3e-3, num_steps), weight_decay=1e-2)
    params = init_fn(init_key)

    def step(state, number):
        params, moments = state
        rows = jax.random.randint(jax.random.fold_in(rows_key, number), (200,), 0, num_known)
        gradient = jax.grad(loss_fn)(params, (inputs[rows], labels[rows]))
        updates, moments = optimizer.update(gradient, moments, params)
        return (optax.apply_updates(params, updates), moments), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(num_steps))
    return predict(params, inputs)


def prequential(inputs, labels, init_fn, settings) -> tuple[float, list[int]]:
    ends = [settings["first_block"]]
    while ends[-1] * 2 < len(labels):
        ends.append(ends[-1] * 2)
    ends.append(len(labels))
    arrays = jnp.asarray(inputs), jnp.asarray(labels, jnp.int32)

    def logits_fn(num_known):
        return train_on_first(
            *arrays,
            num_known,
            jax.random.key(1),
            init_fn=init_fn,
            num_steps=settings["adam_steps"],
        )

    bits = bits_back.prequential_bits(logits_fn, labels, num_classes=10, block_ends=ends)
    return bits, ends


def two_part(code, labels, fitted) -> dict[str, float]:
    """Round the means to the best of several steps; the labels cost their cross-entropy."""
    mean = fitted.posterior.mean
    fitted_prior = coding.fit(mean, coding.ScaleMixture, is_shared=False)
    best = None
    for step in 2.0 ** -np.arange(0, 9):
        rounded = coding.quantize(mean, step=step)
        words = coding.encode(rounded, fitted_prior, step=step)
        weight_bits = 32 * len(words) + coding.parameter_bits(fitted_prior)
        loss = float(code.loss_fn(rounded, (jnp.asarray(code.inputs), jnp.asarray(labels))))
        found = {
            "step": float(step),
            "weight_bits": weight_bits,
            "label_bits": len(labels) * loss / np.log(2),
            "bits": weight_bits + len(labels) * loss / np.log(2),
        }
        best = found if best is None or found["bits"] < best["bits"] else best
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=sorted(SETTINGS), default="digits")
    parser.add_argument("--num-steps", type=int, help="of the variational training")
    parser.add_argument("--num-payloads", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    settings = SETTINGS[options.data]
    config = settings["config"]
    if options.num_steps is not None:
        config = bits_back.VariationalConfig(**(vars(config) | {"num_steps": options.num_steps}))

    dataset = data.load(options.data)
    labels = dataset.pool_labels
    inputs = dataset.pool_images.reshape(len(labels), -1) / np.float32(dataset.max_value)
    init_fn = partial(init, num_inputs=inputs.shape[1], num_hidden=settings["num_hidden"])
    code = bits_back.LabelCode(
        inputs, predict, init_fn, config, options.seed, step=settings["step"]
    )

    seconds = {}
    start = time.perf_counter()
    fitted = jax.block_until_ready(code.learn(labels))
    seconds["learn"] = time.perf_counter() - start
    batch = jnp.asarray(inputs), jnp.asarray(labels)
    elbo = bits_back.negative_elbo(
        code.loss_fn, fitted, batch, jax.random.key(options.seed + 1), num_samples=256
    )

    num_words = bits_back.payload_bits(fitted.posterior, step=code.step) // 32 + 1
    nets = []
    for seed in range(options.num_payloads):
        rng = np.random.default_rng(seed)
        payload = rng.integers(0, 2**32, num_words, dtype=np.uint32)
        message = bits_back.send_labels(code, labels, payload, fitted=fitted)
        nets.append(message.num_net_bits)
    start = time.perf_counter()
    decoded = bits_back.decode(message.words, bits_back.Relearner(code))
    seconds["decode"] = time.perf_counter() - start
    assert np.array_equal(decoded.labels, labels)
    assert np.array_equal(decoded.payload, payload)

    start = time.perf_counter()
    prequential_bits, ends = prequential(inputs, labels, init_fn, settings)
    seconds["prequential"] = time.perf_counter() - start
    elbo_bits = float(elbo.total) / np.log(2)
    prior_bits = 8 * len(jax.tree.leaves(fitted.posterior.mean))
    test_inputs = dataset.test_images.reshape(len(dataset.test_labels), -1)
    test_batch = (
        jnp.asarray(test_inputs / np.float32(dataset.max_value)),
        jnp.asarray(dataset.test_labels),
    )
    plain = two_part(code, labels, fitted)
    result = {
        "data": options.data,
        "num_labels": len(labels),
        "num_weights": sum(leaf.size for leaf in jax.tree.leaves(fitted.posterior.mean)),
        "num_steps": config.num_steps,
        "seed": options.seed,
        "num_payloads": options.num_payloads,
        "bytes": {
            "uniform": len(labels) * np.log2(10) / 8,
            "bits_back_net_mean_over_payloads": float(np.mean(nets)) / 8,
            "bits_back_frame": message.num_frame_bits / 8,
            "negative_elbo": elbo_bits / 8,
            "two_part": plain["bits"] / 8,
            "prequential": prequential_bits / 8,
        },
        "bits_back": {
            # The scales of the prior are sent as well, a byte a layer: no part of the bound.
            "prior_bits": prior_bits,
            "net_over_negative_elbo": (float(np.mean(nets)) - prior_bits) / elbo_bits,
            "net_standard_error_bits": float(np.std(nets, ddof=1) / np.sqrt(len(nets))),
            "elbo_standard_error_bits": float(elbo.standard_error) / np.log(2),
            "kl_bits": float(elbo.kl) / np.log(2),
            "label_bits": float(elbo.loss) / np.log(2),
            "initial_bits": message.num_initial_bits,
            "labels_and_payload_came_back": True,
            "test_loss_nats_of_the_means": float(code.loss_fn(fitted.posterior.mean, test_batch)),
        },
        "two_part": plain,
        "prequential_block_ends": ends,
        "seconds": seconds,
        "environment": {
            "platform": jax.default_backend(),
            "processor": platform.machine(),
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("jax", "numpy", "constriction")},
        },
    }
    text = json.dumps(result, indent=2)
    sys.stdout.write(text + "\n")
    if options.out is not None:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
