"""Decompositions against NumPy in float64, and that no program has two that could run at once."""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decompositions import batched_decompositions, unordered_decompositions

import jaxcomp
from jaxcomp.linear_algebra import cholesky, cholesky_solve, eigh, solve_lower, solve_shifted

pytestmark = pytest.mark.usefixtures("strict_promotion")

# One row; two; odd; even; where LAPACK takes over (70).
SIZES = (1, 2, 5, 12)


def matrices(dim, num=3, condition=100.0, seed=0):
    """Positive definite, of the given condition number and of very different scales."""
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(num, dim, dim)))[0]
    values = np.geomspace(1, condition, dim) * 10.0 ** rng.integers(-9, 9, (num, 1))
    return (rotation * values[:, None]) @ np.swapaxes(rotation, 1, 2)


def largest(values):
    return np.max(np.abs(values), axis=(-2, -1), keepdims=True)


@pytest.mark.parametrize("dim", [*SIZES, 70])
def test_cholesky_and_its_solutions(dim):
    given = matrices(dim).astype(np.float32)
    exact = np.linalg.cholesky(given.astype(np.float64))
    factor = jax.jit(cholesky)(given)
    eps = np.finfo(np.float32).eps
    rebuilt = np.asarray(factor, np.float64) @ np.swapaxes(factor, 1, 2)
    assert np.all(np.abs(rebuilt - given) <= 4 * dim * eps * largest(given))
    np.testing.assert_array_equal(np.triu(factor, 1), 0)
    assert np.all(np.abs(factor - exact) <= 100 * 4 * eps * largest(exact))
    right = np.random.default_rng(1).normal(size=(3, dim, 2)).astype(np.float32)
    for solve, matrix in (
        (solve_lower, exact),
        (lambda a, b: solve_lower(a, b, transposed=True), np.swapaxes(exact, 1, 2)),
        (cholesky_solve, given.astype(np.float64)),
    ):
        expected = np.linalg.solve(matrix, right.astype(np.float64))
        found = jax.jit(solve)(factor, right)
        # In proportion to the condition number.
        assert np.all(np.abs(found - expected) <= 100 * 8 * eps * largest(expected))


@pytest.mark.parametrize("dim", [*SIZES, 70])
def test_eigenvalues_and_eigenvectors(dim):
    given = matrices(dim).astype(np.float32)
    given[0] -= 0.3 * largest(given)[0] * np.eye(dim, dtype=np.float32)  # indefinite
    given[1] = 2 * np.eye(dim)  # all the same
    values, vectors = (np.asarray(part, np.float64) for part in jax.jit(eigh)(given))
    tolerance = 4 * max(dim, 4) * np.finfo(np.float32).eps * largest(given)
    expected = np.linalg.eigvalsh(given.astype(np.float64))
    assert np.all(np.abs(values - expected) <= tolerance[..., 0])
    assert np.all(np.diff(values, axis=-1) >= 0)
    rebuilt = (vectors * values[:, None]) @ np.swapaxes(vectors, 1, 2)
    assert np.all(np.abs(rebuilt - given) <= tolerance)
    product = np.swapaxes(vectors, 1, 2) @ vectors
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(dim), given.shape), atol=2e-6 * dim)


@pytest.mark.parametrize("dim", SIZES)
def test_shifted_systems(dim):
    given, right = matrices(dim).astype(np.float32), np.ones((3, dim), np.float32)
    right[:, ::2] = -2
    # Shifts in proportion to the matrices, one set of them for all.
    given = given / largest(given)
    shifts = np.asarray([0.0, 1e-2, 1.0, 1e3], np.float32)
    found = jax.jit(solve_shifted)(given, shifts, right)
    whole = given[:, None].astype(np.float64) + shifts[:, None, None] * np.eye(dim)
    expected = np.linalg.solve(whole, right[:, None, :, None].astype(np.float64))[..., 0]
    error = np.max(np.abs(found - expected), axis=-1) / np.max(np.abs(expected), axis=-1)
    assert np.all(error <= 100 * 8 * np.finfo(np.float32).eps)


def test_double_precision(x64):
    given = matrices(7, condition=1e8)
    values, _ = eigh(given)
    expected = np.linalg.eigvalsh(given)
    assert np.all(np.abs(values - expected) <= 1e-14 * largest(given)[..., 0])
    factor = np.asarray(cholesky(given))
    assert np.all(np.abs(factor @ np.swapaxes(factor, 1, 2) - given) <= 1e-14 * largest(given))
    found = solve_shifted(given, jnp.zeros(1), jnp.ones((3, 7)))[:, 0]
    residual = np.einsum("mij,mj->mi", given, found) - 1
    assert np.max(np.abs(residual)) < 1e-6  # condition number times 2e-16, and a bit


def test_what_is_not_definite_or_not_finite_is_nan_by_itself():
    given = np.stack([np.eye(3), -np.eye(3), np.full((3, 3), np.nan)]).astype(np.float32)
    factor = cholesky(given)
    np.testing.assert_array_equal(factor[0], given[0])
    assert np.all(np.isnan(factor[1:]))
    values, vectors = eigh(given)
    np.testing.assert_array_equal(values[:2], [[1, 1, 1], [-1, -1, -1]])
    assert np.all(np.isnan(values[2]))
    assert np.all(np.isnan(vectors[2]))


@pytest.mark.parametrize("dim", [5, 70])
def test_batches_change_nothing(dim):
    given = matrices(dim, num=4).astype(np.float32)
    right = np.ones((4, dim, 1), np.float32)
    twice = given.reshape(2, 2, dim, dim)
    for function, arguments in (
        (cholesky, (given,)),
        (eigh, (given,)),
        (solve_lower, (given, right)),
        (lambda a, b: solve_shifted(a, jnp.ones(2), b[..., 0]), (given, right)),
    ):
        alone = [function(*(part[i] for part in arguments)) for i in range(4)]
        alone = jax.tree.map(lambda *parts: np.stack(parts), *alone)
        for found in (
            function(*arguments),
            jax.vmap(function)(*arguments),
            jax.tree.map(
                lambda leaf: leaf.reshape(4, *leaf.shape[2:]),
                jax.vmap(jax.vmap(function))(
                    twice, *(part.reshape(2, 2, *part.shape[1:]) for part in arguments[1:])
                ),
            ),
        ):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), found, alone)


def test_no_module_but_one_calls_a_decomposition_of_jax():
    package = Path(jaxcomp.__file__).parent
    found = []
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if isinstance(node, ast.ImportFrom):
                name = f"{node.module}.{','.join(alias.name for alias in node.names)}"
            parts = set(name.replace(",", ".").split("."))
            if "linalg" in parts and not name.startswith("np."):
                found.append(path.relative_to(package).as_posix())
    assert set(found) <= {"linear_algebra.py"}


def test_the_walk_finds_what_it_is_to_find():
    def both(a):
        return jnp.linalg.cholesky(a), jnp.linalg.cholesky(2 * a)

    def one_after_the_other(a):
        first = jnp.linalg.cholesky(a)
        return jnp.linalg.eigh(first @ a)

    def in_batches(a):
        return jax.lax.map(jnp.linalg.cholesky, a, batch_size=2)

    one, three = jnp.eye(3), jnp.broadcast_to(jnp.eye(3), (3, 3, 3))
    assert unordered_decompositions(both, one)
    assert unordered_decompositions(jax.jit(lambda a: jax.vmap(both)(a)), three)
    assert not unordered_decompositions(one_after_the_other, one)
    # A scan, and beside it what is left over.
    assert unordered_decompositions(in_batches, three)
    assert not batched_decompositions(one_after_the_other, one)
    assert batched_decompositions(jax.vmap(one_after_the_other), three)
    assert batched_decompositions(in_batches, three)
