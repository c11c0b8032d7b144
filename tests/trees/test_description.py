"""Trees that go into files as plain data and come back the same."""

import json
from collections import OrderedDict
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp import storage
from jaxcomp.trees.description import (
    array_of_dtype,
    describe_tree,
    dtype_name,
    plain_array,
    rebuild_tree,
)
from jaxcomp.trees.leaves import is_array
from jaxcomp.trees.paths import leaves_by_path


class Layer(NamedTuple):
    kernel: object
    bias: object


W = jnp.arange(6.0).reshape(2, 3)
TREES = {
    "Haiku": {"mlp/~/linear_0": {"w": W, "b": W[0]}, "mlp/~/linear_1": {"w": W + 1, "b": W[1]}},
    "whole numbers as keys": {0: W, 1: {2: W, 10: W}},
    "text of numbers as keys": {"0": W, "1": {"2": W, "10": W}},
    "tuples as keys": {("a", 1): W, ("a", 2): W},
    "backslashes and worse": {"a\\b": W, "a%5Cb": W, "": W, "\0": W, "ä*[0]": W},
    "lists and tuples": [W, (W, [W, None]), {}],
    "order": OrderedDict([("b", W), ("a", W)]),
    "constants": {"w": W, "rate": 0.5, "depth": 3, "flag": True, "name": "relu", "no": None},
    "scalars of NumPy": {"w": W, "rate": np.float64(0.5), "half": np.float16(2)},
    "a gradient of whole numbers": {"w": W, "count": np.zeros((2, 3), jax.dtypes.float0)},
    "a single array": W,
}


def stored(tree):
    """Both halves of a tree as they come out of a file."""
    leaves = {path: leaf for path, leaf in leaves_by_path(tree).items() if is_array(leaf)}
    return json.loads(json.dumps(describe_tree(tree), sort_keys=True)), leaves


@pytest.mark.parametrize("name", [name for name in TREES if name != "scalars of NumPy"])
def test_trees_come_back_as_they_were(name):
    tree = TREES[name]
    again = rebuild_tree(*stored(tree))
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    for before, after in zip(jax.tree.leaves(tree), jax.tree.leaves(again), strict=True):
        assert type(after) is type(before)
        np.testing.assert_array_equal(after, before)
    if isinstance(tree, dict):
        assert list(again) == list(tree)


def test_scalars_of_numpy_come_back_as_numbers():
    again = rebuild_tree(*stored(TREES["scalars of NumPy"]))
    assert again["rate"] == 0.5
    assert again["half"] == 2


def test_other_nodes_come_back_as_dicts_or_like_a_tree_at_hand():
    tree = {"layers": [Layer(W, None), Layer(W + 1, W[0])]}
    description, leaves = stored(tree)
    plain = rebuild_tree(description, leaves)
    assert plain["layers"][0] == {"kernel": leaves["layers/0/kernel"], "bias": None}
    like = rebuild_tree(description, leaves, like=jax.tree.map(jnp.zeros_like, tree))
    assert jax.tree.structure(like) == jax.tree.structure(tree)
    np.testing.assert_array_equal(like["layers"][1].kernel, W + 1)
    with pytest.raises(ValueError, match="like has no leaves layers/0/kernel"):
        rebuild_tree(description, leaves, like={"other": W})


def test_functions_need_a_tree_at_hand():
    eqx = pytest.importorskip("equinox")
    module = eqx.nn.MLP(2, 2, 2, 1, key=jax.random.key(0))
    description, leaves = stored(module)
    with pytest.raises(ValueError, match="no file holds the leaves activation, final_activation"):
        rebuild_tree(description, leaves)
    again = rebuild_tree(description, leaves, like=eqx.nn.MLP(2, 2, 2, 1, key=jax.random.key(1)))
    np.testing.assert_array_equal(again(jnp.ones(2)), module(jnp.ones(2)))


@pytest.mark.parametrize(
    "leaf",
    [
        W,
        W.astype(jnp.bfloat16),
        W.astype(jnp.float8_e4m3fn),
        W.astype(jnp.int4),
        jnp.ones(3, jnp.complex64),
        np.array([True, False]),
        jax.random.key(3),
        jax.random.key(3, impl="rbg"),
    ],
)
def test_arrays_of_every_dtype_come_back(leaf, tmp_path):
    storage.save_arrays(tmp_path / "a.npz", {"leaf": plain_array(leaf)})
    read = storage.load_arrays(tmp_path / "a.npz")[0]["leaf"]
    again = array_of_dtype(read, dtype_name(leaf))
    assert again.dtype == leaf.dtype
    assert bool(jnp.all(jnp.asarray(again) == leaf))
