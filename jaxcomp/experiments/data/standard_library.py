"""Text that every machine with Python has: the docstrings of the standard library."""

import ast
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path


def docstrings() -> Iterator[tuple[str, str]]:
    """Yield the name of a module and one of its docstrings, white space as single spaces."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                text = " ".join((ast.get_docstring(node) or "").split())
                if text:
                    yield path.stem, text


def sentences(count: int) -> list[str]:
    """Return first sentences of docstrings, evenly spread over the standard library.

    Raises:
        ValueError: if there are fewer.
    """
    found = set()
    for _, text in docstrings():
        sentence = text.split(". ")[0]
        if 6 <= len(sentence.split()) <= 30 and re.match("[A-Z][a-z]", sentence):
            found.add(sentence)
    ordered = sorted(found)
    if len(ordered) < count:
        raise ValueError(f"asked for {count} sentences, but the docstrings have {len(ordered)}.")
    return [ordered[place * len(ordered) // count] for place in range(count)]
