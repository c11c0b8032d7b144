"""The directory of one run: its manifest, its finished parts, and whose they are.

Each file is written whole or not at all, so that a run that is killed goes on from its finished
parts. A directory belongs to one set of settings, and its parts to one set of versions and one
kind of device: others are refused, or forgotten.
"""

import json
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, TypeVar

import jax
import numpy as np
import pandas as pd

import jaxcomp
from jaxcomp import storage

Row: TypeAlias = dict[str, Any]
_Result = TypeVar("_Result")


class RunDirectory:
    """The files of one run; with `path` None everything stays in memory.

    Args:
        path: directory, made if it is not there.
        settings: plain values that decide the results; a directory of other settings is refused.
        resume: whether finished parts of the same run are used.

    Attributes:
        manifest: settings, versions, device, times and status, as `manifest.json` holds them.

    Raises:
        ValueError: if the directory is not writable or belongs to other settings.
    """

    noun: ClassVar[str] = "run"
    """What messages call it."""
    folders: ClassVar[tuple[str, ...]] = ("cells",)
    """Where its finished parts are."""

    def __init__(self, path: Path | None, settings: dict[str, Any], *, resume: bool = True):
        self.path = path
        self.manifest: dict[str, Any] = {
            "kind": self.noun,
            "settings": settings,
            "status": "running",
            "times": {},
        }
        if path is None:
            return
        storage.ensure_writable_directory(path)
        for folder in (path, *(path / name for name in self.folders if (path / name).is_dir())):
            storage.remove_temporary_files(folder)
        self.manifest["fingerprint"] = storage.fingerprint(settings)
        if (path / "manifest.json").exists():
            before = read_manifest(path, self.noun)
            self._check_same(before, settings)
            if resume:
                self.manifest = before
            else:
                self.discard()
        elif any(path.iterdir()):
            raise ValueError(
                f"the output directory {path} holds other files and no manifest.json: "
                "choose an empty or a new one."
            )
        for name in self.folders:
            (path / name).mkdir(exist_ok=True)
        self.save_manifest()

    @property
    def is_finished(self) -> bool:
        """Whether an earlier call wrote all results."""
        return self.path is not None and self.manifest["status"] == "finished"

    def finished(self, load: Callable[[Path], _Result]) -> _Result | None:
        """A finished run as its files tell it; None if it is not finished, or a file is damaged.

        In that case what is intact, such as finished parts, is used again.
        """
        if self.path is None or not self.is_finished:
            return None
        try:
            return load(self.path)
        except ValueError:
            self.manifest["status"] = "running"
            return None

    def save_manifest(self) -> None:
        """Write `manifest.json`."""
        if self.path is not None:
            storage.write_json(self.path / "manifest.json", self.manifest)

    def describe(self) -> None:
        """Write down what the results are made with; parts made with something else are forgotten.

        Numbers of two versions must not meet in one table.
        """
        names = ("jax", "jaxlib", "flax", "numpy")
        made_with = {
            "versions": {
                "jaxcomp": jaxcomp.__version__,
                **{name: version(name) for name in names},
                "python": platform.python_version(),
            },
            "device": jax.devices()[0].device_kind,
        }
        if any(self.manifest.get(name, now) != now for name, now in made_with.items()):
            self.discard()
        self.manifest |= made_with
        self.save_manifest()

    def discard(self) -> None:
        """Forget all finished parts."""
        if self.path is not None:
            for folder in self.folders:
                for file in (self.path / folder).glob("*.*"):
                    file.unlink()

    def load_rows(self, name: str, cells: Sequence[str]) -> list[Row] | None:
        """Rows of a finished part, or None if it is missing, damaged or of other cells."""
        if self.path is None or not (file := self.path / "cells" / f"{name}.json").exists():
            return None
        try:
            rows = storage.read_json(file)["rows"]
        except (ValueError, KeyError, TypeError):
            return None
        if [row.get("cell") for row in rows] != list(cells):
            return None
        return [{k: math.nan if v is None else v for k, v in row.items()} for row in rows]

    def save_rows(self, name: str, rows: Sequence[Row]) -> None:
        """Write the rows of a finished part; NaN becomes null."""
        if self.path is not None:
            plain = [{k: _none_if_nan(v) for k, v in row.items()} for row in rows]
            storage.write_json(self.path / "cells" / f"{name}.json", {"rows": plain})

    def load_arrays(self, folder: str, name: str) -> dict[str, np.ndarray] | None:
        """Arrays of a finished part, or None if they are missing or damaged."""
        if self.path is None:
            return None
        try:
            return storage.load_arrays(self.path / folder / f"{name}.npz")[0]
        except ValueError:
            return None

    def save_arrays(self, folder: str, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write the arrays of a finished part."""
        if self.path is not None:
            storage.save_arrays(self.path / folder / f"{name}.npz", arrays)

    def finish(self) -> None:
        """Write down that all results are there."""
        self.manifest["status"] = "finished"
        self.save_manifest()

    def _check_same(self, before: Mapping[str, Any], settings: dict[str, Any]) -> None:
        kind = before.get("kind", self.noun)
        if kind != self.noun:
            raise ValueError(
                f"the output directory {self.path} holds a {kind}, not a {self.noun}; "
                "choose another directory with --out."
            )
        there, now = before["settings"], json.loads(json.dumps(settings))
        changed = sorted(k for k in {*there, *now} if there.get(k) != now.get(k))
        if changed:
            told = ", ".join(f"{k} ({there.get(k)} there, {now.get(k)} now)" for k in changed[:4])
            told += f" and {len(changed) - 4} more" if len(changed) > 4 else ""
            raise ValueError(
                f"the output directory {self.path} belongs to other settings: {told}; "
                "choose another directory with --out."
            )


def read_manifest(folder: Path, noun: str, *, finished: bool = False) -> dict[str, Any]:
    """Read settings, times and status of a run.

    Args:
        folder: of the run.
        noun: what it is called in messages.
        finished: whether an unfinished run is refused.

    Raises:
        ValueError: if the folder holds something else, or the run is not finished.
    """
    if not (folder / "manifest.json").exists():
        raise ValueError(f"{folder} holds no {noun}: there is no manifest.json in it.")
    manifest = storage.read_json(folder / "manifest.json")
    kinds = {"settings": dict, "times": dict, "status": str}
    if not isinstance(manifest, dict) or not all(
        isinstance(manifest.get(name), kind) for name, kind in kinds.items()
    ):
        raise ValueError(
            f"{folder} holds no {noun}: its manifest.json was written by something else; name "
            "another directory."
        )
    if finished and manifest["status"] != "finished":
        raise ValueError(f"the {noun} in {folder} is not finished: run the same command again.")
    return manifest


def write_table(table: pd.DataFrame, folder: Path, name: str = "table") -> list[Path]:
    """Write a table for people (CSV) and for programs (Parquet, exact); return the files."""
    csv, parquet = folder / f"{name}.csv", folder / f"{name}.parquet"
    storage.write_bytes_atomic(csv, table.to_csv(index=False).encode())
    storage.write_bytes_atomic(parquet, table.to_parquet(index=False))
    return [csv, parquet]


def read_table(file: Path, noun: str = "run") -> pd.DataFrame:
    """Read a Parquet table; a damaged one is a `ValueError`."""
    try:
        return pd.read_parquet(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {file.name}: {error}; run the {noun} again.") from error


def network_cache(cache_dir: Path | str | None) -> Path:
    """Where trained networks are kept: as given, else `JAXCOMP_CACHE_DIR`, else the user's."""
    import platformdirs

    if cache_dir is not None:
        return Path(cache_dir)
    named = os.environ.get("JAXCOMP_CACHE_DIR")
    return Path(named) if named else Path(platformdirs.user_cache_dir("jaxcomp")) / "networks"


def _none_if_nan(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
