"""Pages of the reference: for every room one, with an entry for every public name.

    python docs/api_pages.py

writes them to docs/api, as `make docs` does before it builds. What is public is what a room lists
in `__all__`; a room without a list shows what it defines. A name that several rooms list has its
entry in the first of them.
"""

import functools
import importlib
import inspect
import pkgutil
import re
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jaxcomp

# Rooms for users of the command alone, or for other rooms.
_INTERNAL = ("jaxcomp.cli", "jaxcomp.experiments.sweep.pictures")
# Modules that are public though they list no names.
_WITHOUT_LIST = (
    "jaxcomp.adapters",
    "jaxcomp.evaluation.calibration",
    "jaxcomp.evaluation.metrics",
    "jaxcomp.evaluation.statistics",
    "jaxcomp.trees.paths",
    "jaxcomp.types",
)


# Stars and bars that do not enclose a word: `(*shape) sums of |w|`.
_STRAY = re.compile(r"(?<!^)\*+(?!\w[^*\n]*\w\*)(?<!\w\*)|\||(?<=\w)_(?=\W)", re.MULTILINE)
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Entry(NamedTuple):
    """A public name: where it has its entry, and the object itself."""

    room: str
    name: str
    value: Any


@functools.cache
def rooms() -> tuple[str, ...]:
    """Return the names of all rooms, `jaxcomp` first: packages that list their public names."""
    found = ["jaxcomp", "jaxcomp.progress", *_WITHOUT_LIST]
    for part in pkgutil.walk_packages(jaxcomp.__path__, "jaxcomp."):
        is_room = part.ispkg and part.name not in _INTERNAL
        if is_room and hasattr(importlib.import_module(part.name), "__all__"):
            found.append(part.name)
    return tuple(sorted(found))


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


@functools.cache
def entries() -> tuple[Entry, ...]:
    """Return every public name that is no module, once."""
    found: list[Entry] = []
    seen: set[int] = set()
    for room in rooms():
        module = importlib.import_module(room)
        for name in public_names(room):
            value = getattr(module, name)
            is_object = inspect.isclass(value) or inspect.isroutine(value)
            if inspect.ismodule(value) or (is_object and id(value) in seen):
                continue
            seen.add(id(value))
            found.append(Entry(room, name, value))
    return tuple(found)


def page(room: str) -> str:
    """Return the page of a room: a table of its names, then an entry for each of them."""
    module = importlib.import_module(room)
    here = [entry for entry in entries() if entry.room == room]
    title = room.removeprefix("jaxcomp.")
    lines = [title, "=" * len(title), "", f".. automodule:: {room}", "   :no-members:", ""]
    described = [entry.name for entry in here if callable(entry.value)]
    if described:
        lines += [".. autosummary::", "   :nosignatures:", ""]
        lines += [f"   {name}" for name in described] + [""]
    places = {id(entry.value): entry for entry in entries()}
    others = []
    for name in public_names(room):
        value = getattr(module, name)
        if inspect.ismodule(value):
            others.append(f":py:mod:`{value.__name__}`")
        elif (entry := places[id(value)]).room != room:
            others.append(f":py:obj:`~{entry.room}.{entry.name}`")
    if others:
        lines += ["See also " + ", ".join(others) + ".", ""]
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


def is_left_out(
    app: Any, what: str, name: str, value: Any, would_skip: bool, options: Any
) -> bool | None:
    """Leave out fields of named tuples, which `Attributes` describes, and what stands elsewhere."""
    del app, what, name, would_skip, options
    return True if type(value).__name__ == "_tuplegetter" else None


def mend(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Protect what reStructuredText would take for markup in a docstring."""
    del app, name, options
    text = "\n".join(lines)
    if what == "data" and inspect.cleandoc(type(value).__doc__ or "") == text.strip():
        text = ""  # of the type, and not of this value
    text = _FENCE.sub(_as_block, text)
    parts = re.split(r"(`+[^`]*`+)", text)
    parts[::2] = [_STRAY.sub(r"\\\g<0>", part) for part in parts[::2]]
    lines[:] = "".join(parts).split("\n")


def mend_types(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Protect stars in types of fields, such as those of `Float[Array, "*shape"]`."""
    del app, what, name, value, options
    for place, line in enumerate(lines):
        if line.lstrip().startswith(":vartype"):
            lines[place] = line.replace("*", r"\*")


def _as_block(fence: re.Match[str]) -> str:
    language, code = fence.groups()
    return f".. code-block:: {language}\n\n{textwrap.indent(code, '   ')}"


def write(folder: Path) -> None:
    """Write all pages; those that have not changed keep their date, so that builds are quick."""
    folder.mkdir(exist_ok=True)
    pages = {f"{room}.rst": page(room) for room in rooms()}
    for path in folder.iterdir():
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(__file__).parent / "api")
