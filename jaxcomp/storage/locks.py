"""Locks that the system frees when their holder ends: of a folder, and of anything with a name."""

import contextlib
import errno
import os
import sys
from pathlib import Path

from jaxcomp.storage.files import PathLike, reason

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


class FileLock:
    """A lock on a file, made for it, held until `release` by one holder, or shared by several.

    The system frees the lock when its process ends, however that happens, so that nothing stays
    locked after a crash. On network file systems the lock holds between machines where the server
    keeps locks (NFS 4, SMB, Lustre mounted with `flock`); where a file system has none, holders are
    not told apart, as if there were no lock.

    Args:
        path: of the file, in a folder that is there and can be written.
    """

    def __init__(self, path: PathLike) -> None:
        self._path = Path(path)
        self._descriptor: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether it is held here."""
        return self._descriptor is not None

    def is_taken(self) -> bool:
        """Whether anyone holds it at this moment; makes no file, and keeps nothing locked."""
        if self.is_held:
            return True
        try:
            descriptor = os.open(self._path, os.O_RDWR)
        except OSError:  # nobody, or nobody whose files can be opened here
            return False
        try:
            return not _lock(descriptor, shared=False)
        finally:
            os.close(descriptor)

    def acquire(self, *, shared: bool = False) -> bool:
        """Take the lock without waiting; False if someone else holds it.

        Args:
            shared: whether others may hold it too, who share it. (Windows shares no locks: those
                who share are not told apart from nobody there, once they have begun.)

        Raises:
            OSError: one sentence, if the file of the lock cannot be made.
        """
        while True:
            try:
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise OSError(
                    f"The file {self._path} could not be made ({reason(error)}); change the "
                    "permissions or choose another folder."
                ) from error
            if not _lock(descriptor, shared=shared):
                os.close(descriptor)
                return False
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(descriptor), os.stat(self._path)):
                    self._descriptor = descriptor
                    return True
            # Its last holder has taken the file away in the meantime: this lock is on no name.
            os.close(descriptor)

    def share(self) -> bool:
        """Let others share a lock that is held alone; False, and it is lost, if one was faster."""
        assert self._descriptor is not None
        if _lock(self._descriptor, shared=True):
            return True
        os.close(self._descriptor)
        self._descriptor = None
        return False

    def release(self) -> None:
        """Free the lock, if it is held; the last holder leaves no file behind."""
        if self._descriptor is None:
            return
        # Before the lock goes: whoever opened the file by then sees that it has lost its name. The
        # others who share the lock keep the name, by which it is found.
        if _lock(self._descriptor, shared=False):
            with contextlib.suppress(OSError):  # Windows removes no open file
                self._path.unlink()
        os.close(self._descriptor)
        self._descriptor = None


class FolderLock(FileLock):
    """One holder at a time for a folder: a lock on a file in it.

    Args:
        folder: a folder that is there and can be written.
    """

    NAME = ".jaxcomp.lock"

    def __init__(self, folder: PathLike) -> None:
        super().__init__(Path(folder) / self.NAME)


def _lock(descriptor: int, *, shared: bool) -> bool:
    """Lock an open file, if the file system can; False if someone else has."""
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, 0, os.SEEK_SET)
            with contextlib.suppress(OSError):  # it may be held by this descriptor
                msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            if shared:
                msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
        else:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _NO_LOCKS
    return True
