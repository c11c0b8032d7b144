"""Leaves that are one array: tied weights are quantized, stored and counted once."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxcomp.trees.leaves import View, memory_of, view_between


class Group(NamedTuple):
    """One array (or other leaf) and all the places where it stands."""

    value: Any
    paths: tuple[str, ...]
    views: tuple[View | None, ...]


class Slot(NamedTuple):
    """Where a leaf of the original tree is stored, and how it is seen there."""

    number: int
    view: View | None


def group_tied(named: Mapping[str, Any]) -> tuple[list[Group], list[Slot]]:
    """Join the paths of arrays that are one; also return where every leaf is stored."""
    groups: list[Group] = []
    slots: list[Slot] = []
    stored: dict[Any, tuple[int, tuple[int, ...]]] = {}
    for path, value in named.items():
        # Other leaves, such as small integers, may be one object without being tied.
        memory = memory_of(value)
        if memory is None or memory.key not in stored:
            if memory is not None:
                stored[memory.key] = (len(groups), memory.order)
            slots.append(Slot(len(groups), None))
            groups.append(Group(value, (path,), (None,)))
            continue
        number, order = stored[memory.key]
        group = groups[number]
        view = view_between(group.value, order, value, memory.order)
        groups[number] = Group(group.value, (*group.paths, path), (*group.views, view))
        slots.append(Slot(number, view))
    return groups, slots
