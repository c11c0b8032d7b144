"""Leaves of one method are solved together; codes and files are those of each leaf alone."""

import jax
import numpy as np
import pytest

from jaxcomp import compress, curve
from jaxcomp.compressed import to_bytes
from jaxcomp.quantizers import RoundToNearest, Uniform
from jaxcomp.quantizers.methods import on_histograms

# Methods alternate, one of them solves nothing, and a leaf is a stack of layers.
METHOD = {
    "b*": Uniform(num_bins=48),
    "c": RoundToNearest(3),
    "*": Uniform(num_bins=64),
}


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    shapes = {
        "a0": (9, 8),
        "b0": (10, 7),
        "c": (4, 4),
        "a1": (3, 9, 8),
        "b1": (30, 9),
        "a2": (8, 9),
    }
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def together(monkeypatch):
    """Return what lets leaves be solved together as on an accelerator."""

    def begin():
        monkeypatch.setattr(on_histograms, "most_together", lambda: 8)
        monkeypatch.setattr(on_histograms, "chunk_bytes", lambda: 1 << 30)

    return begin


@pytest.fixture
def counted(monkeypatch):
    """Count solves with equal intervals, by how many leaves and layers each has."""
    solved, solve = [], Uniform._solve

    def noted(self, moments, numbers, **options):
        solved.append(len(numbers) if numbers.ndim > 1 else 1)
        return solve(self, moments, numbers, **options)

    monkeypatch.setattr(Uniform, "_solve", noted)
    return solved


@pytest.mark.parametrize(
    "budget",
    [pytest.param({}, marks=pytest.mark.slow), {"bits_per_weight": 4.0}],
    ids=["none", "bits"],
)
def test_files_are_those_of_each_leaf_alone(params, budget, counted, together):
    options = {"method": METHOD, "stacked": "a1", **budget}
    alone = to_bytes(compress(params, **options))
    assert set(counted) == {1}
    counted.clear()
    together()
    assert to_bytes(compress(params, **options)) == alone
    # Two leaves and three layers, filled up.
    assert counted[0] == 8


def test_curves_are_those_of_each_leaf_alone(params, together):
    options = {"method": METHOD, "stacked": "a1"}
    alone = curve(params, **options)
    together()
    found = curve(params, **options)
    assert list(found) == list(alone)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(ours, theirs)
