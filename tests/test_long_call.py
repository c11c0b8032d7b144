"""Progress of a call that may be long: shown on a terminal while it is silent, or not at all."""

import io
import sys
import threading

import pytest

from jaxcomp.long_call import LongCall, shown_by
from jaxcomp.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_long_call_on_a_terminal_is_shown_while_it_is_silent():
    stream = Terminal()
    shown = threading.Event()
    write = stream.write

    def watched(text: str) -> int:
        if "quantizing" in text:
            shown.set()
        return write(text)

    stream.write = watched  # pyright: ignore[reportAttributeAccessIssue]
    with LongCall("quantizing", 3, delay_seconds=0.0, stream=stream) as report:
        assert shown.wait(60)  # nothing has been reported yet
        report(1, 3, "hidden/kernel")
    assert "3/3" in stream.getvalue()


@pytest.mark.parametrize(("stream", "delay_seconds"), [(Terminal(), 3600.0), (io.StringIO(), 0.0)])
def test_a_quick_call_and_a_log_stay_silent(stream, delay_seconds):
    with LongCall("quantizing", 3, delay_seconds=delay_seconds, stream=stream) as report:
        report(3, 3)
    assert stream.getvalue() == ""


def test_without_what_draws_on_terminals_there_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "jaxcomp.progress", None)
    stream, written = Terminal(), threading.Event()
    write = stream.write
    stream.write = lambda text: (write(text), written.set())[0]  # pyright: ignore
    with LongCall("quantizing", 3, delay_seconds=0.0, stream=stream):
        assert written.wait(60)
    assert stream.getvalue() == "quantizing ...\n"


def test_errors_pass_through():
    with (
        pytest.raises(KeyError),
        LongCall("quantizing", 3, delay_seconds=0.0, stream=Terminal()),
    ):
        raise KeyError("w")


def test_a_call_within_a_display_is_one_of_its_tasks():
    stream = io.StringIO()
    with (
        Progress(stream=stream, interval_seconds=0.0) as progress,
        shown_by(progress),
        LongCall("quantizing", 3) as report,
    ):
        report(1, 3, "hidden/kernel")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "quantizing: started"
    assert "1 of 3" in lines[1]
    assert "hidden/kernel" in lines[1]
    assert "3 of 3 (100 %)" in lines[-1]
    with LongCall("after", 3, delay_seconds=0.0, stream=stream):
        pass
    assert stream.getvalue().splitlines() == lines


@pytest.mark.parametrize(("delay_seconds", "is_long"), [(0.0, True), (3600.0, False)])
def test_a_phase_of_a_run_is_a_task_once_it_is_long(delay_seconds, is_long):
    stream, shown = io.StringIO(), threading.Event()
    with Progress(stream=stream, interval_seconds=0.0) as progress:
        task = progress.task
        progress.task = lambda *told: (task(*told), shown.set())[0]
        with LongCall("drawing", 1, delay_seconds=delay_seconds, display=progress):
            assert not is_long or shown.wait(60)
    lines = stream.getvalue().splitlines()
    assert lines == ["drawing: started", "drawing: 1 of 1 (100 %), 0 s so far"][: 2 * is_long]
