"""Trees to be written to files, and comparison bit for bit."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from tree_problems import weights

from jaxcomp import CompressedTree, compress
from jaxcomp.compressed.format import leaf_of
from jaxcomp.compressed.tensors import KeptLayout, KeptLeaf
from jaxcomp.compressed.tree import TreeLayout
from jaxcomp.decoder.arrays import Parts
from jaxcomp.decoder.files import Entry
from jaxcomp.decoder.streams import Chains
from jaxcomp.quantizers import EntropyConstrained, MagnitudePruning, RoundToNearest
from jaxcomp.trees.leaves import Constant, View
from jaxcomp.trees.paths import leaves_by_path
from jaxcomp.trees.tied import Slot

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


def path_of_numbers(numbers: np.ndarray, width: int) -> np.ndarray:
    """The integers of numbers in a trellis; 1 in place of 0 where an odd one is asked for."""
    chains = Chains(len(numbers), width)
    for start in range(0, len(numbers), chains.row):
        own = numbers[start : start + chains.row]
        is_odd = chains.parities(start, start + len(own)) == 1
        chains.follow(start, np.where(is_odd & (own == 0), 1, own))
    return chains.integers


def golden_tree() -> CompressedTree:
    """A small tree of all that a file can hold, made of whole numbers: the same everywhere."""
    place = np.arange(1200)
    codes = (place * place // 7 % 3 + (place // 30 % 5 == 0) * (place % 4)).reshape(40, 30)
    codes[10:20] = 2
    book = np.asarray([-1.5, -0.25, 0.0, 0.25, 0.75, 1.0], np.float32).reshape(1, 6, 1)
    integers = (place[:96] * 37 % 15 - 7).reshape(12, 8).astype(np.int8)
    scales = np.asarray([[0.5, 0.25, 0.0078125, 3.0, 1.0, 2.0, 0.1875, 96.0]], np.float32)
    layers = (place[:72] * 5 % 4).reshape(3, 24)
    books = np.asarray([[-2, -1, 1, 2], [-4, -2, 2, 4], [0, 0, 1, 1]], np.float16)[..., None]
    vectors = np.asarray([[[0, 1], [1, 0], [-1, -1]]], np.float32)
    pruned = np.where(place[:200] % 9 == 4, place[:200] / 64 - 1, 0).astype(np.float32)
    rows = layers.reshape(3, 4, 6)
    numbers = (codes.reshape(-1) - 2) * np.where(place % 3, 1, 5)
    path = path_of_numbers(numbers, 30).reshape(40, 30).astype(np.int8)
    turned = np.stack([path_of_numbers(place[:600] * k % 141 - 70, 20) for k in (7, 9)])
    turned = turned.reshape(2, 30, 20).transpose(0, 2, 1).astype(np.int16)
    parts_of = {
        "coded": Parts(codes, False, 6, None, None, book),
        "path": Parts(path, False, 41, (False, 0, 0), np.float32([[0.25]]), None, 1),
        "paths": Parts(turned, True, 281, (False, 0, 0), np.float32([[2], [3]]), None, 2),
        "pruned": Parts(pruned.reshape(20, 10)),
        "rounded": Parts(integers, False, 16, (True, 1, 0), scales),
        "stack": Parts(rows, True, 4, None, None, books),
        "vectors": Parts(place[:8] % 3, False, 3, None, None, vectors),
    }
    what = {
        "coded": ("entropy_constrained", "float32", (40, 30)),
        "path": ("trellis_coded", "float32", (40, 30)),
        "paths": ("trellis_coded", "float16", (2, 20, 30)),
        "pruned": ("magnitude_pruning", "float32", (20, 10)),
        "rounded": ("round_to_nearest", "bfloat16", (12, 8)),
        "stack": ("kmeans", "float16", (3, 4, 6)),
        "vectors": ("vector", "float32", (5, 3)),
    }
    rest = {
        "bias": np.asarray([1.0, -0.0, np.inf, 1e-40], np.float32),
        "bytes": np.arange(64, dtype=np.int8).view(ml_dtypes.float8_e4m3fn),
        "count": np.asarray(123456789, np.int64),
        "empty": np.zeros((0, 3), np.uint16),
        "flags": place[:77] % 5 == 2,
        "four": (place[:33] % 15 - 7).astype(np.int8).astype(ml_dtypes.int4),
        "long": place[:50].astype(np.int64) * 3 - 7,
        "name": "golden",
        "short": (place[:300] / 32 - 4).astype(np.float32).astype(ml_dtypes.bfloat16),
    }
    params = {"layers": dict.fromkeys(what, np.zeros(1)), "rest": [rest, (None, 0.5)], "tie": 0}
    params["tie"] = params["layers"]["pruned"] = np.zeros((2, 3))
    named = leaves_by_path(params)
    leaves, layouts, slots, numbers = [], [], [], {}
    for path, value in named.items():
        name = path.removeprefix("layers/")
        if path == "tie":
            view = View((0, 1), (20, 10), (1, 0), (10, 20))
            slots.append(Slot(numbers["layers/pruned"], view))
            continue
        numbers[path] = len(leaves)
        slots.append(Slot(len(leaves), None))
        if name in what:
            method, dtype, shape = what[name]
            entry = Entry(dtype, shape, method, "", "", path, 0, 0, 0)
            leaf, layout = leaf_of(parts_of[name], entry, (path,))
        else:
            leaf = KeptLeaf(value if isinstance(value, np.ndarray) else Constant(value))
            layout = KeptLayout((path,), "")
        leaves.append(leaf)
        layouts.append(layout)
    layout = TreeLayout(jax.tree.structure(params), tuple(slots), tuple(layouts))
    return CompressedTree(tuple(leaves), layout)
