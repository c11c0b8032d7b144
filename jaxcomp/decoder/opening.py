"""Open a compressed model, whatever kind of file it is in: the only place that knows the kinds."""

import os
from functools import cached_property
from pathlib import Path

import numpy as np

from jaxcomp.decoder.arrays import Parts
from jaxcomp.decoder.files import HEADER_NAME, INDEX, MAGIC, Entry, File
from jaxcomp.decoder.random_codes import CodeLayout, is_random_codes, stored_codes

RANDOM_CODES = "random_codes"
"""The method of arrays in a file of random codes."""


class CodesFile(File):
    """An open file of random codes, as other files of compressed models are used.

    It has no sections: of its bytes an array has its scale, and the share of the indices that its
    values are of all values. The network is made when the first array is asked for.

    Args:
        source: path, or the bytes themselves.
        max_bytes: see `File`.

    Raises:
        FormatError: whatever is wrong with the file.
        OSError: if it cannot be read.
    """

    checked = "the checksum, the check word and the SHA-256"

    def __init__(
        self, source: str | os.PathLike[str] | bytes, max_bytes: int | None = None
    ) -> None:
        self._stored = stored = stored_codes(source, max_bytes=max_bytes)
        self.size, self.digest, self.identity = stored.size, stored.digest, b""
        self.sources = () if isinstance(source, bytes) else (Path(source),)
        self.header, self.reference, self.made = {"tree": stored.description}, None, None
        self.paths = list(stored.paths)
        self.slots = [(number, None) for number in range(len(stored.paths))]
        self.entries = [
            Entry("float32", shape, RANDOM_CODES, "i", "", path, 0, length, 0)
            for path, shape, length in zip(
                stored.paths, stored.layout.shapes, _lengths(stored.layout), strict=True
            )
        ]

    @property
    def layout(self) -> CodeLayout:
        """Of the code."""
        return self._stored.layout

    def close(self) -> None:
        """Nothing is open: all of the file is in memory."""

    def parts(self, entry: Entry) -> Parts:
        """Return an array itself; the checksum of all was looked at first."""
        return Parts(self._arrays[entry.path])

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        return self._stored.decoded()


def open_model(
    source: str | os.PathLike[str] | bytes, max_bytes: int | None = None
) -> File | CodesFile:
    """Open a compressed model of any kind.

    Args:
        source: path of a `.jxc`, of safetensors with sections or their index, or of a `.jxr`; or
            the bytes of one file.
        max_bytes: see `File`.

    Raises:
        FormatError: whatever is wrong with the file.
        OSError: if it cannot be read.
    """
    return (CodesFile if is_random_codes(source) else File)(source, max_bytes)


def is_compressed(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file is a compressed model of any kind, alone or in several safetensors."""
    path = Path(path)
    if not path.is_file():
        return False
    if is_random_codes(path):
        return True
    with open(path, "rb") as file:
        if path.name.endswith(INDEX):
            return f'"{HEADER_NAME}"'.encode() in file.read(1 << 24)
        start = file.read(8)
        if start.startswith(MAGIC[:3]):
            return True
        # The header is listed first, unless it was written by someone else.
        length = int.from_bytes(start, "little")
        is_small = len(start) == 8 and length < path.stat().st_size
        return is_small and f'"{HEADER_NAME}"'.encode() in file.read(min(length, 1 << 24))


def _lengths(layout: CodeLayout) -> list[int]:
    """Return the bytes of each array; their sum is that of all scales and indices."""
    values = np.cumsum([-(-size // layout.sharing) for size in layout.sizes])
    ends = [int(own) * layout.index_bytes // layout.num_values for own in values]
    return [4 + end - begin for begin, end in zip([0, *ends], ends, strict=False)]
