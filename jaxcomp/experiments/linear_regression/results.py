"""What a study leaves behind: tables, claims, pictures.

A run directory holds, each file written whole or not at all::

    manifest.json            settings, versions, device, times, status
    chunks/*.npz             finished chunks of data sets (what a resumed run continues from)
    table.csv, .parquet      one row per number of examples, compressor and place of the rate grid
    information.csv          entropies of rounded least squares and ridge, and the bound they give
    claims.json, report.md   the paired tests of the improvement
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
from jaxcomp.experiments.linear_regression import figure as pictures
from jaxcomp.experiments.linear_regression.claims import Claim, claim_from_dict
from jaxcomp.experiments.linear_regression.config import StudyConfig
from jaxcomp.experiments.linear_regression.report import (
    first_lines,
    report_markdown,
)
from jaxcomp.experiments.reporting import brief
from jaxcomp.experiments.result import folder_of, loading, read_table, seal, write_table
from jaxcomp.experiments.settings import from_plain

NOUN = "study"


@dataclass(repr=False)
class StudyResult:
    """Tables, claims and pictures.

    Attributes:
        table: one row per number of examples, compressor and place of the rate grid. Means and
            standard errors (`_se`) of `simulation.QUANTITIES` (rates in bits a weight), closed
            forms (`theory_*`) where there are any, bounds on the gap.
        information: one row per number of examples, ridge penalty and number of decimals.
        claims: what compression does to the population risk.
        manifest: settings, versions, device, times.
        directory: where the files are, if they were written.
    """

    table: pd.DataFrame
    information: pd.DataFrame
    claims: list[Claim]
    manifest: dict[str, Any]
    directory: Path | None = None

    def __repr__(self) -> str:
        """What was found, in five lines; the rest is in `report()` and `table`."""
        files = "" if self.directory is None else f", files in {self.directory}"
        see = f".report(), .plot(), .table ({len(self.table)} rows), .claims ({len(self.claims)})"
        found = first_lines(self._config, self.table, self.claims)
        return brief("StudyResult", [found], see + files)

    @property
    def _config(self) -> StudyConfig:
        return from_plain(StudyConfig, self.manifest["settings"])

    @own_look()
    def plot(self) -> Figure:
        """Draw the risks against the rate, for the first number of examples."""
        return pictures.plot_risks(self.table, self.claims)

    @own_look()
    def plot_information(self) -> Figure:
        """Draw the learner's own information and the bound it gives."""
        return pictures.plot_information(self.information)

    def report(self) -> str:
        """The claims and bounds in words."""
        return report_markdown(self._config, self.table, self.information, self.claims)

    def print_report(self, console: Console) -> None:
        """Print the claims and bounds in words."""
        console.out(self.report(), highlight=False)
        console.out(f"Tables and pictures are in {self.directory}.", highlight=False)

    @own_look()
    def save(self, directory: Path | str | None = None) -> list[Path]:
        """Write tables, claims, report and pictures; return the files.

        Raises:
            ValueError: if no directory is known or it cannot be written.
        """
        folder = folder_of(directory, self.directory, "this study was run without one")
        contents = {
            "information.csv": self.information.to_csv(index=False).encode(),
            "report.md": ("# Linear regression\n\n" + self.report()).encode(),
        }
        for name, data in contents.items():
            storage.write_bytes_atomic(folder / name, data)
        claims = {"claims": [claim._asdict() for claim in self.claims]}
        storage.write_json(folder / "claims.json", claims)
        drawn = pictures.save_figures(
            folder, risks=self.plot(), information=self.plot_information()
        )
        tables = write_table(self.table, folder)
        if folder == self.directory:
            is_read = ("table.parquet", "information.csv", "claims.json")
            seal(self.manifest, folder, [folder / name for name in is_read])
        return [*tables, *(folder / name for name in contents), folder / "claims.json", *drawn]

    @classmethod
    def load(cls, directory: Path | str) -> "StudyResult":
        """Read a finished study back.

        Raises:
            ValueError: if the directory holds no finished study or a file is damaged.
        """
        folder = Path(directory)
        with loading(folder, NOUN) as manifest:
            from_plain(StudyConfig, manifest["settings"])  # which the report needs
            return cls(
                table=read_table(folder / "table.parquet"),
                information=read_table(folder / "information.csv"),
                claims=[
                    claim_from_dict(told)
                    for told in storage.read_json(folder / "claims.json")["claims"]
                ],
                manifest=manifest,
                directory=folder,
            )
