"""Every notebook runs from top to bottom, with no names but its own, wherever it is opened.

One process runs them all: its start and its imports take as long as some of them.
"""

import ast
import copy
import functools
import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from textwrap import dedent

import nbformat
import pytest
from encoder_problem import write_small_encoder
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
# Half a minute each: `make notebooks` runs them. What the quick start does, the README does.
RUNS = [pytest.param(path, id=path.stem, marks=pytest.mark.slow) for path in NOTEBOOKS]


@functools.cache
def read(path):
    return nbformat.read(path, as_version=4)


def sources(path, kind="code"):
    return [cell.source for cell in read(path).cells if cell.cell_type == kind]


def test_there_are_notebooks():
    assert {"quickstart", "theory"} < {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_kept_as_all_are(path):
    """No results, which could be out of date; one way to install, one look, one way to go on."""
    assert all(not cell.get("outputs") for cell in read(path).cells), "commit it without outputs"
    assert sources(path)[0] == sources(NOTEBOOKS[0])[0]
    assert not any("pyplot" in source for source in sources(path))
    *_, last = read(path).cells
    assert last.cell_type == "markdown"
    assert last.source.startswith("## Where to go next\n")
    links = re.findall(r"\]\(([^)#]+)", "\n".join(sources(path, "markdown")))
    files = [link for link in links if "://" not in link]
    assert len(files) >= 2
    assert [link for link in files if not (path.parent / link).is_file()] == []


def test_what_is_missing_is_said_in_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for source, told in (
        ("", "jaxcomp is not installed: set SOURCE above, or JAXCOMP_SOURCE in the environment, "),
        (str(tmp_path / "x.whl"), f"there is no {tmp_path / 'x.whl'}: set SOURCE above, or "),
    ):
        monkeypatch.setenv("JAXCOMP_SOURCE", source)
        with pytest.raises(Exception, match="run this cell again") as caught:
            exec(sources(NOTEBOOKS[0])[0], {})
        # What IPython shows in place of a traceback.
        (sentence,) = caught.value._render_traceback_()
        assert sentence.startswith(told)
        assert "\n" not in sentence


# A package of the name, made without any other: what installs it is tested, not what it does.
STAND_IN = {
    "pyproject.toml": """
        [build-system]
        requires = []
        build-backend = "build_it"
        backend-path = ["."]
        """,
    "build_it.py": """
        import zipfile

        NAME = "jaxcomp-0.2.0-py3-none-any.whl"

        def build_wheel(folder, settings=None, metadata=None):
            with zipfile.ZipFile(f"{folder}/{NAME}", "w") as wheel:
                wheel.write("jaxcomp.py")
                info = "jaxcomp-0.2.0.dist-info"
                lines = ["Metadata-Version: 2.1", "Name: jaxcomp", "Version: 0.2.0"]
                lines += [f"Provides-Extra: {name}" for name in ("sweep", "coding")]
                lines += ["Requires-Dist: jax>=0.10"]
                wheel.writestr(f"{info}/METADATA", "\\n".join(lines) + "\\n")
                lines = ["Wheel-Version: 1.0", "Root-Is-Purelib: true", "Tag: py3-none-any"]
                wheel.writestr(f"{info}/WHEEL", "\\n".join(lines) + "\\n")
                wheel.writestr(f"{info}/RECORD", "")
            return NAME
        """,
    "jaxcomp.py": "",
}


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The stand-in as a folder, an address, a zip, an sdist and a wheel."""
    folder = tmp_path_factory.mktemp("archives")
    source = folder / "jaxcomp-0.2.0"
    source.mkdir()
    for name, text in STAND_IN.items():
        (source / name).write_text(dedent(text))
    (source / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: jaxcomp\nVersion: 0.2.0\n")
    build = "import build_it; build_it.build_wheel('..')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True)
    with zipfile.ZipFile(folder / "jaxcomp-main.zip", "w") as archive:
        for name in STAND_IN:
            archive.write(source / name, f"jaxcomp-main/{name}")
    with tarfile.open(folder / "jaxcomp-0.2.0.tar.gz", "w:gz") as archive:
        archive.add(source, source.name)
    (wheel,) = folder.glob("*.whl")
    return {
        "folder": source,
        "zip": folder / "jaxcomp-main.zip",
        "sdist": folder / "jaxcomp-0.2.0.tar.gz",
        "wheel": wheel,
        "address": wheel.as_uri(),
    }


@pytest.mark.slow
def test_first_cell_installs_from_any_source_and_leaves_jax_alone(tmp_path, archives):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    (packages,) = (tmp_path / "venv").glob("lib/*/site-packages")

    def have_jax(version):
        for old in packages.glob("jax*-*.dist-info"):
            (old / "METADATA").unlink()
            old.rmdir()
        for name in ("jax", "jaxlib"):
            info = packages / f"{name}-{version}.dist-info"
            info.mkdir()
            told = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            (info / "METADATA").write_text(told)

    def run(source):
        environment = {"PATH": os.environ["PATH"], "PIP_NO_INDEX": "1"}
        return subprocess.run(
            [python, "-c", sources(NOTEBOOKS[0])[0]],
            env=environment | {"JAXCOMP_SOURCE": str(source), "HOME": str(tmp_path)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    have_jax("0.10.1")
    for kind, source in archives.items():
        done = run(source)
        assert done.returncode == 0, f"{kind}: {done.stderr}"
        assert (packages / "jaxcomp.py").is_file(), kind
        uninstall = [python, "-m", "pip", "uninstall", "-q", "-y", "jaxcomp"]
        subprocess.run(uninstall, check=True)
    have_jax("0.9.0")
    done = run(archives["wheel"])
    *_, sentence = done.stderr.splitlines()
    assert "pip cannot install" in sentence
    assert " beside jax==0.9.0, which stays: " in sentence
    assert not (packages / "jaxcomp.py").exists()
    assert len(list(packages.glob("jax-0.9.0.dist-info"))) == 1


# Fine limits of sweeps, which no notebook shows, take a second for each network.
COARSE = """
from jaxcomp.experiments.sweep import limits
limits._NUM_SLOPES, limits._GAP_BITS = 5, 0.2
"""


@pytest.fixture(scope="module")
def client(programs_of_processes):
    empty = nbformat.v4.new_notebook()
    start = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(COARSE)])
    client = NotebookClient(start, timeout=300, kernel_name="python3")
    client.execute(cleanup_kc=False, env=os.environ | programs_of_processes)
    yield client
    client.nb = empty
    client.execute()  # and ends the kernel


def fresh_start(folder):
    """What a kernel runs before a notebook: no names, no figures, a folder of its own."""
    return nbformat.v4.new_code_cell(
        "%reset -f\n"
        "import os\n"
        "import matplotlib.pyplot as plt\n"
        "plt.close('all')\n"
        "plt.rcdefaults()\n"
        "%matplotlib inline\n"
        f"os.chdir({str(folder)!r})\n"
        f"os.environ['JAXCOMP_CACHE_DIR'] = {str(folder / 'cache')!r}\n"
        f"os.environ['JAXCOMP_MINILM'] = {str(folder)!r}\n"
        "del os, plt\n"
    )


@pytest.mark.parametrize("path", RUNS)
def test_notebook_runs(path, tmp_path, client):
    # Time is spent on the curve of each matrix, whatever its size: one is enough.
    write_small_encoder(tmp_path, num_layers=0)
    notebook = copy.deepcopy(read(path))
    notebook.cells.insert(0, fresh_start(tmp_path))
    client.nb = notebook
    client.execute(cleanup_kc=False)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_uses_public_names_only(path):
    source = "\n".join(sources(path)[1:])
    assert "._" not in source
    assert "def quantize" not in source
    for node in ast.walk(ast.parse(re.sub(r"^[%!].*$", "", source, flags=re.MULTILINE))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxcomp"):
            exec(compile(ast.Module([node], []), str(path), "exec"), {})
