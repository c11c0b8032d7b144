"""Weights by name in any pytree."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp.trees.paths import leaves_by_path, matching_paths, replace_leaves, shorten
from jaxcomp.trees.selection import selected_paths


class Layer(NamedTuple):
    kernel: object
    bias: object


@pytest.fixture
def params():
    return {
        "embed": jnp.ones((3, 2), jnp.bfloat16),
        "layers": [Layer(jnp.ones((2, 2)), jnp.zeros(2)), Layer(jnp.ones((2, 4)), jnp.zeros(4))],
        "step": jnp.zeros((2, 2), jnp.int32),
        "nothing": jnp.zeros((0, 3)),
    }


def test_default_selection_is_floating_matrices(params):
    assert selected_paths(params) == ["embed", "layers/0/kernel", "layers/1/kernel"]


def test_patterns_and_predicates(params):
    assert selected_paths(params, "layers/*/kernel") == ["layers/0/kernel", "layers/1/kernel"]
    assert selected_paths(params, ["embed", "*/1/bias"]) == ["embed", "layers/1/bias"]
    assert selected_paths(params, lambda path, leaf: leaf.size == 8) == ["layers/1/kernel"]


def test_replace_keeps_the_structure(params):
    changed = replace_leaves(params, {"layers/0/kernel": jnp.full((2, 2), 7.0)})
    assert isinstance(changed["layers"][0], Layer)
    np.testing.assert_array_equal(changed["layers"][0].kernel, 7.0)
    assert changed["layers"][1].kernel is params["layers"][1].kernel
    assert list(leaves_by_path(changed)) == list(leaves_by_path(params))


def test_a_single_array_is_a_tree_with_an_empty_path():
    array = jnp.ones((2, 2))
    assert leaves_by_path(array) == {"": array}
    assert selected_paths(array) == selected_paths(array, "*") == [""]
    assert replace_leaves(array, {"": 3}) == 3
    assert shorten([""]) == "(the whole tree)"


def test_brackets_stand_for_themselves_where_they_can():
    paths = ["w[0]", "w[1]", "w0", "layers[1]/kernel", "ab", "a*"]
    assert matching_paths(paths, "w[0]") == ["w[0]"]
    assert matching_paths(paths, "layers[1]/*") == ["layers[1]/kernel"]
    assert matching_paths(paths, "w[[]*") == ["w[0]", "w[1]"]
    assert matching_paths(paths, "[aw][b0]") == ["w0", "ab"]
    assert matching_paths(paths, "nothing[0]") == []


def test_slashes_in_keys_are_names_like_others_unless_two_paths_meet():
    module = {"mlp/~/linear_0": {"w": 1.0}, "mlp/~/linear_1": {"w": 2.0}}
    assert leaves_by_path(module) == {"mlp/~/linear_0/w": 1.0, "mlp/~/linear_1/w": 2.0}
    assert replace_leaves(module, {"mlp/~/linear_1/w": 3.0})["mlp/~/linear_1"] == {"w": 3.0}
    for function in (leaves_by_path, lambda tree: replace_leaves(tree, {})):
        with pytest.raises(ValueError, match="two leaves of the tree have the path 'a/b/w'"):
            function({"a/b": {"w": 1.0}, "a": {"b/w": 2.0}})


def test_bad_names(params):
    with pytest.raises(ValueError, match="the pattern 'heads/\\*' in select matches no leaf"):
        selected_paths(params, "heads/*")
    with pytest.raises(TypeError, match="select must be a predicate"):
        selected_paths(params, [3])
    with pytest.raises(TypeError, match="got 3"):
        selected_paths(params, 3)
    with pytest.raises(KeyError, match="no leaves named"):
        replace_leaves(params, {"missing": 0})
