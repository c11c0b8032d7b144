"""Compressed models in several files of safetensors: read by their index, or refused."""

import json

import numpy as np
import pytest
from file_problems import bits_of, small_tree

import jaxcomp
from jaxcomp.checkpoints import decompress, is_compressed, open_checkpoint, verify
from jaxcomp.compressed import compress_file
from jaxcomp.compressed.files import Encoded
from jaxcomp.quantizers import RoundToNearest

SIZE = 200


@pytest.fixture
def shards(tmp_path):
    tree = small_tree()
    file = Encoded(tree, container="safetensors")
    index = file.write(tmp_path / "model.safetensors", SIZE)
    files = sorted(tmp_path.glob("model-*.safetensors"))
    return tree, b"".join(file.chunks()), (index, *files)


def test_a_model_in_several_files_is_that_in_one(shards, tmp_path):
    tree, data, (index, *files) = shards
    assert index.name == "model.safetensors.index.json"
    assert len(files) > 2
    assert is_compressed(index)
    whole = jaxcomp.inspect(data)
    assert jaxcomp.inspect(index).entries == tuple(
        entry._replace(share=entry.size_bytes / sum(file.stat().st_size for file in files))
        for entry in whole.entries
    )
    assert bits_of(jaxcomp.load(index).params()["coded"]) == bits_of(tree.params()["coded"])
    assert verify(index).num_arrays == len(whole.entries)
    for place in (index, tmp_path):  # by its name, or its folder
        with open_checkpoint(place) as checkpoint:
            assert checkpoint.format == "jaxcomp"
            assert set(checkpoint.files) == {index, *files}
            np.testing.assert_array_equal(checkpoint.tree()["bias"], tree.params()["bias"])
    assert decompress(index, tmp_path / "a.npz").num_tensors == len(whole.entries)
    with pytest.raises(ValueError, match="is what is read"):
        decompress(index, files[0])
    with pytest.raises(ValueError, match="is what is read"):
        decompress(index, tmp_path / "model.safetensors", shard_size=SIZE)


def test_one_file_is_enough_where_all_fits(tmp_path):
    file = Encoded(small_tree(), container="safetensors")
    assert file.write(tmp_path / "a.safetensors", 1e6) == tmp_path / "a.safetensors"
    assert (tmp_path / "a.safetensors").read_bytes() == b"".join(file.chunks())


def test_files_that_are_not_those_of_the_index(shards):
    _, _, (index, *files) = shards
    text = json.loads(index.read_text())
    weights = dict(text["weight_map"])
    name = next(iter(weights))
    wrong = {
        "does not name files beside it": {**weights, name: f"../{weights[name]}"},
        "is that of other files": {**weights, name: files[weights[name] == files[0].name].name},
        "a tensor is missing": {**weights, "more": files[0].name},
    }
    for message, changed in wrong.items():
        index.write_text(json.dumps({"weight_map": changed}))
        with pytest.raises(jaxcomp.FormatError, match=message):
            jaxcomp.load(index)
    for broken in (
        "{",
        "[]",
        '{"weight_map": {}}',
        '{"weight_map": 3}',
        '{"weight_map": {"a": 3}}',
    ):
        index.write_text(broken)
        with pytest.raises(jaxcomp.FormatError):
            jaxcomp.load(index)
    index.write_text(json.dumps(text))
    whole = files[1].read_bytes()
    for broken in (b"", whole[:20], whole[:-1], whole + b"\0", files[0].read_bytes()):
        files[1].write_bytes(broken)
        with pytest.raises(jaxcomp.FormatError):
            jaxcomp.load(index)
    files[1].unlink()
    with pytest.raises(FileNotFoundError):
        jaxcomp.load(index)


def test_compressing_to_several_files(tmp_path):
    source, target = tmp_path / "model.npz", tmp_path / "small.safetensors"
    rng = np.random.default_rng(0)
    np.savez(source, **{name: rng.normal(size=(20, 30)).astype(np.float32) for name in "abcd"})
    report = compress_file(source, target, RoundToNearest(4), shard_size=900)
    assert report.target == str(tmp_path / "small.safetensors.index.json")
    with open_checkpoint(report.target) as checkpoint:
        assert set(checkpoint.tensors) == set("abcd")
        assert len(checkpoint.files) > 2
    assert not target.exists()
    with pytest.raises(ValueError, match=r"end small.jxc with .safetensors, or leave shard_size"):
        compress_file(source, tmp_path / "small.jxc", RoundToNearest(4), shard_size=900)
