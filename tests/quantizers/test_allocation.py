from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.spatial import ConvexHull

from jaxcomp.quantizers import allocate_rates, lower_convex_hull


def curves(seed, num_layers=3, num_places=4):
    """Noisy falling curves: some places lie above the hull."""
    rng = np.random.default_rng(seed)
    rate = np.cumsum(rng.integers(1, 20, (num_layers, num_places)), axis=1).astype(float)
    cost = np.cumsum(rng.gamma(1.0, size=(num_layers, num_places)), axis=1)[:, ::-1]
    order = rng.permutation(num_places)
    return rate[:, order], cost[:, order]


def every_choice(rate, cost):
    """(choices, 2): total rate and cost of every combination of places."""
    layers = np.arange(len(rate))
    choices = np.array(list(product(range(rate.shape[1]), repeat=len(rate))))
    return np.stack([rate[layers, choices].sum(1), cost[layers, choices].sum(1)], axis=1)


def relaxed(rate, cost, budget):
    """The linear programme in which layers may be split between places, by scipy."""
    num_layers, num_places = rate.shape
    simplex = np.kron(np.eye(num_layers), np.ones(num_places))
    done = linprog(
        cost.ravel(), A_ub=[rate.ravel()], b_ub=[budget], A_eq=simplex, b_eq=np.ones(num_layers)
    )
    return done.fun


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.floats(0.0, 1.0))
def test_against_every_choice_and_the_linear_programme(seed, fraction):
    rate, cost = curves(seed)
    totals = every_choice(rate, cost)
    least, most = rate.min(1).sum(), rate.max(1).sum()
    budget = least + fraction * (most - least)
    result = allocate_rates(rate, cost, budget_bits=budget)
    # Budgets are met to 1e-12 of them: a sum of rates is no different budget in another order.
    most_allowed = budget * (1 + 1e-12)
    optimum = totals[totals[:, 0] <= most_allowed, 1].min()
    bound = float(result.lower_bound)
    assert result.total_size_bits <= most_allowed
    assert bound == pytest.approx(relaxed(rate, cost, budget), rel=1e-9)
    assert bound <= optimum * (1 + 1e-12)
    assert float(result.total_distortion) >= optimum * (1 - 1e-12)
    # No single step of a hull is missed: the gap is less than what the split layer would gain.
    assert result.total_distortion - bound <= np.max(np.ptp(cost, axis=1))
    np.testing.assert_allclose(result.size_bits, rate[np.arange(3), result.places])
    np.testing.assert_allclose(result.distortion, cost[np.arange(3), result.places])

    # The dual: the fewest bits for the distortion just reached, and for any other.
    target = cost.min(1).sum() + fraction * np.ptp(cost, axis=1).sum()
    dual = allocate_rates(rate, cost, max_distortion=target)
    fewest = totals[totals[:, 1] <= target * (1 + 1e-12), 0].min()
    assert float(dual.total_distortion) <= target * (1 + 1e-9)
    assert float(dual.total_size_bits) >= fewest - 1e-9
    assert float(dual.lower_bound) == pytest.approx(relaxed(cost, rate, target), rel=1e-9)
    assert float(dual.lower_bound) <= fewest + 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_exact_wherever_the_hulls_meet_the_budget(seed):
    rate, cost = curves(seed, num_layers=4)
    totals = every_choice(rate, cost)
    # All budgets that some slope meets exactly.
    for multiplier in np.geomspace(1e-3, 1e2, 40):
        places = np.argmin(cost + multiplier * rate, axis=1)
        budget = rate[np.arange(4), places].sum()
        result = allocate_rates(rate, cost, budget_bits=budget)
        optimum = totals[totals[:, 0] <= budget, 1].min()
        assert float(result.total_distortion) == pytest.approx(optimum, rel=1e-12)
        assert float(result.lower_bound) == pytest.approx(optimum, rel=1e-12)
        dual = allocate_rates(rate, cost, max_distortion=optimum)
        assert float(dual.total_size_bits) == budget
        # Equal slopes: every hull is left between a steeper and a flatter step.
        assert np.all(
            cost[np.arange(4), result.places] + result.multiplier * result.size_bits
            <= (cost + result.multiplier * rate).min(axis=1) + 1e-9
        )


def wide_curves(rng):
    """Falling curves of layers that differ by many orders of magnitude, as sensitivities do."""
    num_layers, num_places = rng.integers(1, 5), rng.integers(1, 6)
    shape = (num_layers, num_places)
    rate = np.cumsum(
        rng.integers(0, 4, shape) * rng.choice([1.0, 0.1, 1e5], num_layers)[:, None], 1
    )
    orders = rng.choice([0.0, 3.0, 20.0])
    scale = 10.0 ** rng.uniform(-orders, orders, (num_layers, 1))
    cost = (
        scale * np.sort(10.0 ** rng.uniform(-rng.choice([0.5, 8, 20]), 0, shape), axis=1)[:, ::-1]
    )
    cost[rng.random(shape) < 0.1] = 0
    order = rng.permutation(num_places)
    return rate[:, order], cost[:, order]


def exactly(values, places):
    return sum(Fraction(float(row[place])) for row, place in zip(values, places, strict=True))


@pytest.mark.parametrize("is_dual", [False, True])
def test_every_budget_is_met_and_none_refused_that_can_be(is_dual):
    rng = np.random.default_rng(int(is_dual))
    name = "max_distortion" if is_dual else "budget_bits"
    num_refused = 0
    for _ in range(400):
        rate, cost = wide_curves(rng)
        spent, other = (cost, rate) if is_dual else (rate, cost)
        layers = np.arange(len(rate))
        choice = rng.integers(0, rate.shape[1], len(rate))
        least = spent.argmin(axis=1)
        budget = rng.choice(
            [
                # A total, added in another order; the least one; and anything.
                float(np.sum(spent[layers, choice][::-1])),
                float(sum(spent[layers, least])),
                float(np.sum(spent[layers, least]) * rng.uniform(0.999, 1.5)),
                float(10.0 ** rng.uniform(-3, 3)),
            ]
        )
        limit = Fraction(budget) * (1 + Fraction(1, 10**12))
        if exactly(spent, least) > limit:
            with pytest.raises(ValueError, match=f"{name} must be at least") as refusal:
                allocate_rates(rate, cost, **{name: budget})
            # What the message offers is accepted.
            budget = float(str(refusal.value).split("at least ")[1].split(",")[0])
            limit = Fraction(budget) * (1 + Fraction(1, 10**12))
            num_refused += 1
        found = allocate_rates(rate, cost, **{name: budget})
        assert exactly(spent, found.places) <= limit
        # No choice within the budget beats the bound; the one returned does not either.
        totals = every_choice(spent, other)
        inside = totals[totals[:, 0] <= budget * (1 - 1e-14)]
        reached = found.total_size_bits if is_dual else found.total_distortion
        assert found.lower_bound <= reached
        assert found.lower_bound <= inside[:, 1].min(initial=np.inf) * (1 + 1e-14)
        # Nothing that fits is left: no single layer can move to a better place.
        for layer in range(len(rate)):
            moved = np.array(
                [spent[layers, found.places].sum() - spent[layer, found.places[layer]]]
            )
            fits = moved + spent[layer] < budget * (1 - 1e-12)
            gain = other[layer, found.places[layer]] - other[layer]
            assert not np.any(fits & (gain > 0))
    assert 20 < num_refused < 200


def test_small_layers_count_beside_a_costly_one():
    rate = np.array([[0.0, 1.0, 2.0]] * 2)
    cost = np.array([[1e20, 1.0, 1e-1], [1e3, 1.0, 1e-1]])
    found = allocate_rates(rate, cost, max_distortion=0.5)
    assert found.places.tolist() == [2, 2]
    assert found.total_distortion == 0.2
    free = allocate_rates(
        np.array([[0.0, 10, 20]] * 2), np.array([[1.0, 0.1, 0], [3, 0.7, 0]]), max_distortion=0.0
    )
    assert free.total_distortion == 0
    assert free.total_size_bits == 40
    # What the costly layer loses does not hide what the others could still gain.
    stuck = allocate_rates(
        [np.array([0.0, 100]), np.array([0.0, 1])],
        [np.array([1e20, 0]), np.array([3.0, 1])],
        budget_bits=50,
    )
    assert stuck.places.tolist() == [0, 1]


def test_many_budgets_at_once_equal_one_by_one():
    rate, cost = curves(0, num_layers=6, num_places=7)
    budgets = np.linspace(rate.min(1).sum(), rate.max(1).sum(), 12).reshape(3, 4)
    together = allocate_rates(rate, cost, budget_bits=budgets)
    assert together.places.shape == (3, 4, 6)
    for place in np.ndindex(3, 4):
        alone = allocate_rates(rate, cost, budget_bits=budgets[place])
        for whole, single in zip(together, alone, strict=True):
            np.testing.assert_array_equal(whole[place], single)
    flat = together.total_distortion.ravel()
    assert np.all(np.diff(together.lower_bound.ravel()) <= 1e-12)
    assert flat[0] > flat[-1]
    assert flat[-1] == pytest.approx(cost.min(1).sum())
    assert together.multiplier[-1, -1] == 0


def test_reverse_water_filling_of_gaussian_layers():
    # D = v 4^-R for each weight: equal slopes are equal distortions per weight, where v allows.
    variance, number = np.array([16.0, 1.0, 0.25]), np.array([100.0, 1000.0, 50.0])
    per_weight = np.arange(0, 8, 1 / 64)
    rate = per_weight * number[:, None]
    cost = number[:, None] * variance[:, None] * 4.0**-per_weight
    theta = 0.1
    budget = np.sum(number * 0.5 * np.log2(variance / theta))
    result = allocate_rates(rate, cost, budget_bits=budget)
    # Places are 1/64 bit apart, 2 % of distortion; what is too little for a step of the large
    # layer goes to the small ones.
    np.testing.assert_allclose(result.distortion / number, theta, rtol=0.08)
    assert float(result.lower_bound) == pytest.approx(theta * number.sum(), rel=1e-3)
    dual = allocate_rates(rate, cost, max_distortion=theta * number.sum())
    assert float(dual.total_size_bits) == pytest.approx(budget, rel=2e-3)


def test_weights_of_layers_scale_their_distortion():
    rate, cost = curves(3)
    weight = np.array([1.0, 10.0, 0.1])
    budget = rate.mean(1).sum()
    weighted = allocate_rates(rate, cost, budget_bits=budget, layer_weight=weight)
    scaled = allocate_rates(rate, cost * weight[:, None], budget_bits=budget)
    np.testing.assert_array_equal(weighted.places, scaled.places)
    assert float(weighted.total_distortion) == pytest.approx(weighted.distortion @ weight)


def test_curves_of_different_lengths():
    rate, cost = curves(4)
    rows = [row[: 2 + layer] for layer, row in enumerate(rate)]
    costs = [row[: 2 + layer] for layer, row in enumerate(cost)]
    budget = sum(row.max() for row in rows)
    result = allocate_rates(rows, costs, budget_bits=budget)
    assert float(result.total_distortion) == pytest.approx(sum(row.min() for row in costs))
    padded = np.full(rate.shape, np.nan), np.full(rate.shape, np.nan)
    for layer in range(3):
        padded[0][layer, : 2 + layer], padded[1][layer, : 2 + layer] = rows[layer], costs[layer]
    again = allocate_rates(*padded, budget_bits=budget)
    np.testing.assert_array_equal(again.places, result.places)


def test_hull_matches_scipy():
    rng = np.random.default_rng(0)
    for _ in range(20):
        points = rng.random((12, 2))
        marked = np.flatnonzero(lower_convex_hull(points[:, 0], points[:, 1]))
        # scipy's hull of the points with two far ones keeps only the falling lower part.
        far = np.array([[100.0, points[:, 1].min()], [points[:, 0].min(), 100.0], [100.0, 100.0]])
        corners = ConvexHull(np.concatenate([points, far])).vertices
        np.testing.assert_array_equal(marked, np.sort(corners[corners < 12]))


def test_hull_of_ties_lines_and_padding():
    rate = np.array([0.0, 1.0, 2.0, 3.0, 3.0, 4.0, 1.0, np.nan])
    cost = np.array([4.0, 2.0, 1.0, 0.0, 0.0, 0.0, 3.0, 0.0])
    #        corner, corner, on the line to (3, 0), corner, the same again, no gain, above
    expected = [True, True, False, True, False, False, False, False]
    np.testing.assert_array_equal(lower_convex_hull(rate, cost), expected)
    stacked = lower_convex_hull(np.stack([rate, rate[::-1]]), np.stack([cost, cost[::-1]]))
    np.testing.assert_array_equal(stacked[0], expected)
    assert stacked[1].sum() == 3


RATE, COST = curves(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget_bits": 0}, r"budget_bits must be at least 27, .* \(with distortion .*got 0 bits"),
        ({"budget_bits": None, "max_distortion": 0}, "max_distortion must be at least .*with bits"),
        ({"budget_bits": np.nan}, "budget_bits must be at least 27"),
        ({"max_distortion": 1.0}, "either budget_bits or max_distortion, got both"),
        ({"budget_bits": None}, "either budget_bits or max_distortion, got neither"),
        ({"size_bits": RATE[:2]}, r"one shape \(layers, places\), got \(2, 4\) and \(3, 4\)"),
        ({"size_bits": []}, "size_bits must be one array of places for each"),
        ({"size_bits": -RATE}, "size_bits must be at least 0"),
        ({"distortion": -COST}, "distortion must be at least 0"),
        ({"distortion": COST * np.nan}, "needs a finite place on its curve, layer 0 has none"),
        ({"layer_weight": np.array([1.0, 2.0, 0.0])}, "layer_weight must be 3 positive numbers"),
    ],
)
def test_bad_input(changes, message):
    arguments = {"size_bits": RATE, "distortion": COST, "budget_bits": 100.0} | changes
    with pytest.raises(ValueError, match=message):
        allocate_rates(**arguments)


def test_bad_hull():
    with pytest.raises(ValueError, match=r"one shape \(..., M\) with M >= 1"):
        lower_convex_hull(np.ones(3), np.ones(4))
