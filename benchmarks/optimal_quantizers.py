"""Time scalar quantizers against public ones: the same data and run, time and objective together.

    python benchmarks/optimal_quantizers.py [--num-points 100000] [--num-clusters 4 16]
        [--rows 256] [--peer-seconds 60] [--model FILE.safetensors] [--plot growth.png] [--out F]

`--num-points 100000 1000000 10000000 --num-clusters 4 16 64 256 --rows 4096` is the full set.
`--num-points 1000000 --turns 20` does one thing only: `kmeans` (K = 16, assignments and distortion
included), the same within `jit`, the centres alone (`codebook`), and flash1dkmeans, which gives
centres alone, in so many alternate turns of one process, by the clock and by the processor.

Problems: Student-t weights (3 degrees of freedom) with Gamma importances, seeded, or the first
matrix of a file of weights with the same importances. Peers that are not installed are left out
and named (`pip install 'jaxcomp[bench]'`); a peer that took longer than `--peer-seconds` is not
given a harder problem.

- `codebook`: a histogram of 4,096 bins and `solve_kmeans` on it; centres, as the peers return.
- `kmeans`: the same with the assignments of the points and their distortion.
- `optimal`: `optimal_kmeans`, every number of clusters up to K, bound included; 4,096 bins.
- `optimal_fine`: the same with 16,384 bins, up to K = 64.
- `rows`: `block_kmeans`, one codebook a row.
- `diameter`: `optimal_diameter_kmeans`, all K <= 16 and all penalties, and how far Lloyd's
  iteration in its published and its monotone form ends above it.

Compilation is apart; inputs lie on the device before the clock starts; objectives are computed
outside the clock in float64, on the points and the nearest of the centroids returned.
"""

import argparse
import importlib
import importlib.metadata
import itertools
import json
import logging
import platform
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from quantizers import commit, make_problem, objective, timed, timed_program

from jaxcomp.experiments import drawing
from jaxcomp.quantizers import (
    block_kmeans,
    entropy_constrained,
    histogram_moments,
    kmeans,
    optimal_diameter_kmeans,
    optimal_kmeans,
    solve_kmeans,
    vector_kmeans,
)

PACKAGES = ("flash1dkmeans", "ckwrap", "kmeans1d", "scikit-learn", "faiss-cpu", "ott-jax")
ITERATIONS = (
    ("published", "quantiles"),
    ("monotone", "quantiles"),
    ("published", "coarse_to_fine"),
    ("monotone", "coarse_to_fine"),
)
PENALTIES = (0.0, 1e-3, 0.01, 0.03, 0.1, 0.3)
Problem = tuple[np.ndarray, np.ndarray]


def flash1dkmeans(points, importance, num_clusters):
    module = importlib.import_module("flash1dkmeans")
    return module.kmeans_1d(
        points, num_clusters, sample_weights=importance, random_state=0, return_cluster_borders=True
    )[0]


def ckwrap(points, importance, num_clusters):
    module = importlib.import_module("ckwrap")
    return module.ckmeans(
        points.astype(np.float64), num_clusters, weights=importance.astype(np.float64)
    ).centers


def kmeans1d(points, importance, num_clusters):
    """Optimal for equal weights, which is all that this package knows: a time, not an objective."""
    del importance
    module = importlib.import_module("kmeans1d")
    return module.cluster(points, num_clusters).centroids


def scikit_learn(points, importance, num_clusters):
    cluster = importlib.import_module("sklearn.cluster")
    model = cluster.KMeans(num_clusters, n_init=1, random_state=0)
    return model.fit(points[:, None], sample_weight=importance).cluster_centers_[:, 0]


def faiss(points, importance, num_clusters):
    module = importlib.import_module("faiss")
    model = module.Kmeans(1, num_clusters, niter=30, max_points_per_centroid=len(points))
    model.train(points[:, None], weights=importance)
    return model.centroids[:, 0]


def ott(points, importance, num_clusters):
    module = importlib.import_module("ott.tools.k_means")
    found = module.k_means(jnp.asarray(points)[:, None], num_clusters, weights=importance)
    return np.asarray(jax.block_until_ready(found.centroids))[:, 0]


PEERS: dict[str, Callable] = {
    "flash1dkmeans": flash1dkmeans,
    "ckwrap": ckwrap,
    "kmeans1d": kmeans1d,
    "scikit_learn": scikit_learn,
    "faiss": faiss,
    "ott": ott,
}
# Points x clusters a peer is given at most: what holds that many numbers, or takes minutes.
PEER_LIMIT = {"ott": 2_000_000, "kmeans1d": 20_000_000, "faiss": 70_000_000}


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def by_optimal(points, importance, *, max_clusters: int, num_bins: int):
    return optimal_kmeans(points, importance, max_clusters=max_clusters, num_bins=num_bins)


def by_kmeans(points, importance, *, num_clusters: int):
    return kmeans(points, importance, num_clusters=num_clusters)


def by_codebook(points, importance, *, num_clusters: int):
    moments = histogram_moments(points, importance)
    found = solve_kmeans(moments, num_clusters, max_clusters=num_clusters, penalty_form="none")
    return found.codebook


def own_entries(problem: Problem, num_clusters: int, repeats: int) -> list[dict]:
    arguments = tuple(jax.block_until_ready(jnp.asarray(part)) for part in problem)
    input_bytes = sum(part.nbytes for part in problem)
    programs = {
        "codebook": partial(by_codebook, num_clusters=num_clusters),
        "kmeans": partial(by_kmeans, num_clusters=num_clusters),
        "optimal": partial(by_optimal, max_clusters=num_clusters, num_bins=4096),
        "optimal_fine": partial(by_optimal, max_clusters=num_clusters, num_bins=16_384),
    }
    if num_clusters > 64:
        del programs["optimal_fine"]
    entries = []
    for name, program in programs.items():
        result, report = timed_program(program, arguments, repeats)
        centroids = result.centroids
        if name.startswith("optimal"):
            centroids = centroids(num_clusters)
            share = result.gap_bound[num_clusters] / result.distortion[num_clusters]
            report["gap_bound_relative"] = float(share)
        report["temporary_over_input"] = report.pop("temporary_bytes") / input_bytes
        report["objective"] = objective(*problem, np.asarray(centroids), 0.0)
        entries.append({"method": name, **report})
    return entries


def peer_entries(problem: Problem, num_clusters: int, too_slow: dict, limit: float) -> list[dict]:
    entries = []
    for name, run in PEERS.items():
        work = len(problem[0]) * num_clusters
        if work > min(PEER_LIMIT.get(name, work), too_slow.get(name, work)):
            continue
        try:
            run(*(part[:4096] for part in problem), 4)  # import, and compile what is compiled
        except ImportError:
            continue
        start = time.perf_counter()
        centroids, report = timed(partial(run, *problem, num_clusters), 1)
        if time.perf_counter() - start < 2:
            centroids, report = timed(partial(run, *problem, num_clusters), 3)
        if report["time_seconds_median"] > limit:
            too_slow[name] = work
        value = objective(*problem, np.asarray(centroids), 0.0)
        entries.append({"method": name, **report, "objective": value})
    return entries


def turns_report(problem: Problem, turns: int) -> dict:
    """Time functions and flash1dkmeans in alternate turns: seconds a call, mean of the turns."""
    num_clusters = 16
    points, importance = (jax.block_until_ready(jnp.asarray(part)) for part in problem)

    @jax.jit
    def jitted(points, importance):
        return kmeans(points, importance, num_clusters=num_clusters)

    @jax.jit
    def codebook(points, importance):
        moments = histogram_moments(points[None], importance[None], num_bins=4096)
        return solve_kmeans(moments, num_clusters, max_clusters=num_clusters).codebook.centroids

    runs = {
        "kmeans": lambda: kmeans(points, importance, num_clusters=num_clusters),
        "kmeans_jitted": lambda: jitted(points, importance),
        "codebook": lambda: codebook(points, importance),
        "flash1dkmeans": lambda: flash1dkmeans(*problem, num_clusters),
    }

    def clocks() -> np.ndarray:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return np.array([time.perf_counter(), used.ru_utime + used.ru_stime])

    seconds = {name: np.zeros((turns, 2)) for name in runs}
    # Two turns to compile and to fill the caches.
    for turn in range(-2, turns):
        for name, run in runs.items():
            start = clocks()
            jax.block_until_ready(run())
            if turn >= 0:
                seconds[name][turn] = clocks() - start
    kinds = ("clock", "processor")
    report: dict = {"num_points": points.size, "num_clusters": num_clusters, "turns": turns}
    for column, kind in enumerate(kinds):
        peer = seconds["flash1dkmeans"][:, column]
        report[kind] = {
            name: {
                "seconds": float(own[:, column].mean()),
                "ratio": float(own[:, column].sum() / peer.sum()),
                "ratio_of_least": float(own[:, column].min() / peer.min()),
            }
            for name, own in seconds.items()
        }
    return report


def rows_report(num_rows: int, repeats: int) -> dict:
    """One codebook of 16 centres for each of a matrix's rows of 4,096 weights."""
    num_clusters, num_columns, num_checked = 16, 4096, 32
    points, importance = make_problem(num_rows * num_columns, 1)
    matrices = tuple(part.reshape(num_rows, num_columns) for part in (points, importance))
    arguments = tuple(jax.block_until_ready(jnp.asarray(part)) for part in matrices)

    def run(matrix, weight):
        return block_kmeans(matrix, weight, block_shape=(1, num_columns), num_clusters=num_clusters)

    result, report = timed_program(run, arguments, repeats)
    report["temporary_over_input"] = report.pop("temporary_bytes") / (2 * points.nbytes)
    report["time_seconds_per_row"] = report["time_seconds_median"] / num_rows
    found = np.asarray(result.centroids)[:num_checked, 0]
    rows = [tuple(part[i] for part in matrices) for i in range(num_checked)]
    values = [objective(*row, centroids, 0.0) for row, centroids in zip(rows, found, strict=True)]
    best = [
        float(optimal_kmeans(*row, max_clusters=num_clusters).distortion[num_clusters])
        for row in rows
    ]
    report["objective_over_optimum_mean"] = float(np.mean(np.divide(values, best)))
    if version_of("flash1dkmeans"):
        flash1dkmeans(*rows[0], num_clusters)
        peer, seconds = timed(
            lambda: [flash1dkmeans(*row, num_clusters) for row in rows], max(2, repeats // 2)
        )
        values = [objective(*row, c, 0.0) for row, c in zip(rows, peer, strict=True)]
        report["flash1dkmeans_seconds_per_row"] = seconds["time_seconds_median"] / num_checked
        report["flash1dkmeans_over_optimum_mean"] = float(np.mean(np.divide(values, best)))
        report["time_over_flash1dkmeans"] = (
            report["time_seconds_per_row"] / report["flash1dkmeans_seconds_per_row"]
        )
    return {"num_rows": num_rows, "num_clusters": num_clusters, **report}


def diameter_report(problem: Problem, repeats: int) -> dict:
    """All K <= 16 and all penalties from one solve; Lloyd's iteration against it."""
    arguments = tuple(jax.block_until_ready(jnp.asarray(part)) for part in problem)
    clusters = jnp.array([2, 4, 8, 16])[:, None]
    penalties = jnp.array(PENALTIES, jnp.float32)
    solver, report = timed_program(
        partial(optimal_diameter_kmeans, max_clusters=16), arguments, repeats
    )
    found, solving = timed_program(lambda s: s.solve(clusters, penalties), (solver,), repeats)
    objective = found.solution.objective
    report["problems_compile_seconds"] = solving["compile_seconds"]
    report["time_seconds_per_problem"] = solving["time_seconds_median"] / objective.size
    report["gap_bound_relative_worst"] = float(np.max(found.gap_bound / objective))
    report["iterations_over_optimum"] = {}
    for form, start in ITERATIONS:
        lloyd = solve_kmeans(
            solver.moments, clusters, penalties, max_clusters=16, penalty_form=form, start=start
        )
        ratio = np.asarray(lloyd.objective / objective)
        report["iterations_over_optimum"][f"{form}, {start}"] = ratio.ravel().tolist()
    return report


def others_report(problem: Problem, repeats: int) -> list[dict]:
    """Vectors of four weights, and a curve of entropy-constrained quantizers."""
    points, importance = (jnp.asarray(part) for part in problem)

    def vectors(w, h):
        key = jax.random.key(0)
        return vector_kmeans(w.reshape(-1, 4), h.reshape(-1, 4), num_clusters=256, key=key)

    programs = {
        "vector_kmeans": vectors,
        "entropy_constrained": lambda w, h: entropy_constrained(w, h, max_clusters=64),
    }
    entries = []
    for name, program in programs.items():
        _, report = timed_program(program, (points, importance), max(1, repeats // 2))
        input_bytes = points.nbytes + importance.nbytes
        report["temporary_over_input"] = report.pop("temporary_bytes") / input_bytes
        entries.append({"method": name, "num_points": points.size, **report})
    return entries


def ratios(
    table: list[dict], rows: dict | None, diameter: dict, others: list[dict]
) -> dict[str, dict]:
    """Compare what was measured with the targets, where the run holds what that needs."""

    def find(method, num_points, num_clusters):
        for entry in table:
            if entry["problem"] == "student_t" and entry["method"] == method:
                key = (entry["num_points"], entry["num_clusters"])
                if key == (num_points, num_clusters):
                    return entry
        return None

    found: dict[str, dict] = {}

    def add(name, value, target):
        found[name] = {"measured": value, "at_most": target, "met": bool(value <= target)}

    def seconds(entry):
        return entry["time_seconds_median"]

    million = 1_000_000
    codebook, optimal = find("codebook", million, 16), find("optimal", million, 16)
    flash, exact = find("flash1dkmeans", million, 16), find("ckwrap", million, 16)
    if codebook and flash:
        add("codebook: time over flash1dkmeans", seconds(codebook) / seconds(flash), 1 / 6)
    if codebook and exact:
        excess = codebook["objective"] / exact["objective"] - 1
        add("codebook: excess over ckwrap's optimum", excess, 1e-4)
        add("optimal: excess", optimal["objective"] / exact["objective"] - 1, 3e-6)
        add("optimal: time over ckwrap", seconds(optimal) / seconds(exact), 1 / 15)
    every, one = find("optimal", million, 64), find("ckwrap", million, 64)
    if every and one:
        add("every K <= 64 over ckwrap's K = 64", seconds(every) / seconds(one), 1 / 20)
    for method in ("codebook", "kmeans", "optimal"):
        one, ten = find(method, million, 16), find(method, 10 * million, 16)
        if one and ten:
            add(f"{method}: time of 1e7 over 1e6 points", seconds(ten) / seconds(one), 12)
    if rows and "time_over_flash1dkmeans" in rows:
        add("rows: time over flash1dkmeans", rows["time_over_flash1dkmeans"], 1)
    if rows:
        add("rows: objective over optimum", rows["objective_over_optimum_mean"], 1.005)
    add("diameter: seconds", diameter["time_seconds_median"], 1)
    add("diameter: relative gap", diameter["gap_bound_relative_worst"], 1e-3)
    compiled = [
        entry for entry in (*table, rows, diameter, *others) if entry and "compile_seconds" in entry
    ]
    add("compile seconds, worst", max(entry["compile_seconds"] for entry in compiled), 4)
    # A histogram is small beside a million points, not beside a thousand.
    memory = [
        entry["temporary_over_input"]
        for entry in compiled
        if "temporary_over_input" in entry and entry.get("num_points", million) >= million
    ]
    if memory:
        add("temporary memory over input, worst", max(memory), 4)
    return found


def fit_growth(table: list[dict]) -> dict[str, float]:
    """Fit log time = a + b log N + c log K for every method with enough sizes."""
    exponents = {}
    for method in sorted({entry["method"] for entry in table}):
        entries = [e for e in table if e["method"] == method and e["problem"] == "student_t"]
        sizes = np.array([(e["num_points"], e["num_clusters"]) for e in entries], float)
        if len(entries) < 4 or len(set(sizes[:, 0])) < 2 or len(set(sizes[:, 1])) < 2:
            continue
        matrix = np.column_stack([np.ones(len(sizes)), np.log(sizes)])
        times = np.log([e["time_seconds_median"] for e in entries])
        _, of_points, of_clusters = np.linalg.lstsq(matrix, times, rcond=None)[0]
        exponents[method] = {"of_points": float(of_points), "of_clusters": float(of_clusters)}
    return exponents


def draw(table: list[dict], diameter: dict, path: Path) -> None:
    """Times against N and against K, and how far iterations with a diameter penalty end above."""
    figure = drawing.new_figure(
        12.0,
        5.2,
        "Optimal quantizers against other libraries",
        "Left, middle: lower is faster (solid: this package, dashed: others; not all find the "
        "optimum, see the table).\nRight: of iterations with a diameter penalty, the further left "
        "and up the nearer to the optimum.",
    )
    axes = figure.subplots(1, 3)
    synthetic = [e for e in table if e["problem"] == "student_t"]
    methods = list(dict.fromkeys(e["method"] for e in synthetic))
    colours = itertools.cycle((*drawing.COLOURS, drawing.INK, drawing.GREY))
    looks = {
        method: {"color": colour, "linestyle": "-" if place < 4 else "--", "marker": marker}
        for place, (method, colour, marker) in enumerate(
            zip(methods, colours, itertools.cycle("os^DvPX*<"), strict=False)
        )
    }
    pairs = (("num_points", "num_clusters", 16), ("num_clusters", "num_points", 1_000_000))
    names = {"num_points": "points", "num_clusters": "clusters"}
    for axis, (along, fixed, preferred) in zip(axes, pairs, strict=False):
        values = sorted({e[fixed] for e in synthetic})
        value = preferred if preferred in values else values[-1]
        for method in methods:
            line = sorted(
                (e[along], e["time_seconds_median"])
                for e in synthetic
                if e["method"] == method and e[fixed] == value
            )
            if line:
                axis.loglog(*zip(*line, strict=True), **looks[method], label=method, markersize=4.5)
        for scale in (axis.xaxis, axis.yaxis):
            drawing.plain_log_ticks(scale)
        drawing.panel(axis, f"{value:,} {names[fixed]}", x=names[along], y="time, seconds")
    for (label, ratio), dashes in zip(
        diameter["iterations_over_optimum"].items(), ("-", "--", ":", "-."), strict=False
    ):
        above = 100 * np.maximum(np.sort(ratio) - 1, 1e-6)
        share = np.arange(1, len(above) + 1) / len(above)
        words = f"iterations: {label.replace('_', ' ')}"
        axes[2].step(above, share, where="post", linestyle=dashes, label=words)
    axes[2].set_xscale("log")
    drawing.panel(
        axes[2], "With a diameter penalty", x="per cent above the optimum", y="share of problems"
    )
    drawing.legend_of_labels(figure, columns=4)
    path.write_bytes(drawing.encoded(figure, drawing.form_of(path)))


def first_matrix(path: Path) -> np.ndarray:
    tensors = importlib.import_module("safetensors.numpy").load_file(path)
    name = next(name for name in sorted(tensors) if tensors[name].ndim == 2)
    return tensors[name].astype(np.float32).ravel()


def print_table(table: list[dict]) -> None:
    best: dict[tuple, float] = {}
    for entry in table:
        key = (entry["problem"], entry["num_points"], entry["num_clusters"])
        best[key] = min(best.get(key, np.inf), entry["objective"])
    line = "{:<10} {:>9} {:>4}  {:<14} {:>10} {:>12} {:>9}\n"
    sys.stdout.write(line.format("problem", "N", "K", "method", "ms", "above best", "compile s"))
    for entry in table:
        key = (entry["problem"], entry["num_points"], entry["num_clusters"])
        sys.stdout.write(
            line.format(
                *key,
                entry["method"],
                f"{1e3 * entry['time_seconds_median']:.1f}",
                f"{entry['objective'] / best[key] - 1:.1e}",
                f"{entry['compile_seconds']:.1f}" if "compile_seconds" in entry else "",
            )
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-points", type=int, nargs="+", default=[100_000])
    parser.add_argument("--num-clusters", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--rows", type=int, default=256, help="0 leaves the rows out")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peer-seconds", type=float, default=60.0)
    parser.add_argument("--turns", type=int, default=0, help="only these, of K-means and its peer")
    parser.add_argument("--model", type=Path, help="a safetensors file: its first matrix")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, help="draw times and iterations here")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    # flash1dkmeans warns on every call of what its own documentation says.
    logging.disable(logging.WARNING)

    problems = [("student_t", make_problem(n, options.seed)) for n in sorted(options.num_points)]
    if options.turns:
        text = json.dumps(turns_report(problems[0][1], options.turns), indent=2)
        sys.stdout.write(text + "\n")
        return
    if options.model is not None:
        weights = first_matrix(options.model)
        problems.append(("model", (weights, make_problem(len(weights), options.seed)[1])))
    table: list[dict] = []
    too_slow: dict[str, float] = {}
    for name, problem in problems:
        for num_clusters in sorted(options.num_clusters):
            key = {
                "problem": name,
                "num_points": len(problem[0]),
                "num_clusters": num_clusters,
            }
            entries = own_entries(problem, num_clusters, options.repeats)
            entries += peer_entries(problem, num_clusters, too_slow, options.peer_seconds)
            table += [key | entry for entry in entries]
            times = "  ".join(
                f"{entry['method']} {1e3 * entry['time_seconds_median']:.0f} ms"
                for entry in entries
            )
            sys.stderr.write(f"{name}, {len(problem[0]):,} points, K = {num_clusters}: {times}\n")
    rows = rows_report(options.rows, options.repeats) if options.rows else None
    diameter = diameter_report(problems[0][1], options.repeats)
    others = others_report(problems[-1][1], options.repeats)
    targets = ratios(table, rows, diameter, others)
    print_table(table)
    for entry in others:
        sys.stdout.write(
            f"{entry['method']:<20} {1e3 * entry['time_seconds_median']:.0f} ms, compile "
            f"{entry['compile_seconds']:.1f} s, "
            f"memory {entry['temporary_over_input']:.1f} x input\n"
        )
    for label, ratio in diameter["iterations_over_optimum"].items():
        above = 100 * (np.asarray(ratio) - 1)
        sys.stdout.write(
            f"diameter, {label:<26} ends {np.median(above):.2g} % above the optimum in the median, "
            f"{np.max(above):.2g} % at worst\n"
        )
    for name, target in targets.items():
        verdict = "met" if target["met"] else "MISSED"
        sys.stdout.write(
            f"{name:<44} {target['measured']:>10.3g}  at most {target['at_most']:.3g}  {verdict}\n"
        )
    if options.plot is not None:
        draw(table, diameter, options.plot)
    report = {
        "table": table,
        "rows": rows,
        "diameter": diameter,
        "others": others,
        "targets": targets,
        "growth_exponents": fit_growth(table),
        "environment": {
            "device_kind": jax.devices()[0].device_kind,
            "platform": jax.default_backend(),
            "python": platform.python_version(),
            "jax": jax.__version__,
            "numpy": np.__version__,
            "peers": {package: version_of(package) for package in PACKAGES},
            "commit": commit(),
        },
    }
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
