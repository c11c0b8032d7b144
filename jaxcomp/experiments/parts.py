"""Many parts of a run, computed by all devices of all its processes.

A worker is a device of a process; a CPU alone has two, so that one computes while the other, in
Python, makes its next variant. Each begins with groups of parts of its own, so that workers
spread over groups first and then over what is in them; a part that another is computing is left to
it, and taken over if that one is lost. What a part holds does not depend on who computed it: every
worker runs the programs that one alone would, on the same shapes.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import jax

from jaxcomp.experiments import team as teams
from jaxcomp.experiments.run import Kept, Run
from jaxcomp.numerics.threads import options_of_this_thread

_Desk = TypeVar("_Desk")

# XLA uses all cores for what is large; what is small, and Python beside it, fills two.
CPU_WORKERS = 2


@dataclass(frozen=True)
class Part(Generic[_Desk]):
    """A part of a run.

    Attributes:
        name: of its files.
        like: how it is kept.
        compute: what the worker has at hand, and the part that this one needs -> the part.
        needs: name of a part that is there before; None for none.
    """

    name: str
    like: Kept[Any]
    compute: Callable[[_Desk, Any], Any]
    needs: str | None = None


def complete(
    run: Run,
    parts: Sequence[Part[_Desk]],
    desk: Callable[[], _Desk],
    tell: Callable[[Mapping[str, Any], bool], None],
    *,
    devices: Sequence[Any] = (),
) -> dict[str, Any]:
    """Return all parts by name: as they are stored, as others store them, else computed.

    Args:
        run: whose parts they are.
        parts: each after the one it needs; those that need the same are a group with it.
        desk: makes what a worker has at hand.
        tell: is told the parts that are there, and whether all others are somebody else's.
        devices: of this process, one worker for each; None among them is wherever JAX computes,
            and none at all one worker, there.
    """
    work = _Work(run, parts, tell)
    if len(devices) < 2:
        work.go(desk(), run.team.index, run.team.count)
        return work.found
    options = options_of_this_thread()
    count = run.team.count * len(devices)

    def worker(place: int) -> None:
        try:
            with options(), _on(devices[place]):
                work.go(desk(), run.team.index * len(devices) + place, count)
        except BaseException as error:
            work.stop(error)
            if place == 0:
                raise

    others = [
        threading.Thread(target=worker, args=(place,), daemon=True)
        for place in range(1, len(devices))
    ]
    for thread in others:
        thread.start()
    try:
        worker(0)  # here, where Ctrl-C arrives
    finally:
        for thread in others:
            thread.join()
    if work.error is not None:
        raise work.error
    return work.found


def worker_devices(placed: Sequence[Any] = (), *, cpu_workers: int = CPU_WORKERS) -> Sequence[Any]:
    """Return the device of every worker of this process, as `complete` takes them.

    Args:
        placed: trees of arrays to compute with. If any array is on several devices, or JAX has a
            default device, there is one worker.
        cpu_workers: of a CPU that is the only device, if it has so many cores.
    """
    leaves = jax.tree.leaves(list(placed))
    if getattr(jax.config, "jax_default_device", None) is not None or any(
        isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1 for leaf in leaves
    ):
        return ()
    devices = jax.local_devices()
    if len(devices) > 1 or devices[0].platform != "cpu":
        return devices
    return (None,) * min(cpu_workers, os.cpu_count() or 1)


def _on(device: Any) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if device is None else jax.default_device(device)


class _Work(Generic[_Desk]):
    """What the workers of a process share."""

    def __init__(
        self,
        run: Run,
        parts: Sequence[Part[_Desk]],
        tell: Callable[[Mapping[str, Any], bool], None],
    ) -> None:
        self.run = run
        self.parts = parts
        self.tell = tell
        self.found: dict[str, Any] = {}
        self.error: BaseException | None = None
        self._telling = threading.Lock()

    def stop(self, error: BaseException) -> None:
        """Let all workers end after the part they are at."""
        self.error = self.error or error

    def go(self, desk: _Desk, place: int, count: int) -> None:
        """Compute what nobody else does until everything is there."""
        order = _order(self.parts, place, count)
        for _ in teams.waiting():
            while self._pass(order, desk):
                pass
            if self.error is not None or all(part.name in self.found for part in order):
                return
            self._tell(is_waiting=True)

    def _pass(self, order: Sequence[Part[_Desk]], desk: _Desk) -> bool:
        """Go through all parts once; False if there was nothing to do, or all is done."""
        has_found = False
        for part in order:
            if self.error is not None:
                return False
            if part.name in self.found or (part.needs and part.needs not in self.found):
                continue
            if (value := self._value(part, desk)) is not None:
                self.found[part.name] = value
                has_found = True
                self._tell(is_waiting=False)
        return has_found

    def _value(self, part: Part[_Desk], desk: _Desk) -> Any | None:
        """Return a part, computed here if need be; None if another is computing it."""
        if (found := self.run.find(part.name, part.like)) is not None:
            return found
        with self.run.claims.claimed(part.name) as is_ours:
            if not is_ours:
                return None
            # It may have been finished since it was looked for.
            if (found := self.found.get(part.name)) is not None:
                return found
            needed = self.found.get(part.needs) if part.needs else None
            return self.run.part(part.name, lambda: part.compute(desk, needed), part.like)

    def _tell(self, *, is_waiting: bool) -> None:
        with self._telling:
            self.tell(self.found, is_waiting)


def _order(parts: Sequence[Part[_Desk]], place: int, count: int) -> list[Part[_Desk]]:
    """Return the parts as one of `count` workers goes through them: its own, then all others.

    Its own are every `count`-th group; of a group that several begin with, each begins at another
    place. Of the others those come first that their own worker comes to last.
    """
    groups: dict[str, list[Part[_Desk]]] = {}
    for part in parts:
        groups.setdefault(part.needs or part.name, []).append(part)
    listed = list(groups.values())
    if not listed:
        return []
    round_, first = divmod(place, len(listed))
    own = range(first, len(listed), count)
    ordered = []
    for number in (*own, *(number for number in reversed(range(len(listed))) if number not in own)):
        needed, *others = listed[number]
        start = round_ * len(others) // -(-count // len(listed))
        ordered += [needed, *others[start:], *others[:start]]
    return ordered
