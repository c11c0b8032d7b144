"""Hidden units sorted: the same function in fewer bytes, or left as they were."""

import jax
import numpy as np
import pytest

import jaxcomp
from jaxcomp.compressed import sort_units, to_bytes, units
from jaxcomp.quantizers import RoundToNearest, Uniform

LAYERS = [[("in", 1), ("bias", 0), ("out", 0)]]


def network(seed=0, size=40):
    """Units of which some weigh much more than others, in no order."""
    rng = np.random.default_rng(seed)
    gains = np.where(rng.random(size) < 0.5, 1.0, 0.02)
    arrays = {
        "in": rng.normal(size=(64, size)) * gains,
        "bias": rng.normal(size=size),
        "out": rng.normal(size=(size, 64)) * gains[:, None],
    }
    return {name: values.astype(np.float32) for name, values in arrays.items()}


@jax.jit
def predict(params, inputs):
    return jax.nn.relu(inputs @ params["in"] + params["bias"]) @ params["out"]


@pytest.fixture(scope="module")
def trees():
    tree = jaxcomp.compress(network(), Uniform(7))
    return tree, sort_units(tree, LAYERS)


def assert_same_function(one, other):
    inputs = np.random.default_rng(1).normal(size=(5, 64)).astype(np.float32)
    np.testing.assert_allclose(
        predict(one.params(), inputs), predict(other.params(), inputs), rtol=1e-4, atol=1e-4
    )


def test_the_function_is_the_same_and_the_file_shorter(trees):
    tree, found = trees
    assert_same_function(found, tree)
    before, after = (to_bytes(one, effort="best") for one in trees)
    assert len(after) < len(before)
    norms = np.linalg.norm(found.params()["out"], axis=1)
    assert (np.diff(norms) <= 1e-6).all()
    loaded = jaxcomp.load(after).params()
    for name, values in found.params().items():
        np.testing.assert_array_equal(loaded[name], values)


@pytest.mark.parametrize("options", [{}, {"channel_axis": 0, "group_size": 16}])
def test_scales_go_with_their_units(options):
    params = network() | {"in": network()["in"].T}
    method = {"in": RoundToNearest(4, **options), "out": RoundToNearest(4)}
    tree = jaxcomp.compress(params, method)
    found = sort_units(tree, [[("in", 0), ("bias", -1), ("out", 0)]]).params()
    order = np.argsort(-np.linalg.norm(tree.params()["out"], axis=1), kind="stable")
    for name in ("in", "bias", "out"):
        np.testing.assert_array_equal(found[name], tree.params()[name][order])


def test_what_does_not_pay_is_left_alone(trees, monkeypatch):
    tree, _ = trees
    monkeypatch.setattr(units.FileSizes, "of_leaf", lambda *_: 100)
    assert all(one is other for one, other in zip(
        sort_units(tree, LAYERS).leaves, tree.leaves, strict=True))  # fmt: skip


def test_what_cannot_be_sorted_is_said():
    params = network() | {
        "other": np.ones((3, 4), np.float32),
        "tied": np.ones((40, 2), np.float32),
    }
    params |= {"again": params["tied"], "deep": np.ones((2, 40, 8), np.float32)}
    tree = jaxcomp.compress(params, RoundToNearest(4, group_size=8), stacked=["deep"])
    for layer, message in (
        ([("deep", 1), ("bias", 0)], "'deep' has layers of a stack, or codes of several weights"),
        ([("out", 0)], "groups of weights of 'out' share a scale across its units"),
        ([("bias", 0), ("other", 0)], "must have as many units each, got .3, 40. in bias, other"),
        ([("bias", 1)], r"'bias' has the shape .40,. and no axis 1"),
        ([("no", 0)], "there is no array 'no'; arrays are"),
        ([("tied", 0)], "'(tied|again)' is tied to others"),
    ):
        with pytest.raises(ValueError, match=message):
            sort_units(tree, [layer])
