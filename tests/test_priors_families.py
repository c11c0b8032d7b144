import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy import stats

from jaxcomp import priors
from jaxcomp.priors import Gaussian, Laplace, ScaleMixture, SpikeAndSlab

MIXTURE = ScaleMixture(np.float32([0.75, 0.25]), np.float32([0.125, 2.0]))
PRIORS = [Gaussian(0.5), Laplace(0.25), SpikeAndSlab(0.875, 0.5), MIXTURE]


def exact_bits(index, prior, step):
    """-log2 of the cell's mass, with 60 digits: the difference of distribution functions."""

    def gaussian(scale):
        low, high = (abs(index) - mpmath.mpf(1) / 2) * step, (abs(index) + mpmath.mpf(1) / 2) * step
        root = mpmath.sqrt(2) * scale
        return (mpmath.erfc(low / root) - mpmath.erfc(high / root)) / 2

    with mpmath.workdps(60):
        step = mpmath.mpf(float(step))
        match prior:
            case Gaussian(scale):
                mass = gaussian(scale)
            case Laplace(scale):
                half = step / (2 * scale)
                if index == 0:
                    mass = 1 - mpmath.exp(-half)
                else:
                    centre = abs(index) * step / scale
                    mass = (mpmath.exp(half - centre) - mpmath.exp(-half - centre)) / 2
            case SpikeAndSlab(spike, scale):
                mass = (1 - spike) * gaussian(scale) + (spike if index == 0 else 0)
            case ScaleMixture(shares, scales):
                parts = zip(shares, scales, strict=True)
                mass = sum(float(share) * gaussian(float(scale)) for share, scale in parts)
        # 60 digits are not enough where erfc underflows them against 1, so never subtract from 1.
        return -mpmath.log(mass, 2)


@pytest.mark.usefixtures("strict_promotion")
@pytest.mark.parametrize("prior", PRIORS, ids=lambda prior: type(prior).__name__)
def test_cell_masses_match_exact_ones_far_into_the_tails(prior):
    # From a thousandth of the width to eight times, from the centre to 40 deviations.
    steps = np.float32([2.0**-10, 2.0**-5, 2.0**-2, 1.0, 4.0])
    distances = np.float32([0, 0.01, 0.3, 1, 2.5, 6, 20])
    index = np.rint(distances[None, :] / steps[:, None])
    index = np.concatenate([index, -index[:, 1:]], axis=1)
    weights = (index * steps[:, None]).astype(np.float32)
    found = priors.code_length_bits(jnp.asarray(weights), prior, step=jnp.asarray(steps[:, None]))
    expected = np.asarray(
        [
            [float(exact_bits(int(k), prior, step)) for k in row]
            for row, step in zip(index, steps, strict=True)
        ]
    )
    # Relative for long codes (the exponent itself is rounded), absolute for short ones.
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=4e-6)


def test_cells_are_a_distribution():
    index = np.arange(-4000, 4001)
    for prior in PRIORS:
        for step in (2.0**-6, 0.75):
            bits = priors.code_length_bits(jnp.asarray(index * step, jnp.float32), prior, step=step)
            assert np.sum(2.0 ** -np.asarray(bits, np.float64)) == pytest.approx(1, abs=2e-6)


def test_penalties_are_code_lengths():
    # |w|^2 / (2 t^2 ln 2) + d/2 log2(2 pi t^2) - d log2(step), and |w| for Laplace.
    weights = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)
    step, d = 2.0**-8, weights.size
    found = np.sum(
        np.asarray(priors.code_length_bits(weights, Gaussian(0.8), step=step), np.float64)
    )
    squares = np.sum(weights.astype(np.float64) ** 2)
    closed = (
        squares / (2 * 0.64 * np.log(2)) + d / 2 * np.log2(2 * np.pi * 0.64) - d * np.log2(step)
    )
    assert found == pytest.approx(closed, rel=1e-5)
    found = np.sum(
        np.asarray(priors.code_length_bits(weights, Laplace(0.8), step=step), np.float64)
    )
    closed = np.sum(np.abs(weights, dtype=np.float64)) / (0.8 * np.log(2)) + d * np.log2(1.6 / step)
    assert found == pytest.approx(closed, rel=1e-5)


@pytest.mark.usefixtures("strict_promotion")
def test_trees_priors_by_leaf_and_traced_numbers():
    rng = np.random.default_rng(1)
    tree = {
        "a": rng.normal(size=(3, 4)).astype(np.float32),
        "b": rng.normal(size=5).astype(np.float32),
    }
    by_leaf = {"a": Gaussian(0.5), "b": Laplace(2.0)}
    steps = {"a": 0.25, "b": 0.125}
    found = priors.code_length_bits(tree, by_leaf, step=steps)
    for name in tree:
        alone = priors.code_length_bits(tree[name], by_leaf[name], step=steps[name])
        np.testing.assert_array_equal(found[name], alone)
    many = jax.jit(jax.vmap(lambda t, d: priors.code_length_bits(tree["b"], Gaussian(t), step=d)))
    scales, widths = jnp.asarray([0.5, 1.0, 2.0]), jnp.asarray([0.1, 0.2, 0.4])
    for row, scale, step in zip(many(scales, widths), scales, widths, strict=True):
        alone = priors.code_length_bits(tree["b"], Gaussian(float(scale)), step=float(step))
        np.testing.assert_allclose(row, alone, rtol=1e-6)


def test_fitted_priors_beat_their_neighbours_and_match_scipy():
    rng = np.random.default_rng(2)
    weights = rng.laplace(0, 0.3, 4000).astype(np.float32)
    assert float(priors.fit(weights, Gaussian).scale) == pytest.approx(
        stats.norm.fit(weights, floc=0)[1], rel=1e-5
    )
    assert float(priors.fit(weights, Laplace).scale) == pytest.approx(
        stats.laplace.fit(weights, floc=0)[1], rel=1e-5
    )
    mixed = np.where(rng.random(4000) < 0.7, rng.normal(0, 0.1, 4000), rng.normal(0, 1, 4000))
    fitted = priors.fit(mixed.astype(np.float32), ScaleMixture)
    # Standard errors of the shares and scales of so many draws are about 0.01 to 0.03.
    np.testing.assert_allclose(np.sort(fitted.scales), [0.1, 1.0], rtol=0.1)
    np.testing.assert_allclose(np.max(fitted.shares), 0.7, atol=0.04)
    sparse = rng.normal(0, 0.5, 4000) * (rng.random(4000) < 0.2)
    fitted = priors.fit(sparse.astype(np.float32), SpikeAndSlab, step=0.05)
    assert float(fitted.spike) == pytest.approx(0.8, abs=0.025)
    assert float(fitted.scale) == pytest.approx(0.5, rel=0.08)


def test_fit_by_leaf_and_its_price():
    tree = {"a": np.float32([1, -1]), "b": np.float32([3.0, 3.0, -3.0])}
    fitted = priors.fit(tree, Gaussian, is_shared=False)
    assert [float(fitted[name].scale) for name in "ab"] == pytest.approx([1, 3])
    assert priors.parameter_bits(fitted) == 64
    shared = priors.fit(tree, Gaussian)
    assert float(shared.scale) == pytest.approx(np.sqrt(29 / 5))
    assert priors.parameter_bits(MIXTURE) == 128
    # Weights that all round to zero, or none of which does, leave the spike inside (0, 1).
    assert 0 < float(priors.fit(np.float32([0.01] * 9), SpikeAndSlab, step=1.0).spike) < 1
    assert 0 < float(priors.fit(np.float32([5.0] * 9), SpikeAndSlab, step=1.0).spike) < 1


def test_zeros_shorten_a_sparse_code_only():
    dense = np.random.default_rng(3).normal(0, 0.5, 3000).astype(np.float32)
    sparse = np.where(np.abs(dense) < 0.7, 0, dense).astype(np.float32)

    def total(weights, family):
        prior = priors.fit(weights, family, step=0.02)
        return float(
            np.sum(np.asarray(priors.code_length_bits(weights, prior, step=0.02), np.float64))
        )

    assert total(sparse, SpikeAndSlab) < 0.5 * total(dense, SpikeAndSlab)
    assert total(sparse, Gaussian) > 0.9 * total(dense, Gaussian)


W = np.ones(3, np.float32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: priors.code_length_bits(W, Gaussian(1.0), step=0.0),
            ValueError,
            "step must be positive and finite, got 0",
        ),
        (
            lambda: priors.code_length_bits(W, Gaussian(-1.0), step=0.1),
            ValueError,
            "scale must be positive and finite, got -1",
        ),
        (
            lambda: priors.code_length_bits(W * np.nan, Gaussian(1.0), step=0.1),
            ValueError,
            "weights must be finite, got 3 NaN or infinite of 3",
        ),
        (
            lambda: priors.code_length_bits(np.arange(3), Gaussian(1.0), step=0.1),
            TypeError,
            "weights must be floating, got int",
        ),
        (
            lambda: priors.code_length_bits(W, 0.5, step=0.1),
            TypeError,
            "prior must be one of Gaussian, .*, got float",
        ),
        (
            lambda: priors.code_length_bits({"a": W}, {"b": Gaussian(1.0)}, step=0.1),
            ValueError,
            "prior must be one prior or a pytree",
        ),
        (
            lambda: priors.code_length_bits({"a": W}, Gaussian(1.0), step={"b": 0.1}),
            ValueError,
            "step must be one number or a pytree",
        ),
        (
            lambda: priors.code_length_bits(W, SpikeAndSlab(1.0, 1.0), step=0.1),
            ValueError,
            "spike must lie between 0 and 1",
        ),
        (
            lambda: priors.code_length_bits(W, ScaleMixture(np.ones(2), np.ones(2)), step=0.1),
            ValueError,
            "shares must have the sum 1, got 2",
        ),
        (
            lambda: priors.code_length_bits(W, ScaleMixture(np.ones(1), np.ones(2)), step=0.1),
            ValueError,
            "one entry for each component",
        ),
        (lambda: priors.fit(W, stats.norm), TypeError, "family must be one of"),
        (lambda: priors.fit(W * 0, Gaussian), ValueError, "weights must not be all zero"),
        (
            lambda: priors.fit([W * 0, W], Gaussian, is_shared=False),
            ValueError,
            "all zero in a leaf",
        ),
        (lambda: priors.fit(W, SpikeAndSlab), ValueError, "step is needed"),
        (
            lambda: priors.fit(W, ScaleMixture, num_components=1),
            ValueError,
            "num_components must be at least 2",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
