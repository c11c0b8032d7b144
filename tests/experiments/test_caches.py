"""Caches: where they are, and that a run does without one that cannot be written."""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxcomp.experiments import caches

COMPILE = """
import jax
from jaxcomp.experiments import caches
caches.MIN_COMPILE_SECONDS = 0.0
caches.keep_compiled_programs()
print(float(jax.jit(lambda x: x * 2 + 1)(3.0)))
"""


def test_where_they_are(tmp_path, monkeypatch):
    assert caches.network_cache(tmp_path / "own") == tmp_path / "own"
    monkeypatch.setenv("JAXCOMP_CACHE_DIR", str(tmp_path / "named"))
    assert caches.network_cache(None) == tmp_path / "named" / "networks"
    monkeypatch.delenv("JAXCOMP_CACHE_DIR")
    for name in ("HOME", "LOCALAPPDATA", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    root = caches.cache_root()
    assert root is not None
    assert root.is_relative_to(tmp_path / "home")


def test_one_warning_for_one_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "letter").write_text("dear")
    monkeypatch.setenv("JAXCOMP_CACHE_DIR", str(tmp_path / "letter" / "cache"))
    with pytest.warns(RuntimeWarning, match=r"cannot be written .*The run goes on.*JAXCOMP_CACHE"):
        assert caches.network_cache(None) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert caches.cache_root() is None
    with pytest.warns(RuntimeWarning, match="letter is a file"):
        assert caches.usable(tmp_path / "letter") is None


@pytest.mark.parametrize(
    ("told", "is_kept"),
    [
        ({}, True),
        ({"jax_enable_compilation_cache": False}, False),
        ({"jax_compilation_cache_dir": "of the user"}, False),
    ],
)
def test_what_jax_was_told_of_programs_stays(tmp_path, monkeypatch, told, is_kept):
    changed = {}
    options = {"jax_enable_compilation_cache": True, "jax_compilation_cache_dir": None} | told
    config = SimpleNamespace(update=changed.__setitem__, **options)
    monkeypatch.setitem(sys.modules, "jax", SimpleNamespace(config=config))
    monkeypatch.setenv("JAXCOMP_CACHE_DIR", str(tmp_path / "cache"))
    with warnings.catch_warnings():
        caches.keep_compiled_programs()
    assert ("jax_compilation_cache_dir" in changed) == is_kept
    if is_kept:
        own = Path(changed["jax_compilation_cache_dir"])
        assert own.parent == tmp_path / "cache" / "programs"


@pytest.fixture
def compiled(tmp_path):
    """Compile in a process of its own; files that are there then."""

    def compiled(**environment):
        done = subprocess.run(
            [sys.executable, "-c", COMPILE],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ
            | {
                "JAX_ENABLE_COMPILATION_CACHE": "true",
                "JAXCOMP_CACHE_DIR": str(tmp_path / "cache"),
                "PYTHONPATH": str(Path(__file__).parents[2]),
            }
            | environment,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == "7.0\n"
        return {file for file in tmp_path.rglob("*") if file.is_file()}

    return compiled


def test_compiled_programs_are_kept_for_one_version_and_machine(compiled, tmp_path):
    first = compiled()
    folder = tmp_path / "cache" / "programs"
    assert first
    assert all(file.is_relative_to(folder) for file in first)
    (own,) = folder.iterdir()
    assert own.name.startswith("jax-")
    for file in first:  # damaged entries are compiled again, without a word
        file.write_bytes(b"cut")
    assert compiled() == first


@pytest.mark.slow  # `keep_compiled_programs` is asked above what it changes
def test_programs_are_where_the_user_wants_them(compiled, tmp_path):
    assert not compiled(JAX_ENABLE_COMPILATION_CACHE="false")
    chosen = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "own"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    others = compiled(**chosen)
    assert others
    assert all(file.is_relative_to(tmp_path / "own") for file in others)
