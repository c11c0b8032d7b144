"""Several tensors that are solved by one call become what each becomes alone."""

import jax
import numpy as np
import pytest
from quantizer_oracles import count_compilations

from jaxcomp.quantizers import EntropyConstrained, KMeans, Optimal, Uniform
from jaxcomp.quantizers.methods import on_histograms
from jaxcomp.quantizers.problems import as_problem

pytestmark = pytest.mark.usefixtures("strict_promotion")

# Few bins and iterations: compiling is what these tests cost.
METHODS = {
    "uniform": Uniform(num_bins=64),
    "kmeans": KMeans(num_bins=64),
    "optimal": Optimal(num_bins=64),
    "entropy_constrained": EntropyConstrained(num_bins=32, num_symbols=8),
}
# Two kinds where clusters are at most as many as weights, and more of one than are solved at once.
SIZES = (300, 3, 500, 90, 400, 700, 4)
TOGETHER = 4


@pytest.fixture(scope="module")
def problems():
    rng = np.random.default_rng(0)
    return [as_problem(10.0**-k * rng.standard_t(3, n)) for k, n in enumerate(SIZES)]


@pytest.fixture
def together(monkeypatch):
    """Solve as many at once as on an accelerator, in groups of a few."""
    monkeypatch.setattr(on_histograms, "most_together", lambda: TOGETHER)


def parameters_of(method):
    return np.asarray([0.3, 0.02] if isinstance(method, EntropyConstrained) else [2, 8])


def assert_same(found, expected):
    """Fail where more than roundings differ.

    A group and a tensor alone are two programs, and XLA contracts a product and a sum to one
    operation in one and not in the other, as it likes the instructions of the machine.
    """
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        if theirs.dtype.kind == "f":
            largest = np.max(np.abs(theirs[np.isfinite(theirs)]), initial=0)
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6 * largest)
        else:
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "name", ["uniform", *(pytest.param(name, marks=pytest.mark.slow) for name in list(METHODS)[1:])]
)
def test_a_group_becomes_what_each_becomes_alone(name, problems, together):
    method = METHODS[name]
    parameters = parameters_of(method)
    found = list(method.curves(problems, [parameters] * len(problems)))
    expected = [method.curve(problem, parameters) for problem in problems]
    assert_same(found, expected)


def test_points_are_those_of_each_alone(problems, together):
    # Up to 8 clusters and up to 2, both in groups: two sizes of codebooks.
    method, parameters = METHODS["uniform"], [8, 2, 5, 8, 7, 6, 2]
    found = list(method.points(problems, parameters))
    assert_same(found, list(map(method.point, problems, parameters)))


def test_a_solve_serves_several_tensors_of_any_size_and_compiles_once(problems, together):
    """Also of the last tensors, which fill up a group."""
    calls = []

    class Counted(Uniform):
        def _solve(self, moments, numbers, **options):
            calls.append(len(numbers) if numbers.ndim > 1 else 1)
            return super()._solve(moments, numbers, **options)

    method, parameters = Counted(num_bins=48), np.asarray([2, 8])
    large = [problem for problem in problems if problem.size >= 48]
    for problem in large:  # histograms
        method.curve(problem, parameters)
    calls.clear()
    with count_compilations() as count:
        list(method.curves(large, [parameters] * len(large)))
    assert calls == [TOGETHER, TOGETHER]
    # Moments put one on another, and the solve.
    assert count() <= 2


def test_no_more_tensors_are_taken_than_are_solved_together(problems, together):
    taken = []

    def one_after_the_other():
        for problem in problems:
            taken.append(problem)
            yield problem

    method, parameters = METHODS["uniform"], np.asarray([2, 8])
    found = method.curves(one_after_the_other(), [parameters] * len(problems))
    next(found)
    assert len(taken) == TOGETHER


def test_little_memory_makes_smaller_groups(problems, together, monkeypatch):
    method, parameters = METHODS["uniform"], np.asarray([2, 8])
    expected = [method.curve(problem, parameters) for problem in problems]
    monkeypatch.setattr(on_histograms, "chunk_bytes", lambda: 1)
    assert_same(list(method.curves(problems, [parameters] * len(problems))), expected)


def test_a_cpu_solves_one_by_one():
    assert on_histograms.most_together() == 1


def test_what_a_users_method_redefines_is_asked_for_each(problems, together):
    class Half(Uniform):
        def curve(self, problem, parameters):
            return super().curve(problem, np.maximum(parameters // 2, 1))

    class Least(Uniform):
        def point(self, problem, parameter):
            return super().point(problem, min(parameter, 2))

    half, least = Half(num_bins=64), Least(num_bins=64)
    parameters = np.asarray([2, 8])
    some = problems[2:4]
    assert_same(
        list(half.curves(some, [parameters] * 2)),
        [METHODS["uniform"].curve(problem, parameters // 2) for problem in some],
    )
    assert [point.parameter for point in half.points(some, [8, 8])] == [4, 4]
    assert [point.parameter for point in least.points(some, [8, 8])] == [2, 2]
