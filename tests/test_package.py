"""The package as a whole: its public names, and what importing it brings along."""

import inspect
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import jaxcomp

ROOT = Path(__file__).parents[1]

HEAVY = (
    "jax",
    "numpy",
    "flax",
    "optax",
    "pandas",
    "pyarrow",
    "matplotlib",
    "sklearn",
    "typer",
    "rich",
)


def test_import_is_light():
    code = (
        "import sys, jaxcomp\n"
        f"print([name for name in {HEAVY} if name in sys.modules])\n"
        "from jaxcomp import cli\n"
        "cli._print_help(['sweep', '--help'])\n"
        "print([name for name in ('jax', 'numpy', 'pydantic') if name in sys.modules])\n"
        "before = set(sys.modules)\n"
        "print(jaxcomp.evaluation.metrics.__name__, jaxcomp.quantizers.kmeans.__name__)\n"
        "print(jaxcomp.compress.__module__, jaxcomp.compress is jaxcomp.compressed.compress)\n"
        "new = set(sys.modules) - before\n"
        "print([name for name in new if name.startswith('jaxcomp.experiments.')])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    told = done.stdout.splitlines()
    assert told[0] == "[]"
    assert told[-4:] == [
        "[]", "jaxcomp.evaluation.metrics kmeans", "jaxcomp.compressed.compress True", "[]",
    ]  # fmt: skip


def test_public_names():
    assert set(jaxcomp.__all__) == {
        "CompressedTree",
        "FormatError",
        "__version__",
        "adapters",
        "bits_back",
        "bounds",
        "certificates",
        "certify",
        "checkpoints",
        "coding",
        "compress",
        "compressed",
        "curvature",
        "curve",
        "decoder",
        "evaluation",
        "experiments",
        "inspect",
        "linear_regression",
        "load",
        "quantizers",
        "rate_distortion",
        "training",
        "trees",
        "types",
    }
    assert set(jaxcomp.__all__) <= set(dir(jaxcomp))


@pytest.mark.parametrize("name", [name for name in jaxcomp.__all__ if name != "__version__"])
def test_public_names_exist_and_are_documented(name):
    value = getattr(jaxcomp, name)
    assert inspect.getdoc(value)
    for inner in getattr(value, "__all__", ()):
        member = getattr(value, inner)
        if inspect.isfunction(member) or inspect.isclass(member):
            assert inspect.getdoc(member), f"jaxcomp.{name}.{inner} has no docstring"


def test_methods_of_the_compressed_tree_are_documented():
    public = [name for name in vars(jaxcomp.CompressedTree) if not name.startswith("_")]
    assert {"params", "report", "size_bits", "ratio", "codes", "codebook"} <= set(public)
    for name in public:
        assert inspect.getdoc(getattr(jaxcomp.CompressedTree, name)), name


def test_unknown_name():
    with pytest.raises(AttributeError, match="module 'jaxcomp' has no attribute 'quantise'"):
        jaxcomp.quantise  # noqa: B018


def test_version_and_types_are_those_of_the_project():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in pyproject["project"]["dynamic"]
    assert ROOT / pyproject["tool"]["hatch"]["version"]["path"] == Path(jaxcomp.__file__)
    assert version("jaxcomp") == jaxcomp.__version__
    assert (Path(jaxcomp.__file__).parent / "py.typed").exists()
