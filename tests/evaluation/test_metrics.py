from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.metrics import accuracy_score, log_loss

from jaxcomp.evaluation import metrics

EXAMPLES, CLASSES = 200, 7
ALL = (
    metrics.margins,
    metrics.cross_entropy,
    metrics.brier_score,
    metrics.correct,
    metrics.expected_calibration_error,
    metrics.scores,
)


def sample(seed, leading=(2, 3), dtype=np.float32):
    rng = np.random.default_rng(seed)
    logits = 3 * rng.standard_normal((*leading, EXAMPLES, CLASSES))
    labels = rng.integers(0, CLASSES, EXAMPLES)
    return logits.astype(dtype), labels.astype(np.int32)


def calibration_error_by_hand(probabilities, labels, num_bins):
    """Guo et al. (2017), equation 3, bin by bin."""
    confidence, predicted = probabilities.max(axis=1), probabilities.argmax(axis=1)
    edges, error = np.linspace(0, 1, num_bins + 1), 0.0
    for low, high in pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            accuracy = np.mean(predicted[inside] == labels[inside])
            error += inside.mean() * abs(accuracy - confidence[inside].mean())
    return error


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.usefixtures("strict_promotion")
def test_scores_agree_with_numpy_and_scikit_learn(seed):
    logits, labels = sample(seed)
    found = metrics.scores(logits, labels)
    assert all(field.shape == (2, 3) and field.dtype == jnp.float32 for field in found)
    for index in np.ndindex(2, 3):
        probabilities = softmax(logits[index].astype(np.float64), axis=-1)
        predicted = probabilities.argmax(axis=1)
        expected = (
            log_loss(labels, probabilities, labels=np.arange(CLASSES)),
            accuracy_score(labels, predicted),
            np.mean(np.sum((probabilities - np.eye(CLASSES)[labels]) ** 2, axis=1)),
            calibration_error_by_hand(probabilities, labels, 15),
        )
        # A sum of n float32 numbers: eps times n is a bound, its root is what happens.
        tolerance = np.finfo(np.float32).eps * EXAMPLES
        np.testing.assert_allclose([field[index] for field in found], expected, rtol=tolerance)


@pytest.mark.usefixtures("strict_promotion")
def test_loss_of_each_example():
    logits, labels = sample(2)
    expected = -log_softmax(logits.astype(np.float64), axis=-1)[..., np.arange(EXAMPLES), labels]
    np.testing.assert_allclose(
        metrics.cross_entropy(logits, labels), expected, rtol=1e-5, atol=1e-6
    )
    by_class = metrics.margins(logits, labels)
    assert by_class.shape == logits.shape
    np.testing.assert_array_equal(by_class[..., np.arange(EXAMPLES), labels], 0)


@pytest.mark.parametrize("num_bins", [1, 4, 15])
def test_calibration_error_counts_each_bin_on_its_own(num_bins):
    logits, labels = sample(3, leading=())
    probabilities = softmax(logits.astype(np.float64), axis=-1)
    expected = calibration_error_by_hand(probabilities, labels, num_bins)
    found = metrics.expected_calibration_error(logits, labels, num_bins=num_bins)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_calibration_error_of_known_networks():
    # Confidence 0.75 on every example, right on three of four; then right on all.
    logits = np.log(np.tile(np.float32([0.75, 0.25]), (400, 1)))
    labels = np.tile(np.int32([0, 0, 0, 1]), 100)
    np.testing.assert_allclose(metrics.expected_calibration_error(logits, labels), 0, atol=1e-5)
    always_right = metrics.expected_calibration_error(logits, np.zeros_like(labels))
    np.testing.assert_allclose(always_right, 0.25, rtol=1e-5)
    sure = np.tile(np.float32([1e4, 0]), (400, 1))
    found = metrics.expected_calibration_error(sure, np.zeros_like(labels))
    np.testing.assert_array_equal(found, 0)


def test_loss_of_a_confident_right_answer_keeps_its_digits():
    logits = np.float32([[60, 50, 45], [1e30, 0, -1e30]])
    loss = metrics.cross_entropy(logits, np.int32([0, 0]))
    np.testing.assert_allclose(loss, [np.log1p(np.exp(-10) + np.exp(-15)), 0], rtol=1e-6)
    loss = metrics.cross_entropy(logits, np.int32([1, 2]))
    np.testing.assert_allclose(loss, [10 + np.log1p(np.exp(-10) + np.exp(-15)), 2e30], rtol=1e-6)


def test_labels_may_differ_between_models():
    logits, labels = sample(4, leading=(3,))
    per_model = np.stack([labels, np.roll(labels, 1), np.roll(labels, 2)])
    found = metrics.cross_entropy(logits, per_model)
    for model in range(3):
        one = metrics.cross_entropy(logits[model], per_model[model])
        np.testing.assert_allclose(found[model], one, rtol=1e-5, atol=1e-6)


def test_vmap_equals_batched():
    logits, labels = sample(5, leading=(3,))
    batched = metrics.scores(logits, labels)
    mapped = jax.jit(jax.vmap(metrics.scores, in_axes=(0, None)))(logits, labels)
    for found, expected in zip(mapped, batched, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_order_of_examples_and_common_shift_do_not_matter():
    logits, labels = sample(6, leading=())
    order = np.random.default_rng(0).permutation(EXAMPLES)
    shifted = logits[order] + np.linspace(-2, 2, EXAMPLES, dtype=np.float32)[:, None]
    before, after = metrics.scores(logits, labels), metrics.scores(shifted, labels[order])
    np.testing.assert_allclose(before, after, rtol=1e-4)


@pytest.mark.parametrize("label_dtype", [np.uint8, np.int32])
def test_half_precision_is_evaluated_in_float32(label_dtype):
    logits, labels = sample(7, leading=(), dtype=np.float16)
    loss = metrics.cross_entropy(logits, labels.astype(label_dtype))
    assert loss.dtype == jnp.float32
    np.testing.assert_array_equal(loss, metrics.cross_entropy(logits.astype(np.float32), labels))


@pytest.mark.usefixtures("x64", "strict_promotion")
def test_float64():
    logits, labels = sample(8, leading=(), dtype=np.float64)
    found = metrics.scores(logits, labels.astype(np.int64))
    assert found.loss.dtype == jnp.float64
    expected = -log_softmax(logits, axis=-1)[np.arange(EXAMPLES), labels].mean()
    np.testing.assert_allclose(found.loss, expected, rtol=1e-14)


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_label_out_of_range_shows(label):
    logits, labels = sample(9, leading=())
    labels[3] = label
    assert np.isnan(metrics.cross_entropy(logits, labels)).nonzero()[0].tolist() == [3]
    assert np.isnan(metrics.brier_score(logits, labels)).nonzero()[0].tolist() == [3]
    assert not metrics.correct(logits, labels)[3]


def test_nan_logit_is_no_right_answer():
    logits, labels = sample(10, leading=())
    logits[3, labels[3]] = np.nan
    found = metrics.scores(logits, labels)
    assert not metrics.correct(logits, labels)[3]
    assert np.isnan(found.loss)
    assert np.isnan(found.calibration_error)


def test_a_class_that_is_ruled_out_has_probability_zero():
    logits, labels = sample(13, leading=())
    masked = np.insert(logits, 2, -np.inf, axis=-1)
    moved = labels + (labels >= 2)
    with_class, without = metrics.scores(masked, moved), metrics.scores(logits, labels)
    np.testing.assert_allclose(with_class, without, rtol=1e-6)
    assert np.all(np.isneginf(metrics.margins(masked, moved)[:, 2]))
    # Derivatives stay finite.
    by_loss = jax.jit(jax.grad(lambda z: jnp.mean(metrics.cross_entropy(z, moved))))
    gradient = by_loss(masked)
    expected = (softmax(masked, axis=-1) - np.eye(CLASSES + 1)[moved]) / EXAMPLES
    np.testing.assert_allclose(gradient, expected, atol=1e-7)
    gradient = jax.jit(jax.grad(lambda z: jnp.sum(metrics.brier_score(z, moved))))(masked)
    assert np.all(np.isfinite(gradient))
    # Where it is the label's class the loss is infinite, and nothing else is.
    certain = np.array([[0.0, -np.inf, -np.inf]] * 3, np.float32)
    wanted = np.array([0, 1, 2])
    np.testing.assert_array_equal(metrics.cross_entropy(certain, wanted), [0, np.inf, np.inf])
    np.testing.assert_array_equal(metrics.brier_score(certain, wanted), [0, 2, 2])
    np.testing.assert_array_equal(metrics.correct(certain, wanted), [True, False, False])
    assert metrics.expected_calibration_error(certain, wanted) == pytest.approx(2 / 3)
    by_loss = jax.jit(jax.grad(lambda z: jnp.sum(metrics.cross_entropy(z, wanted))))
    gradient = by_loss(certain)
    np.testing.assert_array_equal(gradient, np.zeros((3, 3)))


@pytest.mark.parametrize("bad", [np.inf, -np.inf])
def test_logits_without_a_distribution_show(bad):
    logits = np.zeros((3, 3), np.float32)
    logits[1] = bad
    labels = np.zeros(3, int)
    assert np.isnan(metrics.cross_entropy(logits, labels)).tolist() == [False, True, False]
    assert np.isnan(metrics.brier_score(logits, labels)).tolist() == [False, True, False]
    assert metrics.correct(logits, labels).tolist() == [True, False, True]
    assert np.isnan(metrics.expected_calibration_error(logits, labels))


def test_one_example_and_one_class():
    found = metrics.scores(np.zeros((1, 1), np.float32), np.zeros(1, int))
    assert [float(field) for field in found] == [0, 1, 0, 0]


def test_ties_go_to_the_lowest_class():
    found = metrics.correct(np.zeros((3, 3), np.float32), np.array([0, 1, 2]))
    assert found.tolist() == [True, False, False]


@pytest.mark.parametrize("score", ALL)
def test_refused(score):
    logits, labels = sample(11)
    with pytest.raises(TypeError, match="logits must be floating, got int32"):
        score(logits.astype(np.int32), labels)
    with pytest.raises(TypeError, match=r"labels must be integers .*, got float32"):
        score(logits, labels.astype(np.float32))
    for shape in ((EXAMPLES,), (0, 3), (3, 0)):
        with pytest.raises(ValueError, match=r"logits must have shape \(..., examples, classes\)"):
            score(np.zeros(shape, np.float32), labels)
    for wrong in (labels[:-1], labels[:1], labels[0], np.tile(labels, (4, 1))):
        with pytest.raises(ValueError, match="must broadcast to one label per example"):
            score(logits, wrong)


def test_no_bins_are_refused():
    with pytest.raises(ValueError, match="num_bins must be at least 1, got 0"):
        metrics.expected_calibration_error(*sample(12), num_bins=0)
