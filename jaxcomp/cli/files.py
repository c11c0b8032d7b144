"""The commands on files: compress and decompress them, look into them, compare them.

Only `compress` waits for JAX.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxcomp.cli.app import app
from jaxcomp.cli.options import (
    CompilationCache,
    DeviceOption,
    Json,
    Quiet,
    Style,
    Traceback,
    options_of,
)
from jaxcomp.cli.session import (
    Device,
    one_sentence_errors,
    phase,
    print_text,
    set_up_jax,
    show_warnings,
)
from jaxcomp.experiments.picture_style import PictureStyle, drawn_in
from jaxcomp.experiments.settings import Panel, asked

_STOPPED = "stopped; nothing was written."
_STOPPED_COMPRESSING = (
    "stopped; no file was written. Finished tensors of a large model lie beside it: the same "
    "command goes on from here."
)
_UNITS = {"": 1, **{f"{unit}b": 1000**n for n, unit in enumerate(("", "k", "m", "g"))}}
_UNITS |= {f"{unit}ib": 1024**n for n, unit in enumerate(("", "k", "m", "g")) if unit}


class MethodName(StrEnum):
    """The methods of `jaxcomp.quantizers`."""

    entropy_constrained = "entropy-constrained"
    kmeans = "kmeans"
    optimal = "optimal"
    vector = "vector"
    uniform = "uniform"
    round_to_nearest = "round-to-nearest"
    magnitude_pruning = "magnitude-pruning"
    trellis_coded = "trellis-coded"
    hessian_rounding = "hessian-rounding"


class ScaleName(StrEnum):
    """What shares a scale."""

    tensor = "tensor"
    channel = "channel"


class EffortName(StrEnum):
    """How hard codes are looked for."""

    fast = "fast"
    best = "best"


class FormatName(StrEnum):
    """What decompressed models are written as."""

    safetensors = "safetensors"
    npz = "npz"
    orbax = "orbax"


class DTypeName(StrEnum):
    """Dtypes of decompressed weights."""

    original = "original"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Source = Annotated[
    Path,
    typer.Argument(
        help="What to read: .safetensors, an index of several (or its folder), .npz, .pt or .pth "
        "(a state dictionary; needs torch, nothing else is unpickled), or a folder of Orbax.",
        show_default=False,
    ),
]
Compressed = Annotated[
    Path, typer.Argument(help="A compressed model, .jxc, .jxr or .safetensors.", show_default=False)
]
Anything = Annotated[
    Path,
    typer.Argument(help="A compressed model, or what compress reads.", show_default=False),
]
Target = Annotated[Path, typer.Option("--output", "-o", help="What to write.", show_default=False)]
ReferenceOption = Annotated[
    Path | None,
    typer.Option(
        "--reference", help="The model that the compressed one holds differences to, if it does."
    ),
]


@dataclass(frozen=True)
class CompressionSettings:
    """Options of `compress`."""

    bits_per_weight: float | None = asked(
        None, "Bytes of the compressed tensors in the file, over their weights.", Panel.BUDGET
    )
    size: str | None = asked(
        None, "Bytes of the whole file, such as 40KB, 1.5MB or 21500.", Panel.BUDGET
    )
    ratio: float | None = asked(
        None, "Bytes of all tensors before, over those of the file.", Panel.BUDGET
    )
    mse: float | None = asked(None, "Mean squared error of the weights.", Panel.BUDGET)
    max_loss_increase: float | None = asked(
        None,
        "Rise of the loss on the data of --hook: the smallest file that keeps to it.",
        Panel.BUDGET,
    )
    method: MethodName | None = asked(  # noqa: RUF009 - a field
        None,
        "How weights become codes. Default: trellis-coded, or with --hook the strongest, "
        "hessian-rounding, which needs its data.",
        Panel.GRID,
    )
    scale: ScaleName | None = asked(  # noqa: RUF009 - a field
        None,
        "What shares a scale; channels are the first axis of PyTorch's weights, else the last. "
        "Default: what the method does.",
        Panel.GRID,
    )
    hook: Path | None = asked(  # noqa: RUF009 - a field
        None,
        "A Python file of your own, which is run with all that you may do. It defines "
        "predict_fn(params, inputs), loss ('softmax_cross_entropy', 'squared_error' or a function "
        "(outputs, target) of one example) and batches (pairs of inputs and targets). params are "
        "the tensors by name, or the tree of Orbax. Weights that matter to the loss are kept "
        "finer.",
        Panel.GRID,
    )
    effort: EffortName | None = asked(  # noqa: RUF009 - a field
        None,
        "fast: codes that are quick to write and read. best: contexts of earlier rows too, some "
        "percent smaller. Default: best for tensors of less than a million weights.",
        Panel.GRID,
    )
    keep: tuple[str, ...] = asked(
        (),
        "Tensors that stay as they are, by a pattern of their names (* stands for anything); may "
        "be repeated. Biases, gains and the like stay anyway.",
        Panel.KEPT,
    )
    lossless: bool = asked(False, "Keep every tensor bit for bit.", Panel.KEPT, "--lossless")
    convert_float8: bool = asked(
        False,
        "Compress weights in float8 as bfloat16, which has all of their values. Else they are "
        "kept; float16 and bfloat16 are compressed and come back as such.",
        Panel.KEPT,
        "--convert-float8",
    )
    reference: Path | None = asked(  # noqa: RUF009 - a field
        None,
        "Another model, such as the one that this was fine-tuned from: the file holds differences "
        "to it, and cannot be decompressed without it.",
        Panel.GRID,
    )
    shard_size: str | None = asked(
        None,
        "Most bytes of a file, such as 5GB: several safetensors and their index, by which they are "
        "read. Default: one file.",
        Panel.KEPT,
    )
    importance: Path | None = asked(  # noqa: RUF009 - a field
        None,
        "Another file of tensors, by the same names: the importance of every weight, such as a "
        "diagonal of the Hessian. Read tensor by tensor, as the model.",
        Panel.GRID,
    )
    stream: bool = asked(
        False,
        "Compress safetensors one tensor at a time, and keep what is finished beside the output "
        "(in OUTPUT.parts) until it is there, so that a stopped command goes on. Always so from "
        "256 MiB on, unless --hook, --reference or --convert-float8 need all of the model.",
        Panel.KEPT,
        "--stream",
    )
    jobs: int | None = asked(
        None,
        "Tensors compressed at a time where they are streamed; the file is the same. "
        "Default: as many as there are processors, at most 8.",
        Panel.KEPT,
    )
    record: bool = asked(
        False,
        "Write into the file how it was made and what each tensor lost.",
        Panel.KEPT,
        "--record",
    )


@app.command(
    epilog=(
        "Examples: `jaxcomp compress model.safetensors -o small.jxc --bits-per-weight 3`; `jaxcomp "
        "compress checkpoint/ -o small.jxc --size 40MB --keep '*embeddings*'`; `jaxcomp compress "
        "model.safetensors -o small.jxc --hook data.py --max-loss-increase 0.01`. Then `jaxcomp "
        "decompress small.jxc -o model.safetensors`, or `jaxcomp.load('small.jxc').params()`."
    )
)
@options_of(CompressionSettings, with_defaults=True)
def compress(
    source: Source,
    output: Target,
    as_json: Json = False,
    device: DeviceOption = Device.auto,
    compilation_cache: CompilationCache = True,
    quiet: Quiet = False,
    traceback: Traceback = False,
    **given: Any,
) -> None:
    """Compress a model to a file that decodes to exactly the compressed weights.

    No data are needed. Budgets are met from below by the bytes of the file as it is; without one it
    is about 4 bits per weight. The file is written whole or not at all.
    """
    with one_sentence_errors(traceback, _STOPPED_COMPRESSING):
        set_up_jax(device, compilation_cache)
        from jaxcomp.cli.hook import read_hook
        from jaxcomp.compressed import compress_file

        wanted = CompressionSettings(**given)
        size = None if wanted.size is None else _size(wanted.size)
        with _long_calls(quiet):
            report = compress_file(
                source,
                output,
                _method(wanted.method, wanted.scale, has_data=wanted.hook is not None),
                bits_per_weight=wanted.bits_per_weight,
                size_bytes=size,
                ratio=wanted.ratio,
                max_mean_squared_error=wanted.mse,
                max_loss_increase=wanted.max_loss_increase,
                data=None if wanted.hook is None else read_hook(wanted.hook),
                keep=wanted.keep,
                lossless=wanted.lossless,
                convert_float8=wanted.convert_float8,
                effort=None if wanted.effort is None else wanted.effort.value,
                record=wanted.record,
                reference=wanted.reference,
                shard_size=None if wanted.shard_size is None else _size(wanted.shard_size),
                importance=wanted.importance,
                stream=True if wanted.stream else None,
                jobs=wanted.jobs,
            )
        print_text(report.to_json() if as_json else str(report))


@app.command(
    epilog=(
        "Example: `jaxcomp decompress small.jxc -o model.safetensors --dtype bfloat16`. Checksums "
        "and the SHA-256 of the model are checked on the way."
    )
)
def decompress(
    source: Compressed,
    output: Target,
    format: Annotated[
        FormatName | None,
        typer.Option(
            help="Default: by the name, .safetensors or .npz; a folder of Orbax without a suffix."
        ),
    ] = None,
    dtype: Annotated[
        DTypeName,
        typer.Option(help="Of the weights; integers and the like stay as they are."),
    ] = DTypeName.original,
    reference: ReferenceOption = None,
    shard_size: Annotated[
        str | None,
        typer.Option(
            help="Most bytes of a file, such as 5GB: several safetensors and their index, as "
            "Hugging Face lays them out. Default: one file."
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    traceback: Traceback = False,
) -> None:
    """Write the weights of a compressed model for other programs."""
    with one_sentence_errors(traceback, _STOPPED):
        show_warnings()
        from jaxcomp import checkpoints

        with _reference(reference) as other, _task("decompressing", quiet) as step:
            done = checkpoints.decompress(
                source,
                output,
                format=None if format is None else format.value,
                dtype=dtype.value,
                reference=other,
                shard_size=None if shard_size is None else _size(shard_size),
                report=step,
            )
        told = {"source": str(source), "target": str(output), **done._asdict()}
        told["files"] = [str(file) for file in done.files]
        written, *others = done.files
        lines = [
            f"{source} -> {written}{f' ({len(others)} files)' if others else ''}",
            f"{done.num_tensors} tensors, {done.size_bytes:,} bytes, {done.format}; SHA-256 of the "
            f"model {done.digest}",
        ]
        if done.left_out:
            lines.append(f"left out, no tensors: {', '.join(done.left_out)}")
        print_text(_to_json(told) if as_json else "\n".join(lines))


@app.command(
    "inspect",
    epilog="Example: `jaxcomp inspect small.jxc --plot small.png`.",
)
def inspect_file(
    source: Compressed,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw bits by tensor, histograms of weights and codebooks (.png, .pdf, .svg).",
        ),
    ] = None,
    style: Style = PictureStyle.light,
    as_json: Json = False,
    quiet: Quiet = False,
    traceback: Traceback = False,
) -> None:
    """Show what is in a compressed model: a line for each tensor, by the header alone."""
    with one_sentence_errors(traceback, _STOPPED):
        show_warnings()
        from jaxcomp.decoder import inspect

        _require_file(source)
        contents = inspect(source)
        if plot is not None:
            from jaxcomp.experiments.file_picture import save_picture

            with phase("drawing", quiet), drawn_in(style):
                save_picture(source, plot)
        print_text(_to_json(contents.to_dict()) if as_json else str(contents))


@app.command(
    epilog=(
        "Examples: `jaxcomp verify small.jxc` (is it whole?); `jaxcomp verify small.jxc "
        "model.safetensors` (what did each tensor lose?). Exit code 1 if names or shapes differ, "
        "or a tensor that was kept."
    )
)
def verify(
    source: Compressed,
    original: Annotated[
        Path | None,
        typer.Argument(help="What it was made from.", show_default=False),
    ] = None,
    reference: ReferenceOption = None,
    as_json: Json = False,
    quiet: Quiet = False,
    traceback: Traceback = False,
) -> None:
    """Check a compressed model: all checksums, its SHA-256, and how far it is from the original."""
    with one_sentence_errors(traceback, _STOPPED):
        show_warnings()
        from jaxcomp import checkpoints

        _require_file(source)
        with _task("checking", quiet) as step:
            found = checkpoints.verify(source, report=step)
        lines = [
            f"{source} is whole: {found.num_arrays} arrays, {found.checked} fit",
            f"SHA-256 of the model {found.digest}",
        ]
        told: dict[str, Any] = {"source": str(source), **found._asdict()}
        is_wrong = False
        if original is not None:
            with _task("comparing", quiet) as step:
                rows = _compared(original, source, reference, step)
            is_wrong = any(
                row.kind not in ("same", "values")
                or (row.kind == "values" and row.path in found.kept)
                for row in rows
            )
            told["tensors"] = [row._asdict() for row in rows]
            lines += [_table_of(rows), _summary_of(rows)]
        print_text(_to_json(told) if as_json else "\n".join(lines))
    if is_wrong:
        raise typer.Exit(1)


@app.command(
    epilog=(
        "Example: `jaxcomp diff model.safetensors small.jxc`. Exit code 1 if anything differs, as "
        "of `diff`."
    )
)
def diff(
    first: Anything,
    second: Anything,
    reference: ReferenceOption = None,
    as_json: Json = False,
    quiet: Quiet = False,
    traceback: Traceback = False,
) -> None:
    """Compare two models tensor by tensor: what is the same, and how far the rest is apart."""
    with one_sentence_errors(traceback, _STOPPED):
        show_warnings()
        with _task("comparing", quiet) as step:
            rows = _compared(first, second, reference, step)
        told: dict[str, Any] = {"first": str(first), "second": str(second)}
        told["tensors"] = [row._asdict() for row in rows]
        print_text(
            _to_json(told) if as_json else f"{_table_of(rows)}\n{_summary_of(rows)}".lstrip()
        )
    if any(row.kind != "same" for row in rows):
        raise typer.Exit(1)


def _size(text: str) -> float:
    """Return a size in bytes, as a person writes it."""
    found = re.fullmatch(r"([0-9][0-9_,]*\.?[0-9]*)\s*([a-z]*)", text.strip().lower())
    if found is None or found[2] not in _UNITS:
        raise ValueError(f"{text!r} is no size; write 21500, 40KB, 1.5MB or 64KiB.")
    return float(re.sub("[_,]", "", found[1])) * _UNITS[found[2]]


def _method(name: MethodName | None, scale: ScaleName | None, *, has_data: bool) -> Any:
    from jaxcomp.quantizers import METHODS

    if name is None:
        name = MethodName.hessian_rounding if has_data else MethodName.trellis_coded
    (kind,) = (kind for kind in METHODS if kind.name == name.name)
    return kind() if scale is None else kind(scale=scale.value)


def _compared(first: Path, second: Path, reference: Path | None, step: Any) -> list[Any]:
    from jaxcomp import checkpoints

    rows = []
    with (
        _reference(reference) as third,
        checkpoints.open_checkpoint(first) as one,
        checkpoints.open_checkpoint(second, reference=third) as other,
    ):
        total = len({*one.tensors, *other.tensors})
        for row in checkpoints.differences(one, other):
            rows.append(row)
            step(len(rows), total, row.path)
    return rows


@contextmanager
def _reference(path: Path | None) -> Iterator[Any]:
    """Open a reference in this block, if there is one."""
    from jaxcomp import checkpoints

    if path is None:
        yield None
    else:
        with checkpoints.open_checkpoint(path) as checkpoint:
            yield checkpoint


def _table_of(rows: list[Any]) -> str:
    """Return a line for each tensor that is not the same."""
    told = [
        [
            row.path,
            "x".join(map(str, (row.first or row.second)[1])) or "scalar",
            row.kind,
            _change(row),
        ]
        for row in rows
        if row.kind != "same"
    ]
    widths = [max((len(line[place]) for line in told), default=0) for place in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in told
    )


def _change(row: Any) -> str:
    if row.kind == "values":
        share = f"{row.num_different:,} differ"
        return f"relative error {row.relative_error:.4g}, largest {row.largest:.4g}, {share}"
    if row.kind in ("dtype", "shape"):
        return " -> ".join(f"{dtype} {list(shape)}" for dtype, shape in (row.first, row.second))
    return ""


def _summary_of(rows: list[Any]) -> str:
    same = sum(row.kind == "same" for row in rows)
    errors = [row.relative_error for row in rows if row.kind == "values"]
    worst = f"; largest relative error {max(errors):.4g}" if errors else ""
    return f"{same} of {len(rows)} tensors are the same{worst}"


def _require_file(path: Path) -> None:
    from jaxcomp.checkpoints import is_compressed

    if not path.exists():
        raise ValueError(f"there is no file {path}; name a compressed model.")
    if not is_compressed(path):
        raise ValueError(
            f"{path} is no compressed model; make one by `jaxcomp compress {path} -o small.jxc`."
        )


def _to_json(told: Any) -> str:
    from jaxcomp.storage import json_line  # imports NumPy

    return json_line(told)


@contextmanager
def _task(name: str, quiet: bool) -> Iterator[Any]:
    """Show one task in this block."""
    from jaxcomp.progress import Progress

    with Progress(quiet) as progress:
        shown: list[Any] = []

        def step(done: int, total: int, message: str = "") -> None:
            if not shown:
                shown.append(progress.task(name, total))
            shown[0](done, total, message)

        yield step


@contextmanager
def _long_calls(quiet: bool) -> Iterator[None]:
    """Show the steps of what is called in this block."""
    from jaxcomp.long_call import shown_by
    from jaxcomp.progress import Progress

    with Progress(quiet) as progress, shown_by(progress):
        yield
