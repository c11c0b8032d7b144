"""Files of compressed networks of a sweep: they decode to the networks that are evaluated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcomp
from jaxcomp.compressed.tensors import TensorLayout, decode, tensor_of
from jaxcomp.experiments.sweep import files
from jaxcomp.quantizers import MagnitudePruning, RoundToNearest
from jaxcomp.quantizers.curves import Point
from jaxcomp.quantizers.problems import as_problem

PARAMETERS = {RoundToNearest(): 4.0, MagnitudePruning(): 0.75}


def stored_of(name, weights, method):
    """What is stored of a layer after a method, and its weights then."""
    leaf = tensor_of(method.prepare(as_problem(weights)), Point(PARAMETERS[method]), method)
    layout = TensorLayout((name,), method, weights.shape, np.dtype(weights.dtype), False, False)
    return (leaf, layout), decode(leaf, layout)


@pytest.fixture(scope="module")
def network():
    """A layer of its own, a stack of two layers along its second axis, and what is kept."""
    rng = np.random.default_rng(0)
    first = jnp.asarray(rng.normal(size=(12, 6)), jnp.float32)
    stack = jnp.asarray(rng.normal(size=(12, 2, 6)), jnp.bfloat16)
    stored = {}
    stored["dense"], dense = stored_of("dense", first, RoundToNearest())
    stored["blocks/w[0]"], one = stored_of("blocks/w[0]", stack[:, 0], RoundToNearest())
    stored["blocks/w[1]"], two = stored_of("blocks/w[1]", stack[:, 1], MagnitudePruning())
    params = {
        "dense": dense,
        "blocks": {"w": jnp.stack([one, two], 1), "bias": jnp.arange(6.0)},
        "steps": jnp.int32(7),
        "key": jax.random.key(1),
        "nothing": None,
    }
    return params, stored, [("blocks/w", 1)]


def test_a_file_decodes_to_the_network_that_is_evaluated(network):
    params, stored, stacks = network
    loaded = jaxcomp.load(files.file_of(params, stored, stacks)).params()
    layers = loaded["blocks"].pop("w")
    assert loaded["blocks"].keys() == {"bias"}
    for number, layer in enumerate(layers):
        assert layer.dtype == jnp.bfloat16
        np.testing.assert_array_equal(layer, params["blocks"]["w"][:, number])
    for name in ("dense", "steps"):
        np.testing.assert_array_equal(loaded[name], params[name])
    np.testing.assert_array_equal(loaded["blocks"]["bias"], params["blocks"]["bias"])
    np.testing.assert_array_equal(*map(jax.random.key_data, (loaded["key"], params["key"])))
    assert loaded["nothing"] is None


def test_bytes_in_memory_are_those_of_all_arrays(network):
    # 72 and 6 of 4 bytes, 144 of 2, an integer of 4, a key of two words.
    assert files.num_bytes(network[0]) == 78 * 4 + 144 * 2 + 4 + 8


@pytest.mark.parametrize("name", ["dense", "blocks"])
def test_another_network_is_noticed(network, name):
    params, stored, stacks = network
    # The least that can be changed: the last bit of one number, or the sign of a zero.
    part = params[name] if name == "dense" else params[name]["w"]
    bits = np.asarray(part).view(f"u{part.dtype.itemsize}").copy()
    bits.reshape(-1)[-1] ^= 1 if name == "dense" else 1 << 15
    part = jax.lax.bitcast_convert_type(jnp.asarray(bits), part.dtype)
    other = params | {name: part if name == "dense" else {**params[name], "w": part}}
    with pytest.raises(RuntimeError, match="does not decode to its network"):
        files.file_of(other, stored, stacks)


def test_a_network_that_is_one_array_has_a_file():
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(12, 6)), jnp.float32)
    stored, changed = stored_of("", weights, RoundToNearest())
    np.testing.assert_array_equal(
        jaxcomp.load(files.file_of(changed, {"": stored})).params(), changed
    )


def test_what_is_kept_is_decoded_once_and_what_differs_is_noticed_all_the_same(
    network, monkeypatch
):
    params, stored, stacks = network
    alone = files.file_of(params, stored, stacks)
    shared = files.SharedFiles(jax.tree.leaves(params))
    decoded = []
    read = files.File.array
    monkeypatch.setattr(
        files.File, "array", lambda file, entry: decoded.append(entry.path) or read(file, entry)
    )
    assert [files.file_of(params, stored, stacks, shared) for _ in range(2)] == [alone, alone]
    layers = ["blocks/w/0", "blocks/w/1"]
    kept = ["blocks/bias", "dense", "key", "steps"]  # the layer too, as its very array is shared
    assert sorted(decoded) == sorted([*layers, *layers, *kept])
    other = params | {"dense": params["dense"] + 1}
    for _ in range(2):
        with pytest.raises(RuntimeError, match="does not decode to its network"):
            files.file_of(other, stored, stacks, shared)
