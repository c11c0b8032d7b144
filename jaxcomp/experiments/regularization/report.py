"""The report of a run in words and numbers: in the terminal, and as Markdown."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxcomp.experiments.regularization.claims import Claim
from jaxcomp.experiments.regularization.config import Variant
from jaxcomp.experiments.regularization.rounding import DIM, NUM_EXAMPLES
from jaxcomp.experiments.reporting import (
    Labelled,
    Told,
    markdown_claims,
    markdown_labelled,
    markdown_table,
    print_claims,
    print_files,
    print_labelled,
    print_text,
)
from jaxcomp.experiments.verdicts import p_words, signed

HOW = "strengths were chosen on the validation set, the test set was looked at once"
NOTES = (
    "Means over networks. Bits a weight and bytes at one step for all; implied: the prior that the "
    "penalty says; Gaussian and spike: fitted and charged; bytes: a stream that was "
    "decoded again, dead parts removed, with a spike (a coder spends some 24 bits on the rarest "
    "weights, so that it may need less than a thin-tailed prior says).",
    "Against none: paired change of the test loss, with half the width of its 95 % interval.",
    "Description: weights and training labels at the best step, in kbit. R: nats at the implied "
    "prior, from the diagonal of the curvature. Bound: sqrt(R / 2n) on the 0-1 gap, of a sample of "
    "a posterior whose information is R (exact for linear models; here an estimate that certifies "
    "nothing). Certificate: on the population error, from the bits of a file at the best step, "
    "which was read again; to guess one class is 0.9 where there are ten.",
)

ENTROPY_NOTE = (
    "Entropy of a rounded model, which is all that it can say about its data set. By the density: "
    "h(W) - d log2(step), from the exact density of the solution over all data sets that could be "
    "drawn; the limit for fine steps. By the counts: Miller's and Madow's estimate from the data "
    "sets that were drawn."
)


class Column(NamedTuple):
    """A column of the table."""

    header: str
    """Two lines, for the terminal."""
    source: str
    factor: float
    decimals: int


COLUMNS = (
    Column("bits\nimpl.", "bits_per_weight_implied", 1, 2),
    Column("bits\nGauss", "bits_per_weight_gaussian", 1, 2),
    Column("bits\nspike", "bits_per_weight_spike", 1, 2),
    Column("\nbytes", "bytes_smaller", 1, 0),
    Column("zeros\n%", "zero_share", 100, 1),
    Column("descr.\nkbit", "description_bits", 1e-3, 1),
    Column("train\nloss", "train_loss", 1, 4),
    Column("test\nloss", "test_loss", 1, 4),
    Column("against\nnone", "loss_change", 1, 4),
    Column("tem-\npered", "test_loss_tempered", 1, 4),
    Column("accu-\nracy %", "test_accuracy", 100, 2),
    Column("R\nnats", "rate_nats_implied", 1, 0),
    Column("\nbound", "gap_bound", 1, 2),
    Column("\ncert.", "certificate", 1, 2),
)
# A window has no room for these; Markdown has.
FILE_COLUMNS = (
    Column("file\nbytes", "certificate_bytes", 1, 0),
    Column("ideal\nbytes", "certificate_ideal_bytes", 1, 0),
)


def print_report(
    table: pd.DataFrame,
    rounding: pd.DataFrame,
    claims: Sequence[Claim],
    *,
    console: Console,
    directory: Path | None = None,
) -> None:
    """Print four lines of what was found, then numbers, claims and files.

    Args:
        table: one row per variant and network.
        rounding: models left by rounding.
        claims: in order.
        console: where to.
        directory: of the result's files, which are then listed.
    """
    print_labelled(console, first_lines(table, claims))
    console.print()
    print_text(console, Text(title(table), style="bold"))
    for note in (*NOTES, file_line(table)):
        print_text(console, Text(note, style="italic"))
    grid = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="")
    grid.add_column("", no_wrap=True)
    for column in COLUMNS:
        grid.add_column(Text(column.header), justify="right", no_wrap=True)
    for line in _lines(table):
        grid.add_row(*(Text(cell) for cell in line))
    console.print(grid)
    print_claims(console, [_told(claim) for claim in claims], HOW)
    console.print()
    for line in rounding_lines(rounding):
        print_text(console, Text(line))
    if directory is not None:
        print_files(console, directory)


def report_markdown(
    table: pd.DataFrame,
    rounding: pd.DataFrame,
    claims: Sequence[Claim],
    *,
    with_pictures: bool = False,
) -> str:
    """Return the same report as Markdown, text that ends with a newline."""
    columns = (*COLUMNS, *FILE_COLUMNS)
    headers = ["", *(" ".join(column.header.split()) for column in columns)]
    align = [":--", *["--:"] * len(columns)]
    parts = ["# Regularization as compression", f"## {title(table)}"]
    parts.append(markdown_labelled(first_lines(table, claims)))
    if with_pictures:
        parts.append("![every quantity against the strength](regularization.png)")
    parts += ["### Claims", markdown_claims([_told(claim) for claim in claims])]
    parts += ["### Numbers", *NOTES, file_line(table)]
    parts.append(markdown_table([headers, align, *_lines(table, columns)]))
    parts.append("### Models that rounding leaves")
    if with_pictures:
        parts.append("![models left by rounding](rounding.png)")
    parts.append("\n".join(f"- {line}" for line in rounding_lines(rounding)))
    return "\n\n".join(parts) + "\n"


def first_lines(table: pd.DataFrame, claims: Sequence[Claim]) -> Labelled:
    """What was trained, and what the three questions that everybody asks first came to.

    Whether more L2 means fewer bits, whether a penalty gives a better network, and whether the
    description of the weights pays for itself.
    """
    by_name = {claim.name: claim for claim in claims}
    strengths = table.groupby("kind")["variant"].nunique()
    counts = [f"{strengths[kind]} of {kind.upper()}" for kind in ("l2", "l1") if kind in strengths]
    return [
        ("trained", f"{title(table)}, {', '.join(counts)}" if counts else title(table)),
        ("bits", _bits_line(by_name.get("fewer bits, fitted prior"))),
        ("better", _better_line(table, by_name)),
        ("description", _description_line(by_name)),
    ]


def _bits_line(claim: Claim | None) -> str:
    if claim is None:
        return "not asked: that takes two strengths of L2"
    change = "saves" if claim.effect < 0 else "costs"
    told = f"ten times the L2 {change} {abs(claim.effect):.2f} bits a weight, fitted Gaussian code"
    doubt = "" if claim.verdict in ("holds", "opposite") else f"{claim.verdict}: "
    return f"{doubt}{told} ({p_words(claim.p_adjusted)})"


def _better_line(table: pd.DataFrame, by_name: dict[str, Claim]) -> str:
    asked = [by_name[name] for name in ("test loss, L2", "test loss, L1") if name in by_name]
    if not asked:
        return "not asked: there is no penalty"
    told = [
        f"{_label(table, claim.variant)} {'yes' if claim.holds else claim.verdict}, test loss "
        f"{claim.value:.3f} ({p_words(claim.p_adjusted)})"
        for claim in asked
    ]
    rows = table.loc[table["kind"] == "temperature", "test_loss"]
    beside = [f"no penalty {asked[0].reference_value:.3f}"]
    beside += [f"one temperature alone {rows.mean():.3f}"] if len(rows) else []
    return "; ".join([*told, *beside])


def _description_line(by_name: dict[str, Claim]) -> str:
    told = []
    for symbol in ("L2", "L1"):
        claim = by_name.get(f"weights pay, {symbol}")
        if claim is not None:
            word = {"holds": "pays", "opposite": "does not pay"}.get(claim.verdict, claim.verdict)
            told.append(f"{symbol} {word}, {claim.value:.2f} bits a label")
    if not told:
        return "not asked: there is no penalty"
    claim = by_name.get("weights pay, L2", by_name.get("weights pay, L1"))
    assert claim is not None
    return "; ".join([*told, f"labels alone {claim.reference_value:.2f}"])


def _label(table: pd.DataFrame, variant: str) -> str:
    rows = table.loc[table["variant"] == variant]
    return Variant(rows["kind"].iloc[0], float(rows["strength"].iloc[0])).label


def title(table: pd.DataFrame) -> str:
    """What was trained, in a few words."""
    num_models = len(set(table["model_seed"].tolist()))
    networks = "1 network" if num_models == 1 else f"{num_models} networks"
    weights = f"{int(table['num_weights'].iloc[0]):,} weights"
    return f"{table['dataset'].iloc[0]}: {networks} of {weights} for every strength"


def rounding_lines(rounding: pd.DataFrame) -> list[str]:
    """What rounding leaves, in a sentence for every number of decimals."""
    lines = []
    groups: Any = rounding.groupby("decimals")
    for decimals, rows in groups:
        first, last = rows.iloc[0], rows.iloc[-1]
        lines.append(
            f"Linear regression with {DIM} weights and {NUM_EXAMPLES} examples, rounded to "
            f"{decimals} decimal{'' if decimals == 1 else 's'}: of "
            f"{first['num_problems']:,.0f} data sets drawn, {first['distinct_models']:,.0f} "
            f"different models remain without a penalty "
            f"({_entropy(first)}) and {last['distinct_models']:,.0f} at ridge penalty "
            f"{last['penalty']:g} ({_entropy(last)})."
        )
    return [*lines, ENTROPY_NOTE]


def _entropy(row: Any) -> str:
    """The entropy of a rounded model; of the counts only where they can show it."""
    density, num_problems = float(row["entropy_bits_exact"]), float(row["num_problems"])
    told = [] if math.isnan(density) else [f"{density:.2f} bits by the density"]
    if row["distinct_models"] < num_problems / 2:
        told.append(f"{row['entropy_bits']:.2f} bits by the counts")
    else:
        told.append(f"the counts show {math.log2(num_problems):.2f} bits at most")
    return "entropy: " + ", ".join(told)


def file_line(table: pd.DataFrame) -> str:
    """How long the files of the certificates are, against the ideal lengths of fitted codes."""
    sizes, ideal = (
        table[name].to_numpy(float) for name in ("certificate_bytes", "certificate_ideal_bytes")
    )
    shares = sizes / ideal - 1
    low, mean, high = (
        signed(100 * share, 1) for share in (shares.min(), shares.mean(), shares.max())
    )
    return (
        "Files of the certificates against the ideal length of the shortest fitted code at their "
        f"step: {mean} % ({low} to {high} %)."
    )


def _lines(table: pd.DataFrame, columns: Sequence[Column] = COLUMNS) -> list[list[str]]:
    lines = []
    groups: Any = table.groupby("variant", sort=False)
    for _, rows in groups:
        label = Variant(rows["kind"].iloc[0], float(rows["strength"].iloc[0])).label
        line = [label]
        for column in columns:
            mean = float(rows[column.source].to_numpy(float).mean())
            told = "" if math.isnan(mean) else f"{column.factor * mean:,.{column.decimals}f}"
            if column.source == "loss_change" and rows["kind"].iloc[0] != "none":
                half = float(rows["loss_change_high"].iloc[0] - rows["loss_change_low"].iloc[0]) / 2
                told = f"{mean:+.3f}±{half:.3f}"
            line.append(told)
        lines.append(line)
    return lines


def _told(claim: Claim) -> Told:
    return Told(claim.name, claim.verdict, claim.sentence)
