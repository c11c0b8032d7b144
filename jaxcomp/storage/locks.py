"""One holder at a time for a folder."""

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


class FolderLock:
    """One holder at a time for a folder: a lock on a file in it, held until `release`.

    The system frees the lock when its process ends, however that happens, so that nothing stays
    locked after a crash. On network file systems the lock holds between machines where the server
    keeps locks (NFS 4, SMB, Lustre mounted with `flock`); where a file system has none, holders are
    not told apart, as if there were no lock.

    Args:
        folder: a folder that is there and can be written.
    """

    NAME = ".jaxcomp.lock"

    def __init__(self, folder: PathLike) -> None:
        self._path = Path(folder) / self.NAME
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Take the lock without waiting; False if someone else holds it.

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
            if not _lock(descriptor):
                os.close(descriptor)
                return False
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(descriptor), os.stat(self._path)):
                    self._descriptor = descriptor
                    return True
            # Its last holder has taken the file away in the meantime: this lock is on no name.
            os.close(descriptor)

    def release(self) -> None:
        """Free the folder, if it is held, and leave no file behind."""
        if self._descriptor is None:
            return
        # Before the lock goes: whoever opened the file by then sees that it has lost its name.
        with contextlib.suppress(OSError):  # Windows removes no open file
            self._path.unlink()
        os.close(self._descriptor)
        self._descriptor = None


def _lock(descriptor: int) -> bool:
    """Lock an open file, if the file system can; False if someone else has."""
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _NO_LOCKS
    return True
