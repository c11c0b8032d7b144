import numpy as np
import pytest
from scipy import stats

from jaxcomp import coding
from jaxcomp.coding import Gaussian, Laplace, ScaleMixture, SpikeAndSlab


def test_fitted_priors_beat_their_neighbours_and_match_scipy():
    rng = np.random.default_rng(2)
    weights = rng.laplace(0, 0.3, 4000).astype(np.float32)
    assert float(coding.fit(weights, Gaussian).scale) == pytest.approx(
        stats.norm.fit(weights, floc=0)[1], rel=1e-5
    )
    assert float(coding.fit(weights, Laplace).scale) == pytest.approx(
        stats.laplace.fit(weights, floc=0)[1], rel=1e-5
    )
    mixed = np.where(rng.random(4000) < 0.7, rng.normal(0, 0.1, 4000), rng.normal(0, 1, 4000))
    fitted = coding.fit(mixed.astype(np.float32), ScaleMixture)
    # Standard errors of the shares and scales of so many draws are about 0.01 to 0.03.
    np.testing.assert_allclose(np.sort(fitted.scales), [0.1, 1.0], rtol=0.1)
    np.testing.assert_allclose(np.max(fitted.shares), 0.7, atol=0.04)
    sparse = rng.normal(0, 0.5, 4000) * (rng.random(4000) < 0.2)
    fitted = coding.fit(sparse.astype(np.float32), SpikeAndSlab, step=0.05)
    assert float(fitted.spike) == pytest.approx(0.8, abs=0.025)
    assert float(fitted.scale) == pytest.approx(0.5, rel=0.08)


def test_fit_by_leaf_and_its_price():
    tree = {"a": np.float32([1, -1]), "b": np.float32([3.0, 3.0, -3.0])}
    fitted = coding.fit(tree, Gaussian, is_shared=False)
    assert [float(fitted[name].scale) for name in "ab"] == pytest.approx([1, 3])
    assert coding.parameter_bits(fitted) == 64
    shared = coding.fit(tree, Gaussian)
    assert float(shared.scale) == pytest.approx(np.sqrt(29 / 5))
    mixture = ScaleMixture(np.float32([0.75, 0.25]), np.float32([0.125, 2.0]))
    assert coding.parameter_bits(mixture) == 128
    # Weights that all round to zero, or none of which does, leave the spike inside (0, 1).
    assert 0 < float(coding.fit(np.float32([0.01] * 9), SpikeAndSlab, step=1.0).spike) < 1
    assert 0 < float(coding.fit(np.float32([5.0] * 9), SpikeAndSlab, step=1.0).spike) < 1


@pytest.mark.parametrize("family", [Gaussian, Laplace, SpikeAndSlab, ScaleMixture])
def test_fits_are_as_good_in_half_precision_and_at_any_scale(family):
    rng = np.random.default_rng(3)
    weights = (rng.laplace(0, 0.25, 3000) * (rng.random(3000) < 0.5)).astype(np.float16)
    wide = weights.astype(np.float64)
    base = coding.fit(wide, family, step=0.01)
    assert all(np.asarray(field).dtype == np.float32 for field in base)
    for found, factor in (
        (coding.fit(weights, family, step=0.01), 1),
        (coding.fit(wide * 2.0**-900, family, step=0.01 * 2.0**-900), 2.0**-900),
        (coding.fit(wide * 2.0**100, family, step=0.01 * 2.0**100), 2.0**100),
    ):
        *shares, scale = (np.asarray(field, np.float64) for field in found)
        *base_shares, base_scale = (np.asarray(field, np.float64) for field in base)
        # The step of float16 weights is rounded to float32.
        np.testing.assert_allclose(scale, base_scale * factor, rtol=1e-6)
        np.testing.assert_allclose(shares, base_shares, rtol=1e-6)


def test_a_spike_stays_below_1():
    # Float16 has no number between 1 - 1 / 2048 and 1.
    weights = np.zeros(20_000, np.float16)
    weights[0] = 1
    assert 0.9999 < float(coding.fit(weights, SpikeAndSlab, step=0.01).spike) < 1


W = np.ones(3, np.float32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: coding.fit(W, stats.norm), TypeError, "family must be one of"),
        (lambda: coding.fit(W * 0, Gaussian), ValueError, "weights must not be all zero"),
        (
            lambda: coding.fit([W * 0, W], Gaussian, is_shared=False),
            ValueError,
            "all zero in a leaf",
        ),
        (lambda: coding.fit(W, SpikeAndSlab), ValueError, "step is needed"),
        (
            lambda: coding.fit(W, ScaleMixture, num_components=1),
            ValueError,
            "num_components must be at least 2",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
