"""Pictures in files: which there are, and the same bytes for the same table."""

from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
from matplotlib import _pylab_helpers
from synthetic_sweep import SMALL, synthetic_table

from jaxcomp.experiments import drawing
from jaxcomp.experiments.sweep.pictures import plot_bound, save_figures


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return synthetic_table(SMALL, num_models=4)


@pytest.mark.parametrize(
    ("form", "start"), [("svg", b"<?xml"), ("pdf", b"%PDF"), ("png", b"\x89PNG")]
)
def test_equal_tables_give_equal_bytes(table, form, start):
    rows = table[table["variant"].isin(["original", "kmeans/none/K4"])]
    first, second = (drawing.encoded(plot_bound(rows), form) for _ in range(2))
    assert first == second
    assert first.startswith(start)


@pytest.mark.slow  # the run of test_experiment.py saves them all, too
def test_every_picture_is_saved(table, tmp_path):
    rows = table[table["variant"].isin(["original", "uniform/K4", "kmeans/none/K4", "temperature"])]
    files = save_figures(rows, tmp_path, formats=("png",))
    stems = ("sweep", "sweep-details", "bound", "predicted-rise")
    assert [file.name for file in files] == [f"{stem}.png" for stem in stems]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


@pytest.mark.slow
def test_every_setting_gets_its_own_files(table, tmp_path):
    rows = table[table["kind"] == "original"].drop(columns=["zero_one_bound"])
    noisy = rows.assign(label_noise=0.3, setting="mnist-mlp-noise0.3")
    files = save_figures(pd.concat([rows, noisy]), tmp_path, formats=("png",))
    assert [file.name for file in files] == [
        "sweep-mnist-mlp-noise0.png",
        "sweep-details-mnist-mlp-noise0.png",
        "sweep-mnist-mlp-noise0.3.png",
        "sweep-details-mnist-mlp-noise0.3.png",
    ]


def test_figures_can_be_drawn_in_threads(table):
    rows = table[table["variant"].isin(["original", "kmeans/none/K4"])]
    with ThreadPoolExecutor(2) as pool:
        images = list(pool.map(lambda _: plot_bound(rows)._repr_png_(), range(2)))
    assert images[0] == images[1]
    assert images[0].startswith(b"\x89PNG")
    assert _pylab_helpers.Gcf.get_all_fig_managers() == []


def test_other_formats_are_refused(table, tmp_path):
    with pytest.raises(ValueError, match="written as png, svg, pdf; got 'jpg'"):
        save_figures(table, tmp_path, formats=("jpg",))
