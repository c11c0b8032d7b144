"""How much memory a chunk of work may take, by the device that it runs on."""

from functools import cache
from typing import Any

from jaxcomp.numerics.host import default_device

_ON_CPU = 16 * 2**20
_UNKNOWN = 64 * 2**20
# Some chunks are there at once: what waits, what is computed, what it is computed by.
_SHARE = 64
_MOST = 2 * 2**30


def chunk_bytes() -> int:
    """Return how many bytes the numbers of a chunk may take on the default device.

    What is visited in chunks (examples, columns, bins, lanes) is visited in as many as fit in so
    much memory, unless the caller says how many at once (`examples_per_chunk` of curvatures).
    Results for another size of chunks are the same to rounding.

    - CPU: 16 MiB, what fits its caches, and what a C library keeps for the next call. (It returns
      larger pieces of memory to the system, and to get them again can take longer than the
      arithmetic.) The same on every machine.
    - Others: a 64th of the memory that JAX may use (`device.memory_stats()["bytes_limit"]`),
      between 64 MiB and 2 GiB: 1 GiB of 64. 64 MiB where the device does not say.
    """
    return _bytes_on(default_device())


@cache
def _bytes_on(device: Any) -> int:
    if device.platform == "cpu":
        return _ON_CPU
    # The limit of a device is fixed once it is there.
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return _UNKNOWN if limit is None else min(max(limit // _SHARE, _UNKNOWN), _MOST)
