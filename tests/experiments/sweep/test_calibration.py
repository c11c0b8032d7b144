"""How much of a fall of the loss a temperature would have given."""

import pytest
from planted_sweep import ORIGINAL, PLAIN, PlantedSweep

from jaxcomp.experiments.sweep.calibration import calibration_share


@pytest.mark.parametrize(
    ("tempered", "spread", "share", "words"),
    [
        (0.05, 0.002, 1.25, "a temperature alone gives more"),
        (0.0, 0.002, 1.0, "no improvement beyond calibration is shown"),
        (-0.1, 0.002, 0.5, "about 51 % of the improvement is calibration"),
        (-0.25, 0.002, -0.25, "none of the improvement is calibration"),
    ],
)
def test_share_of_calibration(tempered, spread, share, words):
    effects = {"plain-8": {"loss": -0.2, "loss_tempered": tempered}}
    variants = ORIGINAL | {"plain-8": PLAIN["plain-8"]}
    sweep = PlantedSweep(1, variants, effects=effects, spread=spread, noise=0.02, num_examples=1000)
    found = calibration_share(sweep.table, sweep.losses.__getitem__)
    assert found is not None
    assert found.variant == "plain-8"
    assert found.share == pytest.approx(share, abs=0.02)
    assert found.raw.low < -0.2 < found.raw.high
    assert found.tempered.low < tempered < found.tempered.high
    assert found.sentence.startswith("The raw test loss fell by 0.")
    assert words in found.sentence
    assert words in sweep.claims()["raw loss"].sentence


def test_no_share_of_calibration_without_an_improvement():
    effects = {"plain-8": {"loss": 0.2}}
    sweep = PlantedSweep(1, ORIGINAL | {"plain-8": PLAIN["plain-8"]}, effects=effects)
    found = calibration_share(sweep.table, sweep.losses.__getitem__)
    assert found is not None
    assert found.share is None
    assert "no improvement to put down to calibration" in found.sentence
    assert "calibration" not in sweep.claims()["raw loss"].sentence
