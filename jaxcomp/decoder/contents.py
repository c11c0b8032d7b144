"""What is in a file of a compressed model, by its header alone."""

import json
import math
import os
from typing import Any, NamedTuple

from jaxcomp.decoder.arrays import DTYPES
from jaxcomp.decoder.opening import CodesFile, open_model


class FileEntry(NamedTuple):
    """One stored array in numbers.

    Attributes:
        path: where it stands; the first place of a tied one.
        shape: of the array.
        dtype: of the array.
        method: that compressed it, or "kept".
        coder: of most of its symbols: plain, table, distance or contexts; or indices of candidates.
        size_bytes: of its section; of indices what `CodesFile` says.
        bits_per_weight: of those bytes over its numbers; NaN for none.
        share: of the file.
        mean_squared_error: of its numbers, NaN if the file does not say it or they are kept.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    method: str
    coder: str
    size_bytes: int
    bits_per_weight: float
    share: float
    mean_squared_error: float = math.nan


class CodeContents(NamedTuple):
    """A file of random codes in numbers.

    Attributes:
        num_blocks: each of which has an index.
        block_bits: of an index.
        sharing: weights of an array that have one value in common, up to a sign.
        seed: of the generator.
        index_bytes: of all indices.
        scale_bytes: of the scales of all arrays.
        bits_per_weight: of the whole file over all weights.
        ratio: bytes of all weights in float32 over those of the file.
    """

    num_blocks: int
    block_bits: int
    sharing: int
    seed: int
    index_bytes: int
    scale_bytes: int
    bits_per_weight: float
    ratio: float

    def __str__(self) -> str:
        shared = "no value is shared"
        if self.sharing > 1:
            shared = f"{self.sharing:,} weights share a value"
        return (
            f"{self.num_blocks:,} blocks with an index of {self.block_bits} bits, "
            f"{self.index_bytes:,} bytes; scales {self.scale_bytes:,} bytes; {shared}; "
            f"{self.bits_per_weight:.3g} bits/weight of the whole file"
        )


class Contents(NamedTuple):
    """What is in a file, a table as text.

    Attributes:
        entries: one for each stored array.
        size_bytes: of the file.
        overhead_bytes: what is in no section: names, shapes, checks.
        original_bytes: of all stored arrays.
        made: how the tree was made, if the file says so.
        code: of a file of random codes; None for others.
    """

    entries: tuple[FileEntry, ...]
    size_bytes: int
    overhead_bytes: int
    original_bytes: int
    made: Any
    code: CodeContents | None = None

    def of_size(self, size_bytes: int) -> "Contents":
        """Return what is in a file of other size: one that holds the sections of several."""
        sections = sum(entry.size_bytes for entry in self.entries)
        entries = (entry._replace(share=entry.size_bytes / size_bytes) for entry in self.entries)
        return self._replace(
            entries=tuple(entries), size_bytes=size_bytes, overhead_bytes=size_bytes - sections
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as dicts and lists of text and numbers, NaN among them."""
        told = self._asdict()
        told["code"] = None if self.code is None else self.code._asdict()
        return told | {"entries": [entry._asdict() for entry in self.entries]}

    def __str__(self) -> str:
        rows = [_HEADER, *(_row(entry) for entry in self.entries)]
        if all(math.isnan(entry.mean_squared_error) for entry in self.entries):
            rows = [row[:-1] for row in rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if place < 5 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        ratio = self.original_bytes / self.size_bytes
        total = (
            f"{self.original_bytes:,} bytes in {self.size_bytes:,}, ratio {ratio:.2f}; "
            f"{self.overhead_bytes:,} of them names, shapes and checks"
        )
        told = self.made
        if isinstance(told, dict):  # the table has the errors
            told = {key: value for key, value in told.items() if key != ERRORS}
        made = [] if self.made is None else [f"made by {json.dumps(told)}"]
        code = [] if self.code is None else [str(self.code)]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:], total, *code, *made])


def inspect(source: str | os.PathLike[str] | bytes) -> Contents:
    """Return what is in a file, by its header alone.

    Args:
        source: path of the file, or its bytes.

    Raises:
        FormatError: if the header is damaged, or none of jaxcomp.
        OSError: if the file cannot be read.
    """
    # Nothing is allocated: arrays of any size are told.
    with open_model(source, max_bytes=1 << 62) as file:
        entries, original = [], 0
        for entry in file.entries:
            number = math.prod(entry.shape)
            original += -(-DTYPES[entry.dtype][0] * number // 8)
            entries.append(
                FileEntry(
                    path=entry.path,
                    shape=entry.shape,
                    dtype=entry.dtype,
                    method=entry.method,
                    coder=_CODERS.get(entry.coder, "unknown"),
                    size_bytes=entry.length,
                    bits_per_weight=8 * entry.length / number if number else math.nan,
                    share=entry.length / file.size,
                    mean_squared_error=_error_of(file.made, entry.path),
                )
            )
        sections = sum(entry.length for entry in file.entries)
        code = _code_of(file) if isinstance(file, CodesFile) else None
        return Contents(tuple(entries), file.size, file.size - sections, original, file.made, code)


# What a record of how a file was made calls the mean squared errors of its arrays, by path.
ERRORS = "mean_squared_errors"
_HEADER = ["leaf", "shape", "dtype", "method", "coder", "bytes", "bits/weight", "share", "MSE"]
_CODERS = {"p": "plain", "t": "table", "d": "distance", "c": "contexts", "i": "indices"}


def _code_of(file: CodesFile) -> CodeContents:
    layout, number = file.layout, sum(file.layout.sizes)
    return CodeContents(
        num_blocks=layout.num_blocks,
        block_bits=layout.block_bits,
        sharing=layout.sharing,
        seed=layout.seed,
        index_bytes=layout.index_bytes,
        scale_bytes=4 * len(layout.shapes),
        bits_per_weight=8 * file.size / number,
        ratio=4 * number / file.size,
    )


def _row(entry: FileEntry) -> list[str]:
    return [
        entry.path or "(the whole tree)",
        "x".join(map(str, entry.shape)) or "scalar",
        entry.dtype,
        entry.method,
        entry.coder,
        f"{entry.size_bytes:,}",
        "" if math.isnan(entry.bits_per_weight) else f"{entry.bits_per_weight:.2f}",
        f"{entry.share:.1%}",
        "" if math.isnan(entry.mean_squared_error) else f"{entry.mean_squared_error:.3g}",
    ]


def _error_of(made: Any, path: str) -> float:
    """Return what a file says that an array lost, NaN if it does not."""
    told = made.get(ERRORS) if isinstance(made, dict) else None
    error = told.get(path) if isinstance(told, dict) else None
    return error if isinstance(error, float) else math.nan
