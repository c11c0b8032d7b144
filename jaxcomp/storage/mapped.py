"""Files mapped into memory: read where they are touched, and given back."""

import mmap
import os
from pathlib import Path

from jaxcomp.storage.files import PathLike


class MappedFile:
    """A file that is read as if it were memory, for as long as something refers to its bytes.

    Attributes:
        path: of the file.
        data: its bytes, read-only.
        identity: its name, size and time, by which it is told from what it may become.

    Args:
        path: of a file that is not empty.

    Raises:
        OSError: if it cannot be read.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path)
        with open(self.path, "rb") as file:
            found = os.fstat(file.fileno())
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.data = memoryview(self._map)
        self.identity = [str(self.path.resolve()), found.st_size, found.st_mtime_ns]

    def release(self) -> None:
        """Give back the memory of what was read; it is read again where it is touched again."""
        if hasattr(mmap, "MADV_DONTNEED"):  # the system does it when memory is short, elsewhere
            self._map.madvise(mmap.MADV_DONTNEED)
