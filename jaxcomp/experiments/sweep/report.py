"""The report of a sweep in words: in the terminal, and as Markdown.

Four lines first: what was compressed, the smallest size at no loss, whether anything generalises
better, what calibration alone gives. Then one compact table for every setting (the whole one is
in `table.csv`), the claims with their verdicts, and where the files are. Losses and gaps in nats
per example, accuracy and expected calibration error in per cent; mean over networks, plus or minus
their standard deviation.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

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
from jaxcomp.experiments.sweep.claims import Claim
from jaxcomp.experiments.sweep.headline import headline
from jaxcomp.experiments.sweep.importance import importance_name
from jaxcomp.experiments.sweep.map_report import (
    NOTE,
    map_claims,
    map_headline,
    map_rows,
    markdown_map,
    print_map,
)
from jaxcomp.experiments.sweep.smallest import SmallestNetwork
from jaxcomp.experiments.sweep.summary import (
    BASELINE_NAMES,
    MOST_IN_FULL,
    Curve,
    Summary,
    VariantSummary,
    best_variant,
    claims_of,
    control_names,
    map_names,
    picture_name,
    summarize,
)
from jaxcomp.experiments.sweep.task_words import CLASSIFICATION, TaskWords

__all__ = ["headlines", "print_report", "report_markdown"]

_FILES = (
    "Ratio: bytes of the original's arrays over those of the file, with all in it that the network "
    "needs; the file was written, read again and compared bit for bit with what was evaluated. "
    "Its codes are the quick ones."
)
_NO_FILES = (
    "Ratio: estimated, bits of 32-bit weights over the entropy of the codes and the codebooks, "
    "without biases; with constriction installed (jaxcomp[coding]) it is that of files."
)
FIXED_CLUSTERS = (2, 4, 8, 16, 32)
_HOW = "variants were chosen on the validation set, the test set was looked at once"


class Column(NamedTuple):
    """A column of the compact table."""

    name: str
    header: str
    """Two lines, for the terminal."""
    source: str
    """Column of the sweep's table; empty for the name of the row."""
    factor: float
    decimals: int
    has_deviation: bool
    width: int
    """Characters, with the deviation where there is one."""
    short_width: int
    """Characters without the deviation; 0 if the column is left out in a narrow window."""


# Stands for the column of the sweep's table that says it: that of files, or the estimate.
_RATIO = "ratio"
COLUMNS = (
    Column("compression", "\ncompression", "", 1.0, 0, False, 27, 27),
    Column("K", "\nK", "num_clusters", 1.0, 0, False, 3, 3),
    Column("ratio", "\nratio", _RATIO, 1.0, 1, False, 5, 5),
    Column("size, kB", "size\nkB", "size_bytes", 1e-3, 1, False, 6, 0),
    Column("train loss", "train\nloss", "train_loss", 1.0, 4, True, 13, 6),
    Column("test loss", "test\nloss", "test_loss", 1.0, 3, True, 11, 6),
    Column("{} test loss", "{}\nloss", "test_loss_tempered", 1.0, 3, True, 11, 8),
    Column("gap", "\ngap", "generalization_gap", 1.0, 3, False, 6, 6),
)
# Of a task with classes.
_CALIBRATION_ERROR = Column("ECE", "\nECE", "calibration_error", 100.0, 1, False, 5, 5)
# What stands in place of the size where there are no files.
_RATE = Column("bits per weight", "bits/\nweight", "entropy_bits_per_weight", 1.0, 2, False, 6, 0)


# The table of distances: header, column of the sweep's table, decimals.
LIMIT_COLUMNS = (
    ("bits per weight", "entropy_bits_per_weight", 2),
    ("limit", "limit_bits_per_weight", 2),
    ("above the limit", "excess_bits_per_weight", 2),
    ("Shannon bound", "shannon_bits_per_weight", 2),
    ("predicted rise", "predicted_rise_nats", 0),
)
LIMIT_NOTE = (
    "Entropy of the symbols against the least that any code of independent symbols needs for the "
    "same distortion, twice the predicted rise of the training loss; certified by Blahut-Arimoto "
    "duality, with one codebook per layer. The Shannon bound takes the weights as if they had a "
    "density. A code that knows more than a weight's own value may go below the limit."
)
# What the terminal shows of it.
_LIMIT_CLUSTERS = (4, 16)


class Line(NamedTuple):
    """A row of the compact table."""

    label: str
    variant: VariantSummary


class Section(NamedTuple):
    """Rows of the compact table that belong together."""

    title: str
    lines: list[Line]


def headlines(
    table: pd.DataFrame,
    claims: Sequence[Claim] | None,
    smallest: Sequence[SmallestNetwork],
    words: TaskWords = CLASSIFICATION,
) -> list[Labelled]:
    """The four lines of every setting, see `jaxcomp.experiments.sweep.headline`.

    Args:
        table: as `SweepResult.table`, of one setting or several.
        claims: as `SweepResult.claims`; empty or None if none were made.
        smallest: as `SweepResult.smallest`.
        words: of the task.

    Raises:
        ValueError: if the table lacks columns or the originals.
    """
    summaries = summarize(table, words)
    return [
        _headline(summary, claims_of(claims, summary.name, len(summaries)), smallest)
        for summary in summaries
    ]


def print_report(
    table: pd.DataFrame,
    claims: Sequence[Claim] | None,
    smallest: Sequence[SmallestNetwork] = (),
    *,
    words: TaskWords = CLASSIFICATION,
    console: Console,
    directory: Path | str | None = None,
) -> None:
    """Print what a sweep found: four lines for each setting, then numbers, claims, files.

    Args:
        table: as `SweepResult.table`, of one setting or several.
        claims: as `SweepResult.claims`; empty or None if none were made.
        smallest: as `SweepResult.smallest`.
        words: of the task.
        console: where to; the table takes 112 columns and drops deviations below that.
        directory: of the result's files, which are then listed.

    Raises:
        ValueError: if the table lacks columns or the originals.
    """
    summaries = summarize(table, words)
    members = [claims_of(claims, summary.name, len(summaries)) for summary in summaries]
    if on_map := map_claims(claims):
        print_labelled(console, map_headline(on_map))
        console.print()
        print_map(console, map_rows(summaries, on_map, claims or ()))
        console.print()
        print_text(console, Text(NOTE, style="italic"))
        if len(summaries) > MOST_IN_FULL:
            told = "Numbers and claims of every setting are in report.md, table.csv, claims.json."
            print_text(console, Text(told, style="italic"))
            if directory is not None:
                print_files(console, Path(directory))
            return
        console.print()
    for number, (summary, found) in enumerate(zip(summaries, members, strict=True)):
        if number:
            console.print()
        print_labelled(console, _headline(summary, found, smallest))
    console.print()
    print_text(console, Text(words.explanation, style="italic"))
    for summary, found in zip(summaries, members, strict=True):
        console.print()
        title = Text(summary.description, style="bold")
        console.print(Rule(title, align="left", characters=_dash(console)))
        _print_table(console, summary)
        _print_limits(console, summary)
        print_claims(console, _told(found), _HOW)
    told = [claim for found in members for claim in found]
    rest = [claim for claim in claims or () if claim not in told]
    if rest:
        console.print(Text("\nother claims", style="bold"))
        print_claims(console, _told(rest), _HOW)
    if directory is not None:
        print_files(console, Path(directory))


def report_markdown(
    table: pd.DataFrame,
    claims: Sequence[Claim] | None,
    smallest: Sequence[SmallestNetwork] = (),
    *,
    words: TaskWords = CLASSIFICATION,
    with_pictures: bool = False,
) -> str:
    """Return the same report as Markdown.

    Args:
        table: as `SweepResult.table`, of one setting or several.
        claims: as `SweepResult.claims`; empty or None if none were made.
        smallest: as `SweepResult.smallest`.
        words: of the task.
        with_pictures: whether to show the PNG files that `save_figures` writes beside it.

    Returns:
        Text that ends with a newline.

    Raises:
        ValueError: if the table lacks columns or the originals.
    """
    summaries = summarize(table, words)
    parts = ["# Rate sweep"]
    told: list[Claim] = []
    are_many = len(summaries) > MOST_IN_FULL
    if on_map := map_claims(claims):
        parts += ["## Where does compression help?", markdown_labelled(map_headline(on_map))]
        if with_pictures:
            parts += [f"![where compression helps]({name}.png)" for name in map_names(table)]
        parts += [NOTE, markdown_map(map_rows(summaries, on_map, claims or ()))]
    for summary in summaries:
        members = claims_of(claims, summary.name, len(summaries))
        told += members
        parts.append(f"## {summary.description}")
        parts.append(markdown_labelled(_headline(summary, members, smallest)))
        if with_pictures:
            pictures = ("sweep", "the test loss"), ("sweep-details", "every quantity")
            for stem, shown in pictures[: 1 if are_many else None]:
                file = picture_name(stem, summary.name, len(summaries))
                parts.append(f"![{shown} against the compression ratio]({file}.png)")
        parts += ["### Claims", words.explanation, markdown_claims(_told(members))]
        parts += ["### Numbers", _numbers_note(summary, "±"), _markdown_table(summary)]
        lines = _limit_lines(summary)
        if lines:
            parts.append("### Distance to the limit")
            if with_pictures and not are_many:
                file = picture_name("limit", summary.name, len(summaries))
                parts.append(f"![distortion and bits above the limit]({file}.png)")
            parts += [LIMIT_NOTE, _markdown_limits(lines)]
    rest = [claim for claim in claims or () if claim not in told]
    if rest:
        parts += ["## Other claims", markdown_claims(_told(rest))]
    return "\n\n".join(parts) + "\n"


def _headline(
    summary: Summary, claims: Sequence[Claim], smallest: Sequence[SmallestNetwork]
) -> Labelled:
    own = next((found for found in smallest if found.setting == summary.name), None)
    return headline(summary, claims, own).labelled()


def _sections(summary: Summary) -> list[Section]:
    """Choose the rows of the compact table, at most some 25."""
    chosen: list[Line] = []
    for curve in summary.main_curves():
        best = best_variant(curve.variants, "validation_loss")
        if best is not None:
            chosen.append(Line(_curve_label(curve, summary), best))
    fixed: list[Line] = []
    plain = summary.plain_curve()
    if plain is not None:
        for variant in sorted(plain.variants, key=lambda variant: variant.num_clusters):
            if variant.num_clusters in FIXED_CLUSTERS:
                fixed.append(Line(_curve_label(plain, summary), variant))
    sections = [
        Section("", [Line("original", summary.original)]),
        Section("K-means, K with the lowest raw loss on the validation set", chosen),
        Section("K-means at fixed K", fixed),
        Section("Other quantizers", list(_baselines(summary))),
        Section("Controls: nothing is compressed", list(_controls(summary))),
    ]
    return [section for section in sections if section.lines]


def _curve_label(curve: Curve, summary: Summary) -> str:
    importance = importance_name(curve.importance).label
    if not curve.is_penalised:
        return f"{importance}, no penalty"
    form = curve.penalty_form if summary.has_several_forms else "penalty"
    return f"{importance}, {form} {curve.diameter_penalty:g}"


def _baselines(summary: Summary) -> Iterator[Line]:
    for family in summary.families:
        best = best_variant(family.variants, "validation_loss")
        if best is not None:
            yield Line(family.label, best)
    best = best_variant(summary.of("compressed", "uniform"), "validation_loss")
    if best is not None:
        yield Line(f"{BASELINE_NAMES['uniform']}, best K", best)
    for variant in summary.of("compressed", "round_to_nearest"):
        yield Line(f"int{variant.parameter:g} per channel", variant)
    best = best_variant(summary.of("compressed", "magnitude_pruning"), "validation_loss")
    if best is not None:
        yield Line(f"{100 * best.parameter:g} % of weights pruned", best)


def _controls(summary: Summary) -> Iterator[Line]:
    for method, name in control_names(summary).items():
        best = best_variant(summary.of("control", method), "validation_loss")
        if best is None:
            continue
        if method == "last_layer_scaled":
            yield Line(f"last layer times {best.parameter:g}", best)
        elif method == "weights_clipped":
            yield Line(f"weights clipped at {100 * best.parameter:g} %", best)
        elif method == "gaussian_noise":
            noise = _noise_of_chosen(summary) or best
            yield Line(f"noise as strong as K={noise.num_clusters}", noise)
        else:
            yield Line(name, best)


def _limit_lines(summary: Summary, num_clusters: Sequence[int] = ()) -> list[Line]:
    """Every variant without a penalty whose distance to the limit is known.

    Args:
        summary: of one setting.
        num_clusters: the only K wanted; all if there are none.
    """
    groups = [
        (f"K-means, {importance_name(curve.importance).label}", curve.variants)
        for curve in summary.curves
        if not curve.is_penalised
    ]
    groups += [(family.label, family.plain) for family in summary.families]
    groups += [(BASELINE_NAMES[name], summary.of("compressed", name)) for name in ("uniform",)]
    rounded = summary.of("compressed", "round_to_nearest")
    groups += [(f"int{variant.parameter:g} per channel", [variant]) for variant in rounded]
    pruned = summary.of("compressed", "magnitude_pruning")
    groups += [
        (f"{100 * variant.parameter:g} % of weights pruned", [variant]) for variant in pruned
    ]
    return [
        Line(label, variant)
        for label, variants in groups
        for variant in sorted(variants, key=lambda variant: variant.num_clusters)
        if not math.isnan(variant.mean("excess_bits_per_weight"))
        and (not num_clusters or variant.num_clusters in (0, *num_clusters))
    ]


def _limit_numbers(line: Line) -> list[str]:
    """The entries of one row of the table of distances."""
    shown = f"{line.variant.num_clusters}" if line.variant.num_clusters else "-"
    numbers = [line.variant.mean(source) for _, source, _ in LIMIT_COLUMNS]
    return [
        line.label,
        shown,
        *(
            (f"{number:.{decimals}f}" if decimals else f"{number:.1e}")
            for number, (_, _, decimals) in zip(numbers, LIMIT_COLUMNS, strict=True)
        ),
    ]


def _noise_of_chosen(summary: Summary) -> VariantSummary | None:
    """Noise as strong as the error of the chosen K: of all noise, the weakest is always best."""
    plain = summary.plain_curve()
    chosen = best_variant(plain.variants, "validation_loss") if plain is not None else None
    if chosen is None:
        return None
    noise = summary.of("control", "gaussian_noise")
    return next((variant for variant in noise if variant.num_clusters == chosen.num_clusters), None)


def _columns(summary: Summary) -> tuple[Column, ...]:
    """The columns of the compact table."""
    words, score = summary.words, summary.words.score
    above, _, last = score.label.rpartition(" ")
    decimals = 4 if score.decimals is None else score.decimals
    columns = [
        column._replace(
            name=column.name.format(words.tempered), header=column.header.format(words.tempered)
        )
        for column in COLUMNS
    ]
    columns.append(
        Column(score.label, f"{above}\n{last}", score.name, score.factor, decimals, True, 11, 8)
    )
    if _CALIBRATION_ERROR.source in summary.columns:
        columns.append(_CALIBRATION_ERROR)
    if not summary.has_files:
        return tuple(_RATE if c.source == "size_bytes" else c for c in columns)
    return tuple(columns)


def _number(line: Line, column: Column, plus_minus: str) -> str:
    """One entry of the table; a dash where there is no number."""
    if not column.source:
        return line.label
    if column.source == "num_clusters":
        # The K of a noise control is in its name: nothing was clustered.
        is_shown = line.variant.num_clusters > 0 and line.variant.kind == "compressed"
        return f"{line.variant.num_clusters}" if is_shown else "-"
    source = line.variant.ratio_column if column.source == _RATIO else column.source
    level = line.variant.level(source)
    if math.isnan(level.mean):
        return "-"
    decimals = column.decimals
    if column.has_deviation and column.factor == 1:
        # Exploded losses keep their width: 0.123, 12.34, 123.4.
        decimals = max(0, decimals - int(math.log10(max(abs(level.mean), 1.0))))
    mean = f"{column.factor * level.mean:.{decimals}f}"
    if column.source == _RATIO and level.mean >= 999.95:
        return ">999"
    if not (plus_minus and column.has_deviation) or math.isnan(level.deviation):
        return mean
    return f"{mean}{plus_minus}{column.factor * level.deviation:.{decimals}f}"


def _print_table(console: Console, summary: Summary) -> None:
    columns = _columns(summary)
    gaps = len(columns) - 1
    is_single = summary.num_models == 1
    is_ascii = console.options.ascii_only
    plus_minus = "+-" if is_ascii else "±"
    wide = [c.width + (len(plus_minus) - 1) * c.has_deviation for c in columns]
    has_deviation = not is_single and console.width >= sum(wide) + gaps
    shown, widths = columns, wide
    if not has_deviation:
        plus_minus = ""
        widths = [c.short_width or c.width for c in columns]
        if console.width < sum(widths) + gaps:
            shown = tuple(c for c in columns if c.short_width)
            widths = [c.short_width for c in shown]
    note = _numbers_note(summary, plus_minus)
    if not is_single and not has_deviation:
        note += " A window of 112 columns shows standard deviations as well."
    print_text(console, Text(note, style="dim"))
    for number, section in enumerate(_sections(summary)):
        if section.title:
            print_text(console, Text(section.title, style="bold"))
        grid = Table(
            box=None, show_header=number == 0, pad_edge=False, padding=(0, 1, 0, 0), header_style=""
        )
        for column, width in zip(shown, widths, strict=True):
            grid.add_column(
                Text(column.header),
                justify="right" if column.source else "left",
                width=width,
                no_wrap=True,
                overflow="crop" if is_ascii else "ellipsis",
            )
        for line in section.lines:
            grid.add_row(*(Text(_number(line, column, plus_minus)) for column in shown))
        console.print(grid)


def _told(claims: Sequence[Claim]) -> list[Told]:
    return [Told(claim.name, claim.verdict, _words(claim)) for claim in claims]


def _print_limits(console: Console, summary: Summary) -> None:
    lines = _limit_lines(summary, _LIMIT_CLUSTERS)
    if not lines:
        return
    print_text(console, Text("Bits per weight above the rate-distortion limit", style="bold"))
    grid = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="")
    headers = ("compression", "K", *(name for name, _, _ in LIMIT_COLUMNS))
    for number, header in enumerate(headers):
        width = COLUMNS[number].width if number < 2 else max(7, max(map(len, header.split())))
        grid.add_column(header, justify="right" if number else "left", width=width)
    for line in lines:
        grid.add_row(*map(Text, _limit_numbers(line)))
    console.print(grid)


def _words(claim: Claim) -> str:
    """Give the claim's sentence; the comparison with a control is added if it lacks it."""
    if claim.control is None:
        return f"{claim.sentence} No control was run to compare with."
    return claim.sentence


def _dash(console: Console) -> str:
    return "-" if console.options.ascii_only else "─"


def _numbers_note(summary: Summary, plus_minus: str) -> str:
    parts = [
        _units(summary),
        _FILES if summary.has_files else _NO_FILES,
    ]
    if summary.num_models > 1:
        spread = f"Mean {plus_minus} standard deviation over networks."
        parts.append(spread if plus_minus else "Means.")
    return " ".join([*parts, *_unused_clusters(summary)])


def _units(summary: Summary) -> str:
    words = summary.words
    told = f"Losses and gap in nats per {words.per}"
    if "calibration_error" in summary.columns:
        return f"{told}, accuracy and calibration error (ECE) in %."
    unit = f" in{words.score.unit}" if words.score.unit else ""
    return f"{told}, {words.score.label}{unit}."


def _unused_clusters(summary: Summary) -> list[str]:
    """Say where plain K-means found no use for all of its clusters (a penalty merges some)."""
    variants = {
        variant.num_clusters: variant
        for curve in reversed(summary.curves)
        if not curve.is_penalised
        for variant in curve.variants
        if variant.mean("num_empty") > 0
    }
    if not variants:
        return []
    told = ", ".join(f"{c.mean('num_used'):,.1f} of K = {k:,}" for k, c in sorted(variants.items()))
    return [f"Layers with few distinct weights use fewer clusters: {told} (mean over layers)."]


def _markdown_table(summary: Summary) -> str:
    columns = _columns(summary)
    lines = [[c.name for c in columns], [":--", *["--:"] * (len(columns) - 1)]]
    for section in _sections(summary):
        if section.title:
            lines.append([f"**{section.title}**", *[""] * (len(columns) - 1)])
        for line in section.lines:
            lines.append([_number(line, column, "±") for column in columns])
    return markdown_table(lines)


def _markdown_limits(lines: Sequence[Line]) -> str:
    headers = ["compression", "K", *(name for name, _, _ in LIMIT_COLUMNS)]
    rows = [headers, [":--", *["--:"] * (len(headers) - 1)]]
    rows += [_limit_numbers(line) for line in lines]
    return markdown_table(rows)
