"""Problems with the signal and the covariance that were asked for."""

import jax
import numpy as np
import pytest

from jaxcomp.linear_regression import correlated_covariance, make_problem, random_problem


def test_random_problems_have_their_signal_and_others_are_refused():
    found = random_problem(jax.random.key(0), 7, signal=2.5)
    np.testing.assert_allclose(found.setting(20).signal, 2.5, rtol=1e-5)
    matrix = correlated_covariance(7, -0.5)
    assert matrix[1, 4] == -0.125
    found = random_problem(jax.random.key(0), 7, signal=2.5, covariance=matrix)
    np.testing.assert_allclose(found.setting(20).signal, 2.5, rtol=1e-5)
    for call, message in (
        (lambda: random_problem(jax.random.key(0), 0), "dim must be at least 1, got 0"),
        (lambda: random_problem(jax.random.key(0), 3, signal=-1.0), "signal must be finite and at"),
        (lambda: make_problem([[1.0]]), "flat list of finite numbers"),
        (lambda: make_problem([np.nan]), "flat list of finite numbers"),
        (lambda: make_problem([1.0, 2.0], np.eye(3)), r"shape \(2, 2\), got shape \(3, 3\)"),
        (lambda: make_problem([1.0, 2.0], np.ones((2, 2))), "must be positive definite"),
        (lambda: make_problem([1.0], noise_variance=0.0), "noise_variance must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
