"""Around the work of every command: what is not there is found first, what is done is told."""

import gc
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
import typer
from command_line import SMALL, assert_one_sentence, environment, invoke, run_process

from jaxcomp import storage
from jaxcomp.cli import session
from jaxcomp.cli.session import directory_for, one_sentence_errors


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        pytest.param(
            "JAX_PLATFORMS",
            "cuda",
            "JAX has none of the devices .* JAX_PLATFORMS names, 'cuda'",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "JAX_PLATFORMS",
            "nonsense",
            "JAX_PLATFORMS names, 'nonsense' .*; unset it, or use",
            marks=pytest.mark.slow,
        ),
        ("MPLBACKEND", "nonsense", "backend 'nonsense' that the environment variable MPLBACKEND"),
    ],
)
def test_what_is_not_there_is_found_at_the_start(variable, value, message, tmp_path):
    if any(found.platform == "gpu" for found in jax.devices()):
        value = value.replace("cuda", "tpu")
        message = message.replace("cuda", "tpu")
    result = run_process("-m", "jaxcomp", *SMALL, "--out", tmp_path / "run", **{variable: value})
    assert_one_sentence(result, message)
    assert not (tmp_path / "run").exists()


def test_what_is_not_installed_is_one_sentence(capsys):
    with pytest.raises(typer.Exit) as stopped, one_sentence_errors(traceback=False):
        raise ModuleNotFoundError("No module named 'pandas'")
    assert stopped.value.exit_code == 2
    told = "jaxcomp: No module named 'pandas'; pip install 'jaxcomp[sweep]'\n"
    assert capsys.readouterr().err == told


def test_a_report_is_printed_whatever_reads_it():
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from jaxcomp import cli\n"
        "from jaxcomp.cli import session\n"
        "cli._print_help = lambda arguments: True\n"  # only what goes before
        "cli.main([])\n"
        "folder = Path(sys.argv[1])\n"
        "try:\n"
        "    with session.printing(folder) as console:\n"
        "        for _ in range(2000):\n"
        "            console.print('\\u2500', folder, '\\udcff')\n"
        "except ValueError as error:\n"
        "    sys.exit(f'{error}')\n"
    )
    folder = "gr\u00f6\u00dfe-\u65e5\u672c"
    told = run_process("-c", code, folder, PYTHONIOENCODING="ascii", PYTHONUTF8="1")
    assert told.returncode == 0, told.stderr
    assert told.stdout.splitlines()[-1] == r"\u2500 gr\xf6\xdfe-\u65e5\u672c \udcff"
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} DIR"
    for reader, expected in (("| head -1", 0), (">&-", 0), ("> /dev/full", 1)):
        if os.name != "posix" or ("full" in reader and not Path("/dev/full").exists()):
            continue
        piped = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {command} {reader}"],
            capture_output=True,
            text=True,
            check=False,
            env=environment() | {"PYTHONUTF8": "1"},
        )
        assert piped.returncode == expected, (reader, piped.stderr)
        told = "the report could not be printed (No space left on device); it is in DIR.\n"
        assert piped.stderr == (told if expected else "")


@pytest.mark.parametrize("error", [RuntimeError("no plugin"), AssertionError()])
@pytest.mark.parametrize(
    ("device", "message", "expected"),
    [
        ("gpu", "no gpu was found.*; use --device cpu, or install", {"jax_platforms": "cuda"}),
        ("auto", "JAX has none of the devices .* JAX_PLATFORMS names, 'cuda'.*; unset it", {}),
    ],
)
def test_a_device_that_jax_does_not_find(device, message, expected, error, monkeypatch):
    def devices():
        raise error

    chosen = {}
    config = SimpleNamespace(update=chosen.__setitem__)
    monkeypatch.setitem(sys.modules, "jax", SimpleNamespace(config=config, devices=devices))
    monkeypatch.setattr(session, "show_warnings", lambda: None)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(ValueError, match=message):
        session.set_up_jax(session.Device(device), compilation_cache=False)
    assert chosen == expected


@pytest.mark.slow
@pytest.mark.parametrize("device", ["gpu", "tpu"])
def test_a_device_that_is_not_there(device, tmp_path):
    if any(found.platform == device for found in jax.devices()):
        device = {"gpu": "tpu", "tpu": "gpu"}[device]
    # Choosing a device is for the whole process.
    result = run_process("-m", "jaxcomp", *SMALL, "--device", device, "--out", tmp_path / "run")
    assert_one_sentence(result, f"no {device} was found.*; use --device cpu, or install")
    assert not (tmp_path / "run").exists()


def test_ctrl_c_says_how_to_go_on(monkeypatch, tmp_path):
    def pressed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxcomp.experiments.sweep.run_in_team", pressed)
    result = invoke(*SMALL, "--out", tmp_path / "run")
    assert result.exit_code == 130
    assert result.stderr == "stopped; the same command goes on from here.\n"


def test_settings_keep_their_folder_whatever_preset_they_are_called_by(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = directory_for(None, "paper", {"seed": 0})
    assert first.parent == Path("runs")
    first.mkdir(parents=True)
    assert directory_for(None, "quick", {"seed": 0}) == first
    assert directory_for(None, "quick", {"seed": 1}).name.startswith("quick-")
    assert directory_for(tmp_path, "quick", {"seed": 0}) == tmp_path


@pytest.fixture
def interruptible():
    """Take Ctrl-C, which a process that a shell started in the background ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_in_a_callback_of_the_garbage_collector_is_not_lost(capsys):
    def interrupt(phase: str, info: dict[str, int]) -> None:
        gc.callbacks.remove(interrupt)
        raise KeyboardInterrupt

    def work() -> None:
        with one_sentence_errors(traceback=False):
            gc.collect(0)
            time.sleep(60)  # ended by the second one

    gc.callbacks.append(interrupt)
    with pytest.raises(typer.Exit) as stopped:
        work()
    assert stopped.value.exit_code == 130
    assert "goes on from here" in capsys.readouterr().err


def test_a_kill_leaves_no_half_written_file(capsys, tmp_path):
    def work() -> None:
        with (
            one_sentence_errors(traceback=False, stopped="stopped; nothing was written."),
            storage.atomic_writer(tmp_path / "small.jxc") as file,
        ):
            file.write(b"half")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)  # ended by the signal

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(typer.Exit):
        work()
    assert capsys.readouterr().err == "stopped; nothing was written.\n"
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is before
