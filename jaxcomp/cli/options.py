"""Options of the command: made from fields of settings, and those that several commands share."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypeAlias, get_args, get_origin, get_type_hints

import typer
from typer.models import OptionInfo

from jaxcomp.cli import config_file
from jaxcomp.cli.session import Device, one_sentence_errors
from jaxcomp.experiments.picture_style import PictureStyle
from jaxcomp.experiments.settings import Option, Panel

Command: TypeAlias = Callable[..., None]


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
Style = Annotated[
    PictureStyle,
    typer.Option(help="Whether pictures are light or dark.", rich_help_panel=Panel.RUN),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=Panel.RUN)]
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
    All of them, its own too, may stand in the file that one more option, `--config`, names.

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
    plain = {field.name: hints[field.name] for field in fields(settings)}

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command)
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in signature.parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        kinds = plain | _own_kinds(command)

        @functools.wraps(command)
        def with_options(context: typer.Context, config: Path | None, **values: Any) -> None:
            given = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in values.items()
                if name not in names or value not in (None, [])
            }
            if config is not None:
                with one_sentence_errors(values.get("traceback", False)):
                    for name, value in config_file.read(config, kinds, context.info_name).items():
                        if not _is_said(context, name):
                            given[name] = value
            command(**given)

        parameters = [_CONTEXT, *asked, _CONFIG, *own]
        with_options.__signature__ = signature.replace(parameters=parameters)  # pyright: ignore[reportAttributeAccessIssue]
        return with_options

    return decorate


_CONTEXT = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
_CONFIG = inspect.Parameter(
    "config",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="Settings from a file: TOML, or the manifest.json of a run. What stands on the "
            "command line overrides it.",
            rich_help_panel=Panel.RUN,
        ),
    ],
)
# Of how a command speaks, not of what it does.
_NOT_IN_FILES = ("as_json", "style", "traceback")


def _own_kinds(command: Command) -> dict[str, Any]:
    """Types of the options that a command declares itself."""
    kinds = {}
    for name, hint in get_type_hints(command, include_extras=True).items():
        if get_origin(hint) is Annotated and name not in _NOT_IN_FILES:
            kind, *told = get_args(hint)
            if any(isinstance(one, OptionInfo) for one in told):
                kinds[name] = kind
    return kinds


def _is_said(context: typer.Context, name: str) -> bool:
    """Whether an option was given, in words or by a variable of the environment."""
    source = context.get_parameter_source(name)
    return source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT")


def _parameter(name: str, kind: Any, option: Option, default: Any) -> inspect.Parameter:
    """An option as Typer reads it from a signature: a tuple is an option that may be repeated."""
    if get_origin(kind) is tuple:
        kind = list[get_args(kind)[0]]
        default = default if default is None else list(default)
    info = typer.Option(
        *option.names,
        help=option.help,
        rich_help_panel=option.panel,
        autocompletion=_proposes(option.choices) if option.choices else None,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind | None if default is None else kind, info],
    )


def _proposes(choices: tuple[str, ...]) -> Callable[[str], list[str]]:
    def proposals(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return proposals
