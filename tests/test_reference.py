"""The API reference is made from the docstrings and has an entry for every public name."""

import runpy
from pathlib import Path

from jaxcomp import quantizers

ROOT = Path(__file__).parents[1]


def test_every_public_name_has_an_entry(tmp_path):
    write_reference = runpy.run_path(str(ROOT / "docs" / "reference.py"))["write_reference"]
    write_reference(tmp_path, "jaxcomp.quantizers")
    page = (tmp_path / "jaxcomp" / "quantizers.html").read_text()
    for name in quantizers.__all__:
        assert f'<section id="{name}">' in page, name
    # Sections of docstrings are laid out, not run together.
    assert "Arguments:" in page
    assert "Raises:" in page
