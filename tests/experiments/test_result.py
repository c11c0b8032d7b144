"""Files of a result: what is damaged or changed is found before it is read."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest

from jaxcomp import storage
from jaxcomp.experiments.result import loading, read_table, seal, to_dict, write_table
from jaxcomp.experiments.run import Run


class Numbers:
    """A result of one file."""

    def __init__(self, run):
        self.run = run

    def save(self):
        file = self.run.path / "result.json"
        storage.write_json(file, {"numbers": [1, 2]})
        seal(self.run.manifest, self.run.path, [file])


def opened(path):
    return Run(path, {"seed": 0}, noun="trial")


def test_damage_is_found_before_results_are_read(tmp_path):
    def load(folder):
        with loading(folder, "trial"):
            return storage.read_json(folder / "result.json")["numbers"]

    result = tmp_path / "result.json"
    with opened(tmp_path) as run:
        run.finish(Numbers(run))
    assert load(tmp_path) == [1, 2]
    written = result.read_bytes()
    for damaged in (b"", written[:-3], written.replace(b"2", b"3"), b"{}", b"[]", None):
        result.unlink()
        if damaged is not None:
            result.write_bytes(damaged)
        with pytest.raises(ValueError, match="run the trial again with the same command"):
            load(tmp_path)
        with opened(tmp_path) as run:
            assert run.is_finished
            assert run.finished(load) is None
            assert not run.is_finished
            run.finish(Numbers(run))
    with opened(tmp_path) as run:
        assert run.finished(load) == [1, 2]
        seal(run.manifest, tmp_path, [])
        result.write_text("{}")
        assert run.finished(load) is None  # whatever reading it raises


def test_tables_for_people_and_programs(tmp_path):
    table = pd.DataFrame({"loss": [0.1 + 0.2, float("nan")], "variant": ["a", "b"]})
    files = write_table(table, tmp_path, "numbers")
    assert [file.name for file in files] == ["numbers.csv", "numbers.parquet"]
    pd.testing.assert_frame_equal(read_table(files[1]), table, check_exact=True)
    pd.testing.assert_frame_equal(read_table(files[0]), table)
    files[1].write_bytes(files[1].read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"(?i)parquet"):
        read_table(files[1])


class Said(NamedTuple):
    sentence: str
    effect: float
    reference: tuple[str, ...]


@dataclass
class Found:
    table: pd.DataFrame
    claims: list[Said]
    manifest: dict[str, Any]
    directory: Path | None = None
    _networks: dict[str, Any] = field(default_factory=dict)


def test_a_result_as_plain_objects_has_the_names_that_it_has_in_python():
    table = pd.DataFrame({"variant": ["a", "b"], "loss": [0.1, math.nan], "holds": [True, False]})
    manifest = {"kind": "trial", "settings": {"seed": 0}}
    found = Found(table, [Said("fine.", -0.5, ("a",))], manifest, Path("runs"), {"a": object()})
    told = json.loads(storage.json_line(to_dict(found)))
    assert told == {
        "kind": "trial",
        "table": [
            {"variant": "a", "loss": 0.1, "holds": True},
            {"variant": "b", "loss": None, "holds": False},
        ],
        "claims": [{"sentence": "fine.", "effect": -0.5, "reference": ["a"]}],
        "manifest": manifest,
        "directory": "runs",
    }
