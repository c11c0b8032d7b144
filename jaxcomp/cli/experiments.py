"""The commands that run experiments."""

from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, Any

import typer

from jaxcomp import experiments
from jaxcomp.cli.app import app
from jaxcomp.cli.distributed import (
    Coordinator,
    Distributed,
    JoinTimeout,
    NumProcesses,
    ProcessIndex,
    alone,
    check_unused,
    join,
    team,
)
from jaxcomp.cli.options import (
    CompilationCache,
    DataDir,
    DeviceOption,
    Download,
    Json,
    Out,
    Quiet,
    Resume,
    Style,
    Traceback,
    options_of,
)
from jaxcomp.cli.session import (
    Device,
    directory_for,
    one_sentence_errors,
    print_text,
    report,
    start,
)
from jaxcomp.experiments.linear_regression.config import StudyConfig
from jaxcomp.experiments.picture_style import PictureStyle, drawn_in
from jaxcomp.experiments.regularization.config import RegularizationConfig
from jaxcomp.experiments.small_descriptions.config import DescriptionConfig
from jaxcomp.experiments.sweep.config import SweepConfig
from jaxcomp.experiments.train_small.config import TrainSmallConfig


class Preset(StrEnum):
    """Named settings."""

    quick = "quick"
    paper = "paper"
    phase = "phase"


@app.command(
    epilog=(
        "Examples: `jaxcomp sweep` (quick tour on scikit-learn's digits); `jaxcomp sweep --preset "
        "paper --models 5 --data-dir DATA` (the published MNIST experiment); `jaxcomp sweep "
        "--preset paper --label-noise 0.3` (memorised labels: where compression may really help); "
        "`jaxcomp sweep --preset phase` (a map of where it helps); `jaxcomp sweep "
        "--num-clusters 4 --num-clusters 8 --diameter-penalty 0.05`; `jaxcomp sweep "
        "--method kmeans --method optimal --allocation equal --allocation optimal` (quantizers "
        "compared)."
    )
)
@options_of(SweepConfig)
def sweep(
    preset: Annotated[
        Preset,
        typer.Option(
            help="quick: digits, 5 networks, a minute. paper: the published experiment on MNIST, "
            "20 networks, 120 quantized variants. phase: a map over sample sizes and label noise "
            "of where compression beats temperature, dropout and early stopping. Every other "
            "option overrides the preset."
        ),
    ] = Preset.quick,
    data_dir: DataDir = None,
    download: Download = False,
    out: Out = None,
    resume: Resume = True,
    device: DeviceOption = Device.auto,
    compilation_cache: CompilationCache = True,
    style: Style = PictureStyle.light,
    as_json: Json = False,
    quiet: Quiet = False,
    traceback: Traceback = False,
    distributed: Distributed = False,
    coordinator: Coordinator = None,
    num_processes: NumProcesses = None,
    process_index: ProcessIndex = None,
    join_timeout: JoinTimeout = 300,
    **given: Any,
) -> None:
    """Train networks, compress their weights at many rates, and say what of it is real.

    Every variant shows the training loss, the test loss raw and after temperature scaling, the
    generalization gap and the accuracy against the compression ratio; claims come with 95 %
    intervals, and what compresses nothing (temperature, shrinkage, clipping, noise, early
    stopping) stands beside them. Stop with Ctrl-C and run the same command to go on.
    """
    with one_sentence_errors(traceback), drawn_in(style):
        if distributed:
            join(coordinator, num_processes, process_index, join_timeout)
        else:
            check_unused(coordinator, num_processes, process_index)
        start(device, compilation_cache)
        config = experiments.sweep.preset(preset.value, **given)
        directory = directory_for(out, preset.value, config.to_dict())
        own = team() if distributed else alone()
        result = experiments.sweep.run_in_team(
            config,
            own,
            out=directory,
            data_dir=data_dir,
            download=download,
            resume=resume,
            quiet=quiet,
        )
        if result is None:
            told = f"process {own.index} of {own.count} is done; results are in {directory}."
            if as_json:  # the process that leads prints it
                typer.echo(told, err=True)
            else:
                print_text(told)
        else:
            report(result, as_json=as_json)


@app.command(
    epilog=(
        "Examples: `jaxcomp regularization` (digits, a minute and a half on two cores); `jaxcomp "
        "regularization --dataset mnist --data-dir DATA`; `jaxcomp regularization --label-noise "
        "0.3` (where a penalty has most to gain); `jaxcomp regularization --l2 0.001 --l2 0.01 "
        "--l1 0.001 --models 2` (a first look)."
    )
)
@options_of(RegularizationConfig)
def regularization(
    data_dir: DataDir = None,
    download: Download = False,
    out: Out = None,
    resume: Resume = True,
    device: DeviceOption = Device.auto,
    compilation_cache: CompilationCache = True,
    style: Style = PictureStyle.light,
    as_json: Json = False,
    quiet: Quiet = False,
    traceback: Traceback = False,
    **given: Any,
) -> None:
    """Train networks under L2 and L1 penalties of many strengths, and price their weights.

    For every strength: bits under the prior that the penalty says and under fitted ones, streams
    that are really encoded and decoded, the shortest description of the training labels, losses,
    the effective rate and bounds; early stopping, dropout and temperature stand beside them. Says
    whether more L2 means fewer bits, where the test loss is best, and what shortens a stream by
    zeros. Stop with Ctrl-C and run the same command to go on.
    """
    with one_sentence_errors(traceback), drawn_in(style):
        start(device, compilation_cache)
        config = experiments.regularization.preset(**given)
        result = experiments.regularization.run(
            config,
            out=directory_for(out, f"regularization-{config.dataset}", config.to_dict()),
            data_dir=data_dir,
            download=download,
            resume=resume,
            quiet=quiet,
        )
        report(result, as_json=as_json)


@app.command(
    "linear-regression",
    epilog=(
        "Examples: `jaxcomp linear-regression` (10,000 data sets for each n, some minutes on two "
        "cores); `jaxcomp linear-regression -n 80 --datasets 1000` (a first look); `jaxcomp "
        "linear-regression --signal 0.5` (2B < V: no U-shape, send nothing)."
    ),
)
@options_of(StudyConfig, with_defaults=True)
def linear_regression(
    out: Out = None,
    resume: Resume = True,
    device: DeviceOption = Device.auto,
    compilation_cache: CompilationCache = True,
    style: Style = PictureStyle.light,
    as_json: Json = False,
    quiet: Quiet = False,
    traceback: Traceback = False,
    **given: Any,
) -> None:
    """Compress least squares at every rate, where the theory has closed forms.

    Data sets are drawn by the thousand and solved; the solutions go through Gaussian channels and
    real quantizers, beside controls that compress nothing (shrinkage, ridge, James-Stein).
    Pictures show empirical risk, generalization error with its bound, and population risk against
    the rate, theory as lines, simulation as points; improvements are tested on data sets that no
    rate was chosen on. Stop with Ctrl-C and run the same command to go on.
    """
    with one_sentence_errors(traceback), drawn_in(style):
        start(device, compilation_cache)
        config = experiments.linear_regression.preset(**given)
        result = experiments.linear_regression.run(
            config,
            out=directory_for(out, "linear-regression", config),
            resume=resume,
            quiet=quiet,
        )
        report(result, as_json=as_json)


class DescriptionPreset(StrEnum):
    """Named settings of small descriptions."""

    quick = "quick"
    mnist = "mnist"
    fashion = "fashion"
    lenet5 = "lenet5"
    transfer = "transfer"


@app.command(
    "small-descriptions",
    epilog=(
        "Examples: `jaxcomp small-descriptions` (digits, seconds); `jaxcomp small-descriptions "
        "--preset mnist --data-dir DATA` (10 seeds, some minutes on two cores); `jaxcomp "
        "small-descriptions --preset transfer --models 2`. The report says how each file is "
        "certified."
    ),
)
@options_of(DescriptionConfig)
def small_descriptions(
    preset: Annotated[
        DescriptionPreset,
        typer.Option(
            help="quick: scikit-learn's digits. mnist, fashion: nothing but features written down "
            "by hand. lenet5: MNIST, features by random filters. transfer: MNIST, as differences "
            "to a layer trained on scikit-learn's digits. Every other option overrides the preset."
        ),
    ] = DescriptionPreset.quick,
    data_dir: DataDir = None,
    download: Download = False,
    out: Out = None,
    resume: Resume = True,
    device: DeviceOption = Device.auto,
    compilation_cache: CompilationCache = True,
    style: Style = PictureStyle.light,
    as_json: Json = False,
    quiet: Quiet = False,
    traceback: Traceback = False,
    **given: Any,
) -> None:
    """Train networks of a hundred bytes or two, and certify each by its own bytes.

    A linear layer of few levels on features written down by hand is trained under a price for its
    bits, and its levels are moved one by one as long as the certificate falls. Every file is a bare
    stream that `jaxcomp certify` decodes to the certified network, bit for bit. Stop with Ctrl-C
    and run the same command to go on.
    """
    with one_sentence_errors(traceback), drawn_in(style):
        start(device, compilation_cache)
        config = experiments.small_descriptions.preset(preset.value, **given)
        result = experiments.small_descriptions.run(
            config,
            out=directory_for(out, f"small-descriptions-{preset.value}", asdict(config)),
            data_dir=data_dir,
            download=download,
            resume=resume,
            quiet=quiet,
        )
        report(result, as_json=as_json)


class TrainSmallPreset(StrEnum):
    """Named settings of training for the file."""

    quick = "quick"
    lenet_300_100 = "lenet-300-100"
    lenet_5 = "lenet-5"


@app.command(
    "train-small",
    epilog=(
        "Examples: `jaxcomp train-small` (digits, a minute on two cores); `jaxcomp train-small "
        "--preset lenet-300-100 --data-dir DATA` (MNIST, 5 seeds); `jaxcomp train-small --preset "
        "lenet-5 --models 1 --data-dir DATA`; `jaxcomp train-small --preset lenet-300-100 --coder "
        "random-codes --size 1000 --size 2000 --data-dir DATA` (files of these bytes)."
    ),
)
@options_of(TrainSmallConfig)
def train_small(
    preset: Annotated[
        TrainSmallPreset,
        typer.Option(
            help="quick: a small network on scikit-learn's digits. lenet-300-100, lenet-5: the "
            "networks of published small files, on MNIST. Every other option overrides the preset."
        ),
    ] = TrainSmallPreset.quick,
    data_dir: DataDir = None,
    download: Download = False,
    out: Out = None,
    resume: Resume = True,
    device: DeviceOption = Device.auto,
    compilation_cache: CompilationCache = True,
    style: Style = PictureStyle.light,
    as_json: Json = False,
    quiet: Quiet = False,
    traceback: Traceback = False,
    **given: Any,
) -> None:
    """Train networks for their files: under a price for the bits, or to files of given sizes.

    By entropy, weights are integers times a step; steps, and the distributions that price integers,
    are trained with them. By random codes, a file is the indices of candidates that its reader
    makes from a seed. Draws bytes of real files against errors, with intervals
    over seeds, and the certificate of each file by its bytes. All choices are made on the last
    examples of the training pool, which no network is trained on. Stop with Ctrl-C and run the
    same command to go on.
    """
    with one_sentence_errors(traceback), drawn_in(style):
        start(device, compilation_cache)
        config = experiments.train_small.preset(preset.value, **given)
        result = experiments.train_small.run(
            config,
            out=directory_for(out, f"train-small-{preset.value}", asdict(config)),
            data_dir=data_dir,
            download=download,
            resume=resume,
            quiet=quiet,
        )
        report(result, as_json=as_json)
