"""Parts: always disjoint, the same for model m whatever the rest, noise at its rate."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcomp.experiments.data import Dataset, Parts, draw_parts

SETTINGS: dict[str, Any] = {
    "num_models": 3,
    "train_size": 20,
    "validation_size": 10,
    "replacement": False,
    "label_noise": 0.3,
    "seed": 5,
}


def draw(dataset: Dataset | None = None, **changes: Any) -> Parts:
    return draw_parts(dataset or make_dataset(), **{**SETTINGS, **changes})


def make_dataset(pool_size: int = 60, num_classes: int = 4) -> Dataset:
    images = np.zeros((pool_size, 1, 1, 1), np.uint8)
    labels = np.arange(pool_size, dtype=np.int32) % num_classes
    return Dataset("own", images, labels, images, labels, num_classes, 255, "hand")


@given(
    pool_size=st.integers(2, 30),
    num_models=st.integers(1, 3),
    sizes=st.tuples(st.integers(1, 29), st.integers(1, 29)),
    replacement=st.booleans(),
    label_noise=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 2**70),
)
def test_parts_are_disjoint_and_as_asked(
    pool_size: int,
    num_models: int,
    sizes: tuple[int, int],
    replacement: bool,
    label_noise: float,
    seed: int,
) -> None:
    validation_size = min(sizes[0], pool_size - 1)
    train_size = sizes[1] if replacement else min(sizes[1], pool_size - validation_size)
    dataset = make_dataset(pool_size)
    parts = draw_parts(
        dataset,
        num_models=num_models,
        train_size=train_size,
        validation_size=validation_size,
        replacement=replacement,
        label_noise=label_noise,
        seed=seed,
    )
    assert parts.train_indices.shape == parts.train_labels.shape == (num_models, train_size)
    assert parts.validation_indices.shape == (validation_size,)
    assert {part.dtype for part in parts} == {np.dtype(np.int32)}
    validation = parts.validation_indices.tolist()
    assert validation == sorted(set(validation))
    assert set(range(pool_size)).issuperset(validation)
    for indices, labels in zip(parts.train_indices, parts.train_labels, strict=True):
        assert set(range(pool_size)).difference(validation).issuperset(indices.tolist())
        if not replacement:
            assert len(set(indices.tolist())) == train_size
        # One label per example, however often it is drawn.
        assert len(set(zip(indices, labels, strict=True))) == len(set(indices.tolist()))
        if label_noise == 0:
            np.testing.assert_array_equal(labels, dataset.pool_labels[indices])


@pytest.mark.parametrize("replacement", [False, True])
def test_model_m_does_not_depend_on_the_other_models(replacement: bool) -> None:
    few = draw(replacement=replacement)
    many = draw(replacement=replacement, num_models=7)
    np.testing.assert_array_equal(many.train_indices[:3], few.train_indices)
    np.testing.assert_array_equal(many.train_labels[:3], few.train_labels)
    np.testing.assert_array_equal(many.validation_indices, few.validation_indices)
    assert len(np.unique(many.train_indices, axis=0)) == 7


def test_the_seed_decides() -> None:
    first, again = (draw() for _ in range(2))
    other = draw(seed=6)
    for part, same, different in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(part, same)
        assert not np.array_equal(part, different)


def test_noise_changes_labels_only_and_grows() -> None:
    wrong = []
    clean = draw(label_noise=0.0)
    for label_noise in (0.1, 0.5, 0.9):
        noisy = draw(label_noise=label_noise)
        np.testing.assert_array_equal(noisy.train_indices, clean.train_indices)
        np.testing.assert_array_equal(noisy.validation_indices, clean.validation_indices)
        wrong.append(noisy.train_labels != clean.train_labels)
    assert np.all(wrong[0] <= wrong[1])
    assert np.all(wrong[1] <= wrong[2])


def test_noise_comes_at_its_rate_to_every_other_class_and_apart_per_model() -> None:
    num, p = 30_000, 0.3
    dataset = make_dataset(num + 1, num_classes=4)
    parts = draw_parts(
        dataset,
        num_models=2,
        train_size=num,
        validation_size=1,
        replacement=False,
        label_noise=p,
        seed=0,
    )
    clean = dataset.pool_labels[parts.train_indices]
    shift = (parts.train_labels - clean) % 4
    # Five standard errors of a binomial fraction.
    for step in (1, 2, 3):
        fraction = np.mean(shift == step, axis=1)
        np.testing.assert_allclose(fraction, p / 3, atol=5 * np.sqrt(p / 3 * (1 - p / 3) / num))
    wrong = np.zeros((2, num + 1), bool)
    for model in range(2):
        wrong[model, parts.train_indices[model]] = shift[model] > 0
    both = np.mean(wrong[0] & wrong[1])
    assert abs(both - p**2) < 5 * np.sqrt(p**2 * (1 - p**2) / num)


def test_training_samples_are_uniform_with_replacement() -> None:
    num_models = 2_000
    parts = draw_parts(
        make_dataset(6),
        num_models=num_models,
        train_size=5,
        validation_size=1,
        replacement=True,
        label_noise=0,
        seed=1,
    )
    fractions = np.bincount(parts.train_indices.ravel(), minlength=6) / (5 * num_models)
    fractions = np.delete(fractions, parts.validation_indices)
    np.testing.assert_allclose(fractions, 0.2, atol=5 * np.sqrt(0.16 / (5 * num_models)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_models": 0}, "num_models must be at least 1, got 0"),
        ({"train_size": 0}, "train_size must be at least 1, got 0"),
        ({"validation_size": -3}, "validation_size must be at least 1, got -3"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"label_noise": 1.0}, "label_noise must be a probability .* got 1.0"),
        ({"label_noise": -0.1}, "label_noise must be a probability .* got -0.1"),
        ({"label_noise": float("nan")}, "label_noise must be a probability .* got nan"),
        (
            {"validation_size": 60},
            "A validation set of 60 leaves nothing .* own has 60 examples; reduce the size",
        ),
        (
            {"train_size": 51},
            "51 without replacement and a validation set of 10 need 61 examples, but the "
            "training pool of own has 60; reduce the training size to at most 50",
        ),
    ],
)
def test_values_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(**change)


@pytest.mark.parametrize("value", [2.0, "2", True])
@pytest.mark.parametrize("name", ["num_models", "train_size", "validation_size", "seed"])
def test_sizes_are_integers(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{name} must be an integer, got {value!r}"):
        draw(**{name: value})


def test_the_largest_sample_fits_and_one_class_cannot_be_noisy() -> None:
    parts = draw(train_size=np.int64(50))
    everything = [*parts.train_indices[0], *parts.validation_indices]
    assert sorted(everything) == list(range(60))
    with pytest.raises(ValueError, match="needs at least 2 classes to exchange labels, got 1"):
        draw(make_dataset(num_classes=1))
