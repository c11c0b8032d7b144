"""The generator of random codes and the networks of its candidates, pinned."""

import hashlib

import numpy as np
import pytest
from scipy.stats import norm

from jaxcomp.decoder import FormatError, random_codes
from jaxcomp.decoder.random_codes import CodeLayout

LAYOUT = CodeLayout(((3, 4), (5,)), num_blocks=4, block_bits=7, seed=2**32 - 3, sharing=1)
INDICES = np.asarray([0, 127, 5, 64], np.int32)
SCALES = np.asarray([0.5, 1.25], np.float32)
CHECK_WORD = 0xF261E358
DIGEST = "7fc984c28e14f269ebe33d9ec13f3f5401986aa3a89ef1a407e82d3b0ad4a470"
SHARED_DIGEST = "449268744e8fbc9112d81fb5c8dce2cae593396acd0bd597571584cfbab61224"


def words(key, counter):
    found = random_codes.threefry(key, tuple(np.asarray([own], np.uint32) for own in counter))
    return [int(own[0]) for own in found]


def test_words_are_those_of_random123():
    """Its known answers for Threefry-2x32 of 20 rounds."""
    ones = (2**32 - 1,) * 2
    assert words((0, 0), (0, 0)) == [0x6B200159, 0x99BA4EFE]
    assert words(ones, ones) == [0x1CB996FC, 0xBB002BE7]
    digits = (0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3)
    assert words(*digits) == [0xC4923A9C, 0x483DF7A0]


def test_deviates_are_quantiles_and_pinned():
    table = random_codes.normal_table()
    expected = norm.ppf((np.arange(1 << 16) + 0.5) / (1 << 16)).astype(np.float32)
    np.testing.assert_array_equal(table, expected)
    pinned = "1cfbba1e07e34386a57626f82aeb43e6ed54ba70a3ea6b7d964dc66a841074a8"
    assert hashlib.sha256(table.astype("<f4").tobytes()).hexdigest() == pinned


def test_networks_are_pinned():
    found = random_codes.values_of(LAYOUT, INDICES, SCALES)
    assert [own.shape for own in found] == list(LAYOUT.shapes)
    assert LAYOUT.check_word == CHECK_WORD
    assert random_codes.digest_of(found).hex() == DIGEST
    shared = LAYOUT._replace(sharing=3)
    found = random_codes.values_of(shared, INDICES, SCALES)
    # Twelve weights of four values, up to signs, and five of two.
    assert [len(np.unique(np.abs(own))) for own in found] == [4, 2]
    assert random_codes.digest_of(found).hex() == SHARED_DIGEST


def test_every_value_has_a_place_of_its_own():
    for layout in (LAYOUT, LAYOUT._replace(num_blocks=17)):
        place, _ = random_codes.slots(layout)
        used = random_codes.is_used(layout)
        np.testing.assert_array_equal(np.sort(place), np.flatnonzero(used))
        assert np.ptp(used.sum(axis=1)) <= 1


def test_indices_are_packed_without_gaps():
    data = random_codes.packed(LAYOUT, INDICES)
    assert len(data) == LAYOUT.index_bytes == 4  # 28 bits
    np.testing.assert_array_equal(random_codes.unpacked(LAYOUT, data), INDICES)
    with pytest.raises(FormatError, match="follows its last index"):
        random_codes.unpacked(LAYOUT, data[:-1] + bytes([data[-1] | 1]))
