"""Public names of the laboratory are there, and imported when they are first used."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ("sweep", "regularization", "linear_regression", "small_descriptions")


@pytest.mark.parametrize("name", PACKAGES)
def test_public_names_are_what_their_modules_define(name):
    package = importlib.import_module(f"jaxcomp.experiments.{name}")
    for member in package.__all__:
        assert getattr(package, member).__name__ == member
    with pytest.raises(AttributeError, match=f"{name}' has no attribute 'walk'"):
        _ = package.walk


def test_settings_are_read_without_anything_heavy():
    code = (
        "import sys\n"
        f"for name in {PACKAGES}:\n"
        "    __import__(f'jaxcomp.experiments.{name}.config')\n"
        "heavy = ('jax', 'numpy', 'pandas', 'matplotlib')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
