"""A small language model: blocks of causal attention and a perceptron, as a pure function.

Drawn at random, or trained on the characters of the standard library's docstrings.
"""

import hashlib
import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcomp.experiments.caches import network_cache
from jaxcomp.experiments.data.standard_library import docstrings
from jaxcomp.storage.arrays import load_arrays, save_arrays
from jaxcomp.trees.paths import leaves_by_path, replace_leaves


@dataclass(frozen=True)
class Size:
    """How large a model and its examples are."""

    num_blocks: int
    width: int
    num_heads: int
    num_tokens: int
    num_classes: int


def make_params(size: Size) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    width, head_width = size.width, size.width // size.num_heads

    def draw(*shape: int, fan_in: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape, np.float32) / np.sqrt(fan_in))

    def block() -> dict[str, jax.Array]:
        into_heads = (width, size.num_heads, head_width)
        return {
            **{name: draw(*into_heads, fan_in=width) for name in ("query", "key", "value")},
            "out": draw(size.num_heads, head_width, width, fan_in=width),
            "up": draw(width, 4 * width, fan_in=width),
            "bias": jnp.zeros(4 * width),
            "down": draw(4 * width, width, fan_in=4 * width),
            "first_scale": jnp.ones(width),
            "second_scale": jnp.ones(width),
        }

    return {
        "embedding": draw(size.num_classes, width, fan_in=1),
        "positions": draw(size.num_tokens, width, fan_in=1),
        "blocks": [block() for _ in range(size.num_blocks)],
        "head": draw(width, size.num_classes, fan_in=width),
    }


def normalized(x: jax.Array) -> jax.Array:
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5)


def attention(block: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    query, key, value = (
        jnp.einsum("btd,dhk->bthk", x, block[name]) for name in ("query", "key", "value")
    )
    scores = jnp.einsum("bthk,bshk->bhts", query, key) / np.sqrt(query.shape[-1])
    is_before = np.tril(np.ones(scores.shape[-2:], bool))
    scores = jax.nn.softmax(jnp.where(is_before, scores, -1e30))
    return jnp.einsum("bthk,hkd->btd", jnp.einsum("bhts,bshk->bthk", scores, value), block["out"])


def predict(params: dict[str, Any], tokens: jax.Array) -> jax.Array:
    """Return logits (batch, T, classes)."""
    x = params["embedding"][tokens] + params["positions"]
    for block in params["blocks"]:
        x = x + attention(block, normalized(x) * block["first_scale"])
        hidden = normalized(x) * block["second_scale"] @ block["up"] + block["bias"]
        x = x + jax.nn.gelu(hidden) @ block["down"]
    return normalized(x) @ params["head"]


def mean_loss(params: dict[str, Any], batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    log_p = jax.nn.log_softmax(predict(params, batch[0]))
    return -jnp.mean(jnp.take_along_axis(log_p, batch[1][..., None], axis=-1))


# --- Trained on characters --------------------------------------------------------------------

CHARACTERS = "".join(map(chr, range(32, 127)))
"""What is read; anything else is a space."""

EVERY_HELD_OUT = 8
"""Of so many modules one is held out, so that no docstring is in both parts."""


@dataclass(frozen=True)
class Training:
    """How a model is trained: by Adam, its rate falling along a cosine to zero."""

    num_steps: int = 1200
    batch_size: int = 16
    learning_rate: float = 3e-3


class Text(NamedTuple):
    """Sequences of characters, int32 (n, T + 1): the inputs, and the labels one further on."""

    training: np.ndarray
    held_out: np.ndarray


def characters(num_tokens: int) -> Text:
    """Cut all docstrings, joined by spaces, into sequences."""
    modules: dict[str, list[str]] = {}
    for module, text in docstrings():
        modules.setdefault(module, []).append(text)
    number = {character: place for place, character in enumerate(CHARACTERS)}
    parts: list[list[str]] = [[], []]
    for place, texts in enumerate(modules.values()):
        parts[place % EVERY_HELD_OUT == 0] += texts

    def sequences(texts: list[str]) -> np.ndarray:
        codes = np.asarray([number.get(character, 0) for character in " ".join(texts)], np.int32)
        count = (len(codes) - 1) // num_tokens
        starts = num_tokens * np.arange(count)
        return codes[starts[:, None] + np.arange(num_tokens + 1)]

    return Text(*map(sequences, parts))


def spread(sequences: np.ndarray, count: int) -> np.ndarray:
    """Return so many sequences, evenly spread.

    Raises:
        ValueError: if there are fewer.
    """
    if len(sequences) < count:
        raise ValueError(f"asked for {count} sequences of {len(sequences)}.")
    return sequences[np.arange(count) * len(sequences) // count]


def trained(size: Size, text: Text, training: Training) -> dict[str, Any]:
    """Return a model trained on the text, from the cache if it was trained before."""
    params = make_params(size)
    settings = repr((asdict(size), asdict(training), hashlib.sha256(text.training).hexdigest()))
    folder = network_cache(None)
    name = f"characters-{hashlib.sha256(settings.encode()).hexdigest()[:16]}.npz"
    if folder is not None and (folder / name).exists():
        arrays, _ = load_arrays(folder / name)
        return replace_leaves(params, {path: jnp.asarray(leaf) for path, leaf in arrays.items()})
    params = _train(params, jnp.asarray(text.training), training)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        leaves = {path: np.asarray(leaf) for path, leaf in leaves_by_path(params).items()}
        save_arrays(folder / name, leaves, {"settings": settings})
    return params


def _train(params: dict[str, Any], sequences: jax.Array, training: Training) -> dict[str, Any]:
    rate = optax.cosine_decay_schedule(training.learning_rate, training.num_steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    # The head starts small: all characters alike.
    params = {**params, "head": params["head"] / math.sqrt(params["head"].shape[0])}

    @jax.jit
    def step(params: Any, moments: Any, rows: jax.Array) -> tuple[Any, Any]:
        batch = sequences[rows, :-1], sequences[rows, 1:]
        updates, moments = optimizer.update(jax.grad(mean_loss)(params, batch), moments, params)
        return optax.apply_updates(params, updates), moments

    rng = np.random.default_rng(0)
    moments = optimizer.init(params)
    for _ in range(training.num_steps):
        rows = rng.integers(0, len(sequences), training.batch_size)
        params, moments = step(params, moments, jnp.asarray(rows))
    return params
