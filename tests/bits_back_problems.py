"""Posteriors, payloads and a small network on digits, shared by the tests of bits back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp.bits_back import LabelCode, Posterior, VariationalConfig
from jaxcomp.experiments import data

NUM_HIDDEN = 12


def payload(num_words: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**32, num_words, dtype=np.uint32)


def random_posterior(num_weights: int, seed: int = 0) -> Posterior:
    rng = np.random.default_rng(seed)
    mean = rng.normal(0, 0.1, num_weights)
    scale = np.exp(rng.uniform(np.log(0.01), np.log(0.1), num_weights))
    return Posterior(mean.astype(np.float32), scale.astype(np.float32))


def init_network(key):
    kernels = jax.random.split(key)
    return {
        "hidden": {
            "kernel": 0.15 * jax.random.normal(kernels[0], (64, NUM_HIDDEN), jnp.float32),
            "bias": jnp.zeros(NUM_HIDDEN, jnp.float32),
        },
        "output": {
            "kernel": 0.25 * jax.random.normal(kernels[1], (NUM_HIDDEN, 10), jnp.float32),
            "bias": jnp.zeros(10, jnp.float32),
        },
    }


def predict(params, inputs):
    hidden = jnp.matmul(inputs, params["hidden"]["kernel"], precision="highest")
    hidden = jax.nn.relu(hidden + params["hidden"]["bias"].reshape(1, -1))
    logits = jnp.matmul(hidden, params["output"]["kernel"], precision="highest")
    return logits + params["output"]["bias"].reshape(1, -1)


def digits(num_examples: int) -> tuple[np.ndarray, np.ndarray]:
    found = data.load("digits")
    inputs = found.pool_images[:num_examples].reshape(num_examples, 64) / np.float32(16)
    return inputs, found.pool_labels[:num_examples]


@functools.cache
def learned():
    """A label code on 600 digits, the labels, and what it learns from them."""
    inputs, labels = digits(600)
    config = VariationalConfig(num_steps=500, learning_rate=0.03, annealing_steps=100)
    code = LabelCode(inputs, predict, init_network, config)
    return code, labels, code.learn(labels)
