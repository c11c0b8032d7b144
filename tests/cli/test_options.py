"""Options that are made from the fields of settings."""

from dataclasses import dataclass, fields

import pytest
import typer
from typer.testing import CliRunner

from jaxcomp.cli.options import options_of
from jaxcomp.experiments.linear_regression.config import StudyConfig
from jaxcomp.experiments.regularization.config import RegularizationConfig
from jaxcomp.experiments.settings import Panel, asked
from jaxcomp.experiments.sweep.config import SweepConfig


@dataclass
class Soup:
    salt: float = asked(0.5, "Grams of it.", Panel.DATA)
    roots: tuple[str, ...] = asked(("carrot",), "What grows below.", Panel.DATA, "--root", "-r")
    num_plates: int = asked(4, "Guests.", Panel.RUN, "--guests")
    hot: bool = asked(True, "As it should be.", Panel.RUN)
    spoon: str = "wood"


def cooked(*arguments, with_defaults):
    """What a command of these settings is given, and its help."""
    app, seen = typer.Typer(), []

    @app.command()
    @options_of(Soup, with_defaults=with_defaults)
    def cook(lid: bool = False, **given):
        """Cook."""
        seen.append((lid, given))

    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return seen[0] if seen else result.stdout


def test_only_what_is_given_is_handed_on():
    assert cooked(with_defaults=False) == (False, {})
    words = ["--lid", "--salt", "0", "-r", "leek", "--root", "beet", "--guests", "2", "--no-hot"]
    expected = {"salt": 0.0, "roots": ("leek", "beet"), "num_plates": 2, "hot": False}
    assert cooked(*words, with_defaults=False) == (True, expected)


def test_defaults_of_the_fields_may_be_those_of_the_options():
    told = {"salt": 0.5, "roots": ("carrot",), "num_plates": 4, "hot": True}
    assert cooked(with_defaults=True) == (False, told)
    assert cooked("-r", "leek", with_defaults=True)[1] == told | {"roots": ("leek",)}
    shown = cooked("--help", with_defaults=True)
    for words in ("Grams of it.", "default: 0.5", "default: carrot", "default: 4", "--no-hot"):
        assert words in shown
    assert "default: 4" not in cooked("--help", with_defaults=False)
    for panel in (Panel.DATA, Panel.RUN):
        assert f" {panel} " in shown
    assert "spoon" not in shown
    assert "given" not in shown


@pytest.mark.parametrize("settings", [SweepConfig, RegularizationConfig, StudyConfig])
def test_every_option_of_an_experiment_says_what_it_is(settings):
    options = {field.name: field.metadata.get("option") for field in fields(settings)}
    asked_for = {name: option for name, option in options.items() if option is not None}
    assert "seed" in asked_for
    for name, option in asked_for.items():
        assert option.help.endswith("."), name
        is_repeated = isinstance(getattr(settings, name), tuple)
        assert is_repeated == ("May be repeated" in option.help), name
