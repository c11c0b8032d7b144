"""The Gauss-Newton diagonal against dense Jacobians, Hessians, identities and another library."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from curvature_problems import (
    image_network,
    image_problem,
    language_model,
    language_problem,
    leaf,
    perceptron,
    perceptron_batch,
    perceptron_params,
    relu_network,
    tanh_network,
    token_network,
    token_problem,
)
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from jaxcomp.curvature import (
    GaussNewton,
    check_finite,
    estimate_memory,
    gauss_newton_diagonal,
    linear_regression_hessian,
    over_batches,
)
from jaxcomp.curvature.estimate import for_each_sample

pytestmark = pytest.mark.usefixtures("strict_promotion")


def output_hessian(outputs, loss="softmax_cross_entropy"):
    """Hessian of the loss of one position in its outputs (..., C), in closed form."""
    identity = np.eye(outputs.shape[-1])
    if loss == "squared_error":
        return np.broadcast_to(2 * identity, (*outputs.shape, outputs.shape[-1]))
    p = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    return p[..., None] * identity - p[..., None] * p[..., None, :]


@partial(jax.jit, static_argnums=0)
def values_and_jacobian(function, params, inputs):
    """Outputs of a function, and their derivatives in every weight."""

    def outputs(params):
        values = function(params, inputs)
        return values, values

    jacobian, values = jax.jacobian(outputs, has_aux=True)(params)
    return values, jacobian


def dense_jacobian(function, params, inputs):
    """Outputs, and (shape of the outputs, n) from the whole Jacobian."""
    values, jacobian = jax.device_get(values_and_jacobian(function, params, inputs))
    leaves = [x.reshape((*values.shape, -1)) for x in jax.tree.leaves(jacobian)]
    return values, np.concatenate(leaves, axis=-1)


def dense_diagonal(predict_fn, params, batch, loss="softmax_cross_entropy"):
    """`diag(J^T H J) / n` from the whole Jacobian."""
    outputs, jacobian = dense_jacobian(predict_fn, params, batch[0])
    hessian = output_hessian(outputs, loss)
    return np.einsum("bcn,bcd,bdn->n", jacobian, hessian, jacobian) / len(batch[1])


def flatten(tree):
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


@pytest.mark.parametrize(
    ("predict_fn", "problem", "loss"),
    [
        (token_network, token_problem, "softmax_cross_entropy"),
        pytest.param(token_network, token_problem, "squared_error", marks=pytest.mark.slow),
        pytest.param(image_network, image_problem, "softmax_cross_entropy", marks=pytest.mark.slow),
    ],
)
def test_equals_the_dense_product_in_float64(predict_fn, problem, loss, x64):
    params, batch = problem(np.float64)
    exact = dense_diagonal(predict_fn, params, batch, loss)

    estimate = gauss_newton_diagonal(predict_fn, params, batch, loss=loss)

    assert {x.dtype for x in jax.tree.leaves(estimate)} == {np.dtype(np.float64)}
    np.testing.assert_allclose(flatten(estimate.mean), exact, rtol=1e-10, atol=1e-13)
    np.testing.assert_array_equal(flatten(estimate.standard_error), 0.0)


@pytest.mark.slow
def test_squaring_position_by_position_is_wrong():
    params, batch = token_problem()

    def per_position(copies, inputs):
        # Each position has a copy of the shared weight, and so a gradient of its own.
        tokens = jnp.tanh(jnp.einsum("bpi,pio->bpo", inputs, copies))
        tokens = jnp.tanh(tokens @ params["tied"]) @ params["tied"]
        return jnp.mean(tokens, axis=1) * params["scale"].reshape(1, -1)

    copies = np.broadcast_to(params["shared"], (4, 3, 3))
    wrong = dense_diagonal(per_position, copies, batch).reshape(4, 3, 3).sum(axis=0)
    right = gauss_newton_diagonal(token_network, params, batch).mean["shared"]
    ratio = wrong / np.asarray(right)
    assert ratio.max() > 1.5
    assert ratio.min() < 0.7


def test_equals_the_hessian_of_a_piecewise_linear_network_and_of_no_other(x64):
    params, batch = perceptron_params(dtype=np.float64), perceptron_batch(dtype=np.float64)
    flat, unravel = ravel_pytree(params)

    @jax.jit
    @jax.hessian
    def hessian(w, is_relu):
        def activation(x):
            return jnp.where(is_relu, jax.nn.relu(x), jnp.tanh(x))

        logits = perceptron(activation, unravel(w), batch[0])
        chosen = jnp.take_along_axis(logits, batch[1].reshape(-1, 1), axis=1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - chosen)

    relu = flatten(gauss_newton_diagonal(relu_network, params, batch).mean)
    np.testing.assert_allclose(relu, np.diag(hessian(flat, True)), rtol=1e-9, atol=1e-14)
    tanh = flatten(gauss_newton_diagonal(tanh_network, params, batch).mean)
    assert np.max(np.abs(tanh - np.diag(hessian(flat, False)))) > 0.1 * np.max(tanh)


def test_is_the_true_fisher_diagonal_and_that_of_gao_et_al(x64):
    params, batch = perceptron_params(dtype=np.float64), perceptron_batch(dtype=np.float64)

    def log_probabilities(params, inputs):
        return jax.nn.log_softmax(tanh_network(params, inputs))

    log_p, jacobian = dense_jacobian(log_probabilities, params, batch[0])
    # Labels drawn from the model, all of them: E_y (d log p(y))^2.
    fisher = np.einsum("bc,bcn->n", np.exp(log_p), jacobian**2) / len(log_p)
    # Gao et al. (2019): E sum over classes of (d f_c)^2 / f_c, f the probabilities.
    d_probability = np.exp(log_p)[:, :, None] * jacobian
    gao = np.einsum("bcn,bc->n", d_probability**2, np.exp(-log_p)) / len(log_p)

    estimate = flatten(gauss_newton_diagonal(tanh_network, params, batch).mean)
    np.testing.assert_allclose(estimate, fisher, rtol=1e-9)
    np.testing.assert_allclose(estimate, gao, rtol=1e-9)


# DiagGGNExact of BackPACK 1.7.1 (torch 2.13.0, float64) for the problem of the test below:
# Linear(3, 4), Tanh, Linear(4, 3, bias=False) with the transposed kernels, CrossEntropyLoss.
BACKPACK = {
    "bias": [0.0847289419, 0.1440128122, 0.1468322553, 0.1042295215],
    "in": [
        [0.0205159114, 0.0321302685, 0.0315425928, 0.0171002324],
        [0.0033199152, 0.0062440835, 0.0068868338, 0.0079606573],
        [0.0197134633, 0.0350294162, 0.0360560158, 0.0256469398],
    ],
    "out": [
        [0.0423143181, 0.0394834227, 0.0519083637],
        [0.0171711464, 0.0152381525, 0.0198678781],
        [0.0144914672, 0.0134684501, 0.0173689717],
        [0.0491659357, 0.0534179531, 0.0679523424],
    ],
}


@pytest.mark.slow
def test_equals_backpack(x64):
    def fractions(*shape):
        return ((np.arange(np.prod(shape)) * 7) % 11 - 5).reshape(shape) / 8

    params = {"in": fractions(3, 4), "bias": fractions(4) / 2, "out": fractions(4, 3)[:, ::-1]}
    batch = fractions(6, 3)[::-1], np.asarray([0, 2, 1, 1, 0, 2])
    estimate = gauss_newton_diagonal(tanh_network, params, batch).mean
    for path, expected in BACKPACK.items():
        np.testing.assert_allclose(estimate[path], expected, atol=6e-11)


def test_linear_model_with_squared_error_is_linear_regression():
    rng = np.random.default_rng(5)
    features = leaf(rng, 20, 4)
    weights = leaf(rng, 4, 1)
    estimate = gauss_newton_diagonal(
        lambda w, x: x @ w, weights, (features, np.zeros(20, np.float32)), loss="squared_error"
    )
    exact = np.diag(linear_regression_hessian(features))
    np.testing.assert_allclose(np.asarray(estimate.mean)[:, 0], exact, rtol=1e-5)


def logistic_loss(outputs, target):
    """Cross-entropy of independent Bernoulli outputs."""
    return jnp.sum(jax.nn.softplus(outputs) - target * outputs)


def test_callable_loss_of_outputs_and_target(x64):
    params, (inputs, _) = perceptron_params(dtype=np.float64), perceptron_batch(dtype=np.float64)
    targets = np.random.default_rng(6).uniform(size=(12, 3))
    outputs, jacobian = dense_jacobian(tanh_network, params, inputs)
    p = 1 / (1 + np.exp(-outputs))
    exact = np.einsum("bcn,bc->n", jacobian**2, p * (1 - p)) / 12

    estimate = gauss_newton_diagonal(tanh_network, params, (inputs, targets), loss=logistic_loss)
    np.testing.assert_allclose(flatten(estimate.mean), exact, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize(
    "loss", ["softmax_cross_entropy", pytest.param("squared_error", marks=pytest.mark.slow)]
)
def test_sampled_labels_agree_within_their_standard_errors(loss):
    params, batch = perceptron_params(), perceptron_batch()
    exact = flatten(gauss_newton_diagonal(tanh_network, params, batch, loss=loss).mean)
    estimate = jax.vmap(
        lambda key: gauss_newton_diagonal(
            tanh_network, params, batch, loss=loss, num_label_samples=128, key=key
        )
    )(jax.random.split(jax.random.key(7), 8))
    mean = np.concatenate([np.asarray(x).reshape(8, -1) for x in jax.tree.leaves(estimate.mean)], 1)
    error = np.concatenate(
        [np.asarray(x).reshape(8, -1) for x in jax.tree.leaves(estimate.standard_error)], 1
    )
    # Where each sample is the same to rounding there is no error to compare with.
    is_random = error > 1e-4 * np.abs(exact)
    z = ((mean - exact) / np.where(is_random, error, 1.0))[is_random]
    np.testing.assert_allclose(
        np.where(is_random, 1.0, mean / exact), np.ones_like(mean), rtol=1e-3
    )
    assert np.all(mean >= 0)
    # 28 entries in 8 runs, entries of a run correlated: the mean square is known to about 20 %.
    assert 0.5 < np.mean(z**2) < 1.7
    assert np.max(np.abs(z)) < 5


DRAWN = {"num_label_samples": 3, "key": jax.random.key(8)}


@pytest.mark.parametrize(
    "options", [pytest.param({}, marks=pytest.mark.slow), DRAWN], ids=["exact", "drawn"]
)
def test_does_not_depend_on_how_examples_are_split(options):
    params, batch = perceptron_params(), perceptron_batch()
    kernel = GaussNewton(tanh_network, params, **options)
    whole = kernel(batch)
    # Batches, each in chunks the last of which is a short one.
    split = [tuple(x[i : i + 6] for x in batch) for i in (0, 6)]
    other = over_batches(replace(kernel, examples_per_chunk=5), split)
    scale = np.max(flatten(whole.mean))
    np.testing.assert_allclose(
        flatten(other.mean), flatten(whole.mean), rtol=1e-5, atol=1e-6 * scale
    )
    np.testing.assert_allclose(
        flatten(other.standard_error), flatten(whole.standard_error), rtol=1e-4, atol=1e-6 * scale
    )


def test_samples_that_share_a_forward_pass_are_those_drawn_alone():
    params, batch = perceptron_params(), perceptron_batch()
    options = {"num_label_samples": 6, "key": jax.random.key(8), "examples_per_chunk": 5}
    sampler = GaussNewton(tanh_network, params, **options).sampling().sampler
    samples = sampler.at(batch)
    one = jax.jit(lambda index: samples(index))

    def step(row, sample, kept):
        return jax.tree.map(lambda all_rows, x: all_rows.at[row].set(x), kept, sample)

    # However many are held at once; of six, four leave two over.
    indices = np.asarray([4, 0, 3, 1, 5, 2], np.int32)
    start = jax.tree.map(lambda x: np.zeros((6, *x.shape), x.dtype), params)
    visit = jax.jit(partial(for_each_sample, samples._replace(most=4), step=step))
    together = jax.device_get(visit(indices, start=start))
    for place, index in enumerate(indices):
        found = jax.tree.map(lambda x, i=place: x[i], together)
        np.testing.assert_allclose(flatten(found), flatten(one(index)), rtol=1e-6)


def test_half_precision_weights_and_leaves_that_are_not_floating():
    params, batch = perceptron_params(), perceptron_batch()
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params) | {"step": np.arange(2)}
    wide = jax.tree.map(lambda x: x.astype(np.float32), half)

    def predict(p, x):
        return relu_network({k: p[k] for k in ("in", "bias", "out")}, x.astype(p["in"].dtype))

    estimate = gauss_newton_diagonal(predict, half, batch)
    assert {x.dtype for x in jax.tree.leaves(estimate)} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(estimate.mean["step"], np.zeros(2))
    del wide["step"]
    exact = dense_diagonal(relu_network, wide, batch)
    got = flatten({k: estimate.mean[k] for k in wide})
    # Eight bits of mantissa, through two layers and a softmax.
    assert np.linalg.norm(got - exact) < 0.05 * np.linalg.norm(exact)


def test_vmap_over_models_equals_one_by_one_and_compiles_once():
    batch = perceptron_batch()
    models = [perceptron_params(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *x: np.stack(x), *models)
    together = jax.vmap(lambda p: gauss_newton_diagonal(tanh_network, p, batch))(stacked).mean
    for number, params in enumerate(models):
        alone = gauss_newton_diagonal(tanh_network, params, batch).mean
        for path in alone:
            np.testing.assert_allclose(together[path][number], alone[path], rtol=2e-5, atol=1e-7)


def test_arrays_bound_to_the_function_are_traced():
    params, batch = perceptron_params(), perceptron_batch()

    def scaled(scale, params, inputs):
        return scale * relu_network(params, inputs)

    traces = []

    def counted(scale, params, inputs):
        traces.append(1)
        return scaled(scale, params, inputs)

    first = gauss_newton_diagonal(Partial(counted, np.float32(1.0)), params, batch).mean
    num_traces = len(traces)
    second = gauss_newton_diagonal(Partial(counted, np.float32(0.0)), params, batch).mean
    assert len(traces) == num_traces
    assert np.max(flatten(first)) > 0
    np.testing.assert_array_equal(flatten(second)[:-12], 0.0)


# --- Losses per token -----------------------------------------------------------------------------


def dense_token_diagonal(params, batch, loss, reduction):
    """`diag(J^T H J)` from the whole Jacobian, H block diagonal over positions."""
    tokens, (_, weights) = batch
    if reduction == "mean":
        weights = weights / np.sum(weights)
    elif reduction == "example_mean":
        weights = weights / np.sum(weights, axis=1, keepdims=True) / len(tokens)
    else:
        weights = weights / len(tokens)
    logits, jacobian = dense_jacobian(language_model, params, tokens)
    hessian = output_hessian(logits, loss)
    return np.einsum("bt,btcn,btcd,btdn->n", weights, jacobian, hessian, jacobian)


@pytest.mark.parametrize(
    ("loss", "reduction"),
    [
        ("softmax_cross_entropy", "mean"),
        pytest.param("softmax_cross_entropy", "example_mean", marks=pytest.mark.slow),
        ("squared_error", "sum"),
    ],
)
def test_losses_per_token_equal_the_dense_product_in_float64(loss, reduction, x64):
    params, batch = language_problem(np.float64)
    estimate = gauss_newton_diagonal(language_model, params, batch, loss=loss, reduction=reduction)
    expected = dense_token_diagonal(params, batch, loss, reduction)
    np.testing.assert_allclose(flatten(estimate.mean), expected, rtol=1e-9, atol=1e-13)


def test_the_default_is_the_hessian_of_a_mean_per_token(x64):
    # Of a model that is linear in its weights, the Hessian is the Gauss-Newton matrix.
    params, (tokens, (labels, weights)) = language_problem(np.float64)
    hidden = np.tanh(params["embed"][tokens])

    def loss(head):
        log_p = jax.nn.log_softmax(hidden @ head)
        losses = -jnp.take_along_axis(log_p, labels[:, :, None], axis=2)[:, :, 0]
        return jnp.sum(losses * weights) / jnp.sum(weights)

    hessian = jax.jit(jax.hessian(loss))(params["head"])
    estimate = gauss_newton_diagonal(
        lambda head, x: x @ head, params["head"], (hidden, (labels, weights))
    )
    np.testing.assert_allclose(estimate.mean, np.einsum("icic->ic", hessian), rtol=1e-9)


@pytest.mark.slow
def test_drawn_labels_per_token_agree_with_the_exact_diagonal():
    params, batch = language_problem()
    exact = flatten(gauss_newton_diagonal(language_model, params, batch).mean)
    options = {"num_label_samples": 200, "key": jax.random.key(3)}
    estimate = gauss_newton_diagonal(language_model, params, batch, **options)
    mean, error = flatten(estimate.mean), flatten(estimate.standard_error)
    # Embeddings of tokens that do not occur have no curvature.
    is_used = exact > 0
    np.testing.assert_array_equal(mean[~is_used], 0.0)
    z = (mean - exact)[is_used] / error[is_used]
    assert 0.4 < np.mean(z**2) < 2.0
    assert np.max(np.abs(z)) < 4.5


@pytest.mark.slow
def test_a_mask_is_leaving_the_tokens_out():
    params, (tokens, (labels, _)) = language_problem()
    mask = np.broadcast_to(np.arange(4) < 3, tokens.shape)
    masked = gauss_newton_diagonal(language_model, params, (tokens, (labels, mask)))
    short = gauss_newton_diagonal(language_model, params, (tokens[:, :3], labels[:, :3]))
    np.testing.assert_allclose(flatten(masked.mean), flatten(short.mean), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    "loss", ["softmax_cross_entropy", pytest.param("squared_error", marks=pytest.mark.slow)]
)
def test_positions_of_a_dense_model_are_a_batch_of_examples(loss):
    params, (inputs, labels) = perceptron_params(), perceptron_batch()

    def predict(p, x):
        return jnp.tanh(x @ p["in"] + p["bias"].reshape(1, 1, -1)) @ p["out"]

    batch = inputs.reshape(3, 4, 3), labels.reshape(3, 4)
    together = gauss_newton_diagonal(predict, params, batch, loss=loss).mean
    alone = gauss_newton_diagonal(tanh_network, params, (inputs, labels), loss=loss).mean
    np.testing.assert_allclose(flatten(together), flatten(alone), rtol=1e-5)


@pytest.mark.parametrize(
    "options", [{}, pytest.param(DRAWN, marks=pytest.mark.slow)], ids=["exact", "drawn"]
)
def test_a_mean_per_token_does_not_depend_on_the_batches(options, x64):
    params, (tokens, (labels, weights)) = language_problem(np.float64)
    weights[1] = 0.0
    batch = tokens, (labels, weights)
    split = [jax.tree.map(lambda x, i=i: x[i : i + 1], batch) for i in range(3)]
    kernel = GaussNewton(language_model, params, **options)
    whole, parts = kernel(batch), over_batches(kernel, split)
    scale = np.max(flatten(whole.mean))
    np.testing.assert_allclose(flatten(parts.mean), flatten(whole.mean), atol=1e-6 * scale)
    with pytest.raises(ValueError, match="weights of all positions of all batches are zero"):
        over_batches(kernel, split[1:2])


@pytest.mark.slow
def test_drawn_labels_take_the_memory_of_gradients_at_any_vocabulary():
    problem = language_problem(num_classes=2000, width=64, num_examples=4, length=32)
    params, batch = jax.eval_shape(lambda: problem)
    with pytest.raises(ValueError, match="takes 64,000 backward passes for an example"):
        gauss_newton_diagonal(
            language_model, *jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), (params, batch))
        )

    @jax.jit
    def gradient(params, batch):
        def loss(params):
            log_p = jax.nn.log_softmax(language_model(params, batch[0]))
            return -jnp.mean(jnp.take_along_axis(log_p, batch[1][0][:, :, None], axis=2))

        return jax.grad(loss)(params)

    analysis = gradient.lower(params, batch).compile().memory_analysis()
    of_gradient = (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
    )
    kernel = GaussNewton(language_model, params, num_label_samples=4, key=jax.random.key(0))
    plan = estimate_memory(kernel, batch, many_batches=False)
    assert plan.peak_bytes < 3 * of_gradient


def test_one_of_many_outputs_is_picked_by_name_or_by_a_function():
    params, batch = perceptron_params(), perceptron_batch()

    def predict(p, x):
        logits = tanh_network(p, x)
        return {"hidden": [x, jnp.sum(x)], "logits": logits}

    expected = flatten(gauss_newton_diagonal(tanh_network, params, batch).mean)
    for output in ("logits", lambda outputs: outputs["logits"]):
        found = gauss_newton_diagonal(predict, params, batch, output=output).mean
        np.testing.assert_array_equal(flatten(found), expected)
    with pytest.raises(ValueError, match="no output 'head'; it has 'hidden/0', 'hidden/1', 'log"):
        gauss_newton_diagonal(predict, params, batch, output="head")
    with pytest.raises(TypeError, match=r"output must be the path of an array .* got int"):
        gauss_newton_diagonal(predict, params, batch, output=1)


def test_bad_input_is_named():
    params, batch = perceptron_params(), perceptron_batch()
    run = partial(gauss_newton_diagonal, relu_network, params, batch)
    with pytest.raises(ValueError, match="loss must be one of softmax_cross_entropy, squared"):
        run(loss="hinge")
    with pytest.raises(ValueError, match="num_label_samples needs a key"):
        run(num_label_samples=4)
    with pytest.raises(ValueError, match="key is for sampled labels"):
        run(key=jax.random.key(0))
    with pytest.raises(ValueError, match="num_label_samples must be at least 2"):
        run(num_label_samples=1, key=jax.random.key(0))
    with pytest.raises(ValueError, match="examples_per_chunk must be at least 1"):
        run(examples_per_chunk=0)
    with pytest.raises(TypeError, match="predict_fn must be a function"):
        gauss_newton_diagonal(3, params, batch)
    with pytest.raises(ValueError, match=r"batch must be a pair \(inputs, targets\)"):
        gauss_newton_diagonal(relu_network, params, batch[0])
    with pytest.raises(ValueError, match="share the leading axis"):
        gauss_newton_diagonal(relu_network, params, (batch[0], batch[1][:3]))
    with pytest.raises(ValueError, match=r"returns a tree of arrays: .* output=, one of '0', '1'"):
        gauss_newton_diagonal(lambda p, x: (x, x), params, batch)
    with pytest.raises(ValueError, match=r"must return an array \(batch, ...\) .* shape \(3,\)"):
        gauss_newton_diagonal(lambda p, x: jnp.sum(x, axis=0), params, batch)
    with pytest.raises(ValueError, match=r"outputs \(batch, ..., classes\), got outputs of shape"):
        gauss_newton_diagonal(lambda p, x: jnp.sum(x @ p["in"], axis=1), params, batch)
    with pytest.raises(ValueError, match="loss must return a scalar"):
        run(loss=lambda outputs, target: outputs)
    bad = {**params, "in": np.array(params["in"])}
    bad["in"][0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        check_finite(gauss_newton_diagonal(tanh_network, bad, batch))
