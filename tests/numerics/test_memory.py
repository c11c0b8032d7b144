"""The size of chunks, by what a device says of its memory."""

import jax
import pytest

from jaxcomp.numerics import memory


class _Device:
    def __init__(self, platform, stats):
        self.platform, self.stats = platform, stats

    def memory_stats(self):
        return self.stats


@pytest.mark.parametrize(
    ("platform", "stats", "mebibytes"),
    [
        ("cpu", {"bytes_limit": 2**40}, 16),
        ("gpu", None, 64),
        ("gpu", {"bytes_limit": 2**30}, 64),
        ("tpu", {"bytes_limit": 2**36}, 1024),
        ("gpu", {"bytes_limit": 2**40}, 2048),
    ],
)
def test_chunks_follow_the_memory_of_the_device(platform, stats, mebibytes):
    assert memory._bytes_on(_Device(platform, stats)) == mebibytes * 2**20


def test_the_default_device_decides():
    assert memory.chunk_bytes() == 16 * 2**20
    for chosen in (jax.devices()[0], "cpu"):
        with jax.default_device(chosen):
            assert memory.chunk_bytes() == 16 * 2**20
