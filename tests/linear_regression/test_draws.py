"""Drawn data sets against NumPy's solutions, and the two ways to draw against each other."""

import jax
import linear_regression_oracles as oracle
import numpy as np
import pytest

from jaxcomp.linear_regression import draw_solution, draw_solutions, make_problem

DIM, EXAMPLES = 6, 18
MAX_Z = 4.0


@pytest.fixture(scope="module")
def problem():
    truth, covariance = oracle.problem(DIM)
    return make_problem(truth, covariance, 0.7)


def test_a_drawn_data_set_is_solved(problem):
    # The same normal numbers, solved by NumPy's orthogonal decomposition.
    key = jax.random.key(5)
    solution = draw_solution(problem, key, num_examples=EXAMPLES, draws="examples")
    normal = np.asarray(jax.random.normal(key, (EXAMPLES, DIM + 1)), np.float64)
    inputs = normal[:, :DIM] @ np.linalg.cholesky(np.asarray(problem.covariance, np.float64)).T
    outputs = inputs @ np.asarray(problem.true_weights) + np.sqrt(0.7) * normal[:, DIM]
    weights, residual, _, _ = np.linalg.lstsq(inputs, outputs, rcond=None)
    np.testing.assert_allclose(solution.weights, weights, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(solution.empirical_risk, residual[0] / EXAMPLES, rtol=1e-4)
    gram = solution.gram_factor @ solution.gram_factor.T
    np.testing.assert_allclose(gram, inputs.T @ inputs, rtol=1e-4, atol=1e-4)


def test_both_ways_to_draw_have_the_same_distribution(problem):
    ways = []
    for draws in ("examples", "statistics"):
        found = draw_solutions(
            problem, jax.random.key(1), num_examples=EXAMPLES, num_datasets=4000, draws=draws
        )
        factor = np.asarray(found.gram_factor, np.float64)
        error = np.asarray(found.weights - problem.true_weights, np.float64)
        moved = np.einsum("mi,mij->mj", error, factor)
        ways.append(
            [
                found.empirical_risk,
                np.sum(moved**2, axis=1),
                np.einsum("mi,ij,mj->m", error, np.asarray(problem.covariance), error),
                2 * np.sum(np.log(np.diagonal(factor, axis1=1, axis2=2)), axis=1),
                factor[:, 2, 0] * factor[:, 0, 0],
                error[:, 0] * error[:, 3],
            ]
        )
    for first, second in zip(*ways, strict=True):
        a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
        spread = np.sqrt((a.var() + b.var()) / 4000)
        assert abs(a.mean() - b.mean()) < MAX_Z * spread
        # Second moments too: spreads that differ by a tenth would be seen.
        assert abs(np.log(a.std() / b.std())) < 0.1
