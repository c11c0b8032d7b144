"""Networks and examples so small that training them takes moments, for tests of training."""

import jax
import numpy as np

from jaxcomp.experiments import networks

NETWORK = networks.build("mlp", input_shape=(8, 8, 1), num_classes=3, width=1 / 32, dropout=0.25)
PLAIN = networks.build("mlp", input_shape=(8, 8, 1), num_classes=3, width=1 / 32, dropout=0.0)
CONFIG = networks.TrainingConfig(epochs=3, batch_size=4, learning_rate=0.05)
NUM_EXAMPLES = 18  # of one training sample: four steps and two examples left out
STEPS = CONFIG.epochs * (NUM_EXAMPLES // CONFIG.batch_size)


def arrays(num_models=2, num_examples=NUM_EXAMPLES, shape=(8, 8, 1)):
    """Three classes that a linear function tells apart, from a pool of 60 examples."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    centres = rng.standard_normal((3, *shape))
    inputs = (centres[labels] + 0.5 * rng.standard_normal((60, *shape))).astype(np.float32)
    # Samples of fewer models are the first ones of more models.
    indices = np.stack(
        [np.random.default_rng(m).integers(0, 50, num_examples) for m in range(num_models)]
    )
    return {
        "inputs": inputs,
        "train_indices": indices,
        "train_labels": labels[indices],
        "validation_inputs": inputs[50:],
        "validation_labels": labels[50:],
        "seed": 7,
        "model_ids": range(num_models),
    }


def train_on(task, network=NETWORK, config=CONFIG, **options):
    data = {name: task[name] for name in networks.TrainingData._fields}
    options |= {name: value for name, value in task.items() if name not in data}
    return networks.train(network, config, networks.TrainingData(**data), **options)


def train(network=NETWORK, config=CONFIG, num_models=2, **changes):
    return train_on(arrays(num_models) | changes, network, config)


def assert_same_bits(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def assert_close(one, other):
    # Twelve steps of a few dozen float32 operations on numbers of size one.
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def of_model(stacked, number):
    return jax.tree.map(lambda leaf: leaf[number], stacked)
