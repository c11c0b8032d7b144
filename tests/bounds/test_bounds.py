import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from promotion import strict_promotion
from scipy import special, stats
from slow_cases import some_slow

from jaxcomp.bounds import (
    catoni,
    choice_bits,
    gaussian_complexity,
    kl_inverse,
    lambert_lower_branch,
    mutual_information_bound,
    occam,
    pac_bayes_kl,
    population_risk,
    self_delimiting_bits,
)
from jaxcomp.bounds.binomial import whole_errors

LANES = 8


def in_lanes(bound, *arguments, **options):
    """Call a bound with arrays of eight numbers, broadcast here: one program for many tests."""
    static = {name: value for name, value in options.items() if isinstance(value, str)}
    names = [name for name in options if name not in static]
    columns = np.broadcast_arrays(*arguments, *(options[name] for name in names))
    flat = [column.astype(np.float64).ravel() for column in columns]
    places = np.arange(-(-flat[0].size // LANES) * LANES).reshape(-1, LANES)
    parts = []
    for place in np.minimum(places, flat[0].size - 1):
        given = [column[place] for column in flat]
        named = dict(zip(names, given[len(arguments) :], strict=True))
        parts.append(np.asarray(bound(*given[: len(arguments)], **named, **static)))
    return np.concatenate(parts)[: flat[0].size].reshape(columns[0].shape)


def test_closed_form():
    rate = np.asarray([[0.0, 1.0], [1e3, 1e7]])
    found = mutual_information_bound(rate, num_examples=6000, sub_gaussian_scale=0.5)
    np.testing.assert_allclose(found, np.sqrt(2 * 0.25 * rate / 6000), rtol=1e-6)


@pytest.mark.usefixtures("strict_promotion")
def test_traced_and_mapped():
    def bound(rate, n):
        return mutual_information_bound(rate, num_examples=n, sub_gaussian_scale=0.5)

    rates, numbers = np.float32([10, 100, 1000]), np.int32([100, 100, 1000])
    mapped = jax.jit(jax.vmap(bound))(rates, numbers)
    single = [bound(float(r), int(n)) for r, n in zip(rates, numbers, strict=True)]
    np.testing.assert_allclose(mapped, single, rtol=1e-6)


def test_bounds_the_gap_of_memorised_labels():
    # A learner that stores k of n fair coin flips and guesses the rest: its information is
    # k ln 2 nats, its 0-1 training error (n - k)/(2n), its population error 1/2.
    n, k = 100, np.arange(0, 101)
    gap = 0.5 - (n - k) / (2 * n)
    bound = mutual_information_bound(k * np.log(2), num_examples=n, sub_gaussian_scale=0.5)
    assert np.all(gap <= np.asarray(bound))


def test_negative_rate_is_not_a_number():
    rate = np.float32([-1, 1])
    found = mutual_information_bound(rate, num_examples=10, sub_gaussian_scale=0.5)
    assert np.isnan(found).tolist() == [True, False]


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["num_examples", "sub_gaussian_scale"])
def test_refused(name, value):
    options = {"num_examples": 10, "sub_gaussian_scale": 0.5} | {name: value}
    with pytest.raises(ValueError, match=f"{name} must be positive and finite, got"):
        mutual_information_bound(1.0, **options)


# Certificates.


def mpmath_kl_inverse(q, c):
    """The largest p with kl(q || p) <= c, by bisection in 60 digits."""
    with mpmath.workdps(60):
        q, c = mpmath.mpf(q), mpmath.mpf(c)

        def kl(p):
            first = q * mpmath.log(q / p) if q > 0 else mpmath.mpf(0)
            return first + ((1 - q) * mpmath.log((1 - q) / (1 - p)) if q < 1 else 0)

        low, high = q, mpmath.mpf(1)
        for _ in range(160):
            middle = (low + high) / 2
            low, high = (middle, high) if kl(middle) <= c else (low, middle)
        return float(low)


def test_kl_inverse_against_mpmath(x64):
    q = np.array([0.0, 0.0, 1e-7, 0.02, 0.02, 0.3, 0.5, 0.999, 0.25])
    c = np.array([1e-12, 3.0, 1e-9, 1e-10, 0.5, 2.0, 1e-4, 0.7, 30.0])
    expected = [mpmath_kl_inverse(*pair) for pair in zip(q, c, strict=True)]
    np.testing.assert_allclose(in_lanes(kl_inverse, q, c), expected, rtol=1e-9)
    ends = in_lanes(kl_inverse, [0.3, 1.0, 0.0, 0.2, 1.2], [0.0, 0.4, 0.0, -1.0, 1.0])
    np.testing.assert_array_equal(ends, [0.3, 1, 0, np.nan, np.nan])


def test_occam_against_exact_tails(x64):
    # Clopper and Pearson's upper limit is the same inverse, from SciPy's beta distribution.
    n, errors = 500.0, np.array([0.0, 1.0, 17.0, 250.0, 499.0])
    for bits in (0.0, 40.0):
        level = 0.05 * 2.0**-bits
        expected = stats.beta.isf(level, errors + 1, n - errors)
        options = {"num_examples": n, "delta": 0.05}
        found = in_lanes(occam, errors / n, bits, **options)
        np.testing.assert_allclose(found, expected, rtol=1e-9)
        chernoff = in_lanes(occam, errors / n, bits, tail="chernoff", **options)
        assert np.all(found <= chernoff)
    expected = [mpmath_kl_inverse(e / n, (40 * np.log(2) - np.log(0.05)) / n) for e in errors]
    np.testing.assert_allclose(chernoff, expected, rtol=1e-9)


def test_binomial_tails_beyond_floats(x64):
    # 2^-51200 is no float: the tail is summed in 60 digits.
    n, errors, bits = 2000, 40, 51_200.0 / 16
    p = float(in_lanes(occam, errors / n, bits, num_examples=n, delta=0.05))
    with mpmath.workdps(60):
        tail = mpmath.fsum(
            mpmath.binomial(n, k) * mpmath.mpf(p) ** k * (1 - mpmath.mpf(p)) ** (n - k)
            for k in range(errors + 1)
        )
        log_tail = float(mpmath.log(tail))
    # d ln(tail) / dp is about n / (1 - p): bisection to 1e-15 leaves this much.
    assert log_tail == pytest.approx(np.log(0.05) - bits * np.log(2), rel=1e-8)


def test_published_orders_of_magnitude():
    # 2 % training error on 60,000 examples: files of these sizes certify 50, 20 and 10 %.
    size_bits = 8 * np.array([6400.0, 1650.0, 550.0])
    options = {"num_examples": 60_000, "delta": 0.05}
    complexity = size_bits * np.log(2)
    expected = [0.5, 0.2, 0.1]
    binomial = in_lanes(occam, 0.02, size_bits, **options)
    # One that broadcasts by itself.
    chernoff = np.asarray(occam(0.02, size_bits, tail="chernoff", **options))
    pac_bayes = in_lanes(pac_bayes_kl, 0.02, complexity, **options)
    on_grid = in_lanes(catoni, 0.02, complexity, **options)
    for found in (binomial, chernoff, pac_bayes, on_grid):
        np.testing.assert_allclose(found, expected, rtol=0.01)
    assert np.all(binomial < chernoff)
    assert np.all(chernoff < pac_bayes)


def test_occam_holds_as_often_as_it_says():
    # One network, B = 0: the bound may fail with probability delta, and the exact tail nearly does.
    n, p, delta = 40, 0.2, 0.2
    errors = np.arange(n + 1)
    bound = in_lanes(occam, errors / n, 0.0, num_examples=n, delta=delta)
    failure = stats.binom.pmf(errors, n, p)[bound < p].sum()
    assert failure <= delta
    assert failure > delta / 2


def test_one_example_and_nothing_learned():
    shares, bits = [0.0, 1.0, 0.1], [0.0, 0.0, 1e9]
    found = in_lanes(occam, shares, bits, num_examples=[1, 1, 100], delta=0.05)
    assert found[0] == pytest.approx(0.95)
    np.testing.assert_array_equal(found[1:], 1)
    assert in_lanes(pac_bayes_kl, 0.1, np.inf, num_examples=100, delta=0.05) == 1


def test_pac_bayes_against_its_formula():
    q, complexity, n, delta = 0.03, 120.0, 6000, 0.01
    divergence = (complexity + np.log(2 * np.sqrt(n) / delta)) / n
    options = {"num_examples": n, "delta": delta}
    found = in_lanes(pac_bayes_kl, q, complexity, **options)
    assert float(found) == pytest.approx(mpmath_kl_inverse(q, divergence), rel=1e-6)
    sampled = mpmath_kl_inverse(q, np.log(1 / 0.02) / 100)
    drawn = {"num_draws": 100, "delta_draws": 0.02}
    found = in_lanes(pac_bayes_kl, q, complexity, **options, **drawn)
    assert float(found) == pytest.approx(mpmath_kl_inverse(sampled, divergence), rel=1e-6)


def test_catoni_at_its_best_temperature_is_the_inverse_entropy():
    # Donsker and Varadhan: the infimum over C is kl's inverse at (KL + ln(1/delta)) / n.
    q, complexity, n, delta = 0.05, 300.0, 5000, 0.05
    temperatures = np.geomspace(0.01, 10, 2001)
    found = catoni(q, complexity, num_examples=n, delta=delta, temperature=temperatures)
    expected = mpmath_kl_inverse(q, (complexity - np.log(delta)) / n)
    assert np.min(np.asarray(found)) == pytest.approx(expected, rel=1e-5)
    on_grid = in_lanes(catoni, q, complexity, num_examples=n, delta=delta)
    assert expected < on_grid < 1.05 * expected


def test_population_risk_against_a_dense_grid():
    scale, num_examples = 0.5, 2000.0
    rates = np.linspace(0, 400, 400_001)
    for num_weights, distortion in ((50.0, 1.0), (50.0, 0.14), (50.0, 0.1), (50.0, 0.05)):
        found = population_risk(
            rates,
            num_weights=num_weights,
            zero_rate_distortion=distortion,
            num_examples=num_examples,
            sub_gaussian_scale=scale,
        )
        curve = distortion * np.exp(-2 * rates / num_weights) + np.sqrt(
            2 * scale**2 * rates / num_examples
        )
        found = jax.tree.map(np.asarray, found)
        np.testing.assert_allclose(found.bound, curve, rtol=1e-5)
        falls = np.flatnonzero(np.diff(curve) < 0)
        assert bool(found.has_interior_minimum[0]) == (falls.size > 0)
        assert bool(found.zero_rate_wins[0]) == (curve.argmin() == 0)
        if falls.size:
            lowest = falls[-1] + 1
            assert float(found.best_rate_nats[0]) == pytest.approx(rates[lowest], abs=2e-3)
            assert float(found.interior_bound[0]) == pytest.approx(curve[lowest], rel=1e-5)
        else:
            assert np.isnan(found.interior_bound[0])
            assert float(found.best_rate_nats[0]) == 0


def test_population_risk_turns_where_theory_says():
    kappa = np.array([0.2035, 0.2037, 0.3678, 0.3679])
    found = population_risk(
        0.0,
        num_weights=100.0,
        zero_rate_distortion=1.0,
        num_examples=0.25 * 100 / (2 * kappa),
        sub_gaussian_scale=0.5,
    )
    np.testing.assert_allclose(found.kappa, kappa, rtol=1e-6)
    assert np.asarray(found.zero_rate_wins).tolist() == [False, True, True, True]
    assert np.asarray(found.has_interior_minimum).tolist() == [True, True, True, False]


def test_lambert_against_scipy(x64):
    x = -np.array([0.3678794, 0.3, 0.1, 1e-5, 1e-300])
    expected = special.lambertw(x, -1).real
    # Near the branch point half of the digits are lost in any method.
    found = lambert_lower_branch(np.append(x, [0.0, 0.1, -0.5, -np.exp(-1.0)]))
    np.testing.assert_allclose(found[: x.size], expected, rtol=2e-8)
    np.testing.assert_array_equal(found[x.size :], [-np.inf, np.nan, np.nan, -1])


def test_gaussian_complexity_and_the_price_of_its_scale():
    rng = np.random.default_rng(0)
    mean, deviation = rng.normal(size=200) * 0.1, rng.uniform(0.01, 0.1, 200)

    def divergence(mean, t):
        return np.sum(np.log(t / deviation) + (deviation**2 + mean**2) / (2 * t**2) - 0.5)

    fixed = gaussian_complexity(mean, deviation, prior_scale=0.2)
    assert float(fixed.complexity_nats) == pytest.approx(divergence(mean, 0.2), rel=1e-5)
    assert float(fixed.choice_nats) == 0
    means = np.stack([mean, 2 * mean])
    found = jax.tree.map(np.asarray, gaussian_complexity(means, deviation))
    assert found.complexity_nats.shape == (2,)
    # Brute force over the whole grid.
    j = np.arange(1, 400)
    grid = 10 * np.exp(-j / 10)
    for row, own in enumerate(means):
        total = [divergence(own, t) for t in grid] + np.log(np.pi**2 * j**2 / 6)
        assert float(found.complexity_nats[row]) == pytest.approx(total.min(), rel=1e-6)
        assert float(found.prior_scale[row]) == pytest.approx(grid[total.argmin()], rel=1e-6)
    assert np.sum(6 / (np.pi**2 * j**2.0)) < 1


def divergence_on_grid(mean, deviation, t):
    """KL of N(mean, s^2) from N(0, t^2) summed over weights, for every t; by its definition."""
    ratio = deviation[:, None] / t
    with np.errstate(over="ignore"):
        return np.sum(-np.log(ratio) + (ratio**2 + (mean[:, None] / t) ** 2 - 1) / 2, axis=0)


def test_the_cheapest_scale_of_few_weights(x64):
    # For few weights the price of j matters as much as KL: best scales far from the least KL.
    rng = np.random.default_rng(3)
    j = np.arange(1, 4000)
    scales = 10 * np.exp(-j / 10)
    for dim in (1, 40):
        means = rng.normal(size=(50, dim)) * 10.0 ** rng.uniform(-20, 3, (50, 1))
        deviations = np.abs(rng.normal(size=(50, dim))) * 10.0 ** rng.uniform(-20, 3, (50, 1))
        found = jax.tree.map(np.asarray, gaussian_complexity(means, deviations))
        for row in range(50):
            total = divergence_on_grid(means[row], deviations[row], scales)
            total += 2 * np.log(j) + np.log(np.pi**2 / 6)
            assert float(found.complexity_nats[row]) == pytest.approx(total.min(), rel=1e-9)
            assert float(found.prior_scale[row]) == pytest.approx(scales[total.argmin()], rel=1e-9)
    # Squares that are no floats, and a posterior that is its prior.
    weights = np.ones(200)

    def nats(mean, deviation, scale):
        found = gaussian_complexity(mean * weights, deviation * weights, prior_scale=scale)
        return float(found.complexity_nats)

    each = np.log(2) + 2 / 8 - 0.5
    assert nats(1e-200, 1e-200, 2e-200) == pytest.approx(200 * each, rel=1e-12)
    assert nats(0.0, 0.1, 0.1) == 0
    assert 0 <= nats(0.0, 0.1 * (1 + 1e-9), 0.1) < 1e-9


def test_what_choices_cost():
    assert float(choice_bits(8, np.array(3.0))) == pytest.approx(3 + np.log2(3))
    assert float(choice_bits()) == 0
    lengths = np.arange(1.0, 5000.0)
    bits = np.asarray(self_delimiting_bits(lengths), float)
    np.testing.assert_allclose(bits, np.log2(lengths * (lengths + 1)), rtol=1e-6)
    # Kraft's inequality.
    assert np.sum(2.0**-bits) <= 1


def exact_kl(q, p):
    """kl(q || p) of two floats in 60 digits."""
    with mpmath.workdps(60):
        q, p = mpmath.mpf(float(q)), mpmath.mpf(float(p))
        first = q * mpmath.log(q / p) if q > 0 else mpmath.mpf(0)
        return first + ((1 - q) * mpmath.log((1 - q) / (1 - p)) if q < 1 else 0)


@pytest.mark.parametrize("is_wide", [False, True])
def test_no_bound_is_rounded_down(is_wide):
    rng = np.random.default_rng(5)
    q, c = rng.random(200) ** 4, 10.0 ** rng.uniform(-12, 1.2, 200)
    n = 10.0 ** rng.integers(1, 6, 60)
    errors = np.minimum(np.floor(rng.random(60) ** 3 * n), n - 1)
    with jax.enable_x64(is_wide):
        inverse = in_lanes(kl_inverse, q, c).astype(float)
        binomial = in_lanes(occam, errors / n, 0.0, num_examples=n, delta=0.05).astype(float)
        information = np.asarray(
            mutual_information_bound(c, num_examples=7, sub_gaussian_scale=0.5), float
        )
        lengths = np.asarray(self_delimiting_bits(n + 1), float)
        complexity = gaussian_complexity(q - 0.5, c, prior_scale=0.3).complexity_nats
    eps = np.finfo(np.float64 if is_wide else np.float32).eps
    # The relative entropy rises with p: none lies below the exact inverse, nor far above.
    for share, divergence, p in zip(q, c, inverse, strict=True):
        assert p == 1 or exact_kl(share, p) >= divergence
        lower = p * (1 - 2 * eps - 1e-12)
        assert lower <= share or exact_kl(share, lower) <= divergence
    # Clopper and Pearson's limit, to what SciPy knows of it.
    limit = stats.beta.isf(0.05, errors + 1, n - errors)
    assert np.all(binomial >= limit * (1 - 1e-12))
    np.testing.assert_allclose(binomial, limit, rtol=2 * eps + 1e-8)
    with mpmath.workdps(40):
        for rate, found in zip(c, information, strict=True):
            assert mpmath.mpf(float(found)) ** 2 >= mpmath.mpf(float(rate)) / 14
        for length, found in zip(n, lengths, strict=True):
            wanted = mpmath.log((length + 1) * (length + 2), 2)
            assert wanted <= mpmath.mpf(float(found)) <= wanted * (1 + 2 * eps + 1e-14)
        total = mpmath.mpf(0)
        for share, s in zip(q, c, strict=True):
            ratio, shift = mpmath.mpf(float(s)) / 0.3, (mpmath.mpf(float(share)) - 0.5) / 0.3
            total += (ratio**2 + shift**2 - 1) / 2 - mpmath.log(ratio)
        assert total <= mpmath.mpf(float(complexity)) <= total * (1 + 2 * eps + 1e-13)


def test_every_error_counts(x64):
    # Ten errors more of a hundred million are ten more, and none is invented.
    options = {"num_examples": 1e8, "delta": 0.05}
    shares = np.array([50_000_001, 49_999_991, 1.0, 0, 1e8]) / 1e8
    found = in_lanes(occam, shares, 0.0, **options)
    expected = stats.beta.isf(0.05, shares * 1e8 + 1, 1e8 - shares * 1e8)[:3]
    np.testing.assert_allclose(found[:2] - shares[:2], expected[:2] - shares[:2], rtol=1e-5)
    assert found[2] == pytest.approx(expected[2], rel=1e-9)
    rng = np.random.default_rng(0)
    count = jax.jit(whole_errors)
    for dtype in (np.float64, np.float32, np.float16):
        n = np.floor(10.0 ** rng.uniform(0, 9, 2000))
        errors = np.floor(rng.random(2000) * (n + 1))
        eps = float(np.finfo(dtype).eps)
        for share in ((errors / n).astype(dtype), dtype(1) - ((n - errors) / n).astype(dtype)):
            counted = np.asarray(count(share.astype(float), n, eps))
            # Never fewer than there were, and no more than the dtype leaves open.
            assert np.all(counted >= errors)
            assert np.all(counted - errors <= 2 * (eps * errors + eps / 4 * n))


def test_a_tail_does_not_depend_on_its_neighbours(x64):
    # Rounding moved one lane or another for ever in optimised programs, and all got a looser bound.
    errors = np.array([50_000_001, 49_999_991, 1, 30_000_000, 7])
    n = np.full(5, 1e8)
    levels = np.array([0.05, 0.05, 0.05, 1e-9, 0.01])
    together = in_lanes(occam, errors / n, 0.0, num_examples=n, delta=levels)
    wanted = stats.beta.isf(levels, errors + 1, n - errors)
    np.testing.assert_allclose(together - errors / n, wanted - errors / n, rtol=1e-5)


def test_a_tail_that_does_not_converge_gives_chernoffs_bound(x64):
    options = {"num_examples": 1e12, "delta": 0.05}
    binomial = in_lanes(occam, 0.5, 1000.0, **options)
    assert 0.5 < binomial <= in_lanes(occam, 0.5, 1000.0, tail="chernoff", **options)


GRADIENTS = {
    "pac_bayes_kl": lambda k: pac_bayes_kl(0.1, k, num_examples=1000, delta=0.05),
    "chernoff": lambda k: occam(0.1, k, num_examples=1000, delta=0.05, tail="chernoff"),
    # A number of errors is whole: here always 100, and the derivative by it is 0.
    "binomial": lambda k: occam(k / 500 - 1e-5, k, num_examples=1000, delta=0.05),
    "no errors": lambda k: occam(0.0, k, num_examples=1000, delta=0.05),
    "error": lambda k: kl_inverse(k / 500, 2.0),
    "draws": lambda k: pac_bayes_kl(
        k / 500, 9.0, num_examples=1000, delta=k / 500, num_draws=99, delta_draws=0.05
    ),
    "catoni": lambda k: catoni(0.1, k, num_examples=1000, delta=0.05),
    "lambert": lambda k: lambert_lower_branch(-k / 500),
    "scale": lambda k: gaussian_complexity(k * jnp.ones(3), 0.2 * k).complexity_nats,
}


@pytest.mark.parametrize(
    "name", some_slow(GRADIENTS, "pac_bayes_kl", "chernoff", "no errors", "draws", "catoni")
)
def test_derivatives_are_those_of_the_implicit_function(name):
    bound, at, step = GRADIENTS[name], 50.0, 1e-3
    with jax.enable_x64(True):
        # Value, derivative and what forward makes of the derivative, in one program.
        values, derivatives, second = jax.jit(
            jax.vmap(lambda k: (bound(k), *jax.jvp(jax.grad(bound), (k,), (jnp.ones_like(k),))))
        )(at + step * np.arange(-1.0, 2.0))
        below, middle, above = map(float, values)
        slope = (above - below) / (2 * step)
        assert float(derivatives[1]) == pytest.approx(slope, rel=1e-5)
        # Bisection to the last bit leaves some 1e-15 of the middle value.
        curvature = float(derivatives[2] - derivatives[0]) / (2 * step)
        assert float(second[1]) == pytest.approx(curvature, rel=1e-4)
    # In float32 programs, mapped.
    with jax.numpy_dtype_promotion("strict"):
        mapped = jax.jit(jax.vmap(jax.grad(bound)))(np.float32([at]))
    assert mapped.dtype == jnp.float32
    np.testing.assert_allclose(mapped, slope, rtol=1e-4)
    assert middle > 0 or name == "lambert"


def test_derivatives_at_the_ends():
    # By the complexity alone, at an error of 0 or 1 and beyond what n examples can bound.
    def bound(q, k):
        return pac_bayes_kl(q, k, num_examples=1000, delta=0.05)

    by_complexity = jax.jit(jax.vmap(jax.grad(bound, argnums=1), in_axes=(0, None)))
    found = np.asarray(by_complexity(np.float32([0, 1, 0.2]), 50.0))
    divergence = (50 + np.log(2 * np.sqrt(1000) / 0.05)) / 1000
    assert float(found[0]) == pytest.approx(np.exp(-divergence) / 1000, rel=1e-5)
    assert found[1] == 0
    assert found[2] > 0
    np.testing.assert_array_equal(by_complexity(np.float32([0.3, 1, 0.6]), 1e9), 0)
    # The inverse is a root near c = 0 and near q = 0.
    by_both = jax.jit(jax.grad(kl_inverse, argnums=(0, 1)))
    assert by_both(0.3, 0.0) == (1, np.inf)
    assert by_both(0.0, 0.3)[0] == np.inf


def test_extreme_confidence():
    for delta in (1e-300, 1 - 1e-16):
        for bound in (pac_bayes_kl, occam):
            found = float(in_lanes(bound, 0.1, 5.0, num_examples=1000, delta=delta))
            exact = -np.log(delta) + (np.log(2 * np.sqrt(1000)) if bound is pac_bayes_kl else 0)
            cost = 5 if bound is pac_bayes_kl else 5 * np.log(2)
            limit = mpmath_kl_inverse(0.1, (cost + exact) / 1000)
            assert 0.1 < found <= limit * (1 + 1e-6)


BOUNDS = (
    occam,
    lambda *cost, **sample: occam(*cost, tail="chernoff", **sample),
    pac_bayes_kl,
    lambda *cost, **sample: catoni(*cost, temperature=1.0, **sample),
)


def test_certificates_traced_and_mapped():
    @jax.jit
    @jax.vmap
    def bounds(q, bits, n, delta):
        return [bound(q, bits, num_examples=n, delta=delta) for bound in BOUNDS]

    bad = [[-0.1, 1, 9, 0.1], [1.1, 1, 9, 0.1], [0.1, -1, 9, 0.1], [0.1, 1, 0, 0.1]]
    bad += [[0.1, 1, 9, 0.0], [0.1, 1, 9, 1.0]]
    good = [[0.1, 1, 9, 0.5], [0.02, 800, 60_000, 0.0625], [0.1, 3e4, 9000, 0.25]]
    with strict_promotion():
        found = np.asarray(bounds(*np.float32(bad + good).T))
    # What is out of range in a trace is not a number.
    assert np.all(np.isnan(found[:, : len(bad)]))
    q, bits, n, delta = np.asarray(good).T
    for bound, mapped in zip(BOUNDS, found[:, len(bad) :], strict=True):
        single = in_lanes(bound, q, bits, num_examples=n, delta=delta)
        np.testing.assert_allclose(mapped, single, rtol=1e-6)
        if bound is occam:
            # Float32 error rates count as whole errors, where there are such.
            np.testing.assert_array_equal(mapped[1:], single[1:])


@pytest.mark.usefixtures("strict_promotion")
def test_population_risk_traced():
    risk = jax.jit(
        lambda r: population_risk(
            r, num_weights=50, zero_rate_distortion=1.0, num_examples=2000, sub_gaussian_scale=0.5
        )
    )(np.float32([100, 3e4]))
    assert risk.bound.dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: occam(1.5, 8, num_examples=10, delta=0.1), "train_error must be between 0 and 1"),
        (
            lambda: occam(0.1, -8, num_examples=10, delta=0.1),
            "size_bits must be at least 0, got -8",
        ),
        (
            lambda: occam(0.1, 8, num_examples=0, delta=0.1),
            "num_examples must be at least 1 and whole, got 0",
        ),
        (
            lambda: occam(0.1, 8, num_examples=9, delta=1.0),
            "delta must be strictly between 0 and 1",
        ),
        (lambda: occam(0.1, 8, num_examples=9, delta=0.1, tail="x"), "tail must be one of"),
        (lambda: pac_bayes_kl(0.1, -1, num_examples=9, delta=0.1), "complexity_nats must be at le"),
        (
            lambda: catoni(0.1, 1, num_examples=9, delta=0.1, temperature=-1),
            "temperature must be positive",
        ),
        (
            lambda: catoni(0.1, 1, num_examples=9, delta=0.1, num_temperatures=0),
            "at least 1, got 0",
        ),
        (
            lambda: pac_bayes_kl(0.1, 1, num_examples=9, delta=0.1, num_draws=5),
            "num_draws and delta_draws must be given together",
        ),
        (
            lambda: gaussian_complexity(np.ones(3), 0.0),
            "standard_deviation must be positive and finite, got 0",
        ),
        (lambda: gaussian_complexity(np.ones(3), np.ones(2)), "must broadcast to mean"),
        (lambda: gaussian_complexity(np.ones(3), np.inf), "standard_deviation must be positive"),
        (lambda: gaussian_complexity(np.ones(0), 1.0), "mean must hold at least one weight"),
        (lambda: gaussian_complexity(np.array([np.nan]), 1.0), "mean must be finite"),
        (
            lambda: gaussian_complexity(np.ones(1), 1.0, prior_scale=np.array([0.0])),
            "prior_scale must be positive and finite, got 0",
        ),
        (
            lambda: occam(0.1, 8, num_examples=np.array([9, 9.5]), delta=0.1),
            "num_examples must be at least 1 and whole, got 9.5",
        ),
        (
            lambda: pac_bayes_kl(0.1, 1, num_examples=9, delta=0.1, num_draws=0, delta_draws=0.1),
            "num_draws must be at least 1 and whole, got 0",
        ),
        (lambda: choice_bits(0), "num_candidates must be at least 1, got 0"),
        (lambda: self_delimiting_bits(0), "size_bytes must be at least 1, got 0"),
        (
            lambda: population_risk(
                1.0,
                num_weights=0,
                zero_rate_distortion=1,
                num_examples=1,
                sub_gaussian_scale=1,
            ),
            "num_weights must be positive and finite",
        ),
    ],
)
def test_bad_certificates(call, message):
    with pytest.raises(ValueError, match=message):
        call()
