"""Compressed models as files of other programs: the same numbers, or nothing at all."""

import json

import numpy as np
import pytest
from checkpoint_problems import arrays, assert_same, by_the_library, plain_arrays
from file_problems import kept, small_tree

import jaxcomp
from jaxcomp.checkpoints import decompress, open_checkpoint
from jaxcomp.compressed import to_bytes


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "model.jxc"
    values = arrays()
    tied = {**values, "again": values["block.0.weight"].T, "epoch": 3}
    path.write_bytes(to_bytes(kept(tied)))
    del tied["epoch"]
    return path, tied


def test_safetensors(source, tmp_path):
    path, values = source
    told = []
    done = decompress(path, tmp_path / "a.safetensors", report=lambda *step: told.append(step))
    found = by_the_library(tmp_path / "a.safetensors")
    assert found == {name: own.tobytes() for name, own in values.items()}
    assert done.format == "safetensors"
    assert done.num_tensors == len(values)
    assert done.size_bytes == sum(own.nbytes for own in values.values())
    assert done.left_out == ("epoch",)
    assert [step[0] for step in told] == list(range(len(values) + 1))


def test_safetensors_in_several_files(source, tmp_path):
    path, values = source
    most = max(own.nbytes for own in values.values())
    done = decompress(path, tmp_path / "a.safetensors", shard_size=most)
    index, *files = done.files
    assert index.name == "a.safetensors.index.json"
    assert len(files) > 1
    assert files[0].name == f"a-00001-of-{len(files):05d}.safetensors"
    found = [by_the_library(file) for file in files]
    for own in found:
        assert 0 < sum(map(len, own.values())) <= most
    assert {name: data for own in found for name, data in own.items()} == {
        name: own.tobytes() for name, own in values.items()
    }
    assert json.loads(index.read_text())["metadata"] == {"total_size": done.size_bytes}
    with open_checkpoint(index) as checkpoint:
        assert_same({name: checkpoint.tree()[name] for name in values}, values)
    assert not (tmp_path / "a.safetensors").exists()
    # All of it fits into one file.
    assert decompress(path, tmp_path / "b.safetensors", shard_size=1e9).files == (
        tmp_path / "b.safetensors",
    )
    with pytest.raises(ValueError, match="only safetensors come in several files, got npz"):
        decompress(path, tmp_path / "a.npz", shard_size=most)
    with pytest.raises(ValueError, match="shard_size must be positive, got 0"):
        decompress(path, tmp_path / "a.safetensors", shard_size=0)


def test_weights_in_another_dtype(source, tmp_path):
    path, values = source
    decompress(path, tmp_path / "a.safetensors", dtype="bfloat16")
    with open_checkpoint(tmp_path / "a.safetensors") as checkpoint:
        found = checkpoint.tree()
    for name, own in values.items():
        is_weight = own.dtype.name in ("float16", "bfloat16", "float32")
        expected = own.astype("bfloat16") if is_weight else own
        assert found[name].dtype == expected.dtype
        assert found[name].tobytes() == expected.tobytes()


def test_npz(tmp_path):
    (tmp_path / "model.jxc").write_bytes(to_bytes(kept(plain_arrays())))
    decompress(tmp_path / "model.jxc", tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as found:
        assert_same(dict(found), plain_arrays())
    with open_checkpoint(tmp_path / "a.npz") as checkpoint:
        assert_same(checkpoint.tree(), plain_arrays())


def test_dtypes_that_numpy_lacks(source, tmp_path):
    path, _ = source
    with pytest.raises(ValueError, match=r"npz has no bfloat16, the dtype of 'brain.weight'; wri"):
        decompress(path, tmp_path / "a.npz")
    assert [own.name for own in tmp_path.iterdir()] == ["model.jxc"]


def test_orbax(tmp_path):
    tree = small_tree()
    tree.save(tmp_path / "model.jxc")
    done = decompress(tmp_path / "model.jxc", tmp_path / "folder", dtype="float32")
    assert done.format == "orbax"
    assert done.left_out == ()
    with open_checkpoint(tmp_path / "folder") as checkpoint:
        found = checkpoint.tree()
    for name in ("coded", "bias"):
        np.testing.assert_array_equal(found[name], tree.params()[name])
    assert found["steps"][0] == 7
    with pytest.raises(ValueError, match="exists; remove it"):
        decompress(tmp_path / "model.jxc", tmp_path / "folder")


def test_a_wrong_array_leaves_nothing(source, tmp_path, monkeypatch):
    path, _ = source
    read = jaxcomp.decoder.File.array
    monkeypatch.setattr(
        jaxcomp.decoder.File,
        "array",
        lambda self, entry: read(self, entry) + (1 if entry.path == "steps" else 0),
    )
    for target, options in (("a.safetensors", {}), ("b", {}), ("c.safetensors", {"shard_size": 9})):
        with pytest.raises(jaxcomp.FormatError, match="the SHA-256 of its arrays is wrong"):
            decompress(path, tmp_path / target, **options)
    assert [own.name for own in tmp_path.iterdir()] == ["model.jxc"]


def test_where_it_cannot_go(source, tmp_path):
    path, _ = source
    (tmp_path / "link.safetensors").symlink_to(path)
    with pytest.raises(ValueError, match=r"link.safetensors is what is read; name another file"):
        decompress(path, tmp_path / "link.safetensors")
    with pytest.raises(ValueError, match=r"the name a.h5 tells no format; end it with"):
        decompress(path, tmp_path / "a.h5")
