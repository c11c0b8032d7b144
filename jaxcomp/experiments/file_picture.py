"""A picture of a compressed model: bits of its tensors, histograms of weights and codebooks."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxcomp.checkpoints.tensors import is_weight, with_own_dtype
from jaxcomp.decoder import KEPT, Contents, File, FileEntry, inspect, open_model
from jaxcomp.decoder.arrays import values_of
from jaxcomp.decoder.files import Entry
from jaxcomp.experiments.drawing import (
    BLUE,
    GREY,
    INK,
    SMALL,
    axis_labels,
    encoded,
    form_of,
    light_grid,
    new_figure,
    own_look,
    panel_title,
    plain_log_ticks,
)
from jaxcomp.storage import PathLike, write_bytes_atomic

# Tensors that have a bar, and those that have a histogram: the largest.
_MOST_BARS, _MOST_HISTOGRAMS, _COLUMNS, _BINS = 40, 9, 3, 120
_CODED, _UNCODED = BLUE, "#BBBBBB"
# Codebooks with more entries than this are not drawn: their marks would be a surface.
_MOST_MARKS = 64


def save_picture(source: PathLike, target: PathLike) -> None:
    """Draw a compressed model to a file, written whole or not at all.

    Raises:
        FormatError: if the model is damaged.
        ValueError: if the name of the target ends with no form of pictures.
        OSError: if a file cannot be read or written.
    """
    form = form_of(target)
    write_bytes_atomic(target, encoded(picture(source), form))


@own_look()
def picture(source: PathLike) -> Figure:
    """Return the picture of a compressed model; its largest compressed tensors are decoded."""
    contents = inspect(source)
    shown = sorted(contents.entries, key=lambda entry: -entry.size_bytes)[:_MOST_BARS]
    with open_model(source) as file:
        weights = [
            entry for entry in file.entries if entry.method != KEPT and is_weight(entry.dtype)
        ]
        weights = sorted(weights, key=lambda entry: -math.prod(entry.shape))[:_MOST_HISTOGRAMS]
        rows = -(-len(weights) // _COLUMNS)
        heights = [0.6 + 0.17 * len(shown), *[1.9] * rows]
        figure = new_figure(
            9.0,
            0.9 + sum(heights),
            Path(source).name if not isinstance(source, bytes) else "model",
            f"{contents.original_bytes:,} bytes in {contents.size_bytes:,}, "
            f"{contents.original_bytes / contents.size_bytes:.1f} times smaller. Below: weights as "
            "they come back, ticks at the centres of their codebook.",
        )
        # Two figures, so that long names above leave the histograms their width.
        above, below = figure.subfigures(
            2, 1, squeeze=False, height_ratios=[heights[0], max(sum(heights[1:]), 0.1)]
        )[:, 0]
        _draw_bits(above.subplots(), contents, shown)
        for place, entry in enumerate(weights):
            axis = below.add_subplot(rows, _COLUMNS, 1 + place)
            _draw_weights(axis, file, entry, is_first=place % _COLUMNS == 0)
    return figure


def _draw_bits(axis: Axes, contents: Contents, shown: Sequence[FileEntry]) -> None:
    """Draw bits per number of tensors, the largest section on top."""
    places = np.arange(len(shown))[::-1]
    bits = [0.0 if math.isnan(entry.bits_per_weight) else entry.bits_per_weight for entry in shown]
    colours = [_UNCODED if entry.method == KEPT else _CODED for entry in shown]
    axis.barh(places, bits, color=colours, height=0.7)
    for place, entry, number in zip(places, shown, bits, strict=True):
        share = f"{entry.coder}, {entry.share:.1%} of the file"
        axis.annotate(
            share, (number, float(place)), xytext=(3, 0), textcoords="offset points",
            va="center", fontsize=SMALL, color=GREY,
        )  # fmt: skip
    axis.set_yticks(places, [_brief(entry.path) for entry in shown])
    axis.set_ylim(-0.7, len(shown) - 0.3)
    axis.set_xlim(0, 1.35 * max([1.0, *bits]))
    light_grid(axis)
    axis.grid(visible=False, axis="y")
    left_out = len(contents.entries) - len(shown)
    rest = f"; {left_out} smaller ones are not shown" if left_out else ""
    panel_title(axis, f"Bits per number (grey: kept as they were){rest}")
    axis_labels(axis, x="bits per number")


def _draw_weights(axis: Axes, file: File, entry: Entry, *, is_first: bool) -> None:
    """Draw the histogram of a tensor, and its codebook as marks below."""
    parts = file.parts(entry)
    values = with_own_dtype(values_of(parts, entry.dtype, entry.shape), entry.dtype)
    values = values.astype(np.float64).reshape(-1)
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, [0.0005, 0.9995]) if values.size else (0.0, 0.0)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    low, high = low - 0.03 * (high - low), high + 0.03 * (high - low)
    axis.hist(values, bins=_BINS, range=(low, high), color=_CODED, alpha=0.85)
    axis.set_yscale("log")
    plain_log_ticks(axis.yaxis)
    axis.set_xlim(low, high)
    codebook = parts.codebook
    has_marks = codebook is not None and codebook.shape[::2] == (1, 1)
    if codebook is not None and has_marks and parts.scales is None:
        entries = with_own_dtype(codebook, entry.dtype).astype(np.float64).reshape(-1)
        if len(entries) <= _MOST_MARKS:
            marks = np.full(len(entries), 0.02)
            axis.plot(
                entries, marks, "|", color=INK, markersize=6, transform=axis.get_xaxis_transform()
            )
    number = "" if codebook is None else f", {codebook.shape[1]} centres"
    light_grid(axis)
    panel_title(axis, _brief(entry.path, 32), f"{entry.method.replace('_', ' ')}{number}")
    axis_labels(axis, x="value of a weight", y="number of weights" if is_first else "")


def _brief(path: str, length: int = 48) -> str:
    """Return the end of a long name: what tells tensors apart stands there."""
    return path if len(path) <= length else "..." + path[3 - length :]
