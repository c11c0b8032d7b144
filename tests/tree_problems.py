"""Small trees of weights, a level for every method, and naive counting, shared by the tests."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SHAPE = (12, 8)  # nearly all leaves here: compiling is what these tests cost
LEVELS: dict[str, dict[str, Any]] = {
    "kmeans": {"num_clusters": 5},
    "uniform": {"num_clusters": 5},
    "round_to_nearest": {"num_bits": 4},
    "magnitude_pruning": {"sparsity": 0.5},
}


def weights(seed: int = 0, shape: tuple[int, ...] = SHAPE, dtype: Any = jnp.float32) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32).astype(dtype)


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
