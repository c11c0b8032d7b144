"""The curve: errors and certificates against the bytes of files."""

from itertools import product

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from jaxcomp.experiments import drawing
from jaxcomp.experiments.train_small.config import TrainSmallConfig
from jaxcomp.experiments.train_small.report import PUBLISHED, at_point, mean_of

_TEST, _TRAINING, _CERTIFICATE = drawing.ORANGE, drawing.GREEN, drawing.BLUE
_DASHES = {"entropy": "-", "random-codes": "--"}
_COLUMNS = (
    ("test_error", "test error", _TEST, "o"),
    ("train_error", "training error", _TRAINING, "v"),
    ("bound", "certificate", _CERTIFICATE, "s"),
)


def plot_curve(config: TrainSmallConfig, table: pd.DataFrame) -> Figure:
    """Return errors and certificates against bytes: means over seeds, intervals of 95 %."""
    is_nameless = config.network == config.dataset
    name = f"{'A small network' if is_nameless else config.network} on {config.dataset}"
    figure = drawing.new_figure(
        7.5,
        4.6,
        f"{name}, trained for its file",
        f"Means over {config.models} seeds, bars: intervals of 95 % over them. Fewer bytes cost "
        "errors; the certificate is what the bytes\nalone promise for examples that nobody has "
        "seen.",
    )
    axis = figure.subplots()
    for coder, (column, _, colour, marker) in product(config.coders, _COLUMNS):
        points = []
        for point in config.points:
            rows = at_point(table, point)
            if point.coder == coder:
                points.append((*mean_of(rows, "bytes"), *mean_of(rows, column)))
        size, width, height, spread = np.nan_to_num(np.asarray(sorted(points)).T)
        # On a logarithmic axis nothing goes below zero.
        low = np.minimum(spread, 0.99 * height)
        axis.errorbar(
            size,
            100 * height,
            xerr=width,
            yerr=[100 * low, 100 * spread],
            color=colour,
            marker=marker,
            markersize=4,
            capsize=2,
            linewidth=1.2,
            linestyle=_DASHES[coder],
        )
    published = PUBLISHED.get((config.dataset, config.network))
    entries = [drawing.sample(name, colour, marker=marker) for _, name, colour, marker in _COLUMNS]
    if len(config.coders) > 1:
        entries += [drawing.sample(own, drawing.INK, dashes=_DASHES[own]) for own in config.coders]
    if published is not None:
        axis.plot(published[0], 100 * published[1], "*", color=drawing.INK, markersize=9)
        entries.append(drawing.sample("published", drawing.INK, marker="*"))
    axis.set_xscale("log")
    axis.set_yscale("log")
    for scale in (axis.xaxis, axis.yaxis):
        drawing.plain_log_ticks(scale)
    drawing.panel(axis, x="bytes of the file", y="examples wrong, per cent")
    drawing.legend_below(figure, [("", entries[:2]), ("", entries[2:])])
    return figure
