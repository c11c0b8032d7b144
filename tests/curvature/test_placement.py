"""Weights and examples spread over eight devices: results lie where the weights do."""

import os
import subprocess
import sys

import pytest

# Devices are counted when JAX starts: a process of its own.
SCRIPT = """
import re
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxcomp import compress
from jaxcomp.curvature import (
    Fisher, GaussNewton, Hutchinson, Layers, find_layers, layer_hessians, over_batches,
)
from jaxcomp.curvature.estimate import estimate_on_batch
from jaxcomp.numerics.placement import placement_of
from jaxcomp.quantizers import HessianRounding, RoundingSettings

rng = np.random.default_rng(0)
normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
HOST = {"in": normal(16, 32) / 4, "out": normal(32, 8) / 4}
INPUTS, LABELS = normal(32, 16), (np.arange(32) % 8).astype(np.int32)
KEY = jax.random.key(0)


def predict(params, x):
    return jax.nn.relu(x @ params["in"]) @ params["out"]


def loss(params, batch):
    logits = jax.nn.log_softmax(predict(params, batch[0]))
    return -jnp.mean(jnp.take_along_axis(logits, batch[1][:, None], 1))


def estimates(params, batch):
    yield "exact", GaussNewton(predict, params)(batch)
    yield "chunks", GaussNewton(
        predict, params, num_label_samples=2, key=KEY, examples_per_chunk=4
    )(batch)
    yield "fisher", Fisher(loss, params, examples_per_chunk=2)(batch)
    hutchinson = Hutchinson(loss, params, key=KEY, num_probes=2)
    yield "hutchinson", over_batches(hutchinson, [batch, batch])
    yield "probes in chunks", replace(hutchinson, examples_per_chunk=3)(batch)


def tiny_rounding(params, batch):
    settings = RoundingSettings(exponents=(0.0,), slopes=(2.0,), num_passes=1, max_code=31)
    method = HessianRounding(1e-3, settings=settings, dampings=(1e-3,))
    return compress(params, method, layers=Layers(predict, [batch], num_stages=1))


def close(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        jax.device_get(found), jax.device_get(expected),
    )


def check(mesh, spec):
    put = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
    params = {name: put(value, spec) for name, value in HOST.items()}
    batch = put(INPUTS, P("data")), put(LABELS, P("data"))
    for name, found in estimates(params, batch):
        close(found.mean, plain[name].mean)
        for leaf in HOST:
            own = found.mean[leaf].sharding
            assert own.is_equivalent_to(params[leaf].sharding, 2), (name, own)
            assert own.mesh.axis_types == mesh.axis_types, (name, own)
    found = layer_hessians(predict, params, [batch])
    close([h.hessian for h in found.values()], [h.hessian for h in hessians.values()])
    assert all(layer.kind == "matrix" for layer in find_layers(predict, params, batch[0]).values())
    tree = tiny_rounding(params, batch)
    for leaf in HOST:
        np.testing.assert_array_equal(tree.codes(leaf), rounded.codes(leaf))
        assert tree.params()[leaf].sharding.is_equivalent_to(params[leaf].sharding, 2)


def chunks_stay_where_they_are(mesh):
    # Whole weights, spread examples: what is exchanged are sums, of the size of the weights, and
    # neither examples nor what layers make of them.
    params = jax.device_put(HOST, NamedSharding(mesh, P()))
    examples = NamedSharding(mesh, P("data"))
    batch = jax.device_put((INPUTS, LABELS), examples)
    placement = placement_of(params, batch)
    kinds = "all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter"
    estimators = [GaussNewton(predict, params, examples_per_chunk=1)]
    if sys.argv[1] == "all":
        estimators.append(Hutchinson(loss, params, key=KEY, num_probes=2, examples_per_chunk=3))
    for estimator in estimators:
        sampler, samples = estimator.sampling()
        lowered = estimate_on_batch.lower(sampler, batch, num_samples=samples, placement=placement)
        text = lowered.compile().as_text()
        found = {kind for kind in re.findall(f" ({kinds})[-(]", text)}
        assert found == {"all-reduce"}, (estimator, found)


automatic, explicit = (
    jax.make_mesh((4, 2), ("data", "model"), axis_types=(types,) * 2)
    for types in (AxisType.Auto, AxisType.Explicit)
)
chunks_stay_where_they_are(automatic)
if sys.argv[1] == "few":
    params = jax.device_put(HOST, NamedSharding(explicit, P("data", "model")))
    batch = jax.device_put((INPUTS, LABELS), NamedSharding(explicit, P("data")))
    found = GaussNewton(predict, params)(batch).mean
    close(found, GaussNewton(predict, HOST)((INPUTS, LABELS)).mean)
    assert all(found[leaf].sharding == params[leaf].sharding for leaf in HOST), found
else:
    plain = dict(estimates(HOST, (INPUTS, LABELS)))
    hessians = layer_hessians(predict, HOST, [(INPUTS, LABELS)])
    rounded = tiny_rounding(HOST, (INPUTS, LABELS))
    check(automatic, P("data"))
    check(explicit, P("data", "model"))
    with jax.set_mesh(explicit):
        check(explicit, P(None, "model"))
print("done")
"""


@pytest.mark.parametrize("cases", ["few", pytest.param("all", marks=pytest.mark.slow)])
def test_results_lie_where_the_weights_do(monkeypatch, cases):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    monkeypatch.setenv("XLA_FLAGS", flags)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, cases], capture_output=True, text=True, check=False
    )
    assert done.stdout == "done\n", done.stderr[-3000:]
