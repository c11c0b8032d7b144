"""Trellis-coded tensors: near the limit, at any scale; what is odd is left to scalar codes."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp import compress, load
from jaxcomp.compressed import to_bytes
from jaxcomp.compressed.compress import POLICY
from jaxcomp.compressed.points import own_parameters
from jaxcomp.compressed.selected import select_leaves
from jaxcomp.quantizers import EntropyConstrained, TrellisCoded

SHAPE = (300, 256)  # of all tensors here: compiling is what these tests cost


def laplace(seed=0):
    return np.random.default_rng(seed).laplace(size=SHAPE).astype(np.float32)


def compressed(values, method=None, **options):
    tree = compress({"w": values}, method or TrellisCoded(0.02), **options)
    (layer,) = tree.report()
    return tree, layer


def error_of(tree, values):
    return float(np.sum(np.square(np.asarray(tree.params()["w"], np.float64) - values)))


def test_it_is_half_a_decibel_from_the_limit():
    """Shannon's lower bound for Laplace's law, of differential entropy log2(2 e) bits."""
    values = laplace()
    tree, layer = compressed(values)
    rate = layer.size_bits / values.size
    limit = 2 ** (2 * (np.log2(2 * np.e) - rate)) / (2 * np.pi * np.e)
    assert 0 < 10 * np.log10(layer.distortion / values.size / limit) < 0.5
    assert error_of(tree, values) == pytest.approx(layer.distortion, rel=1e-5)


def test_the_slope_is_what_a_bit_is_worth():
    values = laplace()
    curves = [compressed(values, TrellisCoded(slope))[1] for slope in (0.018, 0.022)]
    (first, second), size = curves, values.size
    slope = (second.distortion - first.distortion) / (first.size_bits - second.size_bits)
    assert slope == pytest.approx(0.02 * np.var(values), rel=0.1)
    assert abs(first.size_bits - second.size_bits) > 0.05 * size


@pytest.mark.parametrize("exponent", [-40, 13])
def test_powers_of_two_change_nothing(exponent):
    values = laplace()
    tree, _ = compressed(values)
    moved, _ = compressed(np.ldexp(values, exponent))
    np.testing.assert_array_equal(moved.codes("w"), tree.codes("w"))
    np.testing.assert_array_equal(
        moved.params()["w"], np.ldexp(np.asarray(tree.params()["w"]), exponent)
    )


def test_weights_that_matter_lose_less():
    values = laplace()
    importance = np.where(np.arange(SHAPE[0]) % 2, 1.0, 0.01)[:, None] * np.ones(SHAPE)
    tree, layer = compressed(values, importance={"w": jnp.asarray(importance, jnp.float32)})
    error = np.square(np.asarray(tree.params()["w"], np.float64) - values)
    assert layer.distortion == pytest.approx(np.sum(importance * error), rel=1e-4)
    assert error[1::2].mean() < 0.5 * error[::2].mean()


def test_outliers_are_kept_and_need_wider_integers():
    values = laplace()
    values[3, 5] = 200.0
    tree, layer = compressed(values)
    assert tree.codes("w").dtype == jnp.int16
    assert abs(float(tree.params()["w"][3, 5]) - 200) < 2 * float(tree.tensor("w").scales[0])
    # Its share of the variance makes a bit worth more.
    assert layer.distortion < 1.3 * compressed(laplace())[1].distortion
    assert compressed(laplace())[0].codes("w").dtype == jnp.int8


def outlier(values):
    values[0, 0] = 1e6
    return values


@pytest.mark.parametrize(
    "values",
    [
        laplace()[:4],
        laplace() + 3,
        outlier(laplace()),
        np.zeros(SHAPE, np.float32),
        laplace().round().clip(-8, 7) / 3,
    ],
    ids=["small", "not around 0", "far outlier", "zeros", "quantized before"],
)
def test_what_is_odd_is_left_to_scalar_quantization(values):
    assert TrellisCoded(0.1).suited(values, is_stack=False) == EntropyConstrained(0.1)
    assert TrellisCoded(0.1).suited(laplace()[None], is_stack=True) != EntropyConstrained(0.1)


@pytest.mark.parametrize("unit", [1e-300, 1e300])
def test_the_unit_of_weights_decides_nothing(unit):
    """Squares of the weights are beyond the range of float64."""
    values = laplace().astype(np.float64)
    assert TrellisCoded().suited(values * unit, is_stack=False).name == "trellis_coded"


def test_paths_go_through_weights_of_one_spread():
    spread = np.exp(np.random.default_rng(1).normal(0, 0.5, SHAPE[0]))[:, None]
    for values, order in ((laplace() * spread, "columns"), ((laplace() * spread).T, "rows")):
        assert TrellisCoded().suited(values, is_stack=False) == TrellisCoded(order=order)
    with pytest.raises(ValueError, match=r"order must be one of \('rows', 'columns'\) or None"):
        TrellisCoded(order="both")


def test_chains_of_a_wide_tensor_go_along_it():
    method = TrellisCoded().suited(laplace().reshape(8, -1), is_stack=False)
    assert method.order == "columns"


@pytest.mark.parametrize("order", ["rows", "columns"])
def test_weights_along_one_axis_have_one_order(order):
    values = laplace().reshape(-1)[:-3]
    tree, layer = compressed(values, TrellisCoded(0.02, order=order), select="w")
    assert error_of(tree, values) == pytest.approx(layer.distortion, rel=1e-5)
    again = load(to_bytes(tree, effort="fast"))
    np.testing.assert_array_equal(again.params()["w"], tree.params()["w"])
    assert again.layout.leaves[0].method.order == "rows"


def test_channels_have_scales_of_their_own():
    values = laplace() * np.exp(np.arange(SHAPE[1]) / 256).astype(np.float32)
    tree, layer = compressed(values, TrellisCoded(0.02, scale="channel"))
    scales = np.asarray(tree.tensor("w").scales)
    deviations = np.sqrt(np.mean(np.square(values), axis=0))
    np.testing.assert_allclose(scales / scales[0], deviations / deviations[0], rtol=1e-5)
    assert error_of(tree, values) == pytest.approx(layer.distortion, rel=1e-5)


def test_defaults_are_shared_with_what_is_left_to_scalar_quantization():
    """One slope of relative errors for all: it grows like the tensor."""
    params = {"a": laplace(), "b": np.ascontiguousarray(laplace(1)[:9])}
    selected = select_leaves(params, TrellisCoded(), (None, POLICY), None, None)
    first, second = own_parameters(list(selected.tensors.values()), shared=True)
    assert first / second == pytest.approx(300 / 9)


def test_a_multiplier_of_nothing_is_refused():
    with pytest.raises(ValueError, match="multiplier must be above 0, got 0"):
        TrellisCoded(0.0)
