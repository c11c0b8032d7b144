"""The documentation without building it: pages are reached, links lead somewhere, code runs."""

import ast
import contextlib
import inspect
import io
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from command_line import invoke

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    [
        *DOCS.rglob("*.md"),
        *(ROOT / "benchmarks").glob("*.md"),
        *ROOT.glob("*.md"),
        *(ROOT / "notebooks").glob("*.ipynb"),
    ]
)
RUN = [DOCS / "examples.md", *sorted((DOCS / "howto").glob("*.md"))]


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def text_of(page):
    if page.suffix == ".md":
        return page.read_text(encoding="utf-8")
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join(
        "".join(c["source"])
        if c["cell_type"] == "markdown"
        else f"```python\n{''.join(c['source'])}\n```"
        for c in cells
    )


def blocks(page):
    """Pairs of language and text of all blocks, in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text_of(page), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def api():
    sys.path.insert(0, str(DOCS))
    import api_pages

    yield api_pages
    sys.path.remove(str(DOCS))


def toctree(page):
    """The pages that the toctrees of a page name."""
    found = set()
    for block in re.findall(
        r"^```\{toctree\}\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL
    ):
        for line in block.splitlines():
            line = re.sub(r".*<(.+)>$", r"\1", line.strip())
            if line and not line.startswith(":"):
                names = [p for suffix in (".md", ".ipynb") for p in page.parent.glob(line + suffix)]
                assert names or line.startswith("api/"), f"{page.name}: {line}"
                found |= {path.resolve() for path in names}
    return found


def test_every_page_is_in_one_toctree():
    places = {page: [other for other in PAGES if page in toctree(other)] for page in PAGES}
    start = DOCS / "index.md"
    assert not places.pop(start)
    for page, found in places.items():
        assert len(found) == 1, f"{name_of(page)} stands in {len(found)} toctrees"
    reached, waiting = set(), [start]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        waiting += toctree(page) - reached
    assert reached == set(PAGES)


def anchors(page):
    headings = re.findall(r"^#+ (.+)$", text_of(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_pages_and_headings(page):
    text = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
        if target.startswith("http"):
            continue
        path, _, heading = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        if heading and found.suffix == ".md":
            assert heading in anchors(found), target


def test_settings_of_the_site():
    settings = runpy.run_path(str(DOCS / "conf.py"))
    assert settings["root_doc"] == "docs/index"
    assert settings["nb_execution_mode"] == "off"
    for name in settings["html_static_path"] + settings["html_extra_path"]:
        assert (DOCS / name).is_dir()
    for name in settings["html_css_files"]:
        assert (DOCS / "static" / name).is_file()


def test_every_public_name_has_an_entry(api):
    for room in api.rooms():
        page = api.page(room)
        for entry in api.entries():
            if entry.room == room:
                assert re.search(rf"^\.\. auto\w+:: {entry.name}$", page, flags=re.MULTILINE)
        names = {name for entry in api.entries() for name in [entry.name]}
        for name in api.public_names(room):
            assert name in names or name in page, f"{room}.{name}"
    for entry in api.entries():
        if inspect.isclass(entry.value) or inspect.isroutine(entry.value):
            assert inspect.getdoc(entry.value), f"{entry.room}.{entry.name}"
    names = {entry.name for entry in api.entries()}
    assert {"compress", "KMeans", "certify", "gauss_newton_diagonal", "SweepResult"} <= names


class _Docstring:
    source = "Stars (*shape), |w| and `w*` here, a_ there.\n\n* a point\n\n```python\nx = 1\n```"


def test_docstrings_become_restructuredtext(api):
    lines = _Docstring.source.split("\n")
    api.mend(None, "function", "name", None, None, lines)
    assert lines[0] == r"Stars (\*shape), \|w\| and `w*` here, a\_ there."
    assert lines[2] == "* a point"
    assert lines[4:7] == [".. code-block:: python", "", "   x = 1"]
    lines = [':vartype x: Float[Array, "*shape"]']
    api.mend_types(None, "class", "name", None, None, lines)
    assert lines == [r':vartype x: Float[Array, "\*shape"]']


def test_examples_of_public_names(api):
    """Every public function is used in a page that runs."""
    used = set()
    for page in PAGES:
        for language, code in blocks(page):
            if language == "python":
                for node in ast.walk(ast.parse(re.sub(r"^[%!].*$", "", code, flags=re.MULTILINE))):
                    if isinstance(node, ast.Name | ast.Attribute | ast.alias):
                        used.add(
                            getattr(node, "id", None) or getattr(node, "attr", None) or node.name
                        )
    without = sorted(
        f"{entry.room}.{entry.name}"
        for entry in api.entries()
        if callable(entry.value) and not inspect.isclass(entry.value) and entry.name not in used
    )
    assert not without, "\n".join(without)


def output_of(line):
    program, *arguments = shlex.split(line)
    assert program == "jaxcomp"
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_code_of_a_page_runs(page, tmp_path, monkeypatch):
    if "torch" in page.stem:
        pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for number, (language, text) in enumerate(blocks(page)):
        if language == "python":
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(text, f"{page.name}, block {number}", "exec"), names)
        elif language == "console":
            first, *rest = re.split(r"^\$ ", text, flags=re.MULTILINE)
            assert not first
            for call in rest:
                line, _, printed = call.partition("\n")
                # The first line says what was made; numbers behind it may depend on versions.
                assert output_of(line).startswith(printed.partition("\n")[0])
