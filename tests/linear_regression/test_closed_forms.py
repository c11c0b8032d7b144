"""Every row of the table of channels against plain Monte Carlo, and the algebra between rows."""

import decimal

import jax
import jax.numpy as jnp
import linear_regression_oracles as oracle
import numpy as np
import pytest

from jaxcomp.linear_regression import (
    CHANNELS,
    Setting,
    best_rate,
    channel_risks,
    distortion_rate_bounds,
    least_squares_risks,
    shrinkage_risks,
)

DIM, EXAMPLES, NOISE = 5, 16, 0.7
# Of some 60 comparisons none should be this far out by chance (one in 15,000 each).
MAX_Z = 4.0


@pytest.fixture(scope="module")
def draws() -> oracle.Draws:
    truth, covariance = oracle.problem(DIM)
    return oracle.draw(truth, covariance, NOISE, EXAMPLES, 20_000)


@pytest.fixture(scope="module")
def setting(draws) -> Setting:
    signal = float(draws.truth @ draws.covariance @ draws.truth)
    return Setting(DIM, EXAMPLES, NOISE, signal)


def test_least_squares(draws, setting):
    risks = least_squares_risks(setting)
    population = oracle.population_risk(draws, draws.weights)
    assert abs(oracle.z_score(draws.empirical, float(risks.empirical))) < MAX_Z
    assert abs(oracle.z_score(population, float(risks.population))) < MAX_Z
    gap = float(risks.generalization)
    assert abs(oracle.z_score(population - draws.empirical, gap)) < MAX_Z
    np.testing.assert_allclose(gap, float(risks.population - risks.empirical), rtol=1e-6)


@pytest.mark.parametrize("rate", [0.8, 4.0])
@pytest.mark.parametrize("channel", CHANNELS)
def test_every_row_of_the_table(draws, setting, channel, rate):
    risks = channel_risks(setting, rate, channel=channel)
    output, length, zero_centred = oracle.channel(draws, rate, channel)
    paid = oracle.distortion(draws, output)
    empirical = draws.empirical + paid
    population = oracle.population_risk(draws, output)
    assert abs(oracle.z_score(paid, float(risks.distortion))) < MAX_Z
    assert abs(oracle.z_score(empirical, float(risks.empirical))) < MAX_Z
    assert abs(oracle.z_score(population, float(risks.population))) < MAX_Z
    assert abs(oracle.z_score(population - empirical, float(risks.generalization))) < MAX_Z
    # The lengths: R with a codebook centred at E What, more with one centred at zero.
    if channel == "matched":
        assert abs(oracle.z_score(zero_centred, rate)) < MAX_Z
    else:
        assert abs(oracle.z_score(length, rate)) < MAX_Z
        if channel.endswith("zero_mean"):
            assert abs(oracle.z_score(zero_centred, float(risks.codebook_rate_nats))) < MAX_Z


def test_the_uninformed_rate_bounds_the_information():
    # One weight: W is Student's t, What adds normal noise; the density of What by quadrature.
    from scipy import integrate, stats

    n, rate = 10, 0.9
    b = np.exp(-2 * rate)
    a = 1 - b
    scale = np.sqrt(1 / n)
    noise = np.sqrt(a * b / (n - 2))
    grid = np.linspace(-12, 12, 1601) * scale
    spread = stats.t.pdf(grid / scale, n) / scale
    kernel = stats.norm.pdf((grid[:, None] - a * grid[None]) / noise) / noise
    density = integrate.trapezoid(kernel * spread, grid, axis=1)
    entropy = -integrate.trapezoid(density * np.log(density + 1e-300), grid)
    information = entropy - 0.5 * np.log(2 * np.pi * np.e * noise**2)
    assert 0.97 * rate < information < rate


def test_shrinkage_and_what_it_is_better_than(draws, setting):
    rates = np.linspace(0.01, 12, 50)
    shrunk = shrinkage_risks(setting, rates)
    a = 1 - np.exp(-2 * rates[20] / DIM)
    population = oracle.population_risk(draws, a * draws.weights)
    paid = oracle.distortion(draws, a * draws.weights)
    assert abs(oracle.z_score(population, float(shrunk.population[20]))) < MAX_Z
    assert abs(oracle.z_score(paid, float(shrunk.distortion[20]))) < MAX_Z
    assert np.isinf(shrunk.rate_nats).all()
    for channel in ("informed_zero_mean", "uninformed_zero_mean", "matched"):
        risks = channel_risks(setting, rates, channel=channel)
        assert np.all(shrunk.population < risks.population)
    # Not beside every channel: a codebook that holds the true weights beats it at low rates, since
    # the noiseless mean of that channel is w* + a (W - w*), not a W.
    oracle_risks = channel_risks(setting, rates, channel="informed")
    assert shrunk.population[0] > oracle_risks.population[0]
    assert shrunk.population[-1] < oracle_risks.population[-1]
    centred = setting._replace(signal=0.0)
    assert np.all(shrinkage_risks(centred, rates).population < oracle_risks.population)


def test_distortion_rate_bounds_enclose_what_is_achieved(setting):
    rates = np.concatenate([[0.0], np.geomspace(1e-3, 40, 30)])
    bounds = distortion_rate_bounds(setting, rates)
    informed = channel_risks(setting, rates, channel="informed")
    uninformed = channel_risks(setting, rates, channel="uninformed")
    np.testing.assert_allclose(bounds.lower, informed.distortion, rtol=1e-6)
    np.testing.assert_allclose(bounds.achieved, uninformed.distortion, rtol=1e-6)
    assert np.all(bounds.lower <= bounds.achieved * (1 + 1e-6))
    assert np.all(bounds.achieved <= bounds.upper)


def test_distortion_rate_bounds_hold_after_rounding():
    rates = np.geomspace(1e-3, 400, 40)
    found = distortion_rate_bounds(Setting(5, 22, 0.7, 1.3), rates)
    with decimal.localcontext(prec=40):
        s2 = decimal.Decimal.from_float(0.7)
        overfit, excess = 5 * s2 / 22, 5 * s2 / (22 - 5 - 1)
        for numbers in zip(rates, *found, strict=True):
            rate, lower, achieved, upper = (decimal.Decimal(float(value)) for value in numbers)
            b = (-2 * rate / 5).exp()
            assert lower <= b * overfit
            assert achieved >= b * (b * overfit + (1 - b) * excess)
            assert upper >= b * excess
            assert lower >= b * overfit * (1 - decimal.Decimal("2e-7")) or lower < 1e-37
            assert upper <= b * excess * (1 + decimal.Decimal("2e-7")) or upper < 2e-38


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("signal", [0.0, 0.4, 1.0, 5.0])
def test_the_best_rate_is_that_of_a_fine_grid(channel, signal):
    setting = Setting(10, 21, 1.0, signal)  # V = 1
    best = best_rate(setting, channel=channel)
    rates = np.linspace(0, 200, 20_001)
    risks = np.asarray(channel_risks(setting, rates, channel=channel).population, np.float64)
    np.testing.assert_allclose(best.population, risks.min(), rtol=1e-5)
    interior = channel.endswith("zero_mean") and 2 * signal > 1
    assert bool(best.exists) == (interior or (channel == "matched" and signal > 1))
    if interior:
        np.testing.assert_allclose(best.rate_nats, 5 * np.log(2 * signal), rtol=1e-6)
        assert risks.argmin() not in (0, rates.size - 1)
        # The least is flat: in single precision the grid sees it only roughly.
        assert abs(rates[risks.argmin()] - float(best.rate_nats)) < 0.05
    elif not bool(best.exists):
        assert float(best.rate_nats) == 0


@pytest.mark.parametrize("channel", CHANNELS)
def test_limits(channel):
    setting = Setting(50, 80, 2.0, 3.0)
    least_squares = least_squares_risks(setting)
    risks = channel_risks(setting, np.array([0.0, np.inf]), channel=channel)
    knows_truth = channel in ("informed", "uninformed")
    np.testing.assert_allclose(risks.population[0], 2.0 + (0 if knows_truth else 3.0), rtol=1e-6)
    assert float(risks.generalization[0]) == 0
    assert float(risks.codebook_rate_nats[0]) == 0
    for name in ("empirical", "population", "generalization"):
        found, expected = getattr(risks, name)[1], getattr(least_squares, name)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert float(risks.distortion[1]) == 0


@pytest.mark.usefixtures("strict_promotion")
def test_mapped_traced_and_broadcast():
    numbers = jnp.asarray([60, 80, 5000])
    rates = jnp.asarray([1.0, 30.0])

    def population(n, rate):
        return channel_risks(Setting(50, n, 1.0, 2.0), rate, channel="matched").population

    mapped = jax.jit(jax.vmap(lambda n: jax.vmap(lambda rate: population(n, rate))(rates)))
    whole = population(numbers[:, None], rates[None, :])
    np.testing.assert_allclose(mapped(numbers), whole, rtol=1e-6)
    slope = jax.grad(lambda rate: jnp.sum(population(numbers, rate)))(jnp.float32(3.0))
    V = 50 / (np.asarray(numbers) - 51)
    np.testing.assert_allclose(slope, np.sum(V - 2.0) * 2 / 50 * np.exp(-6 / 50), rtol=1e-5)


@pytest.mark.usefixtures("x64")
def test_in_double_precision():
    risks = channel_risks(Setting(50, 80, 1.0, 2.0), 10.0, channel="informed_zero_mean")
    assert risks.population.dtype == jnp.float64
    b = np.exp(-20 / 50)
    expected = 1 + b * b * 2 + (1 - b) * 50 / 29
    np.testing.assert_allclose(risks.population, expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (Setting(50, 51), r"num_examples must be more than dim \+ 1 .* got 51 examples of dim"),
        (Setting(50, np.array([80, 50])), "got 50 examples of dimension 50; draw more"),
        (Setting(0, 10), "dim must be at least 1, got 0"),
        (Setting(5, 10, 0.0), "noise_variance must be positive and finite, got 0"),
        (Setting(5, 10, 1.0, -1.0), "signal must be at least 0, got -1.0"),
    ],
)
def test_refused_settings(setting, message):
    for function in (
        least_squares_risks,
        lambda s: channel_risks(s, 1.0, channel="informed"),
        lambda s: shrinkage_risks(s, 1.0),
        lambda s: distortion_rate_bounds(s, 1.0),
        lambda s: best_rate(s, channel="matched"),
    ):
        with pytest.raises(ValueError, match=message):
            function(setting)


def test_unknown_channel():
    for function in (lambda: channel_risks(Setting(5, 10), 1.0, channel="telegraph"),  # pyright: ignore
                     lambda: best_rate(Setting(5, 10), channel="telegraph")):  # pyright: ignore  # fmt: skip
        with pytest.raises(ValueError, match=r"channel must be one of \('informed'.*'telegraph'"):
            function()
