"""Two networks that read text, their curvature, and scores of what became of them.

A problem evaluates sentences (or sequences of characters): those on which curvature is gathered,
and others, on which nothing is chosen. Axis letters: `E` examples, `T` tokens, `V` characters.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import language_model
import numpy as np
from language_model import Size, Training

from jaxcomp.curvature import GaussNewton, layer_hessians, over_batches
from jaxcomp.experiments.caches import network_cache
from jaxcomp.experiments.data.standard_library import sentences
from jaxcomp.experiments.networks import minilm
from jaxcomp.storage.arrays import load_arrays, save_arrays
from jaxcomp.trees.paths import leaves_by_path, replace_leaves

NUM_LABEL_SAMPLES = 2
BATCH_SIZE = 32
TEMPERATURE = 0.05
NUM_CONTRASTED = 256
WORDS = "embeddings/word_embeddings/weight"

Leaves = dict[str, np.ndarray]
"""Arrays by path."""


class Loss(NamedTuple):
    """What curvature is of: outputs (E, ...) of `(params, inputs)`, and the loss of these."""

    predict_fn: Callable[[Any, Any], jax.Array]
    name: Any


class Problem(NamedTuple):
    """A trained network.

    Attributes:
        name: of the network.
        params: its weights.
        losses: by name; the first is the one whose rise is measured.
        calibration: inputs, leading axis E, in random order.
        held_out: inputs of the examples that are scored.
        scores: of weights, (E,) each for the held-out examples; `rise` is that of the first loss.
        quadratic_rise: of an error of the weights, (E,): half of its quadratic form with the whole
            Gauss-Newton matrix of each example.
        table: path of the leaf that tokens pick rows of.
        tokens_of: of inputs, the tokens of every example.
        rows: the tokens that any of the inputs has; curvature is computed with these rows alone.
    """

    name: str
    params: Any
    losses: Mapping[str, Loss]
    calibration: Any
    held_out: Any
    scores: Callable[[Any], dict[str, np.ndarray]]
    quadratic_rise: Callable[[Any], np.ndarray]
    table: str
    tokens_of: Callable[[Any], list[np.ndarray]]
    rows: np.ndarray

    def curvature(self, loss: str, inputs: Any, seed: int) -> Leaves:
        """Return the Gauss-Newton diagonal of a loss, from the cache if it was computed before."""
        own = self.losses[loss]

        def compute() -> Leaves:
            estimator = GaussNewton(
                own.predict_fn,
                self._narrow(),
                loss=own.name,
                num_label_samples=NUM_LABEL_SAMPLES,
                key=jax.random.key(seed),
            )
            found = over_batches(estimator, batches(inputs)).mean
            return self._widened(found)

        return _cached((self.name, loss, seed), (self.params, inputs), compute)

    def second_moments(self, inputs: Any) -> Leaves:
        """Return the diagonal of E[x x^T] of the inputs of every layer, shaped like its weights.

        The layer of the table has the frequencies of its rows: its inputs are one-hot.
        """

        def compute() -> Leaves:
            predict_fn = next(iter(self.losses.values())).predict_fn
            found = {}
            hessians = layer_hessians(predict_fn, self._narrow(), batches(inputs))
            for path, layer in hessians.items():
                shape = (*layer.hessian.shape[:2], layer.layout.num_outputs)
                own = jnp.diagonal(layer.hessian, axis1=-2, axis2=-1) / 2
                full = jnp.broadcast_to(own[..., None], shape)
                found[path] = np.asarray(layer.layout.from_matrices(full))
            table = leaves_by_path(self.params)[self.table]
            tokens = self.tokens_of(inputs)
            counts = np.bincount(np.concatenate(tokens), minlength=len(table)) / len(tokens)
            found[self.table] = np.broadcast_to(counts[:, None], table.shape).astype(np.float32)
            return found

        return _cached((self.name, "inputs"), (self.params, inputs), compute)

    def _narrow(self) -> Any:
        """The weights without rows of the table that no input has."""
        table = leaves_by_path(self.params)[self.table]
        return replace_leaves(self.params, {self.table: table[self.rows]})

    def _widened(self, tree: Any) -> Leaves:
        """Curvature of such weights: zeros where rows were left out."""
        leaves = {path: np.asarray(leaf) for path, leaf in leaves_by_path(tree).items()}
        whole = np.zeros(leaves_by_path(self.params)[self.table].shape, np.float32)
        whole[self.rows] = leaves[self.table]
        return leaves | {self.table: whole}


def batches(inputs: Any) -> list[tuple[Any, jax.Array]]:
    """Split inputs, with targets that no curvature reads."""
    size = len(jax.tree.leaves(inputs)[0])
    starts = range(0, size, BATCH_SIZE)
    return [
        (
            jax.tree.map(lambda x, at=at: jnp.asarray(x[at : at + BATCH_SIZE]), inputs),
            jnp.zeros(min(BATCH_SIZE, size - at), jnp.int32),
        )
        for at in starts
    ]


def part_of(inputs: Any, start: int, stop: int) -> Any:
    return jax.tree.map(lambda x: x[start:stop], inputs)


def _cached(name: tuple[Any, ...], given: Any, compute: Callable[[], Leaves]) -> Leaves:
    digest = hashlib.sha256(repr((name, NUM_LABEL_SAMPLES, BATCH_SIZE)).encode())
    for leaf in jax.tree.leaves(given):
        digest.update(np.asarray(leaf).tobytes())
    folder = network_cache(None)
    if folder is None:
        return compute()
    file = folder / f"curvature-{digest.hexdigest()[:24]}.npz"
    if file.exists():
        return load_arrays(file)[0]
    found = compute()
    save_arrays(file, found)
    return found


# --- Sentences --------------------------------------------------------------------------------


def sentence_encoder(num_calibration: int, num_held_out: int) -> Problem:
    """MiniLM: unit embeddings, whose squared error is twice one minus the cosine."""
    params, vocabulary = minilm.load()
    found = minilm.word_pieces(sentences(num_calibration + num_held_out), vocabulary)
    order = np.random.default_rng(0).permutation(num_calibration + num_held_out)
    tokens, is_token = (np.asarray(part)[order] for part in found)
    rows, places = np.unique(tokens, return_inverse=True)
    # Inputs are (places among the rows, whether there is a token).
    inputs = places.reshape(tokens.shape).astype(np.int32), is_token
    calibration = part_of(inputs, 0, num_calibration)
    held_out = part_of(inputs, num_calibration, len(order))
    table = params["embeddings"]["word_embeddings"]["weight"]
    narrow = replace_leaves(params, {WORDS: table[rows]})

    def predict(params: Any, inputs: Any) -> jax.Array:
        return minilm.embed(params, *inputs)

    def embed(params: Any, inputs: Any) -> jax.Array:
        return jnp.concatenate([predict(params, batch) for batch, _ in batches(inputs)])

    contrasted = embed(narrow, part_of(calibration, 0, NUM_CONTRASTED))
    original = np.asarray(embed(narrow, held_out))

    def contrast(params: Any, inputs: Any) -> jax.Array:
        return predict(params, inputs) @ contrasted.T / TEMPERATURE

    def nearest(embeddings: np.ndarray) -> np.ndarray:
        similarity = embeddings @ embeddings.T
        np.fill_diagonal(similarity, -np.inf)
        return np.argmax(similarity, axis=1)

    def scores(changed: Any) -> dict[str, np.ndarray]:
        table = leaves_by_path(changed)[WORDS]
        own = np.asarray(embed(replace_leaves(changed, {WORDS: table[rows]}), held_out))
        return {
            "cosine": np.sum(own * original, axis=1),
            "nearest": (nearest(own) == nearest(original)).astype(float),
            "rise": np.sum((own - original) ** 2, axis=1),
        }

    @jax.jit
    def push(params: Any, error: Any, inputs: Any) -> jax.Array:
        moved = jax.jvp(lambda params: predict(params, inputs), (params,), (error,))[1]
        return jnp.sum(moved * moved, axis=1)

    def quadratic_rise(error: Any) -> np.ndarray:
        table = leaves_by_path(error)[WORDS]
        error = replace_leaves(error, {WORDS: table[rows]})
        return np.concatenate([push(narrow, error, batch) for batch, _ in batches(held_out)])

    def tokens_of(inputs: Any) -> list[np.ndarray]:
        return [rows[own[is_own]] for own, is_own in zip(*map(np.asarray, inputs), strict=True)]

    return Problem(
        "MiniLM",
        params,
        {
            "squared error": Loss(predict, "squared_error"),
            "contrastive": Loss(contrast, "softmax_cross_entropy"),
        },
        calibration,
        held_out,
        scores,
        quadratic_rise,
        WORDS,
        tokens_of,
        rows,
    )


# --- Characters -------------------------------------------------------------------------------


def character_model(
    num_calibration: int, num_held_out: int, size: Size, training: Training
) -> Problem:
    """A language model of characters: its cross-entropy, per character."""
    text = language_model.characters(size.num_tokens)
    params = language_model.trained(size, text, training)
    rng = np.random.default_rng(0)
    calibration = language_model.spread(text.training, num_calibration)
    calibration = rng.permutation(calibration)[:, :-1]
    held_out = language_model.spread(text.held_out, num_held_out)
    inputs, labels = held_out[:, :-1], jnp.asarray(held_out[:, 1:])
    predict = jax.jit(language_model.predict)
    original = jax.nn.log_softmax(predict(params, inputs))

    @jax.jit
    def scores_of(changed: Any, original: jax.Array) -> tuple[jax.Array, jax.Array]:
        log_p = jax.nn.log_softmax(predict(changed, inputs))
        nats = -jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]
        divergence = jnp.sum(jnp.exp(original) * (original - log_p), axis=-1)
        return jnp.mean(nats, axis=1), jnp.mean(divergence, axis=1)

    def scores(changed: Any) -> dict[str, np.ndarray]:
        nats, divergence = map(np.asarray, scores_of(changed, original))
        return {"nats": nats, "rise": divergence}

    @jax.jit
    def quadratic_rise(params: Any, error: Any, original: jax.Array) -> jax.Array:
        moved = jax.jvp(lambda params: predict(params, inputs), (params,), (error,))[1]
        p = jnp.exp(original)
        mean = jnp.sum(p * moved, axis=-1, keepdims=True)
        return jnp.mean(jnp.sum(p * (moved - mean) ** 2, axis=-1), axis=1) / 2

    return Problem(
        "characters",
        params,
        {"cross-entropy": Loss(language_model.predict, "softmax_cross_entropy")},
        calibration,
        inputs,
        scores,
        lambda error: np.asarray(quadratic_rise(params, error, original)),
        "embedding",
        list,
        np.arange(size.num_classes),
    )
