"""Rounding with feedback as a method: codes, what they stand for, curves, and what is refused."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from quantizer_oracles import count_compilations
from rounding_problems import INPUTS, OUTPUTS, SETTINGS, layer

from jaxcomp.quantizers import HessianRounding
from jaxcomp.quantizers.hessian_rounding import round_layer
from jaxcomp.quantizers.problems import LayerInputs, Problem, as_problem


def problem(*, is_turned: bool = False) -> Problem:
    """A dense layer as (inputs, outputs), or as PyTorch has it."""
    weights, second, importance = (part[:1] for part in layer())
    tensor = np.asarray(weights[0].T if is_turned else weights[0])
    places = np.arange(tensor.size, dtype=np.int32).reshape(tensor.shape)
    places = (places.T if is_turned else places)[None]
    inputs = LayerInputs(places, int(is_turned), second, None, importance)
    return dataclasses.replace(as_problem(tensor), layer=inputs)


@pytest.mark.parametrize("exponent", [0.0, 1.0])
@pytest.mark.parametrize("is_turned", [False, True])
def test_codes_stand_for_what_the_kernel_rounded_to(exponent, is_turned):
    settings = dataclasses.replace(SETTINGS, exponents=(exponent,), slopes=(1.0,))
    method = HessianRounding(settings=settings, channel_axis=int(is_turned))
    own = problem(is_turned=is_turned)
    encoded = method.encode(own, method.point(own, 0.15))
    assert (encoded.scales is not None) == (exponent > 0)
    values = method.decode(
        jnp.asarray(encoded.codes),
        encoded.codebook,
        encoded.scales,
        shape=own.shape,
        dtype=np.dtype(np.float32),
    )
    weights, second, importance = (part[:1] for part in layer())
    # A bit is worth 0.15 nats, which is 0.3 of distortion.
    found = round_layer(weights, second, 0.3, output_importance=importance, settings=settings)
    expected = found.values[0].T if is_turned else found.values[0]
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    assert encoded.counts.sum() == INPUTS * OUTPUTS
    lost = float(jnp.sum(importance * found.errors))
    assert encoded.errors.distortion == pytest.approx(lost, rel=1e-5)
    error = np.asarray(found.values) - np.asarray(weights)
    assert encoded.errors.squared_error == pytest.approx(np.sum(error**2), rel=1e-5)


def test_channels_of_a_convolution_have_one_scale_at_all_positions():
    own = problem()
    assert own.layer is not None
    shape = (2, INPUTS // 2, OUTPUTS)
    layer_inputs = own.layer._replace(axis=1)
    own = dataclasses.replace(as_problem(own.weights.reshape(shape)), layer=layer_inputs)
    settings = dataclasses.replace(SETTINGS, exponents=(1.0,), slopes=(1.0,))
    method = HessianRounding(settings=settings, channel_axis=1)
    encoded = method.encode(own, method.point(own, 0.15))
    assert encoded.scales is not None
    assert encoded.scales.shape == (INPUTS // 2,)
    values = method.decode(
        jnp.asarray(encoded.codes),
        encoded.codebook,
        encoded.scales,
        shape=shape,
        dtype=np.dtype(np.float32),
    )
    # The errors that feedback summed up are those of the weights that are stored.
    error = (np.asarray(own.weights, np.float64) - np.asarray(values)).reshape(INPUTS, OUTPUTS)
    second = np.asarray(layer_inputs.second_moments[0], np.float64)
    live = np.diag(second) > 0
    second = second + layer_inputs.damping * np.mean(np.diag(second)[live]) * np.diag(live)
    error = error[live]
    second = second[np.ix_(live, live)]
    importance = np.asarray(layer_inputs.output_importance[0], np.float64)
    lost = np.sum(importance * np.sum(error * (second @ error), axis=0))
    assert encoded.errors.distortion == pytest.approx(lost, rel=1e-3)


def test_errors_and_curves_are_in_the_units_of_the_problem():
    own, method = problem(), HessianRounding(settings=SETTINGS, channel_axis=0)
    # Of weights in units of 8 the errors of outputs are the same ordinary numbers.
    assert own.layer is not None
    layer = own.layer._replace(output_importance=64 * own.layer.output_importance)
    other = dataclasses.replace(own, exponent=3, importance_exponent=-20, layer=layer)
    point = method.point(own, 0.15)
    one, scaled = (method.encode(some, point).errors for some in (own, other))
    assert scaled.distortion == pytest.approx(one.distortion * 2.0**14, rel=1e-6)
    assert scaled.squared_error == pytest.approx(one.squared_error * 2.0**-6, rel=1e-6)
    # As many points of a curve as below: one program.
    curves = [method.curve(some, np.asarray([0.01, 0.15])).distortion[1] for some in (own, other)]
    assert curves[1] == pytest.approx(curves[0] * 2.0**14, rel=1e-6)


def test_numbers_of_the_codebook_and_scales_are_short():
    settings = dataclasses.replace(SETTINGS, exponents=(1.0,), slopes=(1.0,))
    own = problem()
    method = HessianRounding(settings=settings, channel_axis=0)
    encoded = method.encode(own, method.point(own, 0.01))
    assert encoded.codebook is not None
    assert encoded.scales is not None
    assert not np.any(encoded.scales.view(np.uint32) & 0xFFFF)
    # Eight bits times a code of so many.
    assert not np.any(encoded.codebook.astype(np.float32).view(np.uint32) & 0xFF)


def test_a_curve_promises_what_its_points_lose_and_compiles_once():
    own, method = problem(), HessianRounding(settings=SETTINGS, channel_axis=0)
    curve = method.curve(own, np.asarray([0.01, 0.15]))
    for place, parameter in enumerate((0.01, 0.15)):
        encoded = method.encode(own, method.point(own, parameter))
        assert curve.distortion[place] == pytest.approx(encoded.errors.distortion, rel=1e-3)
    assert curve.rate_bits[0] > curve.rate_bits[1]
    other = dataclasses.replace(own, weights=own.weights[::-1])
    with count_compilations() as count:
        method.encode(other, method.point(other, 0.02))
    assert count() == 0


def test_it_is_a_value_like_every_method():
    method = HessianRounding(1e-6)
    assert hash(method) == hash(dataclasses.replace(method))
    assert method.at(None).parameter is None
    for parameter in (*method.candidates().tolist(), method.default):
        method.check(parameter)
        assert "nats per bit" in method.describe(parameter)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: HessianRounding(0.0), ValueError, "nats_per_bit must be positive"),
        (lambda: HessianRounding("1"), TypeError, "nats_per_bit must be a number, got '1'"),
        (lambda: HessianRounding(dampings=()), ValueError, "dampings must be a tuple of finite"),
        (lambda: HessianRounding(settings=3), TypeError, "settings must be RoundingSettings"),
        (
            lambda: HessianRounding(otherwise=HessianRounding()),
            TypeError,
            "otherwise must be a method that needs no layers",
        ),
        (
            lambda: HessianRounding(1.0).encode(as_problem(np.ones((2, 2))), None),
            ValueError,
            "HessianRounding needs the inputs of a layer",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
