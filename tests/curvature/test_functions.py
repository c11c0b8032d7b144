"""Functions of the caller: what they hold is compared, their arrays are traced."""

import dataclasses
import functools
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxcomp.curvature import fisher_diagonal, gauss_newton_diagonal
from jaxcomp.curvature.functions import as_partial, open_params, pick_output

INPUTS = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
BATCH = (INPUTS, np.zeros(2, np.int32))
WEIGHT = np.ones((3, 2), np.float32)


class Power:
    scale: Any
    power: int

    def __call__(self, params, inputs):
        return self.scale * (inputs @ params) ** self.power

    def predict(self, params, inputs):
        return self(params, inputs)


@dataclasses.dataclass
class Scaled(Power):
    """Compared by value, so that it has no hash; its method has one, of an identity."""

    scale: Any
    power: int = 1


@dataclasses.dataclass(frozen=True)
class Frozen(Power):
    """Its hash is that of its array, which has none."""

    scale: Any
    power: int


class Module(eqx.Module):
    """A pytree with an array, a number and a function."""

    scale: jax.Array
    power: int
    activation: Any = lambda x: x

    def __call__(self, params, inputs):
        return self.activation(self.scale * (inputs @ params) ** self.power)

    def predict(self, params, inputs):
        return self(params, inputs)


class Slots:
    """No hash and no attributes to look into."""

    __slots__ = ("scale",)
    __hash__ = None  # pyright: ignore

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, params, inputs):
        return self.scale * (inputs @ params)


def call(function):
    """One compiled program for all functions that are found to be equal."""
    return _called(as_partial(function))


@jax.jit
def _called(function):
    return function(WEIGHT, INPUTS)


@pytest.mark.parametrize("kind", [Scaled, Frozen, Module])
@pytest.mark.parametrize("is_method", [False, True])
def test_new_arrays_compile_nothing_and_new_settings_do(kind, is_method):
    def run(scale, power):
        holder = kind(jnp.float32(scale), power)
        return call(holder.predict if is_method else holder)

    run(1.0, 1)
    size = _called._cache_size()
    np.testing.assert_allclose(run(3.0, 1), 3 * INPUTS @ WEIGHT, rtol=1e-6)
    assert _called._cache_size() == size
    np.testing.assert_allclose(run(3.0, 2), 3 * (INPUTS @ WEIGHT) ** 2, rtol=1e-6)
    assert _called._cache_size() == size + 1


def test_an_object_that_changed_is_another():
    holder = Scaled(jnp.float32(1))
    call(holder.predict)
    holder.scale, holder.power = jnp.float32(2), 3
    np.testing.assert_allclose(call(holder.predict), 2 * (INPUTS @ WEIGHT) ** 3, rtol=1e-6)


def test_what_cannot_be_looked_into_is_compared_by_identity():
    first, second = Slots(jnp.float32(1)), Slots(jnp.float32(2))
    np.testing.assert_allclose(call(first), INPUTS @ WEIGHT, rtol=1e-6)
    size = _called._cache_size()
    call(first)
    assert _called._cache_size() == size
    np.testing.assert_allclose(call(second), 2 * INPUTS @ WEIGHT, rtol=1e-6)


def test_functions_with_a_hash_stay_the_very_object():
    for function in (len, lambda p, x: x, functools.partial(max, 1), call, "".join):
        assert as_partial(function).func is function or as_partial(function).func == function
    with pytest.raises(TypeError, match=r"loss_fn must be a function .* got int"):
        as_partial(3)


def test_bound_arguments_come_before_and_pieces_that_are_no_arrays_stay_outside():
    def predict(scale, params, inputs):
        return {"logits": params["activation"](scale * inputs @ params["w"])}

    params = {"w": WEIGHT, "activation": jnp.tanh}
    function, rest = open_params(as_partial(Partial(predict, jnp.float32(2))), params)
    function = pick_output(function, "logits")
    assert rest["activation"] is None
    np.testing.assert_allclose(
        jax.jit(lambda f, p: f(p, INPUTS))(function, rest), np.tanh(2 * INPUTS @ WEIGHT), rtol=1e-6
    )


def test_curvature_takes_methods_and_modules_as_models_and_as_losses():
    expected = gauss_newton_diagonal(lambda p, x: 2 * x @ p, WEIGHT, BATCH).mean
    for function in (Scaled(jnp.float32(2)), Scaled(2.0).predict, Module(jnp.float32(2), 1)):
        found = gauss_newton_diagonal(function, WEIGHT, BATCH).mean
        np.testing.assert_allclose(found, expected, rtol=1e-6)

    @dataclasses.dataclass
    class Loss:
        scale: jax.Array

        def __call__(self, outputs, target):
            return self.scale * jnp.sum(outputs**2) + 0.0 * target

    def linear(params, inputs):
        return inputs @ params

    squares = gauss_newton_diagonal(linear, WEIGHT, BATCH, loss="squared_error")
    for scale in (1.0, 3.0):
        found = gauss_newton_diagonal(linear, WEIGHT, BATCH, loss=Loss(jnp.float32(scale)))
        np.testing.assert_allclose(found.mean, scale * squares.mean, rtol=1e-6)


def hints(run):
    """Warnings of four calls."""
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        for number in range(4):
            run(number)
    return [str(warning.message) for warning in record]


def test_a_hint_comes_where_new_objects_compile_anew():
    class Plain:
        """Compared by identity."""

        def loss(self, params, batch):
            return jnp.sum(batch[0] @ params)

    @dataclasses.dataclass
    class Holder:
        scale: jax.Array
        activation: Any = None

        def __call__(self, params, batch):
            loss = jnp.sum(self.scale * batch[0] @ params)
            return loss if self.activation is None else self.activation(loss)

    def fisher(loss_fn):
        fisher_diagonal(loss_fn, WEIGHT, BATCH)

    (hint,) = hints(lambda number: fisher(Plain().loss))
    assert "fisher_diagonal compiles for the 3rd time" in hint
    assert "Plain.loss is a new object" in hint
    assert hints(lambda number: fisher(Holder(jnp.float32(number)))) == []
    (hint,) = hints(lambda number: fisher(Holder(jnp.float32(number), lambda x: x)))
    assert "Holder is a new object" in hint
    (hint,) = hints(
        lambda number: gauss_newton_diagonal(
            call_and_name, WEIGHT, BATCH, output=lambda outputs: outputs["logits"]
        )
    )
    assert "gauss_newton_diagonal compiles for the 3rd time" in hint


def call_and_name(params, inputs):
    return {"logits": inputs @ params}
