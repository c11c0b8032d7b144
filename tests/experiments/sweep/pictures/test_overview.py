"""The first picture: what is drawn where, against pandas, and that nothing of it is cut."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from pictures import all_texts, assert_nothing_is_cut, is_drawn, legend_texts, levels_of
from synthetic_sweep import METHODS, QUICK, synthetic_claims, synthetic_smallest, synthetic_table

from jaxcomp.experiments.sweep.pictures import plot_sweep

PANELS = {"test_loss": "validation_loss", "test_loss_tempered": "validation_loss_tempered"}


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return synthetic_table(QUICK)


@pytest.fixture(scope="module")
def figure(table: pd.DataFrame) -> Figure:
    return plot_sweep(table, claims=synthetic_claims(table), smallest=synthetic_smallest(table))


def means_of(table: pd.DataFrame) -> pd.DataFrame:
    return table.groupby("variant").mean(numeric_only=True)


def markers(axis, marker):
    lines = [line for line in axis.get_lines() if line.get_marker() == marker]
    return [np.array(line.get_xydata(), float) for line in lines]


def test_two_panels_of_one_scale(figure):
    raw, tempered = figure.axes
    assert raw.get_title(loc="left").startswith("Raw")
    assert tempered.get_title(loc="left").startswith("Tempered")
    assert raw.get_ylim() == tempered.get_ylim()
    assert raw.get_ylabel() == "test loss [nats per example]"
    assert raw.get_xlabel() == "times smaller than 32-bit weights (estimated)"
    assert raw.get_xlim()[0] < 1 < 32 < raw.get_xlim()[1]


@pytest.mark.parametrize(("place", "column"), list(enumerate(PANELS)))
def test_curves_dots_and_levels_are_means_over_networks(table, figure, place, column):
    axis, means = figure.axes[place], means_of(table)
    drawn = set()
    for start in ("kmeans/none/K", "kmeans/gauss_newton/K", "uniform/K"):
        curve = means[means.index.str.startswith(start)].sort_values("ratio_estimated")
        drawn |= set(curve.index)
        assert is_drawn(axis, curve["ratio_estimated"].to_numpy(), curve[column].to_numpy())
    kinds = table.groupby("variant")["kind"].first()
    others = means[(kinds == "compressed") & ~means.index.isin(drawn)]
    (dots,) = (xy for xy in markers(axis, "o") if len(xy) == len(others))
    np.testing.assert_allclose(np.sort(dots[:, 1]), np.sort(others[column]))
    assert f"{len(others)} other variants" in legend_texts(figure)
    controls = means[kinds == "control"]
    if column == "test_loss_tempered":
        controls = controls.drop(index="temperature")
    best = controls.loc[controls[PANELS[column]].idxmin(), column]
    np.testing.assert_allclose(
        np.sort(levels_of(axis)), np.sort([best, means.loc["original", column]])
    )
    texts = all_texts(axis)
    assert f"original {means.loc['original', column]:.3f}" in texts
    assert any(text.startswith("best control: ") and f"{best:.3f}" in text for text in texts)


def test_where_there_are_files_the_axis_is_theirs():
    table = synthetic_table(QUICK, with_files=True)
    found = synthetic_smallest(table)
    figure = plot_sweep(table, claims=synthetic_claims(table), smallest=found)
    axis, means = figure.axes[1], means_of(table)
    assert axis.get_xlabel() == "times smaller than the original (bytes of files)"
    curve = means[means.index.str.startswith("kmeans/none/K")].sort_values("ratio")
    assert is_drawn(axis, curve["ratio"].to_numpy(), curve["test_loss_tempered"].to_numpy())
    assert not np.allclose(curve["ratio"], curve["ratio_estimated"], rtol=0.02)
    (star,) = markers(axis, "*")
    assert star[0, 0] in means["ratio"].to_numpy()
    (diamond,) = [xy for xy in markers(axis, "D") if xy[0, 0] > 1]
    assert diamond[0, 0] == pytest.approx(means.loc[found.variant, "ratio"])
    # Without the file of one network all ratios are the estimates.
    table.loc[table.index[table["kind"] == "compressed"][0], "ratio"] = np.nan
    assert plot_sweep(table).axes[0].get_xlabel().endswith("(estimated)")


def test_chosen_variants_are_marked_with_their_intervals(table, figure):
    claims = {claim.name: claim for claim in synthetic_claims(table)}
    means, found = means_of(table), synthetic_smallest(table)
    for axis, name in zip(figure.axes, ("raw loss", "tempered loss"), strict=True):
        claim = claims[name]
        (star,) = markers(axis, "*")
        np.testing.assert_allclose(
            star, [[means.loc[claim.variant, "ratio_estimated"], claim.value]]
        )
        ends = [claim.reference_value + claim.low, claim.reference_value + claim.high]
        bars = [s[:, 1] for lines in axis.collections if hasattr(lines, "get_segments")
                for s in lines.get_segments()]  # fmt: skip
        assert any(np.allclose(bar, ends) for bar in bars)
    diamonds = [xy for xy in markers(figure.axes[1], "D") if xy[0, 0] > 1]
    expected = means.loc["original", "test_loss_tempered"] + found.effect
    np.testing.assert_allclose(diamonds, [[[found.ratio, expected]]])
    assert f"{found.ratio:.1f}x smaller\nat no loss" in all_texts(figure.axes[1])
    assert "smallest at no loss (within 3 %)" in legend_texts(figure)
    lost = plot_sweep(table, smallest=found._replace(holds=False))
    assert not any("no loss" in text for text in [*all_texts(lost.axes[1]), *legend_texts(lost)])


def test_verdicts_are_said_in_words(figure):
    left, right = (all_texts(axis) for axis in figure.axes)
    assert "best variant: lower than the original (p = 0.005)" in left
    assert "best variant: no difference that matters (p = 0.005)" in right
    assert any(text.startswith("change ") and "95 % interval" in text for text in left)


def test_what_explodes_is_counted(table, figure):
    means = means_of(table)
    kinds = table.groupby("variant")["kind"].first()
    axis = figure.axes[0]
    is_seen = (kinds == "compressed") & (means["ratio_estimated"] <= axis.get_xlim()[1])
    original = means.loc["original", "test_loss"]
    assert original < axis.get_ylim()[1] < 2 * original
    num_above = int((means.loc[is_seen, "test_loss"] > axis.get_ylim()[1]).sum())
    assert f"{num_above} variants are above this range" in all_texts(axis)


@pytest.mark.filterwarnings("error")
def test_nothing_is_cut_and_thin_tables_can_be_drawn(table, figure):
    assert_nothing_is_cut(figure)
    broken = table.copy()
    broken.loc[broken["variant"] == "kmeans/none/K2", ["test_loss", "test_loss_tempered"]] = np.nan
    broken.loc[broken["variant"] == "kmeans/none/K4", "ratio_estimated"] = np.inf
    for rows in (
        table[table["kind"] == "original"],
        table[table["variant"].isin(["original", "kmeans/none/K4"])],
        table[(table["method"] != "kmeans") & (table["model_seed"] == 0)],
        table.assign(test_loss=0.0, test_loss_tempered=0.0),
        broken,
        synthetic_table(METHODS | {"num_clusters": (4, 16)}, num_models=2, label_noise=0.3),
    ):
        assert_nothing_is_cut(plot_sweep(rows))
    with pytest.raises(ValueError, match="a picture shows one setting, the table has"):
        plot_sweep(pd.concat([table, table.assign(label_noise=0.3, setting="noisy")]))
