from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.quantizers.feedback import Grid, factor_inputs, problem_of, round_with_feedback

GROUPS, INPUTS, OUTPUTS, CLASSES, MAX_CODE = 2, 13, 9, 3, 6
DAMPING = 0.01


def layer(seed: int = 0, drift: bool = False):
    """Weights, S, C (None without drift), g; one input of the first group is always 0."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((GROUPS, INPUTS, OUTPUTS))
    x = rng.standard_normal((GROUPS, 40, INPUTS)) @ rng.standard_normal((GROUPS, INPUTS, INPUTS))
    changed = x + drift * 0.3 * rng.standard_normal(x.shape)
    changed[0, :, 4] = 0
    x[0, :, 4] *= drift
    second = np.swapaxes(changed, 1, 2) @ changed / 40
    cross = np.swapaxes(changed, 1, 2) @ x / 40 if drift else None
    return weights, second, cross, rng.gamma(1.0, size=(GROUPS, OUTPUTS)), x, changed


def grid(seed: int = 1, eta: float = 1.0):
    rng = np.random.default_rng(seed)
    spacing = 0.4 * np.exp(eta * rng.standard_normal((GROUPS, INPUTS)))
    factors = np.array([1.08, 0.97, 0.99]) if eta else np.ones(3)
    classes = rng.integers(0, CLASSES, (GROUPS, INPUTS)).astype(np.int32)
    lengths = 1 + 2 * np.log2(1 + np.abs(np.arange(-MAX_CODE, MAX_CODE + 1)))
    return spacing, factors, classes, lengths * rng.uniform(0.5, 2, (CLASSES, 1))


def damped(second):
    """S with what is added, inputs that are always 0 left as they are."""
    matrices = second.copy()
    for matrix in matrices:
        live = np.diagonal(matrix) > 0
        matrix[np.diag_indices(INPUTS)] += DAMPING * np.trace(matrix) / live.sum() * live
    return matrices


def reference(weights, second, cross, importance, spacing, factors, classes, prices):
    """Round one weight after the other, in float64."""
    codes = np.zeros(weights.shape, np.int64)
    values, errors = np.zeros(weights.shape), np.zeros(weights.shape)
    most = (prices.shape[1] - 1) // 2
    for group in range(len(weights)):
        live = np.flatnonzero(np.diagonal(second[group]) > 0)
        matrix = damped(second)[group][np.ix_(live, live)]
        lower = np.linalg.cholesky(matrix)
        if cross is None:
            target = lower.T @ weights[group][live]
        else:
            added = (matrix - second[group][np.ix_(live, live)])[0, 0]
            product = cross[group] @ weights[group] + added * weights[group]
            target = np.linalg.solve(lower, product[live])
        for output in range(weights.shape[2]):
            y = target[:, output].copy()
            for place in range(len(live) - 1, -1, -1):
                row = live[place]
                unit, price = spacing[group, row], prices[classes[group, row]]
                low = np.floor(y[place] / (lower[place, place] * unit))
                low = int(np.clip(low, -most, most - 1))
                best = np.inf
                for code in (0, low, low + 1):
                    value = unit * factors[min(max(abs(code), 1), 3) - 1] * code
                    error = y[place] - lower[place, place] * value
                    cost = importance[group, output] * error**2 + price[code + most]
                    if cost < best:
                        best = cost
                        found = code, value, error
                code, value, error = found
                codes[group, row, output], values[group, row, output] = code, value
                errors[group, row, output] = error
                y[:place] -= lower[place, :place] * value
    return codes, values, errors


@partial(jax.jit, static_argnames="block_size")
def rounded(weights, second, cross, importance, spacing, factors, classes, prices, block_size=5):
    factor = factor_inputs(second, DAMPING)
    problem = problem_of(weights, factor, cross, importance)
    grid = Grid(spacing, factors)
    found = round_with_feedback(problem, grid, classes, prices, block_size=block_size)
    return found, grid.values(found.codes), problem


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("drift", [False, True])
@pytest.mark.parametrize(("eta", "multiplier"), [(0.0, 0.0), (0.5, 0.3), (1.0, 1.0)])
def test_codes_are_those_of_a_loop(drift, eta, multiplier):
    weights, second, cross, importance, *_ = layer(drift=drift)
    spacing, factors, classes, lengths = grid(eta=eta)
    problem = weights, second, cross, importance, spacing, factors, classes, multiplier * lengths
    codes, values, errors = reference(*problem)
    found, found_values, _ = rounded(*problem)
    assert found.codes.dtype == jnp.int16
    np.testing.assert_array_equal(found.codes, codes)
    np.testing.assert_allclose(found_values, values, rtol=1e-12)
    np.testing.assert_allclose(found.errors, np.sum(errors**2, axis=1), rtol=1e-10)
    assert np.max(np.abs(codes)) > 2
    # The factors of least squares, each target as it was.
    lower = np.linalg.cholesky(damped(second) + np.eye(INPUTS) * (second == 0))
    pivots = np.diagonal(lower, axis1=1, axis2=2)[..., None]
    targets = errors + pivots * values
    for magnitude, factor in enumerate(np.asarray(found.fitted_factors), 1):
        own = np.minimum(np.abs(codes), 3) == magnitude
        plain = np.where(own, pivots * spacing[..., None] * codes, 0) * np.sqrt(importance[:, None])
        targets_of = np.where(own, targets, 0) * np.sqrt(importance[:, None])
        np.testing.assert_allclose(factor, np.sum(plain * targets_of) / np.sum(plain**2))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("drift", [False, True])
def test_errors_add_up_to_that_of_the_layer(drift):
    weights, second, cross, importance, x, changed = layer(drift=drift)
    spacing, factors, classes, lengths = grid()
    added = damped(second) - second
    rests = []
    for multiplier in (0.0, 1.0):
        found, values, _ = rounded(
            weights, second, cross, importance, spacing, factors, classes, multiplier * lengths
        )
        outputs = np.einsum("gni,gio->gno", x, weights)
        outputs -= np.einsum("gni,gio->gno", changed, values)
        live = np.diagonal(second, axis1=1, axis2=2)[..., None] > 0
        error = np.mean(outputs**2, axis=1)
        error += np.einsum("gij,gjo->go", added, live * (weights - values) ** 2)
        rests.append(error - found.errors)
    if drift:
        # What no weights can undo does not depend on them.
        assert np.min(rests[0]) > 0.1
        np.testing.assert_allclose(rests[0], rests[1], rtol=1e-9)
    else:
        np.testing.assert_allclose(rests, 0, atol=1e-9)


@pytest.mark.usefixtures("x64")
def test_without_prices_and_with_one_step_it_is_gptq_and_babai():
    weights, second, _, importance, *_ = layer()
    step = 0.8
    _, _, classes, lengths = grid()
    found, _, _ = rounded(
        weights,
        second,
        None,
        importance,
        np.full((GROUPS, INPUTS), step),
        np.ones(3),
        classes,
        0 * lengths,
    )
    # The largest code takes part in nothing.
    assert 3 < np.max(np.abs(found.codes)) < MAX_CODE
    # Optimal brain quantization from the last input to the first, the inverse downdated.
    rest, gptq = weights[1].copy(), np.zeros((INPUTS, OUTPUTS))
    inverse = np.linalg.inv(damped(second)[1])
    for row in range(INPUTS - 1, -1, -1):
        gptq[row] = np.round(rest[row] / step)
        error = (rest[row] - step * gptq[row]) / inverse[row, row]
        rest -= inverse[:, row : row + 1] * error
        inverse -= np.outer(inverse[:, row], inverse[row]) / inverse[row, row]
    np.testing.assert_array_equal(found.codes[1], gptq)
    # The nearest plane of the lattice with the basis R, by its Gram-Schmidt vectors.
    basis = step * np.linalg.cholesky(damped(second)[1]).T
    for output in range(OUTPUTS):
        point = basis @ weights[1, :, output] / step
        for row in range(INPUTS - 1, -1, -1):
            orthogonal = (
                basis[:, row] - basis[:, :row] @ (np.linalg.lstsq(basis[:, :row], basis[:, row])[0])
            )
            code = np.round(point @ orthogonal / (orthogonal @ orthogonal))
            assert code == found.codes[1, row, output]
            point = point - code * basis[:, row]


@pytest.mark.usefixtures("x64")
def test_blocks_of_any_size_give_the_same_codes():
    weights, second, _, importance, *_ = layer()
    spacing, factors, classes, lengths = grid()
    problem = weights, second, None, importance, spacing, factors, classes, 0.5 * lengths
    one, *_ = rounded(*problem, block_size=13)
    other, *_ = rounded(*problem)
    np.testing.assert_array_equal(one.codes, other.codes)
    np.testing.assert_allclose(one.errors, other.errors, rtol=1e-12)


@pytest.mark.usefixtures("strict_promotion")
def test_mapped_over_layers_equals_a_loop():
    problems = []
    for seed in range(2):
        weights, second, cross, importance, *_ = layer(seed, drift=True)
        spacing, factors, classes, lengths = grid(seed)
        numbers = weights, second, cross, importance, spacing, factors, 0.5 * lengths
        *numbers, lengths = (part.astype(np.float32) for part in numbers)
        problems.append((*numbers, classes, lengths))
    together, values, _ = jax.vmap(rounded)(
        *(np.stack(parts) for parts in zip(*problems, strict=True))
    )
    together, values = jax.tree.map(np.asarray, (together, values))
    for number, problem in enumerate(problems):
        alone, own, _ = rounded(*problem)
        np.testing.assert_array_equal(together.codes[number], alone.codes)
        np.testing.assert_array_equal(values[number], own)
        np.testing.assert_allclose(together.errors[number], alone.errors, rtol=1e-5)


@pytest.mark.usefixtures("x64")
def test_cross_moments_of_the_same_inputs_change_nothing():
    weights, second, _, importance, *_ = layer()
    factor = factor_inputs(second, DAMPING)
    with_cross = problem_of(weights, factor, second, importance)
    without = problem_of(weights, factor, None, importance)
    np.testing.assert_allclose(with_cross.target, without.target, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_inputs_that_are_always_zero_are_as_if_left_out():
    weights, second, _, importance, *_ = layer()
    spacing, factors, classes, lengths = grid()
    found, values, problem = rounded(
        weights, second, None, importance, spacing, factors, classes, 0.5 * lengths
    )
    found, values, problem = jax.tree.map(np.asarray, (found, values, problem))
    assert not np.any(found.codes[0, 4])
    assert not np.any(values[0, 4])
    assert not problem.factor.is_live[0, 4]
    assert np.sum(~problem.factor.is_live) == 1
    kept = np.delete(np.arange(INPUTS), 4)
    # The other group has other inputs; only the first is looked at.
    alone, *_ = rounded(
        weights[:, kept],
        second[:, kept][:, :, kept],
        None,
        importance,
        spacing[:, kept],
        factors,
        classes[:, kept],
        0.5 * lengths,
    )
    np.testing.assert_array_equal(found.codes[0, kept], alone.codes[0])
    np.testing.assert_allclose(found.errors[0], alone.errors[0], rtol=1e-12)


@pytest.mark.usefixtures("strict_promotion")
def test_prices_and_the_largest_code_are_obeyed():
    weights, second, cross, importance, *_ = layer(drift=True)
    spacing, factors, classes, lengths = grid()
    weights, second, cross, importance, spacing, factors, lengths = (
        part.astype(np.float32)
        for part in (weights, second, cross, importance, spacing, factors, lengths)
    )
    is_zero = np.arange(-MAX_CODE, MAX_CODE + 1) == 0
    dear = np.where(is_zero, 0, 1e9).astype(np.float32) + 0 * lengths
    found, *_ = rounded(weights, second, cross, importance, spacing, factors, classes, dear)
    assert not np.any(found.codes)
    np.testing.assert_array_equal(found.fitted_factors, 1)
    found, values, problem = rounded(
        100 * weights, second, cross, importance, spacing, factors, classes, 0 * lengths
    )
    assert np.max(np.abs(found.codes)) == MAX_CODE
    # Also where nothing fits, the errors are those of the codes.
    lower, target = np.asarray(problem.factor.lower), np.asarray(problem.target)
    rest = target - np.einsum("gki,gko->gio", lower, values)
    np.testing.assert_allclose(found.errors, np.sum(rest**2, axis=1), rtol=1e-4)


def test_a_singular_matrix_is_damped_until_it_has_a_factor():
    x = np.random.default_rng(0).standard_normal((1, 5, INPUTS)).astype(np.float32)
    second = np.swapaxes(x, 1, 2) @ x
    factor = jax.tree.map(np.asarray, factor_inputs(second, 0.0))
    assert np.all(np.isfinite(factor.lower))
    assert 0 < factor.damping < 1e-3
    product = np.einsum("gik,gjk->gij", factor.lower, factor.lower)
    expected = second + factor.added[0] * np.eye(INPUTS)
    np.testing.assert_allclose(product, expected, atol=1e-4)
    # One that is definite is damped as asked for.
    assert factor_inputs(second, 0.125).damping == 0.125
