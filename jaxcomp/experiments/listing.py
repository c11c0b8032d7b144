"""The runs below a folder: what each is, what is special about it, how far it is."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxcomp import storage
from jaxcomp.experiments.kinds import KINDS
from jaxcomp.experiments.manifest import MANIFEST

State = Literal["finished", "unfinished", "locked"]
"""`locked`: a process works on it at this moment."""


class FoundRun(NamedTuple):
    """A run as its manifest tells it."""

    path: str
    """Its directory."""
    kind: str
    """What it is, a key of `KINDS` unless it is of another version."""
    state: State
    """How far it is."""
    changed: dict[str, Any]
    """Settings that differ from their defaults; of a network trained elsewhere only its name."""
    settings: dict[str, Any]
    """All settings."""
    written: str
    """When its manifest was last written, ISO 8601, UTC."""
    size_bytes: int
    """Of all files in it."""


def find_runs(folder: Path) -> list[FoundRun]:
    """Return the runs in a folder and below it, by their directories; none is looked for in a run.

    Raises:
        ValueError: one sentence, if there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no directory {folder}; name one that runs lie in.")
    return sorted(_below(folder))


def _below(folder: Path) -> Iterator[FoundRun]:
    for place, below, names in os.walk(folder):
        if MANIFEST in names and (found := _read(Path(place))) is not None:
            below.clear()
            yield found


def _read(directory: Path) -> FoundRun | None:
    """A run; None if the manifest is that of something else."""
    file = directory / MANIFEST
    try:
        manifest = storage.read_json(file)
        written = datetime.fromtimestamp(file.stat().st_mtime, UTC)
    except (ValueError, OSError):
        return None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("kind"), str):
        return None
    settings = manifest.get("settings")
    if not isinstance(settings, dict):
        return None
    state: State = "finished" if manifest.get("status") == "finished" else "unfinished"
    if storage.FolderLock(directory).is_taken():
        state = "locked"
    return FoundRun(
        str(directory),
        manifest["kind"],
        state,
        _changed(manifest["kind"], settings),
        settings,
        written.isoformat(timespec="seconds"),
        _size(directory),
    )


def _changed(kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    defaults = KINDS[kind].defaults() if kind in KINDS else {}
    if not set(settings) <= set(defaults):
        return {name: settings[name] for name in ("name",) if name in settings}
    return {name: value for name, value in settings.items() if value != defaults[name]}


def _size(directory: Path) -> int:
    total = 0
    for place, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:  # a run that goes on takes files away
                continue
    return total
