"""The directory of one run: its manifest, its finished parts, and whose they are.

Each file is written whole or not at all, so that a run that is killed goes on from its finished
parts. A directory belongs to one set of settings, and its parts to what else shaped them (versions,
device, options of JAX, data): others are refused, or forgotten. One run at a time has it.
"""

import contextlib
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self, TypeAlias, TypeVar

import numpy as np
import pandas as pd

from jaxcomp import storage
from jaxcomp.experiments.reproducibility import environment

MANIFEST = "manifest.json"

FORMAT_VERSION = 2
"""Of everything in a run directory; goes up when a file, a column or a setting changes its name."""

Row: TypeAlias = dict[str, Any]
_Result = TypeVar("_Result")


# What systems and their programs put into every folder; hidden files are theirs too.
_NOT_FOREIGN = {"thumbs.db", "desktop.ini", "lost+found", "@eadir"}


class RunDirectory:
    """The files of one run; with `path` None everything stays in memory.

    Use it in a `with` block: until its end no other run can have the directory.

    Args:
        path: directory, made if it is not there.
        settings: plain values that decide the results; a directory of other settings is refused.
        resume: whether finished parts of the same run are used.

    Attributes:
        manifest: settings, versions, device, times and status, as `manifest.json` holds them.

    Raises:
        ValueError: if the directory is not writable, belongs to other settings or to another
            version of the format, holds other files, or another run has it at this moment.
    """

    noun: ClassVar[str] = "run"
    """What messages call it."""
    folders: ClassVar[tuple[str, ...]] = ("variants",)
    """Where its finished parts are."""

    def __init__(self, path: Path | None, settings: dict[str, Any], *, resume: bool = True):
        self.path = path
        self._lock: storage.FolderLock | None = None
        self.manifest: dict[str, Any] = {
            "kind": self.noun,
            "format_version": FORMAT_VERSION,
            "settings": settings,
            "status": "running",
            "times": {},
        }
        if path is None:
            return
        self.path = path = storage.ensure_writable_directory(path)
        self.manifest["fingerprint"] = storage.fingerprint(settings)
        self._check_ours(path)  # before anything is written in it
        self._lock = storage.FolderLock(path)
        if not self._lock.acquire():
            raise ValueError(
                f"the output directory {path} is in use by another run: wait for its end, or "
                "choose another directory with --out."
            )
        try:
            self._open(path, settings, resume=resume)
        except BaseException:
            self._lock.release()
            raise

    def _open(self, path: Path, settings: dict[str, Any], *, resume: bool) -> None:
        """Take up what is there."""
        self._check_ours(path)
        for folder in (path, *(path / name for name in self.folders if (path / name).is_dir())):
            storage.remove_temporary_files(folder)
        if (path / MANIFEST).exists():
            before = read_manifest(path, self.noun)
            self._check_same(before, settings)
            if resume:
                self.manifest = before
            else:
                self.discard()
        # First of all: a directory without it belongs to nobody.
        self.save_manifest()
        for name in self.folders:
            (path / name).mkdir(exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._lock is not None:
            self._lock.release()

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
            self.save_manifest()
            return None

    def save_manifest(self) -> None:
        """Write `manifest.json`."""
        if self.path is not None:
            storage.write_json(self.path / MANIFEST, self.manifest)

    def describe(self) -> None:
        """Write down what the results are made with; parts made with something else are forgotten.

        Numbers of two versions must not meet in one table.
        """
        made_with = environment()
        if any(self.manifest.get(name, now) != now for name, now in made_with.items()):
            self.discard()
        self.manifest |= made_with
        self.save_manifest()

    def is_made_from(self, name: str, fingerprint: str) -> bool:
        """Write down the data that parts are made from; False if it was other data before."""
        data = self.manifest.setdefault("data", {})
        is_same = data.get(name, fingerprint) == fingerprint
        if data.get(name) != fingerprint:
            data[name] = fingerprint
            self.save_manifest()
        return is_same

    def discard(self) -> None:
        """Forget all finished parts."""
        if self.path is not None:
            for folder in self.folders:
                for file in (self.path / folder).glob("*"):
                    if file.suffix in (".json", ".npz"):
                        file.unlink(missing_ok=True)

    def load_rows(self, name: str, variants: Sequence[str]) -> list[Row] | None:
        """Rows of a finished part, or None if it is missing, damaged or of other variants."""
        if self.path is None or not (file := self.path / "variants" / f"{name}.json").exists():
            return None
        try:
            rows = storage.read_json(file)["rows"]
        except (ValueError, KeyError, TypeError):
            return None
        if [row.get("variant") for row in rows] != list(variants):
            return None
        return [{k: math.nan if v is None else v for k, v in row.items()} for row in rows]

    def save_rows(self, name: str, rows: Sequence[Row]) -> None:
        """Write the rows of a finished part; NaN becomes null."""
        if self.path is not None:
            plain = [{k: _none_if_nan(v) for k, v in row.items()} for row in rows]
            storage.write_json(self.path / "variants" / f"{name}.json", {"rows": plain})

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

    def _check_ours(self, path: Path) -> None:
        """Refuse a folder that holds the files of someone else."""
        if (path / MANIFEST).exists():
            read_manifest(path, self.noun)
        elif foreign := sorted(file.name for file in path.iterdir() if self._is_foreign(file)):
            raise ValueError(
                f"the output directory {path} holds other files and no {MANIFEST} "
                f"({', '.join(foreign[:3])}{', ...' if foreign[3:] else ''}): choose an empty or "
                "a new one."
            )

    def _is_foreign(self, file: Path) -> bool:
        if file.name.startswith(".") or file.name.lower() in _NOT_FOREIGN:
            return False
        return file.name not in self.folders or not file.is_dir() or any(file.iterdir())

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
        ValueError: if the folder holds something else or a run of another version of the format,
            or the run is not finished.
    """
    if not (folder / MANIFEST).exists():
        raise ValueError(f"{folder} holds no {noun}: there is no {MANIFEST} in it.")
    try:
        manifest = storage.read_json(folder / MANIFEST)
    except ValueError as error:
        raise ValueError(
            f"{folder} can no longer be used: its {MANIFEST} could not be read as JSON; delete the "
            "directory or name another."
        ) from error
    kinds = {"settings": dict, "times": dict, "status": str}
    if not isinstance(manifest, dict) or not all(
        isinstance(manifest.get(name), kind) for name, kind in kinds.items()
    ):
        raise ValueError(
            f"{folder} holds no {noun}: its {MANIFEST} was written by something else; name "
            "another directory."
        )
    written = manifest.get("format_version", 1)
    if written != FORMAT_VERSION:
        raise ValueError(
            f"{folder} holds a {manifest.get('kind', noun)} in version {written} of the format, "
            f"this jaxcomp reads version {FORMAT_VERSION}: read it with the jaxcomp that wrote it, "
            "or run again into another directory."
        )
    if finished and manifest["status"] != "finished":
        raise ValueError(f"the {noun} in {folder} is not finished: run the same command again.")
    return manifest


@contextlib.contextmanager
def loading(folder: Path, noun: str) -> Iterator[dict[str, Any]]:
    """Read the results of a finished run in this block.

    Args:
        folder: of the run.
        noun: what it is called in messages.

    Yields:
        The manifest.

    Raises:
        ValueError: one sentence, if the run is not finished, or a file is missing, damaged or not
            the one that the run wrote.
    """
    manifest = read_manifest(folder, noun, finished=True)
    again = f"run the {noun} again with the same command, which uses what is intact."
    try:
        for name, digest in manifest.get("digests", {}).items():
            if storage.digest_of_file(folder / name) != digest:
                raise ValueError(f"{name} was damaged or changed after the run")
        yield manifest
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        told = str(error).rstrip(".")
        raise ValueError(f"cannot read the results in {folder} ({told}): {again}") from error


def seal(manifest: dict[str, Any], folder: Path, files: Sequence[Path]) -> None:
    """Write down which files the results are, so that damage is found before they are read."""
    manifest["digests"] = {file.name: storage.digest_of_file(file) for file in files}
    storage.write_json(folder / MANIFEST, manifest)


def write_table(table: pd.DataFrame, folder: Path, name: str = "table") -> list[Path]:
    """Write a table for people (CSV) and for programs (Parquet, exact); return the files."""
    csv, parquet = folder / f"{name}.csv", folder / f"{name}.parquet"
    storage.write_bytes_atomic(csv, table.to_csv(index=False).encode())
    storage.write_bytes_atomic(parquet, table.to_parquet(index=False))
    return [csv, parquet]


def read_table(file: Path) -> pd.DataFrame:
    """Read a table, Parquet or CSV by its suffix.

    Raises:
        OSError: if it is not there.
        ValueError: if it is damaged.
    """
    # From memory: names of files that are not Unicode are beyond the readers.
    buffer = io.BytesIO(file.read_bytes())
    return pd.read_parquet(buffer) if file.suffix == ".parquet" else pd.read_csv(buffer)


def _none_if_nan(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
