"""The README as a stranger uses it: its code runs as printed, its commands and files exist."""

import ast
import functools
import inspect
import re
import shlex
from pathlib import Path

import pytest
import typer

from jaxcomp.cli import app
from jaxcomp.experiments import sweep
from jaxcomp.experiments.sweep import limits

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FINDINGS = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
COMMAND = typer.main.get_command(app)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def table_code() -> list[str]:
    """What the table of wishes says to write."""
    rows = re.findall(r"^\| (.+) \| (.+) \|$", README, flags=re.MULTILINE)
    return [code for _, cell in rows[1:] for code in re.findall(r"`([^`]+)`", cell)]


def commands() -> list[str]:
    """Every call of the command, in blocks and in the table."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    found = [line.split("#")[0].strip() for line in lines if "jaxcomp " in line.split("#")[0]]
    return found + [code for code in table_code() if code.startswith("jaxcomp ")]


@pytest.fixture(scope="module")
def namespace(tmp_path_factory):
    """Names after all Python blocks, run one after the other in an empty folder.

    A sweep over what other tests sweep over, whose programs it shares; the default grid is slow.
    """
    small = sweep.Grid(num_clusters=(2, 4, 16), diameter_penalty=0.05, num_bins=512)
    folder = tmp_path_factory.mktemp("readme")
    # A network that is trained for fewer steps is compressed in the same way.
    names = {"__name__": "__main__", "range": lambda number: range(min(number, 5))}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sweep, "evaluate", functools.partial(sweep.evaluate, grid=small))
        patch.setattr(limits, "_NUM_SLOPES", 5)
        patch.setattr(limits, "_GAP_BITS", 0.2)
        for number, code in enumerate(blocks("python"), start=1):
            exec(compile(code, f"README.md, block {number}", "exec"), names)
    return folder, names


def test_code_runs_as_printed(namespace):
    folder, names = namespace
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "layers/0/kernel" in str(names["tree"].report())
    assert len(repr(names["result"]).splitlines()) == 5
    assert names["result"].manifest["status"] == "finished"
    # The patterns name layers that are there: 8 clusters in the first, 16 in the second.
    clusters = {len(names["tree"].codebook(path)) for path in names["tree"].paths}
    assert clusters == {8, 16}


@pytest.mark.slow
def test_the_sweep_runs_with_the_default_grid(namespace):
    names = namespace[1]
    networks = sweep.Networks(names["predict_fn"], [names["params"]])
    data = sweep.Data(names["train"], names["validation"], names["test"])
    assert len(repr(sweep.evaluate(networks, data)).splitlines()) == 5


def wishes() -> list[str]:
    return [code for code in table_code() if not code.startswith("jaxcomp ")]


def test_wishes_name_what_is_there(namespace):
    """Every function and method that a wish calls takes the arguments that it is called with."""
    _, names = namespace
    assert len(wishes()) == 11
    for code in wishes():
        tree = ast.parse(code, mode="eval")
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                assert node.id in names or code.startswith("["), code
            if isinstance(node, ast.Call) and not any(
                isinstance(part, ast.Call) for part in ast.walk(node.func)
            ):
                function = eval(compile(ast.Expression(node.func), code, "eval"), names)
                keywords = {keyword.arg: None for keyword in node.keywords}
                inspect.signature(function).bind(*node.args, **keywords)


@pytest.mark.slow
def test_every_wish_is_granted_as_printed(namespace, monkeypatch):
    folder, names = namespace
    monkeypatch.chdir(folder)
    for code in wishes():
        assert eval(compile(code, f"README.md: {code}", "eval"), names) is not None, code


@pytest.mark.parametrize("line", commands())
def test_commands_and_their_options_exist(line):
    program, name, *arguments = shlex.split(line)
    assert Path(program).name == "jaxcomp"
    command = COMMAND.commands[name]  # pyright: ignore
    if "--help" in arguments:
        return
    # Names, types and choices are checked; nothing runs.
    with command.make_context(name, arguments) as context:
        assert context.args == []


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"`?make ([a-z]+)", README)
    assert {"sweep", "test", "docs"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_it_fits_two_screens():
    assert len(README.splitlines()) <= 130
    assert max(len(code.splitlines()) for code in blocks("python")) <= 20


@pytest.mark.parametrize(("text", "folder"), [(README, ROOT), (FINDINGS, ROOT / "docs")])
def test_local_links_and_pictures_exist(text, folder):
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if not target.startswith(("http", "#")):
            assert (folder / target).exists(), target


def test_links_into_a_page_have_their_heading():
    headings = re.findall(r"^#+ (.+)$", FINDINGS, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for target in re.findall(r"\]\(#([^)]+)\)", FINDINGS):
        assert target in anchors


def test_pictures_are_small():
    for picture in (ROOT / "docs").glob("*.png"):
        assert picture.stat().st_size < 200_000, picture.name
