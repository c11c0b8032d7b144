"""The map: where compression helps, over training sizes and shares of wrong labels."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from jaxcomp.experiments import drawing
from jaxcomp.experiments.sweep import beyond_controls
from jaxcomp.experiments.sweep.claims import Claim
from jaxcomp.experiments.sweep.summary import (
    SIZE_COLUMN,
    control_name,
    map_names,
    rows_where,
)
from jaxcomp.experiments.verdicts import signed

# Blue is better, orange is worse: a scale that colour-blind readers can tell the ends of apart.
_COLOURS = "PuOr"
_LEAST_SPAN = 0.03
_PANELS = (
    ("tempered loss", "Against the original", "a temperature for both"),
    (beyond_controls.NAME, "Against the best that compresses nothing", "named in the cell"),
)
_SHORT = {"gaussian_noise": "noise", "dropout_early_stopping": "dropout + stop"} | {
    "early_stopping": "early stop",
    "last_layer_scaled": "last layer",
    "weights_clipped": "clipped",
}


class Place(NamedTuple):
    """A setting on the map."""

    row: int
    column: int
    claim: Claim


def has_map(claims: Sequence[Claim] | None) -> bool:
    """Whether claims speak of a map: of what is beyond controls, in several settings."""
    return sum(claim.name == beyond_controls.NAME for claim in claims or ()) > 1


def map_figures(table: pd.DataFrame, claims: Sequence[Claim]) -> dict[str, Figure]:
    """Draw the map of every data set and kind of network.

    Colour: the change of the tempered test loss in per cent of the original's, blue for better.
    A triangle is significant after Holm's correction (in the left panel over the claims of a
    setting, in the right one over all settings) and at least 3 %.

    Args:
        table: as `SweepResult.table`.
        claims: of all settings.

    Returns:
        Figures by name: `map`, followed by data set and network if there are several.
    """
    return {
        name: _figure(
            f"{dataset}, {model}", rows_where(table, dataset=dataset, model=model), claims
        )
        for name, (dataset, model) in map_names(table).items()
    }


def _figure(subject: str, table: pd.DataFrame, claims: Sequence[Claim]) -> Figure:
    sizes: list[int | None] = [None]
    if SIZE_COLUMN in table:
        sizes = [int(size) for size in sorted(set(table[SIZE_COLUMN]))]
    noises = sorted(set(table["label_noise"]))
    of_setting: dict[str, tuple[int, int]] = {}
    for record in table.drop_duplicates("setting").to_dict("records"):
        size = int(record[SIZE_COLUMN]) if SIZE_COLUMN in table else None
        place = sizes.index(size), noises.index(float(record["label_noise"]))
        of_setting[str(record["setting"])] = place
    # Narrow, so that a page shows it without making its numbers small.
    width, height = max(8.4, 1.3 + 1.6 * len(noises)), 2.1 + 0.62 * len(sizes)
    figure = drawing.new_figure(
        width,
        height,
        f"Where does compression help? {subject}",
        "Tempered test loss of the best compressed network, chosen on the validation set, minus "
        "that of what it is held against,\nin % of the original's. "
        "▼ lower, ▲ higher: significant (Holm; on the right over all settings) and at least 3 %.",
    )
    axes = figure.subplots(1, len(_PANELS), sharey=True)
    found = [
        [
            Place(*of_setting[claim.setting], claim)
            for claim in claims
            if claim.name == name and claim.setting in of_setting
        ]
        for name, _, _ in _PANELS
    ]
    changes = [abs(p.claim.relative_effect or 0.0) for places in found for p in places]
    span = max([_LEAST_SPAN, *changes])
    for axis, places, (name, title, note) in zip(axes, found, _PANELS, strict=True):
        drawing.panel_title(axis, title, note)
        _draw(axis, places, (len(sizes), len(noises)), span, has_names=name != "tempered loss")
        axis.set_xticks(range(len(noises)), [f"{100 * noise:g} %" for noise in noises])
        axis.set_yticks(range(len(sizes)), ["" if size is None else f"{size:,}" for size in sizes])
        axis.tick_params(labelsize=drawing.SMALL, length=0, labelcolor=drawing.INK)
        drawing.axis_labels(axis, x="wrong training labels")
    if sizes[0] is not None:
        drawing.axis_labels(axes[0], y="training examples")
    return figure


def _draw(
    axis: Axes, places: Sequence[Place], shape: tuple[int, int], span: float, *, has_names: bool
) -> None:
    values = np.full(shape, np.nan)
    for row, column, claim in places:
        values[row, column] = -(claim.relative_effect or 0.0)
    colours = colormaps[_COLOURS].with_extremes(bad=drawing.PALE)
    axis.imshow(
        values, cmap=colours, norm=Normalize(-span, span), aspect="auto", origin="lower", alpha=0.8
    )
    axis.spines[:].set_visible(False)
    for row, column, claim in places:
        change = 100 * (claim.relative_effect or 0.0)
        mark = {"holds": " ▼", "opposite": " ▲"}.get(claim.verdict, "")
        is_dark = abs(change) > 75 * span
        colour = "white" if is_dark else drawing.INK
        up = 0.12 if has_names else 0.0
        text: dict[str, Any] = {"ha": "center", "va": "center", "color": colour}
        axis.text(column, row + up, f"{signed(change, 1)} %{mark}", fontsize=drawing.NORMAL, **text)
        if has_names:
            method = claim.control or ""
            name = _SHORT.get(method, control_name(method))
            axis.text(column, row - 0.22, name, fontsize=drawing.SMALL - 0.5, **text)
