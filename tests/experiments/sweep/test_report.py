"""The report: numbers against pandas, width, verdicts in words, files, Markdown."""

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from synthetic_sweep import METHODS, PAPER, QUICK, synthetic_claims, synthetic_table

from jaxcomp.experiments.sweep.claims import Claim
from jaxcomp.experiments.sweep.report import print_report, report_markdown
from jaxcomp.experiments.sweep.summary import summarize, variant_means

NUM_HEADER_LINES = 2


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return synthetic_table(QUICK, num_models=5)


@pytest.fixture(scope="module")
def claims(table: pd.DataFrame) -> list[Claim]:
    return synthetic_claims(table)


def printed(
    table: pd.DataFrame,
    claims: Sequence[Claim] | None,
    width: int = 112,
    encoding: str = "utf-8",
    **options,
) -> str:
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding=encoding)
    print_report(table, claims, console=Console(file=stream, width=width), **options)
    stream.flush()
    return buffer.getvalue().decode(encoding)


def row_of(text: str, label: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(label))


def words(text: str) -> str:
    return " ".join(text.split())


def number(rows: pd.Series, digits: int, factor: float = 1.0) -> str:
    return f"{factor * rows.mean():.{digits}f}±{factor * rows.std(ddof=1):.{digits}f}"


def test_original_row_has_means_and_deviations(table, claims):
    original = table[table["kind"] == "original"]
    row = row_of(printed(table, claims), "original").split()
    assert row == [
        "original",
        "-",
        "1.0",
        "32.00",
        number(original["train_loss"], 4),
        number(original["test_loss"], 3),
        number(original["test_loss_tempered"], 3),
        f"{original['generalization_gap'].mean():.3f}",
        number(original["accuracy"], 2, 100),
        f"{100 * original['calibration_error'].mean():.1f}",
    ]


@pytest.mark.parametrize(
    ("label", "identity"),
    [
        ("unweighted, no penalty", {"importance": "none", "diameter_penalty": 0.0}),
        ("Gauss-Newton, penalty 0.05", {"importance": "gauss_newton", "diameter_penalty": 0.05}),
        ("uniform grid, best K", {"method": "uniform"}),
        ("last layer times", {"method": "last_layer_scaled"}),
        ("weights clipped at", {"method": "weights_clipped"}),
    ],
)
def test_strengths_are_chosen_on_the_validation_set(table, claims, label, identity):
    rows = table[np.logical_and.reduce([table[k] == v for k, v in identity.items()])]
    means = rows.groupby("variant").mean(numeric_only=True)
    best = table[table["variant"] == means["validation_loss"].idxmin()]
    row = row_of(printed(table, claims), label)
    assert number(best["test_loss"], 3) in row
    assert number(best["accuracy"], 2, 100) in row
    if best["kind"].iloc[0] == "compressed":
        assert f" {best['num_clusters'].iloc[0]:.0f} " in row
        assert f"{best['ratio_estimated'].mean():.1f}" in row


def test_compressed_networks_are_counted_among_the_files(table, claims, tmp_path):
    assert "compressed: " not in printed(table, claims, directory=tmp_path)
    (tmp_path / "compressed").mkdir()
    for name in ("a.jxc", "b.jxc", ".a.tmp"):
        (tmp_path / "compressed" / name).touch()
    assert "compressed: 2 files (.jxc)" in printed(table, claims, directory=tmp_path)


def test_sizes_are_those_of_the_files(claims):
    table = synthetic_table(QUICK, num_models=5, with_files=True)
    original = row_of(printed(table, claims), "original").split()
    assert original[2:4] == ["1.0", "1074.8"]
    rows = table[table["variant"] == "kmeans/none/K4"]
    ratio, size = rows["ratio"].mean(), rows["size_bytes"].mean() / 1000
    assert not np.isclose(ratio, rows["ratio_estimated"].mean(), rtol=0.05)
    section = printed(table, claims).split("K-means at fixed K\n")[1]
    row = section.splitlines()[1].split()
    assert row[3:6] == ["4", f"{ratio:.1f}", f"{size:.1f}"]
    told = "the file was written, read again and compared bit for bit"
    assert told in words(printed(table, claims))
    assert told in report_markdown(table, claims)
    estimated = report_markdown(synthetic_table(QUICK), claims)
    assert told not in estimated
    assert "Ratio: estimated, bits of 32-bit weights" in estimated


def test_every_method_has_a_line_with_its_best_variant(claims):
    table = synthetic_table(METHODS, num_models=2)
    text = printed(table, claims)
    for label, method, allocation in (
        ("K-means alloc", "kmeans", "optimal"),
        ("optimal", "optimal", "equal"),
        ("optimal alloc", "optimal", "optimal"),
        ("entropy-coded", "entropy_constrained", "equal"),
        ("vector pairs", "vector", "equal"),
    ):
        rows = table[
            (table["method"] == method)
            & (table["allocation"] == allocation)
            & (table["importance"] == "gauss_newton")
        ]
        best = rows.groupby("variant")["validation_loss"].mean().idxmin()
        row = row_of(text, f"{label}, Gauss-Newton")
        assert number(table.loc[table["variant"] == best, "test_loss"], 3) in row
    assert "vector alloc" not in text
    # Nothing changes for K-means at equal K, nor for a table from before there were allocations.
    plain = table[(table["allocation"] == "equal") & table["method"].isin(["kmeans", "original"])]
    old = plain.drop(columns="allocation")
    assert printed(old, claims) == printed(plain, claims)
    assert row_of(text, "unweighted, no penalty") == row_of(
        printed(old, claims), "unweighted, no penalty"
    )


def test_plain_kmeans_is_shown_at_fixed_k(table, claims):
    text = printed(table, claims)
    section = text.split("K-means at fixed K\n")[1].split("Other quantizers")[0]
    assert [line.split()[3] for line in section.splitlines()] == ["2", "4", "8", "16", "32"]


def test_clusters_without_weights_are_said(table, claims):
    assert "fewer clusters" not in printed(table, claims)
    is_short = (table["num_clusters"] == 32) & (table["method"] == "kmeans")
    # A penalty merges clusters: that is no shortage of weights.
    is_short &= table["diameter_penalty"].isin([0.0, 0.05])
    few = table.assign(
        num_empty=np.where(is_short, 21.0, 0.0), num_used=np.where(is_short, 25.0, 4.0)
    )
    told = "Layers with few distinct weights use fewer clusters: 25.0 of K = 32 (mean over layers)."
    assert told in words(printed(few, claims))
    assert told in report_markdown(few, claims)
    merged = few.assign(num_empty=np.where(few["diameter_penalty"] > 0, few["num_empty"], 0.0))
    assert "fewer clusters" not in printed(merged, claims)


def test_noise_is_as_strong_as_the_chosen_k(table, claims):
    text = printed(table, claims)
    chosen = row_of(text, "unweighted, no penalty").split()[3]
    noise = table[(table["method"] == "gaussian_noise") & (table["num_clusters"] == int(chosen))]
    row = row_of(text, f"noise as strong as K={chosen} ")
    assert number(noise["test_loss"], 3) in row


@pytest.mark.parametrize("width", [112, 95, 80])
@pytest.mark.parametrize("grid", [QUICK, PAPER])
def test_table_fits_the_window(grid, width):
    table = synthetic_table(grid, num_models=3)
    text = printed(table, synthetic_claims(table), width=width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    start = next(i for i, line in enumerate(lines) if line.startswith("compression"))
    end = next(i for i, line in enumerate(lines) if "claims hold" in line)
    num_headings = 4
    assert end - start - NUM_HEADER_LINES - num_headings <= 25
    numbers = [line for line in lines[start:end] if "…" in line]
    assert numbers == []
    assert ("±" in row_of(text, "original")) == (width == 112)
    assert ("A window of 112 columns shows" in words(text)) == (width < 112)


def test_exploded_losses_keep_their_width(table, claims):
    burst = table.copy()
    is_burst = burst["variant"] == "kmeans/none/K2"
    burst.loc[is_burst, "test_loss"] = [12.1, 13.2, 14.3, 15.4, 16.5]
    burst.loc[is_burst, "train_loss"] = 123.456
    text = printed(burst, claims)
    assert "14.30±1.74" in text
    assert "123.46±0.00" in text
    assert "…" not in text


def test_one_network_has_no_deviations(table, claims):
    text = printed(table[table["model_seed"] == 0], claims)
    assert "±" not in text
    assert "1 network" in text


def test_newcomers_are_told_what_to_look_at(table, claims):
    start = words(printed(table, claims).split("mnist, mlp: 5 networks")[0])
    assert "That is calibration" in start
    assert "A lower tempered loss or a higher accuracy is a better network" in start


def test_every_claim_has_its_verdict_in_words(table, claims):
    text = words(printed(table, claims))
    for mark in ("HOLDS", "NO DIFFERENCE", "NOT SHOWN", "OPPOSITE"):
        assert mark in text
    for claim in claims:
        assert words(claim.sentence) in text
    assert "2 of 5 claims hold" in text


def test_verdicts_are_not_told_by_colour_alone(table, claims):
    assert "\x1b" not in printed(table, claims)
    stream = io.StringIO()
    print_report(table, claims, console=Console(file=stream, width=112, force_terminal=True))
    coloured = stream.getvalue()
    assert "\x1b[" in coloured
    plain = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert words(plain) == words(printed(table, claims))


def test_a_missing_control_is_said(table, claims):
    alone = [claims[0]._replace(control=None, sentence="It falls.")]
    assert "It falls. No control was run to compare with." in words(printed(table, alone))


def test_no_claims_are_said(table):
    assert "No claims were made." in printed(table, None)
    assert "No claims were made." in report_markdown(table, [])


def test_consoles_without_unicode(table, claims):
    text = printed(table, claims, encoding="ascii")
    assert text.isascii()
    original = table.loc[table["kind"] == "original", "test_loss"]
    assert number(original, 3).replace("±", "+-") in text


def test_files_are_listed(table, claims, tmp_path):
    for name in ("table.csv", "table.parquet", "report.md", "sweep.png", "sweep.svg", "bound.png"):
        (tmp_path / name).touch()
    (tmp_path / "variants").mkdir()
    text = printed(table, claims, directory=tmp_path)
    assert f"files in {tmp_path}" in text
    assert "  table: table.csv .parquet" in text
    assert "  report: report.md" in text
    assert "  pictures: bound.png, sweep.png .svg" in text
    assert "variants" not in text.split("files in")[1].replace(str(tmp_path), "")


def test_directory_that_is_not_there_is_no_error(table, claims):
    assert "files in nowhere" in printed(table, claims, directory=Path("nowhere"))


def test_settings_get_their_own_claims(table, claims):
    noisy = table.assign(label_noise=0.3, setting="mnist-mlp-noise0.3")
    other = [claims[0]._replace(setting="mnist-mlp-noise0.3", sentence="About the noisy ones.")]
    stray = [claims[1]._replace(setting="elsewhere", sentence="About something else.")]
    both = pd.concat([table, noisy])
    for text in (
        printed(both, [*claims, *other, *stray]),
        report_markdown(both, [*claims, *other, *stray]),
    ):
        clean, rest = text.split("mnist, mlp: 5 networks, 30 % label noise")
        assert words(claims[0].sentence)[:40] in words(clean)
        assert "About the noisy ones." not in clean
        noisy_part, stray_part = re.split("other claims", rest, flags=re.IGNORECASE)
        assert "About the noisy ones." in noisy_part
        assert "About something else." in stray_part


def test_names_are_not_taken_for_markup(table, claims):
    named = table.assign(dataset="given", model="[red]net[/red]", setting="net")
    assert "[red]net[/red]: 5 networks" in printed(named, claims)


def test_missing_numbers_are_dashes(table, claims):
    broken = table.copy()
    broken.loc[broken["variant"] == "round_to_nearest/4", "test_loss"] = np.nan
    row = row_of(printed(broken.drop(columns="entropy_bits_per_weight"), claims), "int4").split()
    assert row[3:8] == ["-", "9.9", "-", row[6], "-"]


def test_markdown_has_the_same_numbers(table, claims):
    text = report_markdown(table, claims)
    lines = text.splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("| compression"))
    num_columns = lines[header].count("|")
    rows = [line for line in lines[header:] if line.startswith("|")]
    assert {row.count("|") for row in rows} == {num_columns}
    original = table[table["kind"] == "original"]
    row = next(row for row in rows if row.startswith("| original"))
    assert number(original["test_loss"], 3) in row
    assert text.endswith("|\n")
    assert "1. **raw loss: holds.** Compression lowers it" in text


def test_markdown_escapes_bars_and_links_pictures(table, claims):
    barred = [claims[0]._replace(sentence="One | two.")]
    assert "One \\| two." in report_markdown(table, barred)
    assert "![" not in report_markdown(table, claims)
    assert "](sweep.png)" in report_markdown(table, claims, with_pictures=True)
    noisy = table.assign(label_noise=0.3, setting="mnist-mlp-noise0.3")
    both = report_markdown(pd.concat([table, noisy]), [], with_pictures=True)
    assert "](sweep-mnist-mlp-noise0.3.png)" in both


def test_distances_to_the_limit_have_a_table(table, claims):
    assert "limit" not in report_markdown(table, claims)
    told = table.assign(
        limit_bits_per_weight=0.25 * table["entropy_bits_per_weight"],
        shannon_bits_per_weight=0.125,
        excess_bits_per_weight=0.75 * table["entropy_bits_per_weight"],
    )
    plain = told[(told["variant"] == "kmeans/none/K8") & (told["kind"] == "compressed")]
    bits = plain["entropy_bits_per_weight"].mean()
    text = report_markdown(told, claims, with_pictures=True)
    row = f"| K-means, unweighted | 8 | {bits:.2f} | {bits / 4:.2f} | {0.75 * bits:.2f} | 0.12 |"
    assert row in text
    assert "(limit.png)" in text
    # Penalties are in the table of the sweep; pruned weights have no K.
    assert text.count("| K-means, unweighted |") == 5
    assert "| 50 % of weights pruned | - |" in text
    with_terminal = printed(told, claims)
    assert "above the rate-distortion limit" in with_terminal
    missing = told.assign(excess_bits_per_weight=np.nan)
    assert "Distance to the limit" not in report_markdown(missing, claims)


def test_tables_that_cannot_be_reported(table):
    with pytest.raises(ValueError, match=r"lacks the columns \['test_loss'\]: pass the table of"):
        printed(table.drop(columns="test_loss"), [])
    with pytest.raises(ValueError, match="no rows of the original networks"):
        report_markdown(table[table["kind"] != "original"], [])


def test_variant_means_keep_order_and_do_not_hide_a_broken_network(table):
    broken = table.copy()
    broken.loc[(broken["variant"] == "uniform/K4") & (broken["model_seed"] == 1), "test_loss"] = (
        np.nan
    )
    means = variant_means(broken).set_index("variant")
    assert list(means.index) == list(dict.fromkeys(table["variant"]))
    assert list(variant_means(broken).columns) == list(table.columns)
    expected = table.groupby("variant")["accuracy"].mean()
    np.testing.assert_allclose(means["accuracy"], expected[means.index])
    assert np.isnan(means.loc["uniform/K4", "test_loss"])


def test_summary_keeps_settings_apart_and_leaves_out_single_layers(table):
    noisy = table.assign(label_noise=0.3, setting="mnist-mlp-noise0.3")
    single = table.iloc[:3].assign(kind="sensitivity", variant="kmeans/none/K4/only:w")
    summaries = summarize(pd.concat([table, single, noisy]))
    assert [s.name for s in summaries] == ["mnist-mlp-noise0", "mnist-mlp-noise0.3"]
    assert [len(s.variants) for s in summaries] == [table["variant"].nunique()] * 2
    curves = summaries[0].curves
    assert [curve.importance for curve in curves] == ["none"] * 4 + ["gauss_newton"] * 4
    assert [curve.diameter_penalty for curve in curves] == [0.0, 0.01, 0.05, 0.2] * 2
    for curve in curves:
        ratios = [variant.ratio for variant in curve.variants]
        assert ratios == sorted(ratios)
    without_names = summarize(table.drop(columns="setting"))
    assert without_names[0].name == "mnist-mlp-noise0"
