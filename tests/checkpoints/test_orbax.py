"""Folders of Orbax: whole trees in and out."""

import shutil
import warnings

import numpy as np
import pytest
from orbax.checkpoint import v1

from jaxcomp.checkpoints import open_checkpoint
from jaxcomp.checkpoints.orbax import write_orbax

TREE = {
    "params": {"dense": {"kernel": np.ones((3, 4), np.float32), "bias": np.zeros(4, np.float32)}},
    "layers": [np.arange(3), np.arange(4)],
    "step": 3,
}


def test_trees_that_orbax_wrote(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        v1.save(tmp_path / "3", TREE)
    with open_checkpoint(tmp_path / "3") as checkpoint:
        assert set(checkpoint.tensors) == {
            "params/dense/kernel", "params/dense/bias", "layers/0", "layers/1",
        }  # fmt: skip
        assert checkpoint.tensors["params/dense/kernel"][:2] == ("float32", (3, 4))
        tree = checkpoint.tree()
    assert tree["step"] == 3
    assert isinstance(tree["params"]["dense"]["kernel"], np.ndarray)
    np.testing.assert_array_equal(tree["layers"][1], np.arange(4))
    with (
        pytest.raises(ValueError, match="holds the checkpoints 3; name one of them"),
        open_checkpoint(tmp_path),
    ):
        pass
    # What is damaged is one sentence.
    shutil.rmtree(tmp_path / "3" / "state")
    with (
        pytest.raises(ValueError, match="cannot be read as a checkpoint of Orbax"),
        open_checkpoint(tmp_path / "3"),
    ):
        pass


def test_what_is_written_is_whole_or_not_there(tmp_path, monkeypatch):
    write_orbax(tmp_path / "model", TREE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = v1.load(tmp_path / "model")
    np.testing.assert_array_equal(found["params"]["dense"]["kernel"], np.ones((3, 4)))
    with pytest.raises(ValueError, match="exists; remove it, or name another folder"):
        write_orbax(tmp_path / "model", TREE)

    def interrupted(path, tree):
        path.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(v1, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_orbax(tmp_path / "other", TREE)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
