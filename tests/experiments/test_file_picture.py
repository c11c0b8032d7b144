"""The picture of a compressed model."""

import pytest
from file_problems import small_tree
from matplotlib.image import imread
from pictures import assert_nothing_is_cut

from jaxcomp.compressed import to_bytes
from jaxcomp.experiments.file_picture import picture, save_picture


def test_what_is_drawn(tmp_path):
    path = tmp_path / "model.jxc"
    path.write_bytes(to_bytes(small_tree()))
    figure = picture(path)
    bars, *histograms = figure.axes
    assert {label.get_text() for label in bars.get_yticklabels()} == {
        "coded", "rounded", "pruned", "bias", "steps/0",
    }  # fmt: skip
    assert len(bars.patches) == 5
    assert [axis.get_title(loc="left") for axis in histograms] == ["coded", "pruned", "rounded"]
    marks = {axis.get_title(loc="left"): len(axis.get_lines()) for axis in histograms}
    assert marks == {"coded": 1, "rounded": 0, "pruned": 0}  # only codebooks have marks
    assert_nothing_is_cut(figure)
    save_picture(path, tmp_path / "a.png")
    assert imread(tmp_path / "a.png")[0, 0, :3].min() == 1
    with pytest.raises(ValueError, match=r"has no name of a picture; end it with .png, .pdf, .svg"):
        save_picture(path, tmp_path / "a.txt")
