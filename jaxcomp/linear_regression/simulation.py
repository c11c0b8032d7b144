"""Compress the solutions of thousands of drawn data sets, and average their risks.

A batch of data sets is drawn, solved and compressed by one pure function; `lax.map` makes a chunk
of batches, and the host adds up chunks in float64.

Axes: `M` data sets, `C` compressors, `R` rates, `d` weights, `n` examples, `K` clusters.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import NDArray

from jaxcomp.coding import sizes
from jaxcomp.linear_regression.closed_forms import CHANNELS, gain_and_loss
from jaxcomp.linear_regression.codebooks import (
    ADAPTIVE,
    DESIGNED,
    FIXED_RATE,
    DesignedCodebooks,
    MergedCodebooks,
    adaptive_quantize,
    design_codebooks,
    designed_quantize,
    merge,
)
from jaxcomp.linear_regression.draws import (
    BATCH_SIZE,
    Draws,
    Solution,
    draw,
    draw_solutions,
    hessian_diagonal,
    keys_of,
    map_batches,
    num_inputs_of,
    risks_of,
)
from jaxcomp.linear_regression.problem import Problem
from jaxcomp.linear_regression.ridge import default_penalties, james_stein, ridge
from jaxcomp.numerics.checks import check_count
from jaxcomp.numerics.linear_algebra import cholesky, solve_lower
from jaxcomp.numerics.units import LN2

CONTROLS = ("least_squares", "shrinkage", "ridge", "james_stein")
"""What compresses nothing: W itself; aW with `a = 1 - e^{-2R/d}`; ridge, one penalty for each
place of the rate grid; the positive-part James-Stein estimator, the same at every rate."""

COMPRESSORS: tuple[str, ...] = (*CHANNELS, *CONTROLS, *DESIGNED, *ADAPTIVE)
"""Everything that `simulate` can do to a solution."""

QUANTITIES = (
    "empirical_risk",
    "population_risk",
    "generalization",
    "relative_gap",
    "distortion",
    "improvement",
    "over_shrinkage",
    "rate_nats",
)
"""What is averaged: `L_S`, `L_mu`, `L_mu - L_S`, `1 - L_S/L_mu`, `L_S(What) - L_S(W)`; paired over
data sets `L_mu(W) - L_mu(What)` (positive if compression helps) and `L_mu(What) - L_mu(aW)` at the
same place of the rate grid; and what the code of this data set costs, in nats of the whole model
(infinite for what compresses nothing)."""


class Samples(NamedTuple):
    """Risks of every data set.

    Attributes:
        empirical: (M, C, R), L_S.
        population: (M, C, R), L_mu.
        length: (M, C, R), nats of the whole model; infinite where nothing is compressed. For
            adaptive codebooks 0: their lengths come from `counts`.
        least_squares: (M, 2), L_S and L_mu of W itself.
        shrinkage: (M, 2, R), L_mu of aW at the rates, and at `d ln K` for fixed-rate quantizers.
        counts: (M, A, R, K), how many weights every centroid of the A adaptive codebooks serves;
            None without any.
    """

    empirical: Float[Array, "M C R"]
    population: Float[Array, "M C R"]
    length: Float[Array, "M C R"]
    least_squares: Float[Array, "M 2"]
    shrinkage: Float[Array, "M 2 R"]
    counts: Int[Array, "M A R K"] | None


class Simulation(NamedTuple):
    """Means over drawn data sets and what their standard errors come from.

    Attributes:
        num_datasets: M.
        compressors: C names.
        rates_nats: (R,), the grid: R nats of the whole model.
        means: (Q, C, R), one entry for each of `QUANTITIES`.
        squares: (Q, C, R), sums of squared deviations from the means.
    """

    num_datasets: int
    compressors: tuple[str, ...]
    rates_nats: NDArray[np.float64]
    means: NDArray[np.float64]
    squares: NDArray[np.float64]

    def mean(self, quantity: str, compressor: str) -> NDArray[np.float64]:
        """(R,) means of a quantity of one compressor."""
        return self.means[self._place(quantity, compressor)]

    def standard_error(self, quantity: str, compressor: str) -> NDArray[np.float64]:
        """(R,) standard errors of the means; NaN for a single data set."""
        squares = self.squares[self._place(quantity, compressor)]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.sqrt(squares / (self.num_datasets * np.float64(self.num_datasets - 1)))

    def merge(self, other: "Simulation") -> "Simulation":
        """Join two simulations of different data sets of the same problem.

        Raises:
            ValueError: if compressors or rates differ.
        """
        if self.compressors != other.compressors or not np.array_equal(
            self.rates_nats, other.rates_nats
        ):
            raise ValueError("simulations can be merged if compressors and rates are the same.")
        total = self.num_datasets + other.num_datasets
        share = other.num_datasets / total
        # What compresses nothing has an infinite rate, which has no deviations.
        with np.errstate(invalid="ignore"):
            shift = np.where(self.means == other.means, 0.0, other.means - self.means)
        between = shift**2 * (self.num_datasets * share)
        return self._replace(
            num_datasets=total,
            means=self.means + shift * share,
            squares=self.squares + other.squares + between,
        )

    def _place(self, quantity: str, compressor: str) -> tuple[int, int]:
        for name, allowed in ((quantity, QUANTITIES), (compressor, self.compressors)):
            if name not in allowed:
                raise ValueError(f"{name!r} is not in this simulation: choose from {allowed}.")
        return QUANTITIES.index(quantity), self.compressors.index(compressor)


def codebooks_for(
    problem: Problem,
    key: Array,
    *,
    num_examples: int,
    num_clusters: Sequence[int],
    rates_nats: Float[np.ndarray, " R"] | None = None,
    num_datasets: int = 256,
    diameter_penalty: float = 0.05,
    draws: Draws = "statistics",
) -> DesignedCodebooks:
    """Design codebooks on independent data sets of the same distribution.

    Args:
        problem: the distribution of examples.
        key: typed PRNG key, another one than the simulation's.
        num_examples: n > d + 1.
        num_clusters: K of every place of the rate grid.
        rates_nats: (R,), mean code length of the entropy-coded grids; None for `d ln K`.
        num_datasets: data sets that the codebooks are made from.
        diameter_penalty: relative strength for "diameter_kmeans".
        draws: see `draw_solution`.

    Returns:
        The codebooks.

    Raises:
        ValueError: as `draw_solution` and `design_codebooks`.
    """
    dim = problem.true_weights.shape[0]
    solutions = draw_solutions(
        problem,
        key,
        num_examples=num_examples,
        num_datasets=num_datasets,
        draws=draws,
    )
    number = jnp.asarray(num_examples, float)
    importance = hessian_diagonal(solutions.gram_factor, number)
    rates = None if rates_nats is None else np.asarray(rates_nats, np.float64) / dim
    return design_codebooks(
        solutions.weights,
        importance,
        num_clusters=num_clusters,
        entropies_nats=rates,
        diameter_penalty=diameter_penalty,
    )


def simulate(
    problem: Problem,
    key: Array,
    *,
    num_examples: int,
    num_datasets: int,
    num_clusters: Sequence[int] = tuple(range(1, 33)),
    rates_nats: Float[np.ndarray, " R"] | None = None,
    compressors: Sequence[str] = (*CHANNELS, *CONTROLS, *DESIGNED),
    codebooks: DesignedCodebooks | None = None,
    ridge_penalties: Float[np.ndarray, " R"] | None = None,
    diameter_penalty: float = 0.05,
    draws: Draws = "statistics",
    first_dataset: int = 0,
    chunk_size: int = 512,
    batch_size: int = BATCH_SIZE,
    on_chunk: Callable[[int], None] | None = None,
) -> Simulation:
    """Average the risks of least squares under many compressors at every rate of a grid.

    Args:
        problem: the distribution of examples.
        key: typed PRNG key; data set i uses `fold_in(key, i)`.
        num_examples: n > d + 1. Standard errors exist for n > d + 3 and are of use from about
            d + 8 on.
        num_datasets: M >= 1.
        num_clusters: K of the fixed-rate quantizers at every place of the rate grid.
        rates_nats: (R,), R of the whole model for channels and shrinkage; None for `d ln K`.
        compressors: names out of `COMPRESSORS`.
        codebooks: for the designed quantizers, from `design_codebooks` with the same
            `num_clusters` and an *independent* key; required if one of them is named.
        ridge_penalties: (R,) for "ridge"; None for `default_penalties`.
        diameter_penalty: relative strength for "adaptive_diameter".
        draws: see `draw_solution`.
        first_dataset: number of the first data set, to continue elsewhere.
        chunk_size: data sets per call of the compiled program.
        batch_size: data sets worked on at once; memory grows with it.
        on_chunk: called with the number of finished data sets after every chunk.

    Returns:
        Means and sums of squares in float64.

    Raises:
        ValueError: on an unknown compressor, missing or unfitting codebooks, or n <= d + 1.
    """
    names = tuple(compressors)
    clusters, rates, penalties, codebooks = _checked(
        problem, names, num_clusters, rates_nats, ridge_penalties, codebooks
    )
    check_count("num_datasets", num_datasets)
    num_inputs = num_inputs_of(problem, num_examples, draws)
    size = min(chunk_size, num_datasets)
    setup = _Setup(
        problem=problem,
        codebooks=codebooks,
        merged=merge(codebooks),
        rates=jnp.asarray(rates, float),
        num_clusters=jnp.asarray(clusters),
        penalties=jnp.asarray(penalties, float),
        diameter_penalty=jnp.asarray(diameter_penalty, float),
        # Traced: only drawn inputs have n in a shape, all else compiles once for every n.
        num_examples=jnp.asarray(num_examples, float),
        key=key,
    )
    run = partial(
        _chunk,
        setup,
        compressors=names,
        num_inputs=num_inputs,
        max_clusters=int(clusters.max()),
        batch_size=min(batch_size, size),
    )
    total: Simulation | None = None
    for start in range(0, num_datasets, size):
        # The last chunk is filled up, and cut afterwards: another shape would compile again.
        numbers = first_dataset + start + np.arange(size)
        samples = jax.device_get(run(jnp.asarray(numbers, jnp.int32)))
        count = min(size, num_datasets - start)
        part = _summarize(samples, names, rates, count)
        total = part if total is None else total.merge(part)
        if on_chunk is not None:
            on_chunk(start + count)
    assert total is not None
    return total


def _checked(
    problem: Problem,
    names: tuple[str, ...],
    num_clusters: Sequence[int],
    rates_nats: Float[np.ndarray, " R"] | None,
    ridge_penalties: Float[np.ndarray, " R"] | None,
    codebooks: DesignedCodebooks | None,
) -> tuple[
    NDArray[np.int32],
    NDArray[np.float64],
    Float[np.ndarray, " R"],
    DesignedCodebooks,
]:
    """Clusters, rates, ridge penalties and codebooks at every place of the grid, all as long."""
    if not names or not set(names) <= set(COMPRESSORS):
        unknown = sorted(set(names) - set(COMPRESSORS))
        raise ValueError(f"compressors must be out of {COMPRESSORS}, got {unknown or names}.")
    clusters = np.asarray(num_clusters, np.int32)
    if clusters.ndim != 1 or clusters.size < 1 or clusters.min() < 1:
        raise ValueError(f"num_clusters must be a list of numbers >= 1, got {num_clusters}.")
    dim = problem.true_weights.shape[0]
    if codebooks is None:
        if set(names) & set(DESIGNED):
            raise ValueError(
                "codebooks are required for designed quantizers: make them with design_codebooks "
                "and an independent key, or leave these compressors out."
            )
        codebooks = DesignedCodebooks.empty(clusters.size)
    if codebooks.centroids.shape[1] != clusters.size:
        raise ValueError(
            f"codebooks must have one entry for each of the {clusters.size} rates, got "
            f"{codebooks.centroids.shape[1]}."
        )
    if ridge_penalties is None:
        ridge_penalties = default_penalties(problem, clusters.size)
    if np.shape(ridge_penalties) != clusters.shape:
        raise ValueError(
            f"ridge_penalties must have one entry for each of the {clusters.size} rates, got "
            f"shape {np.shape(ridge_penalties)}."
        )
    rates = dim * np.log(clusters.astype(np.float64))
    if rates_nats is not None:
        rates = np.asarray(rates_nats, np.float64)
    if rates.shape != clusters.shape or not np.all(rates >= 0):
        raise ValueError(
            f"rates_nats must be {clusters.size} numbers >= 0, one for each of num_clusters, got "
            f"shape {rates.shape}."
        )
    return clusters, rates, ridge_penalties, codebooks


class _Setup(NamedTuple):
    """What is the same for all data sets of a simulation; everything traced."""

    problem: Problem
    codebooks: DesignedCodebooks
    merged: MergedCodebooks
    rates: Float[Array, " R"]
    num_clusters: Int[Array, " R"]
    penalties: Float[Array, " R"]
    diameter_penalty: Float[Array, ""]
    num_examples: Float[Array, ""]
    key: Array


def _one_batch(
    setup: _Setup,
    covariance_factor: Float[Array, "d d"],
    numbers: Int[Array, " M"],
    *,
    compressors: tuple[str, ...],
    num_inputs: int | None,
    max_clusters: int,
) -> Samples:
    """Draw, solve and compress the data sets of these numbers."""
    problem, rates, num_examples = setup.problem, setup.rates, setup.num_examples
    keys = jax.vmap(jax.random.split)(keys_of(setup.key, numbers))
    draw_keys, noise_keys = keys[:, 0], keys[:, 1]
    solution = draw(problem, covariance_factor, draw_keys, num_examples, num_inputs)
    num_sets, dim = solution.weights.shape
    gain, _ = gain_and_loss(rates, jnp.asarray(dim, rates.dtype))
    shrunk = gain[:, None] * solution.weights[:, None]
    quantized, lengths, counts = _compressed(
        setup, covariance_factor, solution, shrunk, noise_keys, compressors, max_clusters
    )
    stacked = jnp.stack([quantized[name] for name in compressors], axis=1)
    score = partial(risks_of, problem, covariance_factor, solution, num_examples=num_examples)
    empirical, population = score(stacked)
    _, own = score(solution.weights)
    fixed = 1 - 1 / jnp.square(setup.num_clusters.astype(rates.dtype))
    both = jnp.stack([shrunk, fixed[:, None] * solution.weights[:, None]], axis=1)
    _, shrinkage = score(both)
    told = [jnp.broadcast_to(lengths[name], (num_sets, *rates.shape)) for name in compressors]
    return Samples(
        empirical=empirical,
        population=population,
        length=jnp.stack(told, axis=1),
        least_squares=jnp.stack([solution.empirical_risk, own], axis=-1),
        shrinkage=shrinkage,
        counts=counts,
    )


def _compressed(
    setup: _Setup,
    covariance_factor: Float[Array, "d d"],
    solution: Solution,
    shrunk: Float[Array, "M R d"],
    noise_keys: Array,
    compressors: tuple[str, ...],
    max_clusters: int,
) -> tuple[dict[str, Float[Array, "M R d"]], dict[str, Array], Int[Array, "M A R K"] | None]:
    """What every compressor makes of W, its code lengths, and counts of adaptive codebooks."""
    problem, rates, num_examples = setup.problem, setup.rates, setup.num_examples
    num_sets, dim = solution.weights.shape
    shape = (num_sets, rates.shape[0], dim)
    quantized: dict[str, Array] = {}
    lengths: dict[str, Array] = {}
    names = [name for name in compressors if name in CHANNELS]
    if names:
        outputs = _channels(
            problem, covariance_factor, solution, rates, noise_keys, names, num_examples
        )
        quantized |= dict(zip(names, outputs, strict=True))
        lengths |= dict.fromkeys(names, rates)
    controls: dict[str, Callable[[], Array]] = {
        "least_squares": lambda: solution.weights[:, None],
        "shrinkage": lambda: shrunk,
        "ridge": lambda: ridge(solution, setup.penalties),
        "james_stein": lambda: james_stein(solution, num_examples)[:, None],
    }
    for name in compressors:
        if name in controls:
            quantized[name] = jnp.broadcast_to(controls[name](), shape)
            lengths[name] = jnp.full(rates.shape, jnp.inf, rates.dtype)
    names = tuple(name for name in compressors if name in DESIGNED)
    if names:
        fixed_rates = dim * jnp.log(setup.num_clusters.astype(rates.dtype))
        found = jax.vmap(
            lambda weights: designed_quantize(
                weights, setup.codebooks, setup.merged, fixed_rates, names
            )
        )(solution.weights)
        quantized |= {name: values for name, (values, _) in found.items()}
        lengths |= {name: length for name, (_, length) in found.items()}
    names = tuple(name for name in compressors if name in ADAPTIVE)
    counts = None
    if names:
        found = adaptive_quantize(
            solution.weights,
            hessian_diagonal(solution.gram_factor, num_examples),
            setup.num_clusters,
            setup.diameter_penalty,
            names,
            max_clusters=max_clusters,
        )
        quantized |= {name: values for name, (values, _) in found.items()}
        lengths |= {name: jnp.zeros_like(rates) for name in names}
        counts = jnp.stack([count for _, count in found.values()], axis=1)
    return quantized, lengths, counts


@partial(jax.jit, static_argnames=("compressors", "num_inputs", "max_clusters", "batch_size"))
def _chunk(
    setup: _Setup,
    numbers: Int[Array, " M"],
    *,
    compressors: tuple[str, ...],
    num_inputs: int | None,
    max_clusters: int,
    batch_size: int,
) -> Samples:
    one_batch = partial(
        _one_batch,
        setup,
        cholesky(setup.problem.covariance),
        compressors=compressors,
        num_inputs=num_inputs,
        max_clusters=max_clusters,
    )
    return map_batches(one_batch, numbers, batch_size)


def _channels(
    problem: Problem,
    covariance_factor: Float[Array, "d d"],
    solution: Solution,
    rates: Float[Array, " R"],
    keys: Array,
    names: Sequence[str],
    num_examples: Float[Array, ""],
) -> list[Float[Array, "M R d"]]:
    """Send W through Gaussian channels, with the same noise at every rate and in every channel."""
    dim = solution.weights.shape[-1]
    a, b = gain_and_loss(rates, jnp.asarray(dim, rates.dtype))
    a, b = a[:, None], b[:, None]
    normal = jax.vmap(lambda key: jax.random.normal(key, (dim,), rates.dtype))(keys)
    s2, truth, weights = problem.noise_variance, problem.true_weights, solution.weights
    informed = solve_lower(solution.gram_factor, normal[..., None], transposed=True)[..., 0]
    informed = jnp.sqrt(s2) * informed
    white = solve_lower(covariance_factor, normal.T, transposed=True).T
    variance = s2 / (num_examples - dim - 1)
    signal = truth @ problem.covariance @ truth
    noise = {
        "informed": informed,
        "uninformed": jnp.sqrt(variance) * white,
        "informed_zero_mean": informed,
        "uninformed_zero_mean": jnp.sqrt(variance) * white,
        "matched": jnp.sqrt(signal / dim + variance) * white,
    }
    outputs = []
    for name in names:
        mean = truth if name in ("informed", "uninformed") else jnp.zeros_like(truth)
        sent = mean + a * (weights - mean)[:, None]
        outputs.append(sent + jnp.sqrt(a * b) * noise[name][:, None])
    return outputs


def _summarize(
    samples: Samples, names: tuple[str, ...], rates: NDArray[np.float64], count: int
) -> Simulation:
    """Means and sums of squares of the first `count` data sets."""
    empirical, population, length, own, shrinkage = (
        np.asarray(leaf[:count], np.float64) for leaf in samples[:-1]
    )
    if samples.counts is not None:
        counts = np.asarray(samples.counts[:count])
        size = sizes.code_size(counts, num_clusters=counts.shape[-1])
        places = [place for place, name in enumerate(names) if name in ADAPTIVE]
        length[:, places] = size.description_bits * LN2
    is_fixed = [name in (*FIXED_RATE, *ADAPTIVE) for name in names]
    shrinkage = shrinkage[:, np.asarray(is_fixed, int)]
    least_empirical, least_population = own[:, 0, None, None], own[:, 1, None, None]
    # One after the other: each fits the cache, all of them together do not.
    quantities: tuple[Callable[[], NDArray[np.float64]], ...] = (
        lambda: empirical,
        lambda: population,
        lambda: population - empirical,
        lambda: 1 - empirical / population,
        lambda: empirical - least_empirical,
        lambda: least_population - population,
        lambda: population - shrinkage,
        lambda: length,
    )
    means, squares = zip(*(_mean_and_squares(values()) for values in quantities), strict=True)
    return Simulation(count, names, rates, np.stack(means), np.stack(squares))


def _mean_and_squares(
    values: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean over the first axis and sum of squared deviations from it."""
    mean = values.mean(axis=0)
    with np.errstate(invalid="ignore"):
        deviations = values - mean
    # Infinite lengths are all the same.
    if not np.all(np.isfinite(mean)):
        deviations[values == mean] = 0.0
    return mean, np.einsum("mcr,mcr->cr", deviations, deviations)
