import decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from promotion import strict_promotion
from quantizer_oracles import count_compilations
from scipy.special import entr, rel_entr, xlogy

from jaxcomp.rate_distortion import blahut_arimoto

HAMMING = 1.0 - np.eye(2)


SLOPES = np.array([1.0, 3.0, 10.0, 30.0])


def solve(p, d, slopes, **options):
    """Solve for one source, four slopes at a time, beside another: one program for all tests.

    Of six symbols and nine reproductions; those that the source lacks never occur.
    """
    d = np.asarray(d)
    more = [(0, 6 - d.shape[0]), (0, 9 - d.shape[1])]
    distances = np.pad(d, more, constant_values=np.inf)
    others = np.any(np.isfinite(distances), axis=1)
    sources = np.stack([np.pad(p, more[0]), others / others.sum()])
    parts = []
    for start in range(0, slopes.size, 4):
        own = blahut_arimoto(sources, distances, slopes[start : start + 4], **options)
        parts.append(jax.tree.map(lambda values: np.asarray(values)[0], own))
    return jax.tree.map(lambda *own: np.concatenate(own), *parts)


def binary_entropy(p):
    p = np.asarray(p, np.float64)
    return entr(p) + entr(1 - p)


def plain_iteration(p, d, s, num_steps):
    """Blahut's iteration in NumPy; returns upper and lower bound at its distortion."""
    kernel = np.exp(-s * d)
    q = np.full(d.shape[1], 1 / d.shape[1])
    for _ in range(num_steps):
        q = q * ((p / (kernel @ q)) @ kernel)
    z = kernel @ q
    c = (p / z) @ kernel
    joint = (p / z)[:, None] * kernel * q
    distortion = np.sum(joint * d)
    rate = np.sum(rel_entr(joint, p[:, None] * joint.sum(axis=0)))
    return rate, distortion, -s * distortion - p @ np.log(z) - np.log(c.max())


def random_source(num_symbols=6, num_reproductions=9, seed=0):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(num_symbols)), rng.random((num_symbols, num_reproductions))


def test_binary_source_with_hamming_distortion():
    p, slopes = 0.3, np.array([0.0, 0.5, 0.9, 1.0, 2.0, 5.0, 1e6, np.inf])
    found = solve(np.array([p, 1 - p]), HAMMING, slopes)
    # At slope s the curve is at D = 1 / (1 + e^s), or at its end D = p.
    distortion = np.minimum(1 / (1 + np.exp(np.minimum(slopes, 700.0))), p)
    assert np.all(found.converged)
    assert np.all(np.asarray(found.gap_nats) <= 1e-6)
    # Within the gap the rate may be high; along the curve it may be elsewhere by dR = s dD.
    rate = np.asarray(found.rate_nats)
    np.testing.assert_allclose(found.distortion, distortion, atol=1e-3)
    on_curve = np.maximum(binary_entropy(p) - binary_entropy(np.asarray(found.distortion)), 0)
    assert np.all(rate <= on_curve + 1e-6 + 1e-6)
    assert np.all(rate >= on_curve - 1e-6)
    assert float(found.distortion[0]) == pytest.approx(p)
    assert float(rate[-1]) == pytest.approx(binary_entropy(p), abs=1e-6)
    np.testing.assert_allclose(np.sum(found.output_probabilities, axis=-1), 1, rtol=1e-6)


def test_matches_the_plain_iteration():
    p, d = random_source()
    found = solve(p, d, SLOPES, gap_nats=1e-9)
    for index, s in enumerate(SLOPES):
        rate, distortion, lower = plain_iteration(p, d, s, 5000)
        lagrangian = float(found.rate_nats[index]) + s * float(found.distortion[index])
        # Two brackets of the same number; float32 results of order 1 to 10.
        assert lagrangian <= rate + s * distortion + 2e-6
        assert lagrangian >= lower + s * distortion - 2e-6


def test_certificate_is_never_above_the_curve():
    # Tangents at every slope against a densely computed curve of another method.
    p, d = random_source(seed=3)
    found = solve(p, d, SLOPES)
    for s in np.geomspace(0.7, 60, 5):
        rate, distortion, _ = plain_iteration(p, d, s, 2000)
        tangents = found.rate_nats - found.gap_nats - SLOPES * (distortion - found.distortion)
        assert np.all(tangents <= rate + 2e-6)


def test_symbols_of_probability_zero_and_forbidden_reproductions():
    # Of six symbols one never occurs and may go nowhere, of nine reproductions one is forbidden.
    p, d = random_source(5, 8)
    padded_p = np.insert(p, 2, 0.0)
    padded_d = np.insert(np.insert(d, 2, np.inf, axis=0), 4, np.inf, axis=1)
    found = solve(padded_p, padded_d, SLOPES)
    for index, s in enumerate(SLOPES):
        rate, distortion, lower = plain_iteration(p, d, s, 5000)
        lagrangian = float(found.rate_nats[index]) + s * float(found.distortion[index])
        assert lower + s * distortion - 2e-6 <= lagrangian <= rate + s * distortion + 3e-6
    found = solve(padded_p, padded_d, np.array([0.0, 1e-3, 1e5, np.inf]))
    # Not even at slope 0.
    np.testing.assert_array_equal(np.asarray(found.output_probabilities)[:, 4], 0)
    assert np.all(np.isfinite(found.rate_nats))
    assert float(found.distortion[0]) == pytest.approx(np.min(p @ d), rel=1e-6)
    assert float(found.distortion[-1]) == pytest.approx(p @ d.min(axis=1), rel=1e-6)


def test_no_underflow_at_large_slopes():
    # Distances of 1e4 at slopes of 1e8: every exponential is 0 but the nearest.
    rng = np.random.default_rng(1)
    points = np.sort(rng.normal(size=9)) * 100
    p = rng.dirichlet(np.full(6, 0.2))
    d = (points[:6, None] - points[None, :]) ** 2 + 7.0
    found = solve(p, d, np.array([1e3, 1e8, 1e30, np.inf]))
    positive = p[p > 0]
    np.testing.assert_allclose(found.rate_nats, -positive @ np.log(positive), rtol=1e-5)
    np.testing.assert_allclose(found.distortion, 7.0, rtol=1e-6)
    assert np.all(found.converged)


@pytest.mark.slow
def test_smooth_sources_end_too():
    # A Gaussian on a fine grid: the last steps change the sum by less than its rounding.
    grid = np.linspace(-4, 4, 96)
    p = np.exp(-(grid**2) / 2)
    p /= p.sum()
    d = (grid[:, None] - grid[None, :]) ** 2
    slopes = np.geomspace(1 / 3, 1000, 64)[28:31]
    found = blahut_arimoto(p, d, slopes)
    assert np.all(found.converged)
    for s, q in zip(slopes, np.asarray(found.output_probabilities, np.float64), strict=True):
        kernel = np.exp(-s * d)
        c = (p / (kernel @ q)) @ kernel
        # float32 probabilities are off by 6e-8 of themselves.
        assert np.log(c.max()) - np.sum(xlogy(q * c, c)) <= 1.3e-6


def test_batches_of_sources_and_slopes():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(6), size=2)
    d = rng.random((6, 9))
    together = blahut_arimoto(p, d, SLOPES)
    assert together.rate_nats.shape == (2, 4)
    assert together.output_probabilities.shape == (2, 4, 9)
    with count_compilations() as num_compilations:
        blahut_arimoto(p[::-1].copy(), d, 2 * SLOPES, gap_nats=1e-7)
        assert num_compilations() == 0

    def one(row, slope):
        found = blahut_arimoto(row, d, slope)
        assert found.rate_nats.shape == ()
        assert found.output_probabilities.shape == (9,)
        return found

    with strict_promotion():
        by_slope = jax.vmap(one, in_axes=(None, 0))
        mapped = jax.jit(jax.vmap(by_slope, in_axes=(0, None)))(np.float32(p), np.float32(SLOPES))
    np.testing.assert_allclose(mapped.rate_nats, together.rate_nats, atol=2e-6)


def test_wide_types(x64):
    slopes = np.array([0.9, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0])
    found = blahut_arimoto(np.array([0.3, 0.7]), HAMMING, slopes, gap_nats=1e-12)
    assert found.rate_nats.dtype == jnp.float64
    assert np.all(found.converged)
    expected = binary_entropy(0.3) - binary_entropy(1 / (1 + np.exp(slopes)))
    # Along the curve an error in D moves the rate by s dD; D is good to the root of the gap.
    np.testing.assert_allclose(
        np.asarray(found.rate_nats) + slopes * np.asarray(found.distortion),
        expected + slopes / (1 + np.exp(slopes)),
        atol=2e-12,
    )


P, D = np.array([0.5, 0.5]), HAMMING


def exact(number):
    """A float as it is, for arithmetic with 40 digits."""
    return decimal.Decimal(float(number))


def test_certificates_hold_after_rounding():
    # Binary source, h(p) - h(D): of slope -s at D = 1 / (1 + e^s), where R + s D is
    # h(p) - ln(1 + e^-s); the constant code below the slope ln(7/3).
    slopes = np.linspace(0.05, 7, 64)
    found = solve(np.array([0.3, 0.7]), HAMMING, slopes)
    assert found.gap_nats.dtype == np.float32
    with decimal.localcontext(prec=40):

        def entropy(p):
            return -p * p.ln() - (1 - p) * (1 - p).ln()

        p = exact(0.3)
        for s, rate, distortion, gap in zip(
            map(exact, slopes), *(map(exact, part) for part in found[:3]), strict=True
        ):
            is_constant = s <= ((1 - p) / p).ln()
            least = s * p if is_constant else entropy(p) - (1 + (-s).exp()).ln()
            assert rate - gap + s * distortion <= least
            assert distortion >= p or rate >= entropy(p) - entropy(distortion)
            # Not by more than the rounding of three numbers.
            assert gap < exact(1.1e-6) + s * distortion * exact(2e-7)


def test_a_point_mass_needs_no_bits_and_pays_its_nearest_reproduction():
    # Whatever the slope, ties and symbols that do not occur; nothing is left of the start.
    slopes = np.array([0.0, 1.0, 1e6, np.inf])
    distances = np.full((6, 9), 7.0)  # the sizes of the other sources
    distances[:3, :3] = [[3.0, 0.5, 2.0], [0.25, 0.25, 7.0], [np.inf, np.inf, 1.0]]
    nearest = distances.min(axis=1)
    np.testing.assert_array_equal(nearest[:3], [0.5, 0.25, 1.0])
    for source in np.eye(6)[:2]:
        found = solve(source, distances, slopes)
        np.testing.assert_array_equal(found.rate_nats, 0)
        np.testing.assert_array_equal(found.distortion, source @ nearest)
        np.testing.assert_array_equal(found.gap_nats, 0)
        assert np.all(np.asarray(found.converged))
    # Likewise any source at slopes below the first that pays.
    found = solve(np.array([0.7, 0.3]), HAMMING, np.linspace(0.1, 0.8, 8))
    np.testing.assert_array_equal(found.rate_nats, 0)
    np.testing.assert_allclose(found.distortion, 0.3)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((np.array([0.5, 0.6]), D, 1.0), {}, "probabilities must sum to 1, got a sum that is off"),
        ((np.array([1.5, -0.5]), D, 1.0), {}, "probabilities must be at least 0, got -0.5"),
        ((P, D[:1], 1.0), {}, "distortion_matrix must have one row per symbol"),
        ((P, D * np.nan, 1.0), {}, "distortion_matrix must not hold NaN"),
        ((P, np.array([[np.inf] * 2, [0.0, 1]]), 1.0), {}, "leave every symbol .* a finite entry"),
        ((P, D, -1.0), {}, "slope_nats must be at least 0, got -1"),
        ((P, D, 1.0), {"gap_nats": 0.0}, "gap_nats must be positive, got 0"),
        ((np.stack([P] * 2), np.stack([D] * 3), 1.0), {}, "must broadcast, got shapes"),
    ],
)
def test_bad_input(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        blahut_arimoto(*arguments, **options)
