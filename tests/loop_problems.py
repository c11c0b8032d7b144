"""Small networks whose weights are used in loops, and what their layers are."""

import jax
import jax.numpy as jnp
import numpy as np
from curvature_problems import leaf
from jax import lax

STEPS = np.linspace(-1.0, 1.0, 20).reshape(5, 1, 4)


def layer(hidden, weight):
    return jnp.tanh(hidden @ weight)


def scanned(params, x, **options):
    """A stack of dense layers with biases."""

    def body(hidden, row):
        return layer(hidden, row["w"]) + row["b"].reshape(1, 4), None

    return lax.scan(body, x, {"w": params["w"], "b": params["b"]}, **options)[0]


def reversed_in_remat(params, x):
    """From the last row to the first; the body is recomputed, and a call."""
    body = jax.checkpoint(jax.jit(lambda hidden, w: (layer(hidden, w), None)))
    return lax.scan(body, x, params["w"], reverse=True, unroll=2)[0]


def indexed(params, x):
    """Rows out of order, one of them twice, the first never."""
    for row in (2, 1, -1):
        x = layer(x, params["w"][row])
    return x


def unstacked(params, x):
    for weight in jnp.unstack(params["w"], axis=1):
        x = layer(x, weight)
    return x


def counted(params, x):
    return lax.fori_loop(1, 3, lambda i, hidden: layer(hidden, params["w"][i]), x)


def counted_backwards(params, x):
    """A counter of the user, from the end, in a loop that runs backwards; rows are gathered."""

    def body(state, step):
        row, hidden = state
        return (row - 1, layer(hidden, jnp.take(params["w"], row, axis=0)) + step), None

    return lax.scan(body, (2, x), jnp.asarray(STEPS[:3], x.dtype), reverse=True)[0][1]


def shared_by_two(params, x):
    """Each row serves two layers in turn."""
    return lax.fori_loop(0, 6, lambda i, hidden: layer(hidden, params["w"][i // 2]), x)


def recurrent(params, x):
    """Weights that every step of time uses; one of them is a state that stays."""

    def body(state, step):
        weight, hidden = state
        return (weight, jnp.tanh(hidden @ weight + step @ params["input"])), hidden

    steps = jnp.asarray(STEPS, x.dtype)
    return lax.scan(body, (params["w"], x), steps)[1][-1]


def lstm(params, x):
    """Four gates from the state and the input of a step."""

    def body(state, step):
        cell, hidden = state
        gates = jnp.concatenate([step, hidden], axis=1) @ params["w"]
        forget, enter, leave, new = jnp.split(gates, 4, axis=1)
        cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(enter) * jnp.tanh(new)
        return (cell, jax.nn.sigmoid(leave) * jnp.tanh(cell)), None

    return lax.scan(body, (x, x), jnp.asarray(STEPS, x.dtype))[0][1]


def layers_over_time(params, x):
    """At each step of time, a stack of layers."""

    def body(hidden, step):
        hidden, _ = lax.scan(lambda h, w: (layer(h, w) + step, None), hidden, params["w"])
        return hidden, None

    return lax.scan(body, x, jnp.asarray(STEPS, x.dtype))[0]


def nested(params, x):
    """Two loops, the inner one over the columns of what the outer one takes."""

    def body(i, hidden):
        def inner(j, hidden):
            return layer(hidden, params["w"][j, i])

        return lax.fori_loop(0, 2, inner, hidden)

    return lax.fori_loop(0, 3, body, x)


def used_again(params, x):
    """A weight in a loop and behind it, on another number of positions."""
    x = lax.scan(lambda h, w: (layer(h, w), None), x, params["w"])[0]
    return layer(x.repeat(2, axis=0), params["w"][0])[:1] + x


def convolved(params, x):
    def body(image, kernel):
        return jnp.tanh(lax.conv(image, kernel, (1, 1), "SAME")), None

    return lax.scan(body, x.reshape(1, 1, 2, 2).repeat(2, axis=1), params["w"])[0].reshape(1, -1)


# Name -> function, shapes of the weights, and (G, P, I, O) of those that are layers.
LOOPS = {
    "scanned": (scanned, {"w": (3, 4, 4), "b": (3, 4)}, {"w": (3, 1, 4, 4)}),
    "reversed_in_remat": (reversed_in_remat, {"w": (3, 4, 4)}, {"w": (3, 1, 4, 4)}),
    "indexed": (indexed, {"w": (3, 4, 4)}, {"w": (3, 2, 4, 4)}),
    "unstacked": (unstacked, {"w": (4, 3, 4)}, {"w": (3, 1, 4, 4)}),
    "counted": (counted, {"w": (3, 4, 4)}, {"w": (3, 1, 4, 4)}),
    "counted_backwards": (counted_backwards, {"w": (3, 4, 4)}, {"w": (3, 1, 4, 4)}),
    "shared_by_two": (shared_by_two, {"w": (3, 4, 4)}, {"w": (3, 2, 4, 4)}),
    "recurrent": (
        recurrent,
        {"w": (4, 4), "input": (4, 4)},
        {"w": (1, 5, 4, 4), "input": (1, 5, 4, 4)},
    ),
    "lstm": (lstm, {"w": (8, 16)}, {"w": (1, 5, 8, 16)}),
    "layers_over_time": (layers_over_time, {"w": (3, 4, 4)}, {"w": (3, 5, 4, 4)}),
    "nested": (nested, {"w": (2, 3, 4, 4)}, {"w": (6, 1, 4, 4)}),
    "used_again": (used_again, {"w": (3, 4, 4)}, {"w": (3, 4, 4, 4)}),
    "convolved": (convolved, {"w": (3, 2, 2, 3, 3)}, {"w": (3, 4, 18, 2)}),
}


def loop_params(shapes, dtype=np.float32):
    rng = np.random.default_rng(4)
    return {path: 0.7 * leaf(rng, *shape, dtype=dtype) for path, shape in shapes.items()}


# --- A transformer, its blocks stacked or one by one ----------------------------------------------

WIDTH, HEADS, BLOCKS, TOKENS = 4, 2, 2, 3


def normalised(x):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-3)


def block(hidden, weights):
    """Attention and a perceptron with residuals."""
    x = normalised(hidden) * weights["gain"].reshape(1, 1, -1)
    query, key, value = (jnp.einsum("btd,dhk->bthk", x, weights[name]) for name in "qkv")
    attention = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", query, key))
    hidden = hidden + jnp.einsum("bhts,bshk,hkd->btd", attention, value, weights["o"])
    inner = jax.nn.gelu(normalised(hidden) @ weights["up"] + weights["bias"].reshape(1, 1, -1))
    return hidden + inner @ weights["down"]


def transformer_params():
    rng = np.random.default_rng(5)
    size = WIDTH // HEADS
    shapes = {
        **dict.fromkeys("qkv", (WIDTH, HEADS, size)),
        "o": (HEADS, size, WIDTH),
        "up": (WIDTH, 2 * WIDTH),
        "bias": (2 * WIDTH,),
        "down": (2 * WIDTH, WIDTH),
        "gain": (WIDTH,),
    }
    blocks = {path: 0.5 * leaf(rng, BLOCKS, *shape) for path, shape in shapes.items()}
    return {"blocks": blocks, "head": leaf(rng, WIDTH, 3)}


def transformer_batch(num_examples=4):
    inputs = leaf(np.random.default_rng(6), num_examples, TOKENS, WIDTH)
    return inputs, np.zeros(num_examples, np.int32)


def scanned_transformer(params, inputs):
    hidden, _ = lax.scan(lambda h, row: (block(h, row), None), inputs, params["blocks"])
    return hidden.mean(1) @ params["head"]


def unrolled_transformer(params, inputs):
    """Of a list of blocks."""
    for row in params["blocks"]:
        inputs = block(inputs, row)
    return inputs.mean(1) @ params["head"]


def unrolled_params(params):
    """The blocks of a stack in a list."""
    rows = [jax.tree.map(lambda x, i=i: x[i], params["blocks"]) for i in range(BLOCKS)]
    return {**params, "blocks": rows}
