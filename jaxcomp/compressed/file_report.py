"""What became of a checkpoint that was compressed to a file, in numbers and as text."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcomp.checkpoints import Checkpoint
from jaxcomp.compressed.tensors import CompressedTensor, TensorLayout
from jaxcomp.compressed.tree import CompressedTree
from jaxcomp.decoder import KEPT, Contents
from jaxcomp.storage import json_line
from jaxcomp.trees.paths import shorten


class Reached(NamedTuple):
    """A budget and what was made of it.

    Attributes:
        name: as the caller calls it.
        value: as the caller gave it.
        reached: in the same unit.
    """

    name: str
    value: float
    reached: float


@dataclass(frozen=True)
class FileReport:
    """What became of a checkpoint; prints as text.

    Attributes:
        source: that was read.
        target: that was written.
        format: of the source.
        contents: of the file, with the mean squared error of each compressed array.
        kept: why the others are as they were, and which.
        left_out: what is no array of the model, and not in the file.
        budget: None if there was none.
        num_weights: of the compressed arrays.
        bits_per_weight: their sections over them, codes and codebooks.
        mean_squared_error: over the compressed weights.
        signal_to_noise_db: likewise.
        losses: of the original and of the compressed model, if there were data.
    """

    source: str
    target: str
    format: str
    contents: Contents
    kept: Mapping[str, tuple[str, ...]]
    left_out: tuple[str, ...]
    budget: Reached | None
    num_weights: int
    bits_per_weight: float
    mean_squared_error: float
    signal_to_noise_db: float
    losses: tuple[float, float] | None

    @property
    def ratio(self) -> float:
        """Bytes of all arrays before, over those of the file."""
        return self.contents.original_bytes / self.contents.size_bytes

    def __str__(self) -> str:
        compressed = sum(entry.method != KEPT for entry in self.contents.entries)
        lines = [
            f"{self.source} -> {self.target}",
            f"{self.contents.original_bytes:,} bytes in {self.contents.size_bytes:,}, ratio "
            f"{self.ratio:.2f}",
        ]
        if compressed:
            lines.append(
                f"{self.num_weights:,} weights in {compressed} tensors: {self.bits_per_weight:.3f} "
                f"bits per weight, mean squared error {self.mean_squared_error:.4g}, signal to "
                f"noise {self.signal_to_noise_db:.1f} dB"
            )
        if self.budget is not None:
            name, value, reached = self.budget
            lines.append(f"{name} {value:,.6g} allowed, {reached:,.6g} reached")
        if self.losses is not None:
            before, after = self.losses
            lines.append(f"loss {before:.6g} before, {after:.6g} after ({after - before:+.3g})")
        lines += [
            f"kept as they are, {why}: {len(paths)} ({shorten(paths, 3)})"
            for why, paths in self.kept.items()
        ]
        if self.left_out:
            lines.append(f"left out, no arrays of the model: {shorten(self.left_out)}")
        return "\n".join([*lines, "", str(self.contents)])

    def to_json(self) -> str:
        """Return everything as one line of JSON; what has no value as null."""
        told = {
            "source": self.source,
            "target": self.target,
            "format": self.format,
            "ratio": self.ratio,
            "num_weights": self.num_weights,
            "bits_per_weight": self.bits_per_weight,
            "mean_squared_error": self.mean_squared_error,
            "signal_to_noise_db": self.signal_to_noise_db,
            "budget": None if self.budget is None else self.budget._asdict(),
            "losses": self.losses,
            "kept": {why: list(paths) for why, paths in self.kept.items()},
            "left_out": list(self.left_out),
            **self.contents.to_dict(),
        }
        return json_line(told)


def file_report(
    checkpoint: Checkpoint,
    target: Path,
    tree: CompressedTree,
    contents: Contents,
    *,
    reasons: Mapping[str, str],
    goal: tuple[str, float] | None,
    losses: tuple[float, float] | None,
) -> FileReport:
    """Return the report on a tree that was written.

    Args:
        checkpoint: where it came from.
        target: where it went.
        tree: that was written.
        contents: of the file.
        reasons: why paths were kept.
        goal: name and value of the budget.
        losses: before and after.
    """
    lost = mean_squared_errors(tree)
    entries = tuple(
        entry._replace(mean_squared_error=lost.get(entry.path, math.nan))
        for entry in contents.entries
    )
    kept: dict[str, list[str]] = {}
    for entry in entries:
        if entry.method == KEPT:
            kept.setdefault(reasons[entry.path], []).append(entry.path)
    tensors = [leaf.measures for leaf in tree.leaves if isinstance(leaf, CompressedTensor)]
    number = sum(math.prod(entry.shape) for entry in entries if entry.method != KEPT)
    noise = math.fsum(_sum(own.squared_error, own.error_exponent) for own in tensors)
    energy = math.fsum(_sum(own.energy, own.energy_exponent) for own in tensors)
    reached = {
        "bits_per_weight": bits_per_weight(contents),
        "size_bytes": float(contents.size_bytes),
        "ratio": contents.original_bytes / contents.size_bytes,
        "mean_squared_error": noise / number if number else math.nan,
        "loss_increase": math.nan if losses is None else losses[1] - losses[0],
    }
    return FileReport(
        source=str(checkpoint.path),
        target=str(target),
        format=checkpoint.format,
        contents=contents._replace(entries=entries),
        kept={why: tuple(paths) for why, paths in kept.items()},
        left_out=checkpoint.left_out,
        budget=None if goal is None else Reached(*goal, reached[goal[0]]),
        num_weights=number,
        bits_per_weight=reached["bits_per_weight"],
        mean_squared_error=reached["mean_squared_error"],
        signal_to_noise_db=10 * math.log10(energy / noise) if noise > 0 < energy else math.nan,
        losses=losses,
    )


def bits_per_weight(contents: Contents) -> float:
    """Return the bits of the compressed arrays of a file over their numbers; NaN for none."""
    compressed = [entry for entry in contents.entries if entry.method != KEPT]
    number = sum(math.prod(entry.shape) for entry in compressed)
    return 8 * sum(entry.size_bytes for entry in compressed) / number if number else math.nan


def mean_squared_errors(tree: CompressedTree) -> dict[str, float]:
    """Return what each compressed array of a tree lost, by the first of its paths."""
    errors = {}
    for leaf, layout in zip(tree.leaves, tree.layout.leaves, strict=True):
        if isinstance(leaf, CompressedTensor) and isinstance(layout, TensorLayout):
            error = _sum(leaf.measures.squared_error, leaf.measures.error_exponent)
            errors[layout.paths[0]] = error / math.prod(layout.shape)
    return errors


def _sum(numbers: Any, exponents: Any) -> float:
    return float(np.sum(np.ldexp(np.asarray(numbers, np.float64), np.asarray(exponents))))
