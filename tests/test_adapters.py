"""Flax modules as pure functions: equal by value, without side effects, in the right mode."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from jaxcomp import adapters
from jaxcomp.curvature import gauss_newton_diagonal
from jaxcomp.experiments import networks
from jaxcomp.trees.paths import leaves_by_path

MLP = {"input_shape": (6,), "num_classes": 3, "width": 1 / 64}
VGG = {"input_shape": (32, 32, 3), "num_classes": 10, "width": 1 / 64}


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def mlp():
    """A network and its variables, which no test changes."""
    network = networks.build("mlp", **MLP)
    return network, network.init(jax.random.key(0))


def drawn_by_numpy(key, shape, *dtype):
    """An initializer without a program for every shape."""
    return jax.device_put(normal(sum(shape), *shape))


class Custom(nnx.Module):
    """What a user may bring: a list of layers, batch normalization, dropout with its stream."""

    def __init__(self, seed: int = 0, hidden: int = 5) -> None:
        rngs = nnx.Rngs(seed)
        sizes = (4, hidden), (hidden, 3)
        self.layers = nnx.List(
            [nnx.Linear(*size, kernel_init=drawn_by_numpy, rngs=rngs) for size in sizes]
        )
        self.normalization = nnx.BatchNorm(hidden, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, inputs):
        hidden = self.dropout(jax.nn.relu(self.normalization(self.layers[0](inputs))))
        return self.layers[1](hidden)


def test_equal_networks_are_one_for_the_compiler():
    one, other = (networks.build("mlp", **MLP) for _ in range(2))
    assert one == other
    assert one.predict == other.predict
    assert hash(one.predict) == hash(other.predict)
    assert one.predict != networks.build("mlp", **(MLP | {"width": 1 / 32})).predict
    # VGG has no dropout: the setting makes no other network.
    assert networks.build("vgg", **VGG, dropout=0.5) == networks.build("vgg", **VGG)

    traces = []

    def predict(predict_fn, variables, inputs):
        traces.append(predict_fn)
        return predict_fn(variables, inputs)

    compiled = jax.jit(predict, static_argnums=0)
    variables = one.init(jax.random.key(0))
    for network in (one, other):
        compiled(network.predict, variables, np.ones((2, 6), np.float32))
    assert len(traces) == 1


def test_networks_from_files_lack_empty_statistics(mlp):
    network, variables = mlp
    inputs, predict_fn = normal(1, 2, 6), jax.jit(network.predict)
    read_back = {"params": variables["params"]}
    np.testing.assert_array_equal(predict_fn(read_back, inputs), predict_fn(variables, inputs))


def test_train_loss_is_the_cross_entropy(strict_promotion):
    network = networks.build("mlp", **MLP, dropout=0.0)
    variables = network.init(jax.random.key(0))
    inputs = normal(1, 5, 6)
    labels = np.arange(5) % 3
    loss_fn, predict_fn = jax.jit(network.train_loss), jax.jit(network.predict)
    loss, statistics = loss_fn(variables, inputs, labels, jax.random.key(2))
    logits = np.asarray(predict_fn(variables, inputs), np.float64)
    expected = np.log(np.exp(logits).sum(1)) - logits[np.arange(5), labels]
    np.testing.assert_allclose(loss, expected.mean(), rtol=1e-5)
    assert statistics == {}


def test_dropout_works_in_training_only():
    network = networks.build("mlp", **MLP, dropout=0.5)
    variables = network.init(jax.random.key(0))
    inputs, labels = np.ones((5, 6), np.float32), np.zeros(5, np.int32)
    loss_fn, predict_fn = jax.jit(network.train_loss), jax.jit(network.predict)
    losses = [float(loss_fn(variables, inputs, labels, jax.random.key(s))[0]) for s in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    np.testing.assert_array_equal(*(predict_fn(variables, inputs) for _ in range(2)))


@pytest.mark.slow
def test_vgg_keeps_running_statistics(strict_promotion):
    """The first layer's, from XLA's convolution; the loss must use those of the batch."""
    network = networks.build("vgg", **VGG)
    variables = network.init(jax.random.key(0))
    inputs = 1 + normal(1, 3, 32, 32, 3)
    labels = np.arange(3)
    loss, statistics = jax.jit(network.train_loss)(variables, inputs, labels, jax.random.key(2))
    assert jax.tree.structure(statistics) == jax.tree.structure(variables["statistics"])
    outputs = first_layer(variables, inputs)
    kept = statistics["convolution_0"]["normalization"]
    np.testing.assert_allclose(kept["mean"], 0.1 * outputs.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(kept["var"], 0.9 + 0.1 * outputs.var((0, 1, 2)), rtol=1e-4)
    exact = adapters.reestimate_batch_statistics(network, variables, inputs)
    logits = network.predict(exact, inputs)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def first_layer(variables, inputs):
    kernel = variables["params"]["convolution_0"]["kernel"]
    return np.asarray(
        jax.lax.conv_general_dilated(
            inputs, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        np.float64,
    )


def test_reestimated_statistics_are_those_of_all_examples():
    """Whatever the batches, where nothing comes before; the last batch is not a short one."""
    module = Custom()
    predict_fn, params = adapters.nnx_predict_fn(module)
    inputs = 1 + 2 * normal(0, 7, 4)
    outputs = inputs.astype(np.float64) @ np.asarray(module.layers[0].kernel[...])
    for batch_size in (7, 3, 1, 100):
        changed = adapters.reestimate_batch_statistics(
            predict_fn, params, inputs, batch_size=batch_size
        )
        assert jax.tree.structure(changed) == jax.tree.structure(params)
        kept = nnx.to_pure_dict(changed)["normalization"]
        np.testing.assert_allclose(kept["mean"], outputs.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(kept["var"], outputs.var(0), rtol=1e-4)
    np.testing.assert_array_equal(nnx.to_pure_dict(params)["normalization"]["var"], np.ones(5))


def test_reestimating_under_vmap_is_a_loop():
    predict_fn, params = adapters.nnx_predict_fn(Custom())
    stacked = jax.tree.map(lambda leaf: np.stack([leaf, 3 * np.asarray(leaf)]), params)
    inputs = normal(1, 4, 4)

    def reestimate(variables):
        return adapters.reestimate_batch_statistics(predict_fn, variables, inputs, batch_size=2)

    batched = jax.device_get(nnx.to_pure_dict(jax.vmap(reestimate)(stacked))["normalization"])
    single = nnx.to_pure_dict(reestimate(jax.tree.map(lambda leaf: leaf[1], stacked)))
    for name in ("mean", "var"):
        np.testing.assert_allclose(batched[name][1], single["normalization"][name], rtol=1e-5)
    np.testing.assert_allclose(batched["var"][1], 9 * batched["var"][0], rtol=1e-4)


def test_reestimating_leaves_other_networks_alone(mlp):
    network, variables = mlp
    inputs = np.ones((3, 6), np.float32)
    changed = adapters.reestimate_batch_statistics(network, variables, inputs)
    assert jax.tree.structure(changed) == jax.tree.structure(variables)
    for one, other in zip(jax.tree.leaves(changed), jax.tree.leaves(variables), strict=True):
        np.testing.assert_array_equal(one, other)


def test_reestimating_refuses_what_it_cannot_do(mlp):
    network, variables = mlp
    with pytest.raises(TypeError, match="for a Network or the function that nnx_predict_fn"):
        adapters.reestimate_batch_statistics(jnp.sin, variables, np.ones((3, 6), np.float32))
    with pytest.raises(ValueError, match="got 0 inputs and 500"):
        adapters.reestimate_batch_statistics(network, variables, np.ones((0, 6), np.float32))
    with pytest.raises(ValueError, match="got 3 inputs and 0"):
        adapters.reestimate_batch_statistics(
            network, variables, np.ones((3, 6), np.float32), batch_size=0
        )


def test_nnx_module_becomes_a_function():
    module = Custom()
    inputs = normal(0, 6, 4)
    module(inputs)  # moves the running statistics and the stream of the dropout
    predict_fn, params = adapters.nnx_predict_fn(module)
    assert not module.dropout.deterministic  # left in training mode
    logits = jax.jit(predict_fn)(params, inputs)
    np.testing.assert_array_equal(predict_fn(params, inputs), predict_fn(params, inputs))
    module.eval()
    np.testing.assert_allclose(logits, module(inputs), rtol=1e-6, atol=1e-6)
    stacked = jax.tree.map(lambda leaf: np.stack([leaf, 2 * np.asarray(leaf)]), params)
    batched = jax.jit(jax.vmap(predict_fn, in_axes=(0, None)))(stacked, inputs)
    np.testing.assert_allclose(batched[0], logits, rtol=1e-5, atol=1e-6)


def test_nnx_params_hold_all_but_the_streams():
    module = Custom()
    _, params = adapters.nnx_predict_fn(module)
    pure = nnx.to_pure_dict(params)
    assert set(pure) == {"layers", "normalization"}
    assert set(pure["normalization"]) == {"mean", "var", "scale", "bias"}
    leaves = jax.tree.leaves(params)
    assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves)
    assert sorted(leaf.shape for leaf in leaves if leaf.ndim >= 2) == [(4, 5), (5, 3)]
    nnx.update(module, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params))
    assert not np.any(module.layers[0].kernel[...])


def test_nnx_functions_of_one_definition_are_equal():
    (one, _), (other, params) = (adapters.nnx_predict_fn(Custom(seed)) for seed in (0, 1))
    assert one == other
    assert hash(one) == hash(other)
    assert one != adapters.nnx_predict_fn(Custom(hidden=6))[0]
    inputs = np.ones((2, 4), np.float32)
    of_one, of_other = (jax.jit(predict_fn)(params, inputs) for predict_fn in (one, other))
    np.testing.assert_array_equal(of_one, of_other)


class LinenModel(linen.Module):
    """Batch normalization and dropout with flags, as Linen has them."""

    hidden: int = 5

    @linen.compact
    def __call__(self, inputs, train: bool):
        hidden = linen.BatchNorm(use_running_average=not train)(linen.Dense(self.hidden)(inputs))
        return linen.Dense(3)(linen.Dropout(0.5, deterministic=not train)(hidden))


def test_linen_module_becomes_a_function():
    inputs = normal(0, 6, 4)
    module = LinenModel()
    variables = module.init(jax.random.key(1), inputs, train=False)
    predict_fn, params = adapters.linen_predict_fn(module, variables, train=False)
    assert set(params) == {"params", "batch_stats"}
    expected = module.apply(variables, inputs, train=False)
    np.testing.assert_allclose(jax.jit(predict_fn)(params, inputs), expected, rtol=1e-6)
    again, _ = adapters.linen_predict_fn(LinenModel(), variables, train=False)
    assert again == predict_fn
    assert hash(again) == hash(predict_fn)
    assert adapters.linen_predict_fn(LinenModel(6), variables, train=False)[0] != predict_fn


def test_wrong_modules_are_refused():
    with pytest.raises(TypeError, match=r"needs a flax\.nnx\.Module, got LinenModel"):
        adapters.nnx_predict_fn(LinenModel())
    with pytest.raises(TypeError, match=r"needs a flax\.linen\.Module, got Custom"):
        adapters.linen_predict_fn(Custom(), {})
    with pytest.raises(ValueError, match="cannot take mutable and rngs"):
        adapters.linen_predict_fn(LinenModel(), {}, rngs=0, mutable=True)
    with pytest.raises(TypeError, match="must be hashable"):
        adapters.linen_predict_fn(LinenModel(), {}, sizes=[1, 2])


def test_nnx_settings_must_be_hashable():
    module = Custom()
    module.sizes = nnx.static([1, 2])
    with pytest.raises(TypeError, match="definition of the module Custom must be hashable"):
        adapters.nnx_predict_fn(module)


def test_freezing_leaves_a_function_of_the_weights_alone():
    inputs = normal(2, 8, 4)
    labels = np.asarray([0, 1, 2, 0, 1, 2, 0, 1])
    predict_fn, params = adapters.nnx_predict_fn(Custom())
    loss_fn = adapters.CrossEntropyLoss(predict_fn)
    frozen, weights = adapters.freeze(predict_fn, params)
    frozen_loss, _ = adapters.freeze(loss_fn, params)

    # Kernels only: no biases, and no statistics of batch normalization.
    assert len(weights) == 2
    assert all(path.endswith("kernel") or "kernel" in path for path in weights)
    logits = np.asarray(predict_fn(params, inputs))
    np.testing.assert_array_equal(frozen(weights, inputs), logits)
    losses = np.log(np.exp(logits.astype(np.float64)).sum(1)) - logits[np.arange(8), labels]
    found = jax.jit(frozen_loss)(weights, (inputs, labels))
    assert float(found) == pytest.approx(losses.mean(), rel=1e-6)
    curvature = gauss_newton_diagonal(frozen, weights, (inputs, labels)).mean
    whole = gauss_newton_diagonal(predict_fn, params, (inputs, labels)).mean
    by_path = leaves_by_path(whole)
    for path, diagonal in curvature.items():
        np.testing.assert_allclose(diagonal, by_path[path], rtol=1e-4, atol=1e-8)


def test_equal_losses_are_one_for_the_compiler():
    losses = [adapters.CrossEntropyLoss(adapters.nnx_predict_fn(Custom())[0]) for _ in range(2)]
    assert losses[0] == losses[1]
    assert hash(losses[0]) == hash(losses[1])


def test_function_of_a_flax_model():
    inputs = np.ones((2, 4), np.float32)
    module = Custom()
    predict_fn, params = adapters.nnx_predict_fn(module)
    assert adapters.predict_fn_of(module, params) == predict_fn
    linear = linen.Dense(3)
    variables = linear.init(jax.random.key(3), inputs)
    np.testing.assert_array_equal(
        adapters.predict_fn_of(linear, variables)(variables, inputs),
        linear.apply(variables, inputs),
    )
