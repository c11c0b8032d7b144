"""Time rounding with feedback by part, and compare its bits with one step on a real network.

    python benchmarks/hessian_rounding.py [--size 4096] [--repeats 3] [--out result.json]
    JAXCOMP_DATA_DIR=DATA python benchmarks/hessian_rounding.py --lenet lenet300.safetensors

**Time.** One dense layer of `size` inputs and outputs, Gaussian weights, inputs of several sizes,
seeded; 3 bits per weight. Every part as a ratio to the matrix product L^T W in the same run, wall
and processor time: `factor` (Cholesky), `target` (L^T W), `pass` (factor, spacings and tables
given), and the parts of a whole call: `choice` of exponent and slope on a sample, `secants`, and
`passes`. Inputs lie on the device before the clock starts; medians; compilation apart. Peak memory
of a whole call, in a process of its own, and of one with a layer of 64 inputs: what JAX and
compiling take.

**Bits.** LeNet-300-100 on MNIST (weights `fcK.weight` (out, in)); S from 10,000 training images,
squared error of the layers' outputs on 10,000 others. At equal error, bits of `one table` (one step
with feedback, one table), `one step` (the same with tables for classes of inputs) and all spacings,
everything counted; and the same by real files of a layer, with static tables (`fast`) and with
contexts (`best`). Then the network layer after layer at one multiplier, with and without drift
correction, refits and feedback: ideal bytes, biases in 16 bits, and test loss and error.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from provenance import commit

import jaxcomp
from jaxcomp.compressed import to_bytes
from jaxcomp.curvature import InputMoments, Layers, gauss_newton_diagonal, layer_hessians
from jaxcomp.decoder import inspect
from jaxcomp.evaluation import metrics
from jaxcomp.experiments import data
from jaxcomp.quantizers import (
    HessianRounding,
    feedback,
    hessian_rounding,
    rounding_passes,
    spacings,
)
from jaxcomp.quantizers.hessian_rounding import (
    RoundingSettings,
    round_layer,
    round_layer_to_rate,
)
from jaxcomp.quantizers.output_importance import output_importance
from jaxcomp.quantizers.output_refit import refit_outputs

RATE_BITS = 3.0
FILE_RATES = (1.3, 1.6, 2.0, 2.5, 3.2, 4.0, 4.8)
RATES = (1.3, 1.6, 2.0, 2.5, 3.2, 4.0, 4.6)
SIZES_BYTES = (45_000, 21_500, 15_500)
NUM_IMAGES = 10_000
ONE_STEP = RoundingSettings(exponents=(0.0,))
ONE_TABLE = RoundingSettings(exponents=(0.0,), num_classes=1)


# --- Time and memory --------------------------------------------------------------------------


def make_layer(size: int, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    """Return weights (1, I, O) and second moments (1, I, I)."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((size + 256, size), dtype=np.float32)
    x *= np.exp(0.5 * rng.standard_normal(size)).astype(np.float32)
    second = x.T @ x / np.float32(len(x))
    weights = rng.standard_normal((1, size, size), dtype=np.float32)
    return jnp.asarray(weights), jnp.asarray(second)[None]


def timed(run: Callable[[], Any], repeats: int) -> tuple[Any, dict[str, float]]:
    """Time a call after a first one; without repeats, the first one itself."""
    walls, processors = [], []
    for _ in range(repeats + 1):
        start, busy = time.perf_counter(), time.process_time()
        result = jax.block_until_ready(run())
        walls.append(time.perf_counter() - start)
        processors.append(time.process_time() - busy)
    counted = slice(min(repeats, 1), None)
    return result, {
        "first_seconds": walls[0],
        "seconds": float(np.median(walls[counted])),
        "processor_seconds": float(np.median(processors[counted])),
    }


def time_parts(size: int, repeats: int) -> dict[str, dict[str, float]]:
    """Time the parts of a call, and whole calls."""
    weights, second = make_layer(size)
    settings, rows = RoundingSettings().without_choices, {}
    pairs = jnp.asarray(RoundingSettings().pairs, jnp.float32)
    product = jax.jit(partial(jnp.einsum, "gki,gko->gio", precision="highest"))
    _, rows["product"] = timed(lambda: product(second, weights), repeats)
    factor, rows["factor"] = timed(lambda: feedback.factor_inputs(second, 1e-3), repeats)
    one = jnp.ones((1, size))
    problem, rows["target"] = timed(
        lambda: feedback.problem_of(weights, factor, None, one), repeats
    )
    layer = rounding_passes.Layer(weights, problem)
    rate = jnp.float32(RATE_BITS)
    multiplier = rounding_passes.first_multiplier(layer, rate)
    pair = jnp.float32(1), jnp.float32(1)
    spacing = spacings.spacing_for(factor, jnp.float32(1), multiplier, *pair)
    grid = feedback.Grid(spacing.of_inputs, jnp.ones(feedback.NUM_FACTORS))
    most = settings.max_code
    prices = multiplier * 2 * jnp.log2(1 + jnp.abs(jnp.arange(-most, most + 1.0)))[None]
    classes = jnp.zeros((1, size), jnp.int32)
    _, rows["pass"] = timed(
        lambda: feedback.round_with_feedback(
            problem, grid, classes, prices, block_size=settings.block_size
        ),
        repeats,
    )
    few = max(1, repeats // 3)
    _, rows["choice"] = timed(
        lambda: rounding_passes.choose_pair(layer, multiplier, pairs, settings=settings), few
    )
    _, rows["secants"] = timed(
        lambda: rounding_passes.meet_rate(layer, multiplier, rate, *pair, settings=settings), few
    )
    _, rows["passes"] = timed(
        lambda: hessian_rounding._round(layer, multiplier, *pair, settings=settings), few
    )
    del layer, problem, factor
    # Their parts are compiled by now.
    _, rows["call, multiplier"] = timed(lambda: round_layer(weights, second, multiplier), 0)
    _, rows["call, rate"] = timed(lambda: round_layer_to_rate(weights, second, rate), 0)
    for row in rows.values():
        row["products"] = row["seconds"] / rows["product"]["seconds"]
        row["processor_products"] = row["processor_seconds"] / rows["product"]["processor_seconds"]
    return rows


def peak_megabytes(size: int) -> float:
    """Return the peak memory of a process that rounds one layer, inputs included."""
    code = (
        "import re, resource, sys, jax, jax.numpy as jnp\n"
        "from jaxcomp.quantizers.hessian_rounding import round_layer_to_rate\n"
        f"n = {size}\n"
        "weights = jax.random.normal(jax.random.key(0), (1, n, n))\n"
        "second = jnp.eye(n)[None] * jnp.linspace(1, 4, n)\n"
        f"jax.block_until_ready(round_layer_to_rate(weights, second, {RATE_BITS}))\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        # On Linux that begins with the peak of the process that started this one.
        "if sys.platform == 'linux':\n"
        "    peak = re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1]\n"
        "print(peak)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(found.stdout) * (1 if sys.platform == "darwin" else 1024) / 1e6


# --- Bits on a real network -------------------------------------------------------------------


class Network(NamedTuple):
    """LeNet-300-100 and its data; weights (in, out)."""

    weights: list[jax.Array]
    biases: list[jax.Array]
    importances: list[jax.Array]
    calibration: jax.Array
    held_out: jax.Array
    test: tuple[jax.Array, jax.Array]


def predict(params: list[dict[str, jax.Array]], inputs: jax.Array) -> jax.Array:
    *hidden, last = params
    for layer in hidden:
        inputs = jax.nn.relu(inputs @ layer["kernel"] + layer["bias"])
    return inputs @ last["kernel"] + last["bias"]


def load_network(path: Path) -> Network:
    from safetensors.numpy import load_file

    arrays = {name: jnp.asarray(value) for name, value in load_file(path).items()}
    names = sorted({name.split(".")[0] for name in arrays})
    params = [
        {"kernel": arrays[f"{name}.weight"].T, "bias": arrays[f"{name}.bias"]} for name in names
    ]
    dataset = data.load("mnist")
    images, test = (
        jnp.asarray(part.reshape(len(part), -1), jnp.float32) / dataset.max_value
        for part in (dataset.pool_images, dataset.test_images)
    )
    order = np.random.default_rng(0).permutation(len(images))
    calibration, held_out = order[:NUM_IMAGES], order[NUM_IMAGES : 2 * NUM_IMAGES]
    batch = images[calibration], jnp.asarray(dataset.pool_labels)[calibration]
    hessians = layer_hessians(predict, params, [batch])
    diagonal = jax.jit(lambda params: gauss_newton_diagonal(predict, params, batch).mean)(params)
    return Network(
        [layer["kernel"] for layer in params],
        [layer["bias"] for layer in params],
        [
            output_importance(own["kernel"][None], hessian.hessian / 2)
            for own, hessian in zip(diagonal, hessians.values(), strict=True)
        ],
        images[calibration],
        images[held_out],
        (test, jnp.asarray(dataset.test_labels)),
    )


def compare_first_layer(network: Network) -> list[dict[str, Any]]:
    """Return bits and held-out errors of the first layer, and what spacings save."""
    weights = network.weights[0][None]
    moments = [part.T @ part / len(part) for part in (network.calibration, network.held_out)]
    kinds = {"one table": ONE_TABLE, "one step": ONE_STEP, "spacings": RoundingSettings()}
    rows: list[dict[str, Any]] = []
    for name, settings in kinds.items():
        for rate in RATES:
            found = round_layer_to_rate(weights, moments[0][None], rate, settings=settings)
            error = (weights - found.values)[0]
            lost = jnp.einsum("io,ij,jo->", error, moments[1], error, precision="highest")
            rows.append({"kind": name, "bits": float(found.rate_bits), "error": float(lost)})
    for row in rows:
        for name in ("one table", "one step"):
            others = [other for other in rows if other["kind"] == name]
            logs = [-np.log(other["error"]) for other in others]
            bits = [other["bits"] for other in others]
            needed = np.interp(-np.log(row["error"]), logs, bits, right=np.nan)
            row[f"saved over {name}"] = float(1 - row["bits"] / needed)
    return rows


def compare_files(network: Network) -> list[dict[str, Any]]:
    """Return bytes of files of single layers and held-out errors, and what spacings save."""
    rows: list[dict[str, Any]] = []
    inputs = [network.calibration, network.held_out]
    for number, (weights, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        if number < 2:
            moment, own = inputs[1].T @ inputs[1] / len(inputs[1]), {"w": weights}
            layers = Layers(_product, [inputs[0]], loss=None)
            for kind, exponents in (("one step", (0.0,)), ("spacings", (0.0, 0.5, 1.0))):
                settings = RoundingSettings(exponents=exponents)
                method = HessianRounding(settings=settings, refits=False)
                for rate in FILE_RATES:
                    tree = jaxcomp.compress(own, method, layers=layers, bits_per_weight=rate)
                    error = weights - jnp.asarray(tree.params()["w"])
                    lost = jnp.einsum("io,ij,jo->", error, moment, error, precision="highest")
                    row = {"kind": kind, "layer": number + 1, "error": float(lost)}
                    for effort in ("fast", "best"):
                        # Of the tensor: a name and checks are the same for both.
                        size = inspect(to_bytes(tree, effort=effort)).entries[0].size_bytes
                        row[effort] = 8 * size / weights.size
                    rows.append(row)
        inputs = [jax.nn.relu(part @ weights + bias) for part in inputs]
    for row in rows:
        others = [o for o in rows if (o["kind"], o["layer"]) == ("one step", row["layer"])]
        logs = [-np.log(other["error"]) for other in others]
        for effort in ("fast", "best"):
            bits = [other[effort] for other in others]
            needed = np.interp(-np.log(row["error"]), logs, bits, left=np.nan, right=np.nan)
            row[f"saved, {effort}"] = float(1 - row[effort] / needed)
            # With contexts, over one step without.
            if effort == "fast":
                row["saved, best over fast"] = float(1 - row["best"] / needed)
    return rows


def _product(params: Any, inputs: jax.Array) -> jax.Array:
    return inputs @ params["w"]


def moments_of(inputs: jax.Array, original: jax.Array | None) -> InputMoments:
    """Return moments of a layer's inputs, with those of the original network if they differ."""
    number = len(inputs)
    second, mean = (inputs.T @ inputs / number)[None], jnp.mean(inputs, axis=0)[None]
    if original is None:
        return InputMoments(second, mean)
    cross = (inputs.T @ original / number)[None]
    return InputMoments(second, mean, cross, jnp.mean(original, axis=0)[None])


def round_network(
    network: Network,
    multiplier: float,
    *,
    settings: RoundingSettings,
    has_drift: bool = True,
    has_feedback: bool = True,
    has_refit: bool = True,
) -> dict[str, float]:
    """Round layer after layer; return ideal bytes, test loss and test error in percent."""
    original = changed = network.calibration
    cut = int(0.8 * len(original))
    params, bits = [], 0.0
    for weights, bias, importance in zip(
        network.weights, network.biases, network.importances, strict=True
    ):
        inputs = changed if has_drift else original
        old = original if has_drift and changed is not original else None
        known = moments_of(inputs, old)
        second = known.second if has_feedback else known.second * jnp.eye(inputs.shape[1])
        found = round_layer(
            weights[None],
            second,
            multiplier,
            cross_moments=known.cross,
            output_importance=importance,
            settings=settings,
        )
        values, new_bias = found.values[0], bias
        if has_refit:
            parts = [
                moments_of(inputs[part], None if old is None else old[part])
                for part in (slice(cut), slice(cut, None))
            ]
            refit = refit_outputs(weights[None], found.values, *parts, with_scales=False)
            new_bias = bias + refit.bias_changes[0]
        params.append({"kernel": values, "bias": new_bias})
        bits += float(found.bits.total) + 16 * bias.size
        original = jax.nn.relu(original @ weights + bias)
        changed = jax.nn.relu(changed @ values + new_bias)
    logits = predict(params, network.test[0])
    return {
        "bytes": bits / 8,
        "loss": float(jnp.mean(metrics.cross_entropy(logits, network.test[1]))),
        "error": 100 - 100 * float(jnp.mean(metrics.correct(logits, network.test[1]))),
    }


def compare_networks(network: Network) -> list[dict[str, Any]]:
    """Return what whole networks of about three sizes lose, by what is left out."""
    plain: dict[str, Any] = {"has_drift": False, "has_refit": False}
    kinds: dict[str, dict[str, Any]] = {
        "all": {"settings": RoundingSettings()},
        "without drift": {"settings": RoundingSettings(), "has_drift": False},
        "without refits": {"settings": RoundingSettings(), "has_refit": False},
        "one step": {"settings": ONE_STEP},
        "one step, one table": {"settings": ONE_TABLE},
        "one step, no feedback": {"settings": ONE_TABLE, "has_feedback": False, **plain},
    }
    rows = []
    for name, options in kinds.items():
        for size in SIZES_BYTES:
            found, log, before = {"bytes": np.nan}, np.log(1e-8), None
            for _ in range(6):
                found = round_network(network, float(np.exp(log)), **options)
                here = log, np.log(found["bytes"])
                slope = -0.4
                if before is not None and here[0] != before[0]:
                    slope = min((here[1] - before[1]) / (here[0] - before[0]), -0.1)
                if abs(found["bytes"] / size - 1) < 0.004:
                    break
                before = here
                log += float(np.clip((np.log(size) - here[1]) / slope, -2, 2))
            rows.append({"kind": name, "target": size, **found})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--lenet", type=Path, help="weights of LeNet-300-100, .safetensors")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    result: dict[str, Any] = {}
    if args.lenet is None:
        rows = time_parts(args.size, args.repeats)
        for name, row in rows.items():
            print(
                f"{name:18} {row['seconds']:8.3f} s  {row['products']:6.2f} products  "
                f"{row['processor_products']:6.2f} in processor time  "
                f"first {row['first_seconds']:6.2f} s"
            )
        peak, base = peak_megabytes(args.size), peak_megabytes(64)
        largest = 4 * args.size**2 / 1e6
        print(
            f"peak memory {peak:.0f} MB, of which {base:.0f} MB for the smallest layer, the rest "
            f"{(peak - base) / largest:.1f} of the largest tensor"
        )
        result = {"parts": rows, "peak_megabytes": peak, "base_megabytes": base}
    else:
        network = load_network(args.lenet)
        result = {
            "first_layer": compare_first_layer(network),
            "files": compare_files(network),
            "networks": compare_networks(network),
        }
        for rows in result.values():
            for row in rows:
                print("  ".join(f"{k} {v:.4g}" if k != "kind" else v for k, v in row.items()))
    result |= {
        "size": args.size,
        "device": jax.devices()[0].device_kind,
        "platform": platform.platform(),
        "versions": {"jax": jax.__version__, "jaxcomp": jaxcomp.__version__},
        "commit": commit(),
    }
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
