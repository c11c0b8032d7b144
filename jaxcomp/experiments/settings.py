"""What the settings of every experiment share: how the command asks for them, and their checks.

Nothing heavy is imported here or in a module of settings: `--help` reads them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar

_Value = TypeVar("_Value")


class Panel(StrEnum):
    """Headings of `--help`."""

    DATA = "What is learned"
    TRAINING = "How it is trained"
    GRID = "How it is compressed"
    PROBLEM = "What is learned from what"
    SIMULATION = "What is drawn"
    PENALTIES = "How it is penalised"
    CODES = "How it is coded"
    BUDGET = "How small"
    KEPT = "What is compressed"
    CERTIFICATE = "What it is certified by"
    RUN = "Running"
    PROCESSES = "Several processes"


class Option(NamedTuple):
    """How the command asks for a setting.

    Attributes:
        help: what `--help` says.
        panel: the heading it stands under.
        names: of the option; none for that of the setting.
        choices: what a shell proposes for a value; others may be allowed.
    """

    help: str
    panel: Panel
    names: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()


def asked(
    default: _Value, help: str, panel: Panel, *names: str, choices: Iterable[str] = ()
) -> _Value:
    """Declare a setting that is an option of the command; other fields are set in Python only.

    Args:
        default: of the setting; its type and name are those of the option.
        help: what `--help` says.
        panel: the heading it stands under.
        *names: of the option, such as `--models`, if it is not called as the setting.
        choices: what a shell proposes for a value, if it cannot be told from the type.

    Returns:
        A field of a dataclass, which a type checker takes for its default.
    """
    option = Option(help, panel, names, tuple(choices))
    return field(default=default, metadata={"option": option})


DATASETS = ("digits", "mnist", "fashion-mnist", "cifar10")

SAMPLE_SIZES: dict[str, dict[str, int]] = {
    "mnist": {"train_size": 6000, "validation_size": 5000},
    "fashion-mnist": {"train_size": 6000, "validation_size": 5000},
    "cifar10": {"train_size": 1500, "validation_size": 400},
    "digits": {"train_size": 600, "validation_size": 400},
}
"""Sizes of the samples for a data set that is named without any."""


def as_tuple(value: Any, name: str) -> tuple:
    """Return one value or several as a tuple, each once; anything else is a `ValueError`."""
    if isinstance(value, (str, int, float)):
        return (value,)
    if not isinstance(value, Sequence) or not value:
        raise ValueError(
            f"{name} must be a value or a non-empty sequence of values, got {value!r}."
        )
    return tuple(dict.fromkeys(value))


def integer(value: Any, name: str) -> int:
    """Return a whole number as an `int`; anything else is a `ValueError`."""
    if isinstance(value, bool) or int(value) != value:
        raise ValueError(f"{name} must be an integer, got {value!r}.")
    return int(value)


def check_counts(settings: Any, names: Iterable[str]) -> None:
    """Refuse attributes that are not whole numbers of at least 1."""
    from jaxcomp.numerics.checks import check_count  # with JAX, which `--help` does not wait for

    for name in names:
        check_count(name, integer(getattr(settings, name), name))


def check_positive(settings: Any, names: Iterable[str]) -> None:
    """Refuse attributes that are not positive and finite."""
    from jaxcomp.numerics import checks

    for name in names:
        checks.check_positive(name, getattr(settings, name))


def check_names(name: str, values: Iterable[str], allowed: Sequence[str]) -> None:
    """Refuse a name that is not in the list."""
    for value in values:
        if value not in allowed:
            raise ValueError(f"unknown {name} {value!r}: choose from {', '.join(allowed)}.")


def check_range(name: str, values: Iterable[float], low: float, high: float) -> None:
    """Refuse a number outside `[low, high)`."""
    for value in values:
        if not low <= value < high:
            raise ValueError(f"{name} must lie in [{low:g}, {high:g}), got {value}.")


def check_prices(penalties: Sequence[float], least: str) -> None:
    """Refuse prices of a bit that are none, out of range (`least` to 1e6) or given twice."""
    if not penalties or not all(float(least) <= price <= 1e6 for price in penalties):
        raise ValueError(f"penalties must be one or several from {least} to 1e6, got {penalties}.")
    if len(set(penalties)) != len(penalties):
        raise ValueError(f"penalties must be different, got {penalties}.")


def check_delta(delta: float) -> None:
    """Refuse a probability of failure that is none."""
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie in (0, 1), got {delta}.")


def from_plain(settings: type[_Value], values: Mapping[str, Any]) -> _Value:
    """Return settings as they were before JSON made lists of tuples.

    Args:
        settings: their class, a dataclass.
        values: of its fields, as a manifest tells them.
    """
    return settings(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
