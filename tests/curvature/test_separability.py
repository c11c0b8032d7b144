"""The axes that a function is a sum over, against the blocks of its dense Hessian."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from jaxcomp.curvature.separability import independent_axes

T, V = 3, 4
TARGETS = np.asarray([1, 3, 0], np.int32)
WEIGHTS = np.float32([0.5, 0.0, 2.0])
MATRIX = np.random.default_rng(0).normal(size=(V, V)).astype(np.float32)


def gathered(o):
    return jnp.take_along_axis(jax.nn.log_softmax(o), TARGETS[:, None], axis=-1)[:, 0]


@jax.custom_jvp
def softplus(x):
    return jnp.log1p(jnp.exp(x))


softplus.defjvp(
    lambda primals, tangents: (softplus(*primals), jax.nn.sigmoid(*primals) * tangents[0])
)


@jax.checkpoint
def checkpointed(o):
    return jnp.tanh(o) ** 2


# Every function of outputs (T, V), and the axes it is a sum over.
SUMS = {
    "cross-entropy": (
        lambda o: optax.softmax_cross_entropy_with_integer_labels(o, TARGETS).mean(),
        (0,),
    ),
    "one-hot": (lambda o: -jnp.sum(jax.nn.one_hot(TARGETS, V) * jax.nn.log_softmax(o)), (0,)),
    "masked mean": (
        lambda o: -jnp.sum(jnp.where(WEIGHTS > 0, gathered(o), 0.0) * WEIGHTS) / WEIGHTS.sum(),
        (0,),
    ),
    "focal": (lambda o: jnp.sum((1 - jnp.exp(gathered(o))) ** 2 * -gathered(o)), (0,)),
    "temperature, logits turned": (lambda o: jax.nn.logsumexp((o.T / 2)[::-1], axis=0).sum(), (0,)),
    "classes mixed by a matrix": (lambda o: jnp.sum(jax.nn.logsumexp(o @ MATRIX, axis=1)), (0,)),
    "product of both sides": (lambda o: jnp.einsum("tv,tv->", o, jnp.tanh(o)), (0, 1)),
    "own rows alone": (lambda o: jnp.einsum("tv,tw->tvw", o, o).sum(), (0,)),
    "columns alone": (lambda o: jnp.exp(jnp.mean(o, axis=0)).sum(), (1,)),
    "elementwise": (lambda o: jnp.sum(softplus(o) + checkpointed(o)), (0, 1)),
    "slices": (lambda o: jnp.sum(jnp.concatenate([o[:, 1:], o[:, :1]], 1) * o), (0,)),
    "under vmap": (lambda o: jnp.sum(jax.vmap(lambda x: jnp.max(x) * jnp.sum(x))(o)), (0,)),
    "sorted classes": (lambda o: jnp.sum(jnp.sort(o, axis=1)[:, 0] ** 2), (0,)),
    "reshaped": (lambda o: jnp.sum(o.reshape(T, 2, 2).prod(axis=2)), (0,)),
    "linear": (lambda o: jnp.sum(jnp.cumsum(o, axis=0)) + o[0, 0], (0, 1)),
    "differences": (lambda o: jnp.sum((o[:, None] - o[:, :, None]) ** 2), (0,)),
    "square of the sum": (lambda o: jnp.sum(o) ** 2, ()),
    "neighbours": (lambda o: jnp.sum(o[1:] * o[:-1]), (1,)),
    "turned around": (lambda o: jnp.sum(o * o[::-1]), (1,)),
    "norm": (lambda o: jnp.sqrt(jnp.sum(o * o) + 1.0), ()),
    "own normalisation": (lambda o: jnp.sum(o**2) / jnp.sum(jnp.exp(o)), ()),
    "largest": (lambda o: jnp.max(jnp.sum(o, axis=1)) ** 2, ()),
    "folded": (lambda o: jnp.sum(o.reshape(V, T).prod(axis=1)), ()),
    "chosen by the outputs": (lambda o: jnp.where(o[0, 0] > 0, o, 2 * o).sum(), ()),
}
UNKNOWN = {
    "a loop": lambda o: lax.scan(lambda c, row: (c + jnp.sum(row**2), None), 0.0, o)[0],
    "indices of its own": lambda o: jnp.sum(o[jnp.arange(T), jnp.argmax(o, axis=1)]),
}


@pytest.mark.parametrize("name", SUMS)
def test_finds_the_axes(name):
    function, axes = SUMS[name]
    assert independent_axes(function, jax.ShapeDtypeStruct((T, V), jnp.float32)) == axes


def test_never_more_than_the_dense_hessian_has(x64):
    point = np.random.default_rng(1).normal(size=(T, V))
    functions = {name: function for name, (function, _) in SUMS.items()}
    hessians = jax.jit(lambda o: {name: jax.hessian(f)(o) for name, f in functions.items()})(point)
    for name, hessian in jax.device_get(hessians).items():
        for axis in independent_axes(functions[name], jax.ShapeDtypeStruct((T, V), jnp.float64)):
            pairs = np.moveaxis(hessian, (axis, axis + 2), (0, 1))
            off = ~np.eye(len(pairs), dtype=bool)
            assert np.all(pairs[off] == 0), name


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_is_mixed(name):
    assert independent_axes(UNKNOWN[name], jax.ShapeDtypeStruct((T, V), jnp.float32)) == ()


def test_targets_may_be_shapes_and_axes_of_length_one_are_independent():
    def loss(outputs, target):
        return (
            jnp.sum(outputs * outputs, axis=(1, 2)).sum() * target["scale"] + jnp.sum(outputs) ** 2
        )

    target = {"scale": jax.ShapeDtypeStruct((), jnp.float32)}
    assert independent_axes(loss, jax.ShapeDtypeStruct((1, 2, 1), jnp.float32), target) == (0, 2)
