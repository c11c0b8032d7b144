"""Rows of the table: what was found of one case, and how it is shown."""

from dataclasses import dataclass


@dataclass
class Row:
    """What was found of one case.

    Attributes:
        part: of the benchmark.
        case: what was timed.
        seconds: of a call, the median; None if there is none.
        spread: of the calls, shortest and longest.
        num_calls: that the median is of; 0 if the first one is all there is.
        compile_seconds: what the first call took beyond it.
        rate: (how many, of what) a call does, such as weights.
        least: (amount, name of the limit) no call can do with less: bytes or operations.
        ratio: (times, what) such as gradients.
        note: an error, or what else has to be said.
        share: of the limit that is reached, if the device has been measured.
    """

    part: str
    case: str
    seconds: float | None = None
    spread: tuple[float, float] | None = None
    num_calls: int = 0
    compile_seconds: float | None = None
    rate: tuple[float, str] | None = None
    least: tuple[float, str] | None = None
    ratio: tuple[float, str] | None = None
    note: str = ""
    share: float | None = None


def with_share(row: Row, limits: dict[str, float]) -> Row:
    """Compare a row with what the device can do, if that has been measured."""
    if row.seconds and row.least is not None and row.least[1] in limits:
        row.share = row.least[0] / limits[row.least[1]] / row.seconds
    return row


HEADER = ("part", "case", "time", "compile", "speed", "of the limit", "relative", "note")


def cells(row: Row) -> tuple[str, ...]:
    """Return the row as the table shows it."""
    speed = share = ""
    if row.seconds and row.rate is not None:
        number, unit = row.rate
        per_second = number / row.seconds
        # A rate of the device, or the time for one of many.
        speed = f"{per_second / 1e12:.3g} T{unit}/s" if unit in ("B", "flop") else ""
        speed = speed or f"{duration(row.seconds / number)} a {unit}"
    if row.share is not None and row.least is not None:
        share = f"{100 * row.share:.2g} % of {row.least[1]}"
    return (
        row.part,
        row.case,
        "" if row.seconds is None else duration(row.seconds),
        "" if row.compile_seconds is None else f"{row.compile_seconds:.1f} s",
        speed,
        share,
        "" if row.ratio is None else f"{row.ratio[0]:.3g} x {row.ratio[1]}",
        row.note.replace("|", "/"),
    )


def duration(seconds: float) -> str:
    """Write a time with three digits and its unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9)):
        if seconds >= size or unit == "ns":
            return f"{seconds / size:.3g} {unit}"
    raise AssertionError


def markdown(rows: list[Row]) -> str:
    lines = [HEADER, ("--",) * len(HEADER), *(cells(row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def first_line(error: BaseException) -> str:
    """Say in one line what went wrong."""
    told = (str(error).strip().splitlines() or [""])[0][:300]
    if isinstance(error, ModuleNotFoundError):
        return f"left out: {error.name} is not installed"
    return f"{type(error).__name__}: {told}"
