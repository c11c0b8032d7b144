"""One run: its directory, its manifest, its finished parts, and whose they are.

Each file is written whole or not at all, so that a run that is killed goes on from its finished
parts. A directory belongs to one set of settings, and its parts to what else shaped them (versions,
device, options of JAX, data): others are refused, or forgotten. One run at a time has it, alone or
as a team of processes, so that no part is ever computed by two.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias, TypeVar

from jaxcomp import storage
from jaxcomp.experiments import team as teams
from jaxcomp.experiments.manifest import FORMAT_VERSION, MANIFEST, read_manifest
from jaxcomp.experiments.picture_style import PictureStyle, current_style
from jaxcomp.experiments.reproducibility import environment
from jaxcomp.experiments.team import ALONE, Claims, Team
from jaxcomp.long_call import LongCall
from jaxcomp.progress import Progress

Row: TypeAlias = dict[str, Any]
_Value = TypeVar("_Value")
_Saved = TypeVar("_Saved", bound="Saved")
_log = logging.getLogger(__name__)


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
        team: which process of those that make the run together, in a directory they share. The
            first opens it: there the others find settings and versions that must be theirs.

    Attributes:
        manifest: settings, versions, device, times and status, as `manifest.json` holds them;
            written by the process that leads.
        claims: what is being computed.

    Raises:
        ValueError: if the directory is not writable, belongs to other settings or to another
            version of the format, holds other files, or another run has it at this moment; in a
            team without a directory, or if versions, device or options are not those of the others.
    """

    def __init__(
        self,
        path: Path | str | None,
        settings: dict[str, Any],
        *,
        noun: str = "run",
        folders: Sequence[str] = ("variants",),
        resume: bool = True,
        team: Team = ALONE,
    ):
        self.path: Path | None = None
        self.noun = noun
        self.folders = tuple(folders)
        self.team = team
        self.claims = Claims(None)
        self._started = time.perf_counter()
        self._lock: storage.FolderLock | None = None
        self._lead: storage.FileLock | None = None
        self.manifest: dict[str, Any] = {
            "kind": self.noun,
            "format_version": FORMAT_VERSION,
            "settings": settings,
            "status": "running",
            "times": {},
        }
        if path is None:
            if not team.is_alone:
                raise ValueError("processes share a run through its directory: name one by out.")
            return
        self.path = path = storage.ensure_writable_directory(path)
        self.manifest["fingerprint"] = storage.fingerprint(settings)
        self._lock = storage.FolderLock(path)
        try:
            if team.index == 0:
                self._check_ours(path)  # before anything is written in it
                self._hold()
                self._open(path, settings, resume=resume)
            if not team.is_alone:
                self.claims = Claims(path / teams.FOLDER / "locks")
                self._lead = storage.FileLock(path / teams.FOLDER / "lead.lock")
                if team.index == 0:
                    self._open_to_team(path)
                team.meet()
                if team.index > 0:
                    self._join(path, settings)
        except BaseException:
            self._release()
            raise

    def _hold(self, *, shared: bool = False) -> None:
        assert self._lock is not None
        if not self._lock.acquire(shared=shared):
            raise ValueError(
                f"the output directory {self.path} is in use by another run: wait for its end, or "
                "choose another directory with --out."
            )

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
        self._release()

    def _release(self) -> None:
        for lock in (self._lead, self._lock):
            if lock is not None:
                lock.release()

    def _open_to_team(self, path: Path) -> None:
        """Write down all that the other processes compare or wait for, and let them in."""
        assert self._lock is not None
        assert self._lead is not None
        said = path / teams.FOLDER / "data"
        said.mkdir(parents=True, exist_ok=True)
        for file in said.iterdir():  # by an earlier team
            file.unlink()
        self._lead.acquire()
        if not self.is_finished:
            self.describe()
        if not self._lock.share():
            self._hold(shared=True)

    def _join(self, path: Path, settings: dict[str, Any]) -> None:
        """Enter a directory that the first process has opened."""
        if not (path / MANIFEST).exists():
            raise ValueError(
                f"process {self.team.index} finds no {self.noun} in {path}, which process 0 should "
                "have opened: it must be one directory that all processes share."
            )
        self._hold(shared=True)
        self.manifest = read_manifest(path, self.noun)
        self._check_same(self.manifest, settings)
        if not self.is_finished and (told := _differences(self.manifest, environment())):
            raise ValueError(
                f"process {self.team.index} computes with {told} in {path}: all processes of a run "
                "need the same versions, kind of device and options of JAX."
            )

    @property
    def is_lead(self) -> bool:
        """Whether this process writes the manifest, claims and pictures."""
        return self._lead is None or self._lead.is_held

    def take_lead(self) -> bool:
        """Lead from now on, if the process that did is lost; False if it lives, or has finished."""
        if self.is_lead:
            return True
        assert self._lead is not None
        assert self.path is not None
        if not self._lead.acquire():
            return False
        self.manifest = read_manifest(self.path, self.noun)
        if self.is_finished:
            self._lead.release()
        return self._lead.is_held

    @property
    def is_finished(self) -> bool:
        """Whether an earlier call wrote all results."""
        return self.path is not None and self.manifest["status"] == "finished"

    def finished(self, load: Callable[[Path], _Saved], *, quiet: bool = True) -> _Saved | None:
        """A finished run as its files tell it; None if it is not finished, or a file is damaged.

        In that case what is intact, such as finished parts, is used again. Pictures of another
        style are drawn again.

        Args:
            load: reads the result.
            quiet: no progress on stderr.
        """
        if self.path is None or not self.is_finished:
            return None
        try:
            found = load(self.path)
        except ValueError:
            self.manifest["status"] = "running"
            self.save_manifest()
            return None
        if self.is_lead and self.manifest.get("style", PictureStyle.light) != current_style():
            save(found, quiet=quiet)
        return found

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

    def make_from(self, name: str, fingerprint: str, forget: Callable[[], None]) -> None:
        """Write down the data that parts are made from, those of other data forgotten before.

        Args:
            name: of the data.
            fingerprint: theirs.
            forget: forgets all parts that are made from data of the name.

        Raises:
            ValueError: in a team, if the process that leads has other data.
        """
        # Others wait until it is said: by then what was made from other data is gone.
        said = None if self.path is None else self.path / teams.FOLDER / "data" / f"{name}.json"
        if said is not None and self._lead is not None:
            for _ in teams.waiting():
                if said.exists() or self.take_lead():
                    break
            if not self.is_lead:
                if storage.read_json(said) != fingerprint:
                    raise ValueError(
                        f"process {self.team.index} has other data of {name} than the process that "
                        "leads: all processes of a run need the same data files."
                    )
                return
        data = self.manifest.setdefault("data", {})
        if data.get(name, fingerprint) != fingerprint:
            forget()
        if data.get(name) != fingerprint:
            data[name] = fingerprint
            self.save_manifest()
        if said is not None and self._lead is not None:
            storage.write_json(said, fingerprint)

    def cache(self, own: Path | None) -> Path | None:
        """Return where networks of this run are kept; with other processes that is its directory.

        Args:
            own: the cache of this machine.
        """
        if self.path is None:
            return own
        shared = self.path / teams.FOLDER / "networks"
        return own if self.team.is_alone and not shared.exists() else shared

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
            started = time.perf_counter()
            found = compute()
            _log.info("%s: computed in %.1f s", name, time.perf_counter() - started)
            if self.path is not None:
                like.write(self.path, name, found)
        else:
            _log.info("%s: taken from %s", name, self.path)
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

    def finish(self, result: Saved, *, quiet: bool = True) -> None:
        """Write the result, and down that all of it is there.

        Args:
            result: what was found.
            quiet: no progress on stderr.
        """
        seconds = time.perf_counter() - self._started
        self.manifest["times"]["last session seconds"] = round(seconds, 3)
        if self.path is not None:
            save(result, quiet=quiet)
        self.manifest["status"] = "finished"
        self.save_manifest()

    def _remove(self, is_meant: Callable[[str], bool]) -> None:
        if self.path is None:
            return
        for folder in self.folders:
            for file in (self.path / folder).glob("*"):
                if file.suffix in (".json", ".npz", ".jxc", ".jxr") and is_meant(file.stem):
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


def save(result: Saved, *, quiet: bool) -> None:
    """Write tables and pictures, which may take a while; that is told unless it shall be quiet."""
    with (
        Progress(quiet) as progress,
        LongCall("writing tables and pictures", 1, display=progress),
    ):
        result.save()


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Say what differs between two environments, on one line; nothing if nothing does."""
    flat = [
        {
            (name, own): value
            for name, values in made_with.items()
            for own, value in (values.items() if isinstance(values, Mapping) else [("", values)])
        }
        for made_with in ({name: there.get(name, {}) for name in here}, here)
    ]
    return ", ".join(
        f"{own or name} {flat[1].get((name, own))} and process 0 with {flat[0].get((name, own))}"
        for name, own in dict.fromkeys([*flat[1], *flat[0]])
        if flat[0].get((name, own)) != flat[1].get((name, own))
    )


def _none_if_nan(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
