"""What every method of compression promises, in one table: a new one gets these tests for nothing.

That trees come back whole, keep their dtype, are the same at any scale, under jit and as layers of
a stack, and refuse what is not finite, is tested for the same table in `compressed`.
"""

import dataclasses
import inspect

import jax
import numpy as np
import pytest
from quantizer_oracles import count_compilations
from tree_problems import METHODS, weights

from jaxcomp import compress, curve, quantizers
from jaxcomp.quantizers.methods import METHODS as CLASSES


def test_every_method_is_public_and_named_once():
    # What needs layers has tests of its own, in `compressed` and `quantizers/methods`.
    without_layers = {method.name for method in CLASSES if method.needs == "nothing"}
    assert without_layers == {method.name for method in METHODS.values()}
    for attribute in ("name", "label"):
        assert len({getattr(method, attribute) for method in CLASSES}) == len(CLASSES)
    for method in CLASSES:
        assert getattr(quantizers, method.__name__) is method


def test_first_lines_of_docstrings_say_how_methods_differ():
    lines = [(inspect.getdoc(method) or "").splitlines()[0] for method in CLASSES]
    assert len(set(lines)) == len(lines)
    assert all(line.endswith(".") for line in lines)


@pytest.mark.parametrize("name", METHODS)
class TestMethod:
    def test_it_is_a_value(self, name):
        method = METHODS[name]
        assert hash(method) == hash(dataclasses.replace(method))
        assert method == method.at(method.parameter)
        assert method.at(None).parameter is None
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(method, method.parameter_name, 1)

    def test_its_candidates_and_its_default_are_allowed_and_have_words(self, name):
        method = METHODS[name]
        for parameter in (*method.candidates().tolist(), method.default):
            method.check(parameter)
            assert method.describe(parameter)

    def test_new_weights_compile_nothing(self, name):
        compress({"kernel": weights(1)}, METHODS[name])
        new = {"kernel": weights(2)}
        with count_compilations() as count:
            compress(new, METHODS[name])
        assert count() == 0

    def test_the_same_call_gives_the_same_bits(self, name):
        trees = [compress({"kernel": weights(1)}, METHODS[name]) for _ in range(2)]
        first, second = (jax.tree.leaves(tree) for tree in trees)
        for one, other in zip(first, second, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_a_curve_says_what_its_point_costs(self, name):
        params = {"kernel": weights(1)}
        found = curve(params, METHODS[name])["kernel"]
        (layer,) = compress(params, METHODS[name]).report()
        assert found.rate_bits.shape == found.distortion.shape == found.side_bits.shape == (1,)
        # Symbols that the histogram uses and the weights do not, or the other way round.
        assert found.size_bits(96)[0] == pytest.approx(layer.size_bits, rel=0.05)
        assert found.distortion[0] == pytest.approx(layer.distortion, rel=0.02)

    def test_an_importance_of_ones_changes_nothing(self, name):
        plain = compress({"kernel": weights(1)}, METHODS[name])
        importance = {"kernel": np.ones((12, 8), np.float32)}
        ones = compress({"kernel": weights(1)}, METHODS[name], importance=importance)
        np.testing.assert_allclose(
            plain.params()["kernel"], ones.params()["kernel"], rtol=1e-5, atol=1e-6
        )
