"""Runs that lie in folders: listed by the command."""

import json

from command_line import assert_one_sentence, invoke

from jaxcomp.experiments.run import Run
from jaxcomp.experiments.sweep.config import SweepConfig


def test_runs_are_listed(tmp_path):
    assert_one_sentence(invoke("list", tmp_path / "no"), "there is no directory .*no; name one")
    assert invoke("list", tmp_path).stdout == f"no runs in {tmp_path} or below it.\n"
    settings = SweepConfig(num_models=2, importance=("none", "fisher")).to_dict()
    with Run(tmp_path / "first", settings, noun="sweep"):
        pass
    told = invoke("list", tmp_path).stdout.splitlines()
    assert [word in told[0] for word in ("first", "sweep", "unfinished", "0.0 MB")] == [True] * 4
    assert told[1] == "    num_models 2; importance none, fisher"
    found = json.loads(invoke("list", tmp_path, "--json").stdout)
    assert found["directory"] == str(tmp_path)
    (run,) = found["runs"]
    assert (run["kind"], run["state"], run["settings"]) == ("sweep", "unfinished", settings)
    assert run["size_bytes"] > 0
