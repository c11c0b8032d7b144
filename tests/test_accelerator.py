"""The benchmark of accelerators ends with a table, whatever happens to its parts."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxcomp.experiments import data

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

# The script with parts of its own, in the processes that it begins as well.
SCRIPT = """
import os, time
import accelerator
from accelerator import PARTS, Part

def endless(work):
    work.emit("begun", note=str(os.getpid()))
    calls = iter([0])
    work.time("one call", lambda: time.sleep(next(calls, 10_000)))

def broken(work):
    work.emit("before", seconds=2.0)
    work.time("its only case", lambda: 1 / 0)
    raise ValueError("of no use\\nat all")

def dead(work):
    os._exit(7)

def missing(work):
    import a_package_that_nobody_has

own = {
    "endless": Part(endless, 0.15),
    "broken": Part(broken, 20, is_alone=True),
    "dead": Part(dead, 20, is_alone=True),
    "missing": Part(missing, 20, is_alone=True),
}
"""


@pytest.fixture
def script(tmp_path):
    """Start the script with some parts, a mapping as it stands in Python."""

    def start(parts: str, *arguments: str) -> subprocess.Popen[str]:
        file = tmp_path / "script.py"
        file.write_text(f"{SCRIPT}\naccelerator.PARTS = {parts}\naccelerator.main()\n")
        path = os.pathsep.join([str(BENCHMARKS), os.environ.get("PYTHONPATH", "")])
        return subprocess.Popen(
            [sys.executable, str(file), *arguments, "--out", str(tmp_path / "found.json")],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )

    return start


@pytest.mark.slow
def test_errors_are_rows_and_the_next_part_goes_on(script, tmp_path):
    parts = """{"machine": PARTS["machine"], "rounding": PARTS["rounding"], **own}"""
    process = script(parts, "--size", "small", "--seconds", "1000")
    out, _ = process.communicate()
    assert process.returncode == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["is_whole"]
    assert found["environment"]["platform"] == "cpu"
    rows = {(row["part"], row["case"]): row for row in found["rows"]}
    copied = rows["machine", "copy"]
    assert found["limits"]["bandwidth"] >= copied["rate"][0] / copied["seconds"]
    product, rounded = rows["rounding", "product S W"], rows["rounding", "round_layer, 64 x 64"]
    assert product["share"] == pytest.approx(
        2 * 64**3 / found["limits"]["float32"] / product["seconds"]
    )
    assert rounded["ratio"] == [rounded["seconds"] / product["seconds"], "product S W"]
    assert rounded["note"].endswith("bits a weight")
    notes = {place: row["note"] for place, row in rows.items()}
    assert notes["endless", ""].startswith("ended after ")
    # Its second call did not come back.
    assert notes["endless", "one call"] == "first call only, compiling included"
    assert rows["endless", "one call"]["num_calls"] == 0
    assert notes["broken", "before"] == ""
    assert notes["broken", "its only case"] == "ZeroDivisionError: division by zero"
    assert notes["broken", ""] == "ValueError: of no use"
    assert notes["dead", ""] == "the process ended by itself, with code 7"
    assert notes["missing", ""] == "left out: a_package_that_nobody_has is not installed"
    # Every row twice: at once, and in the table.
    lines, _, table = out.partition("\n\n")
    assert len(lines.splitlines()) == 1 + len(rows)
    assert len(table.strip().splitlines()) == 2 + len(rows)
    assert "| broken | before | 2 s |" in table


def test_a_run_that_is_cut_leaves_its_table_and_no_process(script, tmp_path):
    process = script('{"endless": own["endless"]._replace(is_alone=True)}')
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(2)]
    assert lines[1].startswith("endless")
    # It is there before the run is over.
    found = json.loads((tmp_path / "found.json").read_text())
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert "| endless | begun |" in out
    assert not found["is_whole"]
    assert not json.loads((tmp_path / "found.json").read_text())["is_whole"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(found["rows"][0]["note"]), 0)


def test_an_unknown_part_is_one_sentence():
    found = subprocess.run(
        [sys.executable, str(BENCHMARKS / "accelerator.py"), "--parts", "rounding,kmaens"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 2
    assert "unknown parts kmaens; choose from machine,kmeans,rows," in found.stderr


def test_made_up_images_are_read_as_mnist(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from accelerator_parts.sweep import write_images  # pyright: ignore[reportMissingImports]

    write_images(tmp_path / "mnist", False)
    found = data.load("mnist", data_dir=tmp_path)
    assert found.pool_images.shape == (3000, 28, 28, 1)
    assert found.test_images.shape == (500, 28, 28, 1)
    # Images of a class are nearer to each other than to those of another.
    images = found.pool_images.reshape(len(found.pool_images), -1) / 255
    means = np.stack([images[found.pool_labels == label].mean(axis=0) for label in range(10)])
    distances = np.linalg.norm(images[:100, None] - means, axis=-1)
    assert np.mean(np.argmin(distances, axis=-1) == found.pool_labels[:100]) > 0.9
