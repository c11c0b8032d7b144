"""What a budget in bits weighs where nothing says what matters."""

import jax
import numpy as np
import pytest
from slow_cases import some_slow
from tree_problems import bits_in_file, weights

from jaxcomp import compress
from jaxcomp.compressed import to_bytes
from jaxcomp.quantizers import EntropyConstrained, MagnitudePruning, RoundToNearest


def layers(unit: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"first": (60, 40), "second": (40, 10), "third": (10, 10)}
    drawn = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    drawn["second"] *= np.float32(unit)
    return drawn


def test_without_importance_relative_errors_of_layers_count_alike():
    params = layers(2.0**-6)
    importance = {
        name: np.full(value.shape, 1 / np.sum(np.asarray(value, np.float64) ** 2))
        for name, value in params.items()
    }
    found = compress(params, RoundToNearest(), bits_per_weight=4.0)
    expected = compress(params, RoundToNearest(), importance=importance, bits_per_weight=4.0)
    alike = compress(
        params,
        RoundToNearest(),
        importance=jax.tree.map(np.ones_like, params),
        bits_per_weight=4.0,
    )
    bits = [
        [int(tree.tensor(name).parameter) for name in params] for tree in (found, expected, alike)
    ]
    assert bits[0] == bits[1]
    assert bits[0][1] > bits[2][1]
    # The fewer weights share an error, the finer they are.
    assert bits[0][0] < bits[0][2]


def test_without_importance_the_unit_of_a_layer_is_nothing():
    found = [
        compress(layers(unit), RoundToNearest(), bits_per_weight=4.0) for unit in (1.0, 2.0**-20)
    ]
    for name in layers(1.0):
        np.testing.assert_array_equal(found[0].codes(name), found[1].codes(name))


def test_without_budget_a_tree_takes_about_four_bits():
    rng = np.random.default_rng(1)
    params = {
        "first": rng.normal(size=(200, 100)).astype(np.float32),
        "second": rng.normal(size=(100, 20)).astype(np.float32),
    }
    report = compress(params).report()
    rates = {layer.path: layer.entropy_bits_per_weight for layer in report}
    # Ten times fewer weights: the root of ten times finer. Gaussian weights take 0.25 bit more
    # than the bound at high rate (Gish and Pierce), and a sixth of a bit less along paths, which
    # the second is too small for: 4.1 bits on average.
    assert abs(rates["second"] - rates["first"] - 0.5 * np.log2(10)) < 0.1
    mean = (10 * rates["first"] + rates["second"]) / 11
    assert abs(mean - (4.25 - 10 / 11 / 6)) < 0.1


ENTROPY = EntropyConstrained(num_bins=512, num_symbols=32)


@pytest.mark.parametrize(
    ("method", "step"),
    some_slow(
        [(ENTROPY, 0.06), (MagnitudePruning(), 0.2)],
        (ENTROPY, 0.06),
    ),
)
def test_a_budget_is_used_where_a_curve_goes_on_between_its_points(method, step):
    params = {"kernel": weights(1, (96, 100))}
    for bits in (1.9, 2.2):
        used = bits_in_file(compress(params, method, bits_per_weight=bits)) / 9600
        # The points of the curve are 0.25 and 1.6 bits apart.
        assert bits - step < used <= bits


@pytest.mark.parametrize("size", [359, 413])
def test_few_bits_are_used_up_between_points(size):
    """Points of one large leaf are far apart there: the nearest ones left 13 and 5 % unused."""
    rng = np.random.default_rng(0)
    tree = {
        "large": rng.standard_t(3, (100, 80)).astype(np.float32),
        "small": rng.standard_normal((30, 20)).astype(np.float32) / 8,
    }
    method = EntropyConstrained(num_bins=64, num_symbols=16)
    compressed = compress(tree, method, size_bytes=size, effort="fast")
    found = len(to_bytes(compressed, effort="fast"))
    rest = 186  # of the header
    assert 0.985 * (size - rest) <= found - rest <= size - rest
