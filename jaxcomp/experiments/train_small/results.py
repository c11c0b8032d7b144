"""What training for the file leaves behind: a table, files, a picture.

A run directory holds, each file written whole or not at all::

    manifest.json            settings, versions, device, times, status
    variants/*.json          finished prices, a row for each seed (a resumed run goes on from them)
    networks/*.npz           networks, and checkpoints of one that is being trained
    table.csv, .parquet      one row per price, or size, and seed
    report.md                means over seeds with intervals
    curve.png, .svg          bytes against errors
    compressed/*.jxc, .jxr   the file of each price, or size, and seed
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console

from jaxcomp import storage
from jaxcomp.experiments import drawing
from jaxcomp.experiments.reporting import brief, print_as_it_is
from jaxcomp.experiments.result import loading, read_table, write_run
from jaxcomp.experiments.settings import from_plain
from jaxcomp.experiments.train_small import figure as pictures
from jaxcomp.experiments.train_small.config import TrainSmallConfig
from jaxcomp.experiments.train_small.report import first_lines, report_text

NOUN = "training for the file"


@dataclass(repr=False)
class TrainSmallResult:
    """Table, files and picture.

    Attributes:
        table: one row per price, or size, and seed; `content` is the file, in hexadecimal.
        manifest: settings, versions, device, times.
        directory: where the files are, if they were written.
    """

    table: pd.DataFrame
    manifest: dict[str, Any]
    directory: Path | None = None

    def __repr__(self) -> str:
        """What was found, in a few lines."""
        files = "" if self.directory is None else f", files in {self.directory}"
        see = f".report(), .plot(), .table ({len(self.table)} rows){files}"
        return brief("TrainSmallResult", [first_lines(self.config, self.table)], see)

    @property
    def config(self) -> TrainSmallConfig:
        """The settings."""
        return from_plain(TrainSmallConfig, self.manifest["settings"])

    @drawing.own_look()
    def plot(self) -> Figure:
        """Draw errors and certificates against bytes."""
        return pictures.plot_curve(self.config, self.table)

    def report(self) -> str:
        """Return means over seeds at each price and size, with intervals."""
        return report_text(self.config, self.table)

    def print_report(self, console: Console) -> None:
        """Print it, and where the files are."""
        print_as_it_is(console, self.report(), self.directory)

    def write_files(self, folder: Path) -> list[Path]:
        """Write the file of each price, or size, and seed; return their names."""
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        columns = (self.table[name] for name in ("coder", "setting", "model", "content"))
        for coder, setting, model, content in zip(*columns, strict=True):
            name, suffix = ("price", "jxc") if coder == "entropy" else (coder, "jxr")
            files.append(folder / f"{name}-{setting:g}-model{model}.{suffix}")
            storage.write_bytes_atomic(files[-1], bytes.fromhex(content))
        return files

    @drawing.own_look()
    def save(self, directory: Path | str | None = None) -> list[Path]:
        """Write table, files, report and picture; return the files.

        Raises:
            ValueError: if no directory is known or it cannot be written.
        """
        return write_run(self, directory, files="compressed", picture="curve")

    @classmethod
    def load(cls, directory: Path | str) -> "TrainSmallResult":
        """Read a finished run back.

        Raises:
            ValueError: if the directory holds no finished run or a file is damaged.
        """
        folder = Path(directory)
        with loading(folder, NOUN) as manifest:
            return cls(read_table(folder / "table.parquet"), manifest, folder)
