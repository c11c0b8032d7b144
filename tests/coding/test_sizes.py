import itertools
import math
from collections import Counter

import numpy as np
import pytest
from scipy.stats import entropy

from jaxcomp.coding.sizes import (
    code_size,
    compression_ratio,
    empirical_entropy_bits,
    pruned_size,
    rounded_size,
)


def ceil_log2(number):
    return (number - 1).bit_length()


def multinomial(counts):
    return math.factorial(sum(counts)) // math.prod(math.factorial(count) for count in counts)


def test_nothing_left_has_an_infinite_ratio():
    # Pruned weights that were 0 already cost no bits at all.
    size = pruned_size(8, 0)
    assert float(size.entropy_bits) == 0
    assert compression_ratio(256.0, float(size.entropy_bits)) == math.inf
    assert compression_ratio(0.0, 0.0) == 1
    assert compression_ratio(1536.0, 64.0) == 24


def test_entropy_matches_scipy():
    counts = np.random.default_rng(0).integers(0, 9, (4, 3, 7))
    expected = entropy(counts, base=2, axis=-1)
    np.testing.assert_allclose(empirical_entropy_bits(counts), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("counts", "bits"), [([4, 4], 1), ([5, 0], 0), ([0, 0], 0), ([1, 1, 1, 1], 2), ([2, 1, 1], 1.5)]
)
def test_entropy_in_closed_form(counts, bits):
    assert float(empirical_entropy_bits(counts)) == bits


@pytest.mark.parametrize(
    "counts",
    [[5, 3, 1], [7], [0, 9, 0, 1], [1, 1], [40, 30, 20, 10], [1000, 1, 0, 1], [2] * 16, [17, 999]],
)
def test_description_matches_exact_integers(counts):
    size = code_size(counts, num_clusters=len(counts))
    used = [count for count in counts if count]
    num, total = len(used), sum(used)
    fixed = total * ceil_log2(num)
    enumerative = ceil_log2(multinomial(used) * math.comb(total - 1, num - 1))
    header = 2 * int(math.log2(num)) + 1 + 32 * num + 1
    shortest = header + min(fixed, enumerative)
    # Logarithms in floating point: at most one bit longer, never shorter.
    assert shortest <= float(size.description_bits) <= shortest + 1
    assert float(size.codebook_bits) == 32 * num
    assert float(size.fixed_bits) == pytest.approx(total * math.log2(len(counts)))
    expected = total * entropy(counts, base=2)
    assert float(size.entropy_bits) == pytest.approx(expected, abs=1e-9)


def test_description_is_a_prefix_code():
    # Kraft's inequality over everything one group of N weights can be assigned to: the codebook
    # and its 2^32 values per entry cancel.
    total = 5
    kraft = 0.0
    for num_used in range(1, total + 1):
        for sequence in itertools.product(range(num_used), repeat=total):
            counts = Counter(sequence)
            if len(counts) < num_used:
                continue
            size = code_size([counts[k] for k in range(num_used)], num_clusters=num_used)
            kraft += 2.0 ** -float(size.description_bits - size.codebook_bits)
    assert kraft <= 1


def test_description_exceeds_the_entropy_and_its_overhead_vanishes():
    for scale in (1, 100, 10_000):
        counts = scale * np.array([60, 25, 10, 5])
        size = code_size(counts, num_clusters=4)
        assert size.description_bits > size.entropy_bits
    assert size.description_bits < 1.0002 * size.entropy_bits


def test_groups_are_independent():
    counts = np.random.default_rng(0).integers(0, 50, (3, 2, 8))
    clusters = np.array([8, 20])
    together = code_size(counts, num_clusters=clusters, centroid_bits=16)
    for i in range(3):
        for j in range(2):
            alone = code_size(counts[i, j], num_clusters=int(clusters[j]), centroid_bits=16)
            for both, one in zip(together, alone, strict=True):
                assert both[i, j] == one


def test_nothing_costs_nothing():
    for part in code_size(np.zeros((2, 4), int), num_clusters=4):
        np.testing.assert_array_equal(part, [0, 0])


def test_one_cluster_needs_no_assignments():
    size = code_size([1000, 0], num_clusters=1)
    assert float(size.fixed_bits) == float(size.entropy_bits) == 0
    assert float(size.description_bits) == 1 + 32 + 1


def test_rounded_weights():
    counts = [3, 0, 40, 7]
    size = rounded_size(counts, num_bits=2, num_scales=5)
    codes = min(100, ceil_log2(multinomial(counts) * math.comb(50 + 3, 3)))
    assert float(size.fixed_bits) == 100
    assert float(size.codebook_bits) == 160
    assert 3 + 160 + 1 + codes <= float(size.description_bits) <= 3 + 160 + 1 + codes + 1
    assert float(size.entropy_bits) == pytest.approx(50 * entropy(counts, base=2))


def test_pruned_weights():
    size = pruned_size([1000, 10], [30, 10])
    places = np.array([ceil_log2(math.comb(1000, 30)), 0])
    assert np.all(size.fixed_bits == [1000 + 960, 10 + 320])
    shortest = np.array([10, 4]) + places + np.array([960, 320])
    assert np.all((shortest <= size.description_bits) & (size.description_bits <= shortest + 1))
    np.testing.assert_allclose(
        size.entropy_bits, [1000 * entropy([30, 970], base=2) + 960, 320], rtol=1e-12
    )
    np.testing.assert_array_equal(size.codebook_bits, 0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: code_size([1.0], num_clusters=1), TypeError, "counts must be integers, got float"),
        (
            lambda: code_size([1, -1], num_clusters=2),
            ValueError,
            "counts must be at least 0, got -1",
        ),
        (lambda: code_size([1], num_clusters=0), ValueError, "num_clusters must be at least 1"),
        (lambda: code_size([1, 1], num_clusters=1), ValueError, "with points, got 1 for 2"),
        (lambda: rounded_size([1] * 5, num_bits=2, num_scales=1), ValueError, "= 4 entries, got 5"),
        (lambda: rounded_size([1], num_bits=9, num_scales=1), ValueError, "1 to 8, got 9"),
        (lambda: pruned_size(3, 4), ValueError, "between 0 and num_weights, got 4 of 3"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
