"""The sweep of the paper as its users run it."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from accelerator_parts.work import Work, send


def sweep_part(work: Work) -> None:
    """The command as its users run it, with caches of its own that are empty."""
    options = ["--preset", "paper", "--models", "20"]
    if not work.is_full:
        options = ["--preset", "paper", "--models", "2", "--epochs", "1", "--train-size", "100"]
        options += ["--validation-size", "100", "--num-clusters", "2", "--importance", "none"]
        options += ["--diameter-penalty", "0", "--width", "0.05"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, note = os.environ.get("JAXCOMP_DATA_DIR"), "MNIST"
        if not data:
            data, note = str(write_images(folder / "mnist", work.is_full)), "random images"
        command = [sys.executable, "-m", "jaxcomp", "sweep", *options, "--out", str(folder / "run")]
        start, last = time.perf_counter(), ""
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=os.environ | {"JAXCOMP_CACHE_DIR": str(folder), "JAXCOMP_DATA_DIR": data},
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                last = line.strip() or last
                # How far it is, for the row of a part that is ended.
                send("progress", last)
        seconds = time.perf_counter() - start
    name = "--preset paper --models 20" if work.is_full else "--preset paper, made small"
    if process.returncode:
        work.emit(name, note=last)
    else:
        work.emit(name, seconds=seconds, num_calls=1, note=f"{note}, compiling included")


def write_images(folder: Path, is_full: bool) -> Path:
    """Write IDX files like MNIST's: images of ten classes, each a pattern under noise."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 256, (10, 28, 28), np.int16)
    for name, number in (("train", 60_000), ("t10k", 10_000)):
        number = number if is_full else number // 20
        labels = rng.integers(0, 10, number)
        noise = rng.integers(0, 256, (number, 28, 28), np.int16)
        images = ((patterns[labels] + 3 * noise) // 4).astype(np.uint8)
        for kind, values in (("images-idx3", images), ("labels-idx1", labels.astype(np.uint8))):
            sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
            header = bytes([0, 0, 8, values.ndim]) + sizes
            (folder / f"{name}-{kind}-ubyte").write_bytes(header + values.tobytes())
    return folder
