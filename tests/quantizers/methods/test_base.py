"""Methods that users define, as far as the others have to know them."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

import jaxcomp
from jaxcomp.compressed import to_bytes
from jaxcomp.quantizers import Uniform
from jaxcomp.quantizers.methods import METHODS, method_named


def test_methods_of_the_package_have_names_of_their_own():
    assert {method.name: method for method in METHODS} == {
        method.name: method_named(method.name) for method in METHODS
    }


def test_methods_of_users_are_in_reports_and_files():
    assert method_named("mine") is None

    @dataclass(frozen=True)
    class Mine(Uniform):
        name: ClassVar[str] = "mine"

    assert method_named("mine") is Mine
    tree = jaxcomp.compress({"kernel": np.arange(12, dtype=np.float32).reshape(3, 4)}, Mine(4))
    assert "used" in str(tree.report())
    content = to_bytes(tree)
    again = jaxcomp.load(content)
    assert repr(again).startswith("CompressedTree(mine")
    np.testing.assert_array_equal(again.params()["kernel"], tree.params()["kernel"])
