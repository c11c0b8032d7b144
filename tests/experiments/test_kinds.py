"""Every kind of run is known by its command, its settings and its results."""

import importlib
import json

import pytest

from jaxcomp.experiments import kinds
from jaxcomp.experiments.manifest import FORMAT_VERSION


@pytest.mark.parametrize("name", list(kinds.KINDS))
def test_every_kind_has_its_settings_and_results(name):
    kind = kinds.KINDS[name]
    result = kinds._named(kind.result)
    assert name == importlib.import_module(result.__module__).NOUN
    assert {"load", "save", "print_report"} <= set(dir(result))
    defaults = kind.defaults()
    assert json.loads(json.dumps(defaults)) == defaults
    assert "seed" in defaults


def test_a_kind_that_is_not_known(tmp_path):
    told = {"kind": "poem", "format_version": FORMAT_VERSION, "settings": {}, "times": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(told | {"status": "finished"}))
    with pytest.raises(ValueError, match=r"holds a poem, which .* one of these: sweep, regulariz"):
        kinds.load(tmp_path)
