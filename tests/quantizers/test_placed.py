"""Kernels on weights that eight devices share: results of one device, and no weight moves."""

import os
import subprocess
import sys

import pytest

# Devices are counted when JAX starts: a process of its own.
SCRIPT = """
import math
import re
import sys

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxcomp.quantizers import (
    assign, assign_by_cost, histogram_moments, kmeans, placed, prune_by_magnitude, round_to_nearest,
)

rng = np.random.default_rng(0)
ROWS = rng.standard_t(3, size=(8, 8192)).astype(np.float32)
WEIGHTS = rng.gamma(1.0, size=ROWS.shape).astype(np.float32)
FLAT = ROWS.reshape(-1)
EDGES = np.linspace(-2, 2, 7, dtype=np.float32)
COST = np.append(EDGES, 3.0).astype(np.float32), np.arange(8, dtype=np.float32), np.float32(0.1)
texts = []
compiled = placed.compiled


def recorded(*values, **options):
    program = compiled.lower(*values, **options).compile()
    texts.append(program.as_text())
    return program(*values)


placed.compiled = recorded


def same(found, expected):
    # Codes exactly; numbers in float32 up to how XLA fuses them for another number of groups.
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        np.testing.assert_allclose(a, b, rtol=1e-6 if a.dtype == np.float32 else 0)


def check(mesh, spec, kernel, *arrays):
    put = lambda x: jax.device_put(x, NamedSharding(mesh, spec))
    texts.clear()
    found, expected = kernel(*map(put, arrays)), kernel(*arrays)
    same(found, expected)
    for leaf in jax.tree.leaves(found):
        assert leaf.sharding.mesh.axis_types == mesh.axis_types, leaf.sharding
        if leaf.shape == arrays[0].shape:
            assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, spec), leaf.ndim)
    assert texts
    kinds = "all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter"
    for text in texts:
        for line in re.findall(f".* (?:{kinds})(?:-start)?[(].*", text):
            sizes = re.findall(r"\\w+\\[([\\d,]*)\\]", line.split("=")[1])
            most = max(math.prod(int(n) for n in size.split(",") if n) for size in sizes)
            assert f" all-reduce" in line and most <= 2048, line


def clusters(points, importance=None):
    return kmeans(points, importance, num_clusters=6, num_bins=256)


def moments(points, importance=None):
    return histogram_moments(points, importance, num_bins=256)


automatic, explicit = (
    jax.make_mesh((4, 2), ("data", "model"), axis_types=(types,) * 2)
    for types in (AxisType.Auto, AxisType.Explicit)
)
if sys.argv[1] == "few":
    check(explicit, P("data", "model"), moments, ROWS, WEIGHTS)
    check(automatic, P("data", "model"), lambda w: prune_by_magnitude(w, 0.3), ROWS)
else:
    check(explicit, P("data", "model"), clusters, ROWS, WEIGHTS)
    check(automatic, P(("model", "data")), clusters, FLAT)
    check(explicit, P("data", "model"), lambda w: assign(w, EDGES), ROWS)
    check(explicit, P("data", "model"), lambda w, h: assign_by_cost(w, h, *COST), ROWS, WEIGHTS)
    with jax.set_mesh(explicit):
        check(explicit, P("data"), clusters, FLAT)
        check(explicit, P("model", "data"), lambda w: prune_by_magnitude(w, 0.3), np.round(ROWS))
    # Short groups are sorted, whole; codes go back to where their points are.
    placed.compiled = compiled
    texts = None
    put = lambda x: jax.device_put(x, NamedSharding(explicit, P("data", "model")))
    found, expected = clusters(put(ROWS[:, :128])), clusters(ROWS[:, :128])
    assert found.assignments.sharding.spec == P("data", "model")
    same(found, expected)
    found, expected = (round_to_nearest(w, num_bits=4) for w in (put(ROWS), ROWS))
    assert found.codes.sharding.spec == P("data", "model")
    same(found, expected)
print("done")
"""


@pytest.mark.parametrize("cases", ["few", pytest.param("all", marks=pytest.mark.slow)])
def test_kernels_on_eight_devices(monkeypatch, cases):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    monkeypatch.setenv("XLA_FLAGS", flags)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, cases], capture_output=True, text=True, check=False
    )
    assert done.stdout == "done\n", done.stderr[-3000:]
