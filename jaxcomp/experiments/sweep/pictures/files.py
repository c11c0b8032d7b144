"""All pictures of a sweep in files."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

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

if TYPE_CHECKING:
    from jaxcomp.experiments.sweep.pictures.elsewhere import Elsewhere

FORMATS = ("png", "svg", "pdf")


class Picture(NamedTuple):
    """A picture of one setting that is still to be drawn."""

    stem: str
    name: str
    """Of its files: the stem, and the setting's name if there are several."""
    draw: Callable[[], Figure]
    formats: Sequence[str]


def save_figures(
    table: pd.DataFrame,
    directory: Path | str,
    *,
    formats: Sequence[str] = FORMATS,
    claims: Sequence[Claim] | None = None,
    smallest: Sequence[SmallestNetwork] = (),
    words: TaskWords = CLASSIFICATION,
    elsewhere: "Elsewhere | None" = None,
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
        elsewhere: a process that was asked for some of them, in the same formats.

    Returns:
        The files.

    Raises:
        ValueError: on another format, or a table that cannot be drawn.
        OSError: if the directory cannot be written to.
    """
    for form in formats:
        if form not in FORMATS:
            raise ValueError(f"pictures can be written as {', '.join(FORMATS)}; got {form!r}.")
    files: list[Path] = []

    def write(
        name: str, encoded: Iterator[bytes] | Sequence[bytes], formats: Sequence[str]
    ) -> None:
        for form, data in zip(formats, encoded, strict=True):
            files.append(Path(directory) / f"{name}.{form}")
            storage.write_bytes_atomic(files[-1], data)

    if claims and has_map(claims):
        for name, figure in map_figures(table, claims).items():
            write(name, _encoded(figure, formats), formats)
    later: list[Picture] = []
    for picture in pictures_of_settings(table, claims, smallest, words, formats):
        if elsewhere is not None and elsewhere.draws(picture):
            later.append(picture)
        else:
            write(picture.name, encoded_picture(picture), picture.formats)
    drawn = elsewhere.answer() if elsewhere is not None else {}
    for picture in later:
        write(picture.name, drawn.get(picture.name) or encoded_picture(picture), picture.formats)
    return files


def pictures_of_settings(
    table: pd.DataFrame,
    claims: Sequence[Claim] | None,
    smallest: Sequence[SmallestNetwork],
    words: TaskWords,
    formats: Sequence[str],
) -> Iterator[Picture]:
    """Every picture of every setting, as `save_figures` takes it."""
    summaries = summarize(table, words)
    are_many = len(summaries) > MOST_IN_FULL
    for summary in summaries:
        members = claims_of(claims, summary.name, len(summaries))
        own = next((found for found in smallest if found.setting == summary.name), None)
        figures = _figures(summary, members, own)
        for stem, draw in itertools.islice(figures, 1 if are_many else None):
            name = picture_name(stem, summary.name, len(summaries))
            yield Picture(stem, name, draw, formats[:1] if are_many else formats)


def encoded_picture(picture: Picture) -> Iterator[bytes]:
    """Draw a picture: a file for each of its formats."""
    return _encoded(picture.draw(), picture.formats)


def _encoded(figure: Figure, formats: Sequence[str]) -> Iterator[bytes]:
    drawing.freeze_layout(figure)
    return (drawing.encoded(figure, form) for form in formats)


def _figures(
    summary: Summary, claims: Sequence[Claim], smallest: SmallestNetwork | None
) -> Iterator[tuple[str, Callable[[], Figure]]]:
    yield "sweep", partial(overview_figure, summary, claims, smallest)
    yield "sweep-details", partial(details_figure, summary, claims)
    if summary.columns.issuperset(BOUND_COLUMNS) and has_bound(summary):
        yield "bound", partial(bound_figure, summary)
    if summary.columns.issuperset(RISE_COLUMNS) and has_rise(summary):
        yield "predicted-rise", partial(rise_figure, summary)
    if summary.columns.issuperset(LIMIT_COLUMNS) and has_limit(summary):
        yield "limit", partial(limit_figure, summary)
