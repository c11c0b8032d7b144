import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from jaxcomp import coding


def test_predicted_rise_is_the_measured_one():
    rng = np.random.default_rng(0)
    curvature = rng.gamma(1.0, size=20_000)
    weights = rng.normal(size=20_000)
    choice = coding.optimal_step(np.float32(curvature), per_weight=True)
    step = np.asarray(choice.step, np.float64)
    error = weights - np.rint(weights / step) * step
    measured = 0.5 * curvature * error**2
    # Half a nat for each weight whose step is fine against the weights.
    is_fine = curvature > 3
    standard_error = np.std(measured[is_fine]) / np.sqrt(is_fine.sum())
    assert abs(np.mean(measured[is_fine]) - 0.5) < 4 * standard_error
    np.testing.assert_allclose(choice.loss_rise_nats, 0.5, rtol=1e-5)


@pytest.mark.usefixtures("strict_promotion")
def test_best_step_of_a_leaf_has_the_least_description_length():
    curvature = np.random.default_rng(1).gamma(0.5, 1000.0, size=(50, 4)).astype(np.float32)
    choice = coding.optimal_step({"w": curvature})
    best = float(choice.step["w"])
    assert best == pytest.approx(np.sqrt(12 / np.mean(curvature)), rel=1e-5)

    def length(step):
        return np.sum(curvature) * step**2 / 24 - curvature.size * np.log(step)

    assert length(best) < min(length(0.99 * best), length(1.01 * best))
    assert float(choice.loss_rise_nats["w"]) == pytest.approx(curvature.size / 2, rel=1e-5)


def test_flat_weights_need_not_be_sent():
    choice = coding.optimal_step(np.float32([0.0, 0.5, 100.0]), per_weight=True, prior_scale=1.0)
    np.testing.assert_allclose(choice.step, [12**0.5, 12**0.5, 0.12**0.5], rtol=1e-6)
    # Set to zero, a weight of the prior costs h t^2 / 2.
    np.testing.assert_allclose(choice.loss_rise_nats, [0, 0.25, 0.5], rtol=1e-6)
    assert np.isinf(coding.optimal_step(np.zeros(3, np.float32)).step)
    assert float(coding.optimal_step(np.zeros(3, np.float32)).loss_rise_nats) == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_steps_of_extreme_curvature(dtype):
    values = np.array([1e-42, 1e-38, 1e38] if dtype == np.float32 else [6e-8, 1e-4, 6e4])
    curvature = values.astype(dtype)
    choice = coding.optimal_step(curvature, per_weight=True)
    expected = np.sqrt(12 / curvature.astype(np.float64))
    np.testing.assert_allclose(choice.step, expected, rtol=1e-6)
    np.testing.assert_allclose(choice.loss_rise_nats, 0.5, rtol=1e-6)
    # The sum over a leaf is beyond the dtype, its mean is not.
    leaf = coding.optimal_step(np.full(9, curvature[-1]))
    np.testing.assert_allclose(leaf.step, expected[-1], rtol=1e-6)


def test_description_length_of_a_real_classifier_has_its_minimum_at_the_predicted_step():
    # Logistic regression on digits, penalised: bits of the weights under the penalty's prior plus
    # bits of the training labels, over steps.
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    inputs, labels = (images / 16).astype(np.float32), labels.astype(np.int32)
    n, weight_decay = len(inputs), 3e-4
    prior = coding.gaussian_from_weight_decay(weight_decay, n)

    @jax.jit
    def total_nats(w):
        logits = jnp.matmul(inputs, w, precision="highest")
        return -jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1))

    def train(w):
        def step(w, _):
            gradient = jax.grad(total_nats)(w) / n + weight_decay * w
            return w - 1.0 * gradient, None

        return jax.lax.scan(step, w, length=1000)[0]

    weights = jax.jit(train)(np.zeros((64, 10), np.float32))
    logits = np.asarray(inputs, np.float64) @ np.asarray(weights, np.float64)
    p = softmax(logits, axis=1)
    # Exact diagonal of the Hessian: sum over examples of x^2 p (1 - p).
    curvature = (np.square(inputs).T @ (p * (1 - p))).astype(np.float32)
    choice = coding.optimal_step(curvature, prior_scale=prior.scale)
    base = float(total_nats(weights))

    factors = 2.0 ** np.arange(-5, 4)
    lengths = []
    for factor in factors:
        step = float(choice.step) * factor
        rounded = coding.quantize(weights, step=step)
        bits = np.sum(coding.code_length_bits(weights, prior, step=step))
        rise = float(total_nats(rounded)) - base
        predicted = np.sum(coding.predicted_loss_rise_nats(curvature, step=step))
        if 0.05 < factor < 1:
            # One rounding scatters about the mean (its gradient term vanishes only there).
            assert 0.5 < rise / predicted < 2
        lengths.append(bits + (base + rise) / np.log(2))
    best = int(np.argmin(lengths))
    assert 0 < best < len(factors) - 1
    assert 0.5 <= factors[best] <= 1
    uniform_bits = n * np.log2(10)
    assert lengths[best] < uniform_bits


@pytest.mark.parametrize(
    ("curvature", "options", "message"),
    [
        ([-1.0], {}, "curvature must be finite and at least 0, got -1"),
        ([np.nan], {}, "curvature must be finite"),
        ([1.0], {"prior_scale": 0.0}, "prior_scale must be positive and finite, got 0"),
    ],
)
def test_bad_input(curvature, options, message):
    with pytest.raises(ValueError, match=message):
        coding.optimal_step(np.float32(curvature), **options)
