"""Pictures of a run: every quantity against the strength of the penalty, L1 below its L2.

Bands are 95 % intervals over networks. Blue is what the weights cost, orange and red are losses;
grey is what penalises nothing.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from jaxcomp import storage
from jaxcomp.evaluation.statistics import model_interval
from jaxcomp.experiments import drawing
from jaxcomp.experiments.drawing import BLUE, GREEN, ORANGE, PURPLE, SKY

FORMATS = ("png", "svg")

_BITS = (
    ("bits_per_weight_implied", "implied prior", SKY, (0, (4, 2)), "s"),
    ("bits_per_weight_gaussian", "fitted Gaussian", BLUE, "-", "o"),
    ("bits_per_weight_spike", "with a spike at zero", PURPLE, "-", "^"),
)
_DESCRIPTION = (
    ("description_bits", "in all", BLUE, "-", "o"),
    ("description_weight_bits", "weights", SKY, "-", "s"),
    ("description_label_bits", "labels", ORANGE, "-", "^"),
)
_LOSSES = (
    ("test_loss", "test", ORANGE, "-", "o"),
    ("train_loss", "train", GREEN, "-", "s"),
)
_ACCURACIES = (
    ("test_accuracy", "test", ORANGE, "-", "o"),
    ("train_accuracy", "train", GREEN, "-", "s"),
)
_CHANGES = ("loss_change_low", "loss_change_high")
_SHARES = (
    ("zero_share", "weights exactly zero", PURPLE, "-", "o"),
    ("zero_cell_share", "weights that round to zero", ORANGE, (0, (3, 1, 1, 1)), "v"),
    ("dead_units", "hidden units dead", BLUE, (0, (4, 2)), "s"),
    ("dead_inputs", "inputs dead", SKY, (0, (1, 1.5)), "^"),
)
_RIVALS = (
    ("none", "no penalty", "-"),
    ("temperature", "temperature", (0, (5, 2))),
    ("early stopping", "early stopping", (0, (1, 1.5))),
    ("dropout", "dropout, best", (0, (3, 1, 1, 1))),
)


def plot_strengths(table: pd.DataFrame) -> Figure:
    """Draw bits, descriptions, losses, accuracy, zeros and bounds against the strength.

    Args:
        table: as `RegularizationResult.table`.

    Returns:
        The figure.
    """
    num_models = table["model_seed"].nunique()
    explanation = (
        "See first: a stronger penalty means fewer bits (left), but the test loss is least in "
        "between (star).\n"
        f"Means over {num_models} networks, bands of 95 % (test loss: of the paired difference to "
        "no penalty).\nGrey: what penalises no weight. "
        "Crosses: bytes of real streams that were decoded again, as bits a weight.\n"
        "Description: the weights and, given them, the training labels, each at its best step."
    )
    title = "In what sense does a penalty compress a model?"
    figure = drawing.new_figure(10.0, 11.5, title, explanation)
    panels = figure.subplots(4, 3)
    # Three quantities for both penalties, then the other three: a page is too narrow for six.
    axes = np.block([[panels[0], panels[2]], [panels[1], panels[3]]])
    table = _with_shares(table)
    for row, (kind, symbol) in enumerate((("l2", "L2"), ("l1", "L1"))):
        rows = table.loc[table["kind"] == kind]
        bits, description, losses, accuracy, shares, theory = axes[row]
        _curves(bits, rows, _BITS)
        _streams(bits, rows)
        _levels(bits, table, "bits_per_weight_gaussian", ("none",))
        drawing.panel_title(bits, f"{symbol}: bits a weight at one step")
        _curves(description, rows, _DESCRIPTION, factor=1e-3)
        _levels(description, table, "description_bits", ("none",), factor=1e-3)
        uniform = 1e-3 * table["uniform_label_bits"].iloc[0]
        description.axhline(uniform, color=ORANGE, linestyle=(0, (1, 1.5)), linewidth=1.2)
        drawing.panel_title(description, f"{symbol}: description, kbit")
        _curves(losses, rows, _LOSSES)
        _paired_band(losses, rows)
        _levels(losses, table, "test_loss", [kind for kind, _, _ in _RIVALS])
        _mark_chosen(losses, rows)
        # What matters is around the loss without a penalty; the train loss starts at nearly 0.
        none = table.loc[table["kind"] == "none", "test_loss"].mean()
        losses.set_ylim(0, 2 * none)
        drawing.panel_title(losses, f"{symbol}: loss, nats")
        _curves(accuracy, rows, _ACCURACIES, factor=100)
        _levels(accuracy, table, "test_accuracy", [kind for kind, _, _ in _RIVALS], factor=100)
        error = 100 * (1 - table.loc[table["kind"] == "none", "test_accuracy"].mean())
        accuracy.set_ylim(100 - 4 * max(error, 0.1), 100 + 0.1 * max(error, 0.1))
        drawing.panel_title(accuracy, f"{symbol}: accuracy, %")
        _curves(shares, rows, _SHARES, factor=100)
        drawing.panel_title(shares, f"{symbol}: switched off, %")
        shares.set_ylim(-3, 103)
        if kind == "l2":
            _curves(theory, rows, (("rate_nats_implied", "R", BLUE, "-", "o"),))
            theory.set_yscale("log")
            drawing.plain_log_ticks(theory.yaxis)
            drawing.panel_title(theory, "L2: effective rate R, nats")
        else:
            _bounds(theory, table)
            drawing.panel_title(theory, "Bounds: L2 gap, certificates")
        for axis in axes[row]:
            axis.set_xscale("log")
            # The strengths are marked by their points.
            axis.xaxis.set_minor_locator(NullLocator())
            drawing.light_grid(axis)
            drawing.axis_labels(axis, x=f"{symbol} strength")
        axes[row][0].set_ylim(bottom=0)
        axes[row][1].set_ylim(bottom=0)
    axes[1][5].set_xlabel("strength of L2 or L1", fontsize=drawing.NORMAL)
    drawing.legend_below(figure, _legend())
    return figure


def plot_rounding(rounding: pd.DataFrame) -> Figure:
    """Draw the number of rounded models that ridge leaves, and their entropy.

    Args:
        rounding: as `RegularizationResult.rounding`.

    Returns:
        The figure.
    """
    number = int(rounding["num_problems"].iloc[0])
    explanation = (
        f"{number:,} data sets drawn, each solved by ridge; equal rounded solutions count once.\n"
        "Lines: entropy from the exact density, where the step is fine. Points: estimated from the "
        "counts\n(Miller and Madow). Dashed: as many as there are data sets; counts end there."
    )
    figure = drawing.new_figure(8.0, 4.4, "How many models does rounding leave?", explanation)
    left, right = figure.subplots(1, 2)
    groups = []
    colours = drawing.COLOURS
    for colour, (decimals, rows) in zip(colours, rounding.groupby("decimals"), strict=False):
        # A logarithmic axis has no zero; the first place stands for no penalty.
        places = np.maximum(rows["penalty"].to_numpy(float), 0.3)
        left.plot(places, rows["distinct_models"], marker="o", color=colour, markersize=4)
        right.plot(places, rows["entropy_bits_exact"], color=colour)
        right.plot(places, rows["entropy_bits"], "o", color=colour, markersize=4)
        told = f"{decimals} decimal{'' if decimals == 1 else 's'}"
        groups.append(drawing.sample(told, colour, dashes="-", marker="o"))
    for axis, limit in ((left, number), (right, math.log2(number))):
        axis.axhline(limit, color=drawing.GREY, linewidth=0.8, linestyle=(0, (5, 2)))
    left.set_yscale("log")
    drawing.panel_title(left, "Different models")
    drawing.panel_title(right, "Entropy, bits a model")
    for axis in (left, right):
        axis.set_xscale("log")
        drawing.light_grid(axis)
        drawing.axis_labels(axis, x="ridge penalty (leftmost: none)")
    drawing.legend_below(figure, [("rounded to", groups)])
    return figure


def save_figures(directory: Path, figures: Mapping[str, Figure]) -> list[Path]:
    """Write pictures in all formats; equal figures give equal bytes."""
    files = []
    for stem, figure in figures.items():
        drawing.freeze_layout(figure)
        for form in FORMATS:
            files.append(directory / f"{stem}.{form}")
            storage.write_bytes_atomic(files[-1], drawing.encoded(figure, form))
    return files


def _with_shares(table: pd.DataFrame) -> pd.DataFrame:
    """Add shares of dead inputs and units, relative to the most that any network has."""
    return table.assign(
        dead_inputs=1 - table["live_inputs"] / table["num_inputs"],
        dead_units=1 - table["live_units"] / table["num_units"],
    )


def _curves(
    axis: Axes, rows: pd.DataFrame, curves: Sequence[tuple[Any, ...]], factor: float = 1.0
) -> None:
    for column, _, colour, dashes, marker in curves:
        points = []
        for strength, members in rows.groupby("strength"):
            values = factor * members[column].to_numpy(float)
            if np.isfinite(values).all():
                interval = model_interval(values)
                points.append((strength, interval.estimate, interval.low, interval.high))
        if not points:
            continue
        x, mean, low, high = np.array(points).T
        axis.plot(x, mean, color=colour, linestyle=dashes, marker=marker, markersize=3.5)
        if np.isfinite(low).all() and column != "test_loss":
            axis.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)


def _streams(axis: Axes, rows: pd.DataFrame) -> None:
    """Bytes that were really encoded, as bits a weight."""
    for column, colour in (("bytes_gaussian", BLUE), ("bytes_spike", PURPLE)):
        means: Any = rows.groupby("strength")[[column, "num_weights"]].mean()
        axis.plot(
            means.index,
            8 * means[column] / means["num_weights"],
            linestyle="none",
            marker="x",
            markersize=6,
            color=colour,
        )


def _levels(
    axis: Axes, table: pd.DataFrame, column: str, kinds: Sequence[str], factor: float = 1.0
) -> None:
    """Horizontal lines of what penalises no weight; of dropout the best on the validation set."""
    for kind, _, dashes in _RIVALS:
        rows = table.loc[table["kind"] == kind]
        if kind not in kinds or rows.empty:
            continue
        if kind == "dropout":
            means = rows.groupby("variant")["validation_loss"].mean()
            rows = rows.loc[rows["variant"] == means.idxmin()]
        axis.axhline(
            factor * rows[column].mean(), color=drawing.GREY, linestyle=dashes, linewidth=1.0
        )


def _paired_band(axis: Axes, rows: pd.DataFrame) -> None:
    """Test loss with the interval of its paired difference to no penalty around it."""
    means: Any = rows.groupby("strength")[["test_loss", "loss_change", *_CHANGES]].mean()
    none = means["test_loss"] - means["loss_change"]
    low, high = (none + means[name] for name in _CHANGES)
    axis.fill_between(means.index, low, high, color=ORANGE, alpha=0.25, linewidth=0)


def _mark_chosen(axis: Axes, rows: pd.DataFrame) -> None:
    means: Any = rows.groupby("strength")[["validation_loss", "test_loss"]].mean()
    best = means["validation_loss"].idxmin()
    axis.plot(
        [best],
        [means.loc[best, "test_loss"]],
        marker="*",
        markersize=13,
        color=drawing.STAR,
        markeredgecolor=drawing.INK,
        zorder=6,
    )


def _bounds(axis: Axes, table: pd.DataFrame) -> None:
    for kind, column, colour, dashes, marker in (
        ("l2", "gap_bound", GREEN, "-", "o"),
        ("l2", "certificate", BLUE, (0, (4, 2)), "s"),
        ("l1", "certificate", PURPLE, (0, (4, 2)), "^"),
    ):
        rows = table.loc[table["kind"] == kind]
        _curves(axis, rows, ((column, "", colour, dashes, marker),))
    axis.axhline(1.0, color=drawing.GREY, linewidth=0.8)
    drawing.edge_note(axis, "1: says nothing", at_top=True)
    axis.set_ylim(bottom=0)


def _legend() -> list[tuple[str, list[drawing.Entry]]]:
    groups = [
        (name, [drawing.sample(label, c, dashes=d, marker=m) for _, label, c, d, m in curves])
        for name, curves in (
            ("bits a weight", _BITS),
            ("description", _DESCRIPTION),
            ("loss, accuracy", _LOSSES),
            ("switched off", _SHARES),
        )
    ]
    star = drawing.sample("chosen on the validation set", drawing.STAR, marker="*")
    star.handle.set(markersize=10, markeredgecolor=drawing.INK)
    groups[2][1].append(star)
    alone = drawing.sample("labels alone, without a network", ORANGE, dashes=(0, (1, 1.5)))
    groups[1][1].append(alone)
    rivals = [drawing.sample(label, drawing.GREY, dashes=d) for _, label, d in _RIVALS]
    bounds = [
        drawing.sample("gap at rate R, L2 (estimate)", GREEN, dashes="-", marker="o"),
        drawing.sample("certificate, L2", BLUE, dashes=(0, (4, 2)), marker="s"),
        drawing.sample("certificate, L1", PURPLE, dashes=(0, (4, 2)), marker="^"),
    ]
    groups += [("no penalty on weights", rivals), ("bounds", bounds)]
    return groups
