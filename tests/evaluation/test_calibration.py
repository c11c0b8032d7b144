import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax

from jaxcomp.evaluation.calibration import MAX_TEMPERATURE, MIN_TEMPERATURE, fit_temperature

pytestmark = pytest.mark.usefixtures("strict_promotion")

EXAMPLES, CLASSES = 500, 6


def fit(logits, labels):
    """Fit two times two models, of 500 examples and 7 classes: one program for most tests.

    Fewer examples are repeated; classes that are not there are ruled out.
    """
    leading, (examples, classes) = logits.shape[:-2], logits.shape[-2:]
    more = [(0, 0)] * (logits.ndim - 1) + [(0, CLASSES + 1 - classes)]
    logits = np.pad(logits, more, constant_values=-np.inf).reshape(-1, examples, CLASSES + 1)
    labels = np.broadcast_to(labels, (*leading, examples)).reshape(-1, examples)
    times = EXAMPLES // examples
    logits, labels = np.tile(logits, (1, times, 1)), np.tile(labels, times)
    models = np.arange(-(-len(logits) // 4) * 4).reshape(-1, 2, 2) % len(logits)
    found = [fit_temperature(logits[four], labels[four]) for four in models]
    assert all(each.shape == (2, 2) for each in found)
    return np.stack(found).ravel()[: len(logits)].reshape(leading)


def sample(seed, temperatures):
    """Logits that are right up to the given temperatures, with labels drawn accordingly."""
    rng = np.random.default_rng(seed)
    honest = 2 * rng.standard_normal((EXAMPLES, CLASSES))
    labels = (rng.random((EXAMPLES, 1)) > softmax(honest, axis=-1).cumsum(axis=-1)).sum(axis=-1)
    logits = np.asarray(temperatures)[..., None, None] * honest
    return logits.astype(np.float32), np.minimum(labels, CLASSES - 1)


def loss_at(log_temperature, logits, labels):
    scaled = logits.astype(np.float64) / np.exp(log_temperature)
    return np.mean(logsumexp(scaled, axis=-1) - scaled[np.arange(len(labels)), labels])


@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_scipy(seed):
    logits, labels = sample(seed, [[0.05, 0.7, 1.0], [3.0, 20.0, 50.0]])
    found = fit(logits, labels)
    assert found.dtype == np.float32
    for index in np.ndindex(2, 3):
        result = minimize_scalar(
            loss_at,
            args=(logits[index], labels),
            bounds=np.log([MIN_TEMPERATURE, MAX_TEMPERATURE]),
            method="bounded",
            options={"xatol": 1e-8},
        )
        # The root of the slope, a mean of n float32 numbers of the size of the logits.
        tolerance = 4 * np.sqrt(np.finfo(np.float32).eps)
        np.testing.assert_allclose(found[index], np.exp(result.x), rtol=tolerance)
        assert loss_at(np.log(found[index]), logits[index], labels) <= result.fun + 1e-7


def test_scales_with_the_logits():
    logits, labels = sample(2, [1.0, 2.0, 8.0])
    found = fit(logits, labels)
    np.testing.assert_allclose(found, found[0] * np.asarray([1, 2, 8]), rtol=1e-4)
    # The labels were drawn at temperature 1: one standard error is about 5 % here.
    assert 0.8 < found[0] < 1.25


@pytest.mark.parametrize("margin", [1e-3, 0.5, 20.0, 1e6])
def test_separable_logits_reach_the_lower_bound(margin):
    labels = np.arange(20) % CLASSES
    logits = margin * np.eye(CLASSES, dtype=np.float32)[labels]
    assert fit(logits, labels) == MIN_TEMPERATURE


@pytest.mark.parametrize("margin", [1e-3, 0.5, 20.0, 1e6])
def test_logits_that_are_wrong_reach_the_upper_bound(margin):
    labels = np.arange(20) % CLASSES
    logits = -margin * np.eye(CLASSES, dtype=np.float32)[labels]
    assert fit(logits, labels) == MAX_TEMPERATURE


def test_one_mistake_among_confident_answers():
    # Nearly flat on both sides of the optimum, far from the start: Newton alone diverges.
    labels = np.zeros(EXAMPLES, int)
    logits = np.zeros((EXAMPLES, 2), np.float32)
    logits[:, 0] = 40.0
    logits[0, 0] = -40.0
    # All but one right, and one wrong, at the same margin m: m/T = log(n - 1).
    expected = 40 / np.log(EXAMPLES - 1)
    np.testing.assert_allclose(fit(logits, labels), expected, rtol=1e-3)
    logits[0, 0] = 40.0
    assert fit(logits, labels) == MIN_TEMPERATURE


def test_classes_that_are_ruled_out_have_no_part():
    logits, labels = sample(8, [0.7, 3.0])
    masked = np.insert(logits, 2, -np.inf, axis=-1)
    moved = labels + (labels >= 2)
    np.testing.assert_array_equal(fit(masked, moved), fit_temperature(logits, labels))
    # Other classes in other examples.
    partly = np.where(np.arange(CLASSES + 1) == np.arange(EXAMPLES)[:, None] % 7, -np.inf, masked)
    partly[:, np.arange(EXAMPLES), moved] = masked[:, np.arange(EXAMPLES), moved]
    lowest = np.where(np.isneginf(partly), -1e30, partly)
    np.testing.assert_allclose(fit(partly, moved), fit(lowest, moved), rtol=1e-6)
    # A label that is ruled out has an infinite loss whatever T, the less the higher.
    partly[0, 3, moved[3]] = -np.inf
    found = fit(partly, moved)
    assert found[0] == MAX_TEMPERATURE
    assert 0 < found[1] < MAX_TEMPERATURE
    # Two equal classes, the others ruled out: T is open. All ruled out: no distribution.
    equal = np.where(np.arange(CLASSES) < 2, 0.5, np.full((4, CLASSES), -np.inf))
    assert fit(equal.astype(np.float32), np.array([0, 1, 0, 1])) == 1
    for bad in (np.inf, -np.inf):
        equal[2] = bad
        assert np.isnan(fit(equal.astype(np.float32), np.array([0, 1, 0, 1])))


@pytest.mark.parametrize("margin", [1e36, 3e38])
def test_logits_at_the_end_of_the_range(margin):
    labels = np.arange(20) % CLASSES
    logits = np.float32(margin) * np.eye(CLASSES, dtype=np.float32)[labels]
    assert fit(logits, labels) == MIN_TEMPERATURE
    assert fit(-logits, labels) == MAX_TEMPERATURE


@pytest.mark.usefixtures("x64")
def test_derivative_is_that_of_the_implicit_function():
    logits, labels = sample(9, [0.5, 3.0])
    logits = np.insert(logits.astype(np.float64), 0, -np.inf, axis=-1)
    direction = np.where(
        np.isfinite(logits), np.cos(np.arange(logits.size)).reshape(logits.shape), 0
    )

    def along(step):
        return fit_temperature(logits + step * direction, labels + 1)

    # Values and derivatives of three steps, in one program.
    step = 1e-3
    pushed = jax.jit(jax.vmap(lambda s: jax.jvp(along, (s,), (jnp.ones_like(s),))))
    values, derivatives = map(np.asarray, pushed(np.array([-step, 0.0, step])))
    found, derivative = values[1], derivatives[1]
    np.testing.assert_allclose(derivative, (values[2] - values[0]) / (2 * step), rtol=1e-4)
    by_logits = jax.jit(jax.grad(lambda z: jnp.sum(fit_temperature(z, labels + 1))))(logits)
    np.testing.assert_allclose(np.sum(by_logits * direction), derivative.sum(), rtol=1e-9)
    # T scales with the logits.
    finite = np.where(np.isfinite(logits), logits, 0)
    np.testing.assert_allclose(np.sum(by_logits * finite, axis=(1, 2)), found, rtol=1e-6)


def test_equal_logits_leave_the_temperature_alone():
    logits = np.tile(np.linspace(-1, 1, 20, dtype=np.float32)[:, None], (2, 1, CLASSES))
    assert fit(logits, np.arange(20) % CLASSES).tolist() == [1.0, 1.0]


def test_a_fit_does_not_depend_on_its_batch():
    logits, labels = sample(3, [0.02, 1.0, 3.0, 60.0])
    batched = fit_temperature(logits, labels)
    mapped = jax.vmap(fit_temperature, in_axes=(0, None))(logits, labels)
    single = [fit_temperature(one, labels) for one in logits]
    np.testing.assert_allclose(batched, mapped, rtol=1e-6)
    np.testing.assert_allclose(batched, single, rtol=1e-6)


def test_labels_may_differ_between_models():
    logits, labels = sample(4, [1.0, 2.0])
    per_model = np.stack([labels, (labels + (np.arange(EXAMPLES) % 3 == 0)) % CLASSES])
    found = fit(logits, per_model)
    single = [fit_temperature(logits[m], per_model[m]) for m in range(2)]
    np.testing.assert_allclose(found, single, rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_float64_is_more_exact():
    logits, labels = sample(5, [2.0])
    found = fit_temperature(logits.astype(np.float64), labels)
    assert found.dtype == jnp.float64
    # Zero slope is the definition of the optimum; its own rounding is eps times the logits.
    step = 1e-4
    sides = [loss_at(np.log(found[0]) + s, logits[0], labels) for s in (-step, step)]
    curvature = (sum(sides) - 2 * loss_at(np.log(found[0]), logits[0], labels)) / step**2
    assert abs(sides[1] - sides[0]) / (2 * step) / curvature < 1e-6


def test_not_a_number_is_passed_on():
    logits, labels = sample(6, [1.0, 2.0])
    logits[0, 3, 2] = np.nan
    found = fit(logits, labels)
    assert np.isnan(found).tolist() == [True, False]
    # Beyond the class that is ruled out.
    labels[5] = CLASSES + 1
    assert np.isnan(fit(logits, labels)).all()


def test_refused():
    logits, labels = sample(7, [1.0])
    with pytest.raises(TypeError, match="logits must be floating"):
        fit_temperature(logits.astype(np.int32), labels)
    with pytest.raises(TypeError, match="labels must be integers"):
        fit_temperature(logits, labels.astype(np.float32))
    with pytest.raises(ValueError, match="must broadcast to one label per example"):
        fit_temperature(logits, labels[:-1])
    with pytest.raises(ValueError, match=r"logits must have shape \(..., examples, classes\)"):
        fit_temperature(logits[0, 0], labels)
