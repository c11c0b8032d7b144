"""The runs below a folder, as their manifests tell them."""

import pytest

from jaxcomp.experiments.listing import find_runs
from jaxcomp.experiments.run import Run
from jaxcomp.experiments.sweep.config import SweepConfig


class Nothing:
    def save(self):
        pass


def test_runs_are_found_with_their_state_and_what_is_special_about_them(tmp_path):
    plain = SweepConfig().to_dict()
    with Run(tmp_path / "a" / "done", plain | {"seed": 3}, noun="sweep") as run:
        run.finish(Nothing())
    (tmp_path / "a" / "done" / "inner").mkdir()
    (tmp_path / "a" / "done" / "inner" / "manifest.json").write_text(
        '{"kind": "x", "settings": {}}'
    )
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "manifest.json").write_text('{"name": "an app", "settings": 3}')
    given = {"name": "lenet", "variants": ["original"], "seed": 0}
    with Run(tmp_path / "b", given, noun="sweep"), Run(tmp_path / "c", {"n": 1}, noun="poem"):
        found = find_runs(tmp_path)
    told = [(run.path.removeprefix(str(tmp_path)), run.kind, run.state) for run in found]
    assert told == [
        ("/a/done", "sweep", "finished"),
        ("/b", "sweep", "locked"),
        ("/c", "poem", "locked"),
    ]
    assert [run.changed for run in found] == [{"seed": 3}, {"name": "lenet"}, {}]
    assert [run.state for run in find_runs(tmp_path)][1:] == ["unfinished", "unfinished"]
    files = [file for file in (tmp_path / "b").rglob("*") if file.is_file()]
    assert find_runs(tmp_path)[1].size_bytes == sum(file.stat().st_size for file in files)
    assert found[0].settings == plain | {"seed": 3}
    assert found[0].written.endswith("+00:00")


def test_there_must_be_a_folder(tmp_path):
    with pytest.raises(ValueError, match="there is no directory"):
        find_runs(tmp_path / "no")
