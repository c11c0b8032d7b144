"""Convolutions and pools of functions rewritten: values, derivatives, loops, what is left."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr

from jaxcomp.numerics import rewriting
from jaxcomp.numerics.rewriting import quick_on_cpu

pytestmark = pytest.mark.usefixtures("strict_promotion")

NHWC = ("NHWC", "HWIO", "NHWC")


def array(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(jnp.float32))


def pooled(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def loss(weights, images):
    """Convolutions inside jit, a checkpoint, a scan and a branch; ties in the pool after a ReLU."""
    first, others, last = weights

    @jax.jit
    def enter(x):
        return lax.conv_general_dilated(x, first, (1, 1), "SAME", dimension_numbers=NHWC)

    @jax.checkpoint
    def block(x, weight):
        return jnp.tanh(lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=NHWC))

    def leave(x):
        return lax.conv_general_dilated(x, last, (2, 1), "VALID", dimension_numbers=NHWC)

    hidden = pooled(jax.nn.relu(enter(images)))
    hidden, _ = lax.scan(lambda x, weight: (block(x, weight), None), hidden, others)
    outputs = lax.cond(jnp.sum(images) > 0, leave, lambda x: 2 * leave(x), hidden)
    mean = lax.reduce_window(outputs, 0.0, lax.add, (1, 1, 2, 1), (1, 1, 1, 1), "VALID") / 2
    return jnp.mean(jnp.sin(mean))


def problem():
    weights = array(1, 3, 3, 2, 3), array(2, 2, 3, 3, 3, 3), array(3, 2, 2, 3, 2)
    return weights, array(4, 4, 6, 6, 2)


def hessian_product(weights, images, vector):
    return jax.jvp(partial(jax.grad(loss), images=images), (weights,), (vector,))


def test_gradients_and_hessian_products_of_batches(x64):
    weights, images = jax.tree.map(lambda x: x.astype(jnp.float64), problem())
    vectors = jax.tree.map(lambda x: array(5, 2, *x.shape).astype(x.dtype), weights)
    products = jax.vmap(hessian_product, in_axes=(None, None, 0))
    found = jax.jit(quick_on_cpu(products))(weights, images, vectors)
    expected = jax.jit(products)(weights, images, vectors)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), found, expected)


def names(jaxpr):
    """Names of all primitives, inner ones included."""
    return {equation.primitive.name for equation in walk(jaxpr)}


def walk(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, tuple) else (parameter,):
                if isinstance(inner, ClosedJaxpr):
                    yield from walk(inner.jaxpr)
                elif isinstance(inner, Jaxpr):
                    yield from walk(inner)


WINDOWED = {
    "conv_general_dilated",
    "reduce_window_max",
    "reduce_window_sum",
    "select_and_gather_add",
    "select_and_scatter_add",
}


def test_nothing_slow_is_left():
    weights, images = problem()
    before = jax.make_jaxpr(hessian_product)(weights, images, weights)
    assert names(before.jaxpr) >= WINDOWED
    after = jax.make_jaxpr(quick_on_cpu(hessian_product))(weights, images, weights)
    assert not names(after.jaxpr) & WINDOWED


def test_other_backends_and_no_jit_keep_the_function(monkeypatch):
    weights, images = problem()
    with jax.disable_jit():
        assert quick_on_cpu(lambda x: type(x))(3) is int
    monkeypatch.setattr(rewriting.jax, "default_backend", lambda: "tpu")
    kept = jax.make_jaxpr(quick_on_cpu(loss))(weights, images)
    assert "conv_general_dilated" in names(kept.jaxpr)


def test_what_has_a_derivative_of_its_own_stays_closed():
    @jax.custom_vjp
    def halved(x, w):
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC)

    ones = jnp.ones((1, 1, 2, 2))
    halved.defvjp(lambda x, w: (halved(x, w), x), lambda x, g: (jnp.zeros_like(x), ones))
    image, weight = array(6, 1, 3, 3, 2), array(7, 1, 1, 2, 2)
    rewritten = quick_on_cpu(halved)
    np.testing.assert_allclose(rewritten(image, weight), halved(image, weight), rtol=1e-6)
    gradient = jax.grad(lambda w: jnp.sum(rewritten(image, w)))(weight)
    np.testing.assert_array_equal(gradient, np.ones((1, 1, 2, 2)))


def test_large_windows_and_integers_are_left():
    def sums(x):
        return lax.reduce_window(x, 0.0, lax.add, (30,), (1,), "VALID")

    def counts(x, w):
        return lax.conv_general_dilated(x, w, (1,), "VALID")

    left = jax.make_jaxpr(quick_on_cpu(sums))(jnp.ones(40))
    assert "reduce_window_sum" in names(left.jaxpr)
    numbers = jnp.ones((1, 1, 4), jnp.int32)
    left = jax.make_jaxpr(quick_on_cpu(counts))(numbers, numbers)
    assert "conv_general_dilated" in names(left.jaxpr)
