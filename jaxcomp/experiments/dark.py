"""The dark style: a finished figure with the lightness of its colours turned.

Nothing is drawn twice: what is drawn for white paper gets other colours. Greys are turned, so that
ink is light and paper dark; colours keep their hue and their order from dark to light, raised until
all read on dark paper; scales of colours are turned as a whole, text upon them with them.

Lightness, chroma and hue are those of Oklab (Ottosson, "A perceptual color space for image
processing", 2020, https://bottosson.github.io/posts/oklab/).
"""

import weakref
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.cm import ScalarMappable
from matplotlib.collections import Collection
from matplotlib.colors import Colormap, ListedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

_PAPER_LIGHTNESS, _INK_LIGHTNESS = 0.2, 0.95
_WHITE, _BLACK_INK = 1.0, 0.25  # lightness of paper and ink in the light style
_LEAST_LIGHTNESS = 0.55  # of what has a colour
_GREY_CHROMA = 0.03

# Linear sRGB to the cube of cone responses, and those to lightness and two opponent colours.
_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_OPPONENTS = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
_DARKENED: weakref.WeakSet[Figure] = weakref.WeakSet()


def darken(figure: Figure) -> None:
    """Give a figure the colours of the dark style, once; nothing moves."""
    if figure in _DARKENED:
        return
    _DARKENED.add(figure)
    # Ticks are made when they are needed first, in the colours of the light style.
    figure.draw_without_rendering()
    for artist in figure.findobj():
        _recolour(artist)


def dark_colours(
    rgb: Float[np.ndarray, "... 3"], *, whole_scale: bool = False
) -> Float[np.ndarray, "... 3"]:
    """Return what colours of the light style are in the dark one.

    Args:
        rgb: sRGB in [0, 1].
        whole_scale: whether they are a scale from light to dark, turned as a whole; else those that
            are not grey keep their order of lightness.
    """
    lab = _to_oklab(rgb)
    lightness = lab[..., 0]
    turned = _PAPER_LIGHTNESS + (_WHITE - lightness) * (_INK_LIGHTNESS - _PAPER_LIGHTNESS) / (
        _WHITE - _BLACK_INK
    )
    if not whole_scale:
        raised = _LEAST_LIGHTNESS + (1 - _LEAST_LIGHTNESS) * lightness
        is_grey = np.hypot(lab[..., 1], lab[..., 2]) < _GREY_CHROMA
        turned = np.where(is_grey, turned, raised)
    return _to_rgb(np.concatenate([np.clip(turned, 0, 1)[..., None], lab[..., 1:]], axis=-1))


def _recolour(artist: Artist) -> None:
    if isinstance(artist, Line2D):
        colour, face, edge = (
            _dark(one)
            for one in (
                artist.get_color(),
                artist.get_markerfacecolor(),
                artist.get_markeredgecolor(),
            )
        )
        artist.set(color=colour, markerfacecolor=face, markeredgecolor=edge)
    elif isinstance(artist, Text):
        artist.set_color(_dark(artist.get_color()))
        for patch in (artist.get_bbox_patch(), getattr(artist, "arrow_patch", None)):
            if patch is not None:
                _recolour(patch)
    elif isinstance(artist, Patch):
        face, edge = _dark(artist.get_facecolor()), _dark(artist.get_edgecolor())
        artist.set(facecolor=face, edgecolor=edge)
    elif isinstance(artist, ScalarMappable) and artist.get_array() is not None:
        artist.set_cmap(_dark_scale(artist.get_cmap()))
    elif isinstance(artist, Collection):
        face, edge = (
            [_dark(one) for one in np.atleast_2d(colours)]
            for colours in (artist.get_facecolor(), artist.get_edgecolor())
        )
        artist.set(facecolor=face, edgecolor=edge)


def _dark(colour: Any) -> Any:
    if np.size(colour) == 0:
        return colour
    *rgb, alpha = to_rgba(colour)
    if alpha == 0:
        return "none"  # an artist's own alpha would make it visible
    return (*dark_colours(np.array(rgb)).tolist(), alpha)


def _dark_scale(scale: Colormap) -> Colormap:
    """A scale of colours turned; that of what is missing is turned with them."""
    rgb = dark_colours(scale(np.arange(scale.N))[:, :3], whole_scale=True)
    turned = ListedColormap(rgb, name=f"dark {scale.name}")
    return turned.with_extremes(bad=_dark(scale.get_bad()))


def _to_oklab(rgb: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "... 3"]:
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _CONES.T) @ _OPPONENTS.T


def _to_rgb(lab: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "... 3"]:
    """Colours that sRGB lacks are cut off at its ends."""
    cones = (lab @ np.linalg.inv(_OPPONENTS).T) ** 3
    linear = np.clip(cones @ np.linalg.inv(_CONES).T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
