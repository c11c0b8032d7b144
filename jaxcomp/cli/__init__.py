"""The command `jaxcomp`: compress models to files and back, sweep compression rates, and more.

Results go to files and a report to standard output; progress goes to standard error. Exit code
2 means that something asked for cannot be done, with one sentence that says what to change.
"""

import io
import sys

try:
    import typer
except ModuleNotFoundError:
    print("jaxcomp: the command needs more packages; pip install 'jaxcomp[sweep]'", file=sys.stderr)
    raise SystemExit(2) from None

from jaxcomp.cli import certify, doctor, experiments, files, runs  # noqa: F401 - add their commands
from jaxcomp.cli.app import HELP_OPTIONS, app

__all__ = ["app", "main"]


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal cannot write must not cost a finished run its report.
        sys.stdout.reconfigure(errors="backslashreplace")
    if not _print_help(arguments):
        app(arguments, prog_name="jaxcomp")


def _print_help(arguments: list[str]) -> bool:
    """Print the help of the command or a subcommand, if that is all that is asked for.

    Typer does so too, but loads its checks of values first, which takes longer than the help.
    """
    *names, last = arguments or [""]
    if last not in HELP_OPTIONS or len(names) > 1:
        return False
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="jaxcomp", **command.context_settings)
    if names:
        found = getattr(command, "commands", {}).get(names[0])
        if found is None:
            return False
        command = found
        context = typer.Context(
            command, parent=context, info_name=names[0], **command.context_settings
        )
    typer.echo(command.get_help(context), nl=False)
    return True
