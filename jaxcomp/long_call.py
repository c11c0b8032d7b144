"""Progress of a single call that may turn out to be long, such as one that has to compile first.

It appears on a terminal by itself; within `shown_by` it is a task of a display that is there.

Apart from `jaxcomp.progress`, since that imports what draws on a terminal: here it is imported once
a call has been long.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, TextIO

_DISPLAY: ContextVar[Any] = ContextVar("display", default=None)


@contextmanager
def shown_by(display: Any) -> Iterator[None]:
    """Show the long calls of this block as tasks of a `jaxcomp.progress.Progress`."""
    token = _DISPLAY.set(display)
    try:
        yield
    finally:
        _DISPLAY.reset(token)


class LongCall:
    """Show the progress of a single call on a terminal, if it turns out to be long.

    A quick call shows nothing, nor does one whose standard error is no terminal. The call itself
    need not report for the display to appear: it may be compiling, or one phase of a run.

    Args:
        name: what is being done, two or three words.
        total: steps in all.
        delay_seconds: what counts as long.
        stream: where to write, default `sys.stderr` at the time the block is entered.
        display: a `jaxcomp.progress.Progress` that shows it instead, as a task, once it is long.
    """

    def __init__(
        self,
        name: str,
        total: int,
        *,
        delay_seconds: float = 2.0,
        stream: TextIO | None = None,
        display: Any = None,
    ) -> None:
        self._name = name
        self._total = total
        self._stream = stream
        self._display = display
        self._delay = delay_seconds
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._progress: Any = None
        self._shown: Callable[[int, int, str], None] | None = None
        self._last = (0, total, "")

    def __enter__(self) -> Callable[..., None]:
        """Start waiting; returns a callable `(done, total, message)`."""
        stream = sys.stderr if self._stream is None else self._stream
        if self._display is None and (display := _DISPLAY.get()) is not None:
            self._shown = display.task(self._name, self._total)
        elif self._display is not None or (stream.isatty() and self._total):
            self._timer = threading.Timer(self._delay, self._show, [stream])
            self._timer.daemon = True
            self._timer.start()
        return self._report

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop showing. Exceptions pass through."""
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            self._timer = None
            if exc_type is None and self._shown is not None:
                self._shown(self._total, self._total, "")
            if self._progress is not None:
                self._progress.__exit__(exc_type, exc_value, traceback)

    def _show(self, stream: TextIO) -> None:
        with self._lock:
            if self._timer is None:  # the call ended meanwhile
                return
            if self._display is not None:
                self._shown = self._display.task(self._name, self._total)
                return
            try:
                from jaxcomp.progress import Progress
            except ImportError:  # only those who run sweeps need what draws on a terminal
                stream.write(f"{self._name} ...\n")
                return
            self._progress = Progress(stream=stream).__enter__()
            shown = self._progress.task(self._name, self._total)
            shown(*self._last)
            self._shown = shown

    def _report(self, done: int, total: int, message: str = "") -> None:
        with self._lock:
            self._last = (done, total, message)
            if self._shown is not None:
                self._shown(done, total, message)
