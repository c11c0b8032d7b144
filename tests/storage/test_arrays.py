"""Arrays in files: every damaged byte found, equal contents equal bytes; trees of them."""

import base64
import hashlib
import math
import os
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcomp import storage

ARRAYS = {
    "params/dense/kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bias": np.array([np.nan, -0.0, np.inf]),
    "codes": np.array([[1, 2]], np.uint8),
    "scalar": np.int32(7),
    "empty": np.zeros((0, 4), np.int16),
    "flag": np.array(True),
    "names": np.array(["äé", "b"]),
}
METADATA = {"epoch": 3, "loss": [0.1, math.inf], "nested": {"é": None, "ok": True}}
# The format must not change by accident: files of older runs would no longer be read.
GOLDEN = base64.b64decode(
    "UEsDBBQAAAAAAAAAIQB8chiERAAAAEQAAAANAAAAbWV0YWRhdGEuanNvbnsiZm9ybWF0IjogImpheGNvbXAgYXJyYXlz"
    "IiwgIm1ldGFkYXRhIjogeyJlcG9jaCI6IDN9LCAidmVyc2lvbiI6IDF9UEsDBBQAAAAAAAAAIQD9z6UIiAAAAIgAAAAH"
    "AAAAdy9iLm5weZNOVU1QWQEAdgB7J2Rlc2NyJzogJzxmNCcsICdmb3J0cmFuX29yZGVyJzogRmFsc2UsICdzaGFwZSc6"
    "ICgxLCAyKSwgfSAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAK"
    "AADAPwAAAMBQSwECFAMUAAAAAAAAACEAfHIYhEQAAABEAAAADQAAAAAAAAAAAAAApAEAAAAAbWV0YWRhdGEuanNvblBL"
    "AQIUAxQAAAAAAAAAIQD9z6UIiAAAAIgAAAAHAAAAAAAAAAAAAACkAW8AAAB3L2IubnB5UEsFBgAAAAACAAIAcAAAABwB"
    "AABAADdkY2U5YzMwMWM2OGIzMTViOTg3YjRmZTg4NjdlNGQyZWI5MTA0OWFmYzA4NWM5N2FjNWZjNGM5ZTMzMWEwYjA="
)


def test_arrays_and_metadata_come_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "arrays.npz"
    storage.save_arrays(path, ARRAYS, METADATA)
    arrays, metadata = storage.load_arrays(path)
    assert list(arrays) == sorted(ARRAYS)
    for name, expected in ARRAYS.items():
        assert arrays[name].dtype == expected.dtype
        assert arrays[name].shape == expected.shape
        assert arrays[name].tobytes() == expected.tobytes()
        assert arrays[name].flags.writeable
    assert metadata == METADATA
    assert os.listdir(path.parent) == ["arrays.npz"]


def test_no_arrays_and_no_metadata(tmp_path: Path) -> None:
    storage.save_arrays(tmp_path / "a.npz", {})
    assert storage.load_arrays(tmp_path / "a.npz") == ({}, {})


def test_numpy_reads_the_arrays(tmp_path: Path) -> None:
    storage.save_arrays(tmp_path / "a.npz", ARRAYS, METADATA)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as read:
        np.testing.assert_array_equal(read["bias"], ARRAYS["bias"])
        np.testing.assert_array_equal(read["params/dense/kernel"], ARRAYS["params/dense/kernel"])


def test_jax_and_non_contiguous_arrays(tmp_path: Path) -> None:
    matrix = np.arange(6.0).reshape(2, 3)
    storage.save_arrays(tmp_path / "a.npz", {"jax": jnp.arange(3), "transposed": matrix.T})
    arrays, _ = storage.load_arrays(tmp_path / "a.npz")
    np.testing.assert_array_equal(arrays["jax"], [0, 1, 2])
    np.testing.assert_array_equal(arrays["transposed"], matrix.T)


def test_equal_contents_give_equal_bytes(tmp_path: Path) -> None:
    storage.save_arrays(tmp_path / "a.npz", ARRAYS, METADATA)
    fortran = dict(reversed(ARRAYS.items())) | {
        "params/dense/kernel": np.asfortranarray(ARRAYS["params/dense/kernel"])
    }
    storage.save_arrays(tmp_path / "b.npz", fortran, dict(reversed(METADATA.items())))
    data = (tmp_path / "a.npz").read_bytes()
    assert (tmp_path / "b.npz").read_bytes() == data
    # The oracle knows only the documented rule: the end is the hash of everything before it.
    assert data[-64:].decode() == hashlib.sha256(data[:-64]).hexdigest()


def test_the_format_is_pinned(tmp_path: Path) -> None:
    (tmp_path / "golden.npz").write_bytes(GOLDEN)
    arrays, metadata = storage.load_arrays(tmp_path / "golden.npz")
    np.testing.assert_array_equal(arrays["w/b"], np.array([[1.5, -2.0]], np.float32))
    assert metadata == {"epoch": 3}
    storage.save_arrays(tmp_path / "again.npz", arrays, metadata)
    assert (tmp_path / "again.npz").read_bytes() == GOLDEN


def test_any_changed_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    storage.save_arrays(path, {"w": np.arange(3)}, {"a": 1})
    data = path.read_bytes()
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged, cut or not written by jaxcomp"):
            storage.load_arrays(path)


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 200, -1])
def test_a_cut_file_is_found(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.npz"
    storage.save_arrays(path, ARRAYS)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match="damaged, cut or not written by jaxcomp"):
        storage.load_arrays(path)


def test_foreign_missing_and_later_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "foreign.npz", w=np.ones(2))
    with pytest.raises(ValueError, match="not written by jaxcomp"):
        storage.load_arrays(tmp_path / "foreign.npz")
    with pytest.raises(ValueError, match=r"missing.npz does not exist; check the path"):
        storage.load_arrays(tmp_path / "missing.npz")
    with pytest.raises(ValueError, match=r"could not be read \(Is a directory\)"):
        storage.load_arrays(tmp_path)
    path = tmp_path / "later.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.comment = b"0" * 64
        archive.writestr("metadata.json", '{"format": "jaxcomp arrays", "version": 2}')
    data = path.read_bytes()[:-64]
    path.write_bytes(data + hashlib.sha256(data).hexdigest().encode())
    with pytest.raises(ValueError, match=r"version 2, but this jaxcomp reads .* version 1"):
        storage.load_arrays(path)


def test_what_cannot_be_stored(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(TypeError, match="'w' has the dtype object, which cannot be stored"):
        storage.save_arrays(path, {"w": np.array([{}])})
    with pytest.raises(TypeError, match="'w' has the dtype bfloat16"):
        storage.save_arrays(path, {"w": jnp.ones(2, jnp.bfloat16)})
    with pytest.raises(TypeError, match="Names of arrays must be of type str, got 3"):
        storage.save_arrays(path, {3: np.ones(2)})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="The name of an array cannot be empty"):
        storage.save_arrays(path, {"": np.ones(2)})
    with pytest.raises(TypeError, match=r"metadata\['a'\] has the key 1, but keys in JSON"):
        storage.save_arrays(path, {}, {"a": {1: 2}})
    with pytest.raises(TypeError, match=r"metadata\['a'\]\[1\] is of type set"):
        storage.save_arrays(path, {}, {"a": [1, {2}]})
    assert os.listdir(tmp_path) == []


def test_any_name_comes_back(tmp_path: Path) -> None:
    names = ["a\\b", "a/b", "a\0b", "100%", "%00005c", "\ud800", "ä", " ", "metadata.json", "x.npy"]
    arrays = {name: np.array(place) for place, name in enumerate(names)}
    storage.save_arrays(tmp_path / "a.npz", arrays)
    assert storage.load_arrays(tmp_path / "a.npz")[0] == arrays


_KEYS = st.text(st.characters(exclude_characters="/"), min_size=1, max_size=3)
_TREES = st.dictionaries(
    _KEYS,
    st.recursive(st.integers(), lambda child: st.dictionaries(_KEYS, child, max_size=3)),
    max_size=3,
)


@given(_TREES)
def test_flatten_then_unflatten_is_the_identity(tree: dict[str, Any]) -> None:
    assert storage.unflatten_tree(storage.flatten_tree(tree)) == tree


def test_a_tree_survives_the_file(tmp_path: Path) -> None:
    tree = {"params": {"dense": {"kernel": np.ones((2, 2))}}, "statistics": {}}
    flat = storage.flatten_tree(OrderedDict(tree))
    assert list(flat) == ["params/dense/kernel", "statistics/"]
    storage.save_arrays(tmp_path / "a.npz", flat)
    restored = storage.unflatten_tree(storage.load_arrays(tmp_path / "a.npz")[0])
    assert restored["statistics"] == {}
    np.testing.assert_array_equal(restored["params"]["dense"]["kernel"], np.ones((2, 2)))


def test_tree_errors() -> None:
    with pytest.raises(TypeError, match="keys of type str, got 1"):
        storage.flatten_tree({"a": {1: 2}})
    with pytest.raises(ValueError, match="cannot have the key 'a/b'"):
        storage.flatten_tree({"a/b": 1})
    with pytest.raises(ValueError, match="cannot have the key ''"):
        storage.flatten_tree({"a": {"": 1}})
    with pytest.raises(TypeError, match="nested dicts, got a list at 'a'"):
        storage.flatten_tree({"a": [1]})


@pytest.mark.parametrize(
    "names", [["a", "a/b"], ["a/b", "a"], [""], ["/"], ["/a"], ["a//b"], ["a/b", "a/"]]
)
def test_names_that_are_no_tree(names: list[str]) -> None:
    with pytest.raises(ValueError, match=f"The name {names[-1]!r} does not fit a tree"):
        storage.unflatten_tree(dict.fromkeys(names, 0))
