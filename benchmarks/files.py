"""Files of compressed models: bytes against estimates and entropies, and how fast they are.

    JAXCOMP_DATA_DIR=DATA python benchmarks/files.py [--repeats 3] [--out result.json]

LeNet-300-100 (`models/lenet300_mnist.safetensors` in DATA), entropy-constrained without data, with
static codes (`fast`) and with contexts (`best`). Every file is read again, and its weights compared
bit for bit with those that were written. Times are of the processor, medians over the repeats, in
MB of float32 per second and in codes per second; compiling and compressing are not in them.
"""

import argparse
import json
import os
import platform
import statistics
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

import jaxcomp
from jaxcomp.coding.sizes import empirical_entropy_bits
from jaxcomp.compressed import to_bytes


def median_seconds(function: Any, repeats: int) -> tuple[Any, float]:
    times = []
    for _ in range(repeats):
        start = time.process_time()
        found = function()
        times.append(time.process_time() - start)
    return found, statistics.median(times)


def order0_bytes(tree: jaxcomp.CompressedTree) -> float:
    counts = [np.asarray(tree.tensor(path).counts) for path in tree.paths]
    return sum(float(own.sum() * empirical_entropy_bits(own)) for own in counts) / 8


def measure(params: Any, bits: float, effort: Any, repeats: int) -> dict[str, Any]:
    tree = jaxcomp.compress(params, bits_per_weight=bits)
    data, encoding = median_seconds(lambda: to_bytes(tree, effort=effort), repeats)
    found, decoding = median_seconds(lambda: jaxcomp.load(data), repeats)
    for name, values in found.params().items():
        assert np.asarray(values).tobytes() == np.asarray(tree.params()[name]).tobytes(), name
    size = sum(values.nbytes for values in params.values())
    num_codes = sum(tree.codes(path).size for path in tree.paths)
    return {
        "bits_per_weight": bits,
        "effort": effort,
        "file_bytes": len(data),
        "bare_bytes": len(to_bytes(tree, effort=effort, container="bare")),
        "overhead_bytes": jaxcomp.inspect(data).overhead_bytes,
        "estimated_bytes": tree.size_bits / 8,
        "order0_bytes_of_codes": order0_bytes(tree),
        "encoded_mb_per_second": size / 1e6 / encoding,
        "decoded_mb_per_second": size / 1e6 / decoding,
        "decoded_codes_per_second": num_codes / decoding,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    path = Path(os.environ.get("JAXCOMP_DATA_DIR", "data")) / "models/lenet300_mnist.safetensors"
    if not path.exists():
        print(f"{path} is missing; set JAXCOMP_DATA_DIR to the folder that holds it.")
        return
    params = load_file(path)
    rows = [
        measure(params, bits, effort, arguments.repeats)
        for bits in (3, 2)
        for effort in ("fast", "best")
    ]
    print("  ".join(rows[0]))
    for row in rows:
        print(
            "  ".join(
                f"{value:,.4g}" if isinstance(value, float) else f"{value}"
                for value in row.values()
            )
        )
    result = {
        "rows": rows,
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in ("jax", "numpy", "constriction")},
    }
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
