"""Fingerprints: equal settings and data have equal hashes, in every process."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np


def fingerprint(value: Any) -> str:
    """Hash settings and data: equal values have equal fingerprints, in every process.

    The order of the keys of a dict does not count; tuples count as lists; NumPy numbers count as
    the Python numbers they equal. `1`, `1.0` and `True` differ. Arrays count by dtype, shape and
    bytes; the memory layout and the byte order do not matter.

    Args:
        value: nested dicts with `str` keys, lists, tuples, dataclasses, text, numbers, `None`
            and arrays (NumPy, or anything with a dtype that NumPy can read).

    Returns:
        SHA-256 in hexadecimal, 64 characters.

    Raises:
        TypeError: for a value that has no such canonical form (a function, a set, a path).
    """
    text = json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(value: Any) -> Any:
    """Turn a value into JSON in which different kinds of things cannot look alike.

    Every list starts with a tag, so no list that a caller gives can pass for an array.
    """
    if isinstance(value, np.generic) and value.dtype.kind in "biufU":
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return ["dataclass", type(value).__name__, _canonical(fields)]
    if isinstance(value, list | tuple):
        return ["sequence", *(_canonical(item) for item in value)]
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(
                f"A fingerprint needs dicts with keys of type str, got the keys {list(value)!r}; "
                "rename them."
            )
        return {key: _canonical(item) for key, item in value.items()}
    # Arrays of JAX have a dtype too; typed keys and objects have no bytes to hash.
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        array = np.asarray(value, order="C")
        if array.dtype.kind != "O":
            array = array.astype(array.dtype.newbyteorder("<"), copy=False)
            digest = hashlib.sha256(array.tobytes()).hexdigest()
            return ["array", array.dtype.name, list(array.shape), digest]
    raise TypeError(
        f"A fingerprint of a {type(value).__name__} does not exist; use dicts, lists, text, "
        "numbers, None, dataclasses or arrays of numbers."
    )
