"""Levels moved one by one, against counting all errors anew."""

import numpy as np
import pytest
from scipy.special import rel_entr

from jaxcomp.experiments.small_descriptions.refinement import errors_per_bit, refine


def errors_of(features, labels, levels, offset):
    rows = np.concatenate([features, np.full((1, len(labels)), 2.0)])
    scores = offset + levels.T @ rows
    own = scores[labels, np.arange(len(labels))]
    others = np.where(np.arange(len(scores))[:, None] == labels, -np.inf, scores).max(0)
    return int(np.sum(own <= others))


def bits_of(levels):
    _, counts = np.unique(levels, return_counts=True)
    return counts @ np.log2(counts.sum() / counts) + 3 * len(counts)


def greedy(features, labels, levels, offset, most, price):
    """Try every move of one class after the other, and make the best if it pays."""
    levels, idle, number = levels.copy(), 0, 0
    while idle < levels.shape[1]:
        now = errors_of(features, labels, levels, offset) + price * bits_of(levels[:-1])
        best = (1e-3, None)
        for row in range(len(levels)):
            for step in (1, -1, -levels[row, number]):
                moved = levels.copy()
                moved[row, number] += step
                if step == 0 or (row < len(levels) - 1 and abs(moved[row, number]) > most):
                    continue
                then = errors_of(features, labels, moved, offset) + price * bits_of(moved[:-1])
                if now - then > best[0]:
                    best = (now - then, moved)
        idle, number = (idle + 1 if best[1] is None else 0), (number + 1) % levels.shape[1]
        levels = levels if best[1] is None else best[1]
    return levels


@pytest.mark.parametrize("price", [0.3, 4.0])
def test_moves_are_those_of_trying_them_all(price):
    rng = np.random.default_rng(2)
    # Quarters: sums are exact in float32, ties alike everywhere.
    features = np.round(4 * rng.standard_normal((5, 90))).astype(np.float32) / 4
    true = rng.integers(-2, 3, (5, 3))
    noise = rng.standard_normal((3, 90))
    labels = (true.T @ features + noise).argmax(0)
    start = rng.integers(-1, 2, (6, 3))
    offset = np.round(4 * rng.standard_normal((3, 90))).astype(np.float32) / 4
    found = refine(
        features, labels, start[:-1], start[-1], offset, most=2, bias_unit=2.0, price=price
    )
    levels = np.concatenate([found.weights, np.asarray(found.bias)[None]])
    np.testing.assert_array_equal(levels, greedy(features, labels, start, offset, 2, price))
    assert int(found.num_errors) == errors_of(features, labels, levels, offset)
    assert int(found.num_moves) > 0


def test_errors_per_bit_is_a_slope():
    def divergence(error, bound):
        return rel_entr([error, 1 - error], [bound, 1 - bound]).sum()

    slope = (divergence(0.0301, 0.08) - divergence(0.0299, 0.08)) / 2e-4
    assert errors_per_bit(0.03, 0.08) == pytest.approx(-np.log(2) / slope, rel=1e-4)
