"""Small descriptions in words and tables."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from jaxcomp.experiments.reporting import Labelled
from jaxcomp.experiments.small_descriptions.config import DescriptionConfig

PUBLISHED = {
    ("mnist", False): 0.116,
    ("fashion-mnist", False): 0.328,
    ("mnist", True): 0.090,
}
"""Best published certificates: Lotfi et al., arXiv:2211.13609."""


Record: TypeAlias = dict[str, Any]
"""A row of the table, by its columns."""


def best_of_models(table: pd.DataFrame) -> pd.DataFrame:
    """Return the row with the lowest certificate of each seed; the choice costs nothing."""
    ordered = table.sort_values("bound", kind="stable").drop_duplicates("model")
    return ordered.sort_values("model").reset_index(drop=True)


def records(table: pd.DataFrame) -> list[Record]:
    """Return the rows of a table."""
    return [
        dict(zip(table.columns, values, strict=True)) for values in table.itertuples(index=False)
    ]


def first_lines(config: DescriptionConfig, table: pd.DataFrame) -> Labelled:
    """Return what was found, in a few lines."""
    best = records(best_of_models(table))
    told = [
        ("Certificate", f"{_spread(best, 'bound')} ({_what(config)})"),
        (
            "Bytes",
            f"{_mean(best)['bytes']:.0f}; training error {_spread(best, 'train_error')}, test "
            f"error {_spread(best, 'test_error')}",
        ),
        ("Held out", f"{_spread(best, 'held_out')} by the labels of the test set"),
    ]
    published = PUBLISHED.get((config.dataset, config.transfer))
    if published is not None:
        told.append(("Published", f"{published:.1%}"))
    return told


def report_text(config: DescriptionConfig, table: pd.DataFrame) -> str:
    """Return the best of each seed, and means over seeds at each price."""
    lines = [f"{label}: {text}." for label, text in first_lines(config, table)]
    lines += ["", _HEAD, "-" * len(_HEAD)]
    lines += [_line(f"model {row['model']}", row) for row in records(best_of_models(table))]
    lines += ["", "Means over seeds at each price of a bit:", _HEAD, "-" * len(_HEAD)]
    for penalty in config.penalties:
        own = [row for row in records(table) if row["penalty"] == penalty]
        lines.append(_line(f"price {penalty:g}", _mean(own)))
    return "\n".join(lines) + "\n"


_HEAD = (
    f"{'':12}{'bytes':>8}{'nonzero':>9}{'training':>10}{'test':>8}{'bound':>8}{'unrefined':>11}"
    f"{'held out':>10}"
)


def _line(name: str, row: Record) -> str:
    return (
        f"{name:12}{row['bytes']:8.1f}{row['nonzero']:9.0f}{row['train_error']:10.2%}"
        f"{row['test_error']:8.2%}{row['bound']:8.2%}{row['bound_before_refinement']:11.2%}"
        f"{row['held_out']:10.2%}"
    )


def _what(config: DescriptionConfig) -> str:
    kind = "transfer from scikit-learn's digits" if config.transfer else "data-free"
    kind += ", random filters" if config.random_filters else ""
    return (
        f"{config.dataset}, {kind}, mean and standard deviation of {config.models} seeds, "
        f"delta {config.delta:g}"
    )


def _mean(rows: Sequence[Record]) -> Record:
    names = [name for name, value in rows[0].items() if not isinstance(value, str)]
    return {name: float(np.mean([row[name] for row in rows])) for name in names}


def _spread(rows: Sequence[Record], name: str) -> str:
    values = np.asarray([row[name] for row in rows])
    deviation = values.std(ddof=1) if len(values) > 1 else 0.0
    return f"{values.mean():.2%} +- {deviation:.2%}"
