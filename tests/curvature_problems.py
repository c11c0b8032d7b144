"""Small networks of every kind of layer, and batches for them, in NumPy: nothing is compiled."""

import jax
import jax.numpy as jnp
import numpy as np


def leaf(rng, *shape, dtype=np.float32):
    return rng.normal(size=shape).astype(dtype)


def perceptron(activation, params, inputs):
    hidden = activation(inputs @ params["in"] + params["bias"].reshape(1, -1))
    return hidden @ params["out"]


def relu_network(params, inputs):
    return perceptron(jax.nn.relu, params, inputs)


def tanh_network(params, inputs):
    return perceptron(jnp.tanh, params, inputs)


def perceptron_params(seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {
        "in": leaf(rng, 3, 4, dtype=dtype),
        "bias": leaf(rng, 4, dtype=dtype),
        "out": leaf(rng, 4, 3, dtype=dtype),
    }


def perceptron_batch(num_examples=12, dtype=np.float32, seed=1):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, num_examples).astype(np.int32)
    return leaf(rng, num_examples, 3, dtype=dtype), labels


def token_network(params, inputs):
    """Tokens (batch, 4, 3) through a shared dense layer, and a weight that is used twice."""
    tokens = jnp.tanh(jnp.einsum("bpi,io->bpo", inputs, params["shared"]))
    tokens = jnp.tanh(tokens @ params["tied"]) @ params["tied"]
    return jnp.mean(tokens, axis=1) * params["scale"].reshape(1, -1)


def token_problem(dtype=np.float32):
    rng = np.random.default_rng(2)
    params = {
        "shared": leaf(rng, 3, 3, dtype=dtype),
        "tied": leaf(rng, 3, 3, dtype=dtype),
        "scale": leaf(rng, 3, dtype=dtype),
    }
    return params, (leaf(rng, 5, 4, 3, dtype=dtype), np.zeros(5, np.int32))


def image_network(params, inputs):
    """A grouped, strided, dilated convolution, one of an upsampled image, and a dense layer."""
    hidden = jax.lax.conv_general_dilated(
        inputs,
        params["grouped"],
        (2, 1),
        [(1, 2), (0, 1)],
        rhs_dilation=(1, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=2,
    )
    hidden = jax.lax.conv_general_dilated(
        jnp.transpose(jnp.tanh(hidden), (0, 3, 1, 2)),
        params["upsampled"],
        (1, 1),
        [(1, 1), (2, 1)],
        lhs_dilation=(2, 1),
        dimension_numbers=("NCHW", "OIHW", "NCHW"),
    )
    return jnp.mean(jnp.tanh(hidden), axis=(2, 3)) @ params["dense"].T


def image_problem(dtype=np.float32):
    rng = np.random.default_rng(3)
    params = {
        "grouped": leaf(rng, 2, 3, 2, 4, dtype=dtype),
        "upsampled": leaf(rng, 2, 4, 3, 2, dtype=dtype),
        "dense": leaf(rng, 3, 2, dtype=dtype),
    }
    return params, (leaf(rng, 3, 5, 6, 4, dtype=dtype), np.zeros(3, np.int32))


def language_model(params, tokens):
    """Logits (batch, T, V) of the next token, from the mean of those before it."""
    hidden = params["embed"][tokens]
    counts = jnp.arange(1, tokens.shape[1] + 1, dtype=hidden.dtype).reshape(1, -1, 1)
    hidden = jnp.tanh((hidden + jnp.cumsum(hidden, axis=1) / counts) @ params["hidden"])
    return hidden @ params["head"] + params["bias"].reshape(1, 1, -1)


def language_problem(dtype=np.float32, num_classes=5, width=3, num_examples=3, length=4):
    """Weights, and tokens with (the tokens that follow, weights of positions)."""
    rng = np.random.default_rng(4)
    params = {
        "embed": leaf(rng, num_classes, width, dtype=dtype),
        "hidden": leaf(rng, width, width, dtype=dtype),
        "head": leaf(rng, width, num_classes, dtype=dtype),
        "bias": leaf(rng, num_classes, dtype=dtype),
    }
    tokens, labels = rng.integers(0, num_classes, (2, num_examples, length))
    weights = rng.integers(0, 3, (num_examples, length)) / 2
    return params, (tokens, (labels, weights.astype(dtype)))
