"""All pictures of a sweep in files."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from jaxcomp import storage
from jaxcomp.experiments import drawing
from jaxcomp.experiments.sweep.claims import Claim
from jaxcomp.experiments.sweep.pictures.bound import BOUND_COLUMNS, bound_figure, has_bound
from jaxcomp.experiments.sweep.pictures.details import details_figure
from jaxcomp.experiments.sweep.pictures.limit import LIMIT_COLUMNS, has_limit, limit_figure
from jaxcomp.experiments.sweep.pictures.map import has_map, map_figures
from jaxcomp.experiments.sweep.pictures.overview import overview_figure
from jaxcomp.experiments.sweep.pictures.rise import RISE_COLUMNS, has_rise, rise_figure
from jaxcomp.experiments.sweep.smallest import SmallestNetwork
from jaxcomp.experiments.sweep.summary import (
    MOST_IN_FULL,
    Summary,
    claims_of,
    picture_name,
    summarize,
)
from jaxcomp.experiments.sweep.task_words import CLASSIFICATION, TaskWords

FORMATS = ("png", "svg", "pdf")


def save_figures(
    table: pd.DataFrame,
    directory: Path | str,
    *,
    formats: Sequence[str] = FORMATS,
    claims: Sequence[Claim] | None = None,
    smallest: Sequence[SmallestNetwork] = (),
    words: TaskWords = CLASSIFICATION,
) -> list[Path]:
    """Draw all pictures of all settings and write them; the same table gives the same bytes.

    The files are `sweep`, `sweep-details`, `bound`, `predicted-rise` and `limit`, followed by the
    setting's name if the table has several. A picture that the table has no numbers for (no bound,
    no prediction) is left out. Several settings with claims beyond controls make a `map`; where
    they are more than four, there is only `sweep` of each beside it, as png.

    Args:
        table: as `SweepResult.table`.
        directory: where to; it must exist.
        formats: of png, svg, pdf.
        claims: of all settings, to mark in the pictures.
        smallest: of all settings, likewise.
        words: of the task.

    Returns:
        The files, in the order written.

    Raises:
        ValueError: on another format, or a table that cannot be drawn.
        OSError: if the directory cannot be written to.
    """
    for form in formats:
        if form not in FORMATS:
            raise ValueError(f"pictures can be written as {', '.join(FORMATS)}; got {form!r}.")
    summaries = summarize(table, words)
    files: list[Path] = []

    def write(name: str, figure: Figure, formats: Sequence[str]) -> None:
        drawing.freeze_layout(figure)
        for form in formats:
            files.append(Path(directory) / f"{name}.{form}")
            storage.write_bytes_atomic(files[-1], drawing.encoded(figure, form))

    if claims and has_map(claims):
        for name, figure in map_figures(table, claims).items():
            write(name, figure, formats)
    are_many = len(summaries) > MOST_IN_FULL
    for summary in summaries:
        members = claims_of(claims, summary.name, len(summaries))
        own = next((found for found in smallest if found.setting == summary.name), None)
        figures = _figures(summary, members, own)
        for stem, figure in itertools.islice(figures, 1 if are_many else None):
            name = picture_name(stem, summary.name, len(summaries))
            write(name, figure, formats[:1] if are_many else formats)
    return files


def _figures(
    summary: Summary, claims: Sequence[Claim], smallest: SmallestNetwork | None
) -> Iterator[tuple[str, Figure]]:
    yield "sweep", overview_figure(summary, claims, smallest)
    yield "sweep-details", details_figure(summary, claims)
    if summary.columns.issuperset(BOUND_COLUMNS) and has_bound(summary):
        yield "bound", bound_figure(summary)
    if summary.columns.issuperset(RISE_COLUMNS) and has_rise(summary):
        yield "predicted-rise", rise_figure(summary)
    if summary.columns.issuperset(LIMIT_COLUMNS) and has_limit(summary):
        yield "limit", limit_figure(summary)
