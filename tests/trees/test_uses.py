"""How functions use their parameters, on functions whose uses are known by construction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxcomp.trees.uses import LeafUse, find_uses, output_layer

X = np.ones((2, 4), np.float32)
W, V, GAIN = jnp.ones((4, 4)), jnp.ones((4, 3)), jnp.ones(4)
STACK, GAINS = jnp.ones((5, 4, 4)), jnp.ones((5, 4))


def kinds(function, params, inputs=X):
    return {path: use.kind for path, use in find_uses(function, params, inputs).items()}


def normalised(p, x):
    hidden = jax.nn.relu(x @ p["w"] + p["bias"]) * p["gain"]
    return jax.jit(lambda h: (h - p["mean"]) @ p["v"])(hidden) + p["token"][0]


def standardised(p, x):
    """Weight standardization, a mask, and an addition of low rank, before the product."""
    w = (p["w"] - p["w"].mean(0, keepdims=True)) / p["w"].std() * p["mask"]
    return x @ (w + p["a"] @ p["b"]) @ p["v"]


def embedded(p, x):
    tokens = jnp.asarray(x, jnp.int32)
    hidden = jnp.take(p["table"], tokens, axis=0) + p["position"][jnp.arange(4)]
    return jnp.einsum("btd,vd->bv", hidden, p["table"])


def attended(p, x):
    heads = jnp.einsum("bd,dhk->bhk", x, p["query"])
    return jnp.einsum("bhk,hkd->bd", heads, p["out"])


@pytest.mark.parametrize(
    ("function", "params", "expected"),
    [
        (
            normalised,
            {
                "w": W,
                "bias": GAIN,
                "gain": GAIN,
                "mean": GAIN,
                "v": V,
                "token": jnp.ones((1, 3)),
                "extra": W,
            },
            {
                "w": "matrix",
                "bias": "other",
                "gain": "other",
                "mean": "other",
                "v": "matrix",
                "token": "other",
                "extra": "unused",
            },
        ),
        (
            standardised,
            {"w": W, "mask": W, "a": jnp.ones((4, 2)), "b": jnp.ones((2, 4)), "v": V},
            dict.fromkeys(("w", "mask", "a", "b", "v"), "matrix"),
        ),
        (
            embedded,
            {"table": jnp.ones((6, 4)), "position": jnp.ones((9, 4))},
            {"table": "matrix", "position": "other"},
        ),
        (
            attended,
            {"query": jnp.ones((4, 2, 3)), "out": jnp.ones((2, 3, 4))},
            {"query": "matrix", "out": "matrix"},
        ),
        (
            lambda p, x: jax.checkpoint(
                lambda h: lax.cond(h[0, 0] > 0, lambda: h @ p[0], lambda: h)
            )(x),
            [W, V],
            {"0": "matrix", "1": "unused"},
        ),
        (lambda p, x: p @ jnp.ones((4, 3)) + x[:, :3], jnp.ones((1, 4)), {"": "other"}),
    ],
)
def test_factors_of_products_and_the_rest(function, params, expected):
    assert kinds(function, params) == expected


def scanned(p, x):
    def body(h, layer):
        return jax.nn.relu(h @ layer["w"]) * layer["gain"], None

    return lax.scan(body, x, {"w": p["w"], "gain": p["gain"]})[0] @ p["v"]


def unrolled(p, x):
    for number in range(5):
        x = (x @ p["w"][number]) * p["gain"][number]
    return x @ p["v"]


def indexed(p, x):
    def body(number, h):
        return (h @ p["w"][number]) * p["gain"][number]

    return lax.fori_loop(0, 5, body, x) @ p["v"]


def looped(p, x):
    def body(state):
        number, h = state
        return number + 1, (h @ p["w"][number]) * p["gain"][number]

    return lax.while_loop(lambda state: state[0] < 5, body, (0, x))[1] @ p["v"]


@pytest.mark.parametrize("function", [scanned, unrolled, indexed, looped])
def test_stacks_of_layers(function):
    uses = find_uses(function, {"w": STACK, "gain": GAINS, "v": V}, X)
    assert uses["w"] == LeafUse("matrix", stack_axis=0)
    assert uses["gain"].kind == "other"
    assert uses["v"] == LeafUse("matrix", makes_outputs=True)


def test_the_axis_of_a_stack_that_is_not_the_first():
    def function(p, x):
        return lax.scan(lambda h, w: (h @ w, None), x, jnp.moveaxis(p, 1, 0))[0]

    assert find_uses(function, jnp.ones((4, 5, 4)), X) == {"": LeafUse("matrix", stack_axis=1)}


@pytest.mark.parametrize("function", [embedded, attended])
def test_what_is_no_stack(function):
    params = {"table": W, "position": W, "query": STACK[:4], "out": STACK[:4]}
    assert {use.stack_axis for use in find_uses(function, params, X).values()} == {None}


def test_the_last_layer_of_a_module_makes_the_outputs():
    eqx = pytest.importorskip("equinox")
    mlp = eqx.nn.MLP(4, 4, 4, 2, key=jax.random.key(0))  # all layers have the width of the logits
    arrays, static = eqx.partition(mlp, eqx.is_array)
    uses = find_uses(lambda p, x: jax.vmap(eqx.combine(p, static))(x), arrays, X)
    assert output_layer(uses) == "layers/2/weight"


def test_the_layer_that_makes_the_outputs_is_the_last_on_every_way():
    def last(function):
        return output_layer(find_uses(function, {"w": W, "v": V, "gain": GAIN}, X))

    assert last(lambda p, x: jax.nn.log_softmax((x @ p["w"]) @ p["v"])) == "v"
    assert last(lambda p, x: ((x @ p["v"]) @ p["v"].T) @ p["w"]) == "w"
    # Two layers that are added, one that is used before as well, and a skip around it.
    assert last(lambda p, x: x @ p["v"] + (x @ p["w"]) @ p["v"]) is None
    assert last(lambda p, x: (x @ p["w"]) @ p["w"]) is None
    assert last(lambda p, x: x @ p["w"] + x) == "w"
    assert last(lambda p, x: x * p["gain"]) is None


def test_a_function_called_twice_is_two_places():
    shared = jax.jit(lambda w, h: jax.nn.relu(h @ w))
    uses = find_uses(lambda w, x: shared(w, shared(w, x)), W, X)
    assert output_layer(uses) is None
