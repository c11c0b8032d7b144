"""The map of a sweep over several settings in words: a line of numbers for each."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxcomp.experiments.reporting import Labelled, markdown_table
from jaxcomp.experiments.sweep import beyond_controls
from jaxcomp.experiments.sweep.claims import Claim
from jaxcomp.experiments.sweep.summary import Summary, control_name
from jaxcomp.experiments.verdicts import p_words, percent, signed

COLUMNS = ("setting", "original", "against it", "compressed", "best control", "against that", "")
NOTE = (
    "Tempered test losses: of the original in nats, the best compressed network against it, and "
    "against the best control, which compresses nothing, in % of the original's, with the "
    "interval. Compressed network and control were chosen on the validation set; p allows for "
    "both choices and for all settings."
)
_MARKS = {
    "holds": "better",
    "opposite": "worse",
    "no practical difference": "no difference",
    "not shown": "not shown",
}


def map_claims(claims: Sequence[Claim] | None) -> dict[str, Claim]:
    """Return the claims beyond controls by setting; none if there is no map of several."""
    found = {c.setting: c for c in claims or () if c.name == beyond_controls.NAME}
    return found if len(found) > 1 else {}


def map_headline(found: dict[str, Claim]) -> Labelled:
    """Say in two lines where compression helps."""
    num = len(found)
    by_verdict = {
        verdict: [c for c in found.values() if c.verdict == verdict] for verdict in _MARKS
    }
    counted = ", ".join(
        f"{_MARKS[verdict]} in {len(own)}" for verdict, own in by_verdict.items() if own
    )
    lines = [("map", f"compression against what compresses nothing in {num} settings: {counted}")]
    if held := by_verdict["holds"]:
        best = min(held, key=lambda claim: claim.relative_effect or 0.0)
        told = (
            f"yes, most in {best.setting} by {percent(-(best.relative_effect or 0.0), 2)} of the "
            f"loss ({best.description}; {p_words(best.p_adjusted)})"
        )
    else:
        told = "no setting of the map shows that compression gives what nothing else gives"
    return [*lines, ("better", told)]


def map_rows(
    summaries: Sequence[Summary], found: dict[str, Claim], claims: Sequence[Claim]
) -> list[list[str]]:
    """Return the numbers of every setting, as words in the order of `COLUMNS`."""
    tempered = {c.setting: c for c in claims if c.name == "tempered loss"}
    rows = []
    # What all have in common needs no column.
    kinds = {tuple(summary.subject.split(", ")[:2]) for summary in summaries}
    for summary in summaries:
        claim, own = found.get(summary.name), tempered.get(summary.name)
        if claim is None or own is None:
            continue
        share = (claim.relative_effect or 0.0) / claim.effect if claim.effect else 0.0
        low, high = 100 * share * claim.low, 100 * share * claim.high
        rows.append(
            [
                ", ".join(summary.subject.split(", ")[2 if len(kinds) == 1 else 0 :]),
                f"{summary.original.mean('test_loss_tempered'):.3f}",
                f"{signed(100 * (own.relative_effect or 0.0), 1)} %",
                claim.description,
                control_name(claim.control or ""),
                f"{signed(100 * (claim.relative_effect or 0.0), 1)} % ({signed(low, 1)} to "
                f"{signed(high, 1)}), "
                f"{p_words(claim.p_adjusted)}",
                _MARKS[claim.verdict],
            ]
        )
    return rows


def print_map(console: Console, rows: Sequence[Sequence[str]]) -> None:
    """Print the numbers of every setting."""
    grid = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="")
    for number, header in enumerate(COLUMNS):
        grid.add_column(header, justify="right" if number in (1, 2, 5) else "left")
    for row in rows:
        grid.add_row(*map(Text, row))
    console.print(grid)


def markdown_map(rows: Sequence[Sequence[str]]) -> str:
    """Return the numbers of every setting as a table."""
    kinds = [":--", "--:", "--:", ":--", ":--", "--:", ":--"]
    return markdown_table([list(COLUMNS), kinds, *map(list, rows)])
