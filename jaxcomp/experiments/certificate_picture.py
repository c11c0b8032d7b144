"""A picture of certificates: the bound against the bytes that it charges, and held-out labels.

Networks that were trained for their files (`jaxcomp train-small`) stand beside them as a series.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxcomp.certificates import Report
from jaxcomp.certificates.claims import file_bound
from jaxcomp.experiments import drawing
from jaxcomp.experiments.train_small.results import TrainSmallResult
from jaxcomp.storage import PathLike, write_bytes_atomic

_MARKERS = ("s", "^", "D")
_PLACES = 120


class Series(NamedTuple):
    """Certificates of files that were made at several sizes.

    Attributes:
        name: in the legend.
        size_bytes: of each.
        bound: of each, in [0, 1].
    """

    name: str
    size_bytes: Float[np.ndarray, " files"]
    bound: Float[np.ndarray, " files"]


def trained_series(result: TrainSmallResult) -> list[Series]:
    """Return the files of a run of `train-small`: a series for each coder, a point a seed."""
    table = result.table
    return [
        Series(
            f"trained for the file, {coder}",
            *(table.loc[table["coder"] == coder, name].to_numpy() for name in ("bytes", "bound")),
        )
        for coder in result.config.coders
    ]


def save_certificates(
    report: Report, target: PathLike, trained: TrainSmallResult | None = None
) -> None:
    """Draw a table of certificates to a file, written whole or not at all.

    Args:
        report: the table.
        target: .png, .pdf or .svg.
        trained: a run whose files stand beside it, at its own delta and examples; None for none.

    Raises:
        ValueError: if the name of the target ends with no form of pictures.
        OSError: if it cannot be written.
    """
    form = drawing.form_of(target)
    series = [] if trained is None else trained_series(trained)
    write_bytes_atomic(target, drawing.encoded(plot_certificates(report, series), form))


@drawing.own_look()
def plot_certificates(report: Report, series: Sequence[Series] = ()) -> Figure:
    """Return the picture of a table of certificates.

    Rows that charge bytes are points; the line through each says what files of other sizes would
    have at its training error. Rows that charge none are dashed lines over all sizes.

    Args:
        report: the table.
        series: of other files, each a marker of its own.
    """
    sized = [row for row in report.rows if row.size_bits > 0]
    figure = drawing.new_figure(
        7.5,
        4.6,
        "Certificates against bytes",
        f"Each bound holds alone with probability {1 - report.delta:g}; lower is better. Lines "
        "through points: what files of\nother sizes would have at the same training error. Dashed: "
        "what charges no bytes.",
    )
    axis = figure.subplots()
    charged = [row.size_bits / 8 for row in sized]
    charged += [float(size) for own in series for size in own.size_bytes]
    most = max(charged, default=100.0)
    sizes = np.geomspace(min(10.0, most / 2), 4 * most, _PLACES)
    entries = []
    for row, colour in zip(report.rows, itertools.cycle(drawing.COLOURS), strict=False):
        if row.size_bits > 0:
            axis.plot(row.size_bits / 8, row.bound, "o", color=colour, markersize=6)
            if row.size_bytes is not None and len(row.deltas) == 1:
                line = bounds_of_sizes(row.error, row.num_examples, 8 * sizes, report.delta)
                axis.plot(sizes, line, color=colour, linewidth=1.0)
            entries.append(drawing.sample(row.name, colour, marker="o"))
        else:
            axis.axhline(row.bound, color=colour, linestyle="--", linewidth=1.2)
            entries.append(drawing.sample(row.name, colour, dashes="--"))
    for own, marker in zip(series, _MARKERS * len(series), strict=False):
        axis.plot(own.size_bytes, own.bound, marker, color=drawing.INK, markersize=4.5)
        entries.append(drawing.sample(own.name, drawing.INK, marker=marker))
    if report.test_error is not None:
        axis.axhline(report.test_error, color=drawing.GREY, linestyle=":", linewidth=1.2)
        entries.append(drawing.sample("test error, no certificate", drawing.GREY, dashes=":"))
    axis.set_xscale("log")
    axis.set_xlim(sizes[0], sizes[-1])
    highest = max([row.bound for row in report.rows] + [own.bound.max() for own in series])
    axis.set_ylim(0, min(1.0, 1.6 * highest))
    percent_axes(axis)
    drawing.plain_log_ticks(axis.xaxis)
    drawing.panel(axis, x="bytes that are charged", y="bound of the share of examples wrong")
    half = -(-len(entries) // 2)
    drawing.legend_below(figure, [("", entries[:half]), ("", entries[half:])])
    return figure


def bounds_of_sizes(
    error: float, num_examples: int, size_bits: Float[np.ndarray, " s"], delta: float
) -> Float[np.ndarray, " s"]:
    """Return the certificates of descriptions of these sizes, all told, at one error."""
    errors = math.floor(error * num_examples + 0.5)
    return np.asarray(file_bound(errors, num_examples, jnp.asarray(size_bits), delta))


def percent_axes(axis: Axes) -> None:
    """Write errors in per cent, as many digits as they need."""
    axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
