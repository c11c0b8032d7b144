"""What a run leaves behind: tables, claims, pictures.

A run directory holds, each file written whole or not at all::

    manifest.json            settings, versions, device, times, status
    variants/*.json          rows of finished variants (what a resumed run continues from)
    losses/*.npz             test losses of every network and example, which claims are made of
    table.csv, .parquet      one row per variant and network
    rounding.csv             how many models rounding leaves
    claims.json, report.md   what holds and what does not
    *.png, *.svg             pictures
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console

from jaxcomp import storage
from jaxcomp.experiments.drawing import own_look
from jaxcomp.experiments.regularization import figure as pictures
from jaxcomp.experiments.regularization.claims import Claim, claim_from_dict
from jaxcomp.experiments.regularization.report import first_lines, print_report, report_markdown
from jaxcomp.experiments.reporting import brief
from jaxcomp.experiments.result import folder_of, loading, read_table, seal, write_table

NOUN = "regularization run"


@dataclass(repr=False)
class RegularizationResult:
    """Tables and claims of a run.

    Attributes:
        table: one row per variant and network. Losses and gap in nats per example, accuracies as
            fractions, lengths in bits (per weight where the name says so), streams in bytes.
        rounding: one row per ridge penalty and number of decimals, see `count_rounded_models`.
        claims: what the run shows.
        manifest: settings, versions, device, times.
        directory: where the files are, if they were written.
    """

    table: pd.DataFrame
    rounding: pd.DataFrame
    claims: list[Claim]
    manifest: dict[str, Any]
    directory: Path | None = None

    def __repr__(self) -> str:
        """What was found, in five lines; the numbers are in `report()` and `table`."""
        files = "" if self.directory is None else f", files in {self.directory}"
        see = f".report(), .plot(), .table ({len(self.table)} rows), .claims ({len(self.claims)})"
        try:
            found = first_lines(self.table, self.claims)
        except (KeyError, IndexError):
            return f"RegularizationResult with a table of {len(self.table)} rows"
        return brief("RegularizationResult", [found], see + files)

    @own_look()
    def plot(self) -> Figure:
        """Draw every quantity against the strength of the penalties."""
        return pictures.plot_strengths(self.table)

    @own_look()
    def plot_rounding(self) -> Figure:
        """Draw how many models rounding leaves, and their entropy."""
        return pictures.plot_rounding(self.rounding)

    def report(self, *, with_pictures: bool = False) -> str:
        """Numbers and claims in words, as Markdown."""
        return report_markdown(self.table, self.rounding, self.claims, with_pictures=with_pictures)

    def print_report(self, console: Console) -> None:
        """Print what was found, the numbers and the claims, for a terminal."""
        print_report(
            self.table, self.rounding, self.claims, console=console, directory=self.directory
        )

    @own_look()
    def save(self, directory: Path | str | None = None) -> list[Path]:
        """Write tables, claims, report and pictures; return the files.

        Raises:
            ValueError: if no directory is known or it cannot be written.
        """
        folder = folder_of(directory, self.directory)
        files = write_table(self.table, folder)
        contents = {
            "rounding.csv": self.rounding.to_csv(index=False).encode(),
            "report.md": self.report(with_pictures=True).encode(),
        }
        for name, data in contents.items():
            files.append(folder / name)
            storage.write_bytes_atomic(files[-1], data)
        files.append(folder / "claims.json")
        storage.write_json(files[-1], {"claims": [claim._asdict() for claim in self.claims]})
        if folder == self.directory:
            is_read = ("table.parquet", "rounding.csv", "claims.json")
            seal(self.manifest, folder, [folder / name for name in is_read])
        drawn = {"regularization": self.plot(), "rounding": self.plot_rounding()}
        return [*files, *pictures.save_figures(folder, drawn)]

    @classmethod
    def load(cls, directory: Path | str) -> "RegularizationResult":
        """Read a finished run back.

        Raises:
            ValueError: if the directory holds no finished run or a file is damaged.
        """
        folder = Path(directory)
        with loading(folder, NOUN) as manifest:
            return cls(
                table=read_table(folder / "table.parquet"),
                rounding=read_table(folder / "rounding.csv"),
                claims=[
                    claim_from_dict(claim)
                    for claim in storage.read_json(folder / "claims.json")["claims"]
                ],
                manifest=manifest,
                directory=folder,
            )
