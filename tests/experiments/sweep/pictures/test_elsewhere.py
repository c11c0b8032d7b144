"""Pictures of a second process: the same files, and none missing without it."""

import sys

import pytest
from synthetic_sweep import SMALL, synthetic_table

from jaxcomp.experiments.picture_style import drawn_in
from jaxcomp.experiments.sweep.pictures import elsewhere, save_figures
from jaxcomp.experiments.sweep.task_words import CLASSIFICATION

FORMATS = ("svg",)


@pytest.fixture(scope="module")
def table():
    rows = synthetic_table(SMALL, num_models=2)
    return rows[rows["variant"].isin(["original", "kmeans/none/K4"])]


def with_another(table, folder):
    with elsewhere.Elsewhere() as other:
        other.ask(table, (), (), CLASSIFICATION, FORMATS)
        save_figures(table, folder, formats=FORMATS, elsewhere=other)
        process, answered = other._process, set(other.answer())
    assert process is None or process.returncode is not None
    return {file.name: file.read_bytes() for file in folder.iterdir()}, answered


ANSWERS = (
    "import pickle, sys; sys.stdin.buffer.read(); "
    "sys.stdout.buffer.write(pickle.dumps(dict(sweep=[b'theirs'])))"
)


@pytest.mark.parametrize(
    ("program", "is_frozen", "expected"),
    [(ANSWERS, False, b"theirs"), ("1 / 0", False, b"<?xml "), (ANSWERS, True, b"<?xml ")],
    ids=["answers", "is lost", "cannot be had"],
)
def test_what_it_does_not_draw_is_drawn_here(
    table, tmp_path, monkeypatch, program, is_frozen, expected
):
    monkeypatch.setattr(elsewhere, "_PROGRAM", program)
    monkeypatch.setattr(sys, "frozen", is_frozen, raising=False)
    few = table.drop(columns=["zero_one_bound", "predicted_rise_nats"])
    files, _ = with_another(few, tmp_path)
    assert {name: data[:6] for name, data in files.items()} == {
        "sweep.svg": expected,
        "sweep-details.svg": b"<?xml ",
    }


@pytest.mark.slow
def test_two_processes_draw_what_one_draws(table, tmp_path):
    with drawn_in("dark"):
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
        one = save_figures(table, tmp_path / "one", formats=FORMATS)
        two, answered = with_another(table, tmp_path / "two")
    assert answered == {"sweep", "predicted-rise"}
    assert two == {file.name: file.read_bytes() for file in one}
