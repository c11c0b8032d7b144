"""Weights inside of functions with derivative rules of their own: attention in blocks, rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree

from jaxcomp.curvature import find_layers, gauss_newton_diagonal, layer_hessians
from jaxcomp.curvature.capture import capture

TOKENS, WIDTH, BLOCK = 4, 3, 2


def _in_blocks(query, key, value):
    """Outputs and log-normalisers, from one block of keys after the other."""

    def step(state, block):
        largest, total, output = state
        scores = query @ block[0].T
        new = jnp.maximum(largest, scores.max(axis=1))
        weights, scale = jnp.exp(scores - new[:, None]), jnp.exp(largest - new)
        output = output * scale[:, None] + weights @ block[1]
        return (new, total * scale + weights.sum(axis=1), output), None

    blocks = tuple(x.reshape(-1, BLOCK, x.shape[1]) for x in (key, value))
    start = (jnp.full(len(query), -1e30, query.dtype), 0 * query[:, 0], 0 * query)
    (largest, total, output), _ = lax.scan(step, start, blocks)
    return output / total[:, None], largest + jnp.log(total)


@jax.custom_vjp
def flash_attention(query, key, value):
    return _in_blocks(query, key, value)[0]


def _flash_forward(query, key, value):
    output, log_total = _in_blocks(query, key, value)
    return output, (query, key, value, output, log_total)


def _flash_backward(kept, g):
    query, key, value, output, log_total = kept
    p = jnp.exp(query @ key.T - log_total[:, None])
    ds = p * (g @ value.T - jnp.sum(g * output, axis=1)[:, None])
    return ds @ key, ds.T @ query, p.T @ g


flash_attention.defvjp(_flash_forward, _flash_backward)


@jax.custom_vjp
def projected_flash_attention(params, x):
    """The same with its weights inside."""
    return _in_blocks(*(x @ params[name] for name in "qkv"))[0]


def _projected_forward(params, x):
    output, kept = _flash_forward(*(x @ params[name] for name in "qkv"))
    return output, (params, x, kept)


def _projected_backward(kept, g):
    params, x, kept = kept
    gradients = dict(zip("qkv", _flash_backward(kept, g), strict=True))
    of_x = sum(gradients[name] @ params[name].T for name in "qkv")
    return {name: x.T @ gradient for name, gradient in gradients.items()}, of_x


projected_flash_attention.defvjp(_projected_forward, _projected_backward)


@jax.custom_vjp
def rounded_layer(weight, x):
    """Rounds what it returns, and hands gradients straight through."""
    return jnp.round(4 * (x @ weight)) / 4


rounded_layer.defvjp(
    lambda w, x: (rounded_layer(w, x), (w, x)),
    lambda kept, g: (kept[1].T @ g, g @ kept[0].T),
)


@jax.custom_vjp
def clipped_layer(weight, x):
    """Limits gradients: of small ones its rule is the derivative."""
    return x @ weight


clipped_layer.defvjp(
    lambda w, x: (x @ w, (w, x)),
    lambda kept, g: (kept[1].T @ jnp.clip(g, -100, 100), jnp.clip(g, -100, 100) @ kept[0].T),
)


@jax.custom_jvp
def safe_layer(weight, x):
    """Derivatives of large exponentials in it would be NaN."""
    return jnp.log1p(jnp.exp(10 * x @ weight))


@safe_layer.defjvp
def _safe_layer(primals, tangents):
    (w, x), (of_w, of_x) = primals, tangents
    z = 10 * x @ w
    return jnp.logaddexp(z, 0), 10 * jax.nn.sigmoid(z) * (x @ of_w + of_x @ w)


@jax.custom_jvp
def gated_layer(weight, x):
    return jnp.tanh(x @ weight)


@gated_layer.defjvp
def _gated_layer(primals, tangents):
    (w, x), (of_w, of_x) = primals, tangents
    z = jnp.tanh(x @ w)
    return z, (1 - z * z) * (x @ of_w + of_x @ w)


@jax.custom_vjp
def reversed_gradient(weight):
    return weight


reversed_gradient.defvjp(lambda w: (w, None), lambda kept, g: (-g,))


def network(middle):
    """A function of batches with a function of one example in the middle."""

    def predict(params, inputs):
        hidden = jax.vmap(lambda x: middle(params, x @ params["in"]))(inputs)
        return hidden.mean(1) @ params["out"]

    return predict


FLASH = network(lambda p, x: flash_attention(*(x @ p[name] for name in "qkv")))
FLASH_INSIDE = network(lambda p, x: projected_flash_attention({n: p[n] for n in "qkv"}, x))
ROUNDED = network(lambda p, x: rounded_layer(p["q"], x))


def problem(names, dtype=np.float64):
    rng = np.random.default_rng(3)
    params = {name: rng.normal(size=(WIDTH, WIDTH)).astype(dtype) for name in names}
    return params, (rng.normal(size=(2, TOKENS, WIDTH)).astype(dtype), np.zeros(2, int))


def dense_diagonal(predict_fn, params, inputs):
    """Return `diag(J^T H J) / n`; all derivatives are JAX's, by the rules that it is told."""
    flat, unravel = ravel_pytree(params)

    @jax.jit
    def diagonal(flat):
        p = jax.nn.softmax(predict_fn(unravel(flat), inputs))
        hessian = jax.vmap(jnp.diag)(p) - jnp.einsum("bc,bd->bcd", p, p)
        jacobian = jax.jacrev(lambda w: predict_fn(unravel(w), inputs))(flat)
        return unravel(jnp.einsum("bcn,bcd,bdn->n", jacobian, hessian, jacobian) / len(inputs))

    return jax.device_get(diagonal(flat))


@pytest.mark.parametrize(
    "predict_fn",
    [pytest.param(FLASH, marks=pytest.mark.slow), FLASH_INSIDE],
    ids=["outside", "inside"],
)
def test_attention_with_a_rule_of_its_own_has_layers(predict_fn, x64):
    params, batch = problem(["in", *"qkv", "out"])
    layers = find_layers(predict_fn, params, batch[0])
    assert all(layer.kind == "matrix" and layer.reason is None for layer in layers.values())
    found = gauss_newton_diagonal(predict_fn, params, batch).mean
    expected = dense_diagonal(predict_fn, params, batch[0])
    for name in params:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-9)


def test_a_rule_that_is_no_derivative_is_kept_and_its_inputs_are_known(x64):
    params, batch = problem(["in", "q", "out"])
    layers = find_layers(ROUNDED, params, batch[0])
    assert {name: layer.kind for name, layer in layers.items()} == dict.fromkeys(params, "matrix")
    assert "not the derivative" in layers["q"].reason
    assert layers["in"].reason is layers["out"].reason is None
    found = gauss_newton_diagonal(ROUNDED, params, batch).mean
    expected = dense_diagonal(ROUNDED, params, batch[0])
    hessians = layer_hessians(ROUNDED, params, [batch])
    hidden = (batch[0] @ params["in"]).reshape(-1, WIDTH)
    for name in params:
        assert np.min(expected[name]) > 0
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-9)
    np.testing.assert_allclose(np.asarray(hessians["q"].hessian)[0], hidden.T @ hidden, rtol=1e-9)
    with pytest.raises(ValueError, match="not the derivative"):
        layer_hessians(ROUNDED, params, [batch], select="q", per_output=True)
    assert list(layer_hessians(ROUNDED, params, [batch], per_output=True)) == ["in", "out"]


RULES = {
    "clipped": (clipped_layer, "not the derivative"),
    "safe": (safe_layer, "not the derivative"),
    "reversed": (lambda w, x: x @ reversed_gradient(w), "not the derivative"),
    "gated": (gated_layer, None),
}


@pytest.mark.parametrize("name", RULES)
def test_which_rules_are_derivatives(name):
    function, reason = RULES[name]
    weight, x = np.ones((WIDTH, WIDTH), np.float32), np.ones((1, WIDTH), np.float32)
    found = capture(lambda v, x: function(v[0], x), (weight,), x)
    assert found.reasons[0] is None if reason is None else reason in found.reasons[0]
    # Where nothing is differentiated, all of them are products.
    forward = capture(lambda v, x: function(v[0], x), (weight,), x, is_differentiated=False)
    np.testing.assert_array_equal(forward.uses[0].to_inputs((x[None],)), x[None, None])
