"""Certificates side by side, as text, JSON and a table."""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxcomp.storage import json_line

_WIDTH = 100


class Row(NamedTuple):
    """One certificate.

    Attributes:
        name: which, in a few words, after its letter in `docs/certificates.md`.
        certifies: the network that the bound is for.
        statement: what is fixed before the data, what is random, and what is charged.
        num_examples: n, the distinct labelled examples that it rests on.
        size_bits: that are charged, all told (nats of a posterior over ln 2).
        size_bytes: of what is charged, whole; None for a posterior, which is in no file.
        error: share of the n examples that the evaluated network gets wrong.
        bound: on the error in the population, with probability 1 - delta, this row alone.
        bound_together: the same where all rows are to hold at once, at delta over their number.
        deltas: how delta is split between the parts of the row.
    """

    name: str
    certifies: str
    statement: str
    num_examples: int
    size_bits: float
    size_bytes: int | None
    error: float
    bound: float
    bound_together: float
    deltas: Mapping[str, float]


@dataclass(frozen=True)
class Report:
    """A table of certificates; prints as text.

    Attributes:
        rows: each valid alone, with probability 1 - delta over the examples.
        delta: in (0, 1).
        test_error: of the network of the file, in no row; None if not given.
        num_test: how many those are.
        notes: what was found in the data and left out.
    """

    rows: tuple[Row, ...]
    delta: float
    test_error: float | None = None
    num_test: int = 0
    notes: tuple[str, ...] = field(default=())

    @property
    def best(self) -> Row:
        """The row with the lowest bound where all of them are to hold: `bound_together`."""
        return min(self.rows, key=lambda row: row.bound_together)

    def to_frame(self) -> Any:
        """Return a `pandas.DataFrame`, a row for each certificate."""
        import pandas as pd

        return pd.DataFrame(self.rows, columns=list(Row._fields))

    def to_json(self) -> str:
        """Return everything as one line of JSON."""
        told = {
            "delta": self.delta,
            "rows": [row._asdict() for row in self.rows],
            "best": {
                "name": self.best.name,
                "bound": self.best.bound_together,
                "delta_of_each": self.delta / len(self.rows),
            },
            "test_error": self.test_error,
            "num_test": self.num_test,
            "notes": self.notes,
        }
        return json_line(told)

    def __str__(self) -> str:
        cells = [["certificate", "of", "n", "bytes", "error on n", "bound"]]
        cells += [
            [
                row.name,
                row.certifies,
                f"{row.num_examples:,}",
                f"{row.size_bits / 8:,.1f}",
                f"{row.error:.2%}",
                _percent(row.bound),
            ]
            for row in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if place < 2 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in cells
        ]
        lines.insert(1, "-" * len(lines[0]))
        lines.append(f"Each row holds alone with probability {1 - self.delta:g}.")
        best = self.best
        if len(self.rows) > 1:
            lines.append(
                f"Best of these, all {len(self.rows)} at delta {self.delta:g}/{len(self.rows)}: "
                f"{best.name}, {_percent(best.bound_together)}."
            )
        if self.test_error is not None:
            lines.append(
                f"Test error of the network of the file, beside the certificates: "
                f"{self.test_error:.2%} on {self.num_test:,} examples."
            )
        lines += ["", *(_paragraph(_told(row)) for row in self.rows)]
        lines += [_paragraph(note) for note in self.notes]
        return "\n".join(lines)


def _told(row: Row) -> str:
    """Return what a row states, and how delta is split if it is."""
    told = f"{row.name}: {row.statement}"
    if len(row.deltas) < 2:
        return told
    parts = " + ".join(f"{part:.4g} ({name})" for name, part in row.deltas.items())
    return f"{told} Delta, split beforehand: {parts}."


def _percent(bound: float) -> str:
    """Return a bound in percent, rounded up, or that it says nothing."""
    if bound >= 1:
        return "says nothing"
    return f"{-(-bound * 10_000 // 1) / 100:.2f}%"


def _paragraph(text: str) -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent="  ")
