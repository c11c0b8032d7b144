"""Where the time of whole sweeps goes: processor seconds by phase, from empty caches.

    python benchmarks/sweeps.py [--sweeps quick paper vgg forms] [--models 5] [--epochs 25]
        [--out FILE]

- `quick`: what `make sweep` computes, five multilayer perceptrons on digits.
- `paper`: `jaxcomp sweep --preset paper --models 5`, on the MNIST of `JAXCOMP_DATA_DIR`.
- `vgg`: `jaxcomp sweep --dataset cifar10 --model vgg --width 0.0625`, likewise on CIFAR-10.
- `forms`: no sweep, but what the convolutional network takes to be trained (a step of five
  networks) and scored (256 images by each of four), in the form for accelerators, all networks at
  once, and in that for CPUs, one after the other and few images at a time. Medians of three.

A sweep whose data are not there is named and left out. Each runs in a process of its own, so that
it compiles what a first run compiles. Seconds are those of the processor, of all threads, since
other processes move the clock; the clock is beside their sum. A phase counts neither the phases
within it nor compilation, which is one of its own. There is no peer: this is for comparing two
versions of jaxcomp on one machine.
"""

import argparse
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from provenance import commit

SWEEPS: dict[str, dict[str, Any]] = {
    "quick": {"name": "quick"},
    "paper": {"name": "paper", "num_models": 5},
    "vgg": {"name": "quick", "dataset": "cifar10", "model": "vgg", "width": 1 / 16},
    "forms": {"name": "forms"},
}
_STEPS = 8


class Phases:
    """Processor seconds by name; what is timed within another phase does not count there."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {"imports": time.process_time()}
        self._within: list[float] = []

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose calls count as a phase."""
        self.seconds[name] = 0.0

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            self._within.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                all_of_it = time.process_time() - started
                self.seconds[name] += all_of_it - self._within.pop()
                if self._within:
                    self._within[-1] += all_of_it

        return wrapped

    def time(self, name: str, holder: Any, function: str) -> None:
        """Count calls of a function by the name that its callers look up."""
        setattr(holder, function, self.timed(name, getattr(holder, function)))


def measure(values: dict[str, Any]) -> dict[str, Any]:
    """Run one sweep and return seconds by phase."""
    from jax._src import compiler

    from jaxcomp.experiments import networks, sweep
    from jaxcomp.experiments.sweep import engine, results, scoring

    phases = Phases()
    compiles = ("backend_compile_and_load", "backend_compile")
    phases.time("compilation", compiler, next(n for n in compiles if hasattr(compiler, n)))
    phases.time("training", networks, "train")
    phases.time("curvature", scoring, "_measure")
    phases.time("codebooks", scoring, "_solve")
    phases.time("codes", engine, "change")
    phases.time("outputs", engine.Evaluator, "outputs")
    phases.time("scores", engine, "scores_of")
    phases.time("files of variants", engine, "file_of")
    phases.time("limits", engine, "limits_at")
    phases.time("claims", scoring.Scored, "outcome")
    phases.time("tables and pictures", results.SweepResult, "save")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        sweep.run(
            sweep.preset(**values), out=f"{folder}/run", cache_dir=f"{folder}/cache", quiet=True
        )
    total = time.process_time()
    rest = total - sum(phases.seconds.values())
    return {
        "seconds": {**phases.seconds, "rest": rest, "all": total},
        "clock_seconds": time.perf_counter() - started,
    }


def measure_forms() -> dict[str, float]:
    """Return processor milliseconds of the convolutional network in both of its forms."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxcomp.experiments import networks
    from jaxcomp.experiments.networks import descent
    from jaxcomp.experiments.samples import Examples
    from jaxcomp.experiments.sweep.engine import Evaluator, Parts, Subject

    network = networks.build("vgg", input_shape=(32, 32, 3), num_classes=10, width=1 / 16)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(256, 32, 32, 3)).astype(np.float32)
    keys = descent.model_keys(0, jnp.arange(5))
    rates = descent.Rates(*(jnp.full(5, x, jnp.float32) for x in (0.01, 0.9, 1e-4, 0.0)))
    rows = jnp.asarray(rng.integers(0, 256, (5, _STEPS, 10)), jnp.int32)
    epoch = descent.Epoch(rows, rows % 10, jnp.asarray(0))
    found = {}

    def milliseconds(function: Callable[[], Any]) -> float:
        function()  # compiles
        seconds = []
        for _ in range(3):
            started = time.process_time()
            function()
            seconds.append(time.process_time() - started)
        return 1e3 * statistics.median(seconds)

    for form in ("batched", "looped"):

        def steps(form: Any = form) -> None:
            learner = descent.initial_learner(keys.weights, rates, network=network)
            learner = descent.run_steps(
                learner,
                jnp.asarray(images),
                epoch,
                keys.dropout,
                rates,
                0,
                _STEPS,
                network=network,
                form=form,
                is_proximal=False,
            )
            jax.block_until_ready(learner)

        found[f"a step of training, {form}"] = milliseconds(steps) / _STEPS

    models = [network.init(key) for key in jax.random.split(jax.random.key(0), 4)]
    part = Examples(images, np.zeros(len(images), np.int32))
    layers = tuple(f"params/convolution_{number}/kernel" for number in range(7))
    evaluator = Evaluator(Subject(network.predict, models[0], layers), Parts(part, part, part), 4)
    for form, block in (("stacked", 256), ("one by one", 256), ("one by one", 16)):
        evaluator.is_on_cpu, evaluator.block = form != "stacked", block
        took = milliseconds(lambda: evaluator.outputs(models, images))
        found[f"scoring by a network, {form}, {block} images"] = took / len(models)
    return found


def in_a_process(values: dict[str, Any]) -> dict[str, Any] | str:
    """Measure one sweep in a new process; return what it says if it cannot."""
    ran = subprocess.run(
        [sys.executable, __file__, "--measure", json.dumps(values)],
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        return (ran.stderr.strip().splitlines() or ["it ended without a word"])[-1]
    return json.loads(ran.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sweeps", nargs="+", choices=list(SWEEPS), default=list(SWEEPS))
    parser.add_argument("--models", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        is_forms = arguments.measure.get("name") == "forms"
        print(json.dumps(measure_forms() if is_forms else measure(arguments.measure)))
        return
    found: dict[str, Any] = {}
    for name in arguments.sweeps:
        own = {"num_models": arguments.models, "epochs": arguments.epochs}
        result = in_a_process(SWEEPS[name] | own)
        if isinstance(result, str):
            print(f"{name}: left out: {result}", flush=True)
            continue
        found[name] = result
        if name == "forms":
            for what, took in result.items():
                print(f"  {what:45} {took:8.1f} ms")
            continue
        print(f"{name}: {result['clock_seconds']:.0f} s of clock; processor seconds:")
        for phase, seconds in result["seconds"].items():
            print(f"  {phase:20} {seconds:8.1f} {seconds / result['seconds']['all']:7.0%}")
        sys.stdout.flush()
    report = {
        "sweeps": found,
        "models": arguments.models,
        "epochs": arguments.epochs,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "commit": commit(),
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2))
    else:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
