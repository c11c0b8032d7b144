import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.quantizers.feedback import factor_inputs
from jaxcomp.quantizers.spacings import spacing_for


# Op by op, every operation would be compiled by itself.
@jax.jit
def spaced(second, importance, multiplier, exponent, slope, sharing=None):
    factor = factor_inputs(second, 0.01)
    return factor, spacing_for(factor, importance, multiplier, exponent, slope, sharing)


@pytest.mark.usefixtures("strict_promotion")
@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_spacings_follow_the_pivots_and_the_worth_of_a_bit(exponent):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 50, 8)) * np.exp(rng.standard_normal(8))
    x[1, :, 2] = 0
    second = jnp.asarray(np.swapaxes(x, 1, 2) @ x, jnp.float32)
    importance, multiplier, slope = 3.0, 0.2, 2.0
    factor, found = spaced(
        second, *(np.float32(part) for part in (importance, multiplier, exponent, slope))
    )
    live = np.ones((2, 8), bool)
    live[1, 2] = False
    pivots = np.asarray(factor.pivots, np.float64)
    mean = np.exp(np.mean(np.log(pivots[live])))
    ratios = 2 ** (np.round(4 * np.log2((mean / pivots) ** exponent)) / 4)
    fraction, power = np.frexp(ratios)
    ratios = np.ldexp(np.round(256 * fraction) / 256, power)
    spacing = np.asarray(found.of_inputs)
    np.testing.assert_allclose((spacing / found.scale)[live], ratios[live], rtol=1e-5)
    # What a bit is worth at high rate: ln 2 / 6 times the mean squared step of the errors.
    worth = np.log(2) / 6 * importance * np.mean((pivots * spacing)[live] ** 2)
    # c has eight significant bits, and enters squared.
    np.testing.assert_allclose(multiplier, slope * worth, rtol=2.0**-7)
    assert (np.frexp(float(found.scale))[0] * 256) % 1 == 0
    # With exponent 1 all errors are alike but for the rounding of the ratios.
    if exponent == 1:
        steps = (pivots * spacing)[live]
        assert steps.max() / steps.min() <= 2**0.25 * (1 + 2.0**-7)


def test_a_layer_whose_inputs_are_all_zero_has_spacings():
    _, found = spaced(np.zeros((2, 8, 8), np.float32), *(np.float32(1) for _ in range(4)))
    np.testing.assert_array_equal(found.of_inputs, 1)


def test_inputs_that_share_a_spacing_have_that_of_their_mean_pivot():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((1, 50, 6)) * np.exp(rng.standard_normal(6))
    x[0, :, 4] = 0
    second = (np.swapaxes(x, 1, 2) @ x).astype(np.float32)
    sharing = np.asarray([[0, 1, 2, 0, 1, 2]], np.int32)
    factor, found = spaced(second, *(np.float32(1) for _ in range(4)), sharing)
    octaves = np.log2(np.asarray(factor.pivots, np.float64))[0]
    live = np.asarray(factor.is_live)[0]
    mean = octaves[live].mean()
    expected = [mean - octaves[live & (sharing[0] == place)].mean() for place in sharing[0]]
    np.testing.assert_array_equal(found.levels[0], np.round(4 * np.asarray(expected)))
