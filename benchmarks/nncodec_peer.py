"""Code a network by the ISO/IEC 15938-17 codec, for `files.py` and others to compare with.

    python3.11 -m venv NNC && NNC/bin/pip install "numpy<2" nncodec safetensors
    NNC/bin/python benchmarks/nncodec_peer.py MODEL.safetensors --qp -34 -26 -20 --out peer.json

The codec asks for a NumPy that JAX does without, so that this script has an environment of its own
and imports neither. For every quantization parameter and both modes (dependent scalar quantization,
by a trellis, or not) it prints a row, and writes it to the JSON: bytes, seconds to encode and
decode, and the squared error of all weights over their energy. `--decoded FOLDER` keeps what was
decoded, a file of safetensors each, whose metrics are then taken where the network runs. Options
that are not named are the codec's defaults; leaves that are not float32 are left out.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np


def coded(
    weights: dict[str, np.ndarray], qp: int, is_dependent: bool, is_opt: bool
) -> tuple[bytes, dict[str, np.ndarray], float, float]:
    """Return the stream, what it decodes to, and the seconds for each."""
    from nncodec.nn import decode, encode

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        options = {"qp": qp, "use_dq": is_dependent, "opt_qp": is_opt, "verbose": False}
        start = time.perf_counter()
        stream = encode(weights, {**options, "results": folder})
        encoded = time.perf_counter()
        found = decode(stream)
        stop = time.perf_counter()
    return bytes(stream), found, encoded - start, stop - encoded


def main() -> None:
    """Code the network at every setting, and write what that costs and loses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="weights, in the format safetensors")
    parser.add_argument("--qp", type=int, nargs="+", default=list(range(-34, -13, 2)))
    parser.add_argument("--optimise-qp", action="store_true", help="let the codec vary it by layer")
    parser.add_argument("--out", type=Path, help="JSON to write, one row a setting")
    parser.add_argument("--decoded", type=Path, help="folder for decoded weights")
    options = parser.parse_args()
    try:
        import nncodec  # noqa: F401
        from safetensors.numpy import load_file, save_file
    except ImportError as error:
        sys.exit(f"{error}. The docstring says how to make an environment: --help, or the file.")

    # It takes no 64-bit integers (positions, counters).
    weights = {k: v for k, v in load_file(options.model).items() if v.dtype == np.float32}
    energy = sum(float(np.sum(np.square(value, dtype=np.float64))) for value in weights.values())
    rows: list[dict[str, Any]] = []
    print("| qp | dependent | bytes | relative squared error | encode s | decode s |")
    print("|---|---|---|---|---|---|", flush=True)
    for qp in options.qp:
        for is_dependent in (True, False):
            stream, found, encode_s, decode_s = coded(
                weights, qp, is_dependent, options.optimise_qp
            )
            error = sum(
                float(np.sum(np.square(np.asarray(found[name], np.float64) - value)))
                for name, value in weights.items()
            )
            row: dict[str, Any] = {
                "qp": qp,
                "dependent": is_dependent,
                "bytes": len(stream),
                "relative_squared_error": error / energy,
                "encode_seconds": encode_s,
                "decode_seconds": decode_s,
            }
            if options.decoded is not None:
                options.decoded.mkdir(parents=True, exist_ok=True)
                path = options.decoded / f"qp{qp}{'-dependent' if is_dependent else ''}.safetensors"
                save_file({name: np.asarray(value) for name, value in found.items()}, path)
                row["decoded"] = str(path)
            rows.append(row)
            print(
                f"| {qp} | {is_dependent} | {len(stream)} | {error / energy:.3e} "
                f"| {encode_s:.2f} | {decode_s:.2f} |",
                flush=True,
            )
            if options.out is not None:
                options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
