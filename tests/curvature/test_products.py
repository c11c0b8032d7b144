"""What weights enter, and why some of them are no layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxcomp.curvature.capture import capture
from jaxcomp.curvature.products import find_products


def ones(*shape):
    return np.ones(shape, np.float32)


W, B, X, STACK = ones(4, 4), ones(4), ones(1, 4), ones(3, 4, 4)


@jax.custom_vjp
def own_rule(weight, x):
    return x @ weight


own_rule.defvjp(lambda w, x: (x @ w, (w, x)), lambda kept, g: (kept[0], g))


@jax.custom_jvp
def other_rule(weight, x):
    return x @ weight


other_rule.defjvp(lambda primals, tangents: (other_rule(*primals), primals[1]))


def until_small(w, x):
    return lax.while_loop(lambda h: jnp.sum(h) > 1, lambda h: h @ w, x)


def changing(w, x):
    return lax.scan(lambda state, _: ((2 * state[0], x @ state[0]), None), (w, x), length=2)[0][1]


def made_in_the_loop(w, x):
    """The state is no weight at first, and then one."""
    return lax.scan(lambda state, _: (w, x @ state), jnp.zeros((4, 4)), length=2)[1] + 0 * x


def by_two_counters(p, x):
    """One row counts up in ones, the other by a rule that is no counter's."""

    def body(state, _):
        i, j, h = state
        return (i + 1, (2 * j + 1) % 3, h @ p[i] @ p[j]), None

    return lax.scan(body, (0, 0, x), length=3)[0][2]


def by_an_array(p, x):
    """A state that counts, but is an array."""

    def body(state, _):
        return (state[0] + 1, state[1] @ p[state[0][0]]), None

    return lax.scan(body, (jnp.zeros(3, int), x), length=3)[0][1]


REASONS = [
    (lambda w, x: x, "it is not used"),
    (lambda w, x: x + w[:2], "it is cut into pieces of more than one row"),
    (lambda w, x: x * jnp.sum(w), "it enters reduce_sum, which is no matrix product"),
    (lambda w, x: w, "it is an output of the function"),
    (lambda w, x: x @ (w @ w), "it is multiplied with another weight"),
    (lambda w, x: x @ (2 * w), "it enters mul, which is no matrix product"),
    (lambda w, x: x @ w @ w.T, "it enters matrix products of different forms"),
    (lambda w, x: x @ w.astype(jnp.int8), "it is rounded to int8"),
    (lambda w, x: x @ own_rule(w, x).T, "a derivative rule of its own (custom_vjp)"),
    (lambda w, x: x @ other_rule(w, x).T, "a derivative rule of its own (custom_jvp)"),
    (until_small, "whose number of steps is not known when it is traced (while)"),
    (lambda w, x: lax.cond(x[0, 0] > 1, lambda: x @ w, lambda: x), "(cond)"),
    (lambda w, x: x @ jnp.concatenate([w, w]).T, "joined with other arrays"),
    (lambda w, x: x @ jnp.broadcast_to(w, (2, 4, 4)), "its entries are repeated"),
    (lambda w, x: w[x[0, :1].astype(int)], "its rows are looked up by indices"),
    (lambda w, x: w[jnp.asarray([1, 2])], "its rows are looked up by indices"),
    (
        lambda w, x: w[x[0, 0].astype(int)] @ w.T,
        "its rows are looked up by indices that depend on the data or are not known (and matrix "
        "products elsewhere)",
    ),
    (
        lambda w, x: lax.conv(w.reshape(1, 1, 4, 4), x.reshape(1, 1, 2, 2), (1, 1), "VALID"),
        "what is",
    ),
    (lambda w, x: lax.fori_loop(0, 0, lambda i, h: h @ w, x), "in a loop without steps"),
    (changing, "it is a state of a loop that changes"),
    (lambda w, x: lax.scan(lambda h, _: (h, w), x, length=2)[1], "a loop returns it"),
    (
        lambda w, x: x @ w + w + jnp.sum(w),
        "it enters add, which is no matrix product (and matrix products elsewhere)",
    ),
]


@pytest.mark.parametrize(("function", "reason"), REASONS)
def test_reasons(function, reason):
    found = capture(lambda v, x: function(v[0], x), (W,), X)
    assert not found.uses
    assert reason in found.reasons[0], found.reasons


def test_low_rank_additions_and_gains_are_no_layers_and_their_parts_beside_are():
    def function(values, x):
        base, left, right, a, b, gain = values
        inside = x @ (base + left @ right)
        return (inside + (x @ a) @ b) * gain.reshape(1, 4)

    values = (W, ones(4, 2), ones(2, 4), ones(4, 2), ones(2, 4), B)
    found = capture(function, values, X)
    assert [use.position for use in found.uses] == [3, 4]
    assert [reason is None for reason in found.reasons] == [False, False, False, True, True, False]


def test_states_of_loops_are_not_taken_for_what_they_are_at_first():
    found = capture(lambda v, x: made_in_the_loop(v[0], x), (W,), X)
    assert not found.uses
    assert found.reasons[0] == "it is a state of a loop that changes"
    for function in (by_two_counters, by_an_array):
        found = capture(lambda v, x, function=function: function(v[0], x), (STACK,), X)
        assert found.reasons[0].startswith("its rows are looked up")


def test_effects_without_results_are_passed_over():
    def function(values, x):
        jax.debug.callback(lambda: None)
        return x @ values[0]

    assert capture(function, (W,), X).uses


def test_bodies_without_products_stay_closed():
    def function(w, b, x):
        x = jax.checkpoint(lambda b, x: jnp.sin(x + b.reshape(1, 4)))(b, x)
        return jax.checkpoint(lambda w, x: x @ w)(w, x)

    found = find_products(jax.make_jaxpr(function)(W, B, X), [True, True])
    assert list(found.opened.bodies) == [1]
    assert list(found.obstacles) == [1]
    assert found.opened.numbers() == {0}
    assert not found.opened.only(set()).bodies


def test_a_row_outside_is_the_nearest_of_a_slice_and_none_of_a_lookup():
    def sliced(v, x):
        return x @ lax.dynamic_slice_in_dim(v[0], 5, 1)[0]

    (use,) = capture(sliced, (STACK,), X).uses
    a = np.asarray(use.to_inputs((ones(1, 1, 4),)))
    assert [bool(np.any(row)) for row in a[0]] == [False, False, True]
    filled = capture(lambda v, x: x @ jnp.take(v[0], 5, axis=0, mode="fill"), (STACK,), X)
    assert filled.reasons[0] == "one of its rows is looked up by an index outside"
