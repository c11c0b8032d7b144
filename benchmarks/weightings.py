"""Does weighting errors by curvature help a network that reads text, and if not, why?

    python benchmarks/weightings.py [--network characters] [--rows ROWS.json]
    python benchmarks/weightings.py --network minilm --methods entropy_constrained

Compresses a trained network to 2, 3 and 4 bits per weight under every weighting, and scores what
became of it on examples that no curvature has seen. Weights are compressed by K-means or by
entropy-constrained quantization, one codebook a leaf. Equal bytes: bits of codes by their entropy
and codebooks, of the compressed leaves together, within the tolerance below.

- `characters`: a language model of characters (two blocks of attention, width 96), trained for two
  minutes on docstrings of the standard library and kept in the cache; nats per character.
- `minilm`: all-MiniLM-L6-v2 on first sentences of these docstrings; the mean cosine with the
  original embeddings, and how often the nearest of the other sentences is still the same one.

A weighting does two things, which are also tried one by one: it says what the error of a weight
counts *within* its leaf, and by which slope bits are shared *between* leaves. `nothing` weighs all
weights of a leaf alike, and relative errors of leaves alike.

Why a weighting fails shows in four numbers: the rise of the loss that its own diagonal predicts,
that the diagonal of the held-out examples predicts, that the whole Gauss-Newton matrix of the
held-out examples predicts (errors interact), and the rise that is measured (the loss is no
quadratic). All rises are of the squared error of the embedding, or of the divergence from the
original's characters in nats.

Rows are written as they come, and a run goes on from those it finds.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from language_model import CHARACTERS, Size, Training
from provenance import commit
from weighting_problems import Leaves, Problem, character_model, part_of, sentence_encoder

import jaxcomp
from jaxcomp import quantizers
from jaxcomp.curvature import CurvaturePolicy
from jaxcomp.experiments.caches import keep_compiled_programs
from jaxcomp.quantizers.allocation import allocate_rates
from jaxcomp.trees.paths import leaves_by_path
from jaxcomp.trees.selection import selected_paths

BITS = (2.0, 3.0, 4.0)
NUM_CALIBRATION = (32, 256, 1024)
NUM_HELD_OUT = 256
SIZE = Size(num_blocks=2, width=96, num_heads=4, num_tokens=64, num_classes=len(CHARACTERS))
TOLERANCE_BITS = 0.02
MOST_TRIES = 6
NUM_RESAMPLES = 4000
NOTHING = "nothing"
MAIN = (
    NOTHING,
    "all weights alike",
    "diagonal",
    "outputs",
    "layer Hessian",
    "between leaves alone",
)
"""At every budget and by every method; the others at the middle budget, by the first method."""

NOT_OF_THE_LOSS = ("all weights alike", "contrastive")


class Weighting(NamedTuple):
    """What errors count; arrays by path, of compressed leaves.

    Attributes:
        within: importance of each weight, for the codebook of its leaf; None for all alike.
        between: the importance by which bits are shared; None for relative errors of leaves.
    """

    within: Leaves | None
    between: Leaves | None


# --- Weightings -------------------------------------------------------------------------------


def weightings(problem: Problem, counts: Sequence[int]) -> dict[str, Callable[[], Weighting]]:
    """Return every weighting by name, computed when it is asked for.

    Args:
        problem: the network.
        counts: numbers of calibration examples; the middle one is that of all other rows.
    """
    paths = selected_paths(problem.params)
    few, usual, many = counts
    loss, *other_losses = problem.losses
    weights = {path: np.asarray(leaves_by_path(problem.params)[path]) for path in paths}

    def raised(diagonal: Leaves, policy: CurvaturePolicy | None = None) -> Leaves:
        own = {path: jnp.asarray(diagonal[path]) for path in paths}
        found = (policy or CurvaturePolicy()).apply(own).importance
        return {path: np.asarray(leaf) for path, leaf in found.items()}

    def diagonal(count: int, of: str = loss) -> Leaves:
        return calibrated(problem, of, [n for n in counts if n <= count])

    def both(importance: Leaves) -> Weighting:
        return Weighting(importance, importance)

    def averaged(axes: Callable[[int], tuple[int, ...]]) -> Callable[[Leaves], Leaves]:
        def average(leaves: Leaves) -> Leaves:
            return {
                path: np.broadcast_to(leaf.mean(axes(leaf.ndim), keepdims=True), leaf.shape).copy()
                for path, leaf in leaves.items()
            }

        return average

    by_leaf = averaged(lambda ndim: tuple(range(ndim)))
    by_output = averaged(lambda ndim: tuple(range(ndim - 1)))

    def by_layer() -> Leaves:
        """S_ii g_o, g_o such that the whole leaf counts what its diagonal says."""
        moments = problem.second_moments(part_of(problem.calibration, 0, usual))
        found = {}
        for path, leaf in diagonal(usual).items():
            if path not in moments:
                found[path] = leaf
                continue
            inputs = moments[path]
            across = tuple(range(leaf.ndim - 1))
            trace = inputs.sum(across, keepdims=True)
            found[path] = inputs * leaf.sum(across, keepdims=True) / np.where(trace > 0, trace, 1)
        return found

    def with_zeros_at_median(leaves: Leaves) -> Leaves:
        """Let zeros that are over half of a leaf weigh as the median of the rest."""
        found = raised(leaves)
        for path, leaf in found.items():
            is_zero = leaves[path] == 0
            if np.mean(is_zero) > 0.5:
                found[path] = np.where(is_zero, np.median(leaf[~is_zero]), leaf)
        return found

    def flat_table(leaves: Leaves) -> Leaves:
        return leaves | {problem.table: by_leaf(leaves)[problem.table]}

    def ones() -> Leaves:
        return {path: np.ones_like(leaf) for path, leaf in weights.items()}

    floor = CurvaturePolicy(zeros="floor")
    held_out = partial(held_out_diagonal, problem)
    found: dict[str, Callable[[], Weighting]] = {
        NOTHING: lambda: Weighting(None, None),
        "all weights alike": lambda: both(ones()),
        "diagonal": lambda: both(raised(diagonal(usual))),
        "outputs": lambda: both(by_output(raised(diagonal(usual)))),
        "layer Hessian": lambda: both(raised(by_layer())),
        f"diagonal, {few}": lambda: both(raised(diagonal(few))),
        "diagonal of the held-out": lambda: both(raised(held_out())),
        "zeros at the floor": lambda: both(raised(diagonal(usual), floor)),
        "zeros at the median": lambda: both(with_zeros_at_median(diagonal(usual))),
        "table's rows alike": lambda: both(flat_table(raised(diagonal(usual)))),
        "between leaves alone": lambda: Weighting(None, by_leaf(raised(diagonal(usual)))),
        "within leaves alone": lambda: Weighting(raised(diagonal(usual)), None),
    }
    for other in other_losses:
        found[other] = lambda other=other: both(raised(diagonal(usual, other)))
    found[f"diagonal, {many}"] = lambda: both(raised(diagonal(many)))
    return found


def held_out_diagonal(problem: Problem) -> Leaves:
    return problem.curvature(next(iter(problem.losses)), problem.held_out, 2)


def calibrated(problem: Problem, loss: str, counts: Sequence[int]) -> Leaves:
    """Return the diagonal of the first examples, joined from parts that are computed once."""
    total: Leaves = {}
    for seed, (start, stop) in enumerate(zip((0, *counts), counts, strict=False)):
        part = problem.curvature(loss, part_of(problem.calibration, start, stop), 100 + seed)
        share = (stop - start) / counts[-1]
        total = {path: total.get(path, 0.0) + share * leaf for path, leaf in part.items()}
    return total


# --- Equal bytes ------------------------------------------------------------------------------


def spread(weights: np.ndarray, importance: np.ndarray | None) -> float:
    """Return what a leaf loses as a single value: `sum h (w - mean)^2`."""
    w = weights.astype(np.float64)
    h = np.ones_like(w) if importance is None else importance.astype(np.float64)
    return float(np.sum(h * (w - np.average(w, weights=h)) ** 2))


def shared_spreads(problem: Problem, weighting: Weighting) -> dict[str, float]:
    """Return what every leaf loses as a single value, in the units in which bits are shared."""
    leaves = leaves_by_path(problem.params)
    found = {}
    for path in selected_paths(problem.params):
        own = np.asarray(leaves[path])
        importance = None if weighting.between is None else weighting.between[path]
        found[path] = spread(own, importance)
        if importance is None:
            found[path] /= float(np.sum(own.astype(np.float64) ** 2))
    return found


def entropy_constrained(
    problem: Problem, weighting: Weighting, budgets: Sequence[float]
) -> Iterator[tuple[float, Any]]:
    """Compress at one slope for all leaves, the slope found for every budget by secants."""
    spreads = shared_spreads(problem, weighting)
    sizes = {path: leaves_by_path(problem.params)[path].size for path in spreads}
    # A bit more for each weight of a leaf lowers its error by its multiplier times its spread.
    logs = {path: np.log2(sizes[path] / spreads[path]) for path in spreads}
    mean = sum(sizes[path] * logs[path] for path in spreads) / sum(sizes.values())
    limits = np.log2(quantizers.EntropyConstrained().candidates()[[0, -1]])

    def at(slope: float) -> Any:
        own = {path: float(2 ** np.clip(slope + logs[path], *limits)) for path in spreads}
        methods = {path: quantizers.EntropyConstrained(value) for path, value in own.items()}
        return jaxcomp.compress(problem.params, methods, importance=weighting.within)

    # At high rate; from the second budget on, as far off as at the one before.
    slope = float(np.log2(2 * np.log(2))) - 2 * budgets[0] - mean
    for place, bits in enumerate(budgets):
        tried: list[tuple[float, float, Any]] = []
        slope -= 2 * (bits - budgets[max(place - 1, 0)])
        for _ in range(MOST_TRIES):
            tree = at(slope)
            tried.append((slope, tree.report().bits_per_weight - bits, tree))
            if abs(tried[-1][1]) < TOLERANCE_BITS:
                break
            (x, y, _), (before_x, before_y, _) = tried[-1], tried[-2] if tried[1:] else (0, 0, None)
            steepness = (y - before_y) / (x - before_x) if tried[1:] and x != before_x else -0.5
            slope = x - y / min(steepness, -0.1)
        slope, _, tree = min(tried, key=lambda one: abs(one[1]))
        yield bits, tree


class FewerClusters(quantizers.KMeans):
    """K-means with fewer codebooks to choose from: its curves are most of what a row costs."""

    def candidates(self) -> np.ndarray:
        """Return numbers of clusters."""
        return np.asarray([2, 3, 4, 6, 8, 12, 16, 24, 32, 48])


def k_means(
    problem: Problem, weighting: Weighting, budgets: Sequence[float]
) -> Iterator[tuple[float, Any]]:
    """Compress with the numbers of clusters that one slope for all leaves chooses."""
    curves = jaxcomp.curve(problem.params, FewerClusters(), importance=weighting.within)
    leaves = leaves_by_path(problem.params)
    sizes = [curves[path].size_bits(leaves[path].size) for path in curves]
    # Curves are in units of what weighs within a leaf; bits are shared by what weighs between.
    shared = shared_spreads(problem, weighting)
    costs = []
    for path in curves:
        importance = None if weighting.within is None else weighting.within[path]
        own = spread(np.asarray(leaves[path]), importance)
        costs.append(curves[path].distortion * (shared[path] / own))
    num_weights = sum(leaves[path].size for path in curves)
    for bits in budgets:
        places = allocate_rates(sizes, costs, budget_bits=bits * num_weights).places
        methods = {
            path: quantizers.KMeans(int(curves[path].parameter[place]))
            for path, place in zip(curves, places.tolist(), strict=True)
        }
        yield bits, jaxcomp.compress(problem.params, methods, importance=weighting.within)


def sixteen_clusters(
    problem: Problem, weighting: Weighting, budgets: Sequence[float]
) -> Iterator[tuple[float, Any]]:
    """Compress with 16 clusters everywhere: what a budget would share is not shared."""
    for bits in budgets:
        method = quantizers.KMeans(16)
        yield bits, jaxcomp.compress(problem.params, method, importance=weighting.within)


METHODS = {
    "entropy_constrained": entropy_constrained,
    "kmeans": k_means,
    "sixteen_clusters": sixteen_clusters,
}

# --- Rows -------------------------------------------------------------------------------------


def measure(problem: Problem, weighting: Weighting, held_out: Leaves, tree: Any) -> dict[str, Any]:
    """Score a compressed network, and say what its diagonals and the whole matrix expected."""
    params = tree.params()
    error = jax.tree.map(jnp.subtract, params, problem.params)
    squares = {
        path: np.asarray(leaf, np.float64) ** 2 for path, leaf in leaves_by_path(error).items()
    }

    def predicted(importance: Leaves) -> float:
        return sum(float(np.sum(importance[path] * squares[path])) for path in tree.paths) / 2

    scores = problem.scores(params)
    return {
        "bits": tree.report().bits_per_weight,
        "size_bytes": tree.report().size_bits / 8,
        "predicted_by_own": predicted(weighting.between) if weighting.between else None,
        "predicted_by_held_out": predicted(held_out),
        "quadratic": float(np.mean(problem.quadratic_rise(error))),
        "scores": {name: [round(float(x), 6) for x in values] for name, values in scores.items()},
    }


def fill(
    rows: list[dict[str, Any]], problem: Problem, options: Any, save: Callable[[], None]
) -> None:
    """Add the rows that are missing, one method after the other."""
    held_out = held_out_diagonal(problem)
    found = weightings(problem, options.counts)
    if options.weightings is not None:
        unknown = sorted(set(options.weightings) - set(found))
        if unknown:
            raise SystemExit(f"no weighting is called {unknown}; there are {sorted(found)}.")
        found = {name: found[name] for name in options.weightings}
    for method in options.methods:
        for name, make in found.items():
            is_main = name in MAIN
            all_budgets = is_main and method != "sixteen_clusters"
            budgets = [
                bits
                for bits in (
                    options.bits if all_budgets else [options.bits[len(options.bits) // 2]]
                )
                if not any(
                    (row["weighting"], row["method"], row["budget"]) == (name, method, bits)
                    for row in rows
                )
            ]
            if not budgets or (not is_main and method != options.methods[0]):
                continue
            weighting, start = make(), time.perf_counter()
            for bits, tree in METHODS[method](problem, weighting, budgets):
                row = {"weighting": name, "method": method, "budget": bits}
                row |= measure(problem, weighting, held_out, tree)
                row["seconds"] = time.perf_counter() - start
                rows.append(row)
                save()
                shown = {name: float(np.mean(x)) for name, x in row["scores"].items()}
                sys.stderr.write(f"{name}, {method}, {row['bits']:.3f} bits: {shown}\n")
                start = time.perf_counter()


# --- Tables -----------------------------------------------------------------------------------


class Difference(NamedTuple):
    """A mean paired difference and its 95 % interval, by bootstrap over examples."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.4f} ({self.low:+.4f}, {self.high:+.4f})"


def difference(values: Sequence[float], reference: Sequence[float]) -> Difference:
    own = np.asarray(values) - np.asarray(reference)
    places = np.random.default_rng(0).integers(0, len(own), (NUM_RESAMPLES, len(own)))
    low, high = np.quantile(own[places].mean(axis=1), (0.025, 0.975))
    return Difference(float(own.mean()), float(low), float(high))


def markdown(lines: Sequence[Sequence[str]]) -> str:
    header, *rows = lines
    rule = [":--", *["--:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def scores_table(rows: Sequence[Mapping[str, Any]], method: str) -> str:
    """Every weighting at every budget: its scores, and how far they are from `nothing`."""
    names = [name for name in rows[0]["scores"] if name != "rise"]
    lines = [["weighting", "bits", *(cell for name in names for cell in (name, "difference"))]]
    own = [row for row in rows if row["method"] == method]
    plain = {row["budget"]: row for row in own if row["weighting"] == NOTHING}
    for row in sorted(own, key=lambda row: row["budget"]):
        cells = [row["weighting"], f"{row['bits']:.2f}"]
        for name in names:
            cells.append(f"{np.mean(row['scores'][name]):.4f}")
            reference = plain[row["budget"]]["scores"][name]
            is_other = row["weighting"] != NOTHING
            cells.append(str(difference(row["scores"][name], reference)) if is_other else "")
        lines.append(cells)
    return markdown(lines)


def rises_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """What each row's loss was expected to rise by, and what it rose by."""
    header = ["weighting", "method", "bits", "its own diagonal", "held-out diagonal"]
    lines = [[*header, "whole matrix", "measured"]]
    for row in sorted(rows, key=lambda row: (row["budget"], row["method"])):
        own = row["predicted_by_own"]
        lines.append(
            [
                row["weighting"],
                row["method"],
                f"{row['bits']:.2f}",
                "" if own is None or row["weighting"] in NOT_OF_THE_LOSS else f"{own:.4f}",
                f"{row['predicted_by_held_out']:.4f}",
                f"{row['quadratic']:.4f}",
                f"{np.mean(row['scores']['rise']):.4f}",
            ]
        )
    return markdown(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=("characters", "minilm"), default="characters")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS)[:2])
    parser.add_argument("--weightings", nargs="+", help="by name; by default all")
    parser.add_argument("--bits", nargs="+", type=float, default=list(BITS))
    parser.add_argument("--counts", nargs=3, type=int, default=list(NUM_CALIBRATION))
    parser.add_argument("--num-held-out", type=int, default=NUM_HELD_OUT)
    parser.add_argument("--size", nargs=4, type=int, help="blocks, width, heads, tokens")
    parser.add_argument("--num-steps", type=int, default=Training().num_steps)
    parser.add_argument("--rows", type=Path, help="keep all rows as JSON here, and go on from them")
    options = parser.parse_args(arguments)

    keep_compiled_programs()
    rows: list[dict[str, Any]] = []
    if options.rows is not None and options.rows.exists():
        rows = json.loads(options.rows.read_text())["rows"]
    if options.network == "minilm":
        problem = sentence_encoder(options.counts[-1], options.num_held_out)
    else:
        size = Size(*options.size, len(CHARACTERS)) if options.size else SIZE
        training = Training(num_steps=options.num_steps)
        problem = character_model(options.counts[-1], options.num_held_out, size, training)
    original = {name: float(np.mean(x)) for name, x in problem.scores(problem.params).items()}
    report = {
        "network": options.network,
        "original": original,
        "rows": rows,
        "environment": {
            "device_kind": jax.devices()[0].device_kind,
            "python": sys.version.split()[0],
            "jax": jax.__version__,
            "commit": commit(),
        },
    }

    def save() -> None:
        if options.rows is not None:
            options.rows.write_text(json.dumps(report) + "\n")

    fill(rows, problem, options, save)
    parts = [f"{problem.name}: {original}"]
    for method in options.methods:
        parts += [f"{method}:", scores_table(rows, method)]
    parts += ["Rises of the loss:", rises_table(rows)]
    sys.stdout.write("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
