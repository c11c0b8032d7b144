from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from promotion import strictly
from quantizer_oracles import count_compilations
from sklearn.cluster import KMeans
from slow_cases import some_slow

from jaxcomp.quantizers import join_vectors, split_vectors, vector, vector_kmeans

# One size for nearly all tests: compiling is what they cost. The last chunk is ragged.
NUM_POINTS, SIZE, MAX_CLUSTERS, CHUNK = 150, 3, 6, 64
BETA = 0.3


def problem(form, seed=0):
    """Heavy-tailed vectors with importance of the given form, float32."""
    rng = np.random.default_rng(seed)
    points = rng.standard_t(3, (NUM_POINTS, SIZE))
    factor = rng.standard_normal((NUM_POINTS, SIZE, SIZE)) * rng.gamma(1.0, size=(SIZE, 1))
    importance = {
        "scalar": rng.gamma(0.5, size=NUM_POINTS) + 1e-3,
        "diagonal": rng.gamma(0.5, size=(NUM_POINTS, SIZE)) + 1e-3,
        "full": factor @ np.swapaxes(factor, 1, 2),
    }[form]
    return points.astype(np.float32), importance.astype(np.float32)


def start_of(points, seed=5):
    rows = np.random.default_rng(seed).choice(len(points), MAX_CLUSTERS, replace=False)
    return points[rows]


@strictly
def run(points, importance, num_clusters=MAX_CLUSTERS, **options):
    options = {"max_clusters": MAX_CLUSTERS, "chunk_size": CHUNK} | options
    if not {"key", "initial_centroids"} & options.keys():
        options["initial_centroids"] = start_of(points)
    return vector_kmeans(points, importance, num_clusters=num_clusters, **options)


def full_matrices(points, importance):
    """The importance as full matrices in float64."""
    importance = np.asarray(importance, np.float64)
    if importance.ndim == 1:
        return importance[:, None, None] * np.eye(points.shape[1])
    if importance.ndim == 2:
        return importance[:, :, None] * np.eye(points.shape[1])
    return importance


def distances(points, matrices, centroids):
    """(N, K) squared distances in float64; `matrices` None is the Euclidean metric."""
    gaps = points[:, None, :].astype(np.float64) - np.asarray(centroids, np.float64)[None]
    if matrices is None:
        return np.sum(gaps**2, axis=-1)
    return np.einsum("nka,nab,nkb->nk", gaps, matrices, gaps)


def squared_diameter(centroids, index):
    used = np.asarray(centroids, np.float64)[np.unique(index)]
    return np.max(np.sum((used[:, None] - used[None]) ** 2, axis=-1))


def objective(points, matrices, centroids, beta=0.0, metric="importance"):
    cost = distances(points, matrices, centroids)
    chosen = cost if metric == "importance" else distances(points, None, centroids)
    index = np.argmin(chosen, axis=1)
    return cost[np.arange(len(points)), index].sum() + beta * squared_diameter(centroids, index)


def naive_step(points, matrices, centroids, beta, form):
    """One step in float64 with dense solves; `form` none or published."""
    points, centroids = points.astype(np.float64), centroids.astype(np.float64)
    metric = None if form == "published" else matrices
    index = np.argmin(distances(points, metric, centroids), axis=1)
    size = points.shape[1]
    mass, moment = np.zeros((len(centroids), size, size)), np.zeros((len(centroids), size))
    for k in range(len(centroids)):
        mass[k] = matrices[index == k].sum(axis=0)
        moment[k] = np.einsum("nab,nb->a", matrices[index == k], points[index == k])
    used = [k for k in range(len(centroids)) if np.any(index == k)]
    new = centroids.copy()
    for k in used:
        new[k] = np.linalg.solve(mass[k], moment[k])
    if form == "none" or beta == 0:
        return new
    pairs = [(np.sum((centroids[i] - centroids[j]) ** 2), i, j) for i in used for j in used]
    _, i, j = max(pairs, key=lambda pair: pair[0])
    spring = beta * np.eye(size)
    matrix = np.block([[mass[i] + spring, -spring], [-spring, mass[j] + spring]])
    new[i], new[j] = np.linalg.solve(matrix, np.concatenate([moment[i], moment[j]])).reshape(2, -1)
    empty = [k for k in range(len(centroids)) if k not in used]
    for k in empty:
        new[k] = new[used][np.argmin(np.sum((new[used] - new[k]) ** 2, axis=1))]
    return new


@pytest.mark.parametrize(
    ("importance_form", "form"),
    some_slow(
        [("scalar", "none"), ("diagonal", "none"), ("full", "published")], ("diagonal", "none")
    ),
)
def test_follows_the_naive_iteration_and_reports_what_it_did(
    importance_form, form, strict_promotion
):
    points, importance = problem(importance_form)
    matrices = full_matrices(points, importance)
    beta = BETA * np.trace(matrices, axis1=1, axis2=2).sum() / SIZE if form != "none" else 0.0
    metric = "euclidean" if form == "published" else "importance"
    centroids = start_of(points)
    values = []
    for num_iterations in range(6):
        result = run(
            points,
            importance,
            penalty_form=form,
            diameter_penalty=BETA,
            num_iterations=num_iterations,
        )
        # Means of 150 float32 vectors: a few eps of the largest.
        np.testing.assert_allclose(
            result.centroids, centroids, atol=1e-5 * np.abs(points).max(), rtol=0
        )
        expected = objective(points, matrices, np.asarray(result.centroids), beta, metric)
        assert float(result.objective) == pytest.approx(expected, rel=1e-5)
        values.append(expected)
        centroids = naive_step(points, matrices, centroids, beta, form)
    if form == "none":
        assert np.all(np.diff(values) <= 1e-6 * values[0])
    assert values[-1] < values[0]

    stored = np.asarray(result.centroids)
    cost = distances(points, matrices if metric == "importance" else None, stored)
    np.testing.assert_array_equal(result.assignments, np.argmin(cost, axis=1))
    assert result.assignments.dtype == jnp.uint8
    counts = np.bincount(np.asarray(result.assignments), minlength=MAX_CLUSTERS)
    np.testing.assert_array_equal(result.counts, counts)
    assert int(result.num_used) == np.count_nonzero(counts)
    assert int(result.num_empty) == MAX_CLUSTERS - int(result.num_used)
    expected = objective(points, matrices, stored, 0.0, metric)
    assert float(result.distortion) == pytest.approx(expected, rel=1e-5)


def test_scalar_importance_matches_scikit_learn():
    points, importance = problem("scalar", seed=1)
    result = run(points, importance, penalty_form="none", num_iterations=200)
    model = KMeans(
        n_clusters=MAX_CLUSTERS, init=start_of(points), n_init=1, max_iter=200, tol=0.0
    ).fit(points, sample_weight=importance)
    assert bool(result.converged)
    assert float(result.distortion) == pytest.approx(model.inertia_, rel=1e-5)
    np.testing.assert_allclose(result.centroids, model.cluster_centers_, atol=1e-5)


def objectives(points, importance, form, penalty, num_iterations):
    """The objective after these numbers of iterations, in float64."""
    matrices = full_matrices(points, importance)
    values = []
    for iterations in num_iterations:
        result = run(
            points,
            importance,
            penalty_form=form,
            diameter_penalty=penalty,
            num_iterations=iterations,
        )
        metric = "euclidean" if form == "published" else "importance"
        beta = penalty * np.trace(matrices, axis1=1, axis2=2).sum() / SIZE
        values.append(objective(points, matrices, np.asarray(result.centroids), beta, metric))
    return np.array(values)


def test_the_monotone_form_never_rises_and_ends_below_the_published_one():
    points, importance = problem("full", seed=1)
    published_rises = False
    num_iterations = (*range(10), 24)
    for penalty in (0.01, 0.3, 10.0):
        values = objectives(points, importance, "monotone", penalty, num_iterations)
        assert np.all(np.diff(values) <= 1e-6 * values[0]), penalty
        published = objectives(points, importance, "published", penalty, num_iterations)
        published_rises |= bool(np.any(np.diff(published) > 1e-3 * published[:-1]))
        assert values[-1] <= published[-1]
    assert published_rises


def test_a_strong_penalty_brings_all_centres_together():
    points, importance = problem("full")
    matrices = full_matrices(points, importance)
    result = run(points, importance, diameter_penalty=1e5, num_iterations=300)
    mean = np.linalg.solve(
        matrices.sum(axis=0), np.einsum("nab,nb->a", matrices, points.astype(np.float64))
    )
    single = objective(points, matrices, mean[None])
    assert float(result.objective) == pytest.approx(single, rel=1e-3)
    loose = run(points, importance, diameter_penalty=0.0, num_iterations=300)
    assert float(loose.distortion) < 0.5 * single


def test_zero_penalty_is_plain_to_the_bit():
    points, importance = problem("full")
    plain = run(points, importance, penalty_form="none")
    result = run(points, importance, penalty_form="monotone", diameter_penalty=0.0)
    jax.tree.map(np.testing.assert_array_equal, result, plain)


def test_batched_equals_one_by_one_and_nothing_recompiles():
    groups = [problem("full", seed) for seed in range(2)]
    points, importance = (np.stack(part) for part in zip(*groups, strict=True))
    starts = np.stack([start_of(group) for group in points])
    clusters, penalty = np.array([3, 6]), np.array([0.0, 0.5])
    # The form that compiles quickest.
    form = {"penalty_form": "none"}
    together = run(
        points, importance, clusters, diameter_penalty=penalty, initial_centroids=starts, **form
    )
    run(points[0], importance[0], **form).distortion.block_until_ready()
    with count_compilations() as num_compilations:
        alone = [
            run(
                points[g],
                importance[g],
                int(clusters[g]),
                diameter_penalty=float(penalty[g]),
                **form,
            )
            for g in range(2)
        ]
        assert num_compilations() == 0
    together, alone = jax.tree.map(np.asarray, (together, alone))
    for g in range(2):
        chosen = jax.tree.map(lambda leaf, g=g: leaf[g], together)
        np.testing.assert_array_equal(chosen.assignments, alone[g].assignments)
        np.testing.assert_allclose(chosen.centroids, alone[g].centroids, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(alone[0].centroids[3:], np.tile(alone[0].centroids[2], (3, 1)))
    assert int(np.max(alone[0].assignments)) < 3


def test_invariances():
    points, importance = problem("full", seed=3)
    base = run(points, importance, diameter_penalty=0.1)
    # Powers of two are exact in floating point, at any magnitude.
    for scale in (2.0**-90, 2.0**60):
        scaled = run(
            points * np.float32(scale), importance * np.float32(2.0**20), diameter_penalty=0.1
        )
        np.testing.assert_array_equal(scaled.assignments, base.assignments)
        np.testing.assert_array_equal(scaled.centroids, base.centroids * np.float32(scale))
    # In other coordinates, with the importance of those.
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((SIZE, SIZE)))[0]
    turned = run(
        (points @ rotation).astype(np.float32),
        np.einsum("ba,nbc,cd->nad", rotation, importance, rotation).astype(np.float32),
        diameter_penalty=0.1,
        initial_centroids=(start_of(points) @ rotation).astype(np.float32),
    )
    assert float(turned.objective) == pytest.approx(float(base.objective), rel=1e-4)
    # Points without importance count, and weigh nothing.
    silent = np.where(np.arange(NUM_POINTS)[:, None, None] < 30, 0, importance)
    moved = np.where(np.arange(NUM_POINTS)[:, None] < 30, 7.0, points).astype(np.float32)
    start = start_of(points[30:])
    with_, without = (
        run(values, silent, diameter_penalty=0.1, initial_centroids=start)
        for values in (points, moved)
    )
    np.testing.assert_array_equal(with_.centroids, without.centroids)
    assert int(np.sum(with_.counts)) == NUM_POINTS


def test_importance_of_rank_one_never_raises_the_objective():
    points, _ = problem("full", seed=4)
    directions = np.random.default_rng(4).standard_normal((2, SIZE))[np.arange(NUM_POINTS) % 2]
    importance = np.einsum("na,nb->nab", directions, directions).astype(np.float32)
    matrices = full_matrices(points, importance)
    values = []
    for num_iterations in range(8):
        result = run(points, importance, num_iterations=num_iterations, penalty_form="none")
        assert np.all(np.isfinite(result.centroids))
        values.append(objective(points, matrices, np.asarray(result.centroids)))
    assert np.all(np.diff(values) <= 1e-6 * values[0])


def test_random_start_is_weighted_and_follows_the_key():
    points, importance = problem("diagonal", seed=5)
    importance[:100] = 0
    options = {"num_iterations": 0, "penalty_form": "none"}

    def start(seed):
        result = run(points, importance, key=jax.random.key(seed), **options)
        return np.asarray(result.centroids)

    first = start(0)
    np.testing.assert_array_equal(first, start(0))
    assert np.any(first != start(1))
    for seed in range(5):
        centres = start(seed)
        rows = [np.flatnonzero(np.all(points == centre, axis=1))[0] for centre in centres]
        assert min(rows) >= 100  # no mass, no chance
        assert len(set(rows)) == MAX_CLUSTERS
    # Drawn by distortion: a far cluster with a twentieth of the points is nearly always found.
    points[100::20], importance[100:] = 50, 1
    assert sum(np.any(start(seed) == 50) for seed in range(10)) >= 9


@pytest.mark.parametrize("per_position", [False, True])
@pytest.mark.parametrize(("shape", "size"), [((7,), 2), ((4, 6), 3), ((2, 3, 5), 4)])
def test_splitting_and_joining_give_the_layer_back(shape, size, per_position):
    values = np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)
    split = partial(split_vectors, vector_size=size, per_position=per_position)
    vectors = np.asarray(jax.jit(split)(values))
    assert vectors.shape[-1] == size
    joined = jax.jit(partial(join_vectors, shape=tuple(shape)))(vectors)
    np.testing.assert_array_equal(joined, values)
    # Everything is there once; the filling is 0, and less than one vector a row.
    inside = vectors[vectors != 0]
    np.testing.assert_array_equal(np.sort(inside), values.ravel())
    rows = values.size // shape[-1] if per_position else 1
    assert vectors.size - values.size < size * rows
    # Vectors hold consecutive weights.
    gaps = np.diff(vectors, axis=-1)
    assert np.all(gaps[vectors[..., 1:] != 0] == 1)


@pytest.mark.slow
def test_product_quantization_of_a_layer_with_a_ragged_tail(monkeypatch):
    monkeypatch.setattr(vector, "_MIN_START_POINTS", 16)  # fewer than there are
    weights = jnp.asarray(np.random.default_rng(0).standard_normal((75, 7)).astype(jnp.bfloat16))
    points = split_vectors(weights, SIZE, per_position=True)
    importance = split_vectors(jnp.ones_like(weights), SIZE, per_position=True)
    assert points.shape == (3, 75, SIZE)
    result = vector_kmeans(
        points,
        importance,
        num_clusters=4,
        key=jax.random.key(0),
        penalty_form="none",
        chunk_size=75,
    )
    quantized = jnp.take_along_axis(
        result.centroids, result.assignments.astype(jnp.int32)[..., None], axis=1
    )
    assert result.centroids.dtype == jnp.bfloat16
    restored = np.asarray(join_vectors(quantized, weights.shape), np.float64)
    # The filling weighs nothing: the distortion is that of the layer.
    expected = np.sum((restored - np.asarray(weights, np.float64)) ** 2)
    assert float(jnp.sum(result.distortion)) == pytest.approx(expected, rel=1e-5)
    # One weight a vector in the last place: four centres for 75 numbers.
    assert len(np.unique(restored[:, 6])) <= 4


POINTS, FULL = problem("full")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"points": np.ones((4, 2), np.int32)}, TypeError, "points must be floating, got int32"),
        ({"points": np.ones(3, np.float32)}, ValueError, r"points must have shape \(..., N, m\)"),
        ({"points": POINTS * np.nan}, ValueError, "points must be finite"),
        ({"importance": -np.ones(NUM_POINTS)}, ValueError, "at least 0, got 150 negative of 150"),
        ({"importance": -FULL}, ValueError, "semi-definite, got 150 matrices of 150"),
        (
            {"importance": FULL + np.eye(SIZE)[:, ::-1] * np.arange(SIZE)},
            ValueError,
            "symmetric positive semi-definite",
        ),
        ({"importance": FULL * np.inf}, ValueError, "importance must be finite"),
        ({"importance": FULL * 0}, ValueError, "0 throughout a group, got 1 such"),
        ({"importance": FULL[:-1]}, ValueError, r"shapes \(150,\) \(scalar\), \(150, 3\)"),
        ({"importance": FULL[:, :1]}, ValueError, "importance must have one of the shapes"),
        ({"importance": np.float32(1.0)}, ValueError, "importance must have one of the shapes"),
        ({"importance": FULL * 1j}, TypeError, "importance must be real, got complex64"),
        ({"num_clusters": 0}, ValueError, "num_clusters must be at least 1, got 0"),
        ({"num_clusters": 7}, ValueError, "at most max_clusters = 6, got 7"),
        ({"diameter_penalty": -1.0}, ValueError, "diameter_penalty must be finite and at least 0"),
        ({"penalty_form": "linear"}, ValueError, "penalty_form must be one of"),
        ({"penalty_scale": "log"}, ValueError, "penalty_scale must be one of"),
        ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1, got 0"),
        ({"key": jax.random.key(0)}, ValueError, "either key .* or initial_centroids, got both"),
        ({"initial_centroids": None}, ValueError, "initial_centroids, got neither"),
        ({"initial_centroids": POINTS[:5]}, ValueError, r"must have shape \(..., 6, 3\)"),
        ({"initial_centroids": POINTS[:6] * np.nan}, ValueError, "initial_centroids must be fini"),
    ],
)
def test_bad_input(changes, error, message):
    arguments = {
        "points": POINTS,
        "importance": FULL,
        "num_clusters": MAX_CLUSTERS,
        "max_clusters": MAX_CLUSTERS,
        "initial_centroids": POINTS[:MAX_CLUSTERS],
    }
    with pytest.raises(error, match=message):
        vector_kmeans(**(arguments | changes))


def test_bad_layouts():
    with pytest.raises(ValueError, match="vector_size must be at least 1, got 0"):
        split_vectors(np.ones(3), 0)
    with pytest.raises(ValueError, match="at least one axis and one entry"):
        split_vectors(np.float32(1), 2)
    with pytest.raises(ValueError, match=r"shape \(2, 2\) for a layer of shape \(4,\), got"):
        join_vectors(jnp.ones((3, 2)), (4,))


@pytest.mark.slow
def test_double_precision(x64):
    points, importance = (part.astype(np.float64) for part in problem("full"))
    result = run(points, importance, num_iterations=3, penalty_form="none")
    centroids = start_of(points)
    for _ in range(3):
        centroids = naive_step(points, importance, centroids, 0.0, "none")
    assert result.centroids.dtype == jnp.float64
    np.testing.assert_allclose(result.centroids, centroids, rtol=1e-10, atol=1e-12)
