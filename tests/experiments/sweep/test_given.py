"""Networks as they are handed in: modules, float64, tensors, and trees over several devices."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.experiments.sweep.given import Given, fingerprint_of

X = np.ones((2, 4), np.float32)


def predict_module(module, inputs):
    assert callable(module.activation)
    return jax.vmap(module)(inputs)


def predict(params, inputs):
    return inputs @ params["w"]


def test_a_module_becomes_arrays_and_a_module_again():
    eqx = pytest.importorskip("equinox")
    module = eqx.nn.MLP(4, 3, 4, 1, key=jax.random.key(0))
    given = Given.from_params(predict_module, module)
    expected = predict_module(module, X)
    np.testing.assert_allclose(given.predict_fn(given.params, X), expected, rtol=1e-6)
    compiled = jax.jit(lambda f, p, x: f(p, x), static_argnums=0)
    compiled(given.predict_fn, given.params, X)
    other = Given.from_params(predict_module, eqx.nn.MLP(4, 3, 4, 1, key=jax.random.key(1)))
    compiled(other.predict_fn, other.params, X)
    assert compiled._cache_size() == 1
    assert given.fingerprint() != other.fingerprint()
    assert given.fingerprint() == Given.from_params(predict_module, module).fingerprint()
    doubled = given.restore(jax.tree.map(lambda leaf: 2 * leaf, given.params))
    np.testing.assert_array_equal(doubled.layers[0].weight, 2 * module.layers[0].weight)
    assert doubled.activation is module.activation
    refreshed = given.refreshed_by(lambda tree, inputs: tree)(given.params, X)
    assert jax.tree.structure(refreshed) == jax.tree.structure(given.params)
    early = given.arrays_of(eqx.nn.MLP(4, 3, 4, 1, key=jax.random.key(2)), "early")
    assert jax.tree.structure(early) == jax.tree.structure(given.params)
    with pytest.raises(ValueError, match="early must have the structure of the first"):
        given.arrays_of({"w": X}, "early")


def test_constants_count_in_the_fingerprint():
    prints = {
        Given.from_params(predict, {"w": X, "c": constant}).fingerprint()
        for constant in (0.5, np.float32(0.25), 1, True, "relu", jax.nn.relu, jax.nn.gelu, None)
    }
    assert len(prints) == 8
    assert fingerprint_of({"w": X}) != fingerprint_of({"v": X})


def test_float64_is_computed_in_float32_and_given_back():
    params = {"w": np.full((4, 3), 0.1), "other": jnp.ones(3)}
    with pytest.warns(UserWarning, match=r"1 leaves are float64 while JAX .* \(w\)"):
        given = Given.from_params(predict, params)
    assert given.params["w"].dtype == np.float32
    restored = given.restore(given.params)
    assert (restored["w"].dtype, restored["other"].dtype) == (np.float64, np.float32)


DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxcomp import compress
from jaxcomp.quantizers import MagnitudePruning, RoundToNearest
from jaxcomp.experiments.sweep.given import Given

devices = jax.devices()
mesh = Mesh(np.array(devices), ("x",))
rows = NamedSharding(mesh, P("x", None))
rng = np.random.default_rng(0)
host = {name: rng.normal(size=(8, 8)).astype(np.float32) for name in "ab"}
places = {
    "stages": (devices[1], devices[2]),
    "spread beside single": (rows, devices[0]),
}
# The solver of K-means takes long to compile on every device, and goes the same way.
methods = {
    "stages": MagnitudePruning(0.5),
    "spread beside single": RoundToNearest(4),
}
for name, place in places.items():
    put = lambda tree: {key: jax.device_put(tree[key], at) for key, at in zip("ab", place)}
    params = put(host)
    # Curvature where the weights are not, in one leaf at least.
    curvature = {key: jax.device_put(w**2 + 0.1, devices[3]) for key, w in host.items()}
    tree = compress(params, methods[name], importance=curvature)
    wanted = compress(host, methods[name], importance=curvature).params()
    restored = tree.params()
    for key in "ab":
        np.testing.assert_allclose(restored[key], wanted[key], rtol=1e-5)
        assert restored[key].sharding == params[key].sharding, (name, key)
    tree.report()
    given = Given.from_params(lambda p, x: x @ p["a"] @ p["b"], params)
    logits = jax.jit(given.predict_fn)(given.params, np.ones((2, 8), np.float32))
    np.testing.assert_allclose(logits, np.ones((2, 8)) @ host["a"] @ host["b"], rtol=1e-4)
    back = given.restore(given.params)
    assert all(back[key].sharding == params[key].sharding for key in "ab"), name
print("done")
"""


def test_trees_over_several_devices(monkeypatch):
    # Devices are counted when JAX starts: a process of its own.
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    monkeypatch.setenv("XLA_FLAGS", flags)
    done = subprocess.run(
        [sys.executable, "-c", DEVICES], capture_output=True, text=True, check=False
    )
    assert done.stdout == "done\n", done.stderr[-2000:]
