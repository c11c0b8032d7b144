"""Bounds of the rows: they fail no more often than delta where the truth is known."""

import numpy as np
import pytest
from scipy.stats import beta, binom

from jaxcomp.bounds import kl_inverse, occam
from jaxcomp.certificates.claims import bound_of_draws, bound_through_file, file_bound

DELTA, NUM_DRAWS = 0.05, 2_000
# So many networks that a file of 3 bits tells, of which each errs on examples of its own.
NUM_NETWORKS, BITS = 8, 3.0
NUM_EXAMPLES, ERROR = 100, 0.3


def is_too_often(bound, error):
    """Whether failures are shown to be more frequent than delta, at 99.9 %."""
    failures = int(np.sum(np.asarray(bound) < error))
    return failures > 0 and beta.ppf(0.001, failures, NUM_DRAWS - failures + 1) > DELTA


def fewest_errors(rng, error, num_networks=NUM_NETWORKS):
    """Errors of the network that does best on a sample, in each of many samples."""
    errors = rng.binomial(NUM_EXAMPLES, np.broadcast_to(error, (num_networks, NUM_DRAWS)))
    return errors.min(axis=0)


def test_data_free_covers():
    errors = fewest_errors(np.random.default_rng(0), ERROR)
    assert not is_too_often(file_bound(errors, NUM_EXAMPLES, BITS, DELTA), ERROR)
    # What chose the network has a price.
    assert is_too_often(file_bound(errors, NUM_EXAMPLES, 0.0, DELTA), ERROR)


def test_data_split_covers():
    rng = np.random.default_rng(1)
    # The prior is the better of two on examples that are not counted, and right on all of those.
    error = np.where(rng.random(NUM_DRAWS) < 0.5, ERROR, 0.25)
    errors = fewest_errors(rng, error)
    assert not is_too_often(file_bound(errors, NUM_EXAMPLES, BITS, DELTA), error)
    with_seen = file_bound(errors, 2 * NUM_EXAMPLES, BITS, DELTA)
    assert is_too_often(with_seen, error)


def test_held_out_covers():
    errors = fewest_errors(np.random.default_rng(2), ERROR, num_networks=1)
    bound = file_bound(errors, NUM_EXAMPLES, 0.0, DELTA)
    assert not is_too_often(bound, ERROR)
    assert is_too_often(file_bound(errors, NUM_EXAMPLES, 0.0, 2 * DELTA), ERROR)


def test_original_through_file_covers():
    rng = np.random.default_rng(3)
    errors = fewest_errors(rng, ERROR)
    # The original is wrong wherever the two disagree, and wherever the file is.
    apart, num_unlabelled = 0.1, 40
    disagreements = rng.binomial(num_unlabelled, apart, NUM_DRAWS)
    arguments = (errors, NUM_EXAMPLES, BITS, disagreements, num_unlabelled, DELTA)
    bound = bound_through_file(*arguments)
    assert not is_too_often(bound, ERROR + apart)
    assert is_too_often(file_bound(errors, NUM_EXAMPLES, BITS, DELTA), ERROR + apart)
    # Both parts are bounds of their own, at their share of delta.
    of_file = occam(errors / NUM_EXAMPLES, BITS, num_examples=NUM_EXAMPLES, delta=0.1 * DELTA)
    rest = occam(disagreements / num_unlabelled, 0, num_examples=num_unlabelled, delta=0.9 * DELTA)
    np.testing.assert_allclose(bound, np.minimum(of_file + rest, 1), rtol=1e-6)


def test_random_network_covers():
    rng = np.random.default_rng(4)
    # The posterior is uniform over the four networks of 10^6 that do best on the sample, under a
    # uniform prior: the least of many uniform numbers are spaced by exponential ones.
    num_networks, num_best, num_draws_of_q = 1e6, 4, 20
    places = np.cumsum(rng.exponential(size=(num_best, NUM_DRAWS)), axis=0) / num_networks
    best = binom.ppf(places, NUM_EXAMPLES, ERROR) / NUM_EXAMPLES
    drawn = rng.integers(num_best, size=(num_draws_of_q, NUM_DRAWS))
    error = np.take_along_axis(best, drawn, axis=0).mean(axis=0)
    complexity = np.log(num_networks / num_best)
    options = (NUM_EXAMPLES, num_draws_of_q, DELTA)
    assert not is_too_often(bound_of_draws(error, complexity, *options), ERROR)
    # What chose the four has a price, and their error is known from few draws.
    without = kl_inverse(error, np.log(1 / DELTA) / NUM_EXAMPLES)
    assert is_too_often(without, ERROR)


def test_draws_have_their_share():
    bound = bound_of_draws(0.1, 50.0, 1_000, 200, DELTA)
    error = kl_inverse(0.1, np.log(1 / (0.9 * DELTA)) / 200)
    expected = kl_inverse(error, (50 + np.log(2 * np.sqrt(1_000) / (0.1 * DELTA))) / 1_000)
    assert bound == pytest.approx(float(expected), rel=1e-6)
