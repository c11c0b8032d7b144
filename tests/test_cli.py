"""The command: help that teaches, one sentence for what cannot be done, and a run that survives."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from jaxcomp.cli import app

SMALL = [
    "sweep", "--models", "2", "--epochs", "2", "--width", "0.0625", "--train-size", "100",
    "--selection-size", "50", "--num-clusters", "2", "--num-clusters", "8",
    "--diameter-penalty", "0.01", "--num-probes", "2", "--weighting", "none", "--quiet",
]  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXCOMP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("JAXCOMP_DATA_DIR", raising=False)


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_help_teaches():
    top, sweep = invoke("--help"), invoke("sweep", "--help")
    assert top.exit_code == sweep.exit_code == 0
    assert "jaxcomp sweep" in top.stdout
    for option in (
        "--preset", "--dataset", "--data-dir", "--model", "--weighting", "--penalty-form",
        "--num-clusters", "--diameter-penalty", "--models", "--train-size", "--label-noise",
        "--epochs", "--seed", "--out", "--resume", "--device",
    ):  # fmt: skip
        assert option in sweep.stdout
    assert "Ctrl-C" in sweep.stdout


def test_a_sweep_and_its_pictures_again(tmp_path):
    out = tmp_path / "run"
    first = invoke(*SMALL, "--out", out)
    assert first.exit_code == 0, first.output
    assert "raw loss" in first.stdout
    assert (out / "sweep.png").exists()
    before = (out / "table.csv").read_bytes()
    (out / "sweep.png").unlink()
    again = invoke("plot", out)
    assert again.exit_code == 0
    assert (out / "sweep.png").exists()
    assert (out / "table.csv").read_bytes() == before
    resumed = invoke(*SMALL, "--out", out)
    assert resumed.exit_code == 0
    assert resumed.stdout == first.stdout
    other = invoke(*SMALL, "--seed", "1", "--out", out)
    assert other.exit_code == 2
    assert "belongs to other settings: seed (0 there, 1 now)" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep", "--dataset", "imagenet"], "unknown dataset 'imagenet': choose from digits"),
        (["sweep", "--num-clusters", "0"], "num_clusters must lie between 1"),
        (["sweep", "--label-noise", "1.5"], "label_noise must lie in"),
        (["sweep", "--train-size", "5000", "--no-replacement"], "5,?000"),
        (["sweep", "--dataset", "mnist"], "JAXCOMP_DATA_DIR"),
        (["sweep", "--model", "vgg"], "32 x 32"),
        (["sweep", "--device", "tpu"], "no tpu was found"),
        (["plot", "nowhere"], "nowhere holds no sweep"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_code_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "tpu" in arguments:  # choosing a device is for the whole process
        result = _run(*arguments)
        code, told = result.returncode, result.stderr
    else:
        result = invoke(*arguments)
        code, told = result.exit_code, result.stderr
    assert code == 2
    assert pd.Series([told]).str.contains(message).item(), told
    assert "Traceback" not in told
    assert len(told.strip().splitlines()) == 1


def test_usage_errors_are_code_2():
    assert invoke("sweep", "--preset", "slow").exit_code == 2
    assert invoke("sweep", "--num-clusters", "many").exit_code == 2
    assert invoke("squeeze").exit_code == 2


def test_a_loss_that_is_not_finite_is_said(tmp_path):
    result = invoke(*SMALL, "--learning-rate", "1e12", "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "finite" in result.stderr


def test_a_killed_run_continues_to_the_same_table(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert _run(*SMALL, "--out", whole).returncode == 0
    process = subprocess.Popen(
        _command(*SMALL, "--out", cut), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list((cut / "cells").glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert json.loads((cut / "manifest.json").read_text())["status"] in ("running", "finished")
    assert _run(*SMALL, "--out", cut).returncode == 0
    assert (cut / "table.csv").read_bytes() == (whole / "table.csv").read_bytes()
    assert (cut / "claims.json").read_bytes() == (whole / "claims.json").read_bytes()


def _command(*arguments):
    return [sys.executable, "-m", "jaxcomp.cli", *map(str, arguments)]


def _run(*arguments):
    root = Path(__file__).parent.parent
    return subprocess.run(
        _command(*arguments),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
