"""Tables and losses that nothing can be claimed of are refused, whatever is asked."""

import numpy as np
import pandas as pd
import pytest
from planted_sweep import ORIGINAL, PLAIN, PlantedSweep

from jaxcomp.experiments.sweep.calibration import calibration_share
from jaxcomp.experiments.sweep.candidates import VariantLosses
from jaxcomp.experiments.sweep.claims import evaluate_claims


class TestRefused:
    sweep = PlantedSweep(14, ORIGINAL | PLAIN, num_models=2, num_examples=20)

    def refuse(self, match, table=None, losses=None):
        table = self.sweep.table if table is None else table
        losses = losses or self.sweep.losses.__getitem__
        for evaluate in (evaluate_claims, calibration_share):
            with pytest.raises(ValueError, match=match):
                evaluate(table, losses)

    def test_missing_column(self):
        self.refuse(r"lacks the columns \['variant'\]", self.sweep.table.drop(columns="variant"))

    def test_several_settings(self):
        table = pd.concat([self.sweep.table, self.sweep.table.assign(label_noise=0.0)])
        self.refuse("one data set, model and label noise at a time", table)

    @pytest.mark.parametrize("kind", ["original", "compressed"])
    def test_no_single_original(self, kind):
        swapped = {"original": "original"} if kind == "compressed" else {"original": "control"}
        table = self.sweep.table.replace({"kind": swapped})
        if kind == "compressed":
            table = table.assign(kind="original")
        self.refuse("exactly one variant of kind 'original'", table)

    def test_variants_of_different_networks(self):
        self.refuse("must list the networks of the original", self.sweep.table.iloc[:-1])

    def test_losses_of_another_shape(self):
        def losses(variant):
            found = self.sweep.losses[variant]
            return (
                found if variant == "original" else VariantLosses(*(part[:, 1:] for part in found))
            )

        self.refuse(r"one row per network .* \(2, 20\), got \(2, 19\)", losses=losses)

    def test_losses_that_are_not_finite(self):
        def losses(variant):
            found = self.sweep.losses[variant]
            return found._replace(loss=found.loss * (1 if variant == "original" else np.inf))

        self.refuse("values that are not finite", losses=losses)
