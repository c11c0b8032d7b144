"""Training: against a NumPy optimizer, one model against many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_training import (
    NETWORK,
    NUM_EXAMPLES,
    PLAIN,
    STEPS,
    arrays,
    assert_close,
    assert_same_bits,
    of_model,
    train,
    train_on,
)

from jaxcomp.experiments import networks
from jaxcomp.experiments.networks import descent, training


def backpropagate(params, inputs, labels):
    """Mean cross-entropy of the perceptron and its gradient, in float64 and by hand."""
    names = ("hidden_0", "hidden_1", "output")
    activations = [inputs.reshape(len(inputs), -1)]
    for name in names:
        outputs = activations[-1] @ params[name]["kernel"] + params[name]["bias"]
        activations.append(outputs if name == "output" else np.maximum(outputs, 0))
    shifted = activations[-1] - activations[-1].max(1, keepdims=True)
    probabilities = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
    loss = -np.log(probabilities[np.arange(len(labels)), labels]).mean()
    delta = (probabilities - np.eye(probabilities.shape[1])[labels]) / len(labels)
    gradient = {}
    for position in (2, 1, 0):
        name = names[position]
        gradient[name] = {"kernel": activations[position].T @ delta, "bias": delta.sum(0)}
        delta = (delta @ params[name]["kernel"].T) * (activations[position] > 0)
    return loss, gradient


def test_optimizer_against_numpy():
    """With the whole sample in one batch, the order of the examples does not matter."""
    config = networks.TrainingConfig(
        epochs=6, batch_size=NUM_EXAMPLES, learning_rate=0.1, momentum=0.8, weight_decay=0.05
    )
    trained = train(PLAIN, config)
    task = arrays()
    keys = descent.model_keys(7, jnp.arange(2))
    for model in range(2):
        params = jax.tree.map(
            lambda leaf: np.asarray(leaf, np.float64), PLAIN.init(keys.weights[model])["params"]
        )
        velocity = jax.tree.map(np.zeros_like, params)
        inputs = task["inputs"][task["train_indices"][model]].astype(np.float64)
        for epoch in range(config.epochs):
            loss, gradient = backpropagate(params, inputs, task["train_labels"][model])
            np.testing.assert_allclose(trained.history["train_loss"][epoch, model], loss, rtol=1e-4)
            velocity = jax.tree.map(
                lambda v, g, w: 0.8 * v + g + 0.05 * w, velocity, gradient, params
            )
            params = jax.tree.map(lambda w, v: w - 0.1 * v, params, velocity)
        assert_close(of_model(trained.variables["params"], model), params)


def test_it_learns_and_keeps_the_best_epoch():
    config = networks.TrainingConfig(epochs=20, batch_size=4, learning_rate=0.01)
    task = arrays()
    trained = train(PLAIN, config)
    history = trained.history
    assert history["train_loss"].shape == history["validation_loss"].shape == (20, 2)
    assert np.all(history["train_loss"][-1] < 0.2 * history["train_loss"][0])
    np.testing.assert_array_equal(trained.best_epoch, history["validation_loss"].argmin(0))
    assert trained.best_epoch.dtype == np.int32
    for tree, losses in (
        (trained.early_stopped, history["validation_loss"].min(0)),
        (trained.variables, history["validation_loss"][-1]),
    ):
        logits = jax.vmap(PLAIN.predict, in_axes=(0, None))(tree, task["validation_inputs"])
        scores = jax.nn.log_softmax(logits)[:, np.arange(10), task["validation_labels"]]
        # A small loss is a difference of numbers near 1: its error is absolute, about eps.
        eps = np.finfo(np.float32).eps
        np.testing.assert_allclose(-scores.mean(1), losses, rtol=1e-5, atol=2 * eps)


def test_a_model_is_the_same_whatever_is_trained_beside_it():
    many, task = train(), arrays()
    alone = train(
        train_indices=task["train_indices"][1:],
        train_labels=task["train_labels"][1:],
        model_ids=[1],
    )
    assert_close(jax.tree.map(lambda leaf: leaf[1:], many.variables), alone.variables)
    np.testing.assert_allclose(
        many.history["train_loss"][:, 1:], alone.history["train_loss"], rtol=1e-4
    )
    kernel = np.asarray(many.variables["params"]["hidden_0"]["kernel"])
    assert not np.allclose(kernel[0], kernel[1])


@pytest.mark.slow
def test_penalties_of_each_model_are_those_of_a_run_of_its_own():
    """Strengths are traced, and models of one number start alike: pairs for a paired test."""
    task = arrays(1)
    both = {name: np.repeat(task[name], 2, axis=0) for name in ("train_indices", "train_labels")}
    strengths = {"weight_decay": [0.0, 0.3], "l1_penalty": [0.02, 0.0]}
    pair = train(num_models=1, **both, model_ids=[0, 0], **strengths)
    for number in range(2):
        own = {name: values[number] for name, values in strengths.items()}
        config = networks.TrainingConfig(epochs=3, batch_size=4, learning_rate=0.05, **own)
        assert_close(
            of_model(pair.variables, number),
            of_model(train(config=config, num_models=1).variables, 0),
        )
    norms = [
        float(jnp.linalg.norm(of_model(pair.variables, m)["params"]["hidden_0"]["kernel"]))
        for m in range(2)
    ]
    assert norms[0] != pytest.approx(norms[1], rel=0.01)


def test_seeds():
    one, again, other = train(), train(), train(seed=8)
    assert_same_bits(one, again)
    assert not np.allclose(one.history["train_loss"], other.history["train_loss"])


def test_rates_and_segments_compile_nothing_anew(monkeypatch):
    train()
    compiled = descent.run_steps._cache_size()
    monkeypatch.setattr(training, "_FIRST_SEGMENT_STEPS", 3)
    train(config=networks.TrainingConfig(epochs=2, batch_size=4, learning_rate=0.01, momentum=0.5))
    assert descent.run_steps._cache_size() == compiled


def test_progress_counts_the_steps_of_all_groups(monkeypatch):
    monkeypatch.setattr(training, "MODELS_PER_GROUP", 2)
    monkeypatch.setattr(training, "_FIRST_SEGMENT_STEPS", 1)
    monkeypatch.setattr(training, "SEGMENT_SECONDS", 0.0)
    reports = []
    train(num_models=3, progress=lambda *report: reports.append(report))
    assert [done for done, _, _ in reports] == list(range(1, 2 * STEPS + 1))
    assert {total for _, total, _ in reports} == {2 * STEPS}
    assert reports[0][2].startswith("models 0, 1: epoch 1 of 3, train loss ")
    assert reports[-1][2].startswith("model 2: epoch 3 of 3, train loss ")


def test_divergence_is_an_error_that_names_the_models(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    task = arrays()
    task["inputs"][task["train_indices"][1, 0]] = np.nan
    assert not np.isin(task["train_indices"][0], task["train_indices"][1, 0]).any()
    whole = networks.TrainingConfig(epochs=1, batch_size=NUM_EXAMPLES)
    message = "loss of model 1 is not finite in epoch 1 of 1; choose a learning rate below 0.01"
    with pytest.raises(ValueError, match=message):
        train_on(task, NETWORK, whole, cache_dir=tmp_path)
    with pytest.raises(ValueError, match=r"loss of model 0, 1 is not finite .* below 1e"):
        train(config=networks.TrainingConfig(batch_size=4, learning_rate=1e30), cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow  # shapes of a step are in test_modules.py, steps of small networks above
def test_the_convolutional_network_trains():
    network = networks.build("vgg", input_shape=(32, 32, 1), num_classes=3, width=1 / 128)
    task = arrays(num_examples=4, shape=(32, 32, 1))
    config = networks.TrainingConfig(epochs=2, batch_size=2)
    trained = train_on(task, network, config)
    assert np.isfinite(trained.history["validation_loss"]).all()
    for layer in trained.variables["statistics"].values():
        assert np.all(np.asarray(layer["normalization"]["var"]) != 1)
    stacked = jax.tree.map(lambda leaf: leaf.shape[0], trained.early_stopped)
    assert set(jax.tree.leaves(stacked)) == {2}
