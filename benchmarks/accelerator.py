"""Time what is heavy on one accelerator, against what the device itself can do.

    python benchmarks/accelerator.py [--seconds 360] [--parts kmeans,rounding] [--out FILE.json]

One device, six minutes at most, nothing from outside the checkout. First the bandwidth of a copy
and the rate of matrix products; then each part, as a share of the one that limits it:

- `kmeans`: K-means with 16 clusters of up to 10^8 Student-t weights (3 degrees of freedom), the
  kernel alone and `jaxcomp.compress`; `Optimal` and `EntropyConstrained` by `compress`. At least
  the weights have to be read once and codes of a byte to be written: that, at the bandwidth of the
  copy, is the share of 100 %.
- `rows`: the same kernel on 8192 rows of 8192, each with a codebook of its own.
- `leaves`: `compress` of 100 leaves of 10^4 weights, codebooks solved 16 at a time and one by one.
- `convolution`, `transformer`: diagonals and layer Hessians of the sweep's convolutional network
  and of a transformer block, in gradients of the same batch; products are in full float32.
- `rounding`: a layer of 4096 x 4096 with feedback, against the product S W in full float32.
- `blahut_arimoto`: 256 slopes of a Gaussian source of 256 symbols, in float64.
- `torch`: the same two networks in PyTorch: a gradient, double backward, and BackPACK.
- `sweep`: `jaxcomp sweep --preset paper --models 20` as a process, pictures included; on MNIST if
  `JAXCOMP_DATA_DIR` is set, else on images of the same shape: ten classes of noise.

Seconds are medians of up to seven calls after a first one; what the first took beyond them is
compiling. Inputs lie on the device before the clock starts, results are waited for.

Nothing that goes wrong ends the table. Parts run in a process of their own, which gets what time
is left by their weights (`PARTS`) and is ended when that is over; the next parts start in a new
one. An error, or a package that is not there, is a row. Every row is printed at once, and the JSON
written anew after it. Two processes never hold the device together (`torch` and `sweep` begin in a
new one), so that JAX may take its memory beforehand, as it does by default.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from accelerator_parts.networks import convolutional, curvature, torch_part, transformer
from accelerator_parts.quantizers import (
    blahut_arimoto_part,
    kmeans_part,
    leaves_part,
    machine,
    rounding_part,
    rows_part,
)
from accelerator_parts.sweep import sweep_part
from accelerator_parts.table import HEADER, Row, cells, first_line, markdown, with_share
from accelerator_parts.work import MARK, Work, send
from provenance import commit

VERSIONS = ("jax", "jaxlib", "flax", "numpy", "torch", "backpack-for-pytorch")


class Part(NamedTuple):
    """A part of the benchmark.

    Attributes:
        run: makes its rows.
        weight: of its time.
        is_alone: whether it begins in a new process, which does not use JAX itself.
        is_asked_for: whether small problems leave it out if nobody asks for it.
    """

    run: Callable[[Work], None]
    weight: float
    is_alone: bool = False
    is_asked_for: bool = False


PARTS = {
    "machine": Part(machine, 25),
    "kmeans": Part(kmeans_part, 90),
    "rows": Part(rows_part, 50),
    "leaves": Part(leaves_part, 30),
    "convolution": Part(partial(curvature, convolutional), 60),
    "transformer": Part(partial(curvature, transformer), 40),
    "rounding": Part(rounding_part, 50),
    "blahut_arimoto": Part(blahut_arimoto_part, 20),
    "torch": Part(torch_part, 25, is_alone=True),
    "sweep": Part(sweep_part, 90, is_alone=True, is_asked_for=True),
}


# --- The process that runs parts ----------------------------------------------------------------


def work_on_requests() -> None:
    """Run the parts that are asked for, one a line of standard input: name, its end, size."""
    is_known = False
    for line in sys.stdin:
        name, deadline, size = json.loads(line)
        part = PARTS[name]
        try:
            work = Work(name, size == "full", deadline)
            if not part.is_alone:
                import jax

                work.ready = jax.block_until_ready
                work.is_full = size == "full" or (size is None and jax.default_backend() != "cpu")
                if not is_known:
                    send("environment", environment(work.is_full))
                    is_known = True
                    # Small problems show that everything runs; compiling is what they cost.
                    jax.config.update("jax_disable_most_optimizations", not work.is_full)
            part.run(work)
        except Exception as error:  # of whatever kind: the next part is independent of it
            send("row", asdict(Row(name, "", note=first_line(error))))
        send("done", name)


def environment(is_full: bool) -> dict[str, Any]:
    import jax

    import jaxcomp

    return {
        "jaxcomp": jaxcomp.__version__,
        "size": "full" if is_full else "small",
        "device_kind": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "num_devices": jax.device_count(),
    }


class Worker:
    """A process that runs parts, and what it says."""

    def __init__(self, scratch: str) -> None:
        # The package of this checkout, installed or not.
        path = str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")
        self._process = subprocess.Popen(
            [sys.executable, sys.argv[0], "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            errors="replace",
            env=os.environ | {"TMPDIR": scratch, "PYTHONPATH": os.pathsep.join(filter(None, path))},
            start_new_session=True,  # it is ended together with the processes that it began
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def run(self, name: str, ends: float, size: str | None) -> Iterator[tuple[str, Any]]:
        """Run a part; yield what comes of it until it is done.

        Raises:
            TimeoutError: if it is not done by that time of `time.monotonic`.
            EOFError: if the process has ended.
        """
        begins = time.monotonic()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([name, ends, size]) + "\n")
            self._process.stdin.flush()
            while True:
                line = self._lines.get(timeout=max(ends - time.monotonic(), 0.001))
                if line is None:
                    break
                if not line.startswith(MARK):
                    sys.stderr.write(line)
                    continue
                kind, content = json.loads(line.removeprefix(MARK))
                if kind == "done":
                    return
                yield kind, content
        except queue.Empty:
            raise TimeoutError(f"ended after {ends - begins:.0f} s") from None
        except BrokenPipeError:
            pass
        raise EOFError(f"the process ended by itself, with code {self._process.wait()}")

    def end(self) -> None:
        """End the process and those that it began."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


# --- Report -------------------------------------------------------------------------------------


class Report:
    """Rows, printed as they come and written anew each time."""

    def __init__(self, out: Path | None, seconds: float) -> None:
        self._out = out
        self.rows: list[Row] = []
        self.limits: dict[str, float] = {}
        self._pending: dict[str, Any] | None = None
        self.environment: dict[str, Any] = {
            "python": platform.python_version(),
            **{name: version(name) for name in VERSIONS},
            "commit": commit(),
        }
        self._options = {"seconds": seconds, "dtype": "float32", "seed": 0}
        self.write(is_whole=False)  # what cannot be written is said before anything is timed
        self._print(HEADER)

    def add(self, kind: str, content: Any) -> None:
        """Take what a worker says."""
        if kind == "row":
            self.rows.append(with_share(Row(**content), self.limits))
            self._pending = None
        elif kind == "pending":
            self._pending = content
        elif kind == "limit":
            name, rate = content
            self.limits[name] = max(rate, self.limits.get(name, 0.0))
        elif kind == "environment":
            self.environment |= content
        self.write(is_whole=False)
        if kind == "row":
            self._print(cells(self.rows[-1]))

    def settle(self) -> None:
        """Take the first call of a case for the whole of it, if no more will come."""
        if self._pending is not None:
            self.add("row", self._pending)

    def write(self, *, is_whole: bool) -> None:
        """Write the JSON, which is there whole whenever the process is ended."""
        if self._out is None:
            return
        report = {
            "is_whole": is_whole,
            "options": self._options,
            "limits": self.limits,
            "rows": [asdict(row) for row in self.rows],
            "environment": self.environment,
        }
        temporary = self._out.with_name(self._out.name + ".part")
        temporary.write_text(json.dumps(report, indent=2) + "\n")
        os.replace(temporary, self._out)

    def _print(self, line: tuple[str, ...]) -> None:
        widths = (15, 46, 9, 9, 18, 18, 18, 0)
        text = " ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print(text.rstrip(), flush=True)


def version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def run_parts(options: argparse.Namespace, report: Report) -> None:
    """Run parts one after the other; each may take what is left by its weight."""
    names = options.parts or list(PARTS)
    deadline, worker = time.monotonic() + options.seconds, None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        try:
            for place, name in enumerate(names):
                part, size = PARTS[name], options.size or report.environment.get("size")
                if part.is_asked_for and not options.parts and size == "small":
                    note = f"left out where problems are small; --parts {name} asks for it"
                    report.add("row", asdict(Row(name, "", note=note)))
                    continue
                weights = [PARTS[other].weight for other in names[place:]]
                now = time.monotonic()
                ends = now + (deadline - now) * weights[0] / sum(weights)
                if worker is not None and part.is_alone:
                    worker.end()
                    worker = None
                worker = worker or Worker(scratch)
                is_done = run_part(worker, name, ends, size, report)
                if part.is_alone or not is_done:
                    worker.end()
                    worker = None
        finally:
            if worker is not None:
                worker.end()


def run_part(worker: Worker, name: str, ends: float, size: str | None, report: Report) -> bool:
    """Run one part; return whether its process can go on with others."""
    last = ""
    try:
        for kind, content in worker.run(name, ends, size):
            last = content if kind == "progress" else last
            report.add(kind, content)
    except (TimeoutError, EOFError) as error:
        report.settle()
        report.add("row", asdict(Row(name, "", note=f"{error}; {last}".rstrip("; "))))
        return False
    return True


def names_of_parts(text: str) -> list[str]:
    """Return the names of a list in their order; that of the limits is always there."""
    names = text.split(",")
    unknown = sorted(set(names) - set(PARTS))
    if unknown:
        raise argparse.ArgumentTypeError(
            f"unknown parts {', '.join(unknown)}; choose from {','.join(PARTS)}"
        )
    return [name for name in PARTS if name in names or name == "machine"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=360.0, help="for all parts together")
    parser.add_argument(
        "--parts",
        type=names_of_parts,
        help=f"some of {','.join(PARTS)}; the limits are always measured",
    )
    parser.add_argument(
        "--size", choices=("small", "full"), help="by default full where there is an accelerator"
    )
    parser.add_argument("--out", type=Path, help="also write the JSON here, after every row")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work_on_requests()
    # What ends the process lets it end the worker, and print its table.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    report = Report(options.out, options.seconds)
    is_whole = False
    try:
        run_parts(options, report)
        is_whole = True
    finally:
        report.settle()
        report.write(is_whole=is_whole)
        print("\n" + markdown(report.rows), flush=True)
    return None


if __name__ == "__main__":
    main()
