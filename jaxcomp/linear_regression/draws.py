"""Data sets by the thousand: drawn, solved by least squares, and risks of weights on them.

Every data set has the key `fold_in(key, number)`, so that neither batch nor chunk sizes change a
number.

Risks are exact given the sample and the weights: `L_mu = s2 + |What - w*|_Sigma^2`, and at the
minimiser W `L_S(What) = L_S(W) + (What-W)^T (G/n) (What-W)`; nothing is held out.

Axes: `M` data sets, `d` weights, `n` examples.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxcomp.linear_regression.problem import Problem, check_num_examples
from jaxcomp.numerics.linear_algebra import cholesky, cholesky_solve, solve_lower

Draws = Literal["examples", "statistics"]

# Data sets worked on at once, and drawn by one call.
BATCH_SIZE = 64
_DRAWN_AT_ONCE = 256


class Solution(NamedTuple):
    """Least squares on one data set (or on many), and what its risks are computed from.

    Attributes:
        weights: (..., d), W.
        gram_factor: (..., d, d), lower Cholesky factor L of G = X^T X.
        empirical_risk: (...), L_S(W).
    """

    weights: Float[Array, "... d"]
    gram_factor: Float[Array, "... d d"]
    empirical_risk: Float[Array, "..."]


def draw_solution(
    problem: Problem, key: Array, *, num_examples: int, draws: Draws = "statistics"
) -> Solution:
    """Draw one data set and solve it.

    Args:
        problem: the distribution of examples.
        key: typed PRNG key, consumed here.
        num_examples: n > d + 1, static.
        draws: "statistics" draws G, W and the residuals' norm from their joint distribution
            (Bartlett's decomposition; W given G is normal, the norm independent of both), at a
            cost that does not grow with n and in a program that serves every n; "examples" draws X
            and y and solves the normal equations (with one step of refinement).

    Returns:
        The solution; the two ways have the same distribution.

    Raises:
        ValueError: while tracing, if n <= d + 1 or on an unknown way.
    """
    num_inputs = num_inputs_of(problem, num_examples, draws)
    number = jnp.asarray(num_examples, float)
    return _draw_solution(problem, key, number, num_inputs=num_inputs)


def draw_solutions(
    problem: Problem,
    key: Array,
    *,
    num_examples: int,
    num_datasets: int,
    draws: Draws = "statistics",
) -> Solution:
    """Draw and solve many data sets; data set i has the key `fold_in(key, i)`.

    Args:
        problem: the distribution of examples.
        key: typed PRNG key.
        num_examples: n > d + 1.
        num_datasets: M >= 1.
        draws: see `draw_solution`.

    Returns:
        The solutions, with a leading axis M.

    Raises:
        ValueError: if n <= d + 1 or on an unknown way to draw.
    """
    num_inputs = num_inputs_of(problem, num_examples, draws)
    number = jnp.asarray(num_examples, float)
    # Always as many at once, so that another number of data sets compiles nothing.
    starts = range(0, num_datasets, _DRAWN_AT_ONCE)
    parts = [draw_some(problem, number, key, start, num_inputs=num_inputs) for start in starts]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:num_datasets], *parts)


def num_inputs_of(problem: Problem, num_examples: int, draws: Draws) -> int | None:
    """Return how many inputs are drawn, None for statistics; check both."""
    check_num_examples(problem.true_weights.shape[0], num_examples)
    if draws not in ("examples", "statistics"):
        raise ValueError(f"draws must be 'examples' or 'statistics', got {draws!r}.")
    return num_examples if draws == "examples" else None


@partial(jax.jit, static_argnames=("num_inputs",))
def _draw_solution(
    problem: Problem, key: Array, num_examples: Float[Array, ""], *, num_inputs: int | None
) -> Solution:
    factor = cholesky(problem.covariance)
    found = draw(problem, factor, key[None], num_examples, num_inputs)
    return jax.tree.map(lambda leaf: leaf[0], found)


def draw(
    problem: Problem,
    covariance_factor: Float[Array, "d d"],
    keys: Array,
    num_examples: Float[Array, ""],
    num_inputs: int | None,
) -> Solution:
    """Draw and solve a data set for every key, of `num_inputs` examples or by statistics."""
    with jax.default_matmul_precision("highest"):
        if num_inputs is None:
            return _draw_statistics(problem, covariance_factor, keys, num_examples)
        return _draw_examples(problem, covariance_factor, keys, num_inputs)


def _draw_examples(
    problem: Problem, covariance_factor: Float[Array, "d d"], keys: Array, num_examples: int
) -> Solution:
    truth = problem.true_weights
    dim = truth.shape[0]
    # Inputs and noise from one call: generators are what compiling costs most.
    shape = (num_examples, dim + 1)
    normal = jax.vmap(lambda key: jax.random.normal(key, shape, truth.dtype))(keys)
    inputs = normal[..., :dim] @ covariance_factor.T
    outputs = inputs @ truth + jnp.sqrt(problem.noise_variance) * normal[..., dim]
    gram_factor = cholesky(jnp.einsum("mni,mnj->mij", inputs, inputs))

    def solve(right: Float[Array, "M n"]) -> Float[Array, "M d"]:
        moments = jnp.einsum("mni,mn->mi", inputs, right)
        return cholesky_solve(gram_factor, moments[..., None])[..., 0]

    def residual(weights: Float[Array, "M d"]) -> Float[Array, "M n"]:
        return outputs - jnp.einsum("mni,mi->mn", inputs, weights)

    weights = solve(outputs)
    # The normal equations square the condition number; one refinement wins the digits back.
    weights = weights + solve(residual(weights))
    return Solution(weights, gram_factor, jnp.mean(residual(weights) ** 2, axis=-1))


def _draw_statistics(
    problem: Problem,
    covariance_factor: Float[Array, "d d"],
    keys: Array,
    num_examples: Float[Array, ""],
) -> Solution:
    truth = problem.true_weights
    dim, dtype = truth.shape[0], truth.dtype
    n = num_examples.astype(dtype)
    # Degrees of freedom of the diagonal of G's factor, then of the residuals.
    degrees = n - jnp.append(jnp.arange(dim), dim).astype(dtype)

    def draw(key: Array) -> tuple[Array, Array]:
        chi_key, normal_key = jax.random.split(key)
        chi_squared = 2 * jax.random.gamma(chi_key, degrees / 2, dtype=dtype)
        return chi_squared, jax.random.normal(normal_key, (dim + 1, dim), dtype)

    chi_squared, normal = jax.vmap(draw)(keys)
    roots = jnp.sqrt(chi_squared[:, :dim, None]) * jnp.eye(dim, dtype=dtype)
    gram_factor = covariance_factor @ (jnp.tril(normal[:, :dim], -1) + roots)
    noise = solve_lower(gram_factor, normal[:, dim, :, None], transposed=True)[..., 0]
    weights = truth + jnp.sqrt(problem.noise_variance) * noise
    risk = problem.noise_variance * chi_squared[:, dim] / n
    return Solution(weights, gram_factor, risk)


@partial(jax.jit, static_argnames=("num_inputs",))
def draw_some(
    problem: Problem,
    num_examples: Float[Array, ""],
    key: Array,
    start: Int[Array, ""],
    *,
    num_inputs: int | None,
) -> Solution:
    """Draw and solve as many data sets as one call does, from a number on."""
    factor = cholesky(problem.covariance)

    def batch(numbers: Int[Array, " M"]) -> Solution:
        return draw(problem, factor, keys_of(key, numbers), num_examples, num_inputs)

    return map_batches(batch, start + jnp.arange(_DRAWN_AT_ONCE, dtype=jnp.int32), BATCH_SIZE)


def keys_of(key: Array, numbers: Int[Array, " M"]) -> Array:
    """The keys of data sets by their numbers."""
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)


def hessian_diagonal(
    gram_factor: Float[Array, "... d d"], num_examples: Float[Array, ""]
) -> Float[Array, "... d"]:
    """Diagonal of `(2/n) G`, the Hessian of L_S."""
    return 2 / num_examples * jnp.sum(gram_factor * gram_factor, axis=-1)


def map_batches(function: Callable[[Any], Any], rows: Any, batch_size: int) -> Any:
    """Apply a function of batches to batch after batch of the leading axis.

    The last batch is filled up with copies, and cut: of another size it would be a second program,
    beside the first.
    """
    num_rows = jax.tree.leaves(rows)[0].shape[0]
    size = min(batch_size, num_rows)
    places = jnp.minimum(jnp.arange(-(-num_rows // size) * size), num_rows - 1).reshape(-1, size)
    found = lax.map(lambda place: function(jax.tree.map(lambda leaf: leaf[place], rows)), places)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:num_rows], found)


def risks_of(
    problem: Problem,
    covariance_factor: Float[Array, "d d"],
    solution: Solution,
    weights: Float[Array, "M *shape d"],
    num_examples: Float[Array, ""],
) -> tuple[Float[Array, "M *shape"], Float[Array, "M *shape"]]:
    """L_S and L_mu of weights; the axes between the first and the last are the weights' own."""
    flat = weights.reshape(weights.shape[0], -1, weights.shape[-1])
    with jax.default_matmul_precision("highest"):
        moved = jnp.einsum("mpi,mij->mpj", flat - solution.weights[:, None], solution.gram_factor)
        error = (flat - problem.true_weights) @ covariance_factor
    paid = jnp.sum(moved * moved, axis=-1) / num_examples
    excess = jnp.sum(error * error, axis=-1)
    shape = weights.shape[:-1]
    return (
        (solution.empirical_risk[:, None] + paid).reshape(shape),
        (problem.noise_variance + excess).reshape(shape),
    )
