import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow_cases import some_slow

from jaxcomp.numerics.precision import in_float64
from jaxcomp.quantizers.scalar.interval_search import BinCosts, cheapest_cuts, follow_cuts
from jaxcomp.quantizers.scalar.runs import Runs, run_table

NUM_BINS, MAX_CLUSTERS = 512, 6


@jax.jit
@in_float64()
def search(mass, mean):
    bins = Runs(mass, mean, jnp.zeros_like(mass))
    costs = BinCosts(bins, bins, bins, bins.spread)
    table = run_table(bins)
    cuts = cheapest_cuts(costs, table, max_clusters=MAX_CLUSTERS)
    return cuts.cost, follow_cuts(cuts, costs, table)


def every_row(mass, mean):
    """The least cost of the first j bins in at most k runs, for all j and k, looking everywhere."""
    mass, mean = mass.astype(np.longdouble), mean.astype(np.longdouble)
    sums = [np.concatenate([[0], np.cumsum(mass * mean**power)]) for power in range(3)]
    m0, m1, m2 = (part[None, :] - part[:, None] for part in sums)
    cost = np.where(m0 > 0, m2 - m1 * m1 / np.where(m0 > 0, m0, 1), 0)
    row = np.arange(len(mass) + 1)
    cost = np.where(row[:, None] <= row[None, :], np.maximum(cost, 0), np.inf)
    best = np.where(row == 0, 0, np.inf)
    found = []
    for _ in range(MAX_CLUSTERS):
        best = np.min(best[:, None] + cost, axis=0)
        found.append(best[1:])
    return np.array(found, np.float64), cost


def bins_with(kind, seed):
    rng = np.random.default_rng(seed)
    mean = np.sort(rng.normal(size=NUM_BINS))
    mass = rng.gamma(0.3, size=NUM_BINS)
    if kind == "far outliers":
        # The last rows cost 10^9 times what the others do: rounding decides between their cuts.
        mean[-3:] = (1e3, 5e3, 2e4)
        mean[0] = -4e3
    elif kind == "bins without mass":
        mass[rng.random(NUM_BINS) < 0.6] = 0
    elif kind == "ties":
        mean, mass = np.sort(rng.integers(0, 12, NUM_BINS)).astype(float), np.ones(NUM_BINS)
    elif kind == "heavy tails":
        mean = np.sort(rng.standard_cauchy(NUM_BINS))
    return mass.astype(np.float32), (mean - np.average(mean, weights=mass)).astype(np.float32)


@pytest.mark.parametrize("seed", some_slow(range(3), 2))
@pytest.mark.parametrize(
    "kind", ["plain", "far outliers", "bins without mass", "ties", "heavy tails"]
)
def test_every_row_is_as_good_as_looking_everywhere(kind, seed):
    mass, mean = bins_with(kind, seed)
    expected, cost = every_row(mass, mean)
    found, begins = (np.asarray(part) for part in search(mass, mean))
    # What is left is the oracle's own rounding: its sums cancel.
    scale = np.finfo(np.longdouble).eps * NUM_BINS * np.sum(mass * mean.astype(np.float64) ** 2)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=float(scale))
    for k in range(MAX_CLUSTERS):
        edges = begins[k, : k + 2]
        assert edges[0] == 0
        assert edges[-1] == NUM_BINS
        assert np.all(np.diff(edges) >= 0)
        reached = float(np.sum(cost[edges[:-1], edges[1:]]))
        assert reached == pytest.approx(expected[k, -1], rel=1e-9, abs=float(scale))


def test_batched_equals_one_by_one():
    groups = [bins_with(kind, 0) for kind in ("plain", "far outliers", "heavy tails")]
    together = jax.vmap(search)(*(np.stack(part) for part in zip(*groups, strict=True)))
    together = jax.tree.map(np.asarray, together)
    for index, group in enumerate(groups):
        for batched, single in zip(together, search(*group), strict=True):
            np.testing.assert_allclose(batched[index], single, rtol=1e-6)
