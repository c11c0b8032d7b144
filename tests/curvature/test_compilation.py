"""The hint at the third compilation that only a new loss function caused."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxcomp.curvature import fisher_diagonal, hutchinson_diagonal

MESSAGE = "compiles for the 3rd time with the same shapes, because .* is a new object each time"


def fisher(loss_fn, size=2):
    fisher_diagonal(loss_fn, np.ones(size, np.float32), np.ones((1, size), np.float32))


def test_third_fresh_lambda_brings_one_hint_at_the_line_of_the_caller():
    def fresh():
        fisher(lambda params, batch: jnp.sum(batch @ params))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh()
        fresh()
    with pytest.warns(UserWarning, match=f"fisher_diagonal {MESSAGE}") as record:
        fresh()
    assert [warning.filename for warning in record] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh()


def test_fresh_functools_partial_is_noticed_in_any_kernel():
    def scaled(scale, params, batch):
        return scale * jnp.sum(params**2)

    def fresh():
        loss_fn = functools.partial(scaled, 2.0)
        hutchinson_diagonal(loss_fn, np.ones(2, np.float32), None, jax.random.key(0), num_probes=2)

    fresh()
    fresh()
    with pytest.warns(UserWarning, match=f"hutchinson_diagonal {MESSAGE}"):
        fresh()


class ByValue:
    def __eq__(self, other):
        return type(other) is ByValue

    def __hash__(self):
        return 0

    def __call__(self, params, batch):
        return jnp.sum(batch @ params)


def test_new_shapes_and_functions_that_compile_once_bring_no_hint():
    def loss_fn(scale, params, batch):
        return scale * jnp.sum(batch @ params)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for size in (1, 2, 3, 4):
            fisher(Partial(loss_fn, np.float32(1)), size)
        for scale in (1.0, 2.0, 3.0, 4.0):
            fisher(Partial(loss_fn, jnp.float32(scale)))
            fisher(ByValue())
