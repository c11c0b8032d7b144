"""Networks that `files.py` trains and compresses, and the same networks by the ISO codec.

- `lenet`: LeNet-300-100 on MNIST, SGD with momentum and weight decay 1e-4, 20 passes.
- `vgg`: the convolutional network of the sweep at a sixteenth of its width, on CIFAR-10 or what
  there is of it; batch normalization is folded into kernels and biases, as one deploys it. It is
  taken after the pass with the least loss on a tenth of the training images.

Weights lie as in PyTorch, outputs first, which is what the codec expects.
"""

import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors.numpy import load_file, save_file

import jaxcomp
from jaxcomp.compressed import to_bytes
from jaxcomp.curvature import Layers
from jaxcomp.evaluation import metrics
from jaxcomp.experiments import data, networks
from jaxcomp.experiments.caches import network_cache
from jaxcomp.quantizers import HessianRounding

QPS = tuple(range(-34, -5))
# Bytes of ours over those of the codec's smallest stream.
SHARES = (0.7, 0.5, 0.4, 0.3, 0.2)
_BATCH = 100


class Trained(NamedTuple):
    """A network, and its data.

    Attributes:
        predict: `(params, inputs) -> logits`.
        params: arrays by name.
        train: inputs and labels.
        test: inputs and labels.
        num_calibration: training examples that a compression sees.
    """

    predict: Callable[[Any, jax.Array], jax.Array]
    params: dict[str, np.ndarray]
    train: tuple[jax.Array, jax.Array]
    test: tuple[jax.Array, jax.Array]
    num_calibration: int

    def judged(self, params: Any) -> tuple[float, float]:
        """Return loss in nats and error in percent on the test set."""
        inputs, labels = self.test
        logits = jax.jit(self.predict)(params, inputs)
        wrong = 100 - 100 * jnp.mean(metrics.correct(logits, labels))
        return float(jnp.mean(metrics.cross_entropy(logits, labels))), float(wrong)


def dense(params: Any, inputs: jax.Array) -> jax.Array:
    """Compute logits of LeNet-300-100."""
    for name in ("fc1", "fc2"):
        inputs = jax.nn.relu(inputs @ params[f"{name}.weight"].T + params[f"{name}.bias"])
    return inputs @ params["fc3.weight"].T + params["fc3.bias"]


def lenet() -> Trained:
    """Train LeNet-300-100 with weight decay 1e-4."""
    dataset = data.load("mnist")
    images, test = (
        jnp.asarray(part.reshape(len(part), -1).astype(np.float32) / dataset.max_value)
        for part in (dataset.pool_images, dataset.test_images)
    )
    labels, sizes, epochs = jnp.asarray(dataset.pool_labels), (images.shape[1], 300, 100, 10), 20
    params = {}
    for layer, key in enumerate(jax.random.split(jax.random.key(0), 3)):
        shape = sizes[layer + 1], sizes[layer]
        params[f"fc{layer + 1}.weight"] = jax.nn.initializers.he_normal(1, 0)(key, shape)
        params[f"fc{layer + 1}.bias"] = jnp.zeros(shape[0])
    rate = optax.cosine_decay_schedule(0.1, epochs * len(images) // _BATCH)
    optimizer = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(rate, momentum=0.9))

    def loss(params: Any, rows: jax.Array) -> jax.Array:
        return jnp.mean(metrics.cross_entropy(dense(params, images[rows]), labels[rows]))

    def step(state: Any, rows: jax.Array) -> tuple[Any, None]:
        params, moments = state
        updates, moments = optimizer.update(jax.grad(loss)(params, rows), moments, params)
        return (optax.apply_updates(params, updates), moments), None

    draw = np.random.default_rng(0)
    orders = [draw.permutation(len(images)) for _ in range(epochs)]
    orders = jnp.asarray(np.concatenate(orders).reshape(-1, _BATCH))
    run = jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), orders)[0][0])
    found = {name: np.asarray(value) for name, value in run(params).items()}
    test_labels = jnp.asarray(dataset.test_labels)
    return Trained(dense, found, (images, labels), (test, test_labels), 10_000)


def convolutional(params: Any, inputs: jax.Array) -> jax.Array:
    """Compute logits of the convolutional network, its batch normalization folded."""
    for number in range(7):
        if number in (2, 4, 6):
            inputs = networks.convolution.max_pool_2x2(inputs)
        inputs = jax.lax.conv_general_dilated(
            inputs,
            params[f"conv{number}.weight"],
            (1, 1),
            "VALID" if number == 6 else "SAME",
            dimension_numbers=("NHWC", "OIHW", "NHWC"),
        )
        inputs = jax.nn.relu(inputs + params[f"conv{number}.bias"])
    inputs = networks.convolution.max_pool_2x2(inputs).reshape(len(inputs), -1)
    return inputs @ params["output.weight"].T + params["output.bias"]


def vgg() -> Trained:
    """Train the convolutional network, or take it from the cache, and fold it."""
    dataset = data.load("cifar10")
    scale = data.standardization(dataset.pool_images, dataset.max_value)
    images, test = (
        data.to_inputs(part, dataset.max_value, scale)
        for part in (dataset.pool_images, dataset.test_images)
    )
    network = networks.build(
        "vgg", input_shape=images.shape[1:], num_classes=dataset.num_classes, width=1 / 16
    )
    labels, most = np.asarray(dataset.pool_labels), len(images) // 10 * 9 // 20 * 20
    found = networks.train(
        network,
        networks.TrainingConfig(epochs=15, batch_size=20, learning_rate=0.05, weight_decay=5e-4),
        networks.TrainingData(
            inputs=np.asarray(images),
            train_indices=np.arange(most)[None],
            train_labels=labels[None, :most],
            validation_inputs=np.asarray(images[most:]),
            validation_labels=labels[most:],
        ),
        seed=0,
        model_ids=[0],
        cache_dir=network_cache(None),
    )
    variables = jax.tree.map(lambda leaf: np.asarray(leaf[0]), found.early_stopped)
    params, statistics = variables["params"], variables["statistics"]
    folded = {}
    for number in range(7):
        own = statistics[f"convolution_{number}"]["normalization"]
        factor = 1 / np.sqrt(own["var"] + np.float32(1e-5))
        kernel = params[f"convolution_{number}"]["kernel"] * factor
        folded[f"conv{number}.weight"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
        folded[f"conv{number}.bias"] = -own["mean"] * factor
    folded["output.weight"] = np.ascontiguousarray(params["output"]["kernel"].T)
    folded["output.bias"] = params["output"]["bias"]
    trained = Trained(
        convolutional,
        folded,
        (jnp.asarray(images[:most]), jnp.asarray(labels[:most])),
        (jnp.asarray(test), jnp.asarray(dataset.test_labels)),
        most,
    )
    some = trained.test[0][:8]
    expected = network.predict(variables, some)
    np.testing.assert_allclose(convolutional(folded, some), expected, rtol=1e-3, atol=1e-3)
    return trained


def by_codec(network: Trained, python: Path) -> list[dict[str, Any]]:
    """Return the streams of the codec at all settings: bytes, loss and error on the test set."""
    peer = Path(__file__).with_name("nncodec_peer.py")
    with tempfile.TemporaryDirectory() as folder:
        model, out = Path(folder) / "model.safetensors", Path(folder) / "rows.json"
        save_file(network.params, model)
        command = [python, peer, model, "--out", out, "--decoded", Path(folder) / "decoded"]
        subprocess.run(
            [*map(str, command), "--qp", *map(str, QPS)], check=True, stdout=subprocess.DEVNULL
        )
        rows = json.loads(out.read_text())
        for row in rows:
            decoded = load_file(row.pop("decoded"))
            shaped = {k: decoded[k].reshape(v.shape) for k, v in network.params.items()}
            row["loss"], row["error"] = network.judged(shaped)
    return rows


def rounded(network: Trained, size: int, seed: int, method: HessianRounding) -> dict[str, Any]:
    """Round with feedback to a file of a size; everything is chosen on training examples."""
    inputs, labels = network.train
    order = np.random.default_rng(seed).permutation(len(inputs))[: network.num_calibration]
    layers = Layers(network.predict, [(inputs[order], labels[order])])
    tree = jaxcomp.compress(network.params, method, layers=layers, size_bytes=size)
    written = to_bytes(tree)
    loss, error = network.judged(jaxcomp.load(written).params())
    return {"target": size, "seed": seed, "bytes": len(written), "loss": loss, "error": error}


def measure_trained(
    name: str, python: Path, num_seeds: int, method: HessianRounding
) -> list[dict[str, Any]]:
    """Train a network, code it by the codec at every setting, and compress it to shares of that."""
    network = {"lenet": lenet, "vgg": vgg}[name]()
    loss, error = network.judged(network.params)
    size = sum(value.nbytes for value in network.params.values())
    rows: list[dict[str, Any]] = [{"kind": "original", "bytes": size, "loss": loss, "error": error}]
    print(rows[0], flush=True)
    peers = by_codec(network, python)
    rows += [{"kind": "codec", **row} for row in peers]
    for row in peers:
        shown = {key: row[key] for key in ("qp", "dependent", "bytes", "loss", "error")}
        print(shown, flush=True)
    if name == "lenet":
        within = {
            f"error + {more}": [r for r in peers if r["error"] <= error + more + 1e-6]
            for more in (0.1, 0.3, 0.5)
        }
    else:
        within = {
            f"loss + {more:.0%}": [r for r in peers if r["loss"] <= loss * (1 + more)]
            for more in (0.0, 0.01, 0.03, 0.1)
        }
    for limit, those in within.items():
        if not those:
            continue
        peer = min(those, key=lambda row: row["bytes"])
        print(limit, {key: peer[key] for key in ("qp", "dependent", "bytes", "loss", "error")})
        for share in SHARES:
            for seed in range(num_seeds):
                row = rounded(network, int(share * peer["bytes"]), seed, method)
                rows.append({"kind": "feedback", "limit": limit, "share": share, **row})
                print(rows[-1], flush=True)
    return rows
