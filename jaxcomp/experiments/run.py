"""One run: its directory, its manifest, its finished parts, and whose they are.

Each file is written whole or not at all, so that a run that is killed goes on from its finished
parts. A directory belongs to one set of settings, and its parts to what else shaped them (versions,
device, options of JAX, data): others are refused, or forgotten. One run at a time has it, so that
no part is ever computed by two.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias, TypeVar

from jaxcomp import storage
from jaxcomp.experiments.reproducibility import environment

MANIFEST = "manifest.json"

FORMAT_VERSION = 4
"""Of everything in a run directory; goes up when a file, a column or a setting changes its name."""

Row: TypeAlias = dict[str, Any]
_Value = TypeVar("_Value")


# What systems and their programs put into every folder; hidden files are theirs too.
_NOT_FOREIGN = {"thumbs.db", "desktop.ini", "lost+found", "@eadir"}


class Kept(Protocol[_Value]):
    """How a part is kept in files, and which stored one is the right one."""

    def read(self, folder: Path, name: str) -> _Value | None:
        """The stored part; None if it is not there, damaged, or not the right one."""
        ...

    def write(self, folder: Path, name: str, value: _Value) -> None:
        """Write the part, each file whole or not at all."""
        ...


class Saved(Protocol):
    """A result that writes its own files."""

    def save(self) -> Any:
        """Write them."""
        ...


@dataclass(frozen=True)
class Rows:
    """A part that is rows of a table, in `variants/NAME.json`; NaN is null there.

    Attributes:
        variants: what the rows are about, in their order.
    """

    variants: Sequence[str]

    def read(self, folder: Path, name: str) -> list[Row] | None:
        """The rows, or None if they are missing, damaged or of other variants."""
        if not (file := folder / "variants" / f"{name}.json").exists():
            return None
        try:
            rows = storage.read_json(file)["rows"]
        except (ValueError, KeyError, TypeError):
            return None
        if [row.get("variant") for row in rows] != list(self.variants):
            return None
        return [{k: math.nan if v is None else v for k, v in row.items()} for row in rows]

    def write(self, folder: Path, name: str, value: Sequence[Row]) -> None:
        """Write the rows."""
        plain = [{k: _none_if_nan(v) for k, v in row.items()} for row in value]
        storage.write_json(folder / "variants" / f"{name}.json", {"rows": plain})


class Run:
    """One run of an experiment; with `path` None everything stays in memory.

    Use it in a `with` block: until its end no other run can have the directory.

    Args:
        path: directory, made if it is not there.
        settings: plain values that decide the results; a directory of other settings is refused.
        noun: what messages call such a run, and its manifest.
        folders: where its finished parts are.
        resume: whether finished parts of the same run are used.

    Attributes:
        manifest: settings, versions, device, times and status, as `manifest.json` holds them.

    Raises:
        ValueError: if the directory is not writable, belongs to other settings or to another
            version of the format, holds other files, or another run has it at this moment.
    """

    def __init__(
        self,
        path: Path | str | None,
        settings: dict[str, Any],
        *,
        noun: str = "run",
        folders: Sequence[str] = ("variants",),
        resume: bool = True,
    ):
        self.path: Path | None = None
        self.noun = noun
        self.folders = tuple(folders)
        self._started = time.perf_counter()
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

    def finished(self, load: Callable[[Path], _Value]) -> _Value | None:
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

    def part(self, name: str, compute: Callable[[], _Value], like: Kept[_Value]) -> _Value:
        """Return a part of the run: as it is stored, else computed and stored.

        Parts that were made from another one of the same name are forgotten: theirs go on from its
        name with a dash.

        Args:
            name: of its files.
            compute: makes it.
            like: how it is kept, and which stored one is the right one.
        """
        found = self.find(name, like)
        if found is None:
            self.forget(name)
            found = compute()
            if self.path is not None:
                like.write(self.path, name, found)
        return found

    def find(self, name: str, like: Kept[_Value]) -> _Value | None:
        """A stored part; None if it is not there, damaged, or not the right one."""
        return None if self.path is None else like.read(self.path, name)

    def forget(self, name: str) -> None:
        """Forget a part and those made from it, whose names go on from its own with a dash."""
        self._remove(lambda stem: stem == name or stem.startswith(f"{name}-"))

    def discard(self) -> None:
        """Forget all finished parts."""
        self._remove(lambda stem: True)

    def finish(self, result: Saved) -> None:
        """Write the result, and down that all of it is there."""
        seconds = time.perf_counter() - self._started
        self.manifest["times"]["last session seconds"] = round(seconds, 3)
        if self.path is not None:
            result.save()
        self.manifest["status"] = "finished"
        self.save_manifest()

    def _remove(self, is_meant: Callable[[str], bool]) -> None:
        if self.path is None:
            return
        for folder in self.folders:
            for file in (self.path / folder).glob("*"):
                if file.suffix in (".json", ".npz", ".jxc") and is_meant(file.stem):
                    file.unlink(missing_ok=True)

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


def _none_if_nan(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
