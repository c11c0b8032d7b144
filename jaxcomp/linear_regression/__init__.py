"""Linear regression, the example of the theory that can be computed from end to end.

Closed forms for the risks of least squares and of its compressed versions (`channel_risks`,
`best_rate`, `distortion_rate_bounds`), what the learner's weights say about its sample
(`design_information_nats`, `ridge_entropy_nats`) and the bounds that follow for squared loss
(`relative_gap_bound`, `channel_gap_bound`), and a simulator that draws data sets by the ten
thousand, compresses their solutions with channels and real quantizers, and returns risks with
standard errors (`simulate`).

Tables, files and pictures are in `jaxcomp.experiments.linear_regression`, which nothing here
imports.
"""

from jaxcomp.linear_regression.closed_forms import (
    CHANNELS,
    BestRate,
    Channel,
    ChannelNote,
    ChannelRisks,
    DistortionRate,
    Risks,
    best_rate,
    channel_risks,
    distortion_rate_bounds,
    least_squares_risks,
    shrinkage_risks,
)
from jaxcomp.linear_regression.codebooks import (
    ADAPTIVE,
    DESIGNED,
    DesignedCodebooks,
    design_codebooks,
)
from jaxcomp.linear_regression.draws import Solution, draw_solution, draw_solutions
from jaxcomp.linear_regression.information import (
    GapBound,
    channel_gap_bound,
    coordinate_entropy_nats,
    design_information_nats,
    estimated_entropy_nats,
    least_squares_entropy_nats,
    least_squares_relative_gap,
    least_squares_rounded_entropy_bound_nats,
    relative_gap_bound,
    rounded_entropy_nats,
)
from jaxcomp.linear_regression.problem import (
    Problem,
    Setting,
    correlated_covariance,
    make_problem,
    random_problem,
)
from jaxcomp.linear_regression.ridge import RidgeSolutions, ridge_solutions
from jaxcomp.linear_regression.ridge_entropy import ridge_entropy_nats, ridge_log_density
from jaxcomp.linear_regression.simulation import (
    COMPRESSORS,
    CONTROLS,
    QUANTITIES,
    Simulation,
    codebooks_for,
    simulate,
)

__all__ = [
    "ADAPTIVE",
    "CHANNELS",
    "COMPRESSORS",
    "CONTROLS",
    "DESIGNED",
    "QUANTITIES",
    "BestRate",
    "Channel",
    "ChannelNote",
    "ChannelRisks",
    "DesignedCodebooks",
    "DistortionRate",
    "GapBound",
    "Problem",
    "RidgeSolutions",
    "Risks",
    "Setting",
    "Simulation",
    "Solution",
    "best_rate",
    "channel_gap_bound",
    "channel_risks",
    "codebooks_for",
    "coordinate_entropy_nats",
    "correlated_covariance",
    "design_codebooks",
    "design_information_nats",
    "distortion_rate_bounds",
    "draw_solution",
    "draw_solutions",
    "estimated_entropy_nats",
    "least_squares_entropy_nats",
    "least_squares_relative_gap",
    "least_squares_risks",
    "least_squares_rounded_entropy_bound_nats",
    "make_problem",
    "random_problem",
    "relative_gap_bound",
    "ridge_entropy_nats",
    "ridge_log_density",
    "ridge_solutions",
    "rounded_entropy_nats",
    "shrinkage_risks",
    "simulate",
]
