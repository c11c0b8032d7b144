"""Information against SciPy's densities, draws and brute force."""

import decimal

import jax
import jax.numpy as jnp
import linear_regression_oracles as oracle
import numpy as np
import pytest
from scipy import integrate, optimize, special, stats

from jaxcomp.linear_regression import (
    Setting,
    channel_gap_bound,
    channel_risks,
    coordinate_entropy_nats,
    design_information_nats,
    estimated_entropy_nats,
    least_squares_entropy_nats,
    least_squares_relative_gap,
    least_squares_rounded_entropy_bound_nats,
    relative_gap_bound,
    rounded_entropy_nats,
)

MAX_Z = 4.0


def t_density(draws: oracle.Draws):
    """The marginal of least squares, from SciPy: a multivariate t."""
    dim = draws.truth.size
    nu = draws.num_examples - dim + 1
    shape = draws.noise_variance * np.linalg.inv(draws.covariance) / nu
    return stats.multivariate_t(draws.truth, shape, df=nu)


def log_normal_given_inputs(draws: oracle.Draws, weights: np.ndarray, gain: float) -> np.ndarray:
    """ln p(weights | X) for N(w*, gain s2 G^-1)."""
    error = weights - draws.truth
    square = np.einsum("mi,mij,mj->m", error, draws.gram, error)
    square = square / (gain * draws.noise_variance)
    log_det = np.linalg.slogdet(draws.gram)[1]
    dim = weights.shape[-1]
    scale = dim * np.log(2 * np.pi * gain * draws.noise_variance)
    return -0.5 * (square + scale - log_det)


@pytest.mark.parametrize(("dim", "num_examples"), [(3, 12), (8, 18)])
def test_design_information_is_that_of_drawn_data_sets(dim, num_examples):
    truth, covariance = oracle.problem(dim)
    draws = oracle.draw(truth, covariance, 0.7, num_examples, 20_000)
    conditional = log_normal_given_inputs(draws, draws.weights, 1.0)
    ratio = conditional - t_density(draws).logpdf(draws.weights)
    assert abs(oracle.z_score(ratio, float(design_information_nats(dim, num_examples)))) < MAX_Z


def test_informed_channel_has_information_rate_plus_j():
    # I(S;What) = E ln p(What|S)/p(What), all three densities explicit.
    dim, n, rate = 4, 13, 2.0
    truth, covariance = oracle.problem(dim)
    draws = oracle.draw(truth, covariance, 0.7, n, 20_000)
    output, _, _ = oracle.channel(draws, rate, "informed")
    b = np.exp(-2 * rate / dim)
    a = 1 - b
    shifted = draws._replace(truth=truth + a * (draws.weights - truth))
    given_sample = log_normal_given_inputs(shifted, output, a * b)
    nu = n - dim + 1
    marginal = stats.multivariate_t(truth, a * 0.7 * np.linalg.inv(covariance) / nu, df=nu)
    ratio = given_sample - marginal.logpdf(output)
    expected = rate + float(design_information_nats(dim, n))
    assert abs(oracle.z_score(ratio, expected)) < MAX_Z


def test_design_information_by_numbers():
    # One weight: h(t_n) - h(N | chi-squared), by quadrature.
    n = 6
    grid = np.linspace(-400, 400, 800_001)
    density = stats.t.pdf(grid, n)
    entropy_t = integrate.trapezoid(special.entr(density), grid) + 0.5 * np.log(1 / n)
    expected_log = integrate.quad(lambda g: stats.chi2.pdf(g, n) * np.log(g), 0, 200)[0]
    conditional = 0.5 * np.log(2 * np.pi * np.e) - 0.5 * expected_log
    np.testing.assert_allclose(design_information_nats(1, n), entropy_t - conditional, atol=1e-5)
    several = design_information_nats(np.array([1, 50, 50]), np.array([6, 80, 5000]))
    assert several.shape == (3,)
    assert np.all(several > 0)
    # Large samples: d (d + 1)/(4 n) to leading order.
    np.testing.assert_allclose(several[2], 50 * 51 / 4 / 5000, rtol=0.02)


def test_least_squares_entropy():
    truth, covariance = oracle.problem(5)
    draws = oracle.draw(truth, covariance, 0.7, 16, 20_000)
    expected = least_squares_entropy_nats(
        5, 16, noise_variance=0.7, log_det_covariance=np.linalg.slogdet(covariance)[1]
    )
    assert abs(oracle.z_score(-t_density(draws).logpdf(draws.weights), float(expected))) < MAX_Z


def test_rounded_entropy_lies_between_its_bounds_and_is_met_when_fine():
    truth = np.array([0.31, -0.17])
    draws = oracle.draw(truth, np.eye(2), 1.0, 14, 100_000)
    entropy = float(least_squares_entropy_nats(2, 14))
    for step in (0.1, 0.5, 2.0):
        _, counts = np.unique(np.rint(draws.weights / step), axis=0, return_counts=True)
        share = counts / counts.sum()
        # Miller and Madow: the bias of the empirical entropy.
        found = special.entr(share).sum() + (counts.size - 1) / (2 * counts.sum())
        lower = float(rounded_entropy_nats(entropy, 2, step))
        upper = least_squares_rounded_entropy_bound_nats(truth, 14, step)
        assert lower - 0.005 * found <= found <= upper + 0.005 * found
        assert abs(coordinate_entropy_nats(draws.weights, step) - upper) < 0.005 * upper + 0.002
        if step == 0.1:
            assert abs(found - lower) < 0.01 * found
    assert rounded_entropy_nats(entropy, 2, 50.0) == 0


def test_both_bounds_agree_within_a_percent_at_the_size_of_the_study():
    truth = np.full(50, 0.2)
    for n in (80, 400):
        lower = float(rounded_entropy_nats(least_squares_entropy_nats(50, n), 50, 0.01))
        upper = least_squares_rounded_entropy_bound_nats(truth, n, 0.01)
        assert lower < upper < 1.01 * lower


def test_relative_gap_bound_is_the_infimum_it_stands_for():
    information = np.array([0.0, 1e-4, 0.01, 1.0, 30.0, 300.0, 1e4])
    found = np.asarray(relative_gap_bound(information, 80.0))

    def slope(log_t, share):
        t = np.exp(log_t)
        return (share + t - 0.5 * np.log1p(2 * t)) / t

    for value, nats in zip(found[1:], information[1:], strict=True):
        share = nats / 80
        least = optimize.minimize_scalar(
            slope, args=(share,), bounds=(-20, 60), method="bounded", options={"xatol": 1e-10}
        )
        np.testing.assert_allclose(value, least.fun, rtol=2e-4)
        assert value <= 2 * np.sqrt(share) * (1 + 1e-6)
    assert found[0] == 0
    assert np.all(np.diff(found) >= 0)
    assert found[-1] <= 1
    assert np.isnan(relative_gap_bound(-1.0, 80.0))


@pytest.mark.usefixtures("strict_promotion")
def test_relative_gap_bound_is_traced_and_mapped():
    numbers = jnp.asarray([10.0, 100.0])
    mapped = jax.jit(jax.vmap(lambda n: relative_gap_bound(3.0, n)))(numbers)
    np.testing.assert_allclose(mapped, relative_gap_bound(3.0, numbers), rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_relative_gap_bound_in_double_precision():
    share = np.geomspace(1e-8, 30, 40)
    x = np.asarray(relative_gap_bound(share, 1.0))
    u = -special.lambertw(-np.exp(-1 - 2 * share)).real
    np.testing.assert_allclose(x, 1 - u, rtol=1e-6)


def decimals(*values):
    """Floats as they are, for arithmetic with 40 digits."""
    return [decimal.Decimal(float(value)) for value in values]


def information_at(gap):
    """I/n at which the relative gap is at most so much; the inverse of the bound."""
    return decimal.Decimal("Infinity") if gap == 1 else -(gap + (1 - gap).ln()) / 2


def test_relative_gap_bound_holds_after_rounding():
    shares = np.concatenate([np.geomspace(1e-12, 25, 60), [0.0, 400.0]])
    information = 80.0 * shares
    found = np.asarray(relative_gap_bound(information, 80.0))
    assert found.dtype == np.float32
    lower = np.nextafter(found, np.float32(0))
    with decimal.localcontext(prec=40):
        for nats, bound, below in zip(information, found, lower, strict=True):
            nats, bound, below = decimals(nats, bound, below)
            assert information_at(bound) >= nats / 80
            # It is the least float32 of that kind, or next to it.
            assert below == 0 or information_at(below) <= nats / 80 * (1 + decimal.Decimal("1e-13"))


@pytest.mark.parametrize("channel", ["uninformed", "uninformed_zero_mean"])
def test_channel_gap_bound_holds_after_rounding(channel):
    rates = np.geomspace(1e-3, 60, 40)
    found = channel_gap_bound(Setting(5, 22, 0.7, 1.3), rates, channel=channel)
    s2, signal = decimals(0.7, 1.3 if channel == "uninformed_zero_mean" else 0.0)
    excess = 5 * s2 / (22 - 5 - 1)
    with decimal.localcontext(prec=40):
        for numbers in zip(rates, found.information_nats, found.bound, strict=True):
            rate, information, bound = decimals(*numbers)
            b = (-2 * rate / 5).exp()
            risk = s2 + b * b * signal + (1 - b) * excess
            weighting = (1 - b) ** 2 * excess / risk * (1 + (1 - b) * 7 / (22 - 5 - 3))
            assert (
                rate + weighting <= information <= (rate + weighting) * decimal.Decimal("1.0000002")
            )
            assert information_at(bound / risk) >= (rate + weighting) / 22


def test_least_squares_relative_gap():
    truth, covariance = oracle.problem(5)
    draws = oracle.draw(truth, covariance, 0.7, 16, 20_000)
    gap = 1 - draws.empirical / oracle.population_risk(draws, draws.weights)
    assert abs(oracle.z_score(gap, float(least_squares_relative_gap(5, 16)))) < MAX_Z


@pytest.mark.parametrize("channel", ["uninformed", "uninformed_zero_mean"])
@pytest.mark.parametrize("rate", [0.5, 3.0])
def test_channel_gap_bound(channel, rate):
    dim, n = 5, 22
    truth, covariance = oracle.problem(dim)
    draws = oracle.draw(truth, covariance, 0.7, n, 20_000)
    setting = Setting(dim, n, 0.7, float(truth @ covariance @ truth))
    output, length, _ = oracle.channel(draws, rate, channel)
    risk = oracle.population_risk(draws, output)
    found = channel_gap_bound(setting, rate, channel=channel)
    # Its information is the mean of the code length under risk-weighted sampling.
    excess = risk * (length - float(found.information_nats))
    assert abs(oracle.z_score(excess, 0.0)) < MAX_Z
    gap = float(channel_risks(setting, rate, channel=channel).generalization)
    assert gap < float(found.bound)


def test_gap_bound_vanishes_with_the_rate():
    found = channel_gap_bound(
        Setting(50, 80, 1.0, 2.0), np.array([0.0, 1e-3]), channel="uninformed"
    )
    assert float(found.bound[0]) == 0
    assert float(found.bound[1]) < 0.05


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: design_information_nats(50, 51), r"more than dim \+ 1"),
        (lambda: least_squares_entropy_nats(50, 40), r"more than dim \+ 1"),
        (lambda: rounded_entropy_nats(1.0, 2, 0.0), "step must be positive, got 0"),
        (lambda: coordinate_entropy_nats(np.zeros((4, 2)), -1.0), "step must be positive"),
        (lambda: least_squares_rounded_entropy_bound_nats([0.0], 9, 0.0), "step must be positive"),
        (lambda: estimated_entropy_nats(np.zeros((9, 2)), np.zeros(2)), "more than 10 draws"),
        (lambda: estimated_entropy_nats(np.zeros((9, 2)), np.zeros(3)), "shape .datasets, d."),
        (
            lambda: channel_gap_bound(Setting(5, 20), 1.0, channel="informed"),
            "channel must be 'uninformed' or",
        ),
        (
            lambda: channel_gap_bound(Setting(5, 8), 1.0, channel="uninformed"),
            r"more than dim \+ 3",
        ),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
