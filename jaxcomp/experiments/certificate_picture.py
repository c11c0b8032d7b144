"""A picture of certificates: the bound against the bytes that it charges, and held-out labels."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxcomp.certificates import Report
from jaxcomp.certificates.claims import file_bound
from jaxcomp.experiments import drawing
from jaxcomp.storage import PathLike, write_bytes_atomic

_PLACES = 120


def save_certificates(report: Report, target: PathLike) -> None:
    """Draw a table of certificates to a file, written whole or not at all.

    Raises:
        ValueError: if the name of the target ends with no form of pictures.
        OSError: if it cannot be written.
    """
    form = drawing.form_of(target)
    write_bytes_atomic(target, drawing.encoded(plot_certificates(report), form))


@drawing.own_look()
def plot_certificates(report: Report) -> Figure:
    """Return the picture of a table of certificates.

    Rows that charge bytes are points; the line through each says what files of other sizes would
    have at its training error. Rows that charge none are dashed lines over all sizes.
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
    most = max([row.size_bits / 8 for row in sized], default=100.0)
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
    if report.test_error is not None:
        axis.axhline(report.test_error, color=drawing.GREY, linestyle=":", linewidth=1.2)
        entries.append(drawing.sample("test error, no certificate", drawing.GREY, dashes=":"))
    axis.set_xscale("log")
    axis.set_xlim(sizes[0], sizes[-1])
    axis.set_ylim(0, min(1.0, 1.6 * max(row.bound for row in report.rows)))
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
