"""Ridge against its normal equations."""

import jax
import jax.numpy as jnp
import linear_regression_oracles as oracle
import numpy as np

from jaxcomp.linear_regression import draw_solutions, make_problem, ridge_solutions

DIM, EXAMPLES = 6, 18


def test_ridge_is_the_solution_of_its_normal_equations():
    truth, covariance = oracle.problem(DIM)
    problem = make_problem(truth, covariance, 0.7)
    solutions = draw_solutions(problem, jax.random.key(0), num_examples=EXAMPLES, num_datasets=7)
    penalties, steps = jnp.asarray([0.0, 3.0, 1e4]), jnp.asarray([0.0, 0.1])
    found = ridge_solutions(problem, solutions, penalties, steps, num_examples=EXAMPLES)
    factor = np.asarray(solutions.gram_factor, np.float64)
    gram = factor @ np.swapaxes(factor, -1, -2)
    right = np.einsum("mij,mj->mi", gram, np.asarray(solutions.weights, np.float64))
    for place, penalty in enumerate(penalties):
        expected = np.linalg.solve(gram + float(penalty) * np.eye(DIM), right[..., None])[..., 0]
        np.testing.assert_allclose(found.weights[:, place], expected, rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(found.empirical[:, 0, 0], solutions.empirical_risk, rtol=1e-4)
    rounded = np.round(np.asarray(found.weights[:, 1], np.float64), 1)
    error = rounded - np.asarray(problem.true_weights)
    expected = 0.7 + np.einsum("mi,ij,mj->m", error, np.asarray(problem.covariance), error)
    np.testing.assert_allclose(found.population[:, 1, 1], expected, rtol=1e-4)
