"""One sweep of several processes that find each other over loopback, and of several devices."""

import os
import socket
import subprocess
import sys
from collections import Counter

import pytest
from command_line import SMALL, assert_one_sentence, environment, invoke, run_process

from jaxcomp.experiments.sweep import engine, evaluator, limits, pictures

# Writes down which chunks of variants are computed, and not that the original alone is scored first
# so that programs are there. KILLED names processes that end, as if by loss of power, when their
# third chunk begins (and not while a program is written to the cache): two workers have finished
# one by then, and are in the middle of another or two.
PROCESS = """
import os, signal, sys
from jaxcomp import cli
from jaxcomp.experiments.sweep import engine, evaluator, limits, pictures
evaluator.MAX_CHUNK_VARIANTS = 4
limits._NUM_SLOPES, limits._GAP_BITS = 5, 0.2
pictures.save_figures = lambda *_, **__: []
score, own = engine.Scorer.score, []
def logged(self, variants, *keep):
    names = [variant.id for variant in variants]
    if names == ["original"]:
        return score(self, variants, *keep)
    chunk = f"{self.subject.model_seed} {'+'.join(names)}"
    own.append(chunk)
    with open(os.environ["COMPUTED"], "a") as log:
        log.write(f"{os.environ['INDEX']} {chunk}\\n")
    if len(own) >= 3 and os.environ["INDEX"] in os.environ.get("KILLED", ""):
        os.kill(os.getpid(), signal.SIGKILL)
    return score(self, variants, *keep)
engine.Scorer.score = logged
cli.main(sys.argv[1:])
"""


def free_port():
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return own.getsockname()[1]


def processes(folder, programs, killed=""):
    """Run two processes in one directory; returns their exit codes, outputs and what they did."""
    port = free_port()
    started = [
        subprocess.Popen(
            [
                sys.executable, "-c", PROCESS, *SMALL, "--out", str(folder / "run"),
                "--distributed", "--coordinator", f"127.0.0.1:{port}",
                "--num-processes", "2", "--process-index", str(index),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment() | programs | {
                "INDEX": str(index),
                "KILLED": killed,
                "COMPUTED": str(folder / "computed"),
                "JAXCOMP_CACHE_DIR": str(folder / f"cache-{index}"),  # as on two machines
            },
        )
        for index in range(2)
    ]  # fmt: skip
    told = [process.communicate() for process in started]
    computed = [line.split(" ", 1) for line in (folder / "computed").read_text().splitlines()]
    return [process.returncode for process in started], told, computed


@pytest.fixture
def simplified(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXCOMP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(evaluator, "MAX_CHUNK_VARIANTS", 4)
    monkeypatch.setattr(limits, "_NUM_SLOPES", 5)
    monkeypatch.setattr(limits, "_GAP_BITS", 0.2)
    monkeypatch.setattr(pictures, "save_figures", lambda *_, **__: [])


def alone(folder):
    result = invoke(*SMALL, "--out", folder)
    assert result.exit_code == 0, result.output
    return (folder / "table.csv").read_bytes()


@pytest.mark.slow
def test_the_other_process_finishes_when_the_first_is_killed(
    tmp_path, simplified, programs_of_processes
):
    table = alone(tmp_path / "alone")
    codes, told, computed = processes(tmp_path, programs_of_processes, killed="0")
    assert codes == [-9, 0], told
    assert (tmp_path / "run" / "table.csv").read_bytes() == table
    assert "raw loss" in told[1][0]
    # Nothing was done twice but what was lost.
    times = Counter(chunk for _, chunk in computed)
    of_the_first = [chunk for index, chunk in computed if index == "0"]
    assert len(of_the_first) >= 3
    twice = {chunk for chunk, number in times.items() if number == 2}
    assert 1 <= len(twice) <= 2
    assert twice < set(of_the_first)
    assert max(times.values()) == 2
    finished = [path.name for path in (tmp_path / "run" / "variants").glob("[!.]*.json")]
    assert len(finished) == len(times)


@pytest.mark.slow
def test_another_number_of_processes_goes_on(tmp_path, simplified, programs_of_processes):
    table = alone(tmp_path / "alone")
    codes, told, _ = processes(tmp_path, programs_of_processes, killed="01")
    assert codes == [-9, -9], told
    found = {path.name for path in (tmp_path / "run" / "variants").iterdir()}
    scored = []
    with pytest.MonkeyPatch.context() as patch:
        score = engine.Scorer.score

        def counted(own, variants, *keep):
            scored.extend([1] if len(variants) > 1 else [])
            return score(own, variants, *keep)

        patch.setattr(engine.Scorer, "score", counted)
        assert alone(tmp_path / "run") == table
    finished = {path.name for path in (tmp_path / "run" / "variants").iterdir()}
    stored = found & finished  # not what was being written
    assert 2 <= len(stored) <= 4  # one or two of each
    total = len(finished)
    assert len(scored) == total - len(stored)
    (tmp_path / "again").mkdir()
    codes, told, computed = processes(tmp_path / "again", programs_of_processes)
    assert codes == [0, 0], told
    assert (tmp_path / "again" / "run" / "table.csv").read_bytes() == table
    assert len(computed) == len({chunk for _, chunk in computed}) == total
    assert {index for index, _ in computed} == {"0", "1"}
    assert told[1][0] == f"process 1 of 2 is done; results are in {tmp_path / 'again' / 'run'}.\n"


@pytest.mark.slow
def test_eight_devices_give_the_bits_of_one(tmp_path, simplified, programs_of_processes):
    table = alone(tmp_path / "alone")
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    done = run_process(
        "-c", PROCESS, *SMALL, "--out", tmp_path / "run",
        **programs_of_processes, XLA_FLAGS=flags, INDEX="0", COMPUTED=str(tmp_path / "computed"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "table.csv").read_bytes() == table


def test_a_process_that_never_arrives(tmp_path):
    port = free_port()
    done = run_process(
        "-m", "jaxcomp", *SMALL, "--out", tmp_path / "run", "--distributed", "--join-timeout", "1",
        "--coordinator", f"127.0.0.1:{port}", "--num-processes", "3", "--process-index", "0",
    )  # fmt: skip
    told = rf"process 0 of 3 waited at the coordinator 127.0.0.1:{port} for 1 s, and not all"
    assert_one_sentence(done, told)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--num-processes 2", "speak of several processes: add --distributed"),
        ("--distributed --process-index 0", "give all of --coordinator, --num-processes"),
        ("--distributed --join-timeout 0", "--join-timeout must be at least 1 second"),
        (
            "--distributed --coordinator here --num-processes 2 --process-index 0",
            "--coordinator must be HOST:PORT, got 'here'",
        ),
        (
            "--distributed --coordinator a:1 --num-processes 2 --process-index 2",
            "--process-index must lie between 0 and 1 for --num-processes 2, got 2",
        ),
    ],
)
def test_processes_that_are_described_wrongly(arguments, message):
    assert_one_sentence(invoke("sweep", *arguments.split()), message)
