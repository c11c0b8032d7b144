"""Write the API reference: HTML pages made from the docstrings of every public name.

    python docs/reference.py FOLDER [MODULE ...]

Without modules: all of jaxcomp. Open FOLDER/index.html, or FOLDER/jaxcomp/quantizers.html.
"""

import sys
from pathlib import Path

import pdoc


def write_reference(folder: Path, *modules: str) -> None:
    # Without the search box, whose index another program (node) would build.
    pdoc.render.configure(docformat="google", show_source=False, search=False)
    pdoc.pdoc(*(modules or ("jaxcomp",)), output_directory=folder)


if __name__ == "__main__":
    write_reference(Path(sys.argv[1]), *sys.argv[2:])
