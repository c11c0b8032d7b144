"""The commands on what runs left behind: draw it again, list it."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jaxcomp.cli.app import app
from jaxcomp.cli.options import Json, Quiet, Style, Traceback
from jaxcomp.cli.session import (
    Device,
    one_sentence_errors,
    print_text,
    report,
    show_warnings,
    start,
)
from jaxcomp.experiments.picture_style import PictureStyle, drawn_in

if TYPE_CHECKING:
    from jaxcomp.experiments.listing import FoundRun


@app.command()
def plot(
    directory: Annotated[
        Path,
        typer.Argument(help="Directory of a finished run of any of the other commands."),
    ],
    style: Style = PictureStyle.light,
    as_json: Json = False,
    quiet: Quiet = False,
    traceback: Traceback = False,
) -> None:
    """Draw the pictures of a finished run again and print its report."""
    with one_sentence_errors(traceback), drawn_in(style):
        start(Device.cpu, compilation_cache=False)
        from jaxcomp.experiments.kinds import load
        from jaxcomp.experiments.run import save

        result = load(directory)
        save(result, quiet=quiet)
        report(result, as_json=as_json)


@app.command(
    "list",
    epilog=(
        "Examples: `jaxcomp list` (the runs in the folder runs); `jaxcomp list runs --json`. "
        "A run that is locked is being worked on at this moment."
    ),
)
def list_runs(
    directory: Annotated[
        Path, typer.Argument(help="A folder; runs are looked for in it and below it.")
    ] = Path("runs"),
    as_json: Json = False,
    traceback: Traceback = False,
) -> None:
    """List runs: kind, state, when and how large, and the settings that are not the defaults."""
    with one_sentence_errors(traceback, "stopped."):
        show_warnings()
        from jaxcomp.experiments.listing import find_runs
        from jaxcomp.storage import json_line

        runs = find_runs(directory)
        if as_json:
            told = {"directory": str(directory), "runs": [run._asdict() for run in runs]}
            print_text(json_line(told))
        elif not runs:
            print_text(f"no runs in {directory} or below it.")
        else:
            print_text("\n".join(_lines(runs)))


def _lines(runs: list["FoundRun"]) -> list[str]:
    rows = [
        (run.path, run.kind, run.state, _local(run.written), f"{run.size_bytes / 1e6:.1f} MB")
        for run in runs
    ]
    widths = [max(len(row[place]) for row in rows) for place in range(5)]
    lines = []
    for row, run in zip(rows, runs, strict=True):
        *cells, size = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join([*cells, size.strip().rjust(widths[-1])]))
        told = "; ".join(f"{name} {_words(value)}" for name, value in run.changed.items())
        lines.append(f"    {told or 'the defaults'}")
    return lines


def _local(written: str) -> str:
    """A time as the clock on the wall shows it."""
    return datetime.fromisoformat(written).astimezone().strftime("%Y-%m-%d %H:%M")


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
