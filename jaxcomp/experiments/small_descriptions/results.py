"""What a run of small descriptions leaves behind: a table, files that can be certified, a picture.

A run directory holds, each file written whole or not at all::

    manifest.json            settings, versions, device, times, status
    variants/*.json          finished seeds, a row for each price (a resumed run goes on from them)
    table.csv, .parquet      one row per seed and price
    report.md                the best of each seed, and their mean
    certificate.png, .svg    certificates and errors against bytes
    files/modelNN.bin        the stream of each seed with the lowest certificate
    files/architecture.json  what was fixed before the data, for --fixed-architecture
    files/hook.py            the network, for --hook
    files/prior.npz          of a transfer: what the streams are differences to
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console

from jaxcomp import storage
from jaxcomp.experiments import drawing
from jaxcomp.experiments.reporting import brief, print_as_it_is
from jaxcomp.experiments.result import loading, read_table, write_run
from jaxcomp.experiments.settings import from_plain
from jaxcomp.experiments.small_descriptions import figure as pictures
from jaxcomp.experiments.small_descriptions.architectures import Network, network
from jaxcomp.experiments.small_descriptions.config import DescriptionConfig
from jaxcomp.experiments.small_descriptions.descent import Layer
from jaxcomp.experiments.small_descriptions.report import (
    best_of_models,
    first_lines,
    records,
    report_text,
)

NOUN = "small descriptions"

_HOOK = '''"""The network of the files beside this one: for `jaxcomp certify --hook`."""

from jaxcomp.experiments.small_descriptions import network

predict_fn = network({features}, random_filters={random_filters})
'''


@dataclass(repr=False)
class DescriptionResult:
    """Table, files and pictures.

    Attributes:
        table: one row per seed and price; `stream` is the file, in hexadecimal.
        prior: of a transfer, the layer that files are differences to.
        manifest: settings, versions, device, times.
        directory: where the files are, if they were written.
    """

    table: pd.DataFrame
    prior: Layer | None
    manifest: dict[str, Any]
    directory: Path | None = None

    def __repr__(self) -> str:
        """What was found, in a few lines."""
        files = "" if self.directory is None else f", files in {self.directory}"
        see = f".report(), .plot(), .table ({len(self.table)} rows){files}"
        return brief("DescriptionResult", [first_lines(self.config, self.table)], see)

    @property
    def config(self) -> DescriptionConfig:
        """The settings."""
        return from_plain(DescriptionConfig, self.manifest["settings"])

    @property
    def network(self) -> Network:
        """The `predict_fn` of the files."""
        return network(self.config.features, random_filters=self.config.random_filters)

    def best(self) -> pd.DataFrame:
        """Return the row with the lowest certificate of each seed."""
        return best_of_models(self.table)

    @drawing.own_look()
    def plot(self) -> Figure:
        """Draw certificates and errors against bytes, with the held-out bound."""
        return pictures.plot_certificates(self.config, self.table)

    def report(self) -> str:
        """Return the best of each seed, and their mean."""
        return report_text(self.config, self.table)

    def print_report(self, console: Console) -> None:
        """Print it, and where the files are."""
        print_as_it_is(console, self.report(), self.directory)

    def write_files(self, folder: Path) -> list[Path]:
        """Write the best stream of each seed, and what certifies it; return the files."""
        folder.mkdir(parents=True, exist_ok=True)
        contents = {
            f"model{row['model']:02d}.bin": bytes.fromhex(row["stream"])
            for row in records(self.best())
        }
        transfer = self.prior is not None
        contents["architecture.json"] = self.network.description(transfer=transfer).encode()
        contents["hook.py"] = _HOOK.format(
            features=self.config.features, random_filters=self.config.random_filters
        ).encode()
        if self.prior is not None:
            buffer = io.BytesIO()
            np.savez(buffer, **self.prior._asdict())
            contents["prior.npz"] = buffer.getvalue()
        for name, content in contents.items():
            storage.write_bytes_atomic(folder / name, content)
        return [folder / name for name in contents]

    @drawing.own_look()
    def save(self, directory: Path | str | None = None) -> list[Path]:
        """Write table, files, report and picture; return the files.

        Raises:
            ValueError: if no directory is known or it cannot be written.
        """
        return write_run(self, directory, files="files", picture="certificate")

    @classmethod
    def load(cls, directory: Path | str) -> "DescriptionResult":
        """Read a finished run back.

        Raises:
            ValueError: if the directory holds no finished run or a file is damaged.
        """
        folder = Path(directory)
        with loading(folder, NOUN) as manifest:
            prior = None
            if manifest["settings"]["transfer"]:
                with np.load(folder / "files" / "prior.npz", allow_pickle=False) as arrays:
                    prior = Layer(arrays["weights"], arrays["bias"])
            return cls(read_table(folder / "table.parquet"), prior, manifest, folder)
