"""Options of the command: made from fields of settings, and those that several commands share."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeAlias, get_args, get_origin, get_type_hints

import typer

from jaxcomp.experiments.settings import Option, Panel

Command: TypeAlias = Callable[..., None]


class Device(StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"
    tpu = "tpu"


# Defaults stand in the signatures of the commands.
DataDir = Annotated[
    Path | None,
    typer.Option(
        help="Folder with the data files, or one that holds a folder of the data set's name.",
        envvar="JAXCOMP_DATA_DIR",
        rich_help_panel=Panel.DATA,
    ),
]
Download = Annotated[
    bool,
    typer.Option("--download", help="Fetch missing data from OpenML.", rich_help_panel=Panel.DATA),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Directory for results; default: a folder in runs, named by the settings.",
        rich_help_panel=Panel.RUN,
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume/--no-resume",
        help="Go on from what an earlier call with the same settings finished.",
        rich_help_panel=Panel.RUN,
    ),
]
DeviceOption = Annotated[Device, typer.Option(help="Where to compute.", rich_help_panel=Panel.RUN)]
CompilationCache = Annotated[
    bool,
    typer.Option(
        "--compilation-cache/--no-compilation-cache",
        help="Keep compiled programs in the user's cache folder, or in that which "
        "JAXCOMP_CACHE_DIR names: later runs start sooner.",
        rich_help_panel=Panel.RUN,
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress.", rich_help_panel=Panel.RUN)
]
Traceback = Annotated[
    bool,
    typer.Option("--traceback", help="Show where an error came from.", rich_help_panel=Panel.RUN),
]


def options_of(settings: type, *, with_defaults: bool = False) -> Callable[[Command], Command]:
    """Give a command an option for every field of settings that is declared by `asked`.

    They take the place of the command's `**given`, which holds those that were given, by the names
    of their fields; one that may be repeated is a tuple. In `--help` they precede its own options.

    Args:
        settings: a dataclass.
        with_defaults: whether defaults of the fields are those of the options, which `--help` then
            shows; else something that is not known before decides, such as a preset.
    """
    hints = get_type_hints(settings)
    asked = [
        _parameter(field.name, hints[field.name], option, field.default if with_defaults else None)
        for field in fields(settings)
        if (option := field.metadata.get("option")) is not None
    ]
    names = {parameter.name for parameter in asked}

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command)
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in signature.parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]

        @functools.wraps(command)
        def with_options(**values: Any) -> None:
            given = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in values.items()
                if name not in names or value not in (None, [])
            }
            command(**given)

        with_options.__signature__ = signature.replace(parameters=[*asked, *own])  # pyright: ignore[reportAttributeAccessIssue]
        return with_options

    return decorate


def _parameter(name: str, kind: Any, option: Option, default: Any) -> inspect.Parameter:
    """An option as Typer reads it from a signature: a tuple is an option that may be repeated."""
    if get_origin(kind) is tuple:
        kind = list[get_args(kind)[0]]
        default = default if default is None else list(default)
    info = typer.Option(*option.names, help=option.help, rich_help_panel=option.panel)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind | None if default is None else kind, info],
    )
