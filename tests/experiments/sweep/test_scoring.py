"""What a worker does for a network: in which order, and what is there when it has done it."""

import time
from types import SimpleNamespace

import pytest

from jaxcomp.experiments.sweep import scoring


def tools_of_a_scorer_that_keeps_what_it_scores(folder):
    work = SimpleNamespace(file="network", run=SimpleNamespace(path=folder))
    tools = scoring._Tools(work)  # pyright: ignore[reportArgumentType]

    def score(variants, keep):
        for variant in variants:
            keep(variant, variant.encode())
        return [{"variant": variant} for variant in variants]

    tools._scorer = SimpleNamespace(score=score)  # pyright: ignore[reportAttributeAccessIssue]
    return tools


def test_files_are_there_before_their_rows(tmp_path, monkeypatch):
    def write(folder, name, variant, data):
        time.sleep(0.05)
        (folder / f"{name}-{variant}").write_bytes(data)

    monkeypatch.setattr(scoring, "write_file", write)
    tools = tools_of_a_scorer_that_keeps_what_it_scores(tmp_path)
    for chunk in (["a", "b"], ["c"]):
        rows = tools.score(None, chunk)
        assert [row["variant"] for row in rows] == chunk
        assert all((tmp_path / f"network-{name}").read_bytes() == name.encode() for name in chunk)


def test_rows_whose_file_cannot_be_written_are_none(tmp_path, monkeypatch):
    def write(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(scoring, "write_file", write)
    tools = tools_of_a_scorer_that_keeps_what_it_scores(tmp_path)
    with pytest.raises(OSError, match="the disk is full"):
        tools.score(None, ["a", "b"])


@pytest.mark.parametrize("compiles_scores", [True, False])
def test_a_worker_compiles_what_scores_once_before_it_solves(monkeypatch, compiles_scores):
    calls = []

    class Tools:
        def __init__(self, work):
            self.work = work

        def compile_scores(self):
            calls.append(f"compile for {self.work}")

        def solve(self):
            calls.append(f"solve {self.work}")

    monkeypatch.setattr(scoring, "_Tools", Tools)
    desk = scoring._Desk(compiles_scores=compiles_scores)
    for work in ("first", "second"):
        desk.solve(work)
    assert calls == ["compile for first"] * compiles_scores + ["solve first", "solve second"]
