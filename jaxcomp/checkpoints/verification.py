"""Whether a compressed model is whole, to the last bit of every array."""

import hashlib
from typing import NamedTuple

from jaxcomp.checkpoints.decompression import Report
from jaxcomp.decoder import KEPT, open_model
from jaxcomp.decoder.arrays import bytes_of
from jaxcomp.storage import PathLike


class Verified(NamedTuple):
    """A compressed model that is whole.

    Attributes:
        num_arrays: that are stored.
        size_bytes: of the file.
        digest: SHA-256 of the tree, in hexadecimal.
        kept: paths of arrays that were not compressed, every place of a tied one.
        checked: what was looked at, in words.
    """

    num_arrays: int
    size_bytes: int
    digest: str
    kept: tuple[str, ...]
    checked: str


def verify(
    source: PathLike, *, max_bytes: int | None = None, report: Report | None = None
) -> Verified:
    """Decode every array, and look at all checksums and the SHA-256.

    Args:
        source: the compressed model.
        max_bytes: see `jaxcomp.decoder.File`.
        report: told `(arrays done, arrays in all, path)`.

    Raises:
        FormatError: if it is damaged.
        ImportError: without `constriction`.
        OSError: if it cannot be read.
    """
    with open_model(source, max_bytes) as file:
        hashed = hashlib.sha256(file.identity)
        for place, entry in enumerate(file.entries):
            if report is not None:
                report(place, len(file.entries), entry.path)
            hashed.update(bytes_of(file.array(entry)).data)
        file.check_digest(hashed.digest())
        if report is not None:
            report(len(file.entries), len(file.entries), "")
        kept = tuple(
            path
            for path, (number, _) in zip(file.paths, file.slots, strict=True)
            if file.entries[number].method == KEPT
        )
        return Verified(len(file.entries), file.size, file.digest.hex(), kept, file.checked)
