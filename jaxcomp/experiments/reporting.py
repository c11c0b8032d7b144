"""Parts of a report in the terminal that every experiment prints alike: claims and files."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

VERDICT_MARKS = {
    "holds": ("HOLDS", "bold green"),
    "opposite": ("OPPOSITE", "bold red"),
    "no practical difference": ("NO DIFFERENCE", "yellow"),
    "not shown": ("NOT SHOWN", "yellow"),
}
FILE_GROUPS = (
    ("table", (".csv", ".parquet")),
    ("report", (".md", ".json")),
    ("pictures", (".png", ".svg", ".pdf")),
)


class Told(NamedTuple):
    """A decided claim as it is told."""

    name: str
    verdict: str
    sentence: str


def print_claims(console: Console, claims: Sequence[Told], how: str) -> None:
    """Print claims with their verdicts, one below the other.

    Args:
        console: where to.
        claims: in order.
        how: on what data they were decided, in a few words.
    """
    console.print()
    if not claims:
        console.print("No claims were made.")
        return
    num_held = sum(claim.verdict == "holds" for claim in claims)
    print_text(
        console,
        Text.assemble((f"{num_held} of {len(claims)} claims hold", "bold"), f"; {how}"),
    )
    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    grid.add_column(width=13, no_wrap=True)
    grid.add_column()
    for claim in claims:
        mark, style = VERDICT_MARKS.get(claim.verdict, (claim.verdict.upper(), "bold"))
        grid.add_row(
            Text(mark, style=style), Text.assemble((claim.name, "bold"), ". ", claim.sentence)
        )
    console.print(grid)


def print_files(console: Console, directory: Path) -> None:
    """List the files of a result, grouped by what they are."""
    names = sorted(file.name for file in directory.iterdir()) if directory.is_dir() else []
    console.print()
    # A path that is cut into lines cannot be copied.
    console.print(Text.assemble(("files in ", "bold"), str(directory)), soft_wrap=True)
    for group, suffixes in FILE_GROUPS:
        members: dict[str, list[str]] = {}
        for suffix in suffixes:
            for name in names:
                if name.endswith(suffix):
                    members.setdefault(Path(name).stem, []).append(suffix)
        if members:
            listed = ", ".join(stem + " ".join(found) for stem, found in members.items())
            console.print(Padding(Text(f"{group}: {listed}"), (0, 0, 0, 2)))


def print_text(console: Console, text: Text) -> None:
    """Print prose; numbers in it stay in its colour."""
    console.print(text, highlight=False)


def markdown_claims(claims: Sequence[Told]) -> str:
    """Return claims as a numbered list."""
    if not claims:
        return "No claims were made."
    return "\n".join(
        f"{number}. **{claim.name}: {claim.verdict}.** {escaped(claim.sentence)}"
        for number, claim in enumerate(claims, start=1)
    )


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as a table; the second row says how columns are aligned."""
    return "\n".join("| " + " | ".join(escaped(cell) for cell in cells) + " |" for cells in lines)


def escaped(text: str) -> str:
    """Return text that does not end a cell of a table."""
    return text.replace("|", "\\|")
