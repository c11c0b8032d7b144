import jax.numpy as jnp
import numpy as np
import pytest
from rounding_problems import SETTINGS, layer

from jaxcomp.quantizers.hessian_rounding import layer_curve, round_layer
from jaxcomp.quantizers.rounding_passes import RoundingSettings


def test_the_choice_is_the_cheapest_of_all_pairs():
    weights, second, importance = layer()

    def cost(found):
        return jnp.sum(importance * found.errors) + found.multiplier * found.bits.total

    chosen = set()
    for multiplier in (0.02, 1.0, 20.0):
        best = round_layer(
            weights, second, multiplier, output_importance=importance, settings=SETTINGS
        )
        costs = []
        for exponent in SETTINGS.exponents:
            for slope in SETTINGS.slopes:
                pair = RoundingSettings(
                    block_size=8, max_code=255, exponents=(exponent,), slopes=(slope,)
                )
                found = round_layer(
                    weights, second, multiplier, output_importance=importance, settings=pair
                )
                costs.append(cost(found))
        np.testing.assert_allclose(cost(best), min(costs), rtol=1e-5)
        chosen.add((float(best.spacing.exponent), float(best.spacing.slope)))
    assert len(chosen) > 1


def test_a_curve_is_that_of_the_points_rounded_one_by_one():
    weights, second, importance = layer()
    multipliers = jnp.asarray([0.02, 0.3, 20.0])
    curve = layer_curve(
        weights, second, multipliers, output_importance=importance, settings=SETTINGS
    )
    # So few outputs are all in the sample.
    for number, multiplier in enumerate(multipliers):
        found = round_layer(
            weights, second, multiplier, output_importance=importance, settings=SETTINGS
        )
        np.testing.assert_allclose(curve.rate_bits[number], found.rate_bits, rtol=1e-4)
        distortion = jnp.sum(importance * found.errors)
        np.testing.assert_allclose(curve.distortion[number], distortion, rtol=1e-4)
        assert curve.exponent[number] == found.spacing.exponent
        assert curve.slope[number] == found.spacing.slope
    assert jnp.all(jnp.diff(curve.rate_bits) < 0)
    assert jnp.all(jnp.diff(curve.distortion) > 0)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="slopes must be positive"):
        RoundingSettings(slopes=(0.0,))
    with pytest.raises(ValueError, match="exponents must be a tuple of finite numbers"):
        RoundingSettings(exponents=())
    with pytest.raises(ValueError, match="max_code must be from 1 to 16383"):
        RoundingSettings(max_code=1 << 15)
    with pytest.raises(ValueError, match="num_passes must be at least 1"):
        RoundingSettings(num_passes=0)
