"""Equal things have equal fingerprints, different ones different ones."""

import dataclasses
import hashlib
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcomp import storage


@dataclasses.dataclass(frozen=True)
class Settings:
    rate: float
    sizes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class OtherSettings:
    rate: float
    sizes: tuple[int, ...]


class Pair(NamedTuple):
    first: int
    second: str


def test_fingerprint_of_plain_settings_is_that_of_their_json() -> None:
    text = json.dumps({"a": 1, "b": {"c": None, "d": 0.1}}, separators=(",", ":"))
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert storage.fingerprint({"b": {"d": 0.1, "c": None}, "a": 1}) == expected


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((1, "a"), [1, "a"]),
        (Pair(1, "a"), (1, "a")),
        (np.float64(0.1), 0.1),
        (np.int32(3), 3),
        (np.bool_(True), True),
        (np.arange(6).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3))),
        (np.arange(3, dtype="<i4"), np.arange(3, dtype=">i4")),
        (np.arange(3, dtype=np.int32), jnp.arange(3, dtype=jnp.int32)),
        (Settings(0.5, (1,)), Settings(0.5, (1,))),
        ({"a": 1, "b": 2}, OrderedDict(b=2, a=1)),
    ],
)
def test_equal_things_have_equal_fingerprints(first: Any, second: Any) -> None:
    assert storage.fingerprint(first) == storage.fingerprint(second)


def test_different_things_have_different_fingerprints() -> None:
    zeros = np.zeros(4, np.int32)
    digest = hashlib.sha256(zeros.tobytes()).hexdigest()
    values = [
        1,
        1.0,
        True,
        "1",
        None,
        "None",
        [],
        {},
        [1],
        [[1]],
        {"a": 1},
        zeros,
        zeros.astype(np.uint32),
        zeros.reshape(2, 2),
        ["array", "int32", [4], digest],  # what an array looks like inside
        zeros.astype(jnp.bfloat16),
        np.array(0),
        Settings(0.5, (1,)),
        OtherSettings(0.5, (1,)),
        {"rate": 0.5, "sizes": [1]},
        ["dataclass", "Settings", {"rate": 0.5, "sizes": [1]}],
    ]
    assert len({storage.fingerprint(value) for value in values}) == len(values)


@pytest.mark.parametrize("value", [{1, 2}, Path("a"), len, np.array([{}]), Settings])
def test_what_has_no_fingerprint(value: Any) -> None:
    with pytest.raises(TypeError, match=r"A fingerprint of a .* does not exist"):
        storage.fingerprint({"a": [value]})


def test_a_fingerprint_needs_names() -> None:
    with pytest.raises(TypeError, match=r"keys of type str, got the keys \[1\]"):
        storage.fingerprint({1: 2})
