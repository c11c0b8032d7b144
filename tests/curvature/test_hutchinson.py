"""Hutchinson's diagonal against dense Hessians, closed forms, and its own standard errors."""

import functools
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from slow_cases import some_slow

from jaxcomp.curvature import check_finite, hutchinson_diagonal

pytestmark = pytest.mark.usefixtures("strict_promotion")


def network_loss(activation, params, batch):
    """Mean softmax cross-entropy of a 3-4-2 network, computed in the dtype of the weights."""
    inputs, labels = batch
    inputs = inputs.astype(params["in"]["kernel"].dtype)
    bias_in, bias_out = params["in"]["bias"].reshape(1, -1), params["out"].reshape(1, -1)
    hidden = activation(inputs @ params["in"]["kernel"] + bias_in)
    logits = hidden @ params["head"] + bias_out
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels.reshape(-1, 1), axis=1)
    return -jnp.mean(chosen)


def tanh_loss(params, batch):
    return network_loss(jnp.tanh, params, batch)


def relu_loss(params, batch):
    return network_loss(jax.nn.relu, params, batch)


def make_params(seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {
        "in": {
            "kernel": rng.normal(size=(3, 4)).astype(dtype),
            "bias": rng.normal(size=4).astype(dtype),
        },
        "head": rng.normal(size=(4, 2)).astype(dtype),
        "out": rng.normal(size=2).astype(dtype),
    }


def make_batch(dtype=np.float32, num_examples=20):
    rng = np.random.default_rng(100)
    # As most callers have them: on the device.
    inputs = rng.normal(size=(num_examples, 3)).astype(dtype)
    return jax.device_put((inputs, rng.integers(0, 2, size=num_examples).astype(np.int32)))


@partial(jax.jit, static_argnums=0)
def _dense_hessian(loss_fn, params, batch):
    flat, unravel = ravel_pytree(params)
    return jax.hessian(lambda w: loss_fn(unravel(w), batch))(flat)


def dense_hessian(loss_fn, params, batch):
    """In float64, from one program for weights of all dtypes."""
    with jax.enable_x64(True):
        inputs, labels = jax.device_get(batch)
        exact = jax.tree.map(lambda x: x.astype(np.float64), (params, inputs))
        return np.asarray(_dense_hessian(loss_fn, exact[0], (exact[1], labels)))


def flatten(tree, leading=0):
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]
    return np.concatenate([x.reshape((*x.shape[:leading], -1)) for x in leaves], axis=-1)


def small_loss(params, batch):
    """A mean over examples of which little is compiled."""
    return jnp.mean(jnp.tanh(batch @ params["w"] + params["b"].reshape(1)))


def small_params(seed=0):
    rng = np.random.default_rng(seed)
    return {"w": rng.normal(size=3).astype(np.float32), "b": np.float32(rng.normal())}


def quadratic_loss(params, batch):
    """`1/2 w^T H w`, its Hessian given as the batch."""
    return 0.5 * params @ (batch @ params)


# Each loss in one dtype: they do not depend on each other.
@pytest.mark.parametrize(
    ("loss_fn", "dtype"),
    some_slow(
        [
            (loss_fn, dtype)
            for loss_fn in (tanh_loss, relu_loss)
            for dtype in ("float32", "float64")
        ],
        (tanh_loss, "float32"),
        (relu_loss, "float32"),
        (relu_loss, "float64"),
    ),
)
def test_dense_hessian_lies_within_the_standard_errors(request, loss_fn, dtype):
    if dtype == "float64":
        request.getfixturevalue("x64")
    params, batch = make_params(dtype=dtype), make_batch(dtype)
    exact = np.diag(dense_hessian(loss_fn, params, batch))

    estimate = jax.vmap(
        lambda key: hutchinson_diagonal(loss_fn, params, batch, key, num_probes=256)
    )(jax.random.split(jax.random.key(1), 10))

    assert {x.dtype for x in jax.tree.leaves(estimate)} == {np.dtype(dtype)}
    error = flatten(estimate.mean, 1) - exact
    # Dead ReLU units have neither curvature nor noise; the rest must match their own errors.
    slack = 1e-5 * np.abs(exact).max()
    assert np.all(np.abs(error) <= 5 * flatten(estimate.standard_error, 1) + slack)
    is_noisy = flatten(estimate.standard_error, 1) > slack
    z = (error / np.where(is_noisy, flatten(estimate.standard_error, 1), 1.0))[is_noisy]
    assert z.size > 150
    # 10 runs x 26 entries that share probes: the variance of z is known to about 20 %.
    assert 0.6 < np.mean(z**2) < 1.5
    assert abs(np.mean(z)) < 0.3


@pytest.mark.parametrize("dtype", some_slow([jnp.bfloat16, jnp.float16], jnp.float16))
def test_half_precision_weights_give_float32_estimates(dtype):
    params, batch = make_params(dtype=dtype), make_batch()
    hessian = dense_hessian(tanh_loss, params, batch)

    estimate = hutchinson_diagonal(tanh_loss, params, batch, jax.random.key(2), num_probes=256)

    assert {x.dtype for x in jax.tree.leaves(estimate)} == {np.dtype(np.float32)}
    # A product is a sum of row entries through about ten operations, each rounded to the dtype.
    rounding = 10 * float(jnp.finfo(dtype).eps) * np.abs(hessian).sum(axis=1)
    error = np.abs(flatten(estimate.mean) - np.diag(hessian))
    assert np.all(error <= 5 * flatten(estimate.standard_error) + rounding)


@pytest.mark.parametrize(("distribution", "of_diagonal"), [("rademacher", 0), ("gaussian", 2)])
def test_standard_error_is_that_of_the_variance_formula(distribution, of_diagonal):
    rng = np.random.default_rng(3)
    half = rng.normal(size=(5, 5))
    hessian = (half + half.T).astype(np.float32)
    num_probes = 4096

    estimate = hutchinson_diagonal(
        quadratic_loss,
        np.ones(5, np.float32),
        hessian,
        jax.random.key(4),
        num_probes=num_probes,
        distribution=distribution,
    )

    off_diagonal = np.sum(np.square(hessian), axis=1) - np.square(np.diag(hessian))
    variance = off_diagonal + of_diagonal * np.square(np.diag(hessian))
    # An estimated variance: about sqrt(2 / 4096) = 2 % each of five for probes of signs, and
    # sqrt(14 / 4096) = 6 % for a product of two Gaussian numbers.
    np.testing.assert_allclose(
        np.square(estimate.standard_error) * num_probes, variance, rtol=0.1 + 0.05 * of_diagonal
    )
    error = np.abs(np.asarray(estimate.mean) - np.diag(hessian))
    assert np.all(error <= 5 * np.asarray(estimate.standard_error))


def test_gaussian_probes_of_leaves_of_several_dtypes_are_independent():
    shapes = {"a": (3, np.float32), "b": (3, jnp.bfloat16), "c": (2, np.float32)}
    params = {name: np.zeros(*shape) for name, shape in shapes.items()}

    def loss_fn(params, batch):
        return 0.5 * jnp.square(sum(jnp.sum(x.astype(jnp.float32)) for x in params.values()))

    estimate = hutchinson_diagonal(
        loss_fn, params, None, jax.random.key(6), num_probes=256, distribution="gaussian"
    )

    # Every entry of H is 1: entries of a probe that repeat would show as 2.
    error = np.abs(flatten(estimate.mean) - 1.0)
    assert np.all(error <= 5 * flatten(estimate.standard_error))


@pytest.mark.parametrize("examples_per_probe", some_slow([2, 7], 7))
def test_blocks_of_examples_with_their_own_probes_have_the_variance_of_the_formula(
    examples_per_probe,
):
    rng = np.random.default_rng(14)
    # What the Hessians of the examples have in common is what blocks average out.
    half = rng.normal(size=(5, 5)) + 0.3 * rng.normal(size=(7, 5, 5))
    hessians = (half + np.swapaxes(half, 1, 2)).astype(np.float32)
    num_probes = 4096

    estimate = hutchinson_diagonal(
        lambda params, batch: jax.vmap(quadratic_loss, (None, 0))(params, batch).mean(),
        np.ones(5, np.float32),
        hessians,
        jax.random.key(15),
        num_probes=num_probes,
        examples_per_probe=examples_per_probe,
    )

    variance = np.zeros(5)
    for start in range(0, 7, examples_per_probe):
        block = hessians[start : start + examples_per_probe].astype(np.float64).sum(axis=0) / 7
        variance += np.sum(block**2, axis=1) - np.diag(block) ** 2
    np.testing.assert_allclose(np.square(estimate.standard_error) * num_probes, variance, rtol=0.1)
    error = np.abs(np.asarray(estimate.mean) - np.diag(hessians.mean(axis=0)))
    assert np.all(error <= 5 * np.asarray(estimate.standard_error))


LENET_SIZES = (784, 300, 100, 10)


def lenet_loss(params, batch):
    """Mean softmax cross-entropy of a ReLU network."""
    hidden, labels = batch
    for layer, weights in enumerate(params):
        hidden = (jax.nn.relu(hidden) if layer else hidden) @ weights
    chosen = jnp.take_along_axis(jax.nn.log_softmax(hidden), labels.reshape(-1, 1), axis=1)
    return -jnp.mean(chosen)


def relu_network_diagonal(params, inputs):
    """Exact diagonal in NumPy: for ReLU the Hessian and the Gauss-Newton matrix share it.

    An example adds `sum_c p_c ((e_c - p)^T J)^2`; for a weight between unit i and unit j the
    gradient is (output of i) x (signal at j), so its square is a product of squares.
    """
    outputs = [inputs]
    for weights in params[:-1]:
        outputs.append(np.maximum(outputs[-1] @ weights, 0))
    logits = outputs[-1] @ params[-1]
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    diagonal = [np.zeros_like(weights) for weights in params]
    for c in range(p.shape[1]):
        signal = np.sqrt(p[:, c : c + 1]) * (np.eye(p.shape[1])[c] - p)
        for layer in reversed(range(len(params))):
            diagonal[layer] += np.square(outputs[layer]).T @ np.square(signal) / len(inputs)
            signal = (signal @ params[layer].T) * (outputs[layer] > 0)
    return diagonal


def test_full_size_relu_network_against_its_exact_diagonal():
    rng = np.random.default_rng(12)
    shapes = list(itertools.pairwise(LENET_SIZES))
    params = [rng.normal(size=shape) * np.sqrt(2 / shape[0]) for shape in shapes]
    # Some inputs never fire, as at the edges of MNIST's images.
    inputs = np.abs(rng.normal(size=(24, 784))) * (rng.random(784) < 0.8)
    exact = np.concatenate([x.ravel() for x in relu_network_diagonal(params, inputs)])
    batch = inputs.astype(np.float32), rng.integers(0, 10, 24).astype(np.int32)

    estimate = hutchinson_diagonal(
        lenet_loss,
        [x.astype(np.float32) for x in params],
        batch,
        jax.random.key(13),
        num_probes=48,
    )

    mean, error = flatten(estimate.mean), flatten(estimate.standard_error)
    assert mean.size == 266_200
    slack = 1e-6 * exact.max()
    assert np.all(np.abs(mean - exact) <= 8 * error + slack)
    z = ((mean - exact) / np.where(error > slack, error, 1))[error > slack]
    assert z.size > 100_000
    # Student's t of 48 probes has the variance 47/45; entries share probes, so it fluctuates.
    assert 0.8 < np.mean(z**2) < 1.3
    assert abs(np.mean(z)) < 0.1
    # Noise in units of the signal, hundreds of per cent: why ReLU networks want another estimator.
    assert np.linalg.norm(error) > np.linalg.norm(exact)


def test_diagonal_hessian_is_exact_without_error():
    curvature = {"a": np.float32([0.5, -2.0, 3.0]), "b": np.float32(0.25)}
    params = jax.tree.map(np.ones_like, curvature)

    def loss_fn(params, batch):
        terms = jax.tree.map(lambda w, h: jnp.sum(0.5 * h * w * w), params, batch)
        return terms["a"] + terms["b"]

    estimate = hutchinson_diagonal(loss_fn, params, curvature, jax.random.key(5), num_probes=7)

    np.testing.assert_array_equal(flatten(estimate.mean), flatten(curvature))
    np.testing.assert_array_equal(flatten(estimate.standard_error), np.zeros(4))


def test_leaves_of_equal_shape_get_independent_probes():
    params = {"a": np.zeros(3, np.float32), "b": np.zeros(3, np.float32)}

    def loss_fn(params, batch):
        return 0.5 * jnp.square(jnp.sum(params["a"]) + jnp.sum(params["b"]))

    estimate = hutchinson_diagonal(loss_fn, params, None, jax.random.key(6), num_probes=256)

    # Every entry of H is 1: a probe shared by the leaves would estimate 2.
    error = np.abs(flatten(estimate.mean) - 1.0)
    assert np.all(error <= 5 * flatten(estimate.standard_error))


def test_leaves_that_are_not_floating_are_passed_over():
    params = {"w": np.float32([1.0, 2.0]), "step": np.arange(3), "key": jax.random.key(0)}

    def loss_fn(params, batch):
        return jnp.sum(batch * jnp.square(params["w"])) * params["step"][2].astype(jnp.float32)

    estimate = hutchinson_diagonal(
        loss_fn, params, np.float32([1.0, 3.0]), jax.random.key(7), num_probes=2
    )

    np.testing.assert_allclose(estimate.mean["w"], [4.0, 12.0])
    for tree in estimate[:2]:
        assert tree["step"].dtype == tree["key"].dtype == np.float32
        np.testing.assert_array_equal(tree["step"], np.zeros(3))
        np.testing.assert_array_equal(tree["key"], 0.0)


def test_empty_leaf_is_kept():
    params = {"w": np.ones(2, np.float32), "none": np.zeros((0, 4), np.float32)}
    estimate = hutchinson_diagonal(
        lambda p, b: jnp.sum(jnp.square(p["w"])) + jnp.sum(p["none"]),
        params,
        None,
        jax.random.key(8),
        num_probes=2,
    )
    assert estimate.mean["none"].shape == (0, 4)


@pytest.mark.slow
def test_jit_is_eager():
    hessian = np.float32([[2.0, 1.0, 0.5], [1.0, 3.0, -1.0], [0.5, -1.0, 1.0]])
    arguments = quadratic_loss, np.ones(3, np.float32), hessian, jax.random.key(9)
    jitted = hutchinson_diagonal(*arguments, num_probes=3)
    with jax.disable_jit():
        eager = hutchinson_diagonal(*arguments, num_probes=3)
    np.testing.assert_allclose(flatten(eager), flatten(jitted), rtol=1e-6)


def test_vmap_is_a_loop_over_models_and_keys():
    batch, keys = make_batch()[0], jax.random.split(jax.random.key(9), 2)
    models = [small_params(0), small_params(1)]
    kernel = partial(hutchinson_diagonal, small_loss, num_probes=4)
    stacked = jax.tree.map(lambda *x: np.stack(x), *models)
    mapped = jax.vmap(lambda params, key: kernel(params, batch, key))(stacked, keys)
    for i in range(2):
        one = kernel(models[i], batch, keys[i])
        np.testing.assert_allclose(flatten(mapped, 1)[i], flatten(one), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("examples_per_probe", "examples_per_chunk"),
    some_slow([(None, 8), (None, 32), (8, 4), (16, 8)], (None, 8), (None, 32), (16, 8)),
)
def test_chunks_of_examples_change_nothing(examples_per_probe, examples_per_chunk):
    # 20 examples: the last chunk is ragged, or the only one; so is the last block.
    params, batch = small_params(), make_batch()[0]
    whole, chunked = (
        hutchinson_diagonal(
            small_loss,
            params,
            batch,
            jax.random.key(11),
            num_probes=4,
            examples_per_probe=examples_per_probe,
            examples_per_chunk=length,
        )
        for length in (None, examples_per_chunk)
    )
    scale = np.abs(flatten(whole)).max()
    np.testing.assert_allclose(flatten(chunked), flatten(whole), rtol=1e-5, atol=1e-6 * scale)


def test_chunks_must_divide_the_examples_of_a_probe():
    with pytest.raises(ValueError, match=r"examples_per_chunk must divide .* got 3 and 8"):
        hutchinson_diagonal(
            tanh_loss,
            make_params(),
            make_batch(),
            jax.random.key(0),
            num_probes=2,
            examples_per_probe=8,
            examples_per_chunk=3,
        )


def test_key_decides_the_result():
    params, batch = small_params(), make_batch()[0]
    first, again, other = (
        hutchinson_diagonal(small_loss, params, batch, jax.random.key(seed), num_probes=4)
        for seed in (10, 10, 11)
    )
    np.testing.assert_array_equal(flatten(first), flatten(again))
    assert not np.array_equal(flatten(first), flatten(other))


def test_second_call_and_fresh_partial_compile_nothing():
    num_traces = 0

    def loss_fn(scale, params, batch):
        nonlocal num_traces
        num_traces += 1
        return scale * small_loss(params, batch)

    batch = make_batch()[0]
    results = [
        hutchinson_diagonal(
            Partial(loss_fn, np.float32(scale)),
            small_params(seed),
            batch,
            jax.random.key(seed),
            num_probes=4,
        )
        for seed, scale in [(0, 1.0), (0, 2.0), (1, 3.0)]
    ]

    assert num_traces == 1
    np.testing.assert_allclose(flatten(results[1]), 2 * flatten(results[0]), rtol=1e-5)


def test_values_that_are_not_finite_are_named_at_the_boundary():
    params = {"good": np.ones(2, np.float32), "bad": np.ones(3, np.float32)}

    def loss_fn(params, batch):
        return jnp.sum(jnp.square(params["good"])) + jnp.sum(batch * jnp.square(params["bad"]))

    estimate = hutchinson_diagonal(
        loss_fn, params, np.float32([1.0, np.nan, 1.0]), jax.random.key(12), num_probes=2
    )
    np.testing.assert_array_equal(np.isnan(estimate.mean["bad"]), [False, True, False])
    with pytest.raises(ValueError, match=r"curvature.mean\['bad'\] has 1 NaN or infinite .* of 3"):
        check_finite(estimate)
    assert check_finite(estimate.mean["good"]) is estimate.mean["good"]


@pytest.mark.parametrize("num_probes", [1, 0, 2.5, True, "64"])
def test_number_of_probes_is_checked(num_probes):
    is_count = type(num_probes) is int
    error, allowed = (ValueError, "at least 2") if is_count else (TypeError, "an integer")
    with pytest.raises(error, match=f"num_probes must be {allowed}, got {num_probes!r}"):
        hutchinson_diagonal(
            tanh_loss, make_params(), make_batch(), jax.random.key(0), num_probes=num_probes
        )


def test_distribution_is_checked():
    with pytest.raises(
        ValueError, match=r"distribution must be one of \('rademacher', 'gaussian'\), got 'normal'"
    ):
        hutchinson_diagonal(
            tanh_loss,
            make_params(),
            make_batch(),
            jax.random.key(0),
            num_probes=2,
            distribution="normal",
        )


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (lambda p, b: p, r"returned an array of shape \(3,\); average it"),
        (lambda p, b: (jnp.sum(p), {}), "returned a tuple; return the loss alone"),
        (lambda p, b: jnp.int32(3), "returned int32; count losses as floating numbers"),
    ],
)
def test_loss_must_be_one_floating_scalar(loss_fn, message):
    with pytest.raises(ValueError, match=message):
        hutchinson_diagonal(loss_fn, jnp.ones(3), None, jax.random.key(0), num_probes=2)


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, params, batch):
        return self.scale * jnp.sum(params**2)


@pytest.mark.parametrize("wrap", [lambda f: f, Partial])
def test_loss_need_not_be_hashable(wrap):
    for scale in (1.5, 2.5):
        loss_fn = wrap(Unhashable(jnp.float32(scale)))
        estimate = hutchinson_diagonal(
            loss_fn, np.ones(2, np.float32), None, jax.random.key(0), num_probes=2
        )
        np.testing.assert_array_equal(estimate.mean, [2 * scale, 2 * scale])


def test_loss_must_be_a_function():
    with pytest.raises(
        TypeError, match=r"must be a function \(params, batch\) -> scalar, got float"
    ):
        hutchinson_diagonal(3.0, jnp.ones(3), None, jax.random.key(0), num_probes=2)


def test_functools_partial_is_a_static_loss():
    loss_fn = functools.partial(lambda scale, params, batch: scale * jnp.sum(params**2), 1.5)
    estimate = hutchinson_diagonal(
        loss_fn, np.ones(2, np.float32), None, jax.random.key(0), num_probes=2
    )
    np.testing.assert_array_equal(estimate.mean, [3.0, 3.0])


def test_complex_weights_are_refused():
    with pytest.raises(TypeError, match=r"params\['w'\] is complex64, but curvature is defined"):
        hutchinson_diagonal(
            tanh_loss, {"w": np.ones(2, np.complex64)}, None, jax.random.key(0), num_probes=2
        )
