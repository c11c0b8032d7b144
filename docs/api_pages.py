"""Pages of the reference: for every room one, with an entry for every public name.

    python docs/api_pages.py

writes them to docs/api, as `make docs` does before it builds. What is public is what a room lists
in `__all__`; a room without a list shows what it defines. A name that several rooms list has its
entry in the first of them.
"""

import dataclasses
import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

# In the order of a reader: what most users call comes first.
ROOMS = (
    "jaxcomp",
    "jaxcomp.compressed",
    "jaxcomp.quantizers",
    "jaxcomp.quantizers.methods",
    "jaxcomp.curvature",
    "jaxcomp.adapters",
    "jaxcomp.checkpoints",
    "jaxcomp.decoder",
    "jaxcomp.certificates",
    "jaxcomp.bounds",
    "jaxcomp.evaluation",
    "jaxcomp.evaluation.calibration",
    "jaxcomp.evaluation.metrics",
    "jaxcomp.evaluation.statistics",
    "jaxcomp.rate_distortion",
    "jaxcomp.coding",
    "jaxcomp.bits_back",
    "jaxcomp.training",
    "jaxcomp.linear_regression",
    "jaxcomp.experiments",
    "jaxcomp.experiments.sweep",
    "jaxcomp.experiments.regularization",
    "jaxcomp.experiments.linear_regression",
    "jaxcomp.experiments.data",
    "jaxcomp.experiments.networks",
    "jaxcomp.trees",
    "jaxcomp.trees.paths",
    "jaxcomp.storage",
    "jaxcomp.progress",
    "jaxcomp.types",
)


class Entry(NamedTuple):
    """A public name: where it has its entry, and the object itself."""

    room: str
    name: str
    value: Any


def public_names(room: str) -> list[str]:
    """Return what a room offers: its `__all__`, or what it defines, in the order of the file."""
    module = importlib.import_module(room)
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return [name for name in listed if not name.startswith("__")]
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == room
    ] or _documented_constants(module)


def _documented_constants(module: ModuleType) -> list[str]:
    """Return names that a text of their own follows, as type aliases have."""
    source = inspect.getsource(module)
    return re.findall(r'^(\w+)(?:: \w+)? = .*\n"""', source, flags=re.MULTILINE)


def entries() -> list[Entry]:
    """Return every public name that is no module, once."""
    found: list[Entry] = []
    seen: set[int] = set()
    for room in ROOMS:
        module = importlib.import_module(room)
        for name in public_names(room):
            value = getattr(module, name)
            is_object = inspect.isclass(value) or inspect.isroutine(value)
            if inspect.ismodule(value) or (is_object and id(value) in seen):
                continue
            seen.add(id(value))
            found.append(Entry(room, name, value))
    return found


def page(room: str, here: list[Entry]) -> str:
    """Return the page of a room: a table of its names, then an entry for each of them."""
    module = importlib.import_module(room)
    listed = [name for name in public_names(room)]
    elsewhere = [name for name in listed if name not in {entry.name for entry in here}]
    modules = [name for name in elsewhere if inspect.ismodule(getattr(module, name))]
    lines = [room, "=" * len(room), "", f".. automodule:: {room}", "   :no-members:", ""]
    lines += [f".. currentmodule:: {room}", ""]
    if here:
        lines += [".. autosummary::", "   :nosignatures:", ""]
        lines += [f"   {entry.name}" for entry in here] + [""]
    others = [
        f":py:obj:`{name} <{_address(getattr(module, name))}>`"
        for name in elsewhere
        if name not in modules
    ]
    if others:
        lines += ["Also here: " + ", ".join(others) + ".", ""]
    for entry in here:
        lines += _entry(entry)
    return "\n".join(lines) + "\n"


def _entry(entry: Entry) -> list[str]:
    name, value = entry.name, entry.value
    if inspect.isclass(value):
        lines = [f".. autoclass:: {name}", "   :members:"]
    elif callable(value):
        lines = [f".. autofunction:: {name}"]
    else:
        lines = [f".. autodata:: {name}", "   :no-value:"]
    return [*lines, ""]


def _address(value: Any) -> str:
    for entry in entries():
        if entry.value is value:
            return f"{entry.room}.{entry.name}"
    return ""


def is_left_out(
    app: Any, what: str, name: str, value: Any, would_skip: bool, options: Any
) -> bool | None:
    """Leave out fields of named tuples, which `Attributes` describes, and what stands elsewhere."""
    del app, what, name, options
    if type(value).__name__ == "_tuplegetter" or dataclasses.is_dataclass(value) and would_skip:
        return True
    return None


def mend(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Protect what reStructuredText would take for markup in a docstring."""
    del app, what, name, value, options


def write(folder: Path) -> None:
    """Write all pages; those that have not changed keep their date, so that builds are quick."""
    folder.mkdir(exist_ok=True)
    found = entries()
    pages = {
        f"{room}.rst": page(room, [entry for entry in found if entry.room == room])
        for room in ROOMS
    }
    for path in folder.iterdir():
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(__file__).parent / "api")
