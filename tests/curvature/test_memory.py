"""The memory planner against the compiler's own count and the peak of a process."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow_cases import some_slow

from jaxcomp.curvature import (
    Fisher,
    GaussNewton,
    Hutchinson,
    estimate_memory,
    memory,
)

PARAMS = {"w": jax.ShapeDtypeStruct((100, 30), jnp.float32), "codes": np.arange(3, dtype=np.int32)}
BATCH = jax.ShapeDtypeStruct((16, 100), jnp.float32)
WEIGHTS_BYTES = 4 * (100 * 30 + 3)


def predict_fn(params, inputs):
    return jnp.tanh(inputs @ params["w"])


def loss_fn(params, batch):
    return jnp.mean(jnp.square(predict_fn(params, batch)))


fisher = Fisher(loss_fn, PARAMS)
hutchinson = Hutchinson(loss_fn, PARAMS, key=jax.random.key(0), num_probes=6)


@pytest.mark.parametrize("kernel", [fisher, hutchinson])
def test_one_batch_takes_what_the_compiler_says(kernel):
    plan = estimate_memory(kernel, BATCH, many_batches=False)
    compiled = (
        jax.jit(lambda params, batch: replace(kernel, params=params)(batch))
        .lower(PARAMS, BATCH)
        .compile()
        .memory_analysis()
    )
    assert plan.batch_bytes == 4 * 16 * 100
    assert plan.state_bytes == 2 * WEIGHTS_BYTES
    assert plan.peak_bytes == sum(plan[1:5])
    expected = (
        compiled.argument_size_in_bytes
        + compiled.output_size_in_bytes
        + compiled.temp_size_in_bytes
    )
    # The key is a constant here, and the results have a table of their own.
    np.testing.assert_allclose(plan.peak_bytes, expected, rtol=0.01)


def test_state_of_the_driver_is_two_trees_per_probe_and_two():
    # No more probes are held than there are, 6; a count and a flag beside them.
    plan = estimate_memory(hutchinson, BATCH, probes_per_chunk=100)
    assert plan.state_bytes == (2 * 6 + 2) * WEIGHTS_BYTES + 4 + 1
    assert plan.batch_bytes == 2 * 4 * 16 * 100
    # The key and the number of the first block of examples are three words.
    assert plan.weights_bytes == WEIGHTS_BYTES + 12
    # Probe, product, sample and the pair of a sum, and some activations.
    assert WEIGHTS_BYTES < plan.scratch_bytes < 8 * WEIGHTS_BYTES
    assert (plan.probes_per_chunk, plan.examples_per_chunk) == (6, None)


def test_the_largest_chunk_of_probes_under_the_limit_is_chosen():
    whole = estimate_memory(hutchinson, BATCH, probes_per_chunk=6)
    # One tree less than 6 probes take leaves room for 5, which take two less.
    plan = estimate_memory(
        hutchinson,
        BATCH,
        probes_per_chunk=6,
        limit_bytes=whole.peak_bytes - WEIGHTS_BYTES,
    )
    assert plan.probes_per_chunk == 5
    assert plan.peak_bytes == whole.peak_bytes - 2 * WEIGHTS_BYTES


def test_a_number_is_chosen_where_the_kernels_own_choice_is_too_much():
    kernel = GaussNewton(predict_fn, PARAMS)
    batch = (jax.ShapeDtypeStruct((500, 100), jnp.float32), jax.ShapeDtypeStruct((500,), jnp.int32))
    free = estimate_memory(kernel, batch, many_batches=False)
    assert free.examples_per_chunk is None

    limit_bytes = free.peak_bytes - free.scratch_bytes // 2
    plan = estimate_memory(kernel, batch, limit_bytes=limit_bytes, many_batches=False)
    assert 1 < plan.examples_per_chunk < 500
    twice = replace(kernel, examples_per_chunk=2 * plan.examples_per_chunk)
    assert plan.peak_bytes <= limit_bytes
    assert limit_bytes < estimate_memory(twice, batch, many_batches=False).peak_bytes
    bound = replace(kernel, examples_per_chunk=plan.examples_per_chunk)
    assert estimate_memory(bound, batch, many_batches=False) == plan

    with pytest.raises(ValueError, match=r"GaussNewton on batches of 500 .* would fit"):
        estimate_memory(kernel, batch, limit_bytes=200_000, many_batches=False)


@pytest.mark.parametrize("examples_per_probe", [None, pytest.param(800, marks=pytest.mark.slow)])
def test_examples_of_a_probe_are_cut_into_chunks_under_a_limit(monkeypatch, examples_per_probe):
    kernel = replace(hutchinson, examples_per_probe=examples_per_probe)
    batch = jax.ShapeDtypeStruct((4_000, 100), jnp.float32)
    free = estimate_memory(kernel, batch, probes_per_chunk=1)
    limit_bytes = free.peak_bytes - free.scratch_bytes // 2
    compiled = []
    own = memory._Plan._compile
    monkeypatch.setattr(memory._Plan, "_compile", lambda plan: compiled.append(plan) or own(plan))
    plan = estimate_memory(kernel, batch, limit_bytes=limit_bytes, probes_per_chunk=1)
    assert (free.examples_per_chunk, plan.probes_per_chunk) == (None, 1)
    assert plan.peak_bytes <= limit_bytes
    # Chunks that leave a rest take more than all examples at once.
    assert 1 < plan.examples_per_chunk < 4_000
    assert (examples_per_probe or 4_000) % plan.examples_per_chunk == 0
    assert len(compiled) < 8


@pytest.mark.parametrize(("examples_per_probe", "few"), [(None, 8), (100, 5)])
def test_a_few_examples_may_fit_where_one_does_not(monkeypatch, examples_per_probe, few):
    """Optimised, chunks of one example are a program with copies; here they take twice as much."""
    kernel = replace(hutchinson, examples_per_probe=examples_per_probe)
    batch = jax.ShapeDtypeStruct((4_000, 100), jnp.float32)
    own = memory._Plan._compile
    sizes = []

    def compiled(plan):
        size = plan.examples_per_chunk
        sizes.append(size)
        estimate = own(plan._replace(examples_per_chunk=examples_per_probe))
        return estimate._replace(peak_bytes=2_000 if size == 1 else 10 * (size or 4_000))

    monkeypatch.setattr(memory._Plan, "_compile", compiled)
    plan = estimate_memory(kernel, batch, limit_bytes=10 * few, probes_per_chunk=1)
    assert plan.peak_bytes == 10 * few
    assert {1, few} <= set(sizes)
    with pytest.raises(ValueError, match="even in the smallest chunks"):
        estimate_memory(kernel, batch, limit_bytes=10, probes_per_chunk=1)


def test_what_cannot_fit_is_refused_with_the_number_and_what_would_fit():
    batch = jax.ShapeDtypeStruct((20_000, 100), jnp.float32)
    with pytest.raises(
        ValueError,
        match=r"Fisher on batches of 20,000 examples needs [\d.]+ MB even in the "
        r"smallest chunks, but limit_bytes allows 4 MB; batches of [\d,]+ examples would fit",
    ) as refusal:
        estimate_memory(fisher, batch, limit_bytes=4_000_000)
    fitting = int(str(refusal.value).split("batches of ")[-1].split()[0].replace(",", ""))
    batch = jax.ShapeDtypeStruct((fitting, 100), jnp.float32)
    smallest = replace(fisher, examples_per_chunk=1)
    plan = estimate_memory(smallest, batch, limit_bytes=4_000_000)
    assert plan.peak_bytes > 3_500_000

    with pytest.raises(ValueError, match=r"even one example would need [\d.]+ MB: raise the limit"):
        estimate_memory(hutchinson, BATCH, limit_bytes=1000)


def test_arguments_are_checked():
    with pytest.raises(TypeError, match=r"estimator must be one of jaxcomp.curvature, .* got"):
        estimate_memory(loss_fn, BATCH)
    with pytest.raises(ValueError, match="limit_bytes must be at least 1, got 0"):
        estimate_memory(fisher, BATCH, limit_bytes=0)
    with pytest.raises(ValueError, match="leaves of batch must share the leading axis"):
        estimate_memory(fisher, (BATCH, jax.ShapeDtypeStruct((3,), jnp.float32)))


# Plans for shapes, then runs while a thread watches the anonymous memory of the process. (The
# system's own count of the peak includes the pages of libraries, which come and go.)
PROCESS = """
import json, sys, threading, time
from functools import partial
import jax, jax.numpy as jnp, numpy as np
from jaxcomp.curvature import GaussNewton, Hutchinson, estimate_memory, over_batches

def predict_fn(params, inputs):
    return (inputs @ params).reshape(len(inputs), 10, -1).sum(2)

def loss_fn(params, batch):
    return jnp.mean(jnp.square(batch[0] @ params))

def anonymous_bytes():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

def watch():
    while running:
        measured.append(anonymous_bytes())
        time.sleep(0.001)

if sys.argv[1] == "hutchinson":
    kernel = partial(Hutchinson, loss_fn, key=jax.random.key(0), num_probes=8)
else:
    kernel = partial(GaussNewton, predict_fn)
shapes = jax.ShapeDtypeStruct((int(sys.argv[2]), 1500), jnp.float32)
batches = [(np.ones((4, shapes.shape[0]), np.float32), np.zeros(4, np.int32))] * 2
plan = estimate_memory(kernel(shapes), batches[0])
weights = np.ones(shapes.shape, np.float32)
before, measured, running = anonymous_bytes(), [], True
thread = threading.Thread(target=watch)
thread.start()
over_batches(kernel(weights), batches)
running = False
thread.join()
print(json.dumps({"predicted": plan.peak_bytes, "measured": max(measured) - before}))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("name", "size"),
    some_slow([("hutchinson", 2000), ("gauss_newton", 6000)], ("hutchinson", 2000)),
)
def test_prediction_is_the_peak_of_a_process(name, size):
    folder = str(Path(__file__).resolve().parents[2])
    run = subprocess.run(
        [sys.executable, "-c", PROCESS, name, str(size)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": folder},
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["predicted"] > 200e6
    # What compiling and the allocator leave behind: some tens of megabytes at most.
    assert abs(found["measured"] / found["predicted"] - 1) < 0.2
