import jax
import numpy as np
import pytest

from jaxcomp import coding

RNG = np.random.default_rng(0)
DESIGN = RNG.normal(size=(30, 6)) * np.array([3.0, 1.0, 1.0, 0.3, 0.1, 0.0])
NOISE_VARIANCE = 0.5
HESSIAN = DESIGN.T @ DESIGN / NOISE_VARIANCE  # of sum (y - x w)^2 / (2 s2)
EIGENVALUES = np.clip(np.linalg.eigvalsh(HESSIAN), 0, None)


def mutual_information(precision):
    """I(w; y) of y = X w + noise, from the joint Gaussian: h(w) + h(y) - h(w, y)."""
    d, n = DESIGN.shape[1], DESIGN.shape[0]
    prior = np.eye(d) / precision
    joint = np.block(
        [
            [prior, prior @ DESIGN.T],
            [DESIGN @ prior, DESIGN @ prior @ DESIGN.T + NOISE_VARIANCE * np.eye(n)],
        ]
    )
    parts = [np.linalg.slogdet(block)[1] for block in (joint[:d, :d], joint[d:, d:], joint)]
    return 0.5 * (parts[0] + parts[1] - parts[2])


@pytest.mark.usefixtures("strict_promotion")
def test_rate_is_the_mutual_information_of_the_linear_gaussian_model():
    precisions = np.float32([1e-3, 0.1, 1.0, 7.0, 1e3, 1e6])
    found = coding.l2_rate_nats(EIGENVALUES.astype(np.float32), np.float32(precisions))
    expected = [mutual_information(float(precision)) for precision in precisions]
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_rate_is_reverse_water_filling_at_level_one():
    # Distortion 1 in the metric of the posterior: components of variance (h + p) / p are each
    # described down to variance 1.
    variances = (EIGENVALUES + 2.0) / 2.0
    expected = np.sum(0.5 * np.log(np.maximum(variances, 1)))
    assert float(coding.l2_rate_nats(EIGENVALUES, 2.0)) == pytest.approx(expected, rel=1e-5)


def test_diagonal_form_is_an_upper_bound():
    full = coding.l2_rate_nats(EIGENVALUES, np.float32([0.1, 1.0, 10.0]))
    diagonal = coding.l2_rate_nats(np.diag(HESSIAN), np.float32([0.1, 1.0, 10.0]))
    assert np.all(np.asarray(diagonal) > np.asarray(full))


@pytest.mark.usefixtures("strict_promotion")
def test_inverse_both_ways_and_vectorised():
    eigenvalues = EIGENVALUES.astype(np.float32)
    precisions = np.float32([[1e-4, 1e-2], [1.0, 1e5]])
    rates = coding.l2_rate_nats(eigenvalues, precisions)
    back = coding.prior_precision_from_rate(eigenvalues, rates)
    assert back.shape == (2, 2)
    np.testing.assert_allclose(back, precisions, rtol=2e-5)
    mapped = jax.jit(jax.vmap(lambda rate: coding.prior_precision_from_rate(eigenvalues, rate)))
    np.testing.assert_allclose(mapped(rates.ravel()), precisions.ravel(), rtol=2e-5)


@pytest.mark.parametrize("rate", [5000.0, 1e3, 1e-3, 1e-30])
def test_rates_and_precisions_beyond_float32(rate):
    eigenvalues = np.float32([1e12, 1e-12] * 25)
    precision = coding.prior_precision_from_rate(eigenvalues, rate)
    # 1e-87 to 1e43; what float32 cannot hold comes as float64, and goes back in unrounded.
    exact = 0.5 * np.sum(np.log1p(eigenvalues.astype(np.float64) / float(precision)))
    assert exact == pytest.approx(rate, rel=1e-6)
    assert float(coding.l2_rate_nats(eigenvalues, precision)) == pytest.approx(rate, rel=1e-6)


def test_ratios_beyond_float32():
    found = coding.l2_rate_nats(np.float32([1e30, 0]), np.float32(1e-20))
    assert float(found) == pytest.approx(0.5 * np.log(1e50), rel=1e-6)
    assert float(coding.l2_rate_nats([1e300], 1e-300)) == pytest.approx(300 * np.log(10), rel=1e-6)
    found = coding.l2_rate_nats(np.float32(1e-42), np.float32(1e-42))
    assert float(found) == pytest.approx(0.5 * np.log(2), rel=1e-6)
    assert float(coding.gaussian_from_weight_decay(1e-40, 1e-3).scale) == pytest.approx(10**21.5)


def test_the_inverse_has_the_derivatives_of_the_implicit_function():
    eigenvalues, rate = np.float32([0.0, 0.5, 2.0, 8.0]), 1.5
    by_eigenvalue, by_rate = jax.jit(jax.grad(coding.prior_precision_from_rate, argnums=(0, 1)))(
        eigenvalues, rate
    )
    precision = float(coding.prior_precision_from_rate(eigenvalues, rate))
    h = np.asarray(eigenvalues, np.float64)
    slope = -0.5 * np.sum(h / (precision * (precision + h)))
    np.testing.assert_allclose(by_eigenvalue, -0.5 / (precision + h) / slope, rtol=1e-5)
    assert float(by_rate) == pytest.approx(1 / slope, rel=1e-5)


def test_ridge_is_the_posterior_mean_of_the_implied_prior():
    # Mean squared loss |y - X w|^2 / (2 n s2) + weight_decay / 2 |w|^2.
    n, weight_decay = len(DESIGN), 0.02
    targets = DESIGN @ np.ones(6) + RNG.normal(size=n)
    precision = float(coding.prior_precision_from_weight_decay(weight_decay, n))
    posterior_mean = np.linalg.solve(
        HESSIAN + precision * np.eye(6), DESIGN.T @ targets / NOISE_VARIANCE
    )

    def penalised(w):
        residual = targets - DESIGN @ w
        loss = residual @ residual / (2 * n * NOISE_VARIANCE)
        return loss + weight_decay / 2 * w @ w

    for direction in np.eye(6):
        for sign in (-1e-3, 1e-3):
            assert penalised(posterior_mean) < penalised(posterior_mean + sign * direction)
    prior = coding.gaussian_from_weight_decay(weight_decay, n)
    assert float(prior.scale) == pytest.approx(1 / np.sqrt(n * weight_decay))
    assert float(coding.laplace_from_l1(0.1, 50).scale) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: coding.l2_rate_nats([-1.0, 1.0], 1.0),
            "hessian_eigenvalues must be .* at least 0",
        ),
        (lambda: coding.l2_rate_nats([np.nan], 1.0), "hessian_eigenvalues must be finite"),
        (
            lambda: coding.l2_rate_nats([1.0], 0.0),
            "prior_precision must be positive",
        ),
        (
            lambda: coding.prior_precision_from_rate([1.0], -1.0),
            "rate_nats must be positive and finite, got -1",
        ),
        (lambda: coding.prior_precision_from_rate([0.0], 1.0), "must not all be 0"),
        (
            lambda: coding.prior_precision_from_rate([1.0], 1e6),
            r"rate_nats must belong to a precision between 1e-307 and 1e307, got 1e\+06",
        ),
        (
            lambda: coding.l2_rate_nats([1.0], np.inf),
            "positive and finite, got inf",
        ),
        (lambda: coding.prior_precision_from_weight_decay(0.0, 5), "weight_decay must be positive"),
        (lambda: coding.laplace_from_l1(0.1, 0), "num_examples must be positive and finite, got 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
