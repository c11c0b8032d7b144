"""Where the time of whole sweeps goes: processor seconds by phase, from empty caches.

    python benchmarks/sweeps.py [--sweeps quick paper vgg forms] [--models 5] [--epochs 25]
        [--no-phases] [--out FILE]

- `quick`: what `make sweep` computes, five multilayer perceptrons on digits.
- `paper`: `jaxcomp sweep --preset paper --models 5`, on the MNIST of `JAXCOMP_DATA_DIR`.
- `vgg`: `jaxcomp sweep --dataset cifar10 --model vgg --width 0.0625`, likewise on CIFAR-10.
- `forms`: no sweep, but what the convolutional network takes on a CPU to be trained (a step of
  five networks) and scored (256 images by each of four), with convolutions as one product, as
  curvature needs them, and in tiles; and where MNIST is there, what the perceptron takes to be
  scored on 21,000 of its images (each of four), with and without inputs that blocks have in
  common. Each in turn, five times of about a second; the least.

A sweep whose data are not there is named and left out. Each runs in a process of its own, so that
it compiles what a first run compiles: once as users run it, for the clock, and once with a single
worker, so that its phases follow each other, for processor seconds of all threads by phase
(`--no-phases` leaves that out). A phase counts neither the phases within it nor compilation, which
is one of its own. There is no peer: this is for comparing two versions of jaxcomp on one machine.
"""

import argparse
import functools
import json
import math
import os
import platform
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


def run_sweep(values: dict[str, Any]) -> dict[str, float]:
    """Run one sweep from empty caches; return its seconds."""
    from jaxcomp.experiments import sweep

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        sweep.run(
            sweep.preset(**values), out=f"{folder}/run", cache_dir=f"{folder}/cache", quiet=True
        )
    return {"clock": time.perf_counter() - started, "processor": time.process_time()}


def measure_phases(values: dict[str, Any]) -> dict[str, float]:
    """Run one sweep by one worker and return processor seconds by phase."""
    from jax._src import compiler

    from jaxcomp.experiments import networks
    from jaxcomp.experiments.sweep import engine, evaluator, experiment, results, scoring

    experiment.worker_devices = lambda *_: ()
    phases = Phases()
    compiles = ("backend_compile_and_load", "backend_compile")
    phases.time("compilation", compiler, next(n for n in compiles if hasattr(compiler, n)))
    phases.time("training", networks, "train")
    phases.time("curvature", scoring, "_measure")
    phases.time("codebooks", scoring, "_solve")
    phases.time("codes", engine, "change")
    phases.time("outputs", evaluator.Evaluator, "outputs")
    phases.time("scores", engine, "scores_of")
    phases.time("files of variants", engine, "file_of")
    phases.time("limits", engine, "limits_at")
    phases.time("claims", scoring.Scored, "outcome")
    phases.time("tables and pictures", results.SweepResult, "save")
    total = run_sweep(values)["processor"]
    return {**phases.seconds, "rest": total - sum(phases.seconds.values()), "all": total}


def measure_forms(_: dict[str, Any]) -> dict[str, float]:
    """Return processor milliseconds of the convolutional network in both of its forms."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxcomp.experiments import networks
    from jaxcomp.experiments.networks import descent
    from jaxcomp.experiments.samples import Examples
    from jaxcomp.experiments.sweep.evaluator import Evaluator
    from jaxcomp.experiments.sweep.subject import Parts, Subject

    class AsProducts(networks.Network):
        """The network as curvature sees it, in training too."""

        def module_of(self, variables: Any, mode: Any, *, in_tiles: bool = False) -> Any:
            del in_tiles
            return super().module_of(variables, mode)

    network = networks.build("vgg", input_shape=(32, 32, 3), num_classes=10, width=1 / 16)
    kinds = {"as products": AsProducts(**vars(network)), "in tiles": network}
    rng = np.random.default_rng(0)
    images = rng.normal(size=(256, 32, 32, 3)).astype(np.float32)
    keys = descent.model_keys(0, jnp.arange(5))
    rates = descent.Rates(*(jnp.full(5, x, jnp.float32) for x in (0.01, 0.9, 1e-4, 0.0)))
    rows = jnp.asarray(rng.integers(0, 256, (5, _STEPS, 10)), jnp.int32)
    alone = [slice(number, number + 1) for number in range(5)]
    learner = descent.initial_learner(keys.weights, network=network)
    models = [network.init(key) for key in jax.random.split(jax.random.key(0), 4)]
    part = Examples(images, np.zeros(len(images), np.int32))
    layers = tuple(f"params/convolution_{number}/kernel" for number in range(7))
    functions: dict[str, tuple[int, Callable[[], Any]]] = {}

    for form, kind in kinds.items():

        def steps(kind: Any = kind) -> None:
            for own in alone:
                own_rates = descent.Rates(*(rate[own] for rate in rates))
                learned = descent.run_steps(
                    jax.tree.map(lambda leaf, own=own: jnp.array(leaf[own]), learner),
                    jnp.asarray(images),
                    descent.Epoch(rows[own], rows[own] % 10, jnp.asarray(0)),
                    keys.dropout[own],
                    own_rates,
                    0,
                    _STEPS,
                    network=kind,
                    is_proximal=False,
                )
                jax.block_until_ready(learned)

        functions[f"a step of training, {form}"] = _STEPS, steps
        for block in (16, 256):
            subject = Subject(network.predict, models[0], layers, score_fn=kind.score)
            evaluator = Evaluator(subject, Parts(part, part, part), 4)
            evaluator.block = block
            functions[f"scoring by a network, {form}, {block} images"] = (
                len(models),
                functools.partial(evaluator.outputs, models, evaluator.blocks(images)),
            )
    return _milliseconds(functions | _scoring_of_digits())


def _scoring_of_digits() -> dict[str, tuple[int, Callable[[], Any]]]:
    """Scores of the perceptron on MNIST, in both forms; nothing without data."""
    import jax

    from jaxcomp.experiments import networks
    from jaxcomp.experiments.samples import draw_samples
    from jaxcomp.experiments.sweep import evaluator
    from jaxcomp.experiments.sweep.subject import Parts, Subject

    if "JAXCOMP_DATA_DIR" not in os.environ:
        return {}
    drawn = draw_samples(
        "mnist",
        data_dir=None,
        download=False,
        num_models=1,
        train_size=6000,
        validation_size=5000,
        replacement=True,
        label_noise=0.0,
        standardize=True,
        seed=0,
    )
    parts = Parts(drawn.train(0), drawn.validation, drawn.test)
    network = networks.build("mlp", input_shape=(28, 28, 1), num_classes=10)
    models = [network.init(key) for key in jax.random.split(jax.random.key(0), 4)]
    layers = ("params/hidden_0/kernel",)
    subject = Subject(network.predict, models[0], layers, score_fn=network.score)
    functions = {}
    least = evaluator.LEAST_SIZE
    for form, size in (("all inputs", sys.maxsize), ("inputs in common once", least)):
        evaluator.LEAST_SIZE = size
        scorer = evaluator.Evaluator(subject, parts, 4)
        blocks = scorer.blocks_of(*parts)
        score = functools.partial(scorer.outputs, models, blocks)
        functions[f"scoring MNIST, {form}"] = len(models), score
    return functions


def _milliseconds(functions: dict[str, tuple[int, Callable[[], Any]]]) -> dict[str, float]:
    """Processor time of each, least of five rounds, divided by a number of its own."""
    repeats = {}
    for name, (_, function) in functions.items():
        function()  # compiles
        started = time.perf_counter()
        function()
        repeats[name] = 1 + int(1.0 / (time.perf_counter() - started))
    found = dict.fromkeys(functions, math.inf)
    for _ in range(5):
        for name, (divisor, function) in functions.items():
            started = time.process_time()
            for _ in range(repeats[name]):
                function()
            took = (time.process_time() - started) / repeats[name] / divisor
            found[name] = min(found[name], 1e3 * took)
    return found


MEASURES = {"whole": run_sweep, "phases": measure_phases, "forms": measure_forms}


def in_a_process(what: str, values: dict[str, Any]) -> dict[str, Any] | str:
    """Measure one thing in a new process; return what it says if it cannot."""
    ran = subprocess.run(
        [sys.executable, __file__, "--measure", what, json.dumps(values)],
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
    parser.add_argument("--phases", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        what, values = arguments.measure
        print(json.dumps(MEASURES[what](json.loads(values))))
        return
    found: dict[str, Any] = {}
    for name in arguments.sweeps:
        own = {"num_models": arguments.models, "epochs": arguments.epochs}
        result = in_a_process("forms" if name == "forms" else "whole", SWEEPS[name] | own)
        if isinstance(result, str):
            print(f"{name}: left out: {result}", flush=True)
            continue
        found[name] = result
        if name == "forms":
            for what, took in result.items():
                print(f"  {what:45} {took:8.1f} ms")
            continue
        print(f"{name}: {result['clock']:.0f} s of clock, {result['processor']:.0f} of processor")
        sys.stdout.flush()
        if not arguments.phases:
            continue
        phases = in_a_process("phases", SWEEPS[name] | own)
        if isinstance(phases, str):
            print(f"{name}: its phases are left out: {phases}", flush=True)
            continue
        result["phases"] = phases
        for phase, seconds in phases.items():
            print(f"  {phase:20} {seconds:8.1f} {seconds / phases['all']:7.0%}")
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
