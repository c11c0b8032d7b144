"""Checkpoints of all formats are told by what is there."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import random_codes_problems
import safetensors.numpy
from checkpoint_problems import arrays, assert_same, plain_arrays
from file_problems import kept

import jaxcomp
from jaxcomp.checkpoints import is_compressed, open_checkpoint
from jaxcomp.compressed import to_bytes


def read(path):
    with open_checkpoint(path) as checkpoint:
        return checkpoint.tree()


def sharded(folder):
    """Two files and their index, in Hugging Face's layout."""
    values = arrays()
    names = sorted(values)
    shards = {
        f"model-0000{place + 1}-of-00002.safetensors": own
        for place, own in enumerate((names[:4], names[4:]))
    }
    for file, own in shards.items():
        safetensors.numpy.save_file({name: values[name] for name in own}, folder / file)
    index = {"weight_map": {name: file for file, own in shards.items() for name in own}}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    return path, {name: values[name] for name in names}, list(shards)


def test_shards_by_their_index_and_by_their_folder(tmp_path):
    index, values, files = sharded(tmp_path)
    assert_same(read(index), values)
    with open_checkpoint(tmp_path) as checkpoint:
        assert_same(checkpoint.tree(), values)
        assert checkpoint.files == (index, *(tmp_path / file for file in files))


def test_shards_that_are_not_all_there(tmp_path):
    index, _, files = sharded(tmp_path)
    text = json.loads(index.read_text())
    text["weight_map"]["more"] = files[0]
    index.write_text(json.dumps(text))
    with pytest.raises(ValueError, match="lacks the tensor 'more' that"):
        read(index)
    (tmp_path / files[1]).unlink()
    with pytest.raises(ValueError, match=rf"lacks {files[1]}, one of 2 files .*\(1 missing\)"):
        read(tmp_path)
    for wrong in ("[]", '{"weight_map": {"a": "../b.safetensors"}}', '{"weight_map": {}}'):
        index.write_text(wrong)
        with pytest.raises(ValueError, match="fetch it again"):
            read(index)


def test_a_folder_with_one_file(tmp_path):
    safetensors.numpy.save_file(arrays(), tmp_path / "model.safetensors")
    assert set(read(tmp_path)) == set(arrays())


def test_archives_of_numpy(tmp_path):
    np.savez(tmp_path / "model.npz", **plain_arrays())
    assert_same(read(tmp_path / "model.npz"), plain_arrays())
    np.savez(tmp_path / "named.npz", words=np.asarray(["a"]))
    with pytest.raises(ValueError, match="holds 'words' of the dtype <U1, which is none of numb"):
        read(tmp_path / "named.npz")
    (tmp_path / "no.npz").write_bytes(b"PK\3\4 no archive")
    with pytest.raises(ValueError, match="is no archive of NumPy"):
        read(tmp_path / "no.npz")


@pytest.mark.parametrize("container", ["jxc", "safetensors"])
def test_compressed_models(container, tmp_path):
    values = arrays()
    tied = {**values, "again": values["block.0.weight"].T}
    path = tmp_path / f"model.{container}"
    path.write_bytes(to_bytes(kept({**tied, "epoch": 3}), container=container))
    assert is_compressed(path)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.format == "jaxcomp"
        assert checkpoint.left_out == ("epoch",)
        found = checkpoint.tree()
    assert_same({name: found[name] for name in tied}, tied)


def test_random_codes(tmp_path):
    path = tmp_path / "model.jxr"
    path.write_bytes(random_codes_problems.file_bytes())
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.format == "jaxcomp"
        assert {tensor.dtype for tensor in checkpoint.tensors.values()} == {"float32"}
    assert_same(read(path), random_codes_problems.arrays())


def test_what_is_not_there_or_not_known(tmp_path):
    with pytest.raises(ValueError, match=r"there is no .*nowhere; name a compressed model"):
        read(tmp_path / "nowhere")
    (tmp_path / "model.h5").touch()
    with pytest.raises(ValueError, match="has no name of a format that is known"):
        read(tmp_path / "model.h5")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="is a folder without a checkpoint"):
        read(tmp_path / "folder")
    (tmp_path / "cut.jxc").write_bytes(to_bytes(kept(arrays()))[:-1])
    with pytest.raises(jaxcomp.FormatError):
        read(tmp_path / "cut.jxc")


def test_jax_is_not_imported():
    code = (
        "import sys, jaxcomp\n"
        "from jaxcomp import checkpoints, inspect\n"
        "print([name for name in ('jax', 'torch', 'orbax') if name in sys.modules])\n"
    )
    root = Path(jaxcomp.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
