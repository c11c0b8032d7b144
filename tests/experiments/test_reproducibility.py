"""What decides numbers beside the settings: keys and options."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.experiments.reproducibility import (
    environment,
    key_from_plain,
    key_to_plain,
    random_key,
)
from jaxcomp.quantizers import histogram_moments, plus_plus_start


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
def test_a_seed_is_one_key_whatever_the_default_is(seed):
    words = jax.random.key_data(random_key(seed))
    np.testing.assert_array_equal(words, np.array([0, seed], np.uint32))
    with jax.default_prng_impl("rbg"), jax.enable_x64(True):
        assert random_key(seed) == jax.random.wrap_key_data(words, impl="threefry2x32")


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_outside_the_range(seed):
    with pytest.raises(ValueError, match="seed must lie between 0 and"):
        random_key(seed)


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_come_back_under_another_default(implementation):
    key = jax.random.fold_in(jax.random.key(5, impl=implementation), 7)
    plain = json.loads(json.dumps(key_to_plain(key)))
    for default in ("threefry2x32", "rbg"):
        with jax.default_prng_impl(default):
            assert key_from_plain(plain) == key


def test_a_key_keeps_its_implementation_inside_a_kernel():
    moments = histogram_moments(jnp.linspace(-1.0, 1.0, 50), jnp.ones(50), num_bins=64)

    def start(key):
        return plus_plus_start(moments, 3, key, max_clusters=4)

    expected = start(random_key(0))
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(start(random_key(0)), expected)
        assert np.isfinite(start(jax.random.key(0))).all()


def test_the_environment_is_plain_and_says_what_shapes_numbers():
    told = environment()
    assert json.loads(json.dumps(told)) == told
    assert {"jax", "jaxlib", "numpy", "jaxcomp", "python"} <= set(told["versions"])
    with jax.enable_x64(True):
        assert environment()["options"] == told["options"] | {"jax_enable_x64": True}
