"""Progress: quiet, plain lines in logs, live bars in a terminal, one output in a notebook."""

import io
import sys
import threading

import pytest
from rich.console import Console

from jaxcomp.progress import Progress, duration


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_quiet_says_nothing(capsys):
    with Progress(quiet=True) as progress:
        report = progress.task("training", 3)
        report(3, 3, "train loss 0.1")
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_logs_get_a_line_now_and_then():
    stream, clock = io.StringIO(), Clock()
    with Progress(stream=stream, clock=clock) as progress:
        report = progress.task("training 5 networks", 25)
        for epoch in range(1, 26):
            clock.now += 1.0
            report(epoch, 25, f"train loss {1 / epoch:.2f}")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "training 5 networks: started"
    assert lines[1] == (
        "training 5 networks: 5 of 25 (20 %), 5 s so far, about 20 s left, train loss 0.20"
    )
    assert lines[-1] == "training 5 networks: 25 of 25 (100 %), 25 s so far, train loss 0.04"
    assert len(lines) == 1 + 5


def test_stderr_is_the_default_and_stdout_stays_clean(capsys):
    with Progress() as progress:
        progress.task("scoring", 1)(1, 1, "")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["scoring: started", "scoring: 1 of 1 (100 %), 0 s so far"]


def test_the_end_of_a_task_is_always_told_and_only_once():
    stream, clock = io.StringIO(), Clock()
    with Progress(stream=stream, clock=clock) as progress:
        first = progress.task("first", 2)
        second = progress.task("second", 2)
        for report in (first, second):
            report(1, 2, "")
            report(2, 2, "")
            report(2, 2, "again")
    assert stream.getvalue().splitlines() == [
        "first: started",
        "first: 2 of 2 (100 %), 0 s so far",
        "second: 2 of 2 (100 %), 0 s so far",
    ]


def test_restored_steps_do_not_count_as_speed():
    stream, clock = io.StringIO(), Clock()
    with Progress(stream=stream, clock=clock, interval_seconds=0.0) as progress:
        report = progress.task("scoring", 100)
        report(80, 100, "")
        clock.now += 10.0
        report(81, 100, "")
    assert stream.getvalue().splitlines()[-1] == (
        "scoring: 81 of 100 (81 %), 10 s so far, about 3 min 10 s left"
    )


def test_a_total_may_be_corrected():
    stream = io.StringIO()
    with Progress(stream=stream, interval_seconds=0.0) as progress:
        report = progress.task("training", 1)
        report(1, 4, "")
        report(4, 4, "")
    lines = stream.getvalue().splitlines()
    assert "1 of 4 (25 %)" in lines[1]
    assert "4 of 4 (100 %)" in lines[2]


def test_an_unknown_total_is_no_division_by_zero():
    stream = io.StringIO()
    with Progress(stream=stream, interval_seconds=0.0) as progress:
        progress.task("waiting", 0)(0, 0, "")
    assert "waiting: 0 of 0," in stream.getvalue()


def test_a_terminal_gets_live_bars(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Progress(stream=stream) as progress:
        report = progress.task("scoring [1]", 4)
        report(3, 4, "variant [bold]x")
        assert not isinstance(sys.stdout, Terminal)
    text = stream.getvalue()
    assert "\x1b[" in text
    assert "scoring [1]" in text
    assert "3/4" in text


def test_a_dumb_terminal_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with Progress(stream=stream) as progress:
        progress.task("scoring", 4)(4, 4, "")
    assert stream.getvalue().splitlines()[-1] == "scoring: 4 of 4 (100 %), 0 s so far"


def test_colour_forced_by_the_environment_does_not_bring_bars_into_logs(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    with Progress(stream=stream) as progress:
        progress.task("scoring", 1)(1, 1, "")
    assert "\x1b" not in stream.getvalue()


def test_a_notebook_gets_one_output_that_is_updated(monkeypatch):
    display = pytest.importorskip("IPython.display")
    shown, updates = [], []

    class Handle:
        def update(self, table) -> None:
            updates.append(table)

    def show(table, *, display_id):
        assert display_id is True
        shown.append(table)
        return Handle()

    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr(display, "display", show)
    clock = Clock()
    with Progress(clock=clock) as progress:
        report = progress.task("training", 10)
        for step in range(1, 11):
            clock.now += 0.1
            report(step, 10, f"train loss {step}")
    assert len(shown) == 1
    # Every quarter of a second, at the end of the task and at the end of all.
    assert 3 <= len(updates) <= 6
    plain = Console(file=io.StringIO(), width=120, force_jupyter=False)
    plain.print(updates[-1])
    assert "10/10" in plain.file.getvalue()


def test_errors_pass_through_and_what_was_shown_stays(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()

    def work() -> None:
        with Progress(stream=stream) as progress:
            progress.task("training", 2)(1, 2, "")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert "1/2" in stream.getvalue()
    # The cursor is given back.
    assert stream.getvalue().rstrip().endswith("\x1b[?25h")


def test_reports_after_the_end_are_ignored():
    stream = io.StringIO()
    with Progress(stream=stream) as progress:
        report = progress.task("training", 2)
    before = stream.getvalue()
    report(2, 2, "late")
    progress.task("another", 1)(1, 1, "")
    assert stream.getvalue() == before


def test_threads_may_report():
    stream = io.StringIO()
    with Progress(stream=stream, interval_seconds=0.0) as progress:
        reports = [progress.task(f"task {number}", 50) for number in range(4)]

        def work(number: int) -> None:
            for step in range(1, 51):
                reports[number](step, 50, "")

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = stream.getvalue().splitlines()
    for number in range(4):
        assert sum(f"task {number}: 50 of 50 (100 %)" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7800, "2 h 10 min"),
    ],
)
def test_durations_read_as_a_person_says_them(seconds, text):
    assert duration(seconds) == text
