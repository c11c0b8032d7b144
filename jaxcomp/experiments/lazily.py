"""Public names of a package that are imported when they are first used.

The settings of an experiment are read by `--help`, which has no time for JAX, pandas and pictures.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def members(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package.

    Args:
        package: its `__name__`.
        modules: public name -> module of the package that defines it. No module may be called as
            one of the names: Python would put it in the place of what it defines.
    """

    def member(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)

    return member
