"""What compression gives beyond controls: maps of planted sweeps whose answer is known."""

import io

import numpy as np
import pandas as pd
import pytest
from planted_sweep import CONTROLS, ORIGINAL, PLAIN, PlantedSweep
from rich.console import Console
from synthetic_sweep import QUICK, synthetic_table

from jaxcomp.evaluation.statistics import crossed_mean, holm
from jaxcomp.experiments.sweep.beyond_controls import NAME, beyond_controls, decided
from jaxcomp.experiments.sweep.config import Setting
from jaxcomp.experiments.sweep.pictures import save_figures
from jaxcomp.experiments.sweep.report import print_report, report_markdown

VARIANTS = ORIGINAL | PLAIN | CONTROLS
# By share of wrong labels: what compression and early stopping truly do to the tempered loss.
TRUTH = {
    0.0: ("no practical difference", 0.0, 0.0),
    0.1: ("opposite", -0.05, -0.15),
    0.2: ("holds", -0.15, -0.05),
    0.3: ("no practical difference", -0.1, -0.1),
}


def planted(noise, compressed, stopped):
    effects = {"plain-8": {"loss_tempered": compressed}, "stop": {"loss_tempered": stopped}}
    # What would be worse anyway is far worse: the choice is not a matter of luck.
    effects |= {name: {"loss_tempered": 0.3} for name in ("plain-4", "plain-16", "T")}
    return PlantedSweep(int(10 * noise), VARIANTS, effects=effects, num_examples=2000)


@pytest.fixture(scope="module")
def claims():
    found = []
    for noise, (_, compressed, stopped) in TRUTH.items():
        sweep = planted(noise, compressed, stopped)
        own = beyond_controls(sweep.table.assign(label_noise=noise), sweep.losses.__getitem__)
        found.append(own)
    return decided(found)


def test_the_map_is_the_planted_one(claims):
    assert [claim.verdict for claim in claims] == [verdict for verdict, _, _ in TRUTH.values()]
    for claim, (noise, (_, compressed, stopped)) in zip(claims, TRUTH.items(), strict=True):
        assert claim.setting == f"mnist-mlp-noise{noise:g}"
        assert (claim.variant, claim.control_variant) == ("plain-8", "stop")
        assert claim.low < compressed - stopped < claim.high
        assert claim.relative_effect == pytest.approx(claim.effect / 0.8, rel=0.05)
        assert "4 settings" in claim.sentence
    expected = holm([claim.p_value for claim in claims])
    np.testing.assert_allclose([claim.p_adjusted for claim in claims], expected)


def test_the_effect_is_that_of_the_loss_matrices():
    sweep = planted(0.2, -0.15, -0.05)
    own = beyond_controls(sweep.table, sweep.losses.__getitem__, confidence=0.9)
    losses = sweep.losses
    matrix = losses["plain-8"].loss_tempered - losses["stop"].loss_tempered
    interval = crossed_mean(matrix, confidence=0.9)
    assert (own.claim.effect, own.claim.low, own.claim.high) == interval[:3]
    # Both halves of the networks choose the same two.
    assert own.claim.p_value == interval.p_value


def test_luck_of_networks_in_both_choices_is_allowed_for():
    """Compression and controls alike, each network lucky with some: seldom a difference."""
    rejected = 0
    for seed in range(60):
        sweep = PlantedSweep(seed, VARIANTS, spread=0.1, num_models=6, num_examples=20)
        own = beyond_controls(sweep.table, sweep.losses.__getitem__)
        rejected += own.claim.p_value < 0.05
    # Five in a hundred is meant; three standard errors above it.
    assert rejected / 60 < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 60)


def test_without_controls_or_compression_there_is_no_claim():
    for variants in (ORIGINAL | PLAIN, ORIGINAL | CONTROLS):
        sweep = PlantedSweep(0, variants)
        assert beyond_controls(sweep.table, sweep.losses.__getitem__) is None
    assert decided([]) == []


def test_a_map_is_drawn_and_told(claims, tmp_path):
    table = synthetic_table(QUICK, num_models=2)
    rows = table[table["variant"].isin(["original", "uniform/K4"])]
    settings = [Setting("mnist", "mlp", noise, 500) for noise in (0.0, 0.1, 0.2)]
    settings += [Setting("mnist", "mlp", noise, 2000) for noise in (0.0, 0.1, 0.2)]
    table = pd.concat(
        [
            rows.assign(setting=own.name, label_noise=own.label_noise, train_size=own.train_size)
            for own in settings
        ]
    )
    told = [
        claim._replace(setting=own.name, name=name)
        for own, claim in zip(settings, (claims * 2)[:6], strict=True)
        for name in (NAME, "tempered loss")
    ]
    files = save_figures(table, tmp_path, claims=told, formats=("svg",))
    # Of many settings there is one picture each beside the map.
    assert [file.name for file in files] == [
        "map.svg",
        *(f"sweep-{own.name}.svg" for own in settings),
    ]
    drawn = files[0].read_text()
    assert drawn.count("early stop") == 6

    out = io.StringIO()
    print_report(table, told, console=Console(width=150, file=out))
    text = out.getvalue()
    assert "in 6 settings: better in 1, worse in 2, no difference in 3" in text
    assert text.count("early stopping") == 6
    assert "2,000 examples, 20 % label noise" in text
    markdown = report_markdown(table, told, with_pictures=True)
    assert "![where compression helps](map.png)" in markdown
    assert "sweep-details" not in markdown
