"""Files of compressed models: bytes against estimates and entropies, and how fast they are.

    JAXCOMP_DATA_DIR=DATA python benchmarks/files.py [--repeats 3] [--out result.json]
    JAXCOMP_DATA_DIR=DATA python benchmarks/files.py --targets [--seeds 5] [--out result.json]

LeNet-300-100 (`models/lenet300_mnist.safetensors` in DATA) by the default method, without data,
with static codes (`fast`) and with contexts (`best`). Every file is read again, and its weights
compared bit for bit with those that were written. Times are of the processor, medians over the
repeats, in MB of float32 per second and in codes per second; compiling and compressing are not in
them.

`--targets`: files of three sizes by `HessianRounding`, each for several samples of 10,000 training
images, from which everything is chosen; and of the same sizes by the default method, without data
and with the Gauss-Newton diagonal of these images. Bytes, test loss and test error in percent, and
how far the outputs for 10,000 other training images are from those of the original network
(`divergence`, nats): what `--slope` is chosen by.

    python benchmarks/files.py --codec peer.json --model MODEL.safetensors [--effort fast]

Files without data at the squared error of a codec, all weights alike: `peer.json` is what
`nncodec_peer.py` wrote for the same model. Bytes over the codec's, squared error over the codec's,
and seconds of the processor to compress, write and read.

    JAXCOMP_DATA_DIR=DATA python benchmarks/files.py --small [--out result.json]

Small networks, of scikit-learn's digits and LeNet-300-100, by the default method and by
`EntropyConstrained`: bytes of real files at the squared error that `EntropyConstrained` has at 2, 3
and 4 bits per weight, all weights alike.

    JAXCOMP_DATA_DIR=DATA python benchmarks/files.py --network lenet --nncodec NNC/bin/python
    JAXCOMP_DATA_DIR=DATA python benchmarks/files.py --network vgg --nncodec NNC/bin/python

Networks that are trained here (`trained.py`), by the codec at all its settings, and rounded with
feedback to shares of the smallest stream that keeps to a limit of test error or loss: the codec is
chosen on the test set, in its favour, ours on training images. NNC is the codec's environment:

    python3.11 -m venv NNC && NNC/bin/pip install "numpy<2" nncodec safetensors
"""

import argparse
import json
import os
import platform
import statistics
import time
import warnings
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from trained import dense, measure_trained

import jaxcomp
from jaxcomp.coding.sizes import empirical_entropy_bits
from jaxcomp.compressed import to_bytes
from jaxcomp.curvature import Layers, gauss_newton_diagonal
from jaxcomp.decoder import File
from jaxcomp.evaluation import metrics
from jaxcomp.experiments import data
from jaxcomp.quantizers import METHODS, EntropyConstrained, HessianRounding

NUM_IMAGES = 10_000
SIZES = (45_000, 21_500, 15_500)
MEASURED = ("bytes", "loss", "error", "divergence", "seconds")


def median_seconds(function: Any, repeats: int) -> tuple[Any, float]:
    times = []
    for _ in range(repeats):
        start = time.process_time()
        found = function()
        times.append(time.process_time() - start)
    return found, statistics.median(times)


def order0_bytes(tree: jaxcomp.CompressedTree) -> float:
    counts = [np.asarray(tree.tensor(path).counts) for path in tree.paths]
    return sum(float(own.sum() * empirical_entropy_bits(own)) for own in counts) / 8


def measure(params: Any, bits: float, effort: Any, repeats: int) -> dict[str, Any]:
    tree = jaxcomp.compress(params, bits_per_weight=bits)
    data, encoding = median_seconds(lambda: to_bytes(tree, effort=effort), repeats)
    found, decoding = median_seconds(lambda: jaxcomp.load(data), repeats)
    for name, values in found.params().items():
        assert np.asarray(values).tobytes() == np.asarray(tree.params()[name]).tobytes(), name
    size = sum(values.nbytes for values in params.values())
    num_codes = sum(tree.codes(path).size for path in tree.paths)
    return {
        "bits_per_weight": bits,
        "effort": effort,
        "file_bytes": len(data),
        "bare_bytes": len(to_bytes(tree, effort=effort, container="bare")),
        "overhead_bytes": jaxcomp.inspect(data).overhead_bytes,
        "estimated_bytes": tree.size_bits / 8,
        "order0_bytes_of_codes": order0_bytes(tree),
        "encoded_mb_per_second": size / 1e6 / encoding,
        "decoded_mb_per_second": size / 1e6 / decoding,
        "decoded_codes_per_second": num_codes / decoding,
    }


def compressed_to(
    params: Any, batch: Any, size: int, kind: str, method: HessianRounding
) -> tuple[jaxcomp.CompressedTree, float]:
    """Compress to a size; return the tree and the seconds that it took."""
    start = time.perf_counter()
    if kind == "feedback":
        layers = Layers(dense, [batch])
        tree = jaxcomp.compress(params, method, layers=layers, size_bytes=size)
    else:
        weighing = gauss_newton_diagonal(dense, params, batch) if kind == "diagonal" else None
        tree = jaxcomp.compress(params, importance=weighing, size_bytes=size)
    return tree, time.perf_counter() - start


def measure_targets(params: Any, num_seeds: int, method: HessianRounding) -> list[dict[str, Any]]:
    """Compress to the sizes of the targets; judge by the test set what training images chose."""
    dataset = data.load("mnist")
    images, test = (
        part.reshape(len(part), -1).astype(np.float32) / dataset.max_value
        for part in (dataset.pool_images, dataset.test_images)
    )

    @jax.jit
    def judged(params: Any) -> tuple[jax.Array, jax.Array]:
        logits, labels = dense(params, test), jnp.asarray(dataset.test_labels)
        wrong = 100 - 100 * jnp.mean(metrics.correct(logits, labels))
        return jnp.mean(metrics.cross_entropy(logits, labels)), wrong

    original = params

    @jax.jit
    def divergence(params: Any, others: Any) -> jax.Array:
        before, after = (jax.nn.log_softmax(dense(own, others)) for own in (original, params))
        return jnp.mean(jnp.sum(jnp.exp(before) * (before - after), axis=-1))

    rows: list[dict[str, Any]] = []

    def add(kind: str, size: int, seed: int | None, params: Any, others: Any, **more: Any) -> None:
        loss, error = judged(params)
        row = {"kind": kind, "target": size, "seed": seed, **more}
        rows.append({**row, "loss": float(loss), "error": float(error)})
        rows[-1]["divergence"] = float(divergence(params, others))
        print(rows[-1], flush=True)

    add("original", sum(value.nbytes for value in params.values()), None, params, test)
    for seed in range(num_seeds):
        order = np.random.default_rng(seed).permutation(len(images))
        others, order = images[order[NUM_IMAGES : 2 * NUM_IMAGES]], order[:NUM_IMAGES]
        batch = images[order], np.asarray(dataset.pool_labels)[order]
        for size in SIZES:
            for kind in ("feedback", "diagonal", "no data"):
                if kind == "feedback" or seed == 0:
                    tree, seconds = compressed_to(params, batch, size, kind, method)
                    written = to_bytes(tree)
                    decoded = jaxcomp.load(written).params()
                    add(kind, size, seed, decoded, others, bytes=len(written), seconds=seconds)
    for size in SIZES:
        own = [row for row in rows if (row["kind"], row["target"]) == ("feedback", size)]
        means = {name: statistics.mean(row[name] for row in own) for name in MEASURED}
        print(size, {name: round(value, 4) for name, value in means.items()})
    return rows


def digits_network(hidden: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Train a network on half of scikit-learn's digits."""
    images, labels = load_digits(return_X_y=True)
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        found = MLPClassifier(hidden, random_state=0).fit(images[::2] / 16, labels[::2])
    parts = {"kernel": found.coefs_, "bias": found.intercepts_}
    return {
        f"{layer}/{name}": np.asarray(value, np.float32)
        for name, values in parts.items()
        for layer, value in enumerate(values)
    }


def measure_small(lenet: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Compress small networks by two methods to the same squared errors."""
    hidden = ((32,), (64, 64), (128, 64), (256, 128))
    networks = {f"digits, {own}": digits_network(own) for own in hidden} | {"LeNet-300-100": lenet}
    rows: list[dict[str, Any]] = []
    for name, params in networks.items():
        alike = jax.tree.map(np.ones_like, params)

        def lost(tree: jaxcomp.CompressedTree, own: Any = params) -> float:
            pairs = zip(jax.tree.leaves(tree.params()), jax.tree.leaves(own), strict=True)
            return sum(float(np.sum((np.asarray(a, np.float64) - b) ** 2)) for a, b in pairs)

        for bits in (2.0, 3.0, 4.0):
            start = time.process_time()
            peer = jaxcomp.compress(
                params, EntropyConstrained(), importance=alike, bits_per_weight=bits
            )
            between = time.process_time()
            tree = jaxcomp.compress(params, importance=alike, max_distortion=lost(peer))
            own, other = len(to_bytes(tree)), len(to_bytes(peer))
            row = {"network": name, "bits": bits, "entropy_constrained": other, "default": own}
            row |= {"ratio": own / other, "error_ratio": lost(tree) / lost(peer)}
            rows.append({**row, "seconds": (between - start, time.process_time() - between)})
            print(rows[-1], flush=True)
    return rows


def measure_codec(
    model: Path, peers: list[dict[str, Any]], names: list[str], effort: Any, select: Any
) -> list[dict[str, Any]]:
    """Compress a model to the squared errors of a codec, by methods of these names."""
    params = {k: v for k, v in load_file(model).items() if v.dtype == np.float32}
    energy = sum(float(np.sum(np.square(value, dtype=np.float64))) for value in params.values())
    alike = {name: np.ones_like(value) for name, value in params.items()}
    rows: list[dict[str, Any]] = []
    for kind in (kind for kind in METHODS if kind.name in names):
        for peer in peers:
            limit = peer["relative_squared_error"] * energy
            start = time.process_time()
            tree = jaxcomp.compress(
                params, kind(), importance=alike, max_distortion=limit, select=select
            )
            compressed = time.process_time()
            written = to_bytes(tree, effort=effort)
            encoded = time.process_time()
            with File(written) as file:
                found = file.tree()
            decoded = time.process_time()
            error = sum(
                float(np.sum(np.square(np.asarray(found[name], np.float64) - value)))
                for name, value in params.items()
            )
            row = {
                "method": kind.name,
                "qp": peer["qp"],
                "dependent": peer["dependent"],
                "bytes": len(written),
                "over_codec": len(written) / peer["bytes"],
                "error_over_codec": error / limit,
                "compress_seconds": compressed - start,
                "encode_seconds": encoded - compressed,
                "decode_seconds": decoded - encoded,
            }
            print(row, flush=True)
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--targets", action="store_true", help="errors at the sizes of the targets")
    parser.add_argument("--small", action="store_true", help="the default on small networks")
    parser.add_argument("--seeds", type=int, default=5, help="samples of training images")
    parser.add_argument("--slope", type=float, help="of HessianRounding, instead of its own")
    parser.add_argument("--codec", type=Path, help="what nncodec_peer.py wrote")
    parser.add_argument("--model", type=Path, help="the model of which it wrote it")
    parser.add_argument("--methods", nargs="+", default=["trellis_coded", "entropy_constrained"])
    parser.add_argument("--effort", choices=("fast", "best"))
    parser.add_argument("--select", help="pattern of compressed leaves, for --codec")
    parser.add_argument("--network", choices=("lenet", "vgg"), help="one that is trained here")
    parser.add_argument("--nncodec", type=Path, help="Python of the codec's environment")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.codec is not None:
        if arguments.model is None:
            parser.error("--codec needs --model, the weights that the codec had.")
        peers = json.loads(arguments.codec.read_text())
        options = arguments.methods, arguments.effort, arguments.select
        write({"rows": measure_codec(arguments.model, peers, *options)}, arguments.out)
        return
    method = HessianRounding()
    if arguments.slope is not None:
        settings = replace(method.settings, slopes=(arguments.slope,))
        method = replace(method, settings=settings)
    if arguments.network is not None:
        if arguments.nncodec is None:
            parser.error("--network needs --nncodec; --help says how to make its environment.")
        options = arguments.nncodec, arguments.seeds, method
        write({"rows": measure_trained(arguments.network, *options)}, arguments.out)
        return
    path = Path(os.environ.get("JAXCOMP_DATA_DIR", "data")) / "models/lenet300_mnist.safetensors"
    if not path.exists():
        print(f"{path} is missing; set JAXCOMP_DATA_DIR to the folder that holds it.")
        return
    params = load_file(path)
    if arguments.small:
        write({"rows": measure_small(params)}, arguments.out)
        return
    if arguments.targets:
        write({"rows": measure_targets(params, arguments.seeds, method)}, arguments.out)
        return
    rows = [
        measure(params, bits, effort, arguments.repeats)
        for bits in (3, 2)
        for effort in ("fast", "best")
    ]
    print("  ".join(rows[0]))
    for row in rows:
        print(
            "  ".join(
                f"{value:,.4g}" if isinstance(value, float) else f"{value}"
                for value in row.values()
            )
        )
    write({"rows": rows}, arguments.out)


def write(result: dict[str, Any], path: Path | None) -> None:
    """Write results and versions, if there is a file for them."""
    versions = {name: metadata.version(name) for name in ("jax", "numpy", "constriction")}
    result |= {"python": platform.python_version(), "versions": versions}
    if path is not None:
        path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
