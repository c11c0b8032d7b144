"""The command as tests call it: in this process, or in one of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from jaxcomp.cli import app

SMALL = [
    "sweep", "--models", "2", "--epochs", "2", "--width", "0.0625", "--train-size", "100",
    "--validation-size", "50", "--num-clusters", "2", "--num-clusters", "8",
    "--diameter-penalty", "0.01", "--num-probes", "2", "--importance", "none", "--quiet",
]  # fmt: skip


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def assert_one_sentence(result, message):
    code = result.returncode if hasattr(result, "returncode") else result.exit_code
    assert code == 2
    assert re.search(message, result.stderr), result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def environment():
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}


def run_process(*arguments, **variables):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=environment() | variables,
    )
