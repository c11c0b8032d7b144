"""Parts of a report that every experiment prints alike: first lines, claims, files."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

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
# Of many files that a person may open.
FOLDERS = (("compressed", ".jxc"), ("compressed", ".jxr"))


Labelled: TypeAlias = Sequence[tuple[str, str]]
"""The first lines of a report: what each is about, in a word or two, and what was found."""


class Told(NamedTuple):
    """A decided claim as it is told."""

    name: str
    verdict: str
    sentence: str


def brief(name: str, found: Sequence[Labelled], see: str) -> str:
    """Return a result in five lines at most, for `repr`.

    Args:
        name: of its class.
        found: the first lines of every setting.
        see: where the rest is.
    """
    if len(found) == 1:
        (_, first), *rest = found[0]
        lines = [f"{name}: {first}", *(f"  {label}: {text}" for label, text in rest[:3])]
    else:
        shown = found if len(found) <= 3 else found[:2]
        lines = [f"{name} of {len(found)} settings"]
        for (_, first), (label, text), *_ in shown:
            lines.append(f"  {first}; {label}: {text}")
        if len(found) > len(shown):
            lines.append(f"  and {len(found) - len(shown)} more settings")
    return "\n".join([*lines, f"  see {see}"])


def print_labelled(console: Console, lines: Labelled) -> None:
    """Print the first lines of a report, each behind what it is about."""
    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    grid.add_column(width=max(len(label) for label, _ in lines), no_wrap=True)
    grid.add_column()
    for label, text in lines:
        grid.add_row(Text(label, style="bold"), Text(text))
    console.print(grid)


def markdown_labelled(lines: Labelled) -> str:
    """Return the first lines of a report as a list."""
    return "\n".join(f"- **{label}:** {escaped(text)}" for label, text in lines)


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


def print_as_it_is(console: Console, report: str, directory: Path | None) -> None:
    """Print a report that has its own lines, and the files of the result, if it has any."""
    console.out(report, highlight=False)
    if directory is not None:
        print_files(console, directory)


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
    for folder, suffix in FOLDERS:
        if number := sum(1 for _ in (directory / folder).glob(f"*{suffix}")):
            listed = f"{folder}: {number} files ({suffix})"
            console.print(Padding(Text(listed), (0, 0, 0, 2)))


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
