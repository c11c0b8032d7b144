"""Where the time of whole sweeps goes: processor seconds by phase, from empty caches.

    python benchmarks/sweeps.py [--sweeps quick paper vgg] [--models 5] [--epochs 25] [--out FILE]

- `quick`: what `make sweep` computes, five multilayer perceptrons on digits.
- `paper`: `jaxcomp sweep --preset paper --models 5`, on the MNIST of `JAXCOMP_DATA_DIR`.
- `vgg`: `jaxcomp sweep --dataset cifar10 --model vgg --width 0.0625`, likewise on CIFAR-10.

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
}


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
    phases.time("logits", engine.Evaluator, "logits")
    phases.time("scores", engine, "_score")
    phases.time("files of variants", engine, "file_of")
    phases.time("limits", engine, "limit_curve")
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
        print(json.dumps(measure(arguments.measure)))
        return
    found: dict[str, Any] = {}
    for name in arguments.sweeps:
        own = {"num_models": arguments.models, "epochs": arguments.epochs}
        result = in_a_process(SWEEPS[name] | own)
        if isinstance(result, str):
            print(f"{name}: left out: {result}", flush=True)
            continue
        found[name] = result
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
