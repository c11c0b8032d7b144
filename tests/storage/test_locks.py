"""Locks: one holder or several who share, and the file that is left by none."""

import sys

import pytest

from jaxcomp.storage import FileLock


def test_one_holder_or_several_who_share(tmp_path):
    first, second, third = (FileLock(tmp_path / "lock") for _ in range(3))
    assert first.acquire()
    assert first.is_held
    assert not second.acquire()
    assert not second.acquire(shared=True)
    assert first.share()
    assert second.acquire(shared=True)
    assert not third.acquire()
    first.release()
    assert (tmp_path / "lock").exists()  # its name is that of those who still share it
    assert not third.acquire()
    assert third.acquire(shared=True)
    third.release()
    second.release()
    assert not (tmp_path / "lock").exists()
    assert third.acquire()
    third.release()
    third.release()
    assert not third.is_held


def test_a_lock_whose_file_was_taken_away_is_taken_anew(tmp_path):
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert first.acquire()
    (tmp_path / "lock").unlink()
    assert second.acquire()
    first.release()
    second.release()


def test_a_lock_in_no_folder(tmp_path):
    with pytest.raises(OSError, match=r"no/lock could not be made .*; change the permissions or"):
        FileLock(tmp_path / "no" / "lock").acquire()


def test_looking_at_a_lock_takes_nothing(tmp_path):
    lock, other = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert not lock.is_taken()
    assert not list(tmp_path.iterdir())
    for shared in (False, True):
        assert lock.acquire(shared=shared)
        assert lock.is_taken()
        assert other.is_taken() or (shared and sys.platform == "win32")
        lock.release()
    (tmp_path / "lock").touch()  # of a process that was killed
    assert not other.is_taken()
    assert lock.acquire()
