import shutil
import sysconfig
from pathlib import Path

import pytest

from jaxcomp.experiments.data import standard_library


def test_sentences_are_spread_and_the_same_on_every_call(tmp_path, monkeypatch):
    # A tenth of the modules: reading all of them takes seconds.
    modules = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    for module in modules[::10]:
        shutil.copy(module, tmp_path)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    some = standard_library.sentences(5)
    assert some == standard_library.sentences(5)
    assert len(set(some)) == 5
    assert all(6 <= len(sentence.split()) <= 30 for sentence in some)


@pytest.mark.slow
def test_more_than_there_are():
    with pytest.raises(ValueError, match="asked for 1000000 sentences, but the docstrings have"):
        standard_library.sentences(1_000_000)
