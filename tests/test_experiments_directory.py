"""The directory of a run: whose it is, what is kept, what is forgotten."""

import json
import math

import numpy as np
import pytest

from jaxcomp.experiments.directory import RunDirectory, read_manifest


class Kept(RunDirectory):
    noun = "trial"
    folders = ("cells", "arrays")


SETTINGS = {"seed": 0, "sizes": (1, 2)}


def test_parts_are_found_again(tmp_path):
    first = Kept(tmp_path / "run", SETTINGS)
    rows = [{"cell": "a", "loss": 0.1 + 0.2, "ratio": math.nan}, {"cell": "b", "loss": 2}]
    first.save_rows("part", rows)
    first.save_arrays("arrays", "part", {"x": np.arange(3)})
    again = Kept(tmp_path / "run", SETTINGS)
    found = again.load_rows("part", ["a", "b"])
    assert found is not None
    assert found[0]["loss"] == rows[0]["loss"]
    assert math.isnan(found[0]["ratio"])
    assert again.load_rows("part", ["b", "a"]) is None
    assert again.load_rows("other", ["a"]) is None
    arrays = again.load_arrays("arrays", "part")
    assert arrays is not None
    np.testing.assert_array_equal(arrays["x"], [0, 1, 2])
    file = tmp_path / "run" / "arrays" / "part.npz"
    file.write_bytes(file.read_bytes()[:-1])
    assert again.load_arrays("arrays", "part") is None
    fresh = Kept(tmp_path / "run", SETTINGS, resume=False)
    assert fresh.load_rows("part", ["a", "b"]) is None


def test_other_settings_and_other_kinds_are_refused(tmp_path):
    Kept(tmp_path, SETTINGS)
    with pytest.raises(ValueError, match=r"other settings: seed \(0 there, 1 now\)"):
        Kept(tmp_path, SETTINGS | {"seed": 1})
    with pytest.raises(ValueError, match=r"and 2 more; choose"):
        Kept(tmp_path, dict.fromkeys("abcd", 1))
    with pytest.raises(ValueError, match="holds a trial, not a run"):
        RunDirectory(tmp_path, SETTINGS)


def test_parts_made_with_other_versions_are_forgotten(tmp_path):
    first = Kept(tmp_path, SETTINGS)
    first.describe()
    first.save_rows("part", [{"cell": "a"}])
    same = Kept(tmp_path, SETTINGS)
    same.describe()
    assert same.load_rows("part", ["a"]) == [{"cell": "a"}]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["versions"]["jax"] = "0.0"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    other = Kept(tmp_path, SETTINGS)
    other.describe()
    assert other.load_rows("part", ["a"]) is None
    assert other.manifest["versions"]["jax"] != "0.0"


def test_what_is_no_run_or_not_finished(tmp_path):
    with pytest.raises(ValueError, match="holds no trial: there is no manifest"):
        read_manifest(tmp_path, "trial")
    run = Kept(tmp_path / "run", SETTINGS)
    with pytest.raises(ValueError, match=r"trial in .* is not finished"):
        read_manifest(tmp_path / "run", "trial", finished=True)
    run.finish()
    assert read_manifest(tmp_path / "run", "trial", finished=True)["status"] == "finished"
    (tmp_path / "run" / "manifest.json").write_text("[]")
    with pytest.raises(ValueError, match="written by something else"):
        read_manifest(tmp_path / "run", "trial")


def test_in_memory_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Kept(None, SETTINGS)
    run.describe()
    run.save_rows("part", [{"cell": "a"}])
    run.finish()
    assert run.load_rows("part", ["a"]) is None
    assert run.load_arrays("arrays", "part") is None
    assert not run.is_finished
    assert not list(tmp_path.iterdir())
