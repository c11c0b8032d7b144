"""Safetensors as the library of that name writes and reads them; what is damaged is told."""

import json
import mmap

import numpy as np
import pytest
import safetensors.numpy
from checkpoint_problems import arrays, assert_same, by_the_library

from jaxcomp.checkpoints.safetensors import open_safetensors, write_safetensors


def specs_of(values):
    return [(path, own.dtype.name, own.shape) for path, own in values.items()]


def test_files_of_the_library(tmp_path):
    path, values = tmp_path / "model.safetensors", arrays()
    safetensors.numpy.save_file(values, path, {"format": "pt"})
    found = open_safetensors(path)
    assert found.format == "safetensors"
    assert set(found.tensors) == set(values)
    assert_same({name: found.tree()[name] for name in values}, values)
    assert {name: tensor[:2] for name, tensor in found.tensors.items()} == {
        name: (own.dtype.name, own.shape) for name, own in values.items()
    }


def test_the_library_reads_what_is_written(tmp_path):
    path, values = tmp_path / "model.safetensors", arrays()
    backwards = values["block.0.weight"].astype(">f4")
    written = [backwards if own is values["block.0.weight"] else own for own in values.values()]
    write_safetensors(path, specs_of(values), iter(written))
    assert by_the_library(path) == {name: own.tobytes() for name, own in values.items()}
    assert_same(open_safetensors(path).tree(), values)
    text = path.read_bytes()
    header = json.loads(text[8 : 8 + int.from_bytes(text[:8], "little")])
    for own in header.values():  # every tensor is aligned
        if own.get("shape"):
            size = own["data_offsets"][1] - own["data_offsets"][0]
            itemsize = size // max(int(np.prod(own["shape"])), 1)
            assert own["data_offsets"][0] % max(itemsize, 1) == 0


def test_tensors_are_mapped_not_read(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"w": np.arange(6, dtype=np.float32)}, path)
    array = open_safetensors(path).tensors["w"].read()
    base = array
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base.obj, mmap.mmap)
    assert not array.flags.writeable


def test_a_dtype_that_the_format_lacks(tmp_path):
    with pytest.raises(ValueError, match="safetensors has no complex128, the dtype of 'c'"):
        write_safetensors(tmp_path / "a.safetensors", [("c", "complex128", (1,))], [])
    assert not list(tmp_path.iterdir())


@pytest.fixture
def data(tmp_path):
    safetensors.numpy.save_file({"w": np.arange(6, dtype=np.float32)}, tmp_path / "whole")
    return (tmp_path / "whole").read_bytes()


def with_header(data, header):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = int.from_bytes(data[:8], "little")
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def described(dtype, shape, end):
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], "is cut, or damaged at the tensor 'w'"),
        (lambda data: data[:5], "is no file of safetensors, or it is cut"),
        (lambda _: b"version https://git-lfs", "is a pointer of Git LFS"),
        (lambda data: with_header(data, b"{]"), "is no file of safetensors"),
        (lambda data: with_header(data, [1]), "is no file of safetensors"),
        (lambda data: with_header(data, {"w": {"dtype": "F32"}}), "is no file of safetensors"),
        (lambda data: with_header(data, described("F32", [-1, -6], 24)), "is no file of safet"),
        (lambda data: with_header(data, described("F32", [2, 2], 24)), "at the tensor 'w'"),
        (lambda data: with_header(data, described("F4", [6], 3)), "of the dtype F4, which cannot"),
    ],
)
def test_what_is_damaged_is_one_sentence(data, change, message, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(change(data))
    with pytest.raises(ValueError, match=message):
        open_safetensors(path)
