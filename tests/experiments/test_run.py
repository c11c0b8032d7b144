"""The directory of a run: whose it is, what is kept, what is forgotten."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from jaxcomp import storage
from jaxcomp.experiments.manifest import FORMAT_VERSION, read_manifest
from jaxcomp.experiments.result import loading
from jaxcomp.experiments.run import Rows, Run

NOTHING = SimpleNamespace(save=lambda: None)
SETTINGS = {"seed": 0, "sizes": (1, 2)}
ROWS = [{"variant": "a", "loss": 0.1 + 0.2, "ratio": math.nan}, {"variant": "b", "loss": 2}]
AB = Rows(["a", "b"])


def opened(path, settings=SETTINGS, **options):
    return Run(path, settings, noun="trial", folders=("variants", "arrays"), **options)


def counted(value, calls):
    """Something that computes a part, and how often it did."""

    def compute():
        calls.append(value)
        return value

    return compute


def test_a_part_is_computed_once(tmp_path):
    calls = []
    with opened(tmp_path / "run") as first:
        assert first.find("part", AB) is None
        assert first.part("part", counted(ROWS, calls), AB) is ROWS
    with opened(tmp_path / "run") as again:
        found = again.part("part", counted([], calls), AB)
        assert found[0]["loss"] == ROWS[0]["loss"]
        assert math.isnan(found[0]["ratio"])
        assert len(calls) == 1
        assert again.find("part", Rows(["b", "a"])) is None
        assert again.find("other", Rows(["a"])) is None
        # Damaged, or of something else: made anew.
        file = tmp_path / "run" / "variants" / "part.json"
        for damaged in (file.read_bytes()[:-3], b"[]", b'{"rows": [{"variant": "a"}]}'):
            file.write_bytes(damaged)
            assert again.part("part", counted(ROWS, calls), AB) is ROWS
            assert again.find("part", AB) is not None
        assert len(calls) == 4
    (tmp_path / "run" / "variants" / ".gitkeep").touch()
    (tmp_path / "run" / "variants" / ".ipynb_checkpoints").mkdir()
    with opened(tmp_path / "run", resume=False) as fresh:
        assert fresh.find("part", AB) is None
    assert not (tmp_path / "run" / storage.FolderLock.NAME).exists()


def test_parts_and_phases_are_told_to_those_who_listen(tmp_path, caplog, capsys):
    with caplog.at_level("INFO", logger="jaxcomp.experiments.run"), opened(tmp_path) as run:
        for _ in range(2):
            run.part("part", lambda: ROWS, AB)
        run.finish(NOTHING)
    made, taken = (record.getMessage() for record in caplog.records)
    assert (made.split(" in ")[0], taken) == ("part: computed", f"part: taken from {tmp_path}")
    assert capsys.readouterr() == ("", "")


def test_what_was_made_from_a_part_is_forgotten_with_it(tmp_path):
    a = Rows(["a"])
    names = ("net-1", "net-1-0000", "net-1-0001", "net-10", "net-10-0000")
    with opened(tmp_path) as run:
        for name in names:
            run.part(name, lambda: [{"variant": "a"}], a)
        (tmp_path / "arrays" / "net-1.npz").touch()
        run.part("net-1", lambda: [{"variant": "b"}], Rows(["b"]))
        assert [name for name in names if run.find(name, a)] == ["net-10", "net-10-0000"]
        assert not (tmp_path / "arrays" / "net-1.npz").exists()
        run.forget("net-10")
        assert not any(run.find(name, a) for name in names)


def test_a_part_that_fails_is_not_stored(tmp_path):
    def fail():
        raise ValueError("no")

    with opened(tmp_path) as run:
        with pytest.raises(ValueError, match="no"):
            run.part("part", fail, AB)
        assert run.find("part", AB) is None


def test_other_settings_and_other_kinds_are_refused(tmp_path):
    with opened(tmp_path, SETTINGS):
        pass
    with pytest.raises(ValueError, match=r"other settings: seed \(0 there, 1 now\)"):
        opened(tmp_path, SETTINGS | {"seed": 1})
    with pytest.raises(ValueError, match=r"and 2 more; choose"):
        opened(tmp_path, dict.fromkeys("abcd", 1))
    with pytest.raises(ValueError, match="holds a trial, not a run"):
        Run(tmp_path, SETTINGS)
    with opened(tmp_path, SETTINGS):  # a refusal holds nothing back
        pass


@pytest.mark.parametrize("written", [None, 1, FORMAT_VERSION + 1])
def test_another_version_of_the_format_is_refused_before_settings_are_compared(tmp_path, written):
    with opened(tmp_path, SETTINGS) as run:
        run.finish(NOTHING)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest["format_version"]  # as before the format had a version
    if written is not None:
        manifest["format_version"] = written
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    told = rf"^{tmp_path} holds a trial in version {written or 1} of the format, this jaxcomp reads"
    with pytest.raises(ValueError, match=told):
        opened(tmp_path, SETTINGS | {"seed": 1})
    with pytest.raises(ValueError, match=told):
        opened(tmp_path, SETTINGS, resume=False)
    with pytest.raises(ValueError, match=told), loading(tmp_path, "trial"):
        pass


def test_a_home_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with opened(Path("~/run"), SETTINGS) as run:
        assert run.path == tmp_path / "run"
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_a_run_stopped_at_once_is_taken_up_and_strangers_are_not(tmp_path):
    # Before the manifest: what a kill leaves, and what systems put into every folder.
    for name in (".DS_Store", ".gitkeep", "Thumbs.db", ".probe.1-00000000.tmp", ".jaxcomp.lock"):
        (tmp_path / name).touch()
    for name in ("variants", "lost+found"):
        (tmp_path / name).mkdir()
    with opened(tmp_path, SETTINGS) as run:
        run.part("part", lambda: [{"variant": "a"}], Rows(["a"]))
    assert (tmp_path / ".DS_Store").exists()
    assert not list(tmp_path.glob(".*.tmp"))
    (tmp_path / "manifest.json").unlink()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"other files and no manifest.json \(variants\): choose"):
        opened(tmp_path, SETTINGS)
    assert sorted(tmp_path.rglob("*")) == before


HOLD = """
import sys
from jaxcomp.experiments.run import Run
with Run(__import__('pathlib').Path(sys.argv[1]), {}):
    print('held', flush=True)
    sys.stdin.read()
"""


def test_one_run_at_a_time_until_it_ends_however_it_ends(tmp_path):
    with Run(tmp_path / "run", {}) as run:
        run.part("part", lambda: [{"variant": "a"}], Rows(["a"]))
        before = sorted((tmp_path / "run").rglob("*"))
        with pytest.raises(ValueError, match="is in use by another run: wait for its end, or"):
            Run(tmp_path / "run", {}, resume=False)
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
        Run(tmp_path / "run", {})
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with Run(tmp_path / "run", {}) as run:
        assert run.find("part", Rows(["a"])) == [{"variant": "a"}]


def test_parts_made_with_other_versions_or_options_are_forgotten(tmp_path):
    def once():
        with opened(tmp_path, SETTINGS) as run:
            run.describe()
            found = run.find("part", Rows(["a"]))
            run.part("part", lambda: [{"variant": "a"}], Rows(["a"]))
            return found, run.manifest

    assert once()[0] is None
    assert once()[0] == [{"variant": "a"}]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["versions"]["jax"] = "0.0"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    found, manifest = once()
    assert found is None
    assert manifest["versions"]["jax"] != "0.0"
    assert once()[0] is not None
    with jax.default_matmul_precision("float32"):
        found, manifest = once()
    assert found is None
    assert manifest["options"]["jax_default_matmul_precision"] == "float32"
    # Keys do not depend on the default, so that it shapes nothing.
    assert once()[0] is None
    with jax.default_prng_impl("rbg"):
        assert once()[0] is not None


def test_data_are_part_of_a_run(tmp_path):
    def saved():
        return json.loads((tmp_path / "manifest.json").read_text())["data"]

    forgotten = []
    with opened(tmp_path, SETTINGS) as run:
        run.make_from("digits", "abc", lambda: forgotten.append("nothing"))
        run.make_from("other", "xyz", lambda: forgotten.append("nothing"))
    with opened(tmp_path, SETTINGS) as run:
        run.make_from("digits", "abc", lambda: forgotten.append("nothing"))
        # A run that is killed in between forgets them again.
        run.make_from("digits", "abd", lambda: forgotten.append(saved()))
        run.make_from("digits", "abd", lambda: forgotten.append("nothing"))
    assert forgotten == [{"digits": "abc", "other": "xyz"}]
    assert saved() == {"digits": "abd", "other": "xyz"}


def test_what_is_no_run_or_not_finished(tmp_path):
    with pytest.raises(ValueError, match="holds no trial: there is no manifest"):
        read_manifest(tmp_path, "trial")
    with opened(tmp_path / "run", SETTINGS) as run:
        with pytest.raises(ValueError, match=r"trial in .* is not finished"):
            read_manifest(tmp_path / "run", "trial", finished=True)
        run.finish(NOTHING)
    assert read_manifest(tmp_path / "run", "trial", finished=True)["status"] == "finished"
    (tmp_path / "run" / "manifest.json").write_text("[]")
    with pytest.raises(ValueError, match="written by something else"):
        read_manifest(tmp_path / "run", "trial")
    (tmp_path / "run" / "manifest.json").write_text('{"settings": ')
    with pytest.raises(ValueError, match="could not be read as JSON; delete the directory or"):
        read_manifest(tmp_path / "run", "trial")


def test_in_memory_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = opened(None, SETTINGS)
    run.describe()
    run.part("part", lambda: [{"variant": "a"}], Rows(["a"]))
    run.finish(NOTHING)
    assert run.find("part", Rows(["a"])) is None
    assert not run.is_finished
    assert not list(tmp_path.iterdir())
