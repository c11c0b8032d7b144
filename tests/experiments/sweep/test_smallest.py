"""The smallest network at no loss: found where it is, and not claimed where it is not."""

import json

import numpy as np
import pytest
from planted_sweep import ORIGINAL, OTHERS, PLAIN, PlantedSweep

from jaxcomp.evaluation.statistics import crossed_mean
from jaxcomp.experiments.sweep.smallest import smallest_from_dict, smallest_without_loss


def smallest(sweep):
    found = smallest_without_loss(sweep.table, sweep.losses.__getitem__)
    assert found is not None
    return found


def test_smallest_network_at_no_loss_is_the_smallest_that_keeps_its_loss():
    effects = {"plain-8": {"loss_tempered": 0.002}, "plain-4": {"loss_tempered": 0.1}}
    # Rounding costs nothing, but is larger; the uniform grid is smaller and costs too much.
    effects |= {"uniform-8": {"loss_tempered": 0.1}}
    sweep = PlantedSweep(2, ORIGINAL | PLAIN | OTHERS, effects=effects, spread=0.001, noise=0.05)
    found = smallest(sweep)
    assert (found.variant, found.description, found.holds) == ("plain-8", "K-means, K = 8", True)
    assert found.num_candidates == 5
    assert found.ratio == pytest.approx(3200 / 300)
    tempered = {name: losses.loss_tempered for name, losses in sweep.losses.items()}
    change = (tempered["plain-8"] - tempered["original"]).mean(axis=0)
    interval = crossed_mean(change[None])
    assert (found.effect, found.low, found.high) == interval[:3]
    assert found.reference_value == pytest.approx(tempered["original"].mean())
    assert found.high < 0.03 * found.reference_value
    assert found.sentence.startswith("10.7x smaller (K-means, K = 8) at no loss, for these 5")
    assert smallest_from_dict(json.loads(json.dumps(found._asdict()))) == found


def test_the_smallest_is_that_of_the_files_where_there_are_files():
    sweep = PlantedSweep(2, ORIGINAL | PLAIN, spread=0.001, noise=0.05)
    assert smallest(sweep).variant == "plain-4"
    # What an estimate leaves out can turn the order around.
    sizes = {"original": 1000.0, "plain-4": 80.0, "plain-8": 50.0}
    size = np.array([sizes.get(name, 70.0) for name in sweep.table["variant"]])
    sweep.table = sweep.table.assign(size_bytes=size, ratio=1000.0 / size)
    found = smallest(sweep)
    assert (found.variant, found.ratio, found.size_bytes) == ("plain-8", 20.0, 50.0)
    assert found.sentence.startswith("20.0x smaller (50 bytes, K-means, K = 8) at no loss")
    # Without the file of a single network sizes are the estimated ones, of all.
    sweep.table.loc[sweep.table.index[-1], ["size_bytes", "ratio"]] = np.nan
    assert smallest(sweep).size_bytes is None


def test_a_loss_that_may_matter_is_not_called_none():
    variants = ORIGINAL | {"plain-8": PLAIN["plain-8"]}
    sweep = PlantedSweep(3, variants, effects={"plain-8": {"loss_tempered": 0.2}}, spread=0.001)
    lost = smallest(sweep)
    assert not lost.holds
    assert "Not shown for any size. Tested: " in lost.sentence
    assert "a loss of more than 3 %" in lost.sentence
    noisy = smallest(PlantedSweep(3, variants, noise=3.0))
    assert not noisy.holds
    assert "a loss of 3 % or more is not ruled out" in noisy.sentence
    nothing = PlantedSweep(3, ORIGINAL)
    assert smallest_without_loss(nothing.table, nothing.losses.__getitem__) is None
    with pytest.raises(ValueError, match=r"lacks \['sentence'\]"):
        smallest_from_dict({k: v for k, v in noisy._asdict().items() if k != "sentence"})


def test_one_network_at_no_loss_is_this_network():
    sweep = PlantedSweep(4, ORIGINAL | PLAIN, num_models=1, num_examples=2000, noise=0.05)
    found = smallest(sweep)
    assert found.variant == "plain-4"
    assert found.holds
    assert "for this network: " in found.sentence


def test_a_loss_as_large_as_the_margin_is_seldom_called_none():
    # Many variants, each of which costs these networks just the margin: the choice finds lucky
    # ones.
    rng = np.random.default_rng(0)
    names = [f"plain-{k}" for k in range(2, 22)]
    sizes = [100.0 + k for k in range(20)]
    variants = ORIGINAL | {
        name: ("compressed", "kmeans", "none", "none", 0.0, k, np.nan, size)
        for k, (name, size) in enumerate(zip(names, sizes, strict=True), start=2)
    }
    held = 0
    for seed in range(100):
        sweep = PlantedSweep(seed, variants, num_models=2)
        original = sweep.losses["original"].loss_tempered
        for name in names:
            rise = 0.03 * original.mean() + 0.1 * rng.standard_normal(original.shape)
            losses = sweep.losses[name]
            sweep.losses[name] = losses._replace(loss_tempered=original + rise)
        held += smallest(sweep).holds
    # One end of a 95 % interval: 2.5 % expected.
    assert held <= 7
