"""Estimators that compress nothing: ridge and James-Stein, on drawn data sets.

Axes: `M` data sets, `P` penalties, `T` steps, `d` weights.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

from jaxcomp.linear_regression.draws import BATCH_SIZE, Solution, map_batches, risks_of
from jaxcomp.linear_regression.problem import Problem
from jaxcomp.numerics.linear_algebra import cholesky, solve_shifted


class RidgeSolutions(NamedTuple):
    """Ridge, rounded, on many data sets.

    Attributes:
        weights: (M, P, d), not rounded.
        empirical: (M, P, T), L_S of the weights rounded to multiples of each step.
        population: (M, P, T), L_mu.
    """

    weights: Float[Array, "M P d"]
    empirical: Float[Array, "M P T"]
    population: Float[Array, "M P T"]


@jax.jit
def ridge_solutions(
    problem: Problem,
    solutions: Solution,
    penalties: Float[Array, " P"],
    steps: Float[Array, " T"],
    *,
    num_examples: Float[Array, ""] | int,
) -> RidgeSolutions:
    """Solve drawn data sets by ridge at every penalty, round the weights, and score them.

    Args:
        problem: the distribution of examples.
        solutions: from `draw_solutions`, with a leading axis M.
        penalties: (P,), lambda >= 0 on `|w|^2`, beside the *sum* of squared residuals; 0 is least
            squares.
        steps: (T,), the weights are rounded to multiples of them; 0 leaves them as they are.
        num_examples: n, of the drawn data sets.

    Returns:
        Weights and risks.
    """
    number = jnp.asarray(num_examples).astype(problem.true_weights.dtype)
    factor = cholesky(problem.covariance)

    def batch(solution: Solution) -> RidgeSolutions:
        weights = ridge(solution, penalties)
        step = jnp.where(steps > 0, steps, 1)[:, None]
        rounded = jnp.round(weights[..., None, :] / step) * step
        rounded = jnp.where(steps[:, None] > 0, rounded, weights[..., None, :])
        return RidgeSolutions(weights, *risks_of(problem, factor, solution, rounded, number))

    return map_batches(batch, solutions, BATCH_SIZE)


def default_penalties(problem: Problem, num_rates: int) -> NDArray[np.float64]:
    """Return a grid of ridge penalties: four decades, highest first, about `d s2/|w*|^2`.

    That one is the best for true weights drawn from a normal distribution of their length. The
    grid runs from strong to weak, as the rates do from low to high.
    """
    truth = np.asarray(problem.true_weights, np.float64)
    length = max(float(truth @ truth), 1e-6)
    centre = truth.size * float(problem.noise_variance) / length
    return centre * np.logspace(2, -2, num_rates)


def ridge(solution: Solution, penalties: Float[Array, " P"]) -> Float[Array, "M P d"]:
    """`(G + lambda I)^{-1} G W = W - lambda (G + lambda I)^{-1} W` for every lambda."""
    weights, factor = solution.weights, solution.gram_factor
    with jax.default_matmul_precision("highest"):
        gram = jnp.einsum("mik,mjk->mij", factor, factor)
    shrunk = solve_shifted(gram, penalties, weights)
    return weights[:, None] - penalties[:, None] * shrunk


def james_stein(solution: Solution, num_examples: Float[Array, ""]) -> Float[Array, "M d"]:
    """Baranchik's positive-part shrinkage, which needs to know neither s2 nor w*."""
    dim = solution.weights.shape[-1]
    residual = num_examples * solution.empirical_risk
    moved = jnp.einsum("mij,mi->mj", solution.gram_factor, solution.weights)
    explained = jnp.sum(moved * moved, axis=-1)
    share = max(dim - 2, 0) / (num_examples - dim + 2)
    factor = 1 - share * residual / jnp.where(explained > 0, explained, 1)
    return jnp.maximum(factor, 0)[:, None] * solution.weights
