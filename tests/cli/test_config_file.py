"""Settings from files: TOML and manifests, overridden by words, refused in one sentence."""

import json

import pytest
from command_line import assert_one_sentence, invoke

from jaxcomp.experiments.linear_regression.config import StudyConfig
from jaxcomp.experiments.sweep.config import SweepConfig


@pytest.fixture
def seen(monkeypatch):
    """Settings and keywords of every run that a command would make."""
    seen = []

    def run(config, *_, **keywords):
        seen.append((config, keywords))
        raise ValueError("enough")

    monkeypatch.setattr("jaxcomp.experiments.sweep.run_in_team", run)
    monkeypatch.setattr("jaxcomp.experiments.linear_regression.run", run)
    return seen


def written(path, text):
    path.write_text(text)
    return path


def test_words_override_a_file_and_a_file_the_preset(seen, tmp_path):
    file = written(
        tmp_path / "mine.toml",
        'preset = "paper"\nnum_models = 3\nnum_bins = 64\nimportance = "fisher"\n'
        f'num_clusters = [2, 4]\nlearning_rate = 1\nout = "{tmp_path / "run"}"\nquiet = true\n',
    )
    words = ["--models", "2", "--num-clusters", "8"]
    assert_one_sentence(invoke("sweep", "--config", file, *words), "enough")
    config, keywords = seen[0]
    assert (config.num_models, config.num_bins, config.num_clusters) == (2, 64, (8,))
    assert (config.importance, config.learning_rate) == (("fisher",), 1.0)
    assert config.dataset == ("mnist",)
    assert (keywords["out"], keywords["quiet"]) == (tmp_path / "run", True)


def test_the_manifest_of_a_run_gives_the_same_settings(seen, tmp_path):
    config = SweepConfig(num_models=2, train_size=(100, 200), num_bins=64, controls=False)
    told = {"kind": "sweep", "settings": config.to_dict()}
    file = written(tmp_path / "manifest.json", json.dumps(told))
    assert_one_sentence(invoke("sweep", "--config", file), "enough")
    assert_one_sentence(invoke("sweep", "--config", file, "--preset", "phase"), "enough")
    assert [config for config, _ in seen] == [config, config]
    assert_one_sentence(
        invoke("linear-regression", "--config", file),
        "tells of a sweep; give it to jaxcomp sweep, and to jaxcomp linear-regression one of its",
    )


def test_options_that_show_their_defaults_can_be_overridden(seen, tmp_path):
    file = written(tmp_path / "mine.toml", "num_examples = 90\nadaptive = false\ndim = 20\n")
    assert_one_sentence(invoke("linear-regression", "--config", file, "--dim", "50"), "enough")
    assert seen[0][0] == StudyConfig(num_examples=(90,), adaptive=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models = 2", r"mine.toml has the key 'models', .* sweep does not know; .* num_models,"),
        ("num_models = 2.5", r"num_models in .*mine.toml must be a whole number, got 2.5"),
        ("num_models = true", "must be a whole number, got True"),
        ("width = [1]", "width in .* must be a number"),
        ("train_size = [1, 'x']", "train_size in .* must be a whole number, or a list of such"),
        ("controls = 1", "controls in .* must be true or false"),
        ("preset = 'slow'", "preset in .* must be one of quick, paper, phase, got 'slow'"),
        ("out = 3", "out in .* must be a text"),
        ("num_models == 2", "mine.toml is no TOML: "),
        ("num_models = 0", "num_models must be at least 1"),
    ],
)
def test_what_a_file_cannot_say(text, message, tmp_path):
    file = written(tmp_path / "mine.toml", text)
    assert_one_sentence(invoke("sweep", "--config", file), message)


def test_files_that_are_none(tmp_path):
    assert_one_sentence(invoke("sweep", "--config", tmp_path), "cannot be read")
    assert_one_sentence(invoke("sweep", "--config", tmp_path / "no"), "no cannot be read .* name a")
    for text, message in (("[1]", "holds no settings"), ("{", "is no JSON")):
        file = written(tmp_path / "a.json", text)
        assert_one_sentence(invoke("sweep", "--config", file), message)
