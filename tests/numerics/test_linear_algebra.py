"""Decompositions against NumPy in float64, and that no program has two that could run at once."""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decompositions import batched_decompositions, unordered_decompositions
from slow_cases import some_slow

import jaxcomp
from jaxcomp.curvature import gauss_newton_diagonal
from jaxcomp.curvature.policy import _raise_eigenvalues
from jaxcomp.linear_regression import (
    ADAPTIVE,
    CHANNELS,
    CONTROLS,
    DesignedCodebooks,
    Solution,
    draws,
    random_problem,
    ridge_solutions,
    simulation,
)
from jaxcomp.linear_regression.codebooks import merge
from jaxcomp.numerics.linear_algebra import (
    cholesky,
    cholesky_solve,
    eigh,
    solve_lower,
    solve_shifted,
)
from jaxcomp.quantizers import vector_kmeans
from jaxcomp.rate_distortion import blahut_arimoto

pytestmark = pytest.mark.usefixtures("strict_promotion")

# One row; two; odd; even; where LAPACK takes over (70).
SIZES = (1, 2, 5)


def matrices(dim, num=3, condition=100.0, seed=0):
    """Positive definite, of the given condition number and of very different scales."""
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(num, dim, dim)))[0]
    values = np.geomspace(1, condition, dim) * 10.0 ** rng.integers(-9, 9, (num, 1))
    return (rotation * values[:, None]) @ np.swapaxes(rotation, 1, 2)


def largest(values):
    return np.max(np.abs(values), axis=(-2, -1), keepdims=True)


def everything(matrix, right, shifts):
    """One program for all functions."""
    factor = cholesky(matrix)
    return (
        factor,
        eigh(matrix),
        solve_lower(factor, right),
        solve_lower(factor, right, transposed=True),
        cholesky_solve(factor, right),
        solve_shifted(matrix, shifts, right[..., 0]),
    )


compiled = jax.jit(everything)
SHIFTS = np.asarray([0.0, 1e-2, 1.0, 1e3], np.float32)


def right_sides(dim):
    return np.random.default_rng(1).normal(size=(3, dim, 2)).astype(np.float32)


@pytest.mark.parametrize("dim", some_slow([*SIZES, 70], 2))
def test_cholesky_and_its_solutions(dim):
    given, right = matrices(dim).astype(np.float32), right_sides(dim)
    exact = np.linalg.cholesky(given.astype(np.float64))
    factor, _, *solutions, _ = compiled(given, right, SHIFTS)
    eps = np.finfo(np.float32).eps
    rebuilt = np.asarray(factor, np.float64) @ np.swapaxes(factor, 1, 2)
    assert np.all(np.abs(rebuilt - given) <= 4 * dim * eps * largest(given))
    np.testing.assert_array_equal(np.triu(factor, 1), 0)
    assert np.all(np.abs(factor - exact) <= 100 * 4 * eps * largest(exact))
    systems = exact, np.swapaxes(exact, 1, 2), given.astype(np.float64)
    for found, matrix in zip(solutions, systems, strict=True):
        expected = np.linalg.solve(matrix, right.astype(np.float64))
        # In proportion to the condition number.
        assert np.all(np.abs(found - expected) <= 100 * 8 * eps * largest(expected))


@pytest.mark.parametrize("dim", some_slow([*SIZES, 70], 2))
def test_eigenvalues_and_eigenvectors(dim):
    given = matrices(dim).astype(np.float32)
    given[0] -= 0.3 * largest(given)[0] * np.eye(dim, dtype=np.float32)  # indefinite
    given[1] = 2 * np.eye(dim)  # all the same
    _, found, *_ = compiled(given, right_sides(dim), SHIFTS)
    values, vectors = (np.asarray(part, np.float64) for part in found)
    tolerance = 4 * max(dim, 4) * np.finfo(np.float32).eps * largest(given)
    expected = np.linalg.eigvalsh(given.astype(np.float64))
    assert np.all(np.abs(values - expected) <= tolerance[..., 0])
    assert np.all(np.diff(values, axis=-1) >= 0)
    rebuilt = (vectors * values[:, None]) @ np.swapaxes(vectors, 1, 2)
    assert np.all(np.abs(rebuilt - given) <= tolerance)
    product = np.swapaxes(vectors, 1, 2) @ vectors
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(dim), given.shape), atol=2e-6 * dim)


@pytest.mark.parametrize("dim", some_slow(SIZES, 2))
def test_shifted_systems(dim):
    given, right = matrices(dim).astype(np.float32), np.ones((3, dim, 2), np.float32)
    right[:, ::2] = -2
    # Shifts in proportion to the matrices, one set of them for all.
    given = given / largest(given)
    *_, found = compiled(given, right, SHIFTS)
    whole = given[:, None].astype(np.float64) + SHIFTS[:, None, None] * np.eye(dim)
    expected = np.linalg.solve(whole, right[:, None, :, :1].astype(np.float64))[..., 0]
    error = np.max(np.abs(found - expected), axis=-1) / np.max(np.abs(expected), axis=-1)
    assert np.all(error <= 100 * 8 * np.finfo(np.float32).eps)


def test_double_precision(x64):
    given = matrices(7, condition=1e8)

    @jax.jit
    def solve(matrix):
        return eigh(matrix)[0], cholesky(matrix), solve_shifted(matrix, jnp.zeros(1), ones)[:, 0]

    ones = jnp.ones((3, 7))
    values, factor, found = (np.asarray(part) for part in solve(given))
    expected = np.linalg.eigvalsh(given)
    assert np.all(np.abs(values - expected) <= 1e-14 * largest(given)[..., 0])
    assert np.all(np.abs(factor @ np.swapaxes(factor, 1, 2) - given) <= 1e-14 * largest(given))
    residual = np.einsum("mij,mj->mi", given, found) - 1
    assert np.max(np.abs(residual)) < 1e-6  # condition number times 2e-16, and a bit


def test_what_is_not_definite_or_not_finite_is_nan_by_itself():
    given = np.stack([np.eye(5), -np.eye(5), np.full((5, 5), np.nan)]).astype(np.float32)
    factor, (values, vectors), *_ = compiled(given, right_sides(5), SHIFTS)
    np.testing.assert_array_equal(factor[0], given[0])
    assert np.all(np.isnan(factor[1:]))
    np.testing.assert_array_equal(values[:2], [[1] * 5, [-1] * 5])
    assert np.all(np.isnan(values[2]))
    assert np.all(np.isnan(vectors[2]))


@pytest.mark.parametrize("is_nested", some_slow([False, True], True))
def test_batches_change_nothing(is_nested):
    given, right = matrices(5).astype(np.float32), np.ones((3, 5, 2), np.float32)
    shifts = np.ones_like(SHIFTS)
    whole = jax.tree.map(np.asarray, compiled(given, right, shifts))
    if not is_nested:
        alone, own = compiled(given[2], right[2], shifts), jax.tree.map(lambda x: x[2], whole)
    else:
        nested = jax.vmap(jax.vmap(everything, in_axes=(0, None, None)), in_axes=(0, 0, None))
        found = jax.jit(nested)(given[None], right[:1], shifts)
        alone, own = jax.tree.map(lambda x: x[0], found), whole
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5), alone, own)


def test_no_module_but_one_calls_a_decomposition_of_jax():
    package = Path(jaxcomp.__file__).parent
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        # NumPy's are calls on the host.
        if re.search(r"(?<!np)\.linalg\b|import linalg", path.read_text())
    }
    assert found == {"numerics/linear_algebra.py"}


def test_the_walk_finds_what_it_is_to_find():
    def both(a):
        return jnp.linalg.cholesky(a), jnp.linalg.cholesky(2 * a)

    def one_after_the_other(a):
        first = jnp.linalg.cholesky(a)
        return jnp.linalg.eigh(first @ a)

    def in_batches(a):
        return jax.lax.map(jnp.linalg.cholesky, a, batch_size=2)

    one = np.eye(3, dtype=np.float32)
    three = np.broadcast_to(one, (3, 3, 3))
    assert unordered_decompositions(both, one)
    assert unordered_decompositions(jax.jit(lambda a: jax.vmap(both)(a)), three)
    assert not unordered_decompositions(one_after_the_other, one)
    # A scan, and beside it what is left over.
    assert unordered_decompositions(in_batches, three)
    assert not batched_decompositions(one_after_the_other, one)
    assert batched_decompositions(jax.vmap(one_after_the_other), three)
    assert batched_decompositions(in_batches, three)


def ones(*shape):
    return np.ones(shape, np.float32)


BLOCKS = [ones(2, 40, 40), ones(3, 40, 40)]
POINTS = ones(2, 12, 40)


def _groups_of_vectors(form):
    def solve(points):
        return vector_kmeans(
            points,
            num_clusters=3,
            initial_centroids=points[:, :3],
            penalty_form=form,
            diameter_penalty=0.1,
        )

    return solve, (POINTS,)


def _outputs_loss(outputs, target):
    return jnp.sum((outputs - target) ** 4)


def _gauss_newton(inputs):
    weights = {"a": ones(3, 40), "b": ones(40, 40)}
    batch = (inputs, ones(5, 40))
    return gauss_newton_diagonal(
        lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], weights, batch, loss=_outputs_loss
    )


def _chunk_of_data_sets(dim, num_inputs):
    problem = random_problem(jax.random.key(0), dim)
    setup = simulation._Setup(
        problem=problem,
        codebooks=(books := DesignedCodebooks.empty(3)),
        merged=merge(books),
        rates=ones(3),
        num_clusters=np.arange(1, 4, dtype=np.int32),
        penalties=ones(3),
        diameter_penalty=np.float32(0.05),
        num_examples=np.float32(dim + 20),
        key=jax.random.key(1),
    )
    run = partial(
        simulation._chunk,
        # Designed codebooks decompose nothing.
        compressors=(*CHANNELS, *CONTROLS, *ADAPTIVE),
        num_inputs=num_inputs,
        max_clusters=3,
        batch_size=4,
    )
    return run, (setup, np.arange(6, dtype=np.int32))


def _drawing(dim, num_inputs):
    problem = random_problem(jax.random.key(0), dim)
    run = partial(draws.draw_some, problem, num_inputs=num_inputs)
    return run, (np.float32(dim + 20), jax.random.key(1), np.int32(0))


def _ridge(dim):
    problem = random_problem(jax.random.key(0), dim)
    found = Solution(ones(9, dim), ones(9, dim, dim), ones(9))
    run = partial(ridge_solutions, num_examples=dim + 20)
    return run, (problem, found, ones(2), ones(2))


def _rate_distortion(size):
    def run(slopes):
        p = jnp.full((size,), 1 / size)
        distances = jnp.abs(jnp.arange(size)[:, None] - jnp.arange(size)[None]).astype(jnp.float32)
        return blahut_arimoto(p, distances, slope_nats=slopes)

    return run, (np.float32([0.5, 1]),)


# Every program of the package and its commands that decomposes matrices: those that loops of our
# own take, and those that are left to LAPACK.
PROGRAMS = {
    "linear algebra": lambda: (
        everything,
        (ones(3, 70, 70), ones(3, 70, 1), ones(2)),
    ),
    "linear algebra, mapped": lambda: (
        jax.vmap(jax.vmap(everything, in_axes=(0, 0, None)), in_axes=(0, 0, None)),
        (ones(2, 3, 70, 70), ones(2, 3, 70, 1), ones(2)),
    ),
    "blocks": lambda: (
        lambda b: list(_raise_eigenvalues(b, 0.1, zeros="median")),
        (BLOCKS,),
    ),
    "vectors": lambda: _groups_of_vectors("none"),
    "vectors, published": lambda: _groups_of_vectors("published"),
    "vectors, monotone": lambda: _groups_of_vectors("monotone"),
    "loss of outputs": lambda: (_gauss_newton, (ones(5, 3),)),
    "data sets by statistics": lambda: _chunk_of_data_sets(6, None),
    "data sets by statistics, large": lambda: _chunk_of_data_sets(70, None),
    "data sets by examples, large": lambda: _chunk_of_data_sets(70, 90),
    "drawn by statistics, large": lambda: _drawing(70, None),
    "drawn by examples, large": lambda: _drawing(70, 90),
    "ridge": lambda: _ridge(6),
    "ridge, large": lambda: _ridge(70),
    "rate-distortion": lambda: _rate_distortion(6),
    "rate-distortion, large": lambda: _rate_distortion(70),
}


# Small ones call nothing: one of them stands for all. The slow large ones are parts of others.
@pytest.mark.parametrize(
    "name",
    some_slow(
        PROGRAMS,
        "data sets by statistics",
        "rate-distortion",
        "linear algebra",
        "vectors",
        "vectors, published",
        "drawn by statistics, large",
        "drawn by examples, large",
    ),
)
def test_no_program_has_two_calls_that_could_run_at_once(name):
    # Rank promotion is a matter of the kernels' own tests.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        function, arguments = PROGRAMS[name]()
        assert not batched_decompositions(function, *arguments)
        if name.startswith("linear algebra"):
            return  # of several functions, which nothing orders
        assert not unordered_decompositions(function, *arguments)
