"""What every command does around its work: devices and caches, errors, printing."""

import _thread
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import typer

if TYPE_CHECKING:
    from rich.console import Console


class Device(StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"
    tpu = "tpu"


class Result(Protocol):
    """What a run leaves behind."""

    directory: Path | None

    def print_report(self, console: "Console") -> None:
        """Print what was found."""
        ...

    def save(self) -> Any:
        """Write the files, pictures among them."""
        ...


_SECONDS_UNTIL_AGAIN = 0.05


def _interrupt_main_thread() -> None:
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:  # ends what it waits for, too
        signal.pthread_kill(main, signal.SIGINT)
    else:
        _thread.interrupt_main()


@contextmanager
def _interruptions_arrive() -> Iterator[None]:
    """Repeat Ctrl-C where Python loses it: in a callback of the garbage collector, JAX has one."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            # Not from here, where it would be lost too.
            threading.Timer(_SECONDS_UNTIL_AGAIN, _interrupt_main_thread).start()
        else:
            before(unraisable)

    sys.unraisablehook = hook
    try:
        with _killed_like_interrupted():
            yield
    finally:
        sys.unraisablehook = before


@contextmanager
def _killed_like_interrupted() -> Iterator[None]:
    """Take `kill` for Ctrl-C in this block: what is half written is cleared away."""
    if threading.current_thread() is not threading.main_thread():  # others handle no signals
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def one_sentence_errors(
    traceback: bool, stopped: str = "stopped; the same command goes on from here."
) -> Iterator[None]:
    """Turn what cannot be done in this block into one sentence and exit code 2.

    Args:
        traceback: whether errors pass through.
        stopped: what is said after Ctrl-C.
    """
    try:
        with _interruptions_arrive():
            yield
    except KeyboardInterrupt:
        typer.echo(stopped, err=True)
        raise typer.Exit(130) from None
    except (ValueError, TypeError, OSError, ImportError) as error:
        if traceback or os.environ.get("JAXCOMP_TRACEBACK"):
            raise
        told = " ".join(str(error).split())
        if isinstance(error, ModuleNotFoundError):
            told += "; pip install 'jaxcomp[sweep]'"
        typer.echo(f"jaxcomp: {told}", err=True)
        raise typer.Exit(2) from None


def start(device: Device, compilation_cache: bool) -> None:
    """Find out what is not there, before anything is computed; set JAX up for the command."""
    _check_drawing()
    set_up_jax(device, compilation_cache)


def set_up_jax(device: Device, compilation_cache: bool) -> None:
    """Choose a device, and keep compiled programs."""
    show_warnings()
    import jax

    named = os.environ.get("JAX_PLATFORMS")
    if device is not Device.auto:
        jax.config.update("jax_platforms", {"gpu": "cuda"}.get(device.value, device.value))
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        # JAX asserts where it has no plugin for the platform, and raises where that fails.
        reason = f" ({error})" if str(error) else ""
        if device is Device.auto and named:
            raise ValueError(
                f"JAX has none of the devices that the environment variable JAX_PLATFORMS names, "
                f"{named!r}{reason}; unset it, or use --device cpu."
            ) from error
        what = "device" if device is Device.auto else device.value
        raise ValueError(
            f"no {what} was found{reason}; use --device cpu, or install jaxcomp[cuda] or "
            "jaxcomp[tpu] on a machine that has one."
        ) from error
    # A guard against transfers is for the loops of a program that is being written.
    jax.config.update("jax_transfer_guard", "allow")
    if compilation_cache:
        from jaxcomp.experiments.caches import keep_compiled_programs

        keep_compiled_programs()


def directory_for(out: Path | None, name: str, settings: Any) -> Path:
    """Where results go: as asked for, or a folder that only these settings have.

    If they have one already, under the name of a preset that was asked for then, it is that.
    """
    from jaxcomp import storage

    if out is not None:
        return out
    runs, end = Path("runs"), f"-{storage.fingerprint(settings)[:8]}"
    own = runs / f"{name}{end}"
    return own if own.exists() else min(runs.glob(f"*{end}"), default=own)


def report(result: Result, *, as_json: bool = False) -> None:
    """Print what a run found: for people, or as JSON under the names of the result in Python."""
    if as_json:
        from jaxcomp.experiments.result import to_dict
        from jaxcomp.storage import json_line

        print_text(json_line(to_dict(result)))
        return
    with printing(result.directory) as console:
        result.print_report(console)


@contextmanager
def printing(directory: Path | None) -> Iterator["Console"]:
    """Print a report in this block; what cannot be printed is in the files, and that is said."""
    from rich.console import Console

    out = sys.stdout or io.StringIO()  # there is none if it was closed
    # A pipe has no width of its own; the tables are made for 112 columns.
    console = Console(file=out, width=None if out.isatty() else 112)
    try:
        # Written here, in one piece: rich ends the process where nobody reads any more.
        with console.capture() as captured:
            yield console
        out.write(captured.get())
        out.flush()
    except OSError as error:
        _let_go(out, error, f"it is in {directory}")


def print_text(text: str) -> None:
    """Print what was found, as it is."""
    out = sys.stdout or io.StringIO()
    try:
        out.write(text + "\n")
        out.flush()
    except OSError as error:
        _let_go(out, error, "the work itself is done")


def _let_go(out: TextIO, error: OSError, consolation: str) -> None:
    """Write no more, and say so unless a reader has seen what it wanted."""
    with open(os.devnull, "w") as nowhere:  # Python flushes once more at its end
        os.dup2(nowhere.fileno(), out.fileno())
    if not isinstance(error, BrokenPipeError):
        raise ValueError(
            f"the report could not be printed ({error.strerror}); {consolation}."
        ) from error


@contextmanager
def phase(name: str, quiet: bool) -> Iterator[None]:
    """Tell of this block if it takes over two seconds, and of what is long in it."""
    from jaxcomp.long_call import LongCall, shown_by
    from jaxcomp.progress import Progress

    with (
        Progress(quiet) as progress,
        LongCall(name, 1, display=progress),
        shown_by(progress),
    ):
        yield


def show_warnings() -> None:
    """Print warnings as one line each."""
    warnings.showwarning = _show_warning


def _check_drawing() -> None:
    """Refuse a backend that matplotlib does not have, though pictures go to files without one."""
    import logging

    # Where it keeps its fonts is of no interest here.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        import matplotlib  # noqa: F401
    except ValueError as error:
        backend = os.environ.get("MPLBACKEND")
        if not backend:
            raise
        raise ValueError(
            f"matplotlib does not have the backend {backend!r} that the environment variable "
            "MPLBACKEND names; unset it: the pictures go to files."
        ) from error


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning as one line, without the place in the program."""
    typer.echo(f"jaxcomp: warning: {' '.join(str(message).split())}", err=True)
