"""Badges and project URLs come from one setting, and from nowhere else."""

import json
import runpy
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINKS = runpy.run_path(str(ROOT / "docs" / "links.py"))
ADDRESS = "https://github.com/somebody/jaxcomp"


@pytest.fixture
def notebooks(tmp_path):
    return Path(shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks"))


def first_cells(folder):
    return {
        path.name: "".join(json.loads(path.read_text())["cells"][0]["source"])
        for path in folder.glob("*.ipynb")
    }


def test_notebooks_are_up_to_date():
    copied = first_cells(ROOT / "notebooks")
    for name, text in copied.items():
        badge = LINKS["badge"](LINKS["repository"](), name)
        assert text.count("Open in Colab") == (badge is not None)
        assert badge is None or badge in text


def test_badges_are_written_once_and_taken_away_again(notebooks):
    before = {path.name: path.read_text() for path in notebooks.glob("*.ipynb")}
    assert LINKS["write_badges"]("", notebooks) == []
    assert len(LINKS["write_badges"](ADDRESS, notebooks)) == len(before)
    assert LINKS["write_badges"](ADDRESS, notebooks) == []
    for name, text in first_cells(notebooks).items():
        place = f"colab.research.google.com/github/somebody/jaxcomp/blob/main/notebooks/{name})"
        assert text.endswith(place)
    # Colab opens notebooks of GitHub only.
    LINKS["write_badges"]("https://example.org/jaxcomp", notebooks)
    assert {path.name: path.read_text() for path in notebooks.glob("*.ipynb")} == before


def test_project_urls():
    assert LINKS["project_urls"]("") == {}
    assert LINKS["project_urls"](ADDRESS)["Issues"] == f"{ADDRESS}/issues"
