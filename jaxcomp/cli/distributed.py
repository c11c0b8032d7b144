"""Processes of one command that find each other, by what JAX knows of clusters or by options."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from jaxcomp.experiments.settings import Panel

if TYPE_CHECKING:
    from jaxcomp.experiments.team import Team

Distributed = Annotated[
    bool,
    typer.Option(
        "--distributed",
        help="This is one of several processes that share the work and the directory --out. They "
        "find each other under Slurm, Open MPI, Kubernetes and on TPU pods, or by the options "
        "below.",
        rich_help_panel=Panel.PROCESSES,
    ),
]
Coordinator = Annotated[
    str | None,
    typer.Option(
        help="HOST:PORT of process 0, where the others can reach it.",
        rich_help_panel=Panel.PROCESSES,
    ),
]
NumProcesses = Annotated[
    int | None, typer.Option(help="How many there are.", rich_help_panel=Panel.PROCESSES)
]
ProcessIndex = Annotated[
    int | None,
    typer.Option(help="Which this is, from 0.", rich_help_panel=Panel.PROCESSES),
]
JoinTimeout = Annotated[
    int,
    typer.Option(
        help="Seconds until a process gives up waiting for the others to start.",
        rich_help_panel=Panel.PROCESSES,
    ),
]

# JAX's own limit ends the process with a page of text: ours comes first.
_MORE_SECONDS = 60


def join(
    coordinator: str | None,
    num_processes: int | None,
    process_index: int | None,
    timeout_seconds: int,
) -> None:
    """Wait until all processes are there; before JAX looks for devices.

    If one does not come, this process ends with a sentence and exit code 2.

    Args:
        coordinator: HOST:PORT of process 0; None to find out.
        num_processes: how many there are; None to find out.
        process_index: which this is; None to find out.
        timeout_seconds: how long to wait.

    Raises:
        ValueError: if processes are described in part or wrongly, or no launcher is found.
    """
    _check(coordinator, num_processes, process_index, timeout_seconds)
    import jax

    with contextlib.suppress(AttributeError):  # it would take SIGTERM for itself, which stops a run
        jax.config.update("jax_enable_preemption_service", False)
    with _limit(timeout_seconds), _signals_end_it():
        try:
            jax.distributed.initialize(
                coordinator,
                num_processes,
                process_index,
                initialization_timeout=timeout_seconds + _MORE_SECONDS,
            )
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"the processes of this run could not find each other ({error}); start them by "
                "Slurm, Open MPI or Kubernetes, or give --coordinator HOST:PORT, --num-processes N "
                "and --process-index I."
            ) from error


def team() -> "Team":
    """Return which process this is, once it has devices.

    Nothing is computed together, so that the connection is given up when the directory is open:
    with it, JAX ends all processes when one is lost.
    """
    import jax

    from jaxcomp.experiments.team import Team

    # It returns when all have called it, or ended.
    return Team(jax.process_index(), jax.process_count(), jax.distributed.shutdown)


def alone() -> "Team":
    """Return a team of this process."""
    from jaxcomp.experiments.team import ALONE

    return ALONE


def check_unused(
    coordinator: str | None, num_processes: int | None, process_index: int | None
) -> None:
    """Refuse options about other processes in a run that has none."""
    if (coordinator, num_processes, process_index) != (None, None, None):
        raise ValueError(
            "--coordinator, --num-processes and --process-index speak of several processes: add "
            "--distributed."
        )


def _check(
    coordinator: str | None,
    num_processes: int | None,
    process_index: int | None,
    timeout_seconds: int,
) -> None:
    if timeout_seconds < 1:
        raise ValueError(f"--join-timeout must be at least 1 second, got {timeout_seconds}.")
    given = (coordinator, num_processes, process_index)
    if any(value is not None for value in given) and any(value is None for value in given):
        raise ValueError(
            "give all of --coordinator, --num-processes and --process-index, or none of them where "
            "a launcher says it."
        )
    if coordinator is None or num_processes is None or process_index is None:
        return
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"--coordinator must be HOST:PORT, got {coordinator!r}.")
    if not 0 <= process_index < num_processes:
        raise ValueError(
            f"--process-index must lie between 0 and {max(num_processes, 1) - 1} for "
            f"--num-processes {num_processes}, got {process_index}."
        )


@contextlib.contextmanager
def _limit(seconds: int) -> Iterator[None]:
    """End the process if the block takes longer: nothing in it can be interrupted."""
    is_done = threading.Event()

    def watch() -> None:
        if is_done.wait(seconds):
            return
        with contextlib.suppress(OSError, ValueError):  # standard error may be closed
            sys.stderr.write(
                f"jaxcomp: {_waiting()} for {seconds} s, and not all processes have arrived: start "
                "every one, check that the address can be reached, or wait longer by "
                "--join-timeout.\n"
            )
            sys.stderr.flush()
        os._exit(2)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        is_done.set()


@contextlib.contextmanager
def _signals_end_it() -> Iterator[None]:
    """Let Ctrl-C and `kill` end the process in this block, where Python handles no signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(own, signal.SIG_DFL) for own in signals]
    try:
        yield
    finally:
        for own, handler in zip(signals, before, strict=True):
            signal.signal(own, handler or signal.SIG_DFL)


def _waiting() -> str:
    """Say which process waits where, as far as it was given or JAX has found out."""
    # JAX says it in public only after the processes have met.
    state = getattr(sys.modules.get("jax._src.distributed"), "global_state", None)
    address = getattr(state, "coordinator_address", None)
    if address is None:
        return "this process waited to be told where the others are"
    index, count = getattr(state, "process_id", "?"), getattr(state, "num_processes", "?")
    return f"process {index} of {count} waited at the coordinator {address}"
