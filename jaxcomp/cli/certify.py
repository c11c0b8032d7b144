"""The command that bounds the error of a compressed model."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxcomp.cli.app import app
from jaxcomp.cli.options import (
    CompilationCache,
    DataDir,
    DeviceOption,
    Json,
    Quiet,
    Style,
    Traceback,
    options_of,
)
from jaxcomp.cli.session import Device, one_sentence_errors, phase, print_text, set_up_jax
from jaxcomp.experiments.picture_style import PictureStyle, drawn_in
from jaxcomp.experiments.settings import Panel, asked

_EXAMPLES = "a data set (mnist, fashion-mnist, cifar10, digits), its test set (mnist:test), or .npz"

Certified = Annotated[
    Path,
    typer.Argument(
        help="A compressed model, also of random codes (.jxr); with --fixed-architecture also a "
        "bare stream; an empty file stands for the prior itself.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class CertificateSettings:
    """Options of `certify`."""

    data: str | None = asked(
        None,
        "The sample that the model may have been trained on, compressed with and chosen by: "
        f"{_EXAMPLES} with arrays inputs and labels. Default: the batches of --hook.",
        Panel.CERTIFICATE,
    )
    hook: Path | None = asked(  # noqa: RUF009 - a field
        None,
        "A Python file of your own, as of compress; only predict_fn(params, inputs) is needed. "
        "Images of a data set come as (n, height, width, channels) from 0 to 1. Default: a chain "
        "of dense layers with rectifiers between them, if the model is one.",
        Panel.CERTIFICATE,
    )
    delta: float = asked(
        0.05, "The probability that a row fails, over the examples.", Panel.CERTIFICATE
    )
    held_out: str | None = asked(
        None,
        "Row (d): examples like --data, by which nothing was trained or chosen. No byte is "
        "charged: what else a certificate has to beat.",
        Panel.CERTIFICATE,
    )
    test: str | None = asked(
        None, "Examples like --data, for the error beside the certificates.", Panel.CERTIFICATE
    )
    fixed_architecture: Path | None = asked(  # noqa: RUF009 - a field
        None,
        "A description (JSON) of names, dtypes and shapes which, as you state, was fixed before "
        "the data. Then they are not charged, only the bare stream of the arrays. "
        "jaxcomp.certificates.architecture_of(FILE) writes one.",
        Panel.CERTIFICATE,
    )
    prior: Path | None = asked(  # noqa: RUF009 - a field
        None,
        "Row (c): the model that FILE holds differences to (--reference of compress), trained on a "
        "part of --data; or that the posterior is centred on. Needs --prior-indices.",
        Panel.CERTIFICATE,
    )
    prior_indices: str | None = asked(
        None,
        "Places in --data, from 0, of the examples that the prior was trained on or chosen by: "
        ".npy, a text of whole numbers, or FIRST:END. The rows of the prior count the others.",
        Panel.CERTIFICATE,
    )
    posterior: Path | None = asked(  # noqa: RUF009 - a field
        None,
        "Row (b), of a random network: a checkpoint with an array mean.NAME and an array "
        "log_std.NAME (natural logarithm of the standard deviation) for each tensor NAME.",
        Panel.CERTIFICATE,
    )
    original: Path | None = asked(  # noqa: RUF009 - a field
        None,
        "Row (e): the network before compression, certified through FILE. Needs --unlabelled.",
        Panel.CERTIFICATE,
    )
    unlabelled: str | None = asked(
        None,
        "Inputs like those of --data (labels are not read) that neither the training of the "
        "original nor the choice of FILE has seen.",
        Panel.CERTIFICATE,
    )


@app.command(
    epilog=(
        "Examples: `jaxcomp certify small.jxc --data mnist --test mnist:test`; `jaxcomp certify "
        "small.jxc --data mnist --original model.safetensors --unlabelled mnist:test`; `jaxcomp "
        "certify small.jxc --hook network.py --data train.npz --held-out rest.npz`. What no "
        "program can check, the table says as your statement: that what is not charged was fixed "
        "before the data, and that the examples are independent."
    )
)
@options_of(CertificateSettings, with_defaults=True)
def certify(
    file: Certified,
    as_json: Json = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Also draw the bounds against bytes, with those of held-out labels as lines, to "
            "this .png, .pdf or .svg.",
        ),
    ] = None,
    trained: Annotated[
        Path | None,
        typer.Option(
            help="A run of train-small, whose files stand in the picture of --plot as a series of "
            "their own, each certified by its bytes and the examples of that run.",
        ),
    ] = None,
    style: Style = PictureStyle.light,
    data_dir: DataDir = None,
    device: DeviceOption = Device.auto,
    compilation_cache: CompilationCache = True,
    quiet: Quiet = False,
    traceback: Traceback = False,
    **given: Any,
) -> None:
    """Bound the error that a compressed model makes on examples that nobody has seen.

    A file of few bytes cannot have learned its training sample by heart: with probability 1 - delta
    over the sample, the error in the population is below a bound that the bytes of the file and its
    training error give. Rows: (a) from the file alone; (b) a random network; (c) a file that holds
    differences to a prior network; (d) labels held out; (e) the original network, through its file.
    """
    with one_sentence_errors(traceback, "stopped."):
        set_up_jax(device, compilation_cache)
        from jaxcomp.certificates import certify as certified
        from jaxcomp.cli.hook import read_predict_fn

        if plot is not None:
            _check_picture(plot)
        run = None if trained is None else _trained_run(trained, plot)
        wanted = CertificateSettings(**given)
        with phase("measuring errors", quiet):
            predict_fn, pairs = (None, []) if wanted.hook is None else read_predict_fn(wanted.hook)
            report = certified(
                file,
                predict_fn,
                _pairs(pairs) if wanted.data is None else _examples(wanted.data, data_dir),
                delta=wanted.delta,
                fixed_architecture=wanted.fixed_architecture,
                posterior=wanted.posterior,
                prior=wanted.prior,
                prior_indices=None
                if wanted.prior_indices is None
                else _indices(wanted.prior_indices),
                held_out=None if wanted.held_out is None else _examples(wanted.held_out, data_dir),
                original=wanted.original,
                unlabelled=None
                if wanted.unlabelled is None
                else _examples(wanted.unlabelled, data_dir, labelled=False)[0],
                test=None if wanted.test is None else _examples(wanted.test, data_dir),
            )
        if plot is not None:
            from jaxcomp.experiments.certificate_picture import save_certificates

            with phase("drawing", quiet), drawn_in(style):
                save_certificates(report, plot, run)
        print_text(report.to_json() if as_json else str(report))


def _check_picture(plot: Path) -> None:
    """Refuse a name before anything is computed."""
    from jaxcomp.experiments.drawing import form_of

    form_of(plot)


def _trained_run(folder: Path, plot: Path | None) -> Any:
    """Read the run whose files stand beside the table."""
    if plot is None:
        raise ValueError("--trained is drawn into a picture; name it by --plot.")
    from jaxcomp.experiments.train_small import TrainSmallResult

    return TrainSmallResult.load(folder)


def _pairs(pairs: list[tuple[Any, Any]]) -> tuple[Any, Any]:
    """Return the batches of a hook as one sample."""
    import numpy as np

    if not pairs:
        raise ValueError(f"there is no sample; name it by --data: {_EXAMPLES}.")
    inputs, labels = zip(*pairs, strict=True)
    try:
        return np.concatenate(inputs), np.concatenate(labels)
    except ValueError as error:
        raise ValueError(f"the batches of --hook do not fit together: {error}") from error


def _examples(name: str, data_dir: Path | None, *, labelled: bool = True) -> tuple[Any, Any]:
    """Return the inputs and labels that a name stands for."""
    import numpy as np

    if name.endswith(".npz"):
        if not Path(name).is_file():
            raise ValueError(f"there is no file {name}; name {_EXAMPLES}.")
        with np.load(name, allow_pickle=False) as arrays:
            lacking = {"inputs", *(("labels",) if labelled else ())} - {*arrays}
            if lacking:
                raise ValueError(
                    f"{name} has no array {' and no array '.join(sorted(lacking))}; save it by "
                    "numpy.savez(FILE, inputs=..., labels=...)."
                )
            return arrays["inputs"], arrays["labels"] if labelled else None
    from jaxcomp.experiments import data

    known, _, part = name.partition(":")
    if part not in ("", "test"):
        raise ValueError(f"{name!r} is no sample; name {_EXAMPLES}.")
    found = data.load(known, data_dir=data_dir)
    images, labels = found[3:5] if part else found[1:3]
    return images.astype(np.float32) / np.float32(found.max_value), labels


def _indices(text: str) -> Any:
    """Return the places that a range or a file names."""
    import numpy as np

    if (found := re.fullmatch(r"(\d+):(\d+)", text)) is not None:
        return np.arange(int(found[1]), int(found[2]))
    path = Path(text)
    if not path.is_file():
        raise ValueError(f"there is no file {path}; name .npy, a text of numbers, or FIRST:END.")
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        return np.array([int(word) for word in path.read_text().split()], np.int64)
    except ValueError as error:
        raise ValueError(f"{path} holds no whole numbers; name the places from 0.") from error
