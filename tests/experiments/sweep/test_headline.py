"""Four lines that say what a sweep found: each against the table and the claims it is made of."""

import numpy as np
import pytest
from synthetic_sweep import QUICK, synthetic_claims, synthetic_smallest, synthetic_table

from jaxcomp.experiments.reporting import brief
from jaxcomp.experiments.sweep.headline import headline
from jaxcomp.experiments.sweep.report import headlines, report_markdown
from jaxcomp.experiments.sweep.summary import summarize


@pytest.fixture(scope="module")
def table():
    return synthetic_table(QUICK)


@pytest.fixture(scope="module")
def summary(table):
    return summarize(table)[0]


def test_the_first_line_says_what_was_compressed(table, summary):
    num_variants = table.loc[table["kind"] == "compressed", "variant"].nunique()
    found = headline(summary, [], None).compressed
    assert (
        found == f"5 networks of 268,000 weights (mnist, mlp, clean labels), in {num_variants} ways"
    )
    with_files = summarize(synthetic_table(QUICK, with_files=True))[0]
    assert headline(with_files, [], None).compressed == (f"{found}, each a file read again")
    one = summarize(table[(table["model_seed"] == 0)].assign(dataset="given", model="mine"))[0]
    assert headline(one, [], None).compressed.startswith("1 network of 268,000 weights (mine, tr")


def test_the_second_line_says_the_smallest_size_at_no_loss(table, summary):
    found = synthetic_smallest(table)
    told = headline(summary, [], found).no_loss
    assert told == f"{found.ratio:.1f}x smaller (K-means, K = 16): tempered test loss +1.0 % " + (
        "(-0.5 to +2.0 %), within 3 %"
    )
    measured = headline(summary, [], found._replace(size_bytes=98765.4)).no_loss
    assert measured.startswith(f"{found.ratio:.1f}x smaller (98.8 kB, K-means, K = 16): ")
    lost = headline(summary, [], found._replace(holds=False, high=2 * found.high)).no_loss
    assert lost.startswith("not shown for any size; tested ")
    assert lost.endswith("(-0.5 to +4.0 %), not within 3 %")
    assert headline(summary, [], None).no_loss == "not looked for: nothing was compressed"


def test_the_third_line_says_whether_anything_is_better(table, summary):
    raw, tempered, accuracy, *_ = synthetic_claims(table)

    def told(*verdicts):
        claims = [
            claim._replace(verdict=verdict, holds=verdict == "holds")
            for claim, verdict in zip((raw, tempered, accuracy), verdicts, strict=True)
        ]
        return headline(summary, claims, None).better

    assert headline(summary, [], None).better == "not tested: no claims were made"
    assert told("not shown", "not shown", "opposite").startswith("not shown: best tempered test")
    assert told("opposite", "no practical difference", "opposite").startswith("no: best tempered")
    calibration = told("holds", "no practical difference", "not shown")
    assert calibration.startswith("not shown, only the raw loss falls, which is calibration: best ")
    assert f"loss {tempered.value:.4f} (original {tempered.reference_value:.4f})" in calibration
    assert f"accuracy {100 * accuracy.value:.2f} %" in calibration
    # A control may do better still: it compresses nothing.
    found = told("not shown", "holds", "not shown")
    assert found.startswith(f"yes, {tempered.description}: tempered test loss ")
    assert found.endswith("p = 0.005; but temperature, which compresses nothing, does better still")
    alone = tempered._replace(control_effect=-0.05, control_low=-0.06, control_high=-0.04)
    alone = alone._replace(verdict="holds", holds=True)
    assert headline(summary, [alone], None).better.endswith("p = 0.005")


def test_the_fourth_line_says_what_a_temperature_gives(table, summary):
    original = table[table["kind"] == "original"]
    raw, tempered = original["test_loss"].mean(), original["test_loss_tempered"].mean()
    means = table[table["kind"] == "compressed"].groupby("variant").mean(numeric_only=True)
    best = means.loc[means["validation_loss"].idxmin(), "test_loss"]
    assert headline(summary, [], None).calibration == (
        f"one temperature alone takes the raw test loss from {raw:.3f} to {tempered:.3f} "
        f"({100 * (tempered / raw - 1):+.0f} %), the best variant to {best:.3f}"
    )


def test_original_only_is_no_error(table):
    alone = summarize(table[table["kind"] == "original"])[0]
    assert headline(alone, [], None).calibration.endswith(" %)")
    assert headline(alone, [], None).compressed.endswith("in 0 ways")


def test_a_brief_result_has_five_lines_however_many_settings(table):
    claims, found = synthetic_claims(table), synthetic_smallest(table)
    one = headlines(table, claims, [found])
    lines = brief("SweepResult", one, "the rest").splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("SweepResult: 5 networks of 268,000 weights (mnist, mlp")
    assert lines[1].startswith("  no loss: ")
    assert lines[-1] == "  see the rest"
    for number in (2, 3, 7):
        lines = brief("SweepResult", one * number, "the rest").splitlines()
        assert len(lines) <= 5
        assert lines[0] == f"SweepResult of {number} settings"
    assert lines[-2] == "  and 5 more settings"


def test_the_report_begins_with_them(table):
    text = report_markdown(table, synthetic_claims(table), [synthetic_smallest(table)])
    labels = ("compressed", "no loss", "better", "calibration")
    places = [text.index(f"- **{label}:** ") for label in labels]
    assert places == sorted(places)
    assert places[-1] < text.index("### Claims") < text.index("### Numbers")


def test_losses_that_are_zero_or_broken_are_told(table):
    zero = summarize(table.assign(test_loss=0.0, test_loss_tempered=0.0))[0]
    assert "from 0.000 to 0.000 (+0 %)" in headline(zero, [], None).calibration
    broken = table.assign(test_loss=np.nan)
    assert "from nan" in headline(summarize(broken)[0], [], None).calibration
