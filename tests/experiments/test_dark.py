"""The dark style: what is drawn reads on dark paper, and nothing moves."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from jaxcomp.experiments import drawing
from jaxcomp.experiments.dark import dark_colours, darken

DARK_PAPER = dark_colours(np.ones(3))


def luminance(rgb):
    """Of sRGB, by the web's guidelines for contrast (WCAG 2.1)."""
    rgb = np.asarray(rgb, float)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def for_deuteranopes(rgb):
    """Machado, Oliveira and Fernandes (2009), severity 1."""
    seen = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413]]
    return np.clip(np.asarray([*seen, [-0.011820, 0.042940, 0.968881]]) @ rgb, 0, 1)


@pytest.mark.parametrize("colour", [*drawing.COLOURS, drawing.STAR, drawing.INK, drawing.GREY])
def test_colours_and_text_read_on_dark_paper(colour):
    assert luminance(DARK_PAPER) < 0.02
    assert contrast(dark_colours(np.array(to_rgb(colour))), DARK_PAPER) > 5


def test_colours_keep_their_order_and_can_be_told_apart():
    plain = np.array([to_rgb(colour) for colour in drawing.COLOURS])
    for colours in (plain, dark_colours(plain)):
        seen = [for_deuteranopes(colour) for colour in colours]
        gaps = [np.abs(a - b).max() for i, a in enumerate(seen) for b in seen[:i]]
        assert min(gaps) > 0.1
    shades = np.array([drawing.shade(drawing.BLUE, share) for share in (-0.4, 0, 0.45)])
    assert list(np.argsort(luminance(dark_colours(shades)))) == [0, 1, 2]
    greys = np.linspace(0, 1, 9)[:, None] * np.ones(3)
    assert list(np.argsort(luminance(dark_colours(greys[2:])))) == list(range(7))[::-1]


@drawing.own_look()
def test_every_kind_of_artist_is_turned_once_and_stays_where_it_is():
    figure = drawing.new_figure(4, 3, "title", "words")
    left, right = figure.subplots(1, 2)
    (line,) = left.plot([1, 2], [1, 2], "o-", markerfacecolor="white", label="line")
    left.fill_between([1, 2], [1, 1], [2, 2], color=drawing.BLUE, alpha=0.2, linewidth=0)
    left.vlines([1.5], 1, 2, color=drawing.GREY)
    drawing.edge_note(left, "note", at_top=True)
    (bar,) = right.bar([1], [2])
    image = right.imshow(np.eye(2), cmap="PuOr")
    drawing.legend_of_labels(figure)
    drawing.freeze_layout(figure)
    places = [axis.get_position().bounds for axis in (left, right)]
    darken(figure)
    first = drawing.encoded(figure, "png")
    darken(figure)
    assert drawing.encoded(figure, "png") == first
    assert [axis.get_position().bounds for axis in (left, right)] == places
    np.testing.assert_allclose(figure.get_facecolor()[:3], DARK_PAPER)
    assert contrast(to_rgb(line.get_color()), DARK_PAPER) > 5
    np.testing.assert_allclose(line.get_markerfacecolor()[:3], DARK_PAPER)
    (note,) = left.texts
    np.testing.assert_allclose(note.get_bbox_patch().get_facecolor()[:3], DARK_PAPER)
    assert note.get_bbox_patch().get_edgecolor()[3] == 0  # none stays none
    assert contrast(to_rgb(bar.get_facecolor()), DARK_PAPER) > 5
    middle = image.get_cmap()(0.5)[:3]
    assert luminance(middle) < 0.03 < luminance(image.get_cmap()(0.0)[:3])
    ticks = left.get_xticklabels()
    assert ticks
    assert all(contrast(to_rgb(tick.get_color()), DARK_PAPER) > 5 for tick in ticks)
