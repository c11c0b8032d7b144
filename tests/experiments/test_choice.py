"""A choice made on the same networks that it is tested on: how often a true null is rejected."""

import numpy as np
import pytest

from jaxcomp.evaluation.statistics import crossed_mean
from jaxcomp.experiments.choice import choose, decide_choice


def test_the_lowest_mean_is_chosen():
    scores = np.array([[3.0, 1.0], [1.0, 2.0], [2.0, 2.0]])
    assert choose(scores) == 1
    assert choose(scores, slice(1, 2)) == 0


def test_an_effect_is_found_with_the_interval_of_the_chosen():
    rng = np.random.default_rng(0)
    effects = np.array([0.0, -1.0, 0.2])
    differences = effects[:, None, None] + 0.1 * rng.standard_normal((3, 6, 50))
    found = decide_choice(differences.mean(axis=2), lambda place: differences[place])
    assert found.place == 1
    assert found.interval == crossed_mean(differences[1])
    assert found.p_value < 1e-4


def test_luck_of_the_networks_is_allowed_for():
    """Candidates suit single networks by luck, on the validation set as on the test set."""
    rng, plain, honest = np.random.default_rng(1), 0, 0
    for _ in range(200):
        luck = rng.standard_normal((20, 6))
        differences = luck[..., None] + 0.1 * rng.standard_normal((20, 6, 8))
        found = decide_choice(luck, lambda place, d=differences: d[place])
        plain += found.interval.p_value < 0.05
        honest += found.p_value < 0.05
    # Five in a hundred is meant; three standard errors above it.
    assert honest / 200 < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
    assert plain / 200 > 0.2


def test_one_network_has_no_halves():
    difference = np.random.default_rng(2).standard_normal((1, 40)) - 1
    found = decide_choice(np.array([[1.0], [0.0]]), lambda _: difference)
    assert found.place == 1
    assert found.p_value == pytest.approx(crossed_mean(difference).p_value)
