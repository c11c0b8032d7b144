import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from jaxcomp.bits_back import Posterior, discretized_kl, kl_nats, log_ratio_bits
from jaxcomp.priors import Gaussian, Laplace, ScaleMixture, SpikeAndSlab

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
    # Where cells were joined it is off by at most 2e-4 (s / t)^2 per weight, and s / t <= 6.
    assert found.kl_nats == pytest.approx(sum(kl for kl, _ in exact), abs=2e-4 * 36)
    assert found.entropy_bits == pytest.approx(sum(h for _, h in exact), abs=1e-3)


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
