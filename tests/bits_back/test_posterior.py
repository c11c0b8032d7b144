import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from jaxcomp.bits_back import Posterior, discretized_kl, kl_nats, log_ratio_bits
from jaxcomp.coding import Gaussian, Laplace, ScaleMixture, SpikeAndSlab
from jaxcomp.coding.lengths import log_cell_mass, log_gaussian_cell

CASES = [(0.0, 0.5), (0.3, 0.02), (-2.0, 0.1), (0.1, 3.0), (12.0, 0.4)]
PRIOR_SCALE = 0.5
MEAN = np.float32([case[0] for case in CASES])
SCALE = np.float32([case[1] for case in CASES])
QUERY = Posterior(MEAN, SCALE)


def integrated(mean, scale):
    """KL(q || p) by numerical integration of q log(q / p)."""

    def integrand(x):
        log_ratio = mpmath.log(PRIOR_SCALE / scale)
        log_ratio += (x / PRIOR_SCALE) ** 2 / 2 - ((x - mean) / scale) ** 2 / 2
        return mpmath.npdf(x, mean, scale) * log_ratio

    points = [mean + k * scale for k in range(-12, 13, 3)]
    return float(mpmath.quad(integrand, points))


def summed(mean, scale, step, prior_scale=PRIOR_SCALE):
    """The divergence of cell masses, term by term with 50 digits."""

    def mass(low, high, mean, scale):
        # On the side where the tails do not cancel against 1.
        low, high = (low - mean) / scale, (high - mean) / scale
        if low > 0:
            low, high = -high, -low
        return mpmath.ncdf(high) - mpmath.ncdf(low)

    with mpmath.workdps(50):
        mean, scale, step = mpmath.mpf(mean), mpmath.mpf(scale), mpmath.mpf(step)
        first = int(mpmath.floor((mean - 9 * scale) / step))
        last = int(mpmath.ceil((mean + 9 * scale) / step))
        total = entropy = mpmath.mpf(0)
        for k in range(first, last + 1):
            low, high = (k - mpmath.mpf(1) / 2) * step, (k + mpmath.mpf(1) / 2) * step
            q = mass(low, high, mean, scale)
            if q > mpmath.mpf(10) ** -40:
                total += q * mpmath.log(q / mass(low, high, mpmath.mpf(0), prior_scale))
                entropy -= q * mpmath.log(q, 2)
        return float(total), float(entropy)


@pytest.mark.usefixtures("strict_promotion")
def test_closed_form_is_the_integral():
    for mean, scale in CASES:
        found = kl_nats(Posterior(np.float32([mean]), np.float32([scale])), Gaussian(PRIOR_SCALE))
        assert float(found) == pytest.approx(integrated(mean, scale), rel=2e-6)
    tree = Posterior({"a": MEAN[:2], "b": MEAN[2:]}, {"a": SCALE[:2], "b": SCALE[2:]})
    expected = sum(integrated(*case) for case in CASES)
    by_leaf = {"a": Gaussian(PRIOR_SCALE), "b": Gaussian(PRIOR_SCALE)}
    assert float(kl_nats(tree, by_leaf)) == pytest.approx(expected, rel=2e-6)
    traced = jax.jit(lambda q, t: kl_nats(q, Gaussian(t)))(QUERY, jnp.float32(PRIOR_SCALE))
    assert float(traced) == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("step", [2.0, 0.25, 0.05])
def test_discretized_divergence_matches_exact_sums(step):
    exact = [summed(float(m), float(s), step) for m, s in zip(MEAN, SCALE, strict=True)]
    found = discretized_kl(QUERY, Gaussian(PRIOR_SCALE), step=step)
    assert found.kl_nats == pytest.approx(sum(kl for kl, _ in exact), rel=3e-6)
    assert found.entropy_bits == pytest.approx(sum(h for _, h in exact), abs=1e-6)


def test_priors_with_jax_fields_are_summed_in_float64():
    plain = discretized_kl(QUERY, Gaussian(0.5), step=0.25)
    assert discretized_kl(QUERY, Gaussian(jnp.float32(0.5)), step=0.25) == plain


def test_it_tends_to_the_density_from_below():
    mean, scale = np.float32([0.2]), np.float32([0.05])
    query, limit = Posterior(mean, scale), integrated(0.2, 0.05)
    for step in (0.04, 0.02, 0.01):
        gap = limit - discretized_kl(query, Gaussian(PRIOR_SCALE), step=step).kl_nats
        predicted = step**2 / 24 * (1 / 0.05**2 - 1 / PRIOR_SCALE**2)
        assert gap == pytest.approx(predicted, rel=0.05)
    wide = discretized_kl(query, Gaussian(PRIOR_SCALE), step=0.5).kl_nats
    assert wide < 0.6 * limit


def test_a_wider_posterior_costs_fewer_bits():
    costs = [
        float(kl_nats(Posterior(MEAN[:1], np.float32([s])), Gaussian(0.5)))
        for s in (0.01, 0.1, 0.4)
    ]
    assert costs[0] > costs[1] > costs[2]


@pytest.mark.parametrize(
    "prior",
    [
        Laplace(0.3),
        SpikeAndSlab(0.5, 0.4),
        ScaleMixture(np.float32([0.5, 0.5]), np.float32([0.1, 1.0])),
    ],
)
def test_other_priors_and_the_ratio_of_a_draw(prior):
    # The mean of the log-ratio over draws is the divergence.
    rng = np.random.default_rng(0)
    num, step = 20_000, 0.1
    query = Posterior(np.full(num, 0.15, np.float32), np.full(num, 0.2, np.float32))
    weights = (np.rint(rng.normal(0.15, 0.2, num) / step) * step).astype(np.float32)
    found = log_ratio_bits(query, prior, weights, step=step) / num
    divergence = discretized_kl(query, prior, step=step)
    # log-ratios have a standard deviation near 1 bit.
    assert found == pytest.approx(divergence.kl_nats / np.log(2) / num, abs=4 * 1.5 / num**0.5)
    with pytest.raises(TypeError, match="closed form for Gaussian priors only"):
        kl_nats(query, prior)


def by_cells(mean, scale, prior, step):
    """Divergence (nats) and entropy (bits), summed over every single cell."""
    index = np.arange(np.floor((mean - 8.5 * scale) / step), np.ceil((mean + 8.5 * scale) / step))
    centres = index * step
    log_mass = log_gaussian_cell(centres - mean, scale, step)
    mass = np.exp(log_mass)
    kl = np.sum(mass * (log_mass - log_cell_mass(centres, prior, step)))
    return kl, -np.sum(mass * log_mass) / np.log(2)


@pytest.mark.parametrize(
    "prior",
    [
        Gaussian(np.float64(0.003)),
        SpikeAndSlab(np.float64(0.5), np.float64(1.0)),
        SpikeAndSlab(np.float64(0.999), np.float64(1e-3)),
        ScaleMixture(np.array([0.5, 0.5]), np.array([1e-4, 1.0])),
        ScaleMixture(np.array([0.9, 0.05, 0.05]), np.array([1e-3, 0.02, 0.5])),
    ],
    ids=lambda prior: f"{type(prior).__name__} {prior[-1]}",
)
def test_what_is_narrow_against_joined_cells_is_summed_over_its_own(prior):
    for mean, scale in ((0.0, 0.1), (0.003, 0.1), (0.37, 0.1), (2.0, 0.05)):
        for step in (1e-4, 3e-3, 0.02, 0.3):
            query = Posterior(np.array([mean]), np.array([scale]))
            found = discretized_kl(query, prior, step=step)
            kl, entropy = by_cells(mean, scale, prior, step)
            assert found.kl_nats == pytest.approx(kl, rel=3e-6, abs=1e-7)
            assert found.entropy_bits == pytest.approx(entropy, abs=1e-6)


def test_values_found_wrong_in_use():
    # log(10) + 0.005 - 1/2 + log 2 of the slab, less what the spike gives to the cell of zero.
    query = Posterior(np.zeros(1), np.full(1, 0.1))
    found = discretized_kl(query, SpikeAndSlab(0.5, 1.0), step=1e-3).kl_nats
    assert found == pytest.approx(2.46950, abs=1e-5)
    # 45 deviations of the prior out, where its masses are below 1e-300.
    far = Posterior(np.full(1, 45.0), np.full(1, 0.5))
    exact, _ = summed(45.0, 0.5, 0.1, prior_scale=1.0)
    assert discretized_kl(far, Gaussian(1.0), step=0.1).kl_nats == pytest.approx(exact, rel=1e-9)
    with mpmath.workdps(40):
        ratio = (mpmath.ncdf(0.1) - mpmath.ncdf(-0.1)) / (mpmath.ncdf(-44.95) - mpmath.ncdf(-45.05))
        exact = float(mpmath.log(ratio, 2))
    found = log_ratio_bits(far, Gaussian(1.0), np.array([45.0]), step=0.1)
    assert found == pytest.approx(exact, rel=1e-9)
    # And where the posterior has next to no mass itself.
    found = log_ratio_bits(far, Gaussian(1.0), np.array([-45.0]), step=0.1)
    assert found == pytest.approx((45.0**2 - 180.0**2) / 2 / np.log(2), rel=1e-2)


@pytest.mark.parametrize("factor", [1e-290, 1e-30, 1e30, 1e290])
def test_costs_do_not_depend_on_the_scale(factor):
    mean, scale = np.array([0.1, -0.5, 0.03]), np.array([0.2, 0.1, 1e-3])
    base = discretized_kl(Posterior(mean, scale), Gaussian(0.3), step=0.01)
    scaled, prior = Posterior(mean * factor, scale * factor), Gaussian(0.3 * factor)
    found = discretized_kl(scaled, prior, step=0.01 * factor)
    np.testing.assert_allclose(found, base, rtol=1e-6)
    expected = float(kl_nats(Posterior(mean, scale), Gaussian(0.3)))
    assert float(kl_nats(scaled, prior)) == pytest.approx(expected, rel=1e-6)


def test_a_tree_without_weights_costs_nothing():
    empty = Posterior({}, {})
    assert discretized_kl(empty, Gaussian(1.0), step=0.1) == (0, 0, 0)
    assert float(kl_nats(empty, Gaussian(1.0))) == 0
    assert log_ratio_bits(empty, Gaussian(1.0), {}, step=0.1) == 0


@pytest.mark.parametrize(
    ("posterior", "error", "message"),
    [
        (Posterior(MEAN, SCALE * 0), ValueError, "scale of a posterior must be positive, got 0"),
        (Posterior(MEAN * np.nan, SCALE), ValueError, "mean of a posterior must be finite"),
        (Posterior(MEAN, SCALE[:2]), ValueError, "same leaves and shapes"),
        (
            Posterior(np.arange(5), SCALE),
            TypeError,
            "mean of a posterior must be floating, got int",
        ),
        ((MEAN, SCALE), TypeError, "posterior must be a Posterior, got tuple"),
    ],
)
def test_bad_input(posterior, error, message):
    for call in (
        lambda: kl_nats(posterior, Gaussian(1.0)),
        lambda: discretized_kl(posterior, Gaussian(1.0), step=0.1),
    ):
        with pytest.raises(error, match=message):
            call()
