"""Which cases of a parametrized test run in `make check-slow` only."""

from collections.abc import Iterable
from typing import Any

import pytest


def some_slow(cases: Iterable[Any], *dear: Any) -> list[Any]:
    """All cases, those of `dear` marked slow; cases of several arguments are tuples."""
    cases = list(cases)
    missing = [case for case in dear if case not in cases]
    if missing:
        raise ValueError(f"{missing} are no cases: choose from {cases}.")
    return [
        pytest.param(*case if isinstance(case, tuple) else (case,), marks=pytest.mark.slow)
        if case in dear
        else case
        for case in cases
    ]
