"""The two published networks: shapes, initial weights, forward passes, dropout."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow_cases import some_slow

from jaxcomp.experiments import networks
from jaxcomp.experiments.networks.modules import Dropout

SMALL_VGG = {"input_shape": (32, 32, 3), "num_classes": 10, "width": 1 / 64}


def shapes(network):
    return jax.tree.map(lambda leaf: leaf.shape, jax.eval_shape(network.init, jax.random.key(0)))


def test_published_sizes():
    mlp = networks.build("mlp", input_shape=(28, 28, 1), num_classes=10)
    assert shapes(mlp) == {
        "params": {
            "hidden_0": {"kernel": (784, 256), "bias": (256,)},
            "hidden_1": {"kernel": (256, 256), "bias": (256,)},
            "output": {"kernel": (256, 10), "bias": (10,)},
        },
        "statistics": {},
    }
    vgg = shapes(networks.build("vgg", input_shape=(32, 32, 3), num_classes=10))
    sizes = [3, 128, 128, 256, 256, 512, 512, 1024]
    for index, (before, after) in enumerate(itertools.pairwise(sizes)):
        name = f"convolution_{index}"
        assert vgg["params"][name] == {"kernel": (3, 3, before, after)}
        assert vgg["statistics"][name]["normalization"] == {"mean": (after,), "var": (after,)}
    assert vgg["params"]["output"] == {"kernel": (1024, 10), "bias": (10,)}


def test_width_scales_the_hidden_layers_only():
    tiny = shapes(networks.build("vgg", **(SMALL_VGG | {"width": 1e-6})))
    assert tiny["params"]["convolution_6"]["kernel"] == (3, 3, 1, 1)
    assert tiny["params"]["output"]["kernel"] == (1, 10)
    half = shapes(networks.build("mlp", input_shape=(8, 8, 1), num_classes=3, width=0.5))
    assert half["params"]["hidden_0"]["kernel"] == (64, 128)


def test_initial_weights_are_xavier_normal():
    network = networks.build("mlp", input_shape=(300,), num_classes=10)
    params = network.init(jax.random.key(1))["params"]
    kernel = np.asarray(params["hidden_0"]["kernel"])
    variance = 2 / (300 + 256)
    # The variance of N normal numbers has the relative standard error sqrt(2 / N).
    assert abs(kernel.var() / variance - 1) < 4 * np.sqrt(2 / kernel.size)
    assert np.abs(kernel).max() > 3.5 * np.sqrt(variance)  # not truncated
    assert not np.any(params["hidden_0"]["bias"])
    again = network.init(jax.random.key(1))["params"]
    np.testing.assert_array_equal(kernel, again["hidden_0"]["kernel"])
    assert not np.allclose(kernel, network.init(jax.random.key(2))["params"]["hidden_0"]["kernel"])


def test_mlp_forward_is_three_products(strict_promotion):
    network = networks.build("mlp", input_shape=(3, 2, 1), num_classes=4, width=1 / 64)
    variables = network.init(jax.random.key(0))
    variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)  # so that the biases count
    inputs = jax.random.normal(jax.random.key(1), (5, 3, 2, 1))
    hidden = np.asarray(inputs, np.float64).reshape(5, -1)
    for name in ("hidden_0", "hidden_1", "output"):
        layer = variables["params"][name]
        hidden = hidden @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"])
        hidden = hidden if name == "output" else np.maximum(hidden, 0)
    np.testing.assert_allclose(network.predict(variables, inputs), hidden, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function", some_slow(["predict", "score"], "predict"))
def test_vgg_forward_is_the_published_stack(strict_promotion, function):
    """Rebuilt from XLA's convolution and window, with other running statistics than 0 and 1."""
    network = networks.build("vgg", **SMALL_VGG)
    variables = network.init(jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), 14))
    variables["statistics"] = jax.tree.map(
        lambda leaf: jax.random.uniform(next(keys), leaf.shape, minval=0.1), variables["statistics"]
    )
    inputs = jax.random.normal(jax.random.key(2), (2, 32, 32, 3))
    expected = jax.jit(published_stack)(variables, inputs)
    logits = jax.jit(getattr(network, function))(variables, inputs)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def published_stack(variables, inputs):
    hidden = inputs
    for index, (padding, is_pooled) in enumerate(
        [("SAME", index in (1, 3, 5)) for index in range(6)] + [("VALID", True)]
    ):
        name = f"convolution_{index}"
        hidden = jax.lax.conv_general_dilated(
            hidden,
            variables["params"][name]["kernel"],
            (1, 1),
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        kept = jax.tree.map(
            lambda leaf: leaf[None, None, None], variables["statistics"][name]["normalization"]
        )
        hidden = (hidden - kept["mean"]) / jnp.sqrt(kept["var"] + 1e-5)
        hidden = jnp.maximum(hidden, 0.0)
        if is_pooled:
            hidden = jax.lax.reduce_window(
                hidden, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
            )
    output = variables["params"]["output"]
    return hidden.reshape(2, -1) @ output["kernel"] + output["bias"][None]


def test_vgg_takes_larger_images_and_refuses_smaller_ones():
    larger = networks.build("vgg", **(SMALL_VGG | {"input_shape": (48, 40, 1)}))
    variables = jax.eval_shape(larger.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, 48, 40, 1), jnp.float32)
    assert variables["params"]["output"]["kernel"].shape == (2 * 1 * 16, 10)
    assert jax.eval_shape(larger.predict, variables, images).shape == (2, 10)
    labels, key = jax.ShapeDtypeStruct((2,), jnp.int32), jax.eval_shape(jax.random.key, 0)
    loss, statistics = jax.eval_shape(larger.train_loss, variables, images, labels, key)
    assert loss.shape == ()
    assert statistics == variables["statistics"]
    for shape in ((28, 28, 1), (32, 31, 3), (1024,)):
        with pytest.raises(ValueError, match=r"at least 32 x 32 pixels.*use 'mlp' instead"):
            networks.build("vgg", **(SMALL_VGG | {"input_shape": shape}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "resnet"}, "no network 'resnet': choose one of mlp, vgg"),
        ({"input_shape": ()}, "input_shape must hold sizes of at least 1"),
        ({"input_shape": (8, 0, 1)}, "input_shape must hold sizes of at least 1"),
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"width": 0.0}, "width must be a positive number, got 0.0"),
        ({"width": float("nan")}, "width must be a positive number, got nan"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"dropout": -0.1}, "dropout must be at least 0 and below 1, got -0.1"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    settings = {"name": "mlp", "input_shape": (8, 8, 1), "num_classes": 10} | changes
    with pytest.raises(ValueError, match=message):
        networks.build(settings.pop("name"), **settings)


def test_dropout_keeps_the_mean_and_the_rate(strict_promotion):
    inputs = jnp.ones(100_000)
    layer = Dropout(0.2)
    bits = layer.bits(jax.random.key(0), 2, inputs.shape)
    outputs = np.asarray(layer(inputs, bits[0]))
    kept = outputs > 0
    assert abs(kept.mean() - 0.8) < 4 * np.sqrt(0.8 * 0.2 / inputs.size)
    np.testing.assert_allclose(outputs[kept], 1 / 0.8, rtol=2**-15)
    other = np.asarray(layer(inputs, bits[1])) > 0
    assert abs((kept == other).mean() - (0.8**2 + 0.2**2)) < 4 * np.sqrt(0.25 / inputs.size)


def test_dropout_can_be_off():
    inputs = jnp.ones(10)
    assert Dropout(0.0)(inputs, None) is inputs
    layer = Dropout(0.5)
    layer.eval()
    assert layer(inputs, None) is inputs
    layer.train()
    with pytest.raises(ValueError, match="Dropout in training mode needs a key"):
        layer(inputs, None)
