"""What a part is given, and how it times; in the process that runs parts."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from accelerator_parts.table import Row, first_line

MOST_CALLS, ENOUGH_SECONDS, LEAST_SECONDS = 7, 3.0, 1.0
# What a line on standard output begins with if it is for the process that shows the table.
MARK = "@accelerator "


@dataclass
class Work:
    """What a part is given: its size and its time; and the rows that it makes, as they come.

    Attributes:
        part: its name.
        is_full: whether sizes are those of an accelerator.
        deadline: by `time.monotonic`, when the process is ended.
        ready: waits for the results of a call.
        seconds: medians of this part so far, by case.
    """

    part: str
    is_full: bool
    deadline: float
    ready: Callable[[Any], Any] = lambda result: result
    seconds: dict[str, float] = field(default_factory=dict)

    def left(self) -> float:
        """Return how many seconds are left."""
        return self.deadline - time.monotonic()

    def emit(self, case: str, **found: Any) -> None:
        """Send a row."""
        send("row", asdict(Row(self.part, case, **found)))

    def time(
        self,
        case: str,
        call: Callable[[], Any],
        *,
        per_call: int = 1,
        against: str | None = None,
        describe: Callable[[Any], str] | None = None,
        **facts: Any,
    ) -> Any:
        """Time a call; what goes wrong becomes its row.

        Args:
            case: its name.
            call: what is timed.
            per_call: probes or labels in a call; the times are those of one.
            against: the case that it is compared with, if that was timed.
            describe: makes a note of the result, outside the clock.
            facts: fields of the row; `rate` and `least` are those of one, too.

        Returns:
            The result of the last call; None after an error.
        """
        if self.left() < LEAST_SECONDS:
            return self.emit(case, note="left out: no time left")

        def row(first: float, times: list[float], note: str) -> Row:
            each = [one / per_call for one in times or [first]]
            seconds = float(np.median(each))
            ratio = (seconds / self.seconds[against], against) if against in self.seconds else None
            return Row(
                self.part,
                case,
                seconds,
                spread=(min(each), max(each)),
                num_calls=len(times),
                compile_seconds=max(first - seconds * per_call, 0.0) if times else None,
                ratio=ratio,
                note=note if times else f"first call only, compiling included; {note}".rstrip("; "),
                **facts,
            )

        try:
            first, result = self._once(call)
            # What there is if the process is ended before there is more.
            send("pending", asdict(row(first, [], "")))
            times: list[float] = []
            while len(times) < MOST_CALLS and (len(times) < 3 or sum(times) < ENOUGH_SECONDS):
                if self.left() < LEAST_SECONDS + sum(times[-1:]):
                    break
                seconds, result = self._once(call)
                times.append(seconds)
            found = row(first, times, "" if describe is None else describe(result))
        except Exception as error:  # of whatever kind: the next case is independent of it
            return self.emit(case, note=first_line(error))
        assert found.seconds is not None
        self.seconds[case] = found.seconds
        send("row", asdict(found))
        return result

    def _once(self, call: Callable[[], Any]) -> tuple[float, Any]:
        start = time.perf_counter()
        result = self.ready(call())
        return time.perf_counter() - start, result


def send(kind: str, content: Any) -> None:
    print(MARK + json.dumps([kind, content]), flush=True)
