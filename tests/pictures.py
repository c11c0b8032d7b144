"""What is on a picture: lines, levels, texts."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def drawn_lines(axis: Axes) -> list[np.ndarray]:
    return [np.array(line.get_xydata(), float) for line in axis.get_lines()]


def is_drawn(axis: Axes, x: np.ndarray, y: np.ndarray) -> bool:
    wanted = np.column_stack([x, y])
    return any(xy.shape == wanted.shape and np.allclose(xy, wanted) for xy in drawn_lines(axis))


def levels_of(axis: Axes) -> np.ndarray:
    lines = [xy for xy in drawn_lines(axis) if len(xy) == 2 and list(xy[:, 0]) == [0, 1]]
    return np.array([xy[0, 1] for xy in lines])


def legend_texts(figure: Figure) -> list[str]:
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def all_texts(axis: Axes) -> list[str]:
    return [text.get_text() for text in axis.texts]


def assert_nothing_is_cut(figure: Figure) -> None:
    """Every text and legend lies inside of the figure, as `savefig` writes it."""
    figure.draw_without_rendering()
    box = figure.get_tightbbox()
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= figure.get_figwidth()
    assert box.y1 <= figure.get_figheight()
