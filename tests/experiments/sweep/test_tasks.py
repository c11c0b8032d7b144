"""Tasks: losses, calibrations and scores against closed forms and sums by hand."""

import json
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.evaluation import metrics
from jaxcomp.evaluation.calibration import fit_temperature
from jaxcomp.evaluation.statistics import crossed_mean
from jaxcomp.experiments.sweep.task_words import (
    ACCURACY,
    CLASSIFICATION,
    TEMPERED,
    TaskWords,
    words_from_dict,
    words_to_dict,
)
from jaxcomp.experiments.sweep.tasks import (
    Classification,
    Regression,
    Task,
    Tokens,
    example_values_of,
    own_calibration_of,
    scores_of,
)

RNG = np.random.default_rng(0)


def gaussian(outputs, targets, variance):
    """Mean negative log likelihood for each output, in float64."""
    squared = (np.asarray(outputs, np.float64) - targets) ** 2
    return float(np.mean(0.5 * np.log(2 * np.pi * variance) + squared / (2 * variance)))


def test_regression_on_gaussian_noise_has_the_loss_of_the_closed_form():
    """y = X w + noise: the variance is that of the noise, the loss its entropy."""
    noise, size = 0.3, 20_000
    inputs = RNG.normal(size=(size, 4))
    outputs = (inputs @ RNG.normal(size=(4, 2))).astype(np.float32)
    targets = (outputs + noise * RNG.normal(size=outputs.shape)).astype(np.float32)
    half = size // 2
    parts = [outputs[:half], outputs[half:], outputs[half:]]
    wanted = [targets[:half], targets[half:], targets[half:]]
    found = scores_of(Regression(), jnp.float32(1.0), [part[None] for part in parts], wanted)
    variance = float(found["variance"][0])
    # Of a mean of N squares of Gaussians the standard error is sqrt(2 / N) of the variance.
    assert variance == pytest.approx(noise**2, rel=4 * np.sqrt(2 / size))
    entropy = 0.5 * np.log(2 * np.pi * np.e * noise**2)
    for part in ("train", "validation", "test"):
        assert float(found[f"{part}_loss_tempered"][0]) == pytest.approx(entropy, abs=0.03)
    best = 0.5 * np.log(2 * np.pi * np.e * variance)
    assert float(found["validation_loss_tempered"][0]) == pytest.approx(best, rel=1e-5)
    assert float(found["validation_loss"][0]) == pytest.approx(
        gaussian(parts[1], wanted[1], 1.0), rel=1e-5
    )
    assert float(found["squared_error"][0]) == pytest.approx(variance, rel=1e-5)
    own = own_calibration_of(Regression(), parts[1], wanted[1])
    assert float(own) == pytest.approx(variance, rel=1e-6)


def test_every_network_of_a_stack_has_a_variance_of_its_own():
    outputs = RNG.normal(size=(3, 50, 2)).astype(np.float32)
    targets = RNG.normal(size=(50, 2)).astype(np.float32)
    found = scores_of(Regression(), jnp.float32(0.5), [outputs] * 3, [targets] * 3)
    for number in range(3):
        squared = np.mean((outputs[number].astype(np.float64) - targets) ** 2)
        assert float(found["variance"][number]) == pytest.approx(squared, rel=1e-5)
        for column, variance in (("test_loss", 0.5), ("test_loss_tempered", squared)):
            expected = gaussian(outputs[number], targets, variance)
            assert float(found[column][number]) == pytest.approx(expected, rel=1e-5)
    perfect = scores_of(Regression(), jnp.float32(0.5), [targets[None]] * 3, [targets] * 3)
    assert np.isfinite(float(perfect["test_loss_tempered"][0]))


def test_shrinkage_is_the_best_factor_on_the_validation_sample():
    targets = 1 + RNG.normal(size=(60, 2))
    validation = (1 + 3 * (targets - 1) + RNG.normal(size=(60, 2))).astype(np.float32)
    outputs = RNG.normal(size=(5, 2)).astype(np.float32)
    shrunk = Regression().controlled(outputs, validation, targets)
    centre = targets.mean(axis=0)
    # Brute force over factors.
    factors = np.linspace(0, 1, 10_001)
    errors = [np.mean((centre + f * (validation - centre) - targets) ** 2) for f in factors]
    best = factors[int(np.argmin(errors))]
    np.testing.assert_allclose(shrunk, centre + best * (outputs - centre), atol=5e-4)


MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], bool)


@pytest.fixture(scope="module")
def tokens():
    logits = (2 * RNG.normal(size=(3, 4, 5))).astype(np.float32)
    targets = RNG.integers(0, 5, size=(3, 4))
    return logits, targets, Tokens().targets_of((targets, MASK), "test")


def by_hand(logits, targets, temperature=1.0):
    """Cross-entropy of every token in float64."""
    scaled = logits.astype(np.float64) / temperature
    total = np.log(np.exp(scaled).sum(-1))
    return total - np.take_along_axis(scaled, targets[..., None], -1)[..., 0]


def test_the_loss_of_tokens_is_the_mean_over_those_that_count(tokens):
    logits, targets, marked = tokens
    found = scores_of(Tokens(), jnp.float32(1.0), [logits[None]] * 3, [marked] * 3)
    losses, hits = by_hand(logits, targets), logits.argmax(-1) == targets
    assert float(found["test_loss"][0]) == pytest.approx(losses[MASK].mean(), rel=1e-5)
    assert float(found["accuracy"][0]) == pytest.approx(hits[MASK].mean(), rel=1e-6)
    temperature = float(fit_temperature(logits[MASK], targets[MASK].astype(np.int32)))
    assert float(found["temperature"][0]) == pytest.approx(temperature, rel=1e-3)
    expected = by_hand(logits, targets, temperature)[MASK].mean()
    assert float(found["test_loss_tempered"][0]) == pytest.approx(expected, rel=1e-4)
    # What is hidden has no part in it.
    other = np.where(MASK[..., None], logits, RNG.normal(size=logits.shape) * 9)
    again = scores_of(
        Tokens(), jnp.float32(1.0), [other.astype(np.float32)[None]] * 3, [marked] * 3
    )
    for name, values in found.items():
        np.testing.assert_allclose(values, again[name], rtol=1e-6)


def test_intervals_of_tokens_are_over_sequences(tokens):
    """The mean is that over tokens; the spread that of a ratio of sums over sequences."""
    logits, targets, marked = tokens
    losses = np.where(MASK, by_hand(logits, targets), 0)
    values, tempered, score = example_values_of(
        Tokens(), logits, marked, jnp.float32(1.0), jnp.float32(2.0)
    )
    sums, lengths = losses.sum(1), MASK.sum(1)
    ratio = sums.sum() / lengths.sum()
    expected = ratio + (sums - ratio * lengths) / lengths.mean()
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    interval = crossed_mean(np.asarray(values)[None])
    assert (interval.num_examples, interval.degrees_of_freedom) == (3, 2)
    assert interval.estimate == pytest.approx(ratio, rel=1e-6)
    half = by_hand(logits, targets, 2.0)[MASK].mean()
    assert float(np.mean(tempered)) == pytest.approx(half, rel=1e-5)
    hits = (logits.argmax(-1) == targets)[MASK].mean()
    assert float(np.mean(score)) == pytest.approx(hits, rel=1e-6)


def test_classification_scores_example_by_example():
    logits = RNG.normal(size=(20, 3)).astype(np.float32)
    labels = RNG.integers(0, 3, 20).astype(np.int32)
    raw, tempered, score = example_values_of(
        Classification(), logits, labels, jnp.float32(1.0), jnp.float32(1.7)
    )
    np.testing.assert_array_equal(raw, metrics.cross_entropy(logits, labels))
    np.testing.assert_array_equal(score, metrics.correct(logits, labels))
    np.testing.assert_allclose(tempered, by_hand(logits, labels, 1.7), rtol=1e-5)


@dataclass(frozen=True)
class Uncalibrated(Task):
    """The least that a task of a user needs."""

    words: ClassVar[TaskWords] = TaskWords(name="absolute error")

    def loss(self, outputs, targets, calibration):
        return jnp.mean(jnp.abs(outputs - targets), axis=-1)

    def score(self, outputs, targets):
        return jnp.mean(jnp.abs(outputs - targets) < 1, axis=-1)


def test_a_task_of_a_user_needs_a_loss_and_a_score():
    outputs = RNG.normal(size=(2, 30, 3)).astype(np.float32)
    targets = RNG.normal(size=(30, 3)).astype(np.float32)
    found = scores_of(Uncalibrated(), jnp.float32(1.0), [outputs] * 3, [targets] * 3)
    expected = np.abs(outputs - targets).mean((1, 2))
    np.testing.assert_allclose(found["test_loss"], expected, rtol=1e-5)
    np.testing.assert_array_equal(found["test_loss"], found["test_loss_tempered"])
    np.testing.assert_array_equal(found["temperature"], 1)


@pytest.mark.parametrize("task", [Classification(), Regression(), Tokens(), Uncalibrated()])
def test_words_go_through_a_file(task):
    assert words_from_dict(json.loads(json.dumps(words_to_dict(task.words)))) == task.words


def test_words_of_other_versions_and_unknown_quantities_are_refused():
    assert words_from_dict(None) is CLASSIFICATION
    with pytest.raises(ValueError, match="the words of a stored task lack"):
        words_from_dict({"name": "classification", "score": {}})
    with pytest.raises(ValueError, match="regression has no quantity 'accuracy'"):
        Regression.words.quantity("accuracy")
    assert CLASSIFICATION.scale(TEMPERED, 0.2) == 0.2
    assert CLASSIFICATION.scale(ACCURACY, 0.9) == pytest.approx(0.1)
    assert Regression.words.scale(TEMPERED, -1.3) == 0.5
    assert Regression.words.scale(Regression.words.score, 0.3) == 0.3


@pytest.mark.parametrize(
    ("task", "part", "error", "message"),
    [
        (Classification(), (np.zeros(3),), TypeError, "labels must be a vector of integers"),
        (Classification(), (np.zeros(3), np.ones(3)), ValueError, r"must be \(inputs, targets\)"),
        (Regression(), (np.array(["a"]),), TypeError, "targets must be numbers"),
        (Regression(), (np.array([np.nan]),), ValueError, "hold 1 numbers that are NaN"),
        (Tokens(), (np.zeros((2, 3)),), TypeError, "targets must be integers"),
        (Tokens(), (np.zeros((2, 3), int), np.ones((2, 2))), ValueError, "shaped like the targets"),
        (Tokens(), (np.zeros((2, 3), int), np.zeros((2, 3))), ValueError, "every token of 2 of"),
        (Tokens(), (np.full((2, 3), -1),), ValueError, "must not be negative where a token"),
    ],
)
def test_targets_that_do_not_fit_get_one_sentence(task, part, error, message):
    with pytest.raises(error, match=message):
        task.targets_of(part, "test")


@pytest.mark.parametrize(
    ("task", "shape", "targets", "message"),
    [
        (Classification(), (1,), np.zeros(3, int), r"must return logits \(batch, classes\)"),
        (Classification(), (1, 2), np.array([2]), "the network has 2 classes"),
        (Regression(), (1, 2), np.zeros((5, 3)), r"outputs \(batch, 3\), as many as there are"),
        (Tokens(), (1, 3, 7), np.zeros((5, 4), int), r"logits \(batch, 4, vocabulary\), as long"),
        (Tokens(), (1, 4, 7), np.full((5, 4), 7), "the network has 7 tokens"),
        (Uncalibrated(), (1, 2, 3), np.zeros(5), "outputs with 2 axes, examples first, for abs"),
    ],
)
def test_outputs_that_do_not_fit_the_task_get_one_sentence(task, shape, targets, message):
    with pytest.raises(ValueError, match=message):
        task.check(shape, [targets] * 3)
