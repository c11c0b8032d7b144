"""Checks that the settings of every experiment share, each one sentence."""

from collections.abc import Iterable, Sequence
from typing import Any

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
