"""Trees to be written to files, and comparison bit for bit."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from tree_problems import weights

from jaxcomp import CompressedTree, compress
from jaxcomp.quantizers import EntropyConstrained, MagnitudePruning, RoundToNearest

BYTE_FLOATS = ("e3m4", "e4m3", "e4m3b11fnuz", "e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu")
DTYPES: tuple[Any, ...] = (
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    *("bool", "float16", "float32", "float64", "complex64", "complex128"),
    *(getattr(ml_dtypes, name) for name in ("int2", "int4", "uint2", "uint4")),
    *(getattr(ml_dtypes, name) for name in ("bfloat16", "float4_e2m1fn")),
    *(getattr(ml_dtypes, f"float8_{name}") for name in BYTE_FLOATS),
)


def bits_of(values: Any) -> tuple[str, tuple[int, ...], bytes]:
    """What has to be equal: dtype, shape and bits."""
    if isinstance(values, jax.Array) and jnp.issubdtype(values.dtype, jax.dtypes.prng_key):
        values = jax.random.key_data(values)
    values = np.asarray(values)
    return values.dtype.name, values.shape, np.ascontiguousarray(values).tobytes()


def assert_same_bits(found: Any, expected: Any) -> None:
    """Compare trees: structure, and every leaf bit for bit."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert bits_of(one) == bits_of(other)


def any_bits(dtype: Any, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """An array of a dtype with random bits, as far as they are numbers of it."""
    dtype = np.dtype(dtype)
    rng = np.random.default_rng(seed)
    count = int(np.prod(shape))
    if dtype.name == "bool":
        return rng.random(shape) < 0.3
    if dtype.name in ("int2", "int4", "uint2", "uint4", "float4_e2m1fn"):
        low = -2 if dtype.name.startswith("int") else 0
        return rng.integers(low, low + 4, shape).astype(np.int8).astype(dtype)
    data = rng.bytes(max(count, 1) * dtype.itemsize)
    return np.frombuffer(data, dtype)[:count].reshape(shape)


def kept(tree: Any) -> CompressedTree:
    """A tree of which nothing is compressed."""
    return compress(tree, select=lambda path, leaf: False)


def small_tree() -> CompressedTree:
    """One leaf of each kind."""
    return compress(
        {
            "coded": weights(1),
            "rounded": weights(2),
            "pruned": weights(3),
            "bias": np.linspace(-1, 1, 5, dtype=np.float32),
            "steps": [np.asarray(7, np.int64), None, "text", 0.5],
        },
        {
            "coded": EntropyConstrained(0.02, num_bins=64, num_symbols=16),
            "rounded": RoundToNearest(4),
            "pruned": MagnitudePruning(0.5),
        },
    )
