"""A network of dense layers, its files, and a sample on which it errs."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from jaxcomp.compressed import compress_file
from jaxcomp.quantizers import RoundToNearest


class Problem(NamedTuple):
    """Files in a folder, and examples."""

    model: Path
    """Of the original."""
    file: Path
    """Compressed."""
    prior: Path
    """Another network."""
    differences: Path
    """The original as differences to that."""
    sample: tuple[np.ndarray, np.ndarray]
    fresh: tuple[np.ndarray, np.ndarray]


def weights(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "fc1.weight": rng.normal(size=(6, 4)).astype(np.float32),
        "fc1.bias": rng.normal(size=6).astype(np.float32),
        "fc2.weight": rng.normal(size=(3, 6)).astype(np.float32),
        "fc2.bias": rng.normal(size=3).astype(np.float32),
    }


def logits(params: Any, inputs: Any) -> Any:
    """What the network computes, by NumPy."""
    hidden = np.maximum(inputs @ params["fc1.weight"].T + params["fc1.bias"], 0)
    return hidden @ params["fc2.weight"].T + params["fc2.bias"]


def problem(folder: Path) -> Problem:
    """Write the files, and draw examples with labels of which a fifth are wrong."""
    true = weights(0)
    prior = {name: values + 0.1 * weights(1)[name] for name, values in true.items()}
    paths = [folder / name for name in ("m.safetensors", "m.jxc", "p.safetensors", "d.jxc")]
    model, file, other, differences = paths
    safetensors.numpy.save_file(true, model)
    safetensors.numpy.save_file(prior, other)
    compress_file(model, file, RoundToNearest(4))
    compress_file(model, differences, RoundToNearest(2), reference=other)
    rng = np.random.default_rng(2)
    inputs = rng.normal(size=(90, 4)).astype(np.float32)
    labels = logits(true, inputs).argmax(axis=1)
    labels = np.where(rng.random(90) < 0.2, (labels + 1) % 3, labels)
    return Problem(*paths, (inputs[:60], labels[:60]), (inputs[60:], labels[60:]))
