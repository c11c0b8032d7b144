"""The certificate against bytes, with errors and what held-out labels say."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from jaxcomp.experiments import drawing
from jaxcomp.experiments.certificate_picture import bounds_of_sizes, percent_axes
from jaxcomp.experiments.small_descriptions.config import DescriptionConfig
from jaxcomp.experiments.small_descriptions.descent import bits_of_choices

_CERTIFICATE, _TRAINING, _TEST = drawing.BLUE, drawing.ORANGE, drawing.GREEN
_DOTS = (0, (1, 1.5))
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
        f"{config.models} seeds, {count:,} training examples. A certificate holds with probability "
        f"{1 - config.delta:g}; fewer bytes make it lower,\nerrors make it higher. Dotted: that of "
        "a stream of so many bytes with the training error at its end.",
    )
    axis = figure.subplots()
    bytes_ = np.linspace(1, 1.25 * float(shown["bytes"].max()), 60)
    bits = 8 * bytes_ + np.log2(bytes_ * (bytes_ + 1)) + bits_of_choices()
    top = 1.3 * float(shown["bound"].max())
    for error in _ERRORS:
        line = bounds_of_sizes(error, count, bits, config.delta)
        axis.plot(bytes_, line, color=drawing.GREY, linewidth=0.8, linestyle=_DOTS, zorder=0)
        if line[0] >= top:
            continue
        # Its name stands where it leaves the panel.
        end, at_right = float(np.interp(top, line, bytes_)), line[-1] < top
        axis.annotate(
            f"{error:.0%}",
            (bytes_[-1], line[-1]) if at_right else (end, top),
            xytext=(3, 0) if at_right else (0, 2),
            textcoords="offset points",
            ha="left" if at_right else "center",
            va="center" if at_right else "bottom",
            fontsize=drawing.SMALL,
            color=drawing.GREY,
            annotation_clip=False,
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
    drawing.axis_labels(axis, x="bytes of the stream", y="share of examples wrong")
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
                    drawing.sample("certificate at a training error", drawing.GREY, dashes=_DOTS),
                ],
            ),
        ],
    )
    return figure
