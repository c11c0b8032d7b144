"""Some pictures of a sweep drawn by a second process, while the first draws the others.

Drawing is Python, of which a process runs one thread at a time. The second process is started
before anything can be asked of it, so that it imports while the first is busy on one core; then it
is given tables and gives back files. Where there is none, or it is lost, nothing is missing: the
first process draws everything.
"""

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import pandas as pd

from jaxcomp.experiments.drawing import own_look
from jaxcomp.experiments.picture_style import current_style, drawn_in
from jaxcomp.experiments.sweep.claims import Claim
from jaxcomp.experiments.sweep.pictures.files import (
    Picture,
    encoded_picture,
    pictures_of_settings,
)
from jaxcomp.experiments.sweep.smallest import SmallestNetwork
from jaxcomp.experiments.sweep.task_words import TaskWords

# About half of the work: `sweep-details` takes as long as three others.
STEMS = ("sweep", "predicted-rise", "limit")
# What it imports is what this process has imported, wherever that came from.
_PROGRAM = "import sys; sys.path[:] = {path!r}; from {module} import answer; answer()"


class Elsewhere:
    """A process that draws some pictures; ended at the end of a `with` block, whatever happens."""

    def __init__(self) -> None:
        self._process = _started()
        self._talk: threading.Thread | None = None
        self._answer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if (process := self._process) is None:
            return
        process.kill()
        if self._talk is not None:
            self._talk.join()
        with process:  # closes its pipes and waits for its end
            self._process = None

    def ask(
        self,
        table: pd.DataFrame,
        claims: Sequence[Claim] | None,
        smallest: Sequence[SmallestNetwork],
        words: TaskWords,
        formats: Sequence[str],
    ) -> None:
        """Ask for the pictures of `STEMS`, of all settings; see `save_figures`."""
        if self._process is not None:
            asked = pickle.dumps((current_style(), table, claims, smallest, words, formats))
            self._talk = threading.Thread(
                target=self._communicate, args=(self._process, asked), daemon=True
            )
            self._talk.start()

    def draws(self, picture: Picture) -> bool:
        """Whether a picture is one of those it was asked for."""
        return self._talk is not None and picture.stem in STEMS

    def answer(self) -> dict[str, list[bytes]]:
        """Wait for what was asked for, and return it.

        Returns:
            Name of a picture -> its files, in the order of the formats; nothing if it cannot be
            had.
        """
        if self._talk is None or self._process is None:
            return {}
        self._talk.join()
        return pickle.loads(self._answer) if self._process.returncode == 0 else {}

    def _communicate(self, process: "subprocess.Popen[bytes]", asked: bytes) -> None:
        self._answer, _ = process.communicate(asked)


def answer() -> None:
    """Be the second process: read from standard input what to draw, and write the files."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever is printed is no answer
    style, table, claims, smallest, words, formats = pickle.load(sys.stdin.buffer)
    with drawn_in(style), own_look():
        drawn = {
            picture.name: list(encoded_picture(picture))
            for picture in pictures_of_settings(table, claims, smallest, words, formats)
            if picture.stem in STEMS
        }
    with out:
        pickle.dump(drawn, out)


def _started() -> "subprocess.Popen[bytes] | None":
    """Return a new process of this Python; None where that is a program of its own, or fails."""
    python = Path(sys.executable or "")
    if getattr(sys, "frozen", False) or not python.stem.lower().startswith("python"):
        return None
    # On Windows no window opens for it.
    flags = subprocess.CREATE_NO_WINDOW if sys.platform == "win32" else 0
    try:
        return subprocess.Popen(
            [sys.executable, "-c", _PROGRAM.format(path=sys.path, module=__name__)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            creationflags=flags,
        )
    except OSError:
        return None
