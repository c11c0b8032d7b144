"""All methods and allocations of a sweep, against dynamic programmes and brute force in NumPy."""

import dataclasses
import json

import jax
import numpy as np
import pandas as pd
import pytest

from jaxcomp import quantizers, storage
from jaxcomp.coding import sizes
from jaxcomp.experiments import sweep
from jaxcomp.experiments.sweep import codebooks, evaluator, limits, pictures, variants
from jaxcomp.experiments.sweep.codebooks import Codebooks, solve_codebooks
from jaxcomp.experiments.sweep.compress import compress
from jaxcomp.experiments.sweep.config import SweepConfig
from jaxcomp.experiments.sweep.variants import Variant, compressed_variants
from jaxcomp.quantizers.problems import as_problem

KEY = jax.random.key(0)
CLUSTERS = (2, 4, 8)
METHODS = ("kmeans", "optimal", "entropy_constrained", "vector")
ALLOCATIONS = ("equal", "optimal")
PENALTY = 0.02
MULTIPLIERS = (0.0217, 0.173)
BINS = 160  # more than weights: scalar quantizers are solved on the weights themselves
SHAPES = {"hidden/kernel": (16, 9), "output/kernel": (9, 7)}  # an odd number in the second
# One importance: what a layer counts where it has no importance.
LAYER_WEIGHT = {"hidden/kernel": 0.02, "output/kernel": 1.5}
SOLVERS = (
    quantizers.scalar.lloyd.solve_kmeans,
    quantizers.methods.intervals._solve_plain,
    quantizers.methods.vector._solve,
    quantizers.solve_entropy_constrained,
)


def grid(**axes):
    settings = {
        "method": METHODS,
        "allocation": ALLOCATIONS,
        "importance": ("none", "fisher"),
        "penalty_form": ("monotone",),
        "diameter_penalty": (0.0, PENALTY),
        "num_clusters": CLUSTERS,
        "baselines": False,
    }
    return compressed_variants(**{**settings, **axes})


@pytest.fixture(autouse=True, scope="module")
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(variants, "MULTIPLIERS", MULTIPLIERS)
        patch.setattr(codebooks, "ENTROPY_BINS", BINS)
        patch.setattr(codebooks, "ENTROPY_SYMBOLS", 24)
        patch.setattr(evaluator, "MAX_CHUNK_VARIANTS", 4)
        # Drawing and fine limits take longer than this.
        patch.setattr(pictures, "save_figures", lambda *_, **__: [])
        patch.setattr(limits, "_NUM_SLOPES", 5)
        patch.setattr(limits, "_GAP_BITS", 0.2)
        yield


def solve(layers, importance, members):
    return solve_codebooks(
        layers,
        {"none": None, "fisher": importance},
        members,
        num_bins=BINS,
        num_iterations=100,
        layer_weight=LAYER_WEIGHT,
    )


def is_dear(variant):
    """Whether a program of its own takes long to compile; its tests are slow."""
    is_penalised = variant.method == "optimal" and variant.diameter_penalty > 0
    return is_penalised or (variant.method == "vector" and variant.importance == "none")


@pytest.fixture(scope="module")
def layers_and_importance():
    layers, importance = {}, {}
    rng = np.random.default_rng(0)
    for path, shape in SHAPES.items():
        layers[path] = np.float32(rng.standard_t(4.0, shape))
        importance[path] = np.float32(rng.exponential(size=shape) ** 2)
    return jax.device_put((layers, importance))


@pytest.fixture(scope="module")
def problem(small, layers_and_importance):
    layers, importance = layers_and_importance
    before = [solver._cache_size() for solver in SOLVERS]
    solved = solve(layers, importance, [own for own in grid() if not is_dear(own)])
    compiled = [solver._cache_size() - count for solver, count in zip(SOLVERS, before, strict=True)]
    return layers, importance, solved, compiled


def flat(problem, path, name):
    """Weights and importances of one layer, (N,) in float64."""
    layers, importance, *_ = problem
    weights = np.asarray(layers[path], np.float64).ravel()
    if name == "none":
        return weights, np.ones_like(weights)
    return weights, np.asarray(importance[path], np.float64).ravel()


def changed(problem, variant):
    layers, _, solved, _ = problem
    result = compress(layers, variant, solved, key=KEY)
    return result, {path: np.asarray(v, np.float64).ravel() for path, v in result.layers.items()}


def distortions(problem, variant):
    _, values = changed(problem, variant)
    found = {}
    for path, after in values.items():
        weights, mass = flat(problem, path, variant.importance)
        found[path] = np.sum(mass * (after - weights) ** 2)
    return found


def test_one_program_per_method(problem):
    # Two layers, all K. With importances and without, cells are other arrays.
    assert all(count <= most for count, most in zip(problem[3], (1, 1, 1, 2), strict=True))


def least_distortion(weights, mass, num_clusters):
    """Dynamic programme over all partitions into intervals, O(K N^2)."""
    order = np.argsort(weights)
    w, h = weights[order], mass[order]
    s0, s1, s2 = (np.append(0, np.cumsum(h * w**power)) for power in range(3))
    m0, m1, m2 = (s[None, :] - s[:, None] for s in (s0, s1, s2))
    cost = np.where(m0 > 0, m2 - m1**2 / np.where(m0 > 0, m0, 1), np.where(m0 == 0, 0, np.inf))
    cost = np.where(np.tri(len(s0), k=-1, dtype=bool), np.inf, np.maximum(cost, 0))
    best = cost[0]
    for _ in range(num_clusters - 1):
        best = np.min(best[:, None] + cost, axis=0)
    return best[-1]


@pytest.mark.parametrize("importance", ["none", "fisher"])
def test_optimal_codebooks_are_optimal_and_never_worse_than_lloyd(problem, importance):
    for k in CLUSTERS:
        optimal = distortions(problem, Variant("compressed", "optimal", importance, num_clusters=k))
        lloyd = distortions(problem, Variant("compressed", "kmeans", importance, num_clusters=k))
        for path in SHAPES:
            least = least_distortion(*flat(problem, path, importance), k)
            assert optimal[path] == pytest.approx(least, rel=1e-4)
            assert optimal[path] <= lloyd[path] * (1 + 1e-5)


def test_the_penalty_of_a_variant_is_that_of_its_quantizer():
    for name, method in (("optimal", quantizers.Optimal), ("kmeans", quantizers.KMeans)):
        for form, penalty in (("none", 0.0), ("monotone", PENALTY)):
            variant = Variant("compressed", name, "fisher", form, penalty, 4)
            found = codebooks.quantizer(variant, num_bins=BINS)
            assert (type(found), found.diameter_penalty) == (method, penalty)
            assert found.num_bins == BINS


@pytest.fixture(scope="module")
def penalised(small, layers_and_importance):
    layers, importance = layers_and_importance
    before = quantizers.methods.intervals._solve_diameter._cache_size()
    solved = solve(layers, importance, grid(method=("kmeans", "optimal"), allocation=("equal",)))
    assert quantizers.methods.intervals._solve_diameter._cache_size() - before <= 1
    return layers, importance, solved, None


@pytest.mark.slow
@pytest.mark.parametrize("importance", ["none", "fisher"])
def test_optimal_penalised_codebooks_are_never_worse_than_the_iteration(penalised, importance):
    def objectives(method, k):
        variant = Variant("compressed", method, importance, "monotone", PENALTY, k)
        _, values = changed(penalised, variant)
        for path, distortion in distortions(penalised, variant).items():
            beta = PENALTY * flat(penalised, path, importance)[1].sum()
            yield distortion + beta * np.ptp(values[path]) ** 2

    pairs = [
        pair
        for k in CLUSTERS
        for pair in zip(objectives("optimal", k), objectives("kmeans", k), strict=True)
    ]
    assert all(optimal <= iterated * (1 + 1e-4) for optimal, iterated in pairs)
    assert any(optimal < 0.995 * iterated for optimal, iterated in pairs)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("importance", ["none", "fisher"])
def test_entropy_constrained_weights_take_the_cheapest_symbol(problem, importance, allocation):
    for parameter in MULTIPLIERS:
        variant = Variant(
            "compressed",
            "entropy_constrained",
            importance,
            parameter=parameter,
            allocation=allocation,
        )
        points = problem[2].points[variant.id]
        result, values = changed(problem, variant)
        bits = 0.0
        for number, path in enumerate(SHAPES):
            weights, mass = flat(problem, path, importance)
            own = None if importance == "none" else problem[1][path]
            stored, lengths, multiplier = points[number].codebook
            is_used = np.isfinite(lengths)
            centroids, lengths = stored[is_used].astype(np.float64), lengths[is_used]
            cost = mass[:, None] * (weights[:, None] - centroids) ** 2
            unit = as_problem(problem[0][path], own).importance_exponent
            index = np.argmin(cost + np.ldexp(multiplier, unit) * lengths, axis=1)
            np.testing.assert_array_equal(values[path], centroids[index])
            # A fixed point: symbols as long as they are frequent, centred on their weights.
            counts = np.bincount(index, minlength=len(centroids))
            np.testing.assert_allclose(lengths, np.log2(len(index) / counts), atol=1e-4)
            for symbol, centre in enumerate(centroids):
                is_in = index == symbol
                mean = np.average(weights[is_in], weights=mass[is_in])
                assert centre == pytest.approx(mean, abs=1e-5)
            bits += counts @ lengths
        assert result.converged
        assert result.sizes is not None
        assert result.sizes.entropy_bits == pytest.approx(bits, rel=1e-5)


def test_multipliers_are_relative_to_each_layer_or_one_for_all(problem):
    def multipliers(variant, name):
        units = [
            as_problem(problem[0][path], None if name == "none" else problem[1][path])
            for path in SHAPES
        ]
        found = [point.codebook[2] for point in problem[2].points[variant.id]]
        return [
            np.ldexp(np.float64(own), unit.importance_exponent)
            for own, unit in zip(found, units, strict=True)
        ]

    for importance in ("none", "fisher"):
        weight = np.array(list(LAYER_WEIGHT.values())) if importance == "none" else np.ones(2)
        spread, number = np.zeros(2), np.zeros(2)
        for place, path in enumerate(SHAPES):
            points, mass = flat(problem, path, importance)
            mean = np.average(points, weights=mass)
            spread[place], number[place] = np.sum(mass * (points - mean) ** 2), len(points)
        for parameter in MULTIPLIERS:
            equal = Variant("compressed", "entropy_constrained", importance, parameter=parameter)
            allocated = dataclasses.replace(equal, allocation="optimal")
            np.testing.assert_allclose(
                multipliers(equal, importance), parameter * spread / number, rtol=1e-4
            )
            one = parameter * (weight @ spread) / number.sum()
            np.testing.assert_allclose(
                np.array(multipliers(allocated, importance)) * weight, one, rtol=1e-4
            )


@pytest.fixture(scope="module")
def vectors(small, layers_and_importance):
    """What `problem` has, of vectors, with importances and without."""
    solved = solve(*layers_and_importance, grid(method=("vector",)))
    return *layers_and_importance, solved, None


@pytest.mark.slow
def test_vectors_without_importances_are_the_nearest_centres_of_their_pairs(vectors):
    assert_nearest_centres_of_pairs(vectors, "none")


def test_vectors_are_the_nearest_centres_of_their_pairs(problem):
    assert_nearest_centres_of_pairs(problem, "fisher")


def assert_nearest_centres_of_pairs(problem, importance):
    for k in CLUSTERS:
        variant = Variant("compressed", "vector", importance, num_clusters=k, parameter=2.0)
        points = problem[2].points[variant.id]
        result, values = changed(problem, variant)
        counts = []
        for number, path in enumerate(SHAPES):
            weights, mass = flat(problem, path, importance)
            # A weight without a partner: whatever its partner is, it weighs nothing.
            pairs, weight = (
                np.append(a, [0] * (a.size % 2)).reshape(-1, 2) for a in (weights, mass)
            )
            centres = points[number].codebook[0][:k].astype(np.float64)
            cost = np.sum(weight[:, None] * (pairs[:, None] - centres) ** 2, axis=-1)
            index = np.argmin(cost, axis=1)
            np.testing.assert_array_equal(values[path], centres[index].ravel()[: weights.size])
            counts.append(np.bincount(index, minlength=k))
            if points[number].converged:
                for cluster in np.flatnonzero(counts[-1]):
                    is_in = index == cluster
                    mean = (weight * pairs)[is_in].sum(0) / weight[is_in].sum(0)
                    np.testing.assert_allclose(centres[cluster], mean, atol=1e-4)
        size = sizes.code_size(np.stack(counts), num_clusters=k, centroid_bits=64)
        assert result.sizes is not None
        np.testing.assert_allclose(result.sizes, [np.sum(part) for part in size])
        num_pairs = (16 * 9 + 9 * 7 + 1) // 2
        assert result.sizes.fixed_bits == pytest.approx(num_pairs * np.log2(k))


@pytest.mark.parametrize("method", ["kmeans", "optimal"])
@pytest.mark.parametrize("importance", ["none", "fisher"])
def test_shared_bits_lower_the_distortion_at_no_more_bits(problem, method, importance):
    weight = LAYER_WEIGHT if importance == "none" else dict.fromkeys(SHAPES, 1.0)
    gains = []
    for k in CLUSTERS:
        totals = []
        for allocation in ALLOCATIONS:
            variant = Variant(
                "compressed", method, importance, num_clusters=k, allocation=allocation
            )
            result, _ = changed(problem, variant)
            assert result.sizes is not None
            bits = result.sizes.entropy_bits + result.sizes.codebook_bits
            total = sum(weight[p] * d for p, d in distortions(problem, variant).items())
            totals.append((bits, total))
        (equal_bits, equal), (bits, shared) = totals
        assert bits <= equal_bits * (1 + 1e-9)
        assert shared <= equal * (1 + 1e-5)
        gains.append(1 - shared / equal)
    # The second layer counts 75 times the first where weights have no importance of their own,
    # and may have more clusters than any K of the grid.
    assert gains[-1] > (0.1 if importance == "none" and method == "optimal" else -1e-5)


def test_codebooks_come_back_from_a_file(problem, tmp_path):
    layers, _, solved, _ = problem
    storage.save_arrays(tmp_path / "codebooks.npz", *solved.to_arrays())
    loaded = Codebooks.from_arrays(*storage.load_arrays(tmp_path / "codebooks.npz"))
    assert loaded.ids == solved.ids
    assert sorted(solved.ids) == sorted(own.id for own in grid() if not is_dear(own))
    for variant in (own for own in grid(num_clusters=(4,)) if not is_dear(own)):
        before, after = (compress(layers, variant, part, key=KEY) for part in (solved, loaded))
        jax.tree.map(np.testing.assert_array_equal, before.layers, after.layers)
        assert before.sizes == after.sizes
    arrays, metadata = solved.to_arrays()
    del arrays["codebooks"]
    with pytest.raises(ValueError, match="codebooks lack 'codebooks'; run the sweep"):
        Codebooks.from_arrays(arrays, metadata)


def predict(params, inputs):
    hidden = jax.nn.relu(inputs @ params["hidden"]["kernel"])
    return hidden @ params["output"]["kernel"]


def evaluation(problem, out, penalty, importance):
    """A function that runs a sweep with every method, of a network with the problem's layers."""
    params = {path.split("/")[0]: {"kernel": weights} for path, weights in problem[0].items()}
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((90, 16)).astype(np.float32)
    labels = np.argmax(jax.jit(predict)(params, inputs), axis=1).astype(np.int32)
    parts = [(inputs[part], labels[part]) for part in (slice(30), slice(30, 60), slice(60, 90))]

    def evaluate():
        grid = sweep.Grid(
            method=METHODS,
            allocation=ALLOCATIONS,
            importance=importance,
            diameter_penalty=penalty,
            num_clusters=CLUSTERS,
            sensitivity_clusters=(),
            controls=False,
            baselines=False,
            num_bins=BINS,
        )
        networks, data = sweep.Networks(predict, [params]), sweep.Data(*parts)
        return sweep.evaluate(networks, data, grid=grid, out=out, quiet=True)

    return evaluate


@pytest.mark.slow
def test_a_sweep_over_methods_resumes_and_gives_its_networks_back(problem, tmp_path):
    out = tmp_path / "methods"
    evaluate = evaluation(problem, out, PENALTY, ("none", "gauss_newton"))
    result = evaluate()
    table = result.table
    assert set(table["method"]) == {"original", *METHODS}
    assert set(table["allocation"]) == set(ALLOCATIONS)
    numbers = table[["train_loss", "test_loss", "ratio_estimated", "description_bits"]]
    assert np.isfinite(numbers.to_numpy()).all()
    # The last chunks are made again, with the codebooks from their file.
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, "status": "running"}))
    for chunk in sorted((out / "variants").iterdir())[-6:]:
        chunk.unlink()
    resumed = evaluate()
    pd.testing.assert_frame_equal(resumed.table, table, check_exact=True)
    loaded = sweep.SweepResult.load(out)
    for variant in table.loc[table["kind"] == "compressed", "variant"]:
        jax.tree.map(
            np.testing.assert_array_equal,
            loaded.params(variant),
            jax.device_get(result.params(variant)),
        )


def test_what_a_variant_predicts_is_what_its_quantizer_minimised(problem, tmp_path):
    table = evaluation(problem, tmp_path / "methods", 0.0, "gauss_newton")().table
    assert set(table["method"]) == {"original", *METHODS}
    rows = table.set_index("variant")["predicted_rise_nats"]
    for k in CLUSTERS:
        lloyd, optimal, shared = (
            rows[f"{name}/gauss_newton/K{k}{end}"]
            for name, end in (("kmeans", ""), ("optimal", ""), ("optimal", "/allocated"))
        )
        assert optimal <= lloyd * (1 + 1e-5)
        assert shared <= optimal * (1 + 1e-5)


def test_variants_of_methods_have_unique_readable_names():
    found = grid()
    ids = [variant.id for variant in found]
    assert len(set(ids)) == len(ids)
    assert {
        "kmeans/none/K4", "kmeans/none/K4/allocated", "optimal/fisher/monotone-0.02/K8",
        "entropy_constrained/none/0.173/allocated", "vector/none/K4/2",
    } <= set(ids)  # fmt: skip
    assert not any("monotone" in name and "allocated" in name for name in ids)
    plain = [variant.id for variant in grid(method=("kmeans",), allocation=("equal",))]
    assert plain == [name for name in ids if name in plain]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"method": "lloyd"}, "unknown method 'lloyd': choose from kmeans, optimal, entropy"),
        ({"allocation": "fair"}, "unknown allocation 'fair': choose from equal, optimal"),
        ({"method": ()}, "method must be a value or a non-empty sequence"),
        (
            {"method": "optimal", "num_clusters": 2048},
            "method 'optimal' takes num_clusters up to 1,024, got 2,048",
        ),
        ({"method": ("kmeans", "vector"), "num_clusters": 1025}, "method 'vector' takes num_clu"),
    ],
)
def test_bad_methods_get_one_sentence(overrides, message):
    with pytest.raises(ValueError, match=message):
        SweepConfig(**overrides)
