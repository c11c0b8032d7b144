"""A checkpoint larger than what may be in memory: peak memory and speed of the commands on it.

    python benchmarks/large_files.py --size 8GB [--method round-to-nearest] [--out result.json]
    python benchmarks/large_files.py --size 1GB --method trellis-coded --bits-per-weight 3

A synthetic checkpoint in bfloat16 is written to a folder (`--folder`, a temporary one by default;
twice the size has to be free): shapes of a transformer with gated layers, normal weights with a
scale of their own for each tensor, in files of at most 1 GB and their index. Then `jaxcomp
compress`, `verify` and `decompress` run, each in a process of its own. A row for each: seconds,
seconds of the processor, MB of bfloat16 per second, peak memory (`VmHWM`, Linux only) beside what
is allowed, 6 times the largest tensor and 300 MB, and the seconds that the constants of
`docs/scale.md` predict for one core.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxcomp.checkpoints.safetensors import Spec, num_bytes
from jaxcomp.checkpoints.sharded import write_sharded

UNITS = {"MB": 1e6, "GB": 1e9}
SHARD = 1e9
VOCABULARY = 32_000
# Microseconds of one core for a weight, docs/scale.md: compressing, then writing and reading.
COMPRESS = {
    "round-to-nearest": (0.11, 0.11),
    "entropy-constrained": (1.05, 1.05),
    "trellis-coded": (1.7, 2.7),
}
FILE = (0.04, 0.07)


def shapes_of(size_bytes: float) -> list[Spec]:
    """Return names, dtypes and shapes of about so many bytes; wide layers where they fit."""
    width, hidden = (4096, 11_008) if size_bytes >= 1.5e9 else (2048, 5632)
    ends = [
        ("model.embed_tokens.weight", (VOCABULARY, width)),
        ("lm_head.weight", (VOCABULARY, width)),
    ]
    blocks: list[tuple[str, tuple[int, ...]]] = []
    left = size_bytes - sum(2 * a * b for _, (a, b) in ends)
    block = 2 * (4 * width * width + 3 * width * hidden)
    for number in range(max(1, round(left / block))):
        name = f"model.layers.{number}"
        blocks += [
            *((f"{name}.self_attn.{one}_proj.weight", (width, width)) for one in "qkvo"),
            (f"{name}.mlp.gate_proj.weight", (hidden, width)),
            (f"{name}.mlp.up_proj.weight", (hidden, width)),
            (f"{name}.mlp.down_proj.weight", (width, hidden)),
            (f"{name}.input_layernorm.weight", (width,)),
        ]
    return [(name, "bfloat16", shape) for name, shape in (ends[0], *blocks, ends[1])]


def weights_of(specs: list[Spec]) -> Iterator[np.ndarray]:
    """Yield the tensors, a row of each at a time in float32."""
    rng = np.random.default_rng(0)
    for _, _, shape in specs:
        scale = np.float32(0.02 * 2 ** rng.uniform(-2, 2))
        found = np.empty(shape, ml_dtypes.bfloat16)
        flat = found.reshape(-1)
        for start in range(0, flat.size, 1 << 22):
            part = flat[start : start + (1 << 22)]
            part[:] = scale * rng.standard_normal(part.size, np.float32)
        yield found


def measured(*command: Any) -> dict[str, float]:
    """Run a command of jaxcomp; its seconds, those of the processor, and its peak in MB."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start, peak = time.perf_counter(), float("nan")
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxcomp", *map(str, command)], stdout=subprocess.DEVNULL
    )
    while process.poll() is None:
        time.sleep(0.05)
        # Not before it is a program of its own: until then it has the peak of this process.
        if sys.platform == "linux" and time.perf_counter() - start > 1:
            peak = np.fmax(peak, _peak_megabytes(process.pid))
    if process.returncode:
        raise SystemExit(f"jaxcomp {command[0]} ended with exit code {process.returncode}")
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "processor_seconds": own, "peak_megabytes": float(peak)}


def _peak_megabytes(process: int) -> float:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:  # it is gone
        return float("nan")
    found = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(found[0]) * 1024 / 1e6 if found else float("nan")


def rows_of(folder: Path, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    specs = shapes_of(float(arguments.size[:-2]) * UNITS[arguments.size[-2:].upper()])
    files = write_sharded(folder / "model.safetensors", specs, weights_of(specs), SHARD)
    total, largest = sum(map(num_bytes, specs)), max(map(num_bytes, specs))
    number = total / 2
    small, back = folder / "small.jxc", folder / "back.safetensors"
    budget = [] if arguments.bits is None else ["--bits-per-weight", arguments.bits]
    jobs = [] if arguments.jobs is None else ["--jobs", arguments.jobs]
    steps = {
        "compress": (
            files[0],
            "-o",
            small,
            "--quiet",
            "--method",
            arguments.method,
            *budget,
            *jobs,
        ),
        "verify": (small, "--quiet"),
        "decompress": (small, "-o", back, "--quiet", "--shard-size", "1GB"),
    }
    low, high = COMPRESS.get(arguments.method, (float("nan"),) * 2)
    predicted = {
        "compress": [(low + FILE[0]) * number / 1e6, (high + FILE[1]) * number / 1e6],
        "verify": [part * number / 1e6 for part in FILE],
        "decompress": [part * number / 1e6 for part in FILE],
    }
    for step in arguments.steps:
        command = steps[step]
        row = measured(step, *command)
        yield {
            "step": step,
            "method": arguments.method,
            "bits_per_weight": arguments.bits,
            "jobs": arguments.jobs,
            "size_bytes": total,
            "largest_tensor_bytes": largest,
            "file_bytes": small.stat().st_size,
            **row,
            "megabytes_per_second": total / 1e6 / row["seconds"],
            "allowed_megabytes": 6 * largest / 1e6 + 300,
            "predicted_seconds": predicted[step],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="1GB", help="of the checkpoint, such as 300MB or 8GB")
    parser.add_argument("--method", default="round-to-nearest")
    parser.add_argument("--bits-per-weight", dest="bits", type=float)
    parser.add_argument("--jobs", type=int, help="tensors compressed at a time")
    steps = ["compress", "verify", "decompress"]
    parser.add_argument("--steps", nargs="+", default=steps, choices=steps, help="compress first")
    parser.add_argument("--folder", type=Path, help="where files go; they are removed")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    print("step        seconds  processor   MB/s  peak MB  allowed  predicted s", flush=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for row in rows_of(Path(folder), arguments):
            rows.append(row)
            low, high = row["predicted_seconds"]
            print(
                f"{row['step']:<10}{row['seconds']:9.1f}{row['processor_seconds']:11.1f}"
                f"{row['megabytes_per_second']:7.1f}{row['peak_megabytes']:9.0f}"
                f"{row['allowed_megabytes']:9.0f}  {low:.0f} to {high:.0f}",
                flush=True,
            )
    print(f"{rows[0]['size_bytes']:,} bytes in {rows[0]['file_bytes']:,}")
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
