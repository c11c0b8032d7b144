"""The certificate against bytes, with errors and what held-out labels say."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from jaxcomp.experiments import drawing
from jaxcomp.experiments.certificate_picture import bounds_of_sizes, percent_axes
from jaxcomp.experiments.small_descriptions.config import DescriptionConfig
from jaxcomp.experiments.small_descriptions.descent import bits_of_choices

_CERTIFICATE, _TRAINING, _TEST = drawing.BLUE, drawing.ORANGE, drawing.GREEN
_ERRORS = (0.01, 0.02, 0.04, 0.08, 0.12, 0.2, 0.3)  # of which lines are drawn


def plot_certificates(config: DescriptionConfig, table: pd.DataFrame) -> Figure:
    """Return certificates, training and test errors against bytes.

    Lines say what a file of so many bytes has for a certificate at a training error.
    """
    shown = {name: np.asarray(table[name]) for name in table if name not in ("variant", "stream")}
    count = int(shown["num_examples"][0])
    kind = ", transfer" if config.transfer else ""
    figure = drawing.new_figure(
        8.0,
        4.6,
        f"Small descriptions of {config.dataset}{kind}",
        f"{config.models} seeds, {count:,} training examples, delta {config.delta:g}",
    )
    axis = figure.subplots()
    bytes_ = np.linspace(1, 1.25 * float(shown["bytes"].max()), 60)
    bits = 8 * bytes_ + np.log2(bytes_ * (bytes_ + 1)) + bits_of_choices()
    top = 1.3 * float(shown["bound"].max())
    for error in _ERRORS:
        line = bounds_of_sizes(error, count, bits, config.delta)
        axis.plot(bytes_, line, color=drawing.PALE, linewidth=1.0, zorder=0)
        if line[-1] < top:  # its name stands at the end
            axis.annotate(
                f" {error:.0%}", (bytes_[-1], line[-1]), fontsize=drawing.SMALL, color=drawing.GREY
            )
    for column, colour, marker in (
        ("bound", _CERTIFICATE, "o"),
        ("train_error", _TRAINING, "v"),
        ("test_error", _TEST, "^"),
    ):
        axis.plot(shown["bytes"], shown[column], marker, color=colour, markersize=4)
    held_out = float(shown["held_out"][shown["bound"].argmin()])
    axis.axhline(held_out, color=drawing.INK, linestyle="--", linewidth=1.0)
    axis.set_ylim(0, top)
    axis.set_xlim(0, float(bytes_[-1]))
    percent_axes(axis)
    drawing.axis_labels(axis, x="bytes of the stream", y="error")
    drawing.light_grid(axis)
    drawing.legend_below(
        figure,
        [
            (
                "",
                [
                    drawing.sample("certificate", _CERTIFICATE, marker="o"),
                    drawing.sample("training error", _TRAINING, marker="v"),
                    drawing.sample("test error", _TEST, marker="^"),
                ],
            ),
            (
                "",
                [
                    drawing.sample("bound by held-out labels", drawing.INK, dashes="--"),
                    drawing.sample("certificate at a training error", drawing.PALE, dashes="-"),
                ],
            ),
        ],
    )
    return figure
