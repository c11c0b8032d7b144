"""Training: against a NumPy optimizer, one model against many, and through interruptions."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.experiments import networks
from jaxcomp.experiments.networks import training
from jaxcomp.storage import load_arrays

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


def train(network=NETWORK, config=CONFIG, num_models=2, **changes):
    return networks.train(network, config, **(arrays(num_models) | changes))


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
    keys = training._model_keys(7, jnp.arange(2))
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


def test_early_stopping_keeps_the_earlier_of_equal_epochs():
    variables = {"w": jnp.array([1.0, 2.0, 3.0])}
    best = training._Best({"w": jnp.zeros(3)}, jnp.array([0.5, 0.5, jnp.inf]), jnp.zeros(3, int))
    better = training._better(best, variables, jnp.array([0.4, 0.5, jnp.nan]), 2)
    np.testing.assert_array_equal(better.variables["w"], [1.0, 0.0, 0.0])
    np.testing.assert_array_equal(better.epoch, [2, 0, 0])
    np.testing.assert_array_equal(better.loss, jnp.array([0.4, 0.5, jnp.inf]))


def test_validation_loss_ignores_the_filling():
    """Seven examples in chunks of three: two places are filled."""
    task = arrays()
    stacked = jax.vmap(PLAIN.init)(jax.random.split(jax.random.key(0), 2))
    inputs, labels = task["inputs"][:7], task["train_labels"][0][:7].astype(np.int32)
    chunked = training._chunks(inputs, labels, size=3)
    assert chunked[0].shape == (3, 3, 8, 8, 1)
    losses = training._validation_loss(stacked, *chunked, network=PLAIN)
    logits = jax.vmap(PLAIN.predict, in_axes=(0, None))(stacked, inputs)
    expected = -jax.nn.log_softmax(logits)[:, np.arange(7), labels].mean(1)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_every_epoch_is_a_new_order_of_the_sample(strict_promotion):
    keys = jax.random.split(jax.random.key(0), 2)
    indices = jnp.arange(36, dtype=jnp.int32).reshape(2, 18)
    orders = [
        training._epoch_order(keys, epoch, indices, 100 + indices, num_steps=4, batch_size=4)
        for epoch in (0, 1)
    ]
    for rows, labels in orders:
        assert rows.shape == (2, 4, 4)
        np.testing.assert_array_equal(labels, rows + 100)
        for model in range(2):
            seen = np.unique(rows[model])
            assert len(seen) == 16
            assert np.isin(seen, indices[model]).all()
    assert not np.array_equal(orders[0][0], orders[1][0])
    assert not np.array_equal(orders[0][0][0], orders[0][0][1] - 18)


def test_a_model_is_the_same_whatever_is_trained_beside_it():
    many, task = train(num_models=3), arrays(3)
    alone = train(
        train_indices=task["train_indices"][2:],
        train_labels=task["train_labels"][2:],
        model_ids=[2],
    )
    assert_close(jax.tree.map(lambda leaf: leaf[2:], many.variables), alone.variables)
    np.testing.assert_allclose(
        many.history["train_loss"][:, 2:], alone.history["train_loss"], rtol=1e-4
    )
    kernel = np.asarray(many.variables["params"]["hidden_0"]["kernel"])
    assert not np.allclose(kernel[0], kernel[1])


def test_the_two_forms_of_a_segment_agree(strict_promotion):
    """On a CPU one program for each model, on accelerators one batched program."""
    keys = training._model_keys(0, jnp.arange(2))
    rates = training._Rates(
        *(jnp.full(2, x, jnp.float32) for x in (0.05, 0.9)), jnp.array([1e-4, 0]), jnp.full(2, 1e-3)
    )
    task = arrays()
    order = training._epoch_order(
        keys.order,
        0,
        jnp.asarray(task["train_indices"], jnp.int32),
        jnp.asarray(task["train_labels"], jnp.int32),
        num_steps=4,
        batch_size=4,
    )
    results = [
        training._run_steps(
            training._initial_learner(keys.weights, rates, network=NETWORK),
            jnp.asarray(task["inputs"]),
            *order,
            keys.dropout,
            rates,
            0,
            4,
            8,
            network=NETWORK,
            is_unrolled=is_unrolled,
            is_proximal=True,
        )
        for is_unrolled in (True, False)
    ]
    assert_close(*results)


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


def test_proximal_steps_solve_the_lasso():
    """The update on a quadratic loss ends, momentum and all, where coordinate descent does."""
    rng = np.random.default_rng(3)
    curvature = np.diag(np.array([2.0, 1.0, 0.5])) + 0.2
    slope = np.array([1.0, -0.3, 0.1])
    rates = training._Rates(*(jnp.float32(x) for x in (0.1, 0.9, 0.0, 0.25)))
    weights, state = jnp.asarray(rng.standard_normal(3), jnp.float32), None
    state = training._optimizer(rates).init(weights)
    threshold = rates.learning_rate * rates.l1_penalty / (1 - rates.momentum)
    for _ in range(400):
        gradient = jnp.asarray(curvature @ np.asarray(weights) - slope, jnp.float32)
        updates, state = training._optimizer(rates).update(gradient, state, weights)
        weights = training._soft_threshold(weights + updates, threshold)
    exact = np.zeros(3)
    for _ in range(200):
        for i in range(3):
            rest = slope[i] - curvature[i] @ exact + curvature[i, i] * exact[i]
            exact[i] = np.sign(rest) * max(abs(rest) - 0.25, 0) / curvature[i, i]
    assert (exact == 0).any()
    assert (exact != 0).any()
    np.testing.assert_array_equal(np.asarray(weights) == 0, exact == 0)
    np.testing.assert_allclose(weights, exact, atol=1e-5)


def test_seeds():
    one, again, other = train(), train(), train(seed=8)
    assert_same_bits(one, again)
    assert not np.allclose(one.history["train_loss"], other.history["train_loss"])


def test_rates_and_segments_compile_nothing_anew(monkeypatch):
    train()
    compiled = training._run_steps._cache_size()
    monkeypatch.setattr(training, "_FIRST_SEGMENT_STEPS", 3)
    train(config=networks.TrainingConfig(epochs=2, batch_size=4, learning_rate=0.01, momentum=0.5))
    assert training._run_steps._cache_size() == compiled


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


def interrupted_after(num_reports):
    """A progress callback in the place of a user who presses Ctrl-C."""
    seen = []

    def progress(done, total, message):
        seen.append((done, total, message))
        if len(seen) == num_reports:
            raise KeyboardInterrupt

    return progress, seen


@pytest.mark.parametrize("num_reports", [2, 4, 7])
def test_interrupted_training_goes_on_to_the_same_bits(tmp_path, monkeypatch, num_reports):
    """Within an epoch, at its end (before the evaluation), and in a later one."""
    undisturbed = train()
    monkeypatch.setattr(training, "_FIRST_SEGMENT_STEPS", 1)
    monkeypatch.setattr(training, "SEGMENT_SECONDS", 0.0)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    progress, _ = interrupted_after(num_reports)
    with pytest.raises(KeyboardInterrupt):
        train(cache_dir=tmp_path, progress=progress)
    assert [path.name.endswith(".checkpoint.npz") for path in tmp_path.iterdir()] == [True]
    monkeypatch.setattr(training, "_FIRST_SEGMENT_STEPS", 3)
    progress, seen = interrupted_after(10**9)
    resumed = train(cache_dir=tmp_path, progress=progress)
    assert num_reports < seen[0][0] <= num_reports + 3
    assert_same_bits(resumed, undisturbed)
    files = [path.name for path in tmp_path.iterdir()]
    assert len(files) == 1
    assert "checkpoint" not in files[0]


def test_only_old_rests_of_killed_writers_are_cleared(tmp_path):
    old, fresh = (tmp_path / f".group.npz.{number}-00000000.tmp" for number in (1, 2))
    for path in (old, fresh):
        path.write_bytes(b"half a checkpoint")
    os.utime(old, (0, 0))
    train(cache_dir=tmp_path)
    assert not old.exists()
    assert fresh.exists()  # somebody may still be writing it


def test_checkpoints_wait_for_their_time(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 1e9)
    progress, _ = interrupted_after(2)
    with pytest.raises(KeyboardInterrupt):
        train(cache_dir=tmp_path, progress=progress)
    assert list(tmp_path.iterdir()) == []


def test_more_models_begin_with_the_cached_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "MODELS_PER_GROUP", 2)
    two = train(cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    written = path.stat().st_mtime_ns
    reports = []
    three = train(num_models=3, cache_dir=tmp_path, progress=lambda *report: reports.append(report))
    assert reports[0] == (STEPS, 2 * STEPS, "models 0, 1: from the cache")
    assert path.stat().st_mtime_ns == written
    assert len(list(tmp_path.iterdir())) == 2
    assert_same_bits(jax.tree.map(lambda leaf: leaf[:2], three.variables), two.variables)
    assert_same_bits(jax.tree.map(lambda leaf: leaf[:2], three.early_stopped), two.early_stopped)
    assert_same_bits({k: v[:, :2] for k, v in three.history.items()}, two.history)
    again = train(num_models=3, cache_dir=tmp_path)
    assert_same_bits(again, three)
    assert load_arrays(path)[1]["model_ids"] == [0, 1]


def test_the_cache_sees_everything_that_shapes_a_network(tmp_path):
    one_step = networks.TrainingConfig(epochs=1, batch_size=NUM_EXAMPLES)
    task = arrays()
    other_labels = task["train_labels"].copy()
    other_labels[1, 3] = (other_labels[1, 3] + 1) % 3
    changes = [
        {},
        {"network": PLAIN},
        {"config": networks.TrainingConfig(epochs=1, batch_size=NUM_EXAMPLES, momentum=0.5)},
        {"seed": 8},
        {"model_ids": [1, 0]},
        {"train_labels": other_labels},
        {"train_indices": task["train_indices"][:, ::-1]},
        {"inputs": task["inputs"] + 1},
        {"validation_inputs": task["validation_inputs"] + 1},
        {"validation_labels": task["validation_labels"][::-1]},
        {"fingerprint_extra": {"data": "other"}},
    ]
    for number, change in enumerate(changes, start=1):
        for _ in range(2):
            train(**({"config": one_step, "cache_dir": tmp_path} | change))
            assert len(list(tmp_path.iterdir())) == number


@pytest.mark.parametrize("damage", ["cut", "renamed"])
def test_a_damaged_cache_is_made_again(tmp_path, damage):
    first = train(cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        train(seed=8, cache_dir=tmp_path)
        (other,) = set(tmp_path.iterdir()) - {path}
        other.replace(path)
    reports = []
    again = train(cache_dir=tmp_path, progress=lambda *report: reports.append(report))
    message = "is damaged or not one of this cache, so models 0, 1 will be trained again."
    assert message in reports[0][2]
    assert_same_bits(again, first)
    assert_same_bits(train(cache_dir=tmp_path), first)


def test_a_damaged_checkpoint_starts_again(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    progress, _ = interrupted_after(2)
    with pytest.raises(KeyboardInterrupt):
        train(cache_dir=tmp_path, progress=progress)
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"not an archive")
    with pytest.warns(RuntimeWarning, match="so models 0, 1 will be trained from the beginning"):
        again = train(cache_dir=tmp_path)
    assert_same_bits(again, train())
    assert not path.exists()


def test_a_left_checkpoint_of_a_finished_group_is_removed(tmp_path):
    train(cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    left = path.with_name(f"{path.stem}.checkpoint.npz")
    left.write_bytes(b"whatever")
    train(cache_dir=tmp_path)
    assert not left.exists()


def test_divergence_is_an_error_that_names_the_models(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    task = arrays()
    task["inputs"][task["train_indices"][1, 0]] = np.nan
    assert not np.isin(task["train_indices"][0], task["train_indices"][1, 0]).any()
    whole = networks.TrainingConfig(epochs=1, batch_size=NUM_EXAMPLES)
    message = "loss of model 1 is not finite in epoch 1 of 1; choose a learning rate below 0.01"
    with pytest.raises(ValueError, match=message):
        networks.train(NETWORK, whole, **task, cache_dir=tmp_path)
    with pytest.raises(ValueError, match=r"loss of model 0, 1 is not finite .* below 1e"):
        train(config=networks.TrainingConfig(batch_size=4, learning_rate=1e30), cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_convolutional_network_trains():
    network = networks.build("vgg", input_shape=(32, 32, 1), num_classes=3, width=1 / 128)
    task = arrays(num_examples=4, shape=(32, 32, 1))
    config = networks.TrainingConfig(epochs=2, batch_size=2)
    trained = networks.train(network, config, **task)
    assert np.isfinite(trained.history["validation_loss"]).all()
    for layer in trained.variables["statistics"].values():
        assert np.all(np.asarray(layer["normalization"]["var"]) != 1)
    stacked = jax.tree.map(lambda leaf: leaf.shape[0], trained.early_stopped)
    assert set(jax.tree.leaves(stacked)) == {2}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"train_indices": [[0.5]]}, TypeError, "train_indices must be integers, got float64"),
        ({"train_labels": [[0, 1]]}, ValueError, r"both be \(models, examples\).*\(1, 2\)"),
        ({"model_ids": [0]}, ValueError, "one row for each of the model_ids.* and 1 ids"),
        ({"model_ids": [3, 3]}, ValueError, r"model_ids must be different.*\[3, 3\]"),
        ({"weight_decay": [0.1]}, ValueError, "weight_decay must be one number .* of the 2 models"),
        ({"l1_penalty": [0.1, -1.0]}, ValueError, r"l1_penalty must be one .* \[0.1, -1.0\]"),
        ({"seed": -1}, ValueError, r"the seed integers in \[0, 2\^32\), got .* and -1"),
        ({"inputs": np.zeros((60, 8, 8))}, ValueError, r"inputs must be .* \(8, 8, 1\)"),
        (
            {"validation_inputs": np.zeros((10, 1))},
            ValueError,
            "validation_inputs must be at least",
        ),
        ({"validation_labels": [0, 1]}, ValueError, "one validation label for each validation in"),
        ({"config": networks.TrainingConfig(batch_size=19)}, ValueError, "batch of 19 examples is"),
        ({"inputs": np.zeros((40, 8, 8, 1))}, ValueError, "rows of the pool of 40 examples"),
        ({"train_labels": np.full((2, 18), 3)}, ValueError, "train_labels must be in 0 to 2"),
        ({"validation_labels": np.full(10, -1)}, ValueError, "validation_labels must be in 0 to 2"),
    ],
)
def test_bad_data_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        train(**changes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": -2}, "batch_size must be at least 1, got -2"),
        ({"learning_rate": 0.0}, "learning_rate must be positive and finite, got 0"),
        ({"learning_rate": float("inf")}, "learning_rate must be positive and finite, got inf"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1, got 1.0"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0, got -1.0"),
        ({"l1_penalty": float("nan")}, "l1_penalty must be at least 0, got nan"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        networks.TrainingConfig(**settings)
