"""Progress of a long run: what is being done, how far it is, how long it will still take.

Written to standard error, so that standard output keeps the results. One bookkeeping (that of
`rich.progress`), three ways to show it:

* a terminal: live bars;
* a notebook: one output that is updated in place (no widget library needed, and the last state
  stays readable in the saved notebook);
* anything else (a log file, continuous integration): a plain line now and then.
"""

import contextlib
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, Self, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.progress import Task as RichTask
from rich.table import Column as TableColumn

__all__ = ["Progress", "Report"]

Report = Callable[[int, int, str], None]
"""`(done, total, message) -> None`: steps finished, steps in all, one short remark."""

NOTEBOOK_INTERVAL_SECONDS = 0.25
SPEED_WINDOW_SECONDS = 120.0


class Progress:
    """Show the progress of named tasks while the `with` block runs.

    ```python
    with Progress(quiet=False) as progress:
        report = progress.task("training", total=25)
        for epoch in range(25):
            ...
            report(epoch + 1, 25, f"train loss {loss:.3f}")
    ```

    The time left is extrapolated from the steps reported during the last two minutes. The first
    report sets the zero, so neither compiling nor steps restored from disk distort it.

    Args:
        quiet: True shows nothing at all.
        stream: where to write, default `sys.stderr` at the time the block is entered.
        interval_seconds: smallest distance of two plain lines (the line that says a task is
            finished always comes).
        clock: monotonic time in seconds.
    """

    def __init__(
        self,
        quiet: bool = False,
        *,
        stream: TextIO | None = None,
        interval_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._quiet = quiet
        self._stream = stream
        self._interval = interval_seconds
        self._clock = clock
        self._mode: Literal["silent", "terminal", "notebook", "lines"] = "silent"
        self._bars: RichProgress | None = None
        self._last_shown: float | None = None
        self._notebook_handle: Any = None

    def __enter__(self) -> Self:
        """Start showing; returns the object itself."""
        if self._quiet:
            return self
        stream = sys.stderr if self._stream is None else self._stream
        if stream is None:  # standard error is closed
            return self
        self._stream = stream
        console = Console(file=stream)
        if self._stream is sys.stderr and console.is_jupyter:
            self._mode = "notebook"
        elif stream.isatty() and not console.is_dumb_terminal:
            self._mode = "terminal"
        else:
            self._mode = "lines"
        self._bars = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("so far,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            TextColumn(
                "{task.fields[message]}",
                markup=False,
                table_column=TableColumn(no_wrap=True, overflow="ellipsis"),
            ),
            console=console,
            # Results go to standard output, which may be a pipe: it is left alone.
            redirect_stdout=False,
            redirect_stderr=True,
            refresh_per_second=4,
            speed_estimate_period=SPEED_WINDOW_SECONDS,
            get_time=self._clock,
        )
        if self._mode == "terminal":
            self._bars.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop showing; what was shown last stays. Exceptions pass through."""
        if self._bars is not None and self._mode == "terminal":
            with contextlib.suppress(OSError):  # the terminal is gone
                self._bars.stop()
        if self._mode == "notebook":
            self._show_in_notebook(force=True)
        self._mode = "silent"
        self._bars = None

    def task(self, name: str, total: int) -> Report:
        """Announce a task of `total` steps.

        Args:
            name: what is being done, two or three words.
            total: steps in all; a later report may correct it.

        Returns:
            A callable `(done, total, message)` to call after each step or group of steps. It may
            be called from any thread and does nothing once the `with` block is left.
        """
        bars = self._bars
        if bars is None:
            return _ignore
        task_id = bars.add_task(name, total=total, message="")
        if self._mode == "lines" and self._is_due(self._interval):
            self._write_line(f"{name}: started")
        elif self._mode == "notebook":
            self._show_in_notebook(force=True)

        def report(done: int, total: int, message: str = "") -> None:
            if self._bars is bars:
                self._update(bars, task_id, done, total, message)

        return report

    def _update(
        self, bars: RichProgress, task_id: TaskID, done: int, total: int, message: str
    ) -> None:
        task = next(task for task in bars.tasks if task.id == task_id)
        was_finished = task.finished
        bars.update(task_id, completed=done, total=total, message=message)
        finishes = task.finished and not was_finished
        if self._mode == "notebook":
            self._show_in_notebook(force=finishes)
        elif self._mode == "lines" and (finishes or self._is_due(self._interval)):
            self._write_line(_line(task, message))

    def _is_due(self, interval: float) -> bool:
        return self._last_shown is None or self._clock() - self._last_shown >= interval

    def _write_line(self, text: str) -> None:
        assert self._stream is not None
        self._last_shown = self._clock()
        # One call per line: lines of several processes in one log stay whole.
        try:
            self._stream.write(text + "\n")
            self._stream.flush()
        except OSError:  # nobody reads any more, or the disk of a log is full: the run goes on
            self._mode = "silent"

    def _show_in_notebook(self, *, force: bool) -> None:
        if self._bars is None or not (force or self._is_due(NOTEBOOK_INTERVAL_SECONDS)):
            return
        from IPython.display import display

        self._last_shown = self._clock()
        bars = self._bars.make_tasks_table(self._bars.tasks)
        if self._notebook_handle is None:
            self._notebook_handle = display(bars, display_id=True)
        else:
            self._notebook_handle.update(bars)


def _ignore(done: int, total: int, message: str = "") -> None:
    """Take a report and show nothing."""


def _line(task: RichTask, message: str) -> str:
    """Say in one plain line where a task stands."""
    done, total = int(task.completed), int(task.total or 0)
    percent = f" ({100 * done // total} %)" if total else ""
    parts = [f"{done} of {total}{percent}", f"{duration(task.elapsed or 0.0)} so far"]
    if not task.finished and task.time_remaining is not None:
        parts.append(f"about {duration(task.time_remaining)} left")
    if message:
        parts.append(message)
    return f"{task.description}: " + ", ".join(parts)


def duration(seconds: float) -> str:
    """Write a time span as a person would say it: `45 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
