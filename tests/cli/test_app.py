"""The command itself: help that teaches, its version, what it needs."""

import pytest
import typer
from command_line import assert_one_sentence, invoke, run_process
from slow_cases import some_slow
from typer.testing import CliRunner

import jaxcomp
from jaxcomp import cli
from jaxcomp.cli import app


def test_help_teaches():
    top, sweep = invoke("--help"), invoke("sweep", "--help")
    assert top.exit_code == sweep.exit_code == 0
    assert "jaxcomp sweep" in top.stdout
    for option in (
        "--preset", "--dataset", "--data-dir", "--model", "--importance", "--penalty-form",
        "--num-clusters", "--diameter-penalty", "--models", "--train-size", "--label-noise",
        "--epochs", "--seed", "--out", "--resume", "--device", "--method", "--allocation",
    ):  # fmt: skip
        assert option in sweep.stdout
    assert "Ctrl-C" in sweep.stdout


def test_the_version():
    result = run_process("-m", "jaxcomp", "--version")
    assert (result.returncode, result.stdout) == (0, f"jaxcomp {jaxcomp.__version__}\n")


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["sweep", "--help"], ["plot", "-h"]])
def test_help_is_that_of_typer_without_its_checks(arguments, capsys):
    cli.main(arguments)
    expected = CliRunner().invoke(app, arguments, prog_name="jaxcomp").stdout
    assert capsys.readouterr().out.split() == expected.split()


@pytest.mark.parametrize("missing", some_slow(["typer", "pandas"], "pandas"))
def test_without_the_packages_of_the_command(missing):
    absent = "import sys; sys.meta_path.insert(0, Absent())"
    finder = (
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {missing!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}')\n"
    )
    code = f"{finder}{absent}\nfrom jaxcomp import cli\ncli.main(['sweep'])"
    assert_one_sentence(run_process("-c", code), r"pip install 'jaxcomp\[sweep\]'")


@pytest.mark.parametrize(
    ("words", "proposed"),
    [
        ("sweep --preset p", ["paper", "phase"]),
        ("sweep --dataset fa", ["fashion-mnist"]),
        ("sweep --config ", []),  # files are the shell's
        ("co", ["compress"]),
    ],
)
def test_a_shell_completes_commands_and_choices(words, proposed):
    count = len(words.split(" "))
    variables = {"COMP_WORDS": f"jaxcomp {words}", "COMP_CWORD": str(count)}
    result = CliRunner().invoke(
        app, prog_name="jaxcomp", env={"_JAXCOMP_COMPLETE": "complete_bash", **variables}
    )
    assert result.stdout.split() == proposed


def test_every_report_can_be_json():
    for name, command in typer.main.get_command(app).commands.items():  # pyright: ignore
        assert any("--json" in option.opts for option in command.params), name


def test_every_command_that_draws_can_draw_dark():
    drawing = {"sweep", "regularization", "linear-regression", "small-descriptions", "train-small"}
    commands = typer.main.get_command(app).commands  # pyright: ignore
    for name in drawing | {"plot", "certify", "inspect"}:
        assert any("--style" in option.opts for option in commands[name].params), name
    assert invoke("plot", "runs", "--style", "sepia").exit_code == 2


def test_usage_errors_are_code_2():
    assert invoke("sweep", "--preset", "slow").exit_code == 2
    assert invoke("sweep", "--num-clusters", "many").exit_code == 2
    assert invoke("squeeze").exit_code == 2
