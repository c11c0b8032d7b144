"""What compression did to a model, layer by layer: sizes, errors, diagnostics, and their table.

Numbers of one leaf become a `LayerReport`, those of a tree a `Report`, which prints as text.
Everything here is on the host. Sizes are in bits (bytes in the text) and estimates, see
`jaxcomp.coding.sizes`, but for `description_bits`. Distortion is `sum h (w - c)^2`, twice the loss
rise in nats that an importance h (nats per squared weight) predicts; h = 1 without one.
"""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxcomp.coding.sizes import CodeSize, compression_ratio
from jaxcomp.compressed.importance import Unseen
from jaxcomp.quantizers.methods import Method, method_named
from jaxcomp.storage import json_line
from jaxcomp.trees.paths import shorten


class Measures(NamedTuple):
    """What compression did to one leaf; scalars, float32 (float64 for float64 weights).

    Sums of squares are each in units of a power of two of its own, since those of weights of 1e-30
    or 1e30 are no float32. Of a stack of layers each has a leading axis.

    Attributes:
        distortion: `sum h (w - c)^2`, h the importance, or 1 without one.
        squared_error: `sum (w - c)^2`.
        energy: `sum w^2`.
        converged: bool, whether the K-means iteration reached a fixed point; True where nothing
            iterates.
        distortion_exponent: int32; `distortion` is in units of `2 ** distortion_exponent`.
        error_exponent: that of `squared_error`.
        energy_exponent: that of `energy`.
    """

    distortion: Float[Array, "*layers"]
    squared_error: Float[Array, "*layers"]
    energy: Float[Array, "*layers"]
    converged: Bool[Array, "*layers"]
    distortion_exponent: Int[Array, "*layers"]
    error_exponent: Int[Array, "*layers"]
    energy_exponent: Int[Array, "*layers"]


class LayerReport(NamedTuple):
    """One compressed leaf in numbers; `report.to_frame()` makes a table of them.

    Attributes:
        path: where it stands; the first place of a tied leaf.
        tied_paths: the other places of the same array, counted once.
        shape: of the leaf.
        dtype: of the leaf.
        computed_in: dtype of the sums behind the numbers here; float32 for float64 weights while
            JAX has only 32 bits.
        num_weights: entries.
        method: name of the method.
        parameter: of the method: clusters, bits, slope; for pruning the share of zeros reached.
        num_used: distinct centroids with weights, integer codes that occur, or weights left; of a
            stack the least, the most, and the sum over its layers.
        num_codebooks: layers of a stack, each with a codebook of its own; 1 for any other leaf.
        fixed_bits_per_weight: with a fixed-length code, codebook not counted.
        entropy_bits_per_weight: empirical order-0 entropy, codebook not counted.
        codebook_bits: of the centroids in use, or of the scales.
        size_bits: `num_weights * entropy_bits_per_weight + codebook_bits`, estimated.
        description_bits: length of a decodable prefix code (`jaxcomp.coding.sizes`); not estimated.
        ratio: original bits over `size_bits`.
        distortion: `sum h (w - c)^2`.
        is_weighted: whether h in the distortion is an importance; otherwise h = 1.
        num_unseen: weights whose importance was 0, if that is over half of them; else 0.
        unseen_weigh: what these count for: as the `mean` of the leaf or the `floor`
            (see `jaxcomp.curvature.CurvaturePolicy`), or `nothing`; empty if there are none.
        signal_to_noise_db: `10 log10(sum w^2 / sum (w - c)^2)`, infinite without error; right at
            any scale, also where the sums themselves are out of range.
        converged: whether the K-means iteration reached a fixed point.
    """

    path: str
    tied_paths: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    computed_in: str
    num_weights: int
    method: str
    parameter: float
    num_used: int
    num_codebooks: int
    fixed_bits_per_weight: float
    entropy_bits_per_weight: float
    codebook_bits: float
    size_bits: float
    description_bits: float
    ratio: float
    distortion: float
    is_weighted: bool
    num_unseen: int
    unseen_weigh: str
    signal_to_noise_db: float
    converged: bool


@dataclass(frozen=True)
class Report(Sequence[LayerReport]):
    """Per-layer table of a compressed tree: a sequence of `LayerReport`, printed as a text table.

    Attributes:
        layers: the compressed leaves in the order of the tree, tied ones once.
        num_kept: leaves kept as they are, tied ones once.
        kept_bits: their size at full precision.
        kept: why, and the paths of those that are kept for this reason.
    """

    layers: tuple[LayerReport, ...]
    num_kept: int
    kept_bits: int
    kept: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: Any) -> Any:
        return self.layers[index]

    @property
    def original_bits(self) -> int:
        """Size of all leaves before quantization."""
        return self.kept_bits + sum(_original_bits(layer) for layer in self.layers)

    @property
    def size_bits(self) -> float:
        """Estimated size after quantization: layers and kept leaves."""
        return math.fsum([self.kept_bits, *(layer.size_bits for layer in self.layers)])

    @property
    def ratio(self) -> float:
        """Original over estimated bits, kept leaves in both; 1 for a tree without any."""
        return compression_ratio(self.original_bits, self.size_bits)

    @property
    def distortion(self) -> float:
        """Sum over the layers; with an importance, over the layers it weighs."""
        is_weighted = any(layer.is_weighted for layer in self.layers)
        return math.fsum(
            layer.distortion for layer in self.layers if layer.is_weighted == is_weighted
        )

    @property
    def predicted_loss_rise_nats(self) -> float:
        """Half the weighted distortion, as a second-order expansion at a minimum predicts.

        In nats if the importance was the curvature of a mean loss in nats; NaN without one.
        """
        if not any(layer.is_weighted for layer in self.layers):
            return math.nan
        return self.distortion / 2

    @property
    def bits_per_weight(self) -> float:
        """Codes and side bits of the compressed leaves over their weights; NaN without any."""
        if not self.layers:
            return math.nan
        return math.fsum(layer.size_bits for layer in self) / _num_weights(self)

    def to_frame(self) -> Any:
        """Return a `pandas.DataFrame`, a row for each compressed leaf."""
        import pandas as pd

        return pd.DataFrame(self.layers, columns=list(LayerReport._fields))

    def to_json(self) -> str:
        """Return everything as JSON: the leaves in `layers`, and the totals; infinity as null."""
        names = ("num_kept", "kept_bits", "original_bits", "size_bits", "ratio", "distortion")
        totals = {name: getattr(self, name) for name in names}
        layers = [layer._asdict() for layer in self]
        return json_line({"layers": layers, **totals, "kept": self.kept})

    def __str__(self) -> str:
        return _format_table(self)

    def _repr_html_(self) -> str:
        """Return the table for notebooks."""
        rows = _rows(self)
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0])
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in rows[1:]
        )
        notes = "".join(f"<p>{html.escape(line)}</p>" for line in _notes(self))
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"


def layer_report(
    size: CodeSize,
    measures: Measures,
    *,
    paths: tuple[str, ...],
    like: jax.ShapeDtypeStruct,
    method: Method,
    parameter: float,
    num_used: int,
    is_weighted: bool,
    unseen: Unseen | None = None,
    num_codebooks: int = 1,
) -> LayerReport:
    """Return the report of one leaf, which has at least one weight.

    Args:
        size: of the leaf, in bits.
        measures: error and diagnostics; values known.
        paths: of the leaf, several if it is tied.
        like: shape and dtype of the leaf.
        method: of the leaf.
        parameter: see `LayerReport`, as are the others.
        num_used: see there.
        is_weighted: see there.
        unseen: weights without importance, if over half.
        num_codebooks: see there.
    """
    num_weights = math.prod(like.shape)
    fixed, entropy, codebook, description = (float(part) for part in size)
    distortion = _total(measures.distortion, measures.distortion_exponent)
    noise = _total(measures.squared_error, measures.error_exponent)
    energy = _total(measures.energy, measures.energy_exponent)
    return LayerReport(
        path=paths[0],
        tied_paths=paths[1:],
        shape=like.shape,
        dtype=like.dtype.name,
        computed_in=np.asarray(measures.energy).dtype.name,
        num_weights=num_weights,
        method=method.name,
        parameter=parameter,
        num_used=num_used,
        num_codebooks=num_codebooks,
        fixed_bits_per_weight=fixed / num_weights,
        entropy_bits_per_weight=entropy / num_weights,
        codebook_bits=codebook,
        size_bits=entropy + codebook,
        description_bits=description,
        ratio=compression_ratio(8 * like.dtype.itemsize * num_weights, entropy + codebook),
        distortion=distortion.value(),
        is_weighted=is_weighted,
        num_unseen=0 if unseen is None else unseen.number,
        unseen_weigh="" if unseen is None else unseen.weigh,
        signal_to_noise_db=_decibel(energy, noise),
        converged=bool(np.all(measures.converged)),
    )


def brief_totals(report: Report) -> list[str]:
    """Say in a few words what became of the weights, and of the whole model."""
    totals = []
    if report.layers:
        num_weights = _num_weights(report)
        bits = math.fsum(layer.size_bits for layer in report) / num_weights
        totals.append(f"{num_weights:,} weights at {bits:.2f} bits")
    totals.append(
        f"{_format_bytes(report.original_bits)} -> {_format_bytes(report.size_bits)} estimated, "
        f"ratio {report.ratio:.3g}"
    )
    return totals


def _num_weights(report: Report) -> int:
    return sum(layer.num_weights for layer in report)


def _original_bits(layer: LayerReport) -> int:
    return 8 * np.dtype(layer.dtype).itemsize * layer.num_weights


class _Scaled(NamedTuple):
    """`number * 2 ** exponent`, which may be out of range as a float."""

    number: float
    exponent: int

    def value(self) -> float:
        """Return it as a float, infinite if it is too large and 0 if it is too small."""
        try:
            return math.ldexp(self.number, self.exponent)
        except OverflowError:
            return math.inf


def _total(sums: Float[Any, "*layers"], exponents: Int[Any, "*layers"]) -> _Scaled:
    """Add the sums of the layers, each in its own units."""
    exponent = int(np.max(exponents))
    parts = np.ldexp(np.asarray(sums, np.float64), np.asarray(exponents) - exponent)
    return _Scaled(math.fsum(parts.ravel().tolist()), exponent)


def _decibel(energy: _Scaled, noise: _Scaled) -> float:
    if noise.number == 0:
        return math.inf
    if energy.number <= 0:
        return -math.inf
    octaves = math.log10(2.0) * (energy.exponent - noise.exponent)
    return 10 * (math.log10(energy.number / noise.number) + octaves)


def _rows(report: Report) -> list[list[str]]:
    names = list(dict.fromkeys(layer.method for layer in report))
    header = [
        "leaf",
        "shape",
        "dtype",
        *_parameter_headers(names),
        "fixed b/w",
        "entropy b/w",
        "codebook",
        "size",
        "ratio",
        "distortion",
        "SNR dB",
    ]
    rows = [header, *(_format_layer(layer, names) for layer in report)]
    if report.layers:
        rows.append(_format_total(report, len(_parameter_headers(names))))
    return rows


def _parameter_headers(names: Sequence[str]) -> list[str]:
    if len(names) != 1:
        return ["method", "used"]
    method = _method_of(names[0])
    return [method.parameter_header, "left" if method.keeps_weights else "used"]


def _method_of(name: str) -> type[Method]:
    method = method_named(name)
    assert method is not None  # since it made the layer
    return method


def _format_table(report: Report) -> str:
    lines = _align(_rows(report))
    rule = "-" * len(lines[0])
    lines.insert(1, rule)
    if report.layers:
        lines.insert(-1, rule)
    return "\n".join([*lines, *_notes(report)])


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    # Path, shape and dtype are text, the other columns numbers.
    aligns = [str.ljust] * 3 + [str.rjust] * (len(widths) - 3)
    return [
        "  ".join(
            align(cell, width) for align, cell, width in zip(aligns, row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def _format_layer(layer: LayerReport, names: Sequence[str]) -> list[str]:
    method = _method_of(layer.method)()
    said = method.number(layer.parameter)
    if len(names) > 1:
        said = f"{method.label}, {method.describe(layer.parameter)}"
    tied = f" (+{len(layer.tied_paths)} tied)" if layer.tied_paths else ""
    return [
        shorten([layer.path]) + tied,
        _format_shape(layer),
        layer.dtype,
        said,
        f"{layer.num_used:,}",
        f"{layer.fixed_bits_per_weight:.2f}",
        f"{layer.entropy_bits_per_weight:.2f}",
        _format_bytes(layer.codebook_bits),
        _format_bytes(layer.size_bits),
        f"{layer.ratio:.2f}",
        f"{layer.distortion:.4g}",
        f"{layer.signal_to_noise_db:.1f}",
    ]


def _format_shape(layer: LayerReport) -> str:
    if layer.num_codebooks > 1:
        return f"{layer.num_codebooks} of " + ("x".join(map(str, layer.shape[1:])) or "1")
    return "x".join(map(str, layer.shape)) or "scalar"


def _format_total(report: Report, num_columns: int) -> list[str]:
    num_weights = _num_weights(report)
    size = math.fsum(layer.size_bits for layer in report)

    def mean(bits: Iterable[float]) -> str:
        return f"{math.fsum(bits) / num_weights:.2f}"

    return [
        "total",
        f"{num_weights:,} weights",
        "",
        *[""] * num_columns,
        mean(layer.fixed_bits_per_weight * layer.num_weights for layer in report),
        mean(layer.entropy_bits_per_weight * layer.num_weights for layer in report),
        _format_bytes(math.fsum(layer.codebook_bits for layer in report)),
        _format_bytes(size),
        f"{compression_ratio(report.original_bits - report.kept_bits, size):.2f}",
        f"{report.distortion:.4g}",
        "",
    ]


def _notes(report: Report) -> list[str]:
    """What the table cannot say in a column: kept leaves, the whole, and what to know of it."""
    lines = [
        f"{report.num_kept} leaves kept as they are, {_format_bytes(report.kept_bits)}",
        f"whole model {_format_bytes(report.original_bits)} -> {_format_bytes(report.size_bits)} "
        f"(estimated: entropy, codebooks, kept leaves), ratio {report.ratio:.2f}",
        *(f"kept, {why}: {len(paths)} ({shorten(paths, 3)})" for why, paths in report.kept.items()),
    ]
    wide = [
        layer.path
        for layer in report
        if np.dtype(layer.dtype).itemsize > np.dtype(layer.computed_in).itemsize
    ]
    if wide:
        lines.append(f"computed in float32, given back as they came: {shorten(wide, 3)}")
    if not math.isnan(report.predicted_loss_rise_nats):
        lines.append(
            f"predicted rise of the loss {report.predicted_loss_rise_nats:.4g} "
            "(half the weighted distortion; nats if the importance was a curvature in nats)"
        )
        unweighted = [layer.path for layer in report if not layer.is_weighted]
        if unweighted:
            lines.append(
                "no positive importance, weighted alike and left out of the total distortion: "
                + ", ".join(unweighted)
            )
    lines += _notes_on_unseen(report)
    joined = [layer.path for layer in report if layer.num_codebooks == 1 and len(layer.shape) == 3]
    if joined:
        lines.append(
            f"one codebook for all three axes: {shorten(joined, 3)}; name those in `stacked` whose "
            "first axis is one of layers"
        )
    lines += [
        f"{layer.path} uses {layer.num_used:,} of {int(layer.parameter):,} clusters: it has few "
        "distinct weights, or clusters are empty"
        for layer in report
        if _method_of(layer.method).parameter_name == "num_clusters"
        and layer.num_used < layer.parameter
    ]
    num_stopped = sum(not layer.converged for layer in report)
    if num_stopped:
        lines.append(f"stopped by num_iterations before a fixed point: {num_stopped} layers")
    return lines


_UNSEEN = {
    "mean": "they weigh as the mean of their leaf",
    "floor": "they weigh a small share of the mean of their leaf, the floor of the policy",
    "nothing": "they weigh nothing, as given; a CurvaturePolicy weighs them as the mean of their "
    "leaf",
}


def _notes_on_unseen(report: Report) -> list[str]:
    lines = []
    for weigh, meaning in _UNSEEN.items():
        leaves = [
            f"{shorten([layer.path])} {100 * layer.num_unseen / layer.num_weights:.3g} %"
            for layer in report
            if layer.unseen_weigh == weigh
        ]
        if leaves:
            lines.append(
                f"importance 0 for over half of the weights ({', '.join(leaves)}): {meaning}"
            )
    return lines


def _format_bytes(bits: float) -> str:
    num_bytes = math.ceil(bits / 8)
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= 0.9995 * size:  # from here on three digits of the smaller unit are 1e+03
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes} B"
