"""The directory of a run: whose it is, what is kept, what is forgotten."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxcomp import storage
from jaxcomp.experiments.directory import FORMAT_VERSION, RunDirectory, loading, read_manifest, seal


class Kept(RunDirectory):
    noun = "trial"
    folders = ("variants", "arrays")


SETTINGS = {"seed": 0, "sizes": (1, 2)}


def test_parts_are_found_again(tmp_path):
    rows = [{"variant": "a", "loss": 0.1 + 0.2, "ratio": math.nan}, {"variant": "b", "loss": 2}]
    with Kept(tmp_path / "run", SETTINGS) as first:
        first.save_rows("part", rows)
        first.save_arrays("arrays", "part", {"x": np.arange(3)})
    with Kept(tmp_path / "run", SETTINGS) as again:
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
    (tmp_path / "run" / "variants" / ".gitkeep").touch()
    (tmp_path / "run" / "variants" / ".ipynb_checkpoints").mkdir()
    with Kept(tmp_path / "run", SETTINGS, resume=False) as fresh:
        assert fresh.load_rows("part", ["a", "b"]) is None
    assert not (tmp_path / "run" / storage.FolderLock.NAME).exists()


def test_other_settings_and_other_kinds_are_refused(tmp_path):
    with Kept(tmp_path, SETTINGS):
        pass
    with pytest.raises(ValueError, match=r"other settings: seed \(0 there, 1 now\)"):
        Kept(tmp_path, SETTINGS | {"seed": 1})
    with pytest.raises(ValueError, match=r"and 2 more; choose"):
        Kept(tmp_path, dict.fromkeys("abcd", 1))
    with pytest.raises(ValueError, match="holds a trial, not a run"):
        RunDirectory(tmp_path, SETTINGS)
    with Kept(tmp_path, SETTINGS):  # a refusal holds nothing back
        pass


@pytest.mark.parametrize("written", [None, 1, FORMAT_VERSION + 1])
def test_another_version_of_the_format_is_refused_before_settings_are_compared(tmp_path, written):
    with Kept(tmp_path, SETTINGS) as run:
        run.finish()
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest["format_version"]  # as before the format had a version
    if written is not None:
        manifest["format_version"] = written
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    told = rf"^{tmp_path} holds a trial in version {written or 1} of the format, this jaxcomp reads"
    with pytest.raises(ValueError, match=told):
        Kept(tmp_path, SETTINGS | {"seed": 1})
    with pytest.raises(ValueError, match=told):
        Kept(tmp_path, SETTINGS, resume=False)
    with pytest.raises(ValueError, match=told), loading(tmp_path, "trial"):
        pass


def test_a_home_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with Kept(Path("~/run"), SETTINGS) as run:
        assert run.path == tmp_path / "run"
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_a_run_stopped_at_once_is_taken_up_and_strangers_are_not(tmp_path):
    # Before the manifest: what a kill leaves, and what systems put into every folder.
    for name in (".DS_Store", ".gitkeep", "Thumbs.db", ".probe.1-00000000.tmp", ".jaxcomp.lock"):
        (tmp_path / name).touch()
    for name in ("variants", "lost+found"):
        (tmp_path / name).mkdir()
    with Kept(tmp_path, SETTINGS) as run:
        run.save_rows("part", [{"variant": "a"}])
    assert (tmp_path / ".DS_Store").exists()
    assert not list(tmp_path.glob(".*.tmp"))
    (tmp_path / "manifest.json").unlink()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"other files and no manifest.json \(variants\): choose"):
        Kept(tmp_path, SETTINGS)
    assert sorted(tmp_path.rglob("*")) == before


HOLD = """
import sys
from jaxcomp.experiments.directory import RunDirectory
with RunDirectory(__import__('pathlib').Path(sys.argv[1]), {}):
    print('held', flush=True)
    sys.stdin.read()
"""


def test_one_run_at_a_time_until_it_ends_however_it_ends(tmp_path):
    with RunDirectory(tmp_path / "run", {}) as run:
        run.save_rows("part", [{"variant": "a"}])
        before = sorted((tmp_path / "run").rglob("*"))
        with pytest.raises(ValueError, match="is in use by another run: wait for its end, or"):
            RunDirectory(tmp_path / "run", {}, resume=False)
        assert sorted((tmp_path / "run").rglob("*")) == before
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match="in use by another run"):
        RunDirectory(tmp_path / "run", {})
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with RunDirectory(tmp_path / "run", {}) as run:
        assert run.load_rows("part", ["a"]) == [{"variant": "a"}]


def test_parts_made_with_other_versions_or_options_are_forgotten(tmp_path):
    def opened():
        with Kept(tmp_path, SETTINGS) as run:
            run.describe()
            found = run.load_rows("part", ["a"])
            run.save_rows("part", [{"variant": "a"}])
            return found, run.manifest

    assert opened()[0] is None
    assert opened()[0] == [{"variant": "a"}]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["versions"]["jax"] = "0.0"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    found, manifest = opened()
    assert found is None
    assert manifest["versions"]["jax"] != "0.0"
    assert opened()[0] is not None
    with jax.default_matmul_precision("float32"):
        found, manifest = opened()
    assert found is None
    assert manifest["options"]["jax_default_matmul_precision"] == "float32"
    # Keys do not depend on the default, so that it shapes nothing.
    assert opened()[0] is None
    with jax.default_prng_impl("rbg"):
        assert opened()[0] is not None


def test_data_are_part_of_a_run(tmp_path):
    with Kept(tmp_path, SETTINGS) as run:
        assert run.is_made_from("digits", "abc")
        assert run.is_made_from("other", "xyz")
    with Kept(tmp_path, SETTINGS) as run:
        assert run.is_made_from("digits", "abc")
        assert not run.is_made_from("digits", "abd")
        assert run.is_made_from("digits", "abd")


def test_what_is_no_run_or_not_finished(tmp_path):
    with pytest.raises(ValueError, match="holds no trial: there is no manifest"):
        read_manifest(tmp_path, "trial")
    with Kept(tmp_path / "run", SETTINGS) as run:
        with pytest.raises(ValueError, match=r"trial in .* is not finished"):
            read_manifest(tmp_path / "run", "trial", finished=True)
        run.finish()
    assert read_manifest(tmp_path / "run", "trial", finished=True)["status"] == "finished"
    (tmp_path / "run" / "manifest.json").write_text("[]")
    with pytest.raises(ValueError, match="written by something else"):
        read_manifest(tmp_path / "run", "trial")
    (tmp_path / "run" / "manifest.json").write_text('{"settings": ')
    with pytest.raises(ValueError, match="could not be read as JSON; delete the directory or"):
        read_manifest(tmp_path / "run", "trial")


def test_damage_is_found_before_results_are_read(tmp_path):
    def load(folder):
        with loading(folder, "trial"):
            return storage.read_json(folder / "result.json")["numbers"]

    result = tmp_path / "result.json"
    with Kept(tmp_path, SETTINGS) as run:
        storage.write_json(result, {"numbers": [1, 2]})
        seal(run.manifest, tmp_path, [result])
        run.finish()
    assert load(tmp_path) == [1, 2]
    written = result.read_bytes()
    for damaged in (b"", written[:-3], written.replace(b"2", b"3"), b"{}", b"[]", None):
        result.unlink()
        if damaged is not None:
            result.write_bytes(damaged)
        with pytest.raises(ValueError, match="run the trial again with the same command"):
            load(tmp_path)
        with Kept(tmp_path, SETTINGS) as run:
            assert run.is_finished
            assert run.finished(load) is None
            assert not run.is_finished
            storage.write_json(result, {"numbers": [1, 2]})
            run.finish()
    with Kept(tmp_path, SETTINGS) as run:
        assert run.finished(load) == [1, 2]
        seal(run.manifest, tmp_path, [])
        result.write_text("{}")
        assert run.finished(load) is None  # whatever reading it raises


def test_in_memory_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Kept(None, SETTINGS)
    run.describe()
    run.save_rows("part", [{"variant": "a"}])
    run.finish()
    assert run.load_rows("part", ["a"]) is None
    assert run.load_arrays("arrays", "part") is None
    assert not run.is_finished
    assert not list(tmp_path.iterdir())
