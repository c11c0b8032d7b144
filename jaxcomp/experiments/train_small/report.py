"""Training for the file in words and tables."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxcomp.evaluation.statistics import model_interval
from jaxcomp.experiments.reporting import Labelled
from jaxcomp.experiments.train_small.config import Point, TrainSmallConfig

PUBLISHED = {
    ("mnist", "lenet-300-100"): (8_560, 0.019),
    ("mnist", "lenet-5"): (2_840, 0.010),
}
"""Bytes and test error of Oktay et al., arXiv:1906.06624, table 1."""


class Mean(NamedTuple):
    """A mean over seeds, and half the width of its interval of 95 %; NaN for one seed."""

    mean: float
    half_width: float


def mean_of(rows: pd.DataFrame, column: str) -> Mean:
    """Return the mean of a column, with its t-interval over seeds."""
    values = np.asarray(rows[column], np.float64)
    if len(values) < 2:
        return Mean(float(values.mean()), float("nan"))
    found = model_interval(values)
    return Mean(found.estimate, (found.high - found.low) / 2)


def at_point(table: pd.DataFrame, point: Point) -> pd.DataFrame:
    """Return the rows of one price or size."""
    return table.loc[(table["coder"] == point.coder) & (table["setting"] == point.setting)]


def first_lines(config: TrainSmallConfig, table: pd.DataFrame) -> Labelled:
    """Return the smallest files and those with the fewest validation errors, in a few lines."""
    size = {own: mean_of(at_point(table, own), "bytes").mean for own in config.points}
    error = {own: mean_of(at_point(table, own), "validation_error").mean for own in config.points}
    told = [
        ("Smallest", _point(config, table, min(size, key=lambda own: size[own]))),
        ("Fewest errors", _point(config, table, min(error, key=lambda own: error[own]))),
    ]
    published = PUBLISHED.get((config.dataset, config.network))
    if published is not None:
        told.append(("Published", f"{published[0]:,} bytes, test error {published[1]:.1%}"))
    return told


def _point(config: TrainSmallConfig, table: pd.DataFrame, point: Point) -> str:
    rows = at_point(table, point)
    return (
        f"{mean_of(rows, 'bytes').mean:,.0f} bytes, test error {_percent(rows, 'test_error')} "
        f"({config.network} on {config.dataset}, {point}, seeds {config.models})"
    )


def report_text(config: TrainSmallConfig, table: pd.DataFrame) -> str:
    """Return means over seeds at each price and size, with intervals of 95 %."""
    lines = [f"{label}: {text}." for label, text in first_lines(config, table)]
    count = int(table["num_examples"].iloc[0])
    lines += [
        "",
        "Means over seeds, +- half of an interval of 95 % (t); bytes of whole files, of their "
        "streams,",
        "and of the integers by their distributions, or of the indices; certificates of the files "
        f"by {count:,} training examples.",
        "",
        _HEAD,
        "-" * len(_HEAD),
    ]
    for point in config.points:
        rows = at_point(table, point)
        size = mean_of(rows, "bytes")
        lines.append(
            f"{point!s:>23}{size.mean:9,.0f}{_width(size.half_width, '.0f'):>8}"
            f"{mean_of(rows, 'stream_bytes').mean:9,.0f}{mean_of(rows, 'ideal_bytes').mean:9,.0f}"
            f"{mean_of(rows, 'nonzero').mean:9,.0f}"
            f"{mean_of(rows, 'validation_error').mean:12.2%}"
            f"{_percent(rows, 'test_error'):>18}{mean_of(rows, 'bound').mean:9.1%}"
            f"{rows['rounded_again'].sum():>7}"
        )
    return "\n".join(lines) + "\n"


_HEAD = (
    f"{'price or size':>23}{'bytes':>9}{'+-':>8}{'stream':>9}{'ideal':>9}{'nonzero':>9}"
    f"{'validation':>12}"
    f"{'test':>18}{'bound':>9}{'again':>7}"
)


def _width(value: float, form: str) -> str:
    return "" if np.isnan(value) else format(value, form)


def _percent(rows: pd.DataFrame, column: str) -> str:
    found = mean_of(rows, column)
    width = _width(found.half_width, ".2%")
    return f"{found.mean:.2%}" + (f" +- {width}" if width else "")
