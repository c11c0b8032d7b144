"""Settings of a command from a file: TOML, or the manifest that a run left behind."""

import json
import tomllib
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from jaxcomp.experiments.kinds import KINDS

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def read(file: Path, kinds: Mapping[str, Any], command: str | None) -> dict[str, Any]:
    """Return what a file says, in the types that the settings have.

    Args:
        file: TOML, or JSON if its name ends so: the manifest of a run, whose settings are taken, or
            an object of settings.
        kinds: what may stand in it: the type of every setting, by name.
        command: that it is for.

    Raises:
        ValueError: one sentence, if there is no such file, it is damaged, is the manifest of a run
            of another kind, or has an unknown name or a value of another type.
    """
    told = _contents(file)
    if isinstance(told.get("settings"), dict):
        kind = KINDS.get(str(told.get("kind")))
        if kind is not None and kind.command != command:
            raise ValueError(
                f"{file} tells of a {told['kind']}; give it to jaxcomp {kind.command}, and to "
                f"jaxcomp {command} one of its own."
            )
        told = told["settings"]
    values = {}
    for name, value in told.items():
        if name not in kinds:
            raise ValueError(
                f"{file} has the key {name!r}, which jaxcomp {command} does not know; allowed are "
                f"{', '.join(kinds)}."
            )
        try:
            values[name] = _converted(value, kinds[name])
        except TypeError as error:
            raise ValueError(f"{name} in {file} must be {error}, got {value!r}.") from None
    return values


def _contents(file: Path) -> dict[str, Any]:
    is_json = file.suffix == ".json"
    try:
        text = file.read_text(encoding="utf-8")
        told = json.loads(text) if is_json else tomllib.loads(text)
    except OSError as error:
        raise ValueError(
            f"{file} cannot be read ({error.strerror}); name a TOML file or the manifest.json of a "
            "run."
        ) from error
    except ValueError as error:
        raise ValueError(f"{file} is no {'JSON' if is_json else 'TOML'}: {error}.") from error
    if not isinstance(told, dict):
        raise ValueError(f"{file} holds no settings; name the manifest.json of a run, or TOML.")
    return told


def _converted(value: Any, kind: Any) -> Any:
    """Return a value in the type of a setting; if it has none, a TypeError says what it must be."""
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        first, *others = (own for own in get_args(kind) if own is not NoneType)
        assert not others
        return None if value is None else _converted(value, first)
    if origin is tuple:
        inner = get_args(kind)[0]
        try:
            return tuple(
                _converted(own, inner) for own in (value if isinstance(value, list) else [value])
            )
        except TypeError as error:
            raise TypeError(f"{error}, or a list of such") from None
    if origin is Literal or issubclass(kind, Enum):
        names = get_args(kind) or tuple(own.value for own in kind)
        if value not in names:
            raise TypeError(f"one of {', '.join(names)}")
        return value if origin is Literal else kind(value)
    plain = str if kind is Path else kind
    allowed = (int, float) if plain is float else plain
    if not isinstance(value, allowed) or (plain is not bool and isinstance(value, bool)):
        raise TypeError(_WORDS[plain])
    return kind(value)
