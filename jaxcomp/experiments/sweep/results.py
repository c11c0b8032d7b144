"""What a sweep leaves behind: a table, claims, pictures, and the networks themselves.

A run directory holds, each file written whole or not at all::

    manifest.json            settings, versions, device, times, status
    variants/*.json          rows of finished chunks of variants (where a resumed run goes on)
    networks/*.npz           the trained networks
    codebooks/*.npz          every codebook of every network
    compressed/*.jxc         every compressed network (with `constriction` installed)
    table.csv, .parquet      one row per variant and network
    claims.json, report.md   what holds and what does not
    *.png, *.svg, *.pdf      pictures: `sweep` first, every quantity in `sweep-details`
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console

from jaxcomp import storage
from jaxcomp.experiments.drawing import own_look
from jaxcomp.experiments.reporting import brief
from jaxcomp.experiments.result import folder_of, loading, read_table, seal, write_table
from jaxcomp.experiments.sweep import pictures
from jaxcomp.experiments.sweep.candidates import ratio_column
from jaxcomp.experiments.sweep.claims import Claim, claim_from_dict, claims_table
from jaxcomp.experiments.sweep.engine import Network, change
from jaxcomp.experiments.sweep.report import headlines, print_report, report_markdown
from jaxcomp.experiments.sweep.smallest import SmallestNetwork, smallest_from_dict
from jaxcomp.experiments.sweep.stored import read_network
from jaxcomp.experiments.sweep.subject import Subject
from jaxcomp.experiments.sweep.summary import rows_where, variant_means
from jaxcomp.experiments.sweep.task_words import CLASSIFICATION, TaskWords, words_from_dict
from jaxcomp.experiments.sweep.variants import Variant
from jaxcomp.numerics.transformations import all_transfers
from jaxcomp.trees.description import rebuild_tree
from jaxcomp.trees.paths import leaves_by_path
from jaxcomp.types import Params

NOUN = "sweep"


@dataclass(repr=False)
class SweepResult:
    """Table, claims and networks of a sweep.

    Attributes:
        table: one row per variant and network; losses and gaps in nats per example, accuracies and
            the Brier score as fractions. `size_bytes` are those of the variant's file, which was
            decoded again (of the arrays in memory where nothing is compressed; NaN without
            `constriction`), `ratio` the bytes of the original's arrays over them. Other sizes are
            estimates in bits; `ratio_estimated` is that of weights of 32 bits, biases out.
        claims: what the sweep shows, for every setting.
        calibration: for every setting, which part of the fall of the raw loss one temperature
            would have given, in a sentence.
        smallest: for every setting, the smallest compressed network at no loss, with its test.
        manifest: settings, versions, device, times.
        sensitivity: one layer compressed at a time, if that was asked for.
        directory: where the files are, if they were written.
        words: of the task.
    """

    table: pd.DataFrame
    claims: list[Claim]
    calibration: list[str]
    smallest: list[SmallestNetwork]
    manifest: dict[str, Any]
    sensitivity: pd.DataFrame = field(default_factory=pd.DataFrame)
    directory: Path | None = None
    words: TaskWords = CLASSIFICATION
    _networks: dict[tuple[str, int], Network] = field(default_factory=dict)

    def __repr__(self) -> str:
        """What was found, in five lines at most; the numbers are in `report()` and `table`."""
        try:
            found = headlines(self.table, self.claims, self.smallest, self.words)
        except ValueError:
            return f"SweepResult with a table of {len(self.table)} rows"
        files = "" if self.directory is None else f", files in {self.directory}"
        see = f".report(), .plot(), .table ({len(self.table)} rows), .claims ({len(self.claims)})"
        return brief("SweepResult", found, see + files)

    def best(
        self,
        criterion: str = "validation_loss",
        *,
        min_ratio: float = 1.0,
        setting: str | None = None,
    ) -> pd.Series:
        """Return the compressed variant that is best on the validation set, mean over networks.

        Args:
            criterion: `validation_loss`, `validation_loss_tempered` or that of the task's score,
                `validation_accuracy`.
                The test set is not a criterion: a choice made on it would spoil the claim.
            min_ratio: least compression ratio allowed, of files if there are any.
            setting: name of the setting, if the sweep has several.

        Returns:
            The variant's columns; numbers are means over the networks.

        Raises:
            ValueError: on another criterion, an ambiguous setting, or a ratio never reached.
        """
        of_quantity = {f"validation_{own.name}": own for own in self.words.quantities}
        if criterion not in of_quantity:
            allowed = ", ".join(of_quantity)
            raise ValueError(f"criterion must be one of {allowed}, got {criterion!r}.")
        table = rows_where(self.table, setting=self._setting(setting), kind="compressed")
        means = variant_means(table)
        ratios = means[ratio_column(table)]
        reached = means.loc[ratios >= min_ratio]
        if reached.empty:
            raise ValueError(
                f"no variant reaches a ratio of {min_ratio:g}: the largest is {ratios.max():.1f}."
            )
        score = -of_quantity[criterion].claimed_sign * reached[criterion].to_numpy(float)
        return reached.iloc[score.argmin()]

    @all_transfers
    def params(
        self,
        variant: str | pd.Series,
        *,
        model_seed: int = 0,
        setting: str | None = None,
        like: Params | None = None,
    ) -> Params:
        """Return the parameters of one network after one variant.

        Args:
            variant: id of the variant, as in the table's column `variant` (or a row of `best`).
            model_seed: which network.
            setting: name of the setting, if the sweep has several.
            like: for a loaded result, a tree of the structure that was compressed, such as the
                parameters of a new model. Without it, dicts, lists and tuples come back as they
                were, and what JAX knows by other types (named tuples, modules, states of Flax) as
                nested dicts.

        Returns:
            A pytree like the network's own parameters.

        Raises:
            ValueError: on an unknown variant or network, where batch statistics were re-estimated
                and the process that did so is gone, or if a loaded tree had functions among its
                leaves and `like` is not given.
        """
        if isinstance(variant, pd.Series):
            variant = str(variant["variant"])
        name = self._setting(setting)
        rows = rows_where(pd.concat([self.table, self.sensitivity]), setting=name, variant=variant)
        if rows.empty:
            raise ValueError(
                f"no variant {variant!r} in the table; its column `variant` lists them all."
            )
        asked = variant_of(rows.to_dict("records")[0])
        network = self._networks.get((name, model_seed))
        if network is None:
            known = sorted(seed for key, seed in self._networks if key == name)
            raise ValueError(f"no network with model_seed {model_seed}: there are {known}.")
        if network.subject.refresh_fn is not None and asked.kind in ("compressed", "sensitivity"):
            raise ValueError(
                "the batch statistics of this sweep's networks were re-estimated: apply the same "
                "refresh_fn to the parameters of a sweep without it."
            )
        params, _ = change(network, asked)
        if like is not None:
            return rebuild_tree(None, leaves_by_path(params), like=like)
        return network.subject.as_given(params)

    @own_look()
    def plot(self, setting: str | None = None) -> Figure:
        """Draw the test loss, raw and tempered, against the ratio of sizes, for one setting."""
        rows, claims, name = self._of(setting)
        smallest = next((found for found in self.smallest if found.setting == name), None)
        return pictures.plot_sweep(rows, claims=claims, smallest=smallest, words=self.words)

    @own_look()
    def plot_details(self, setting: str | None = None) -> Figure:
        """Draw every quantity and every method against the ratio, for one setting."""
        rows, claims, _ = self._of(setting)
        return pictures.plot_details(rows, claims=claims, words=self.words)

    def report(self, *, with_pictures: bool = False) -> str:
        """What was found, the numbers and the claims, as Markdown."""
        return report_markdown(
            self.table,
            self.claims,
            self.smallest,
            words=self.words,
            with_pictures=with_pictures,
        )

    def claims_frame(self) -> pd.DataFrame:
        """Return the claims as a table: one row for each, columns named as the fields of `Claim`.

        Several reference variants stand in one cell, with " | " between them.
        """
        return pd.DataFrame(claims_table(self.claims), columns=list(Claim._fields))

    def print_report(self, console: Console) -> None:
        """Print what was found, the numbers and the claims, for a terminal."""
        print_report(
            self.table,
            self.claims,
            self.smallest,
            words=self.words,
            console=console,
            directory=self.directory,
        )

    @own_look()
    def save(self, directory: Path | str | None = None) -> list[Path]:
        """Write tables, claims, report and pictures; return the files."""
        folder = folder_of(directory, self.directory, "this sweep was run without one")
        files = write_table(self.table, folder)
        is_read = [files[-1], folder / "claims.json"]
        if not self.sensitivity.empty:
            files.append(folder / "sensitivity.csv")
            is_read.append(files[-1])
            storage.write_bytes_atomic(files[-1], self.sensitivity.to_csv(index=False).encode())
        claims = folder / "claims.json"
        storage.write_json(
            claims,
            {
                "claims": claims_table(self.claims),
                "calibration": self.calibration,
                "smallest": [found._asdict() for found in self.smallest],
            },
        )
        if folder == self.directory:
            seal(self.manifest, folder, is_read)
        report = folder / "report.md"
        storage.write_bytes_atomic(report, self.report(with_pictures=True).encode())
        drawn = pictures.save_figures(
            self.table, folder, claims=self.claims, smallest=self.smallest, words=self.words
        )
        return [*files, claims, report, *drawn]

    @classmethod
    @all_transfers
    def load(cls, directory: Path | str) -> "SweepResult":
        """Read a finished run back.

        Raises:
            ValueError: if the directory holds no finished run or a file is damaged.
        """
        folder = Path(directory)
        with loading(folder, NOUN) as manifest:
            told = storage.read_json(folder / "claims.json")
            networks = {}
            for file in sorted((folder / "networks").glob("*.npz")):
                network, setting = read_network(file, folder / "codebooks" / file.name)
                networks[setting, network.subject.model_seed] = network
            table = read_table(folder / "table.parquet")
            if set(zip(table["setting"], table["model_seed"], strict=True)) - set(networks):
                raise ValueError("networks of the table are missing")
            sensitivity = folder / "sensitivity.csv"
            return cls(
                table=table,
                claims=[claim_from_dict(claim) for claim in told["claims"]],
                calibration=list(told["calibration"]),
                smallest=[smallest_from_dict(found) for found in told["smallest"]],
                manifest=manifest,
                sensitivity=read_table(sensitivity) if sensitivity.exists() else pd.DataFrame(),
                directory=folder,
                words=words_from_dict(manifest.get("task_words")),
                _networks=networks,
            )

    def with_subjects(self, subjects: Sequence[Subject]) -> "SweepResult":
        """The same result, of networks that are at hand as they were handed in."""
        networks = {
            (name, seed): network._replace(subject=subjects[seed])
            for (name, seed), network in self._networks.items()
        }
        return replace(self, _networks=networks)

    def _of(self, setting: str | None) -> tuple[pd.DataFrame, list[Claim], str]:
        """Rows, claims and name of one setting."""
        name = self._setting(setting)
        claims = [claim for claim in self.claims if claim.setting == name]
        return rows_where(self.table, setting=name), claims, name

    def _setting(self, setting: str | None) -> str:
        names = list(dict.fromkeys(self.table["setting"]))
        if setting is None and len(names) == 1:
            return names[0]
        if setting is None or setting not in names:
            raise ValueError(f"choose a setting of {', '.join(names)}; got {setting!r}.")
        return setting


def variant_of(row: Mapping[Hashable, Any]) -> Variant:
    """The variant that a row of the table speaks of."""
    return Variant(
        row["kind"],
        row["method"],
        row["importance"],
        row["penalty_form"],
        float(row["diameter_penalty"]),
        int(row["num_clusters"]),
        float(row["parameter"]),
        row["layer"] if isinstance(row.get("layer"), str) else "",
        row.get("allocation", "equal"),
    )
