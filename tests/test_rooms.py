"""The house: every room imports only rooms that come before it, and the library no experiment."""

import ast
from pathlib import Path

import jaxcomp

# In dependency order: arithmetic first, the command last.
ROOMS = (
    "decoder",
    "types",
    "storage",
    "checkpoints",
    "numerics",
    "trees",
    "progress",
    "long_call",
    "coding",
    "evaluation",
    "rate_distortion",
    "bounds",
    "bits_back",
    "adapters",
    "curvature",
    "quantizers",
    "training",
    "compressed",
    "certificates",
    "linear_regression",
    "experiments",
    "doctor",
    "cli",
    "__main__",
)
PACKAGE = Path(jaxcomp.__file__).parent


def imported(file: Path) -> set[str]:
    """The rooms that a module imports, anywhere in it."""
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "jaxcomp":
            rooms |= {alias.name for alias in node.names} - {"__version__"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxcomp."):
            rooms.add(node.module.split(".")[1])
    return rooms


def test_every_module_is_in_a_room():
    names = {
        path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")
    }
    assert names == {*ROOMS, "__init__"}


def test_rooms_import_only_rooms_before_them():
    order = {room: place for place, room in enumerate(ROOMS)}
    backwards = [
        f"{path.relative_to(PACKAGE)} imports {other}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if (room := path.relative_to(PACKAGE).parts[0].removesuffix(".py")) != "__init__"
        for other in sorted(imported(path))
        if order[other] > order[room]
    ]
    assert not backwards
