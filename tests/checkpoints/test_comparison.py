"""Differences of tensors, by numbers known beforehand."""

import math
from pathlib import Path

import numpy as np
import pytest

from jaxcomp.checkpoints import compare, differences
from jaxcomp.checkpoints.tensors import Checkpoint, tensors_of


def checkpoint(**arrays):
    return Checkpoint(Path("a"), "npz", (), dict(tensors_of(arrays)))


def compared(first, second):
    (found,) = differences(checkpoint(w=first), checkpoint(w=second))
    return found


def test_every_kind():
    ones = np.ones((2, 2), np.float32)
    first = checkpoint(a=ones, b=ones, c=ones, d=ones, only=ones)
    second = checkpoint(a=ones, b=ones.astype(np.float16), c=ones[:1], d=2 * ones, more=ones)
    kinds = {own.path: own.kind for own in differences(first, second)}
    assert kinds == {
        "a": "same", "b": "dtype", "c": "shape", "d": "values",
        "only": "only in the first", "more": "only in the second",
    }  # fmt: skip


def test_errors_are_relative_to_the_first():
    found = compared(np.asarray([3.0, 4.0, 0.0]), np.asarray([3.0, 4.0, 0.5]))
    assert found.relative_error == pytest.approx(0.1)
    assert found.largest == 0.5
    assert found.num_different == 1


def test_over_several_chunks(monkeypatch):
    monkeypatch.setattr("jaxcomp.checkpoints.comparison._CHUNK", 7)
    rng = np.random.default_rng(0)
    a = rng.normal(size=(5, 6)).astype(np.float32)
    b = a.copy()
    b[3:] += 0.1  # the first chunks are equal
    found = compared(a, b)
    wide = a.astype(np.float64)
    expected = np.linalg.norm(b - wide) / np.linalg.norm(wide)
    assert found.relative_error == pytest.approx(expected)
    assert found.num_different == 12


def test_numbers_that_are_not_finite():
    nan = np.asarray([np.nan, 1.0])
    assert compared(nan, nan.copy()).kind == "same"
    found = compared(nan, np.asarray([0.0, 1.0]))
    assert (found.kind, found.relative_error, found.num_different) == ("values", math.inf, 1)
    assert compared(np.zeros(2), np.ones(2)).relative_error == math.inf
    infinite = np.asarray([np.inf])
    assert compared(infinite, -infinite).kind == "values"


def test_long_integers_are_compared_whole():
    a = np.asarray([2**60], np.int64)
    assert compared(a, a + 1).kind == "values"
    assert compared(np.asarray([1j]), np.asarray([2j])).relative_error == pytest.approx(1)


def test_empty_tensors_are_the_same():
    empty = dict(tensors_of({"w": np.zeros((0, 2))}))["w"]
    assert compare("w", empty, empty).kind == "same"
