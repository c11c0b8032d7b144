"""Light or dark: which style pictures are written in, from here to wherever one is drawn.

Nothing heavy is imported: `--help` reads it.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from enum import StrEnum


class PictureStyle(StrEnum):
    """Styles of pictures."""

    light = "light"
    dark = "dark"


_CURRENT: ContextVar[PictureStyle] = ContextVar("picture style", default=PictureStyle.light)


def current_style() -> PictureStyle:
    """Return the style of this block; light outside of any."""
    return _CURRENT.get()


@contextlib.contextmanager
def drawn_in(style: PictureStyle | str) -> Iterator[None]:
    """Write all pictures of this block in a style; a thread that it starts knows nothing of it.

    Args:
        style: of the pictures, also by its name.

    Raises:
        ValueError: on another name.
    """
    if style not in list(PictureStyle):
        raise ValueError(f"unknown style {style!r}: choose from {', '.join(PictureStyle)}.")
    token = _CURRENT.set(PictureStyle(style))
    try:
        yield
    finally:
        _CURRENT.reset(token)
