"""Small trees of weights, a point of every method, and naive counting, shared by the tests."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp import CompressedTree, inspect
from jaxcomp.compressed import to_bytes
from jaxcomp.quantizers import (
    EntropyConstrained,
    KMeans,
    MagnitudePruning,
    Method,
    Optimal,
    RoundToNearest,
    TrellisCoded,
    Uniform,
    Vector,
)

SHAPE = (12, 8)  # nearly all leaves here: compiling is what these tests cost
METHODS: dict[str, Method] = {
    "kmeans": KMeans(5),
    "optimal": Optimal(5),
    "entropy_constrained": EntropyConstrained(0.02, num_bins=64, num_symbols=16),
    "vector": Vector(5),
    "uniform": Uniform(5),
    "round_to_nearest": RoundToNearest(4),
    "magnitude_pruning": MagnitudePruning(0.5),
    "trellis_coded": TrellisCoded(0.02, order="rows", least_weights=1),
    "kmeans by channel": KMeans(5, scale="channel"),
    "integers by group": RoundToNearest(3, group_size=4),
}


def weights(seed: int = 0, shape: tuple[int, ...] = SHAPE, dtype: Any = jnp.float32) -> jax.Array:
    # Drawn and put on the device without a program for every shape.
    drawn = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return jax.device_put(drawn.astype(dtype))


def nested_dict() -> dict[str, Any]:
    return {
        "hidden": {"kernel": weights(1), "bias": weights(2, (8,))},
        "out": {"kernel": weights(3), "bias": weights(4, (8,))},
    }


def entropy(labels: Any) -> float:
    """Naive order-0 entropy in bits per symbol."""
    _, counts = np.unique(np.asarray(labels), return_counts=True)
    p = counts / counts.sum()
    return float(-np.sum(p * np.log2(p)))


def bits_in_file(tree: CompressedTree, path: str | None = None) -> int:
    """Bits of the sections of all compressed leaves, or of one."""
    return 8 * sum(
        entry.size_bytes
        for entry in inspect(to_bytes(tree)).entries
        if entry.method != "kept" and path in (None, entry.path)
    )
