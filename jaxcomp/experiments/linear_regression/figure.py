"""Pictures of the linear-regression study: theory as lines, simulation as points with error bars.

Error bars are two standard errors. Colour says which compressor; what compresses nothing is grey.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from jaxcomp import storage
from jaxcomp.experiments import drawing
from jaxcomp.linear_regression.closed_forms import CHANNELS

FORMATS = ("png", "svg")

_CHANNEL_COLOURS = {
    "informed": drawing.BLUE,
    "uninformed": drawing.SKY,
    "informed_zero_mean": drawing.ORANGE,
    "uninformed_zero_mean": drawing.AMBER,
    "matched": drawing.GREEN,
}
_QUANTIZERS = {
    "uniform": (drawing.PURPLE, "uniform"),
    "kmeans": (drawing.BLUE, "K-means"),
    "hessian_kmeans": (drawing.ORANGE, "K-means, exact Hessian"),
    "diameter_kmeans": (drawing.GREEN, "the same, diameter penalty"),
    "entropy_coded": (drawing.AMBER, "equal cells, entropy code"),
}
_CONTROLS = {
    "shrinkage": ((0, (5, 2)), "aW, a = 1 - e^(-2R/d)"),
    "ridge": ((0, (1, 1.5)), "ridge, best penalty"),
    "james_stein": ((0, (3, 1, 1, 1)), "James-Stein"),
    "least_squares": ("-", "least squares"),
}
_PANELS = (
    ("empirical_risk", "Empirical risk"),
    ("generalization", "Generalization error"),
    ("population_risk", "Population risk"),
)


def plot_risks(table: pd.DataFrame, claims: Sequence[Any] = ()) -> Figure:
    """Draw empirical risk, generalization error and population risk against the rate.

    Above the Gaussian channels with their closed forms and the bound on the generalization error
    of the uninformed channel, below real quantizers with fixed codebooks and the controls.

    Args:
        table: as `StudyResult.table`; the first number of examples is drawn.
        claims: of the study; the chosen rates of the quantizers are ringed.

    Returns:
        The figure.
    """
    num_examples = int(table["num_examples"].iloc[0])
    rows = table.loc[table["num_examples"] == num_examples]
    explanation = (
        "Points: means over drawn data sets, bars of two standard errors. Lines: closed forms "
        "(above), or through the points (below). Grey compresses nothing.\n"
        "m = w*: the codebook holds the true weights. m = 0: it does not, and the population risk "
        "has a U where 2B > V."
    )
    title = f"Least squares compressed: n = {num_examples} examples"
    figure = drawing.new_figure(11.0, 7.6, title, explanation)
    axes = figure.subplots(2, 3, sharex=True)
    for column, (quantity, name) in enumerate(_PANELS):
        above, below = axes[0][column], axes[1][column]
        drawing.panel_title(above, f"{name}: Gaussian channels")
        drawing.panel_title(below, f"{name}: quantizers")
        _draw_channels(above, rows, quantity)
        _draw_quantizers(below, rows, quantity, claims, num_examples)
        drawing.axis_labels(below, x="bits per weight")
        for axis in (above, below):
            drawing.axis_labels(axis, y="mean squared error" if column == 0 else "")
            drawing.light_grid(axis)
            drawing.plain_linear_axis(axis)
        _limit(above, rows.loc[rows["family"] == "channel", quantity].to_numpy(), quantity)
        controls = [_best(rows, name, quantity) for name in ("ridge", "james_stein")]
        designed = rows.loc[rows["family"] == "designed", quantity].to_numpy(float)
        _limit(below, np.append(designed, controls), quantity)
    drawing.legend_below(figure, _risk_legend(rows))
    return figure


def plot_information(information: pd.DataFrame) -> Figure:
    """Draw the bits of rounded least squares and ridge, and the bound they give.

    Args:
        information: as `StudyResult.information`.

    Returns:
        The figure.
    """
    explanation = (
        "Weights rounded to decimals: the entropy over samples is what the model can say about "
        "its sample.\nLeft: lines from exact densities, below the truth where rounding is coarse; "
        "points from above, weight by weight.\nRelative gap: 1 - empirical / population risk. A "
        "stronger penalty leaves fewer bits, and a bound that says more."
    )
    is_alone = len(set(information["num_examples"])) == 1
    title = "The learner's own information, and the bound it gives"
    figure = drawing.new_figure(8.0 if is_alone else 11.0, 4.6, title, explanation)
    left, middle, *others = figure.subplots(1, 2 if is_alone else 3)
    first = int(information["num_examples"].iloc[0])
    dim_rows = information.loc[information["num_examples"] == first]
    decimals = sorted(information["decimals"].unique())
    colours = dict(zip(decimals, _colours(len(decimals)), strict=True))
    drawing.panel_title(left, f"Bits of the rounded model, n = {first}")
    drawing.panel_title(middle, f"Relative gap and its bound, n = {first}")
    positive = dim_rows.loc[dim_rows["penalty"] > 0]
    markers = dict(zip(decimals, itertools.cycle("os^Dv"), strict=False))
    for number in decimals:
        rows = positive.loc[positive["decimals"] == number]
        colour, marker = colours[number], markers[number]
        left.plot(rows["penalty"], rows["bits"], color=colour)
        left.plot(rows["penalty"], rows["bits_upper"], marker, color=colour, markersize=3.5)
        middle.plot(rows["penalty"], rows["relative_gap_bound"], color=colour, linestyle="--")
        middle.errorbar(
            rows["penalty"],
            rows["relative_gap"],
            2 * rows["relative_gap_se"],
            fmt=marker,
            color=colour,
            markersize=3,
        )
    for axis in (left, middle):
        axis.set_xscale("log")
    drawing.panel(left, x="ridge penalty", y="bits of the whole model")
    drawing.panel(middle, x="ridge penalty", y="relative gap")
    middle.set_ylim(bottom=0)
    for right in others:
        _draw_sample_sizes(right, information, colours)
    entries = [
        drawing.sample(
            f"{number} decimal{'' if number == 1 else 's'}",
            colours[number],
            dashes="-",
            marker=markers[number],
        )
        for number in decimals
    ]
    kinds = [
        drawing.sample("bound from the bits (upper)", drawing.INK, dashes="--"),
        drawing.sample("simulated", drawing.INK, marker="o"),
        drawing.sample("closed form, not rounded", drawing.GREY, dashes="-"),
    ]
    drawing.legend_below(figure, [("Rounded to", entries), ("What", kinds)])
    return figure


def _draw_sample_sizes(axis: Axes, information: pd.DataFrame, colours: dict[Any, str]) -> None:
    """Draw the relative gap of least squares and its bound against the number of examples."""
    plain = information.loc[information["penalty"] == 0].sort_values("num_examples")
    for number, colour in colours.items():
        rows = plain.loc[plain["decimals"] == number]
        axis.plot(rows["num_examples"], rows["relative_gap_bound"], color=colour, linestyle="--")
        axis.errorbar(
            rows["num_examples"],
            rows["relative_gap"],
            2 * rows["relative_gap_se"],
            fmt="o",
            color=colour,
            markersize=3,
        )
    theory = plain.drop_duplicates("num_examples")
    axis.plot(theory["num_examples"], theory["theory_relative_gap"], color=drawing.GREY)
    axis.set(xscale="log", yscale="log")
    for scale in (axis.xaxis, axis.yaxis):
        drawing.plain_log_ticks(scale)
    drawing.panel(axis, "Least squares: relative gap and bound", x="number of examples")


def save_figures(directory: Path | str, **figures: Figure) -> list[Path]:
    """Write figures as PNG and SVG, named by their keywords; equal figures give equal bytes."""
    files = []
    for name, figure in figures.items():
        drawing.freeze_layout(figure)
        for form in FORMATS:
            files.append(Path(directory) / f"{name}.{form}")
            storage.write_bytes_atomic(files[-1], drawing.encoded(figure, form))
    return files


def _draw_channels(axis: Axes, rows: pd.DataFrame, quantity: str) -> None:
    for name, colour in _CHANNEL_COLOURS.items():
        part = rows.loc[rows["compressor"] == name]
        x = part["grid_bits_per_weight"]
        axis.plot(x, part[f"theory_{quantity}"], color=colour, linewidth=1.3)
        _points(axis, x, part, quantity, colour)
        if quantity == "generalization" and name == "uninformed":
            axis.plot(x, part["gap_bound"], color=colour, linestyle=":", linewidth=1.3)
    shrunk = rows.loc[rows["compressor"] == "shrinkage"]
    axis.plot(
        shrunk["grid_bits_per_weight"],
        shrunk[f"theory_{quantity}"],
        color=drawing.GREY,
        linestyle=_CONTROLS["shrinkage"][0],
        linewidth=1.2,
    )
    own = rows.loc[rows["compressor"] == "least_squares", f"theory_{quantity}"]
    axis.axhline(float(own.iloc[0]), color=drawing.GREY, linewidth=0.9)


def _draw_quantizers(
    axis: Axes, rows: pd.DataFrame, quantity: str, claims: Sequence[Any], num_examples: int
) -> None:
    for name, (colour, _) in _QUANTIZERS.items():
        part = rows.loc[rows["compressor"] == name]
        x = part["rate_bits"]
        axis.plot(x, part[quantity], color=colour, linewidth=0.9)
        _points(axis, x, part, quantity, colour)
        for claim in claims:
            if claim.compressor == name and claim.num_examples == num_examples:
                at = part.loc[part["place"] == claim.place]
                axis.plot(
                    at["rate_bits"],
                    at[quantity],
                    "o",
                    color=colour,
                    markerfacecolor="none",
                    markersize=9,
                )
    for name in ("ridge", "james_stein", "least_squares"):
        axis.axhline(
            _best(rows, name, quantity),
            color=drawing.GREY,
            linestyle=_CONTROLS[name][0],
            linewidth=1.2 if name != "least_squares" else 0.9,
        )
    shrunk = rows.loc[rows["compressor"] == "shrinkage"]
    axis.plot(
        shrunk["grid_bits_per_weight"],
        shrunk[quantity],
        color=drawing.GREY,
        linestyle=_CONTROLS["shrinkage"][0],
        linewidth=1.2,
    )


def _points(axis: Axes, x: pd.Series, part: pd.DataFrame, quantity: str, colour: str) -> None:
    """Draw points with error bars; of points that would cover each other, the leftmost."""
    places = x.to_numpy(float)
    kept = drawing.thinned(places.tolist(), 0.03 * float(np.ptp(places)))
    axis.errorbar(
        places[kept],
        part[quantity].to_numpy(float)[kept],
        2 * part[f"{quantity}_se"].to_numpy(float)[kept],
        fmt="o",
        color=colour,
        markersize=2.4,
        elinewidth=0.9,
        capsize=1.2,
    )


def _best(rows: pd.DataFrame, name: str, quantity: str) -> float:
    """A quantity of a control, where its population risk is least."""
    part = rows.loc[rows["compressor"] == name]
    best = part["population_risk"].to_numpy().argmin()
    return float(part[quantity].to_numpy()[best])


def _limit(axis: Axes, values: NDArray[np.float64], quantity: str) -> None:
    """Leave out what is far above everything else, such as a bound that says nothing."""
    low, high = values.min(), values.max()
    # Room for the bound, where it is worth looking at.
    room = 0.4 if quantity == "generalization" else 0.06
    axis.set_ylim(low - 0.06 * (high - low), high + room * (high - low))


def _risk_legend(rows: pd.DataFrame) -> list[tuple[str, list[drawing.Entry]]]:
    channels = [
        drawing.sample(note.label, _CHANNEL_COLOURS[name], dashes="-", marker="o")
        for name, note in CHANNELS.items()
    ]
    channels.append(
        drawing.sample("bound, uninformed m = w*", _CHANNEL_COLOURS["uninformed"], dashes=":")
    )
    quantizers = [
        drawing.sample(label, colour, dashes="-", marker="o")
        for name, (colour, label) in _QUANTIZERS.items()
        if name in set(rows["compressor"])
    ]
    controls = [
        drawing.sample(label, drawing.GREY, dashes=dashes) for dashes, label in _CONTROLS.values()
    ]
    return [
        ("Gaussian channels", channels),
        ("Quantizers", quantizers),
        ("Compress nothing", controls),
    ]


def _colours(count: int) -> list[str]:
    return [drawing.COLOURS[i % len(drawing.COLOURS)] for i in range(count)]
