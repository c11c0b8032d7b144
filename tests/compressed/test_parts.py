"""Leaves that devices share are compressed in place: codes, files and words of one device."""

import socket
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

from jaxcomp import compress, curve
from jaxcomp.compressed.files import to_bytes
from jaxcomp.quantizers import EntropyConstrained, KMeans, placed, placed_problems

rng = np.random.default_rng(0)
normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
# More weights than the sample that bins are made of, and than one chunk.
WEIGHTS = {"wide": normal(600, 512) / 16, "tied": normal(32, 64), "bias": normal(64)}
WEIGHTS["tied again"] = WEIGHTS["tied"]
IMPORTANCE = {name: normal(*value.shape) ** 2 for name, value in WEIGHTS.items()}
automatic, explicit = (
    jax.make_mesh((4, 2), ("data", "model"), axis_types=(types,) * 2)
    for types in (AxisType.Auto, AxisType.Explicit)
)
KMEANS = KMeans(4, num_bins=64)
ENTROPY = EntropyConstrained(0.02, num_symbols=8, num_bins=32, num_levels=2, num_iterations=3)
texts = {}
compiled = placed.compiled


def recorded(*values, **options):
    program = compiled.lower(*values, **options).compile()
    texts[options["kernel"].__name__, values[0].shape] = program.as_text()
    return program(*values)


placed.compiled = recorded


def put(tree, mesh, spec):
    shared = NamedSharding(mesh, spec), NamedSharding(mesh, P())
    known = {}
    for value in tree.values():
        known[id(value)] = jax.device_put(value, shared[value.ndim < 2])
    return {name: known[id(value)] for name, value in tree.items()}


def same(mesh, spec, method, **options):
    weights, own = put(WEIGHTS, mesh, spec), dict(options)
    if "importance" in options:
        own["importance"] = put(options["importance"], mesh, spec)
    many, one = compress(weights, method, **own), compress(WEIGHTS, method, **options)
    assert to_bytes(many) == to_bytes(one)
    params = many.params()
    for name in WEIGHTS:
        assert params[name].sharding.is_equivalent_to(weights[name].sharding, weights[name].ndim)
        assert params[name].sharding.mesh.axis_types == mesh.axis_types
        np.testing.assert_array_equal(params[name], one.params()[name])


def words(params, **options):
    try:
        compress(params, KMEANS, **options)
    except ValueError as error:
        return str(error)


def check_that_no_weight_moves():
    kinds = "all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter"
    found = {name for name, shape in texts if shape == WEIGHTS["wide"].shape}
    assert found >= {"_survey", "_extremes", "_of_places", "_filled_about_one", "_encoded"}, found
    for (name, shape), text in texts.items():
        if shape != WEIGHTS["wide"].shape:
            continue
        for line in re.findall(f".* (?:{kinds})(?:-start)?[(].*", text):
            sizes = re.findall(r"\\w+\\[([\\d,]*)\\]", line.split("=")[1])
            most = max(math.prod(int(n) for n in size.split(",") if n) for size in sizes)
            # The sample of 2^17 weights is a sum; so are tables of the chunks.
            assert most <= 1 << 17 and ("all-reduce" in line or most <= 64), (name, line)


spec = P("data", "model")
if sys.argv[1] == "few":
    WEIGHTS = {name: WEIGHTS[name] for name in ("wide", "bias")}
    same(explicit, spec, KMEANS, importance=IMPORTANCE)
    check_that_no_weight_moves()
else:
    for name, bad in (("wide", np.nan), ("tied", np.inf)):
        wrong = dict(WEIGHTS)
        wrong[name] = np.where(np.arange(WEIGHTS[name].shape[1]) == 3, bad, WEIGHTS[name])
        assert words(put(wrong, automatic, spec)) == words(wrong) != None
    same(automatic, P(("model", "data")), KMEANS)
    with jax.set_mesh(explicit):
        same(explicit, spec, ENTROPY, importance=IMPORTANCE)
    found, expected = (
        curve(tree, ENTROPY, importance=h)["wide"]
        for tree, h in ((put(WEIGHTS, automatic, spec), put(IMPORTANCE, automatic, spec)),
                        (WEIGHTS, IMPORTANCE))
    )
    np.testing.assert_array_equal(found.distortion, expected.distortion)
    # Beyond so many chunks devices add up what they have.
    placed_problems._MOST_CHUNKS = 1
    many, one = compress(put(WEIGHTS, automatic, spec), KMEANS), compress(WEIGHTS, KMEANS)
    np.testing.assert_allclose(many.codebook("wide"), one.codebook("wide"), rtol=1e-5)
    for bad in (-IMPORTANCE["wide"], 0 * IMPORTANCE["wide"], IMPORTANCE["wide"] * np.nan):
        wrong = IMPORTANCE | {"wide": bad}
        shared = put(wrong, automatic, spec)
        found = words(put(WEIGHTS, automatic, spec), importance=shared)
        assert found == words(WEIGHTS, importance=wrong) != None
print("done")
"""


@pytest.mark.slow
@pytest.mark.parametrize("cases", ["few", "all"])
def test_eight_devices_make_the_file_of_one(monkeypatch, cases):
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    monkeypatch.setenv("XLA_FLAGS", flags)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, cases], capture_output=True, text=True, check=False
    )
    assert done.stdout == "done\n", done.stderr[-3000:]


# Each has two of four devices.
PROCESS = """
import sys

import jax
import numpy as np

jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))

from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxcomp import compress
from jaxcomp.compressed.files import to_bytes
from jaxcomp.quantizers import KMeans

rng = np.random.default_rng(0)
normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
WEIGHTS = {"wide": normal(64, 512), "bias": normal(8)}
IMPORTANCE = {name: value**2 for name, value in WEIGHTS.items()}
mesh = jax.make_mesh((2, 2), ("data", "model"))


def put(value):
    spec = P("data", "model") if value.ndim > 1 else P("data")
    return jax.make_array_from_callback(
        value.shape, NamedSharding(mesh, spec), lambda place: value[place]
    )


shared, importance = jax.tree.map(put, (WEIGHTS, IMPORTANCE))
method = KMeans(4, num_bins=64)
many = compress(shared, method, importance=importance)
one = compress(WEIGHTS, method, importance=IMPORTANCE)
assert to_bytes(many) == to_bytes(one)
found, expected = many.params()["wide"], one.params()["wide"]
assert found.sharding == shared["wide"].sharding
for part in found.addressable_shards:
    np.testing.assert_array_equal(part.data, np.asarray(expected)[part.index])
try:
    compress(shared)
except ValueError as error:
    assert "'wide' is spread over devices of several processes" in str(error)
    print("done")
"""


@pytest.mark.slow
def test_two_processes_make_the_file_of_one(monkeypatch):
    flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    monkeypatch.setenv("XLA_FLAGS", flags)
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        port = str(own.getsockname()[1])
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, port, str(index)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    told = [process.communicate() for process in started]
    assert [out.splitlines()[-1:] for out, _ in told] == [["done"]] * 2, told
