"""Pictures of a sweep in detail: what is drawn where, against pandas and SciPy."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from pictures import (
    all_texts,
    assert_nothing_is_cut,
    is_drawn,
    legend_texts,
    levels_of,
)
from scipy import stats
from slow_cases import some_slow
from synthetic_sweep import METHODS, PAPER, SMALL, synthetic_claims, synthetic_table

from jaxcomp.experiments.sweep import summary
from jaxcomp.experiments.sweep.pictures import plot_bound, plot_details, plot_predicted_rise

COLUMNS = (
    "train_loss",
    "test_loss",
    "test_loss_tempered",
    "generalization_gap",
    "accuracy",
    "calibration_error",
)
FACTORS = (1, 1, 1, 1, 100, 100)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return synthetic_table(SMALL, num_models=4)


@pytest.fixture(scope="module")
def untouched(table: pd.DataFrame) -> pd.DataFrame:
    return table.copy()


@pytest.fixture(scope="module")
def figure(table: pd.DataFrame, untouched: pd.DataFrame) -> Figure:
    return plot_details(table)


@pytest.fixture(scope="module")
def many_penalties() -> tuple[pd.DataFrame, list[str]]:
    """A table of six penalties, and the texts of its legend."""
    table = synthetic_table(PAPER | {"num_clusters": (4, 16)}, num_models=2)
    return table, legend_texts(plot_details(table))


def curve_of(table: pd.DataFrame, **identity: object) -> pd.DataFrame:
    rows = table[np.logical_and.reduce([table[k] == v for k, v in identity.items()])]
    means = rows.groupby("variant")[["ratio_estimated", "num_clusters", *COLUMNS]].mean()
    return means.sort_values("ratio_estimated")


def test_every_quantity_has_a_panel_with_units(figure):
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == [
        "a  Training loss",
        "b  Test loss, raw",
        "c  Test loss, tempered",
        "d  Generalization gap",
        "e  Test accuracy",
        "f  Expected calibration error",
    ]
    units = [axis.get_ylabel().split("[")[1] for axis in figure.axes]
    assert units == ["nats]"] * 4 + ["%]"] * 2
    assert figure.axes[-1].get_xlabel() == "times smaller than 32-bit weights (estimated)"


def test_title_says_what_was_trained(table, figure):
    assert figure.get_suptitle() == "mnist, mlp: 4 networks, clean labels"
    noisy = table.assign(label_noise=0.3)
    assert plot_details(noisy).get_suptitle() == "mnist, mlp: 4 networks, 30 % label noise"


@pytest.mark.parametrize(
    "identity",
    [
        {"method": "kmeans", "importance": "none", "diameter_penalty": 0.0},
        {"method": "kmeans", "importance": "gauss_newton", "diameter_penalty": 0.05},
        {"method": "uniform"},
    ],
)
def test_curves_are_means_over_networks_sorted_by_ratio(table, figure, identity):
    means = curve_of(table, **identity)
    assert len(means) == 3
    for axis, column, factor in zip(figure.axes, COLUMNS, FACTORS, strict=True):
        assert is_drawn(
            axis, means["ratio_estimated"].to_numpy(), factor * means[column].to_numpy()
        )


def paired_interval(table: pd.DataFrame, variant: str, column: str) -> tuple[float, float]:
    """Mean of the variant, with the interval of its difference to the same networks' originals."""
    by_network = table.pivot(index="model_seed", columns="variant", values=column)
    test = stats.ttest_rel(by_network[variant], by_network["original"])
    interval = test.confidence_interval(0.95)
    original = by_network["original"].mean()
    return original + interval.low, original + interval.high


def test_bands_are_intervals_of_the_difference_to_the_original(table, figure):
    vertices = np.concatenate(
        [path.vertices for band in figure.axes[1].collections for path in band.get_paths()]
    )
    ratio = table.loc[table["variant"] == "kmeans/none/K16", "ratio_estimated"].mean()
    at = vertices[np.isclose(vertices[:, 0], ratio)]
    for end in paired_interval(table, "kmeans/none/K16", "test_loss"):
        assert np.isclose(at[:, 1], end).any()


@pytest.mark.parametrize("variant", ["kmeans/gauss_newton/monotone-0.05/K4", "round_to_nearest/4"])
def test_penalised_curves_and_points_have_bars(table, figure, variant):
    low, high = paired_interval(table, variant, "accuracy")
    bars = [
        segment[:, 1]
        for lines in figure.axes[4].collections
        if hasattr(lines, "get_segments")
        for segment in lines.get_segments()
    ]
    assert any(np.allclose(bar, [100 * low, 100 * high]) for bar in bars)


def test_the_level_of_the_originals_is_said(table, figure):
    rows = table.loc[table["kind"] == "original", "test_loss"]
    low, high = stats.t.interval(0.95, len(rows) - 1, rows.mean(), stats.sem(rows))
    level = f"original {rows.mean():.3f} [{low:.3f}, {high:.3f}]"
    assert level in all_texts(figure.axes[1])


def test_order_of_rows_does_not_matter(table, figure):
    shuffled = table.sample(frac=1, random_state=0)
    ends = [
        np.concatenate([p.vertices for b in f.axes[1].collections for p in b.get_paths()])
        for f in (figure, plot_details(shuffled))
    ]
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-12)


def test_originals_are_a_line(table, figure):
    original = table[table["kind"] == "original"]
    for axis, column, factor in zip(figure.axes, COLUMNS, FACTORS, strict=True):
        assert np.isclose(levels_of(axis), factor * original[column].mean()).any()


def test_controls_are_lines_at_the_strength_best_on_the_validation_set(table, figure):
    for panel, criterion in ((1, "validation_loss"), (2, "validation_loss_tempered")):
        for method in ("last_layer_scaled", "weights_clipped", "early_stopping"):
            variants = table[table["method"] == method].groupby("variant").mean(numeric_only=True)
            best = variants.loc[variants[criterion].idxmin()]
            assert np.isclose(levels_of(figure.axes[panel]), best[COLUMNS[panel]]).any()
    assert {"T", "S", "C", "E"} <= set(all_texts(figure.axes[1]))


def test_temperature_is_left_out_where_it_changes_nothing(figure):
    assert "T" in all_texts(figure.axes[0])
    assert "T" not in all_texts(figure.axes[2])
    assert "T" not in all_texts(figure.axes[4])


def test_noise_stands_at_the_ratio_of_its_k(table, figure):
    ratios = curve_of(table, method="kmeans", importance="none", diameter_penalty=0.0)
    noise = curve_of(table, method="gaussian_noise").set_index("num_clusters")
    noise = noise.loc[ratios["num_clusters"]]
    assert is_drawn(
        figure.axes[1], ratios["ratio_estimated"].to_numpy(), noise["test_loss"].to_numpy()
    )


def test_exploding_losses_do_not_squash_the_rest(table, figure):
    means = table.groupby("variant").mean(numeric_only=True)
    assert means["test_loss"].max() > 4
    original = table.loc[table["kind"] == "original", "test_loss"].mean()
    low, high = figure.axes[1].get_ylim()
    assert low < original < high < 3 * original
    drawn = means[
        means["ratio_estimated"].between(*figure.axes[1].get_xlim())
        & ~means.index.str.contains("noise")
    ]
    num_above = int((drawn["test_loss"] > high).sum())
    worst = drawn["test_loss"].max()
    assert f"{num_above} variants above, to {worst:.3g} nats" in all_texts(figure.axes[1])
    lines = figure.axes[1].get_lines()
    marks = [x for x in lines if x.get_marker() == "^" and not x.get_clip_on()]
    # Marks that would cover each other are one.
    left, right = np.log(figure.axes[1].get_xlim())
    places = np.sort([np.log(mark.get_xdata()[0]) for mark in marks]) / (right - left)
    assert 1 < len(places) < num_above
    assert np.diff(places).min() >= 0.03
    ratios = drawn.loc[drawn["test_loss"] > high, "ratio_estimated"].to_numpy()
    distances = np.abs(np.log(ratios)[:, None] / (right - left) - places)
    assert distances.min(axis=1).max() < 0.03


def test_training_loss_is_logarithmic_when_it_spans_decades(table, figure):
    assert figure.axes[0].get_yscale() == "log"
    calm = table[~table["variant"].str.contains("K2|K4|pruning|noise")]
    assert plot_details(calm).axes[0].get_yscale() == "linear"


def test_ratio_axis_has_ticks_that_read_as_ratios(figure):
    figure.draw_without_rendering()
    axis = figure.axes[-1]
    assert axis.get_xscale() == "log"
    ticks = [tick.get_text() for tick in axis.get_xticklabels()]
    assert {"8x", "16x", "32x"} <= set(ticks)
    assert {"K = 16", "4", "2"} <= set(all_texts(axis))


def test_merged_centroids_do_not_stretch_the_axis(table):
    merged = table.copy()
    is_merged = merged["diameter_penalty"] == 0.05
    merged.loc[is_merged, "ratio_estimated"] = 3000.0
    drawn = plot_details(merged)
    assert drawn.axes[0].get_xlim()[1] < 100
    num_variants = merged.loc[is_merged, "variant"].nunique()
    assert f"{num_variants} variants right of the axis" in legend_texts(drawn)


def test_few_penalties_are_all_drawn(figure):
    texts = legend_texts(figure)
    assert sum(text.startswith("penalty 0.05") for text in texts) == 2
    assert not any("more" in text for text in texts)


def test_of_many_penalties_the_ends_and_the_best_are_drawn(many_penalties):
    table, texts = many_penalties
    starts = [texts.index(f"K-means, {name}") for name in ("unweighted", "Gauss-Newton")]
    for importance, start in zip(("none", "gauss_newton"), starts, strict=True):
        variants = table[(table["method"] == "kmeans") & (table["importance"] == importance)]
        means = variants.groupby("variant").mean(numeric_only=True)
        best = [
            means.loc[means[criterion].idxmin(), "diameter_penalty"]
            for criterion in ("validation_loss", "validation_loss_tempered")
        ]
        expected = sorted({0.003, 0.3, *best} - {0.0})
        group = texts[start + 2 : start + 2 + len(expected)]
        assert [text.split()[1] for text in group] == [f"{value:g}" for value in expected]
        assert "(best raw" in group[expected.index(best[0])]
        more = f"{6 - len(expected)} more penalties in the table"
        assert texts[start + 2 + len(expected)] == more


def test_claims_are_starred_and_their_verdicts_written(table):
    claims = synthetic_claims(table)
    drawn = plot_details(table, claims=claims)
    raw = next(claim for claim in claims if claim.name == "raw loss")
    variant = table[table["variant"] == raw.variant]
    stars = [line for line in drawn.axes[1].get_lines() if line.get_marker() == "*"]
    places = [np.array(line.get_xydata(), float)[0] for line in stars]
    wanted = [variant["ratio_estimated"].mean(), variant["test_loss"].mean()]
    assert any(np.allclose(place, wanted) for place in places)
    for panel, start in (
        (1, f"lower: holds, {raw.effect:+.4f} [".replace("-", "\N{MINUS SIGN}")),
        (2, "lower: no practical difference, "),
        (4, "higher: not shown, "),
    ):
        assert any(text.startswith(start) for text in all_texts(drawn.axes[panel]))
    assert "variant that a claim is about" in legend_texts(drawn)


def test_penalty_of_a_claim_is_drawn_even_if_it_is_one_of_many(many_penalties):
    table, before = many_penalties
    claim = synthetic_claims(table)[0]._replace(variant="kmeans/none/monotone-0.05/K4")
    assert not any(t.startswith("penalty 0.05") for t in before)
    texts = legend_texts(plot_details(table, claims=[claim]))
    assert any(t.startswith("penalty 0.05") for t in texts)


def test_one_network_has_no_intervals(table):
    one = table[table["model_seed"] == 0]
    drawn = plot_details(one)
    assert "1 network" in drawn.get_suptitle()
    assert not any("interval" in text.get_text() for text in drawn.texts)


def test_network_trained_elsewhere_is_named(table):
    given = table.assign(dataset="given", model="my-network", setting="my-network")
    assert plot_details(given).get_suptitle() == "my-network: 4 networks, trained elsewhere"


def edge_tables(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    broken = table.copy()
    broken.loc[broken["variant"] == "kmeans/none/K2", ["train_loss", "test_loss"]] = np.nan
    broken.loc[broken["variant"] == "kmeans/gauss_newton/K2", "test_loss_tempered"] = np.inf
    broken.loc[broken["variant"] == "kmeans/gauss_newton/K4", "ratio_estimated"] = np.inf
    equal = table.assign(train_loss=0.0, accuracy=1.0, calibration_error=0.0)
    return {
        "original only": table[table["kind"] == "original"],
        "no kmeans": table[table["method"] != "kmeans"],
        "one variant": table[table["variant"].isin(["original", "kmeans/none/K4"])],
        "broken numbers": broken,
        "equal numbers": equal,
        "with sensitivity": pd.concat([table, table.iloc[:4].assign(kind="sensitivity")]),
    }


@pytest.mark.parametrize(
    "name",
    some_slow(
        [
            "original only",
            "no kmeans",
            "one variant",
            "broken numbers",
            "equal numbers",
            "with sensitivity",
        ],
        "no kmeans",
        "equal numbers",
        "with sensitivity",
    ),
)
@pytest.mark.filterwarnings("error")
def test_thin_tables_can_be_drawn(table, name):
    plot_details(edge_tables(table)[name]).draw_without_rendering()


def test_forms_of_penalty_are_named_where_there_are_several():
    grid = SMALL | {"num_clusters": (4, 16), "penalty_form": ("monotone", "linear")}
    texts = legend_texts(plot_details(synthetic_table(grid, num_models=2)))
    assert any(text.startswith("penalty 0.05, linear") for text in texts)
    assert any(text.startswith("penalty 0.05, monotone") for text in texts)


def test_other_methods_are_lines_of_their_own_look():
    table = synthetic_table(METHODS | {"num_clusters": (2, 4, 16)}, num_models=2)
    drawn = plot_details(table)
    names = legend_texts(drawn)
    looks = set()
    for name, method, allocation in (
        ("K-means alloc", "kmeans", "optimal"),
        ("optimal", "optimal", "equal"),
        ("optimal alloc", "optimal", "optimal"),
        ("entropy-coded", "entropy_constrained", "equal"),
        ("entropy alloc", "entropy_constrained", "optimal"),
        ("vector pairs", "vector", "equal"),
    ):
        for importance, label in (("none", "unweighted"), ("gauss_newton", "Gauss-Newton")):
            curve = curve_of(
                table,
                method=method,
                allocation=allocation,
                importance=importance,
                diameter_penalty=0.0,
            )
            wanted = curve[["ratio_estimated", "test_loss"]].to_numpy()
            (line,) = (
                line
                for line in drawn.axes[1].get_lines()
                if np.shape(line.get_xydata()) == wanted.shape
                and np.allclose(line.get_xydata(), wanted)
            )
            looks.add(
                (
                    line.get_color(),
                    line.get_marker(),
                    str(line.get_markerfacecolor()),
                    line.get_linestyle(),
                )
            )
            assert f"{name}, {label}" in names
    assert len(looks) == 12
    assert {"K-means alloc", "optimal alloc", "entropy-coded", "vector pairs"} <= set(
        legend_texts(plot_predicted_rise(table))
    )
    assert "vector pairs, unweighted" in legend_texts(plot_bound(table))


def test_no_legend_is_cut():
    forms = {"penalty_form": ("monotone", "linear", "published"), "num_clusters": (4, 16)}
    for grid in (METHODS | {"num_clusters": (4,)}, PAPER | forms):
        assert_nothing_is_cut(plot_details(synthetic_table(grid, num_models=2)))


def test_many_penalties_are_looked_through_once(monkeypatch):
    """The work of choosing what is drawn grows with the variants, not with their square."""
    counts = []
    for num_penalties in (10, 40):
        penalties = tuple(0.001 * 1.1**k for k in range(num_penalties))
        grid = SMALL | {"diameter_penalty": penalties, "num_clusters": (4, 16)}
        (found,) = summary.summarize(synthetic_table(grid, num_models=2))
        asked = []
        mean = summary.VariantSummary.mean

        def counted(self, column, mean=mean, asked=asked):
            asked.append(column)
            return mean(self, column)

        with monkeypatch.context() as patch:
            patch.setattr(summary.VariantSummary, "mean", counted)
            assert len(found.main_curves()) < 12
        counts.append(len(asked) / len(found.variants))
    # A square would make it four times as much for each variant.
    assert counts[1] < 2 * counts[0]


def test_the_table_stays_as_it_is(table, untouched, figure):
    pd.testing.assert_frame_equal(table, untouched)


def test_tables_that_cannot_be_drawn(table):
    noisy = table.assign(label_noise=0.3, setting="mnist-mlp-noise0.3")
    with pytest.raises(ValueError, match=r"shows one setting, the table has .*noise0\.3"):
        plot_details(pd.concat([table, noisy]))
    with pytest.raises(ValueError, match=r"lacks the columns \['accuracy'\]: pass the table"):
        plot_details(table.drop(columns="accuracy"))
    with pytest.raises(ValueError, match="no rows of the original networks: pass all of its rows"):
        plot_details(table.iloc[:0])
    with pytest.raises(ValueError, match="no rows of the original networks of mnist-mlp-noise0"):
        plot_details(table[table["kind"] != "original"])
