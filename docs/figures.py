"""Draw the pictures of docs/theory.md: closed forms of the package, in its own look.

python docs/figures.py
"""

from pathlib import Path

import jax
import numpy as np

from jaxcomp import bounds
from jaxcomp import linear_regression as lr
from jaxcomp.experiments import drawing
from jaxcomp.experiments.drawing import BLUE, ORANGE

FOLDER = Path(__file__).parent
BITS = "bits for each weight"


def bound_and_distortion(num_weights: int = 50, loss: float = 0.5) -> drawing.Figure:
    figure = drawing.new_figure(
        8.0,
        3.6,
        "Two sides of compression",
        "A lower rate lowers the bound on the gap and raises the training loss. Point: least sum.",
    )
    rates = np.linspace(0, 3 * num_weights, 601)
    bits = rates / num_weights / np.log(2)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, num_examples in zip(axes, (100, 5000), strict=True):
        setting = {"num_examples": num_examples, "sub_gaussian_scale": 0.5}
        risk = bounds.population_risk(
            rates, num_weights=num_weights, zero_rate_distortion=loss, **setting
        )
        gap = bounds.mutual_information_bound(rates, **setting)
        axis.plot(bits, gap, "--", color=BLUE, label="bound on the gap")
        axis.plot(
            bits, loss * np.exp(-2 * rates / num_weights), "-.", color=ORANGE, label="distortion"
        )
        axis.plot(bits, risk.bound, color=drawing.INK, label="sum")
        place = 0 if risk.zero_rate_wins[0] else np.argmin(np.abs(rates - risk.best_rate_nats[0]))
        axis.plot(bits[place], risk.bound[place], "o", color=drawing.INK, clip_on=False)
        where = "sending nothing" if place == 0 else f"{bits[place]:.1f} bits for each weight"
        drawing.panel_title(axis, f"{num_examples:,} examples", f"least bound: {where}")
        drawing.axis_labels(axis, x=BITS, y="loss" if num_examples == 100 else "")
        axis.set_ylim(0, 1)
        drawing.light_grid(axis)
    drawing.legend_of_labels(figure)
    return figure


def compressed_least_squares(dim: int = 20, num_examples: int = 40) -> drawing.Figure:
    setting = lr.random_problem(jax.random.key(1), dim, signal=2.0).setting(num_examples)
    bits = np.linspace(0, 4, 200)
    rates = bits * dim * np.log(2)
    figure = drawing.new_figure(
        6.4,
        3.8,
        "Compressed least squares, in closed form",
        f"{num_examples} examples, {dim} weights. Below the grey line compression helps.",
    )
    axis = figure.subplots()
    channel = lr.channel_risks(setting, rates, channel="uninformed_zero_mean").population
    shrunk = lr.shrinkage_risks(setting, rates).population
    exact = float(lr.least_squares_risks(setting).population)
    best = int(np.argmin(channel))
    axis.axhline(exact, color=drawing.GREY, linewidth=1, label="least squares, not compressed")
    axis.plot(bits, channel, color=BLUE, label="sent through a channel centred at 0")
    axis.plot(bits, shrunk, "--", color=ORANGE, label="shrunk alike, sent exactly")
    axis.plot(bits[best], channel[best], "o", color=BLUE)
    drawing.axis_labels(axis, x=BITS, y="population risk")
    drawing.light_grid(axis)
    drawing.legend_of_labels(figure)
    return figure


if __name__ == "__main__":
    for name, draw in (
        ("theory-bound", bound_and_distortion),
        ("theory-regression", compressed_least_squares),
    ):
        with drawing.own_look():
            (FOLDER / f"{name}.png").write_bytes(drawing.encoded(draw(), "png"))
