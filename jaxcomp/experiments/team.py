"""Processes that make one run together, through its directory: who does what, and in what order.

All of them see the files; who computes a part holds a lock, which the system frees when its holder
ends, however it ends: then another takes the part. The first process opens the directory, and
leads: it writes down what parts are made from, makes claims and pictures. If it is lost, one of the
others leads.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from jaxcomp import storage

FOLDER = ".team"
"""In the directory of a run: what its processes say to each other."""

SHORTEST_WAIT, LONGEST_WAIT = 0.1, 2.0
"""Seconds between two looks at what others do; at first, and after a while."""

_Value = TypeVar("_Value")


def _nobody_to_meet() -> None:
    """Return at once."""


@dataclass(frozen=True)
class Team:
    """Which process this is, of how many that make one run.

    Attributes:
        index: from 0; the first opens the directory.
        count: of processes.
        meet: returns in each process once all have called it, or one of them has ended.
    """

    index: int = 0
    count: int = 1
    meet: Callable[[], None] = _nobody_to_meet

    def __post_init__(self) -> None:
        """Refuse an index of no process."""
        if not 0 <= self.index < self.count:
            raise ValueError(
                f"index must lie between 0 and count - 1, got {self.index} of {self.count}."
            )

    @property
    def is_alone(self) -> bool:
        """Whether one process makes the run."""
        return self.count == 1


ALONE = Team()


class Claims:
    """What is being computed, and by whom: a name is one holder's, in all threads and processes.

    Args:
        folder: of the locks between processes; None if there are no others.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._guard = threading.Lock()
        self._taken: dict[str, storage.FileLock | None] = {}

    @contextlib.contextmanager
    def claimed(self, name: str) -> Iterator[bool]:
        """Hold a name in this block; False, and it is not held, if another does."""
        is_taken = self._take(name)
        try:
            yield is_taken
        finally:
            if is_taken:
                with self._guard:
                    lock = self._taken.pop(name)
                    if lock is not None:
                        lock.release()

    @contextlib.contextmanager
    def waited_for(self, name: str) -> Iterator[None]:
        """Hold a name in this block, as soon as nobody else does."""
        with contextlib.ExitStack() as stack:
            for _ in waiting():
                if stack.enter_context(self.claimed(name)):
                    break
            yield

    def _take(self, name: str) -> bool:
        with self._guard:  # a file is opened once in a process: closing it frees some locks
            if name in self._taken:
                return False
            lock = None
            if self._folder is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
                lock = storage.FileLock(self._folder / f"{name}.lock")
                if not lock.acquire():
                    return False
            self._taken[name] = lock
            return True


def waiting() -> Iterator[None]:
    """Look at once, then again and again, ever more rarely."""
    seconds = SHORTEST_WAIT
    while True:
        yield
        time.sleep(seconds)
        seconds = min(1.5 * seconds, LONGEST_WAIT)
