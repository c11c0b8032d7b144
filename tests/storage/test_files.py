"""Whole or absent files, and JSON."""

import dataclasses
import errno
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from jaxcomp import storage


@dataclasses.dataclass(frozen=True)
class Settings:
    rate: float
    sizes: tuple[int, ...]


class Pair(NamedTuple):
    first: int
    second: str


def test_write_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    storage.write_bytes_atomic(path, b"first")
    storage.write_bytes_atomic(path, b"second")
    assert path.read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["file.bin"]


def test_an_error_while_writing_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    storage.write_bytes_atomic(path, b"old")

    def interrupted_write() -> None:
        with storage.atomic_writer(path) as file:
            file.write(b"half of the ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_write()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.bin"]


def test_a_killed_writer_keeps_the_old_file_and_its_rest_is_cleared(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    storage.write_bytes_atomic(path, b"old")
    script = (
        "import os, signal, sys\n"
        "from jaxcomp import storage\n"
        "with storage.atomic_writer(sys.argv[1]) as file:\n"
        "    file.write(b'half')\n"
        "    file.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    (tmp_path / ".keep.tmp").touch()
    assert path.read_bytes() == b"old"
    assert len(os.listdir(tmp_path)) == 3
    assert storage.remove_temporary_files(tmp_path, older_than_seconds=3600) == 0
    assert storage.remove_temporary_files(tmp_path) == 1
    assert sorted(os.listdir(tmp_path)) == [".keep.tmp", "file.bin"]


def test_a_write_that_cannot_succeed_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"could not be written \((Not a directory|File exists)\)"):
        storage.write_bytes_atomic(tmp_path / "file" / "inside.bin", b"")

    def full_disk(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match=r"No space left on device\); free some space"):
        storage.write_bytes_atomic(tmp_path / "other.bin", b"data")
    assert os.listdir(tmp_path) == ["file"]


def test_writable_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a" / "b"
    assert storage.ensure_writable_directory(str(folder)) == folder
    assert storage.ensure_writable_directory(folder) == folder
    assert os.listdir(folder) == []
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file; choose another folder"):
        storage.ensure_writable_directory(tmp_path / "file")
    with pytest.raises(ValueError, match=r"cannot be written \(Not a directory\)"):
        storage.ensure_writable_directory(tmp_path / "file" / "inside")

    def refuse(self: Path, data: bytes) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    # A patch, because permission bits do not bind the superuser, who runs tests in containers.
    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(ValueError, match=r"cannot be written \(Permission denied\); change its"):
        storage.ensure_writable_directory(folder)


def test_json_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    value = {
        "settings": Settings(0.5, (1, 2)),
        "pair": Pair(1, "é"),
        "numbers": np.array([1, 2]),
        "flag": np.bool_(True),
        "rate": np.float32(0.5),
        "missing": [math.nan, math.inf, np.float64(-math.inf), None],
    }
    storage.write_json(path, value)
    expected = {
        "settings": {"rate": 0.5, "sizes": [1, 2]},
        "pair": [1, "é"],
        "numbers": [1, 2],
        "flag": True,
        "rate": 0.5,
        "missing": [None] * 4,
    }
    assert storage.read_json(path) == expected
    text = path.read_text(encoding="utf-8")
    assert "NaN" not in text
    assert text.endswith("}\n")


def test_json_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(ValueError, match="does not exist; check the path"):
        storage.read_json(path)
    path.write_text('{"half": ')
    with pytest.raises(ValueError, match=r"could not be read as JSON .*; delete it and run again"):
        storage.read_json(path)
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match="could not be read as JSON"):
        storage.read_json(path)
    with pytest.raises(TypeError, match="value has the key 1"):
        storage.write_json(path, {1: 2})
    with pytest.raises(TypeError, match=r"value\[0\] is of type complex"):
        storage.write_json(path, [1j])
