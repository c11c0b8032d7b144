"""Damaged files: each is refused by one sentence, or reads as what was written.

    python benchmarks/fuzz_files.py [--files 100000] [--seed 0] [--out result.json]

Bits, bytes, cuts and moves anywhere, or in the header or a section under checksums that match. What
is damaged is the golden file of all that the format has. Every file is read by the decoder, one in
ten by `jaxcomp.load` as well. The slowest time is that of one file.
"""

import argparse
import contextlib
import json
import random
import resource
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from file_problems import bits_of  # noqa: E402
from forgeries import random_file  # noqa: E402

import jaxcomp  # noqa: E402
from jaxcomp.decoder import File, FormatError  # noqa: E402

MAX_BYTES = 1 << 20


def leaves(node):
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, list | tuple):
        return [leaf for part in node for leaf in leaves(part)]
    return [bits_of(node)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    number, seed = arguments.files, arguments.seed
    data = (ROOT / "tests/decoder/golden/model.jxc").read_bytes()
    rng = random.Random(seed)
    with File(data) as file:
        expected = leaves(file.tree())
    found: Counter[str] = Counter()
    slowest, start = 0.0, time.perf_counter()
    for place in range(number):
        damaged = random_file(data, rng)
        began = time.perf_counter()
        try:
            with File(damaged, MAX_BYTES) as file:
                own = leaves(file.tree())
            assert own == expected, f"file {place} of seed {seed} reads as something else"
            found["as it was"] += 1
        except FormatError as error:
            found[error.what.split("'")[0]] += 1
        if place % 10 == 0:
            with contextlib.suppress(FormatError):
                jaxcomp.load(damaged, max_bytes=MAX_BYTES)
        slowest = max(slowest, time.perf_counter() - began)
    for what, times in found.most_common():
        print(f"{times:8,}  {what}")
    result = {
        "files": number,
        "seed": seed,
        "read_as_written": found["as it was"],
        "refused": number - found["as it was"],
        "slowest_seconds": slowest,
        "peak_resident_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "seconds": time.perf_counter() - start,
    }
    print(json.dumps(result))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
