"""How Sphinx builds the documentation (`make docs`).

The source is the whole repository and not this folder alone: pages stay where they are, and a link
from one to another is the same on the site and where they are read as files.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import api_pages  # noqa: E402 - beside this file

import jaxcomp  # noqa: E402

project = "jaxcomp"
release = version = jaxcomp.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
root_doc = "docs/index"
include_patterns = ["docs/**.md", "docs/api/*.rst", "notebooks/*.ipynb", "benchmarks/*.md", "*.md"]
exclude_patterns = [".*", "build", "dist", "runs", "shared", "jaxcomp", "tests"]
suppress_warnings = ["mystnb.unknown_mime_type"]

# Pages. Notebooks are kept without outputs (tests/test_notebooks.py); `make docs-executed` runs
# them, so that their pages show what they print and draw.
myst_enable_extensions = ["attrs_block", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "force" if os.environ.get("JAXCOMP_EXECUTE_NOTEBOOKS") else "off"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_merge_streams = True
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True

# The reference. A name in single backticks is a link where it is one of the package's.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"
autosummary_generate = False

html_theme = "sphinx_book_theme"
html_title = "jaxcomp"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_extra_path = ["site"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_theme_options = {
    "show_toc_level": 2,
    "home_page_in_toc": True,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "footer_content_items": [],
}


def setup(app: "Sphinx") -> None:
    """Write the pages of the reference before Sphinx looks for pages, and mend docstrings."""
    app.connect("config-inited", lambda *_: api_pages.write(ROOT / "docs" / "api"))
    app.connect("autodoc-skip-member", api_pages.is_left_out)
    app.connect("autodoc-process-docstring", api_pages.mend, priority=400)
    # After napoleon, which writes down the types of fields.
    app.connect("autodoc-process-docstring", api_pages.mend_types, priority=600)
