"""The look that all pictures share: colours, axes, notes at the edge, legend, files.

Figures are made from `matplotlib.figure.Figure` directly, without `pyplot`: no global state, so
that they can be drawn in threads, on machines without a screen, and twice with the same bytes,
whatever settings of matplotlib a user has.

Colour says what weighs a squared error in K-means, shade, dashes and marker how strong the
diameter penalty is, grey that nothing was compressed; nothing is told by colour alone. Colours
from Okabe and Ito (2008) and Tol (2021), which colour-blind readers can tell apart.

Everything is drawn in the light style; `encoded` writes it in that of the block (`picture_style`).
"""

import contextlib
import io
import math
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib
import matplotlib.style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    Locator,
    NullFormatter,
    NullLocator,
    ScalarFormatter,
)

from jaxcomp.experiments.dark import darken
from jaxcomp.experiments.picture_style import PictureStyle, current_style
from jaxcomp.storage import PathLike

_FORMS = ("png", "pdf", "svg")
INK = "#222222"
GREY = "#6b6b6b"
PALE = "#dddddd"
STAR = "#F0E442"
BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#AA4499",
    "#E69F00",
    "#56B4E9",
)
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY)
UNIFORM_COLOUR = PURPLE

SMALL, NORMAL, LARGE = 7.5, 8.5, 12.0
PNG_DPI = 160
TITLE_INCHES = 0.40
LINE_INCHES = 0.17

RATIO_TICKS = (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024)

# Settings of matplotlib belong to the whole process.
_SETTINGS_LOCK = threading.RLock()
_SALT = "jaxcomp"  # the same bytes twice


@contextlib.contextmanager
def own_look() -> Iterator[None]:
    """Draw in this block with matplotlib's own defaults, not with the user's `matplotlibrc`.

    Pictures look as they were made to look, and need nothing that a setting asks for, such as
    LaTeX. Also a decorator.
    """
    with _SETTINGS_LOCK:
        if matplotlib.rcParams["svg.hashsalt"] == _SALT:  # within another such block
            yield
            return
        with matplotlib.style.context("default"):
            matplotlib.rcParams["svg.hashsalt"] = _SALT
            # The font that matplotlib brings: for every text it would look for ten others as well.
            matplotlib.rcParams["font.family"] = "DejaVu Sans"
            yield


class NotebookFigure(Figure):
    """A figure that notebooks show by themselves, without pyplot, in the colours of the package."""

    def add_subplot(self, *args: Any, **kwargs: Any) -> Axes:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Add a panel; curves without a colour of their own get those of `COLOURS` in turn."""
        axis = super().add_subplot(*args, **kwargs)
        axis.set_prop_cycle(color=COLOURS)
        return axis

    def draw(self, renderer: Any) -> None:
        """Draw with the settings that the figure was made with."""
        with own_look():
            super().draw(renderer)

    def _repr_png_(self) -> bytes:
        return encoded(self, "png")


class Style(NamedTuple):
    """How a curve is drawn."""

    colour: Any
    dashes: Any
    marker: str
    width: float
    is_filled: bool
    interval: Literal["band", "bars", "none"]


class Entry(NamedTuple):
    """One line of a legend: a sample of what is drawn, or text alone."""

    handle: Artist
    is_heading: bool = False


def new_figure(width: float, height: float, title: str, explanation: str) -> Figure:
    """Return an empty figure with a title and lines of explanation in a strip on top."""
    figure = NotebookFigure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    strip = TITLE_INCHES + LINE_INCHES * (1 + explanation.count("\n"))
    engine = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06, rect=(0, 0, 1, 1 - strip / height))
    figure.set_layout_engine(engine)
    left = 0.12 / width
    heading = figure.suptitle(
        title,
        x=left,
        y=1 - 0.10 / height,
        ha="left",
        va="top",
        fontsize=LARGE,
        fontweight="bold",
        color=INK,
    )
    # A network may have a long name.
    room = figure.bbox.width * (1 - 2 * left)
    heading.set_fontsize(LARGE * min(1.0, room / max(_width(figure, heading), 1.0)))
    figure.text(
        left, 1 - 0.34 / height, explanation, ha="left", va="top", fontsize=NORMAL, color=GREY
    )
    return figure


def panel_title(axis: Axes, title: str, *remarks: str) -> None:
    """Write the title of a panel and lines of remarks below it; empty ones keep their place."""
    axis.set_title(
        title,
        loc="left",
        fontsize=NORMAL + 1,
        fontweight="bold",
        color=INK,
        pad=9 + 11 * len(remarks),
        # Above remarks nothing is in its way, which would be looked for at every draw.
        y=1.0 if remarks else None,
    )
    for line, text in enumerate(reversed(remarks)):
        axis.annotate(
            text,
            (0.0, 1.0),
            xytext=(0, 8 + 11 * line),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=SMALL,
            color=INK,
            va="bottom",
        )


def panel(axis: Axes, title: str = "", *remarks: str, x: str = "", y: str = "") -> None:
    """Give a panel its title, its remarks, the names of its axes and its grid."""
    if title:
        panel_title(axis, title, *remarks)
    axis_labels(axis, x=x, y=y)
    light_grid(axis)


def axis_labels(axis: Axes, *, x: str = "", y: str = "") -> None:
    """Label the axes in the size of this package's pictures."""
    if x:
        axis.set_xlabel(x, fontsize=NORMAL, color=INK)
    if y:
        axis.set_ylabel(y, fontsize=NORMAL, color=INK)


def ratio_axis(axis: Axes, low: float, high: float) -> None:
    """Make the x axis a logarithmic one of compression ratios, with ticks such as 8x."""
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    ticks = [2.0**i for i in range(24) if low <= 2.0**i <= high]
    if len(ticks) < 3:
        ticks = [t for t in RATIO_TICKS if low <= t <= high]
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    light_grid(axis)


class _PlainLogLocator(Locator):
    """Round numbers on a logarithmic axis: few in each decade, more where it has few decades."""

    _SUBS = (
        (1,),
        (1, 3),
        (1, 2, 5),
        (1, 1.5, 2, 3, 5, 7),
        (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, *range(3, 10)),
    )

    def __call__(self) -> list[float]:
        """Ticks of the axis as it is."""
        return self.tick_values(*self.axis.get_view_interval()) if self.axis is not None else []

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        """At least four where there are as many."""
        low, high = sorted((vmin, vmax))
        first, last = (math.floor(math.log10(max(end, 1e-300))) for end in (low, high))
        stride = 1 + (last - first) // 8
        ticks: list[float] = []
        for subs in self._SUBS:
            decades = range(first, last + 1, stride)
            ticks = [sub * 10.0**decade for decade in decades for sub in subs]
            ticks = [tick for tick in ticks if low <= tick <= high]
            if len(ticks) >= 4:
                break
        return ticks


def plain_log_ticks(axis: XAxis | YAxis) -> None:
    """Give a logarithmic axis numbers without powers, with commas from a thousand on."""
    axis.set_major_locator(_PlainLogLocator())
    axis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1000 else f"{value:.4g}")
    )
    axis.set_minor_formatter(NullFormatter())


def plain_linear_axis(axis: Axes) -> None:
    """Give a linear y axis whole numbers, not differences from an offset above the panel."""
    axis.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))


def light_grid(axis: Axes) -> None:
    """Draw a grid that stays in the background, and no box."""
    axis.grid(visible=True, which="major", color=PALE, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(which="both", labelsize=SMALL, length=2.5, color=GREY, labelcolor=INK)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(GREY)


def shade(colour: str, share: float) -> tuple[float, float, float]:
    """Mix a colour with white (share above 0) or black (below)."""
    target = 1.0 if share > 0 else 0.0
    red, green, blue = (channel + abs(share) * (target - channel) for channel in to_rgb(colour))
    return red, green, blue


def thinned(places: Sequence[float], least: float) -> list[int]:
    """Return which of these places to mark so that no mark covers another, from left to right.

    Args:
        places: along an axis, in any order.
        least: distance of two marks, in the same unit.
    """
    kept: list[int] = []
    for index in sorted(range(len(places)), key=lambda index: places[index]):
        if not kept or places[index] - places[kept[-1]] >= least:
            kept.append(index)
    return kept


def letters(axis: Axes, tags: Sequence[tuple[str, float]]) -> None:
    """Write letters at the right ends of level lines, pushed apart where lines lie close."""
    low, high = axis.get_ylim()
    is_log = axis.get_yscale() == "log"

    def height(value: float) -> float:
        if is_log:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)

    ordered = sorted((height(value), letter) for letter, value in tags)
    places = [place for place, _ in ordered]
    least = 0.052
    for _ in range(60):
        for i in range(len(places) - 1):
            overlap = max(0.0, least - (places[i + 1] - places[i]))
            places[i] -= overlap / 2
            places[i + 1] += overlap / 2
    for place, (_, letter) in zip(places, ordered, strict=True):
        axis.text(
            1.012,
            place,
            letter,
            transform=axis.transAxes,
            va="center",
            fontsize=SMALL,
            color=INK,
        )


def edge_note(axis: Axes, text: str, *, at_top: bool) -> None:
    """Write a remark into the right corner of a panel."""
    axis.text(
        0.985,
        0.975 if at_top else 0.025,
        text,
        transform=axis.transAxes,
        ha="right",
        va="top" if at_top else "bottom",
        fontsize=SMALL,
        color=INK,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0},
        zorder=8,
    )


def scale_below(axis: Axes, name: str, marks: Sequence[tuple[float, str]], colour: Any) -> None:
    """Write a second row of tick labels below the first; labels that would touch are left out."""
    low, high = axis.get_xlim()
    style = {
        "transform": axis.get_xaxis_transform(),
        "va": "top",
        "fontsize": SMALL - 0.5,
        "color": colour,
    }
    previous = -math.inf
    for position, label in sorted(marks):
        place = math.log(position / low) / math.log(high / low)
        if not 0 <= place <= 1 or place - previous < 0.022 * (len(label) + 1):
            continue
        text = f"{name} {label}" if previous == -math.inf else label
        # The name hangs to the left of the first label, which keeps its place.
        align = "right" if previous == -math.inf else "center"
        shift = 0.009 * len(label) if align == "right" else 0.0
        at = low * (high / low) ** (place + shift)
        axis.text(at, -0.085, text, ha=align, **style)
        previous = place


def sample(
    label: str, colour: Any, *, dashes: Any = "none", marker: str = "", filled: bool = True
) -> Entry:
    """Return a legend entry with a sample of a line, a marker or both."""
    handle = Line2D(
        [],
        [],
        color=colour,
        linestyle=dashes,
        marker=marker or "none",
        markersize=4.5,
        markerfacecolor=colour if filled else "white",
        linewidth=1.5,
        label=label,
    )
    return Entry(handle)


def remark(text: str, *, is_heading: bool = False) -> Entry:
    """Return a legend entry of text alone."""
    return Entry(Patch(facecolor="none", edgecolor="none", label=text), is_heading)


def legend_below(figure: Figure, groups: Sequence[tuple[str, Sequence[Entry]]]) -> None:
    """Put one legend below the panels: a column for every group, its name, if any, on top.

    Groups that would not fit beside each other go into two rows or more.
    """
    for num_rows in range(1, len(groups) + 1):
        legend = _legend(figure, _columns(groups, num_rows))
        if _width(figure, legend) <= figure.bbox.width * (1 - 0.15 / figure.get_figwidth()):
            return
        if num_rows < len(groups):
            legend.remove()


def legend_of_labels(figure: Figure, *, columns: int = 3) -> None:
    """Put one legend of all that has a label below the panels, equal labels once."""
    labelled: dict[str, Any] = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            labelled.setdefault(label, handle)
    entries = [Entry(handle) for handle in labelled.values()]
    height = max(1, -(-len(entries) // columns))
    starts = range(0, len(entries), height)
    legend_below(figure, [("", entries[start : start + height]) for start in starts])


def _legend(figure: Figure, columns: Sequence[Sequence[Entry]]) -> Legend:
    height = max(map(len, columns))
    # Columns are filled from the top: padding keeps every group in a column of its own.
    entries = [
        entry for column in columns for entry in (*column, *[remark("")] * (height - len(column)))
    ]
    legend = figure.legend(
        handles=[entry.handle for entry in entries],
        labels=[str(entry.handle.get_label()) for entry in entries],
        loc="outside lower left",
        ncols=len(columns),
        fontsize=SMALL + 0.5,
        frameon=False,
        handlelength=2.8,
        columnspacing=1.8,
        labelspacing=0.35,
        labelcolor=INK,
    )
    for text, entry in zip(legend.get_texts(), entries, strict=True):
        if entry.is_heading:
            text.set_fontweight("bold")
    return legend


def _columns(groups: Sequence[tuple[str, Sequence[Entry]]], num_rows: int) -> list[list[Entry]]:
    """Groups in rows, as columns of entries: a heading starts at the same height in all."""
    width = -(-len(groups) // num_rows)
    has_names = any(name for name, _ in groups)
    columns: list[list[Entry]] = [[] for _ in range(width)]
    for start in range(0, len(groups), width):
        row = groups[start : start + width]
        filled = max(map(len, columns))
        for column, (name, members) in zip(columns, row, strict=False):
            column += [remark("")] * (filled - len(column))
            column += [remark(name, is_heading=True)] if has_names else []
            column += members
    return columns


def _width(figure: Figure, artist: Artist) -> float:
    """Width of a text or a legend in the figure's pixels."""
    # Every figure has a canvas of Agg, see `new_figure`.
    renderer: Any = figure.canvas
    return artist.get_window_extent(renderer.get_renderer()).width


def freeze_layout(figure: Figure) -> None:
    """Lay the figure out once and for all: to write several files is then much faster."""
    engine = figure.get_layout_engine()
    if engine is not None:
        with own_look():
            engine.execute(figure)
    figure.set_layout_engine(None)


def form_of(target: PathLike) -> str:
    """Return the form of a picture by the end of its name.

    Raises:
        ValueError: if that is none of pictures.
    """
    form = Path(target).suffix.removeprefix(".").lower()
    if form not in _FORMS:
        raise ValueError(f"{target} has no name of a picture; end it with .{', .'.join(_FORMS)}.")
    return form


def encoded(figure: Figure, form: str) -> bytes:
    """Return a picture file without dates or versions: equal figures give equal bytes.

    In a block of the dark style the figure itself is dark from then on.
    """
    metadata = {
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    options: dict[str, Any] = {}
    if form == "png":
        # A fortieth larger than by the default of 6, in three fifths of the time.
        options["pil_kwargs"] = {"compress_level": 3}
    buffer = io.BytesIO()
    with own_look():
        if current_style() is PictureStyle.dark:
            darken(figure)
        figure.savefig(buffer, format=form, dpi=PNG_DPI, metadata=metadata[form], **options)
    return buffer.getvalue()
