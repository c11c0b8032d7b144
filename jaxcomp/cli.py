"""The command `jaxcomp`: sweep compression rates, draw a finished sweep again, compute the example.

Results go to files and a report to standard output; progress goes to standard error. Exit code
2 means that something asked for cannot be done, with one sentence that says what to change.
"""

import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

try:
    import typer
except ModuleNotFoundError:
    print("jaxcomp: the command needs more packages; pip install 'jaxcomp[sweep]'", file=sys.stderr)
    raise SystemExit(2) from None

from jaxcomp import __version__

if TYPE_CHECKING:
    from rich.console import Console

    from jaxcomp.experiments.linear_regression.study import StudyResult
    from jaxcomp.experiments.regularization import RegularizationResult
    from jaxcomp.experiments.sweep import SweepResult

_HELP_OPTIONS = ["-h", "--help"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": _HELP_OPTIONS},
    help=(
        "How far can a trained model be compressed, what does each bit cost, and does the "
        "compressed model generalise better?\n\n"
        "Start with `jaxcomp sweep`: about a minute on two cores, no data needed. `jaxcomp "
        "linear-regression` is the example with closed forms, `jaxcomp regularization` asks in "
        "what sense a penalty on the weights compresses a model."
    ),
)


class Device(StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"
    tpu = "tpu"


class Preset(StrEnum):
    """Named settings."""

    quick = "quick"
    paper = "paper"


_DATA = "What is learned"
_TRAINING = "How it is trained"
_GRID = "How it is compressed"
_RUN = "Running"
_PROBLEM = "What is learned from what"
_SIMULATION = "What is drawn"
_PENALTIES = "How it is penalised"
_CODES = "How it is coded"

# Options that several commands share; defaults stand in their signatures.
DataDir = Annotated[
    Path | None,
    typer.Option(
        help="Folder with the data files, or one that holds a folder of the data set's name.",
        envvar="JAXCOMP_DATA_DIR",
        rich_help_panel=_DATA,
    ),
]
Download = Annotated[
    bool,
    typer.Option("--download", help="Fetch missing data from OpenML.", rich_help_panel=_DATA),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Directory for results; default: a folder in runs, named by the settings.",
        rich_help_panel=_RUN,
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume/--no-resume",
        help="Go on from what an earlier call with the same settings finished.",
        rich_help_panel=_RUN,
    ),
]
DeviceOption = Annotated[Device, typer.Option(help="Where to compute.", rich_help_panel=_RUN)]
CompilationCache = Annotated[
    bool,
    typer.Option(
        "--compilation-cache/--no-compilation-cache",
        help="Keep compiled programs in the user's cache folder, or in that which "
        "JAXCOMP_CACHE_DIR names: later runs start sooner.",
        rich_help_panel=_RUN,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.", rich_help_panel=_RUN)]
Traceback = Annotated[
    bool,
    typer.Option("--traceback", help="Show where an error came from.", rich_help_panel=_RUN),
]


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


@app.command(
    epilog=(
        "Examples: `jaxcomp sweep` (quick tour on scikit-learn's digits); `jaxcomp sweep --preset "
        "paper --models 5 --data-dir DATA` (the published MNIST experiment); `jaxcomp sweep "
        "--preset paper --label-noise 0.3` (memorised labels: where compression may really help); "
        "`jaxcomp sweep --num-clusters 4 --num-clusters 8 --diameter-penalty 0.05`; `jaxcomp sweep "
        "--method kmeans --method optimal --allocation equal --allocation optimal` (quantizers "
        "compared)."
    )
)
def sweep(
    preset: Annotated[
        Preset,
        typer.Option(
            help="quick: digits, 5 networks, a minute. paper: the published experiment on MNIST, "
            "20 networks, 120 quantized variants. Every other option overrides the preset."
        ),
    ] = Preset.quick,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            help="digits (in scikit-learn), mnist, fashion-mnist, cifar10. May be repeated.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    data_dir: DataDir = None,
    download: Download = False,
    train_size: Annotated[
        int | None,
        typer.Option(help="Training examples drawn for each network.", rich_help_panel=_DATA),
    ] = None,
    replacement: Annotated[
        bool | None,
        typer.Option(
            "--replacement/--no-replacement",
            help="Draw them with replacement, as published.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    validation_size: Annotated[
        int | None,
        typer.Option(
            help="Examples of the validation set: every choice and every temperature is made "
            "on it; the test set is looked at once.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    label_noise: Annotated[
        list[float] | None,
        typer.Option(
            help="Fraction of wrong training labels. May be repeated.", rich_help_panel=_DATA
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="mlp (784-256-256-10) or vgg (3x3 convolutions, 32x32 images). May be repeated.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    width: Annotated[
        float | None,
        typer.Option(help="Factor on all hidden widths.", rich_help_panel=_TRAINING),
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option(help="Dropout rate of the mlp.", rich_help_panel=_TRAINING),
    ] = None,
    models: Annotated[
        int | None,
        typer.Option(
            help="Independent networks; intervals are over them and over the test examples.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    standardize: Annotated[
        bool | None,
        typer.Option(
            "--standardize/--no-standardize",
            help="Pixels with the training pool's mean and deviation, as published; or in [0, 1].",
            rich_help_panel=_DATA,
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the sample.", rich_help_panel=_TRAINING)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Examples a step.", rich_help_panel=_TRAINING)
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of SGD with momentum 0.9.", rich_help_panel=_TRAINING)
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="L2 penalty.", rich_help_panel=_TRAINING)
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="Quantizer: kmeans (Lloyd's iteration, as published), optimal (the best codebooks "
            "there are, of all sizes from one solve), entropy_constrained (least distortion for "
            "the bits of an entropy coder, ten rates), vector (pairs of weights). May be repeated.",
            rich_help_panel=_GRID,
        ),
    ] = None,
    allocation: Annotated[
        list[str] | None,
        typer.Option(
            help="How layers share the bits: equal (the same K in each) or optimal (as many bits "
            "in all, where they lower the distortion most). May be repeated.",
            rich_help_panel=_GRID,
        ),
    ] = None,
    importance: Annotated[
        list[str] | None,
        typer.Option(
            help="What weighs a weight's squared error in K-means: none, gauss_newton (exact "
            "curvature), hutchinson (random probes of the Hessian; hutchinson-16 with 16), fisher "
            "(squared gradients), adam (Adam's second moments). May be repeated.",
            rich_help_panel=_GRID,
        ),
    ] = None,
    penalty_form: Annotated[
        list[str] | None,
        typer.Option(
            help="How the diameter of a codebook is penalised: monotone, published or linear. "
            "May be repeated.",
            rich_help_panel=_GRID,
        ),
    ] = None,
    num_clusters: Annotated[
        list[int] | None,
        typer.Option(
            help="Codebook size K of every layer. May be repeated.", rich_help_panel=_GRID
        ),
    ] = None,
    diameter_penalty: Annotated[
        list[float] | None,
        typer.Option(
            help="Relative strength of the diameter penalty; 0 is always there. May be repeated.",
            rich_help_panel=_GRID,
        ),
    ] = None,
    curvature_examples: Annotated[
        int | None,
        typer.Option(
            help="Training examples that curvature is measured on.", rich_help_panel=_GRID
        ),
    ] = None,
    num_probes: Annotated[
        int | None, typer.Option(help="Probes of hutchinson.", rich_help_panel=_GRID)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of everything random.", rich_help_panel=_RUN)
    ] = None,
    out: Out = None,
    resume: Resume = True,
    device: DeviceOption = Device.auto,
    compilation_cache: CompilationCache = True,
    quiet: Quiet = False,
    traceback: Traceback = False,
) -> None:
    """Train networks, compress their weights at many rates, and say what of it is real.

    Every variant shows the training loss, the test loss raw and after temperature scaling, the
    generalization gap and the accuracy against the compression ratio; claims come with 95 %
    intervals, and what compresses nothing (temperature, shrinkage, clipping, noise, early
    stopping) stands beside them. Stop with Ctrl-C and run the same command to go on.
    """
    overrides: dict[str, Any] = {
        "dataset": dataset,
        "train_size": train_size,
        "replacement": replacement,
        "validation_size": validation_size,
        "label_noise": label_noise,
        "model": model,
        "width": width,
        "dropout": dropout,
        "num_models": models,
        "standardize": standardize,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "method": method,
        "allocation": allocation,
        "importance": importance,
        "penalty_form": penalty_form,
        "num_clusters": num_clusters,
        "diameter_penalty": diameter_penalty,
        "curvature_examples": curvature_examples,
        "num_probes": num_probes,
        "seed": seed,
    }
    with _one_sentence_errors(traceback):
        _start(device, compilation_cache)
        from jaxcomp.experiments.sweep import config as settings
        from jaxcomp.experiments.sweep import run

        chosen = settings.preset(preset.value, **_given(overrides))
        directory = _directory(out, preset.value, chosen.to_dict())
        result = run(
            chosen, out=directory, data_dir=data_dir, download=download, resume=resume, quiet=quiet
        )
        _report(result)


@app.command()
def plot(
    directory: Annotated[
        Path,
        typer.Argument(help="Directory of a finished run of any of the other commands."),
    ],
    traceback: Traceback = False,
) -> None:
    """Draw the pictures of a finished run again and print its report."""
    with _one_sentence_errors(traceback):
        _start(Device.cpu, compilation_cache=False)
        from jaxcomp.experiments.directory import read_manifest

        kind = read_manifest(directory, "run").get("kind")
        if kind == "sweep":
            from jaxcomp.experiments.sweep import SweepResult

            swept = SweepResult.load(directory)
            swept.save()
            _report(swept)
        elif kind == "regularization run":
            from jaxcomp.experiments.regularization import RegularizationResult

            penalised = RegularizationResult.load(directory)
            penalised.save()
            _report_regularization(penalised)
        elif kind == "study":
            from jaxcomp.experiments.linear_regression.study import StudyResult

            studied = StudyResult.load(directory)
            studied.save()
            _report_study(studied)
        else:
            raise ValueError(
                f"{directory} holds a {kind}, which this version cannot draw; name the directory "
                "of a sweep, a regularization run or a linear-regression study."
            )


@app.command(
    epilog=(
        "Examples: `jaxcomp regularization` (digits, a minute and a half on two cores); `jaxcomp "
        "regularization --dataset mnist --data-dir DATA`; `jaxcomp regularization --label-noise "
        "0.3` (where a penalty has most to gain); `jaxcomp regularization --l2 0.001 --l2 0.01 "
        "--l1 0.001 --models 2` (a first look)."
    )
)
def regularization(
    dataset: Annotated[
        str,
        typer.Option(
            help="digits (in scikit-learn), mnist, fashion-mnist, cifar10.", rich_help_panel=_DATA
        ),
    ] = "digits",
    data_dir: DataDir = None,
    download: Download = False,
    train_size: Annotated[
        int | None,
        typer.Option(
            help="Distinct training examples drawn for each network. Default: 600 on digits, 6000 "
            "on mnist.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    validation_size: Annotated[
        int | None,
        typer.Option(
            help="Examples of the validation set: strengths, temperatures and the early stop are "
            "chosen on it; the test set is looked at once. Default: 400 on digits, 5000 on mnist.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    label_noise: Annotated[
        float | None,
        typer.Option(help="Fraction of wrong training labels.", rich_help_panel=_DATA),
    ] = None,
    width: Annotated[
        float | None,
        typer.Option(
            help="Factor on the 256 units of both hidden layers. Default: 0.5.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    models: Annotated[
        int | None,
        typer.Option(
            help="Networks for every strength; intervals are over them. Default: 8.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the sample.", rich_help_panel=_TRAINING)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Examples a step.", rich_help_panel=_TRAINING)
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of SGD with momentum 0.9.", rich_help_panel=_TRAINING)
    ] = None,
    l2: Annotated[
        list[float] | None,
        typer.Option(
            "--l2",
            help="Strength of l2/2 |w|^2 beside the mean loss. May be repeated; no penalty is "
            "always there. Default: seven from 0.0001 to 0.1.",
            rich_help_panel=_PENALTIES,
        ),
    ] = None,
    l1: Annotated[
        list[float] | None,
        typer.Option(
            "--l1",
            help="Strength of l1 |w|, by proximal steps, which reach exact zeros. May be repeated. "
            "Default: seven from 0.00001 to 0.01.",
            rich_help_panel=_PENALTIES,
        ),
    ] = None,
    dropout: Annotated[
        list[float] | None,
        typer.Option(
            help="Rate of the rival dropout. May be repeated. Default: 0.2 0.5.",
            rich_help_panel=_PENALTIES,
        ),
    ] = None,
    step: Annotated[
        float | None,
        typer.Option(
            help="Weights are rounded to it where all networks are coded alike. Default: 1/128.",
            rich_help_panel=_CODES,
        ),
    ] = None,
    decimals: Annotated[
        list[int] | None,
        typer.Option(
            help="Decimals to which solutions of drawn linear problems are rounded, to count the "
            "models that remain. May be repeated. Default: 1 2.",
            rich_help_panel=_CODES,
        ),
    ] = None,
    num_problems: Annotated[
        int | None,
        typer.Option(help="Such problems drawn. Default: 10000.", rich_help_panel=_CODES),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of everything random.", rich_help_panel=_RUN)
    ] = None,
    out: Out = None,
    resume: Resume = True,
    device: DeviceOption = Device.auto,
    compilation_cache: CompilationCache = True,
    quiet: Quiet = False,
    traceback: Traceback = False,
) -> None:
    """Train networks under L2 and L1 penalties of many strengths, and price their weights.

    For every strength: bits under the prior that the penalty says and under fitted ones, streams
    that are really encoded and decoded, the shortest description of the training labels, losses,
    the effective rate and bounds; early stopping, dropout and temperature stand beside them. Says
    whether more L2 means fewer bits, where the test loss is best, and what shortens a stream by
    zeros. Stop with Ctrl-C and run the same command to go on.
    """
    overrides: dict[str, Any] = {
        "train_size": train_size,
        "validation_size": validation_size,
        "label_noise": label_noise,
        "width": width,
        "num_models": models,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "l2": l2,
        "l1": l1,
        "dropout": dropout,
        "step": step,
        "decimals": decimals,
        "num_problems": num_problems,
        "seed": seed,
    }
    with _one_sentence_errors(traceback):
        _start(device, compilation_cache)
        from jaxcomp.experiments import regularization as experiment

        config = experiment.preset(dataset, **_given(overrides))
        directory = _directory(out, f"regularization-{dataset}", config.to_dict())
        result = experiment.run(
            config, out=directory, data_dir=data_dir, download=download, resume=resume, quiet=quiet
        )
        _report_regularization(result)


@app.command(
    name="linear-regression",
    epilog=(
        "Examples: `jaxcomp linear-regression` (10,000 data sets for each n, some minutes on two "
        "cores); `jaxcomp linear-regression -n 80 --datasets 1000` (a first look); `jaxcomp "
        "linear-regression --signal 0.5` (2B < V: no U-shape, send nothing)."
    ),
)
def linear_regression(
    dim: Annotated[int, typer.Option(help="Weights d.", rich_help_panel=_PROBLEM)] = 50,
    num_examples: Annotated[
        list[int] | None,
        typer.Option(
            "--num-examples",
            "-n",
            help="Examples n of a data set, at least d + 8. May be repeated; the first is drawn "
            "in detail. Default: 80 160 400 1000 5000.",
            rich_help_panel=_PROBLEM,
        ),
    ] = None,
    signal: Annotated[
        float,
        typer.Option(
            help="B, the variance of the outputs that the true weights explain. The population "
            "risk is U-shaped in the rate where 2B > V = d s2/(n-d-1).",
            rich_help_panel=_PROBLEM,
        ),
    ] = 2.0,
    noise_variance: Annotated[
        float, typer.Option(help="s2 of the outputs.", rich_help_panel=_PROBLEM)
    ] = 1.0,
    correlation: Annotated[
        float,
        typer.Option(
            help="Of neighbouring inputs, between -1 and 1; inputs i and j have its |i-j|-th "
            "power.",
            rich_help_panel=_PROBLEM,
        ),
    ] = 0.0,
    datasets: Annotated[
        int, typer.Option(help="Data sets drawn for each n.", rich_help_panel=_SIMULATION)
    ] = 10_000,
    num_rates: Annotated[
        int,
        typer.Option(
            help="Places of the rate grid: quantizers with K = 1, 2, ... centroids, channels at "
            "equally spaced rates.",
            rich_help_panel=_SIMULATION,
        ),
    ] = 32,
    max_bits: Annotated[
        float,
        typer.Option(help="Highest rate of the channels, bits a weight.", rich_help_panel=_GRID),
    ] = 5.0,
    diameter_penalty: Annotated[
        float,
        typer.Option(help="Relative strength of the diameter penalty.", rich_help_panel=_GRID),
    ] = 0.05,
    adaptive: Annotated[
        bool,
        typer.Option(
            "--adaptive/--no-adaptive",
            help="Also codebooks made from the weights they serve, with their bits counted.",
            rich_help_panel=_GRID,
        ),
    ] = True,
    decimals: Annotated[
        list[int] | None,
        typer.Option(
            help="Decimals that weights are rounded to for the learner's own information. May be "
            "repeated. Default: 1 2 3.",
            rich_help_panel=_SIMULATION,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.", rich_help_panel=_RUN)] = 0,
    out: Out = None,
    resume: Resume = True,
    device: DeviceOption = Device.auto,
    compilation_cache: CompilationCache = True,
    quiet: Quiet = False,
    traceback: Traceback = False,
) -> None:
    """Compress least squares at every rate, where the theory has closed forms.

    Data sets are drawn by the thousand and solved; the solutions go through Gaussian channels and
    real quantizers, beside controls that compress nothing (shrinkage, ridge, James-Stein).
    Pictures show empirical risk, generalization error with its bound, and population risk against
    the rate, theory as lines, simulation as points; improvements are tested on data sets that no
    rate was chosen on. Stop with Ctrl-C and run the same command to go on.
    """
    with _one_sentence_errors(traceback):
        _start(device, compilation_cache)
        from jaxcomp.experiments.linear_regression import study

        standard = study.StudyConfig()
        config = study.StudyConfig(
            dim=dim,
            num_examples=tuple(num_examples) if num_examples else standard.num_examples,
            decimals=tuple(decimals) if decimals else standard.decimals,
            signal=signal,
            noise_variance=noise_variance,
            correlation=correlation,
            num_datasets=datasets,
            information_datasets=min(4000, max(datasets, 100)),
            num_rates=num_rates,
            max_bits=max_bits,
            diameter_penalty=diameter_penalty,
            adaptive=adaptive,
            seed=seed,
        )
        directory = _directory(out, "linear-regression", config)
        result = study.run(config, out=directory, resume=resume, quiet=quiet)
        _report_study(result)


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
    if last not in _HELP_OPTIONS or len(names) > 1:
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


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given; the others keep their defaults."""
    return {name: value for name, value in options.items() if value not in (None, [])}


def _directory(out: Path | None, name: str, settings: Any) -> Path:
    """Where results go: as asked for, or a folder that only these settings have."""
    from jaxcomp import storage

    return out if out is not None else Path("runs") / f"{name}-{storage.fingerprint(settings)[:8]}"


def _report(result: "SweepResult") -> None:
    from jaxcomp.experiments.sweep.report import print_report

    with _printing(result.directory) as console:
        print_report(
            result.table,
            result.claims,
            result.smallest,
            console=console,
            directory=result.directory,
        )


def _report_regularization(result: "RegularizationResult") -> None:
    from jaxcomp.experiments.regularization.report import print_report

    with _printing(result.directory) as console:
        print_report(
            result.table,
            result.rounding,
            result.claims,
            console=console,
            directory=result.directory,
        )


def _report_study(result: "StudyResult") -> None:
    with _printing(result.directory) as console:
        console.out(result.report(), highlight=False)
        console.out(f"Tables and pictures are in {result.directory}.", highlight=False)


@contextmanager
def _printing(directory: Path | None) -> Iterator["Console"]:
    """Print a report in this block; what cannot be printed is in the files, and that is said."""
    from rich.console import Console

    out = sys.stdout or io.StringIO()  # there is none if it was closed
    # A pipe has no width of its own; the tables are made for 112 columns.
    console = Console(file=out, width=None if out.isatty() else 112)
    try:
        # Written here, in one piece: rich ends the process where nobody reads any more.
        with console.capture() as captured:
            yield console
        out.write(captured.get())
        out.flush()
    except OSError as error:
        with open(os.devnull, "w") as nowhere:  # Python flushes once more at its end
            os.dup2(nowhere.fileno(), out.fileno())
        if not isinstance(error, BrokenPipeError):  # such a reader has seen what it wanted
            raise ValueError(
                f"the report could not be printed ({error.strerror}); it is in {directory}."
            ) from error


def _start(device: Device, compilation_cache: bool) -> None:
    """Find out what is not there, before anything is computed; set JAX up for the command."""
    warnings.showwarning = _show_warning
    _check_drawing()
    import jax

    named = os.environ.get("JAX_PLATFORMS")
    if device is not Device.auto:
        jax.config.update("jax_platforms", {"gpu": "cuda"}.get(device.value, device.value))
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        # JAX asserts where it has no plugin for the platform, and raises where that fails.
        reason = f" ({error})" if str(error) else ""
        if device is Device.auto and named:
            raise ValueError(
                f"JAX has none of the devices that the environment variable JAX_PLATFORMS names, "
                f"{named!r}{reason}; unset it, or use --device cpu."
            ) from error
        what = "device" if device is Device.auto else device.value
        raise ValueError(
            f"no {what} was found{reason}; use --device cpu, or install jaxcomp[cuda] or "
            "jaxcomp[tpu] on a machine that has one."
        ) from error
    # A guard against transfers is for the loops of a program that is being written.
    jax.config.update("jax_transfer_guard", "allow")
    if compilation_cache:
        from jaxcomp.experiments.caches import keep_compiled_programs

        keep_compiled_programs()


def _check_drawing() -> None:
    """Refuse a backend that matplotlib does not have, though pictures go to files without one."""
    import logging

    # Where it keeps its fonts is of no interest here.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        import matplotlib  # noqa: F401
    except ValueError as error:
        backend = os.environ.get("MPLBACKEND")
        if not backend:
            raise
        raise ValueError(
            f"matplotlib does not have the backend {backend!r} that the environment variable "
            "MPLBACKEND names; unset it: the pictures go to files."
        ) from error


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning as one line, without the place in the program."""
    typer.echo(f"jaxcomp: warning: {' '.join(str(message).split())}", err=True)


@contextmanager
def _one_sentence_errors(traceback: bool) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on from here.", err=True)
        raise typer.Exit(130) from None
    except (ValueError, TypeError, OSError, ImportError) as error:
        if traceback or os.environ.get("JAXCOMP_TRACEBACK"):
            raise
        told = " ".join(str(error).split())
        if isinstance(error, ModuleNotFoundError):
            told += "; pip install 'jaxcomp[sweep]'"
        typer.echo(f"jaxcomp: {told}", err=True)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    main()
