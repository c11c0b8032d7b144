"""The command that looks after the installation."""

import typer

from jaxcomp.cli.app import app
from jaxcomp.cli.options import DeviceOption, Json, Quiet, Traceback
from jaxcomp.cli.session import Device, one_sentence_errors, print_text, set_up_jax


@app.command(
    epilog=(
        "Examples: `jaxcomp doctor`; `jaxcomp doctor --json > doctor.json` for a report of a "
        "problem. Exit code 1 if an answer is wrong."
    )
)
def doctor(
    as_json: Json = False,
    device: DeviceOption = Device.auto,
    quiet: Quiet = False,
    traceback: Traceback = False,
) -> None:
    """Look at versions, devices and settings, and check the arithmetic of this machine.

    Half a dozen small problems with known answers, some ten seconds; what is wrong comes with what
    to do about it.
    """
    with one_sentence_errors(traceback, "stopped."):
        set_up_jax(device, compilation_cache=False)
        from jaxcomp.doctor import Check, examine
        from jaxcomp.storage import json_line

        def tell(check: Check) -> None:
            if not quiet:
                typer.echo(f"{check.name}: {check.seconds:.1f} s", err=True)

        found = examine(tell)
        print_text(json_line(found.to_dict()) if as_json else str(found))
    if not found.is_sound:
        raise typer.Exit(1)
