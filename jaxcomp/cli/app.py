"""What the commands are gathered in, and its own options."""

from typing import Annotated

import typer

from jaxcomp import __version__

HELP_OPTIONS = ["-h", "--help"]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": HELP_OPTIONS},
    help=(
        "How far can a trained model be compressed, what does each bit cost, and does the "
        "compressed model generalise better?\n\n"
        "`jaxcomp compress model.safetensors -o small.jxc` makes a model of your own small, "
        "without data.\n\n"
        "Of the experiments start with `jaxcomp sweep`: about a minute on two cores, no data "
        "needed. `jaxcomp linear-regression` is the example with closed forms, `jaxcomp "
        "regularization` asks in what sense a penalty on the weights compresses a model."
    ),
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"jaxcomp {__version__}")
        raise typer.Exit()


@app.callback()
def _command(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Hold the options that stand before a subcommand."""
