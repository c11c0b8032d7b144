"""Pictures of a sweep: what was found in two panels, and every quantity in detail."""

from jaxcomp.experiments.sweep.pictures.bound import plot_bound
from jaxcomp.experiments.sweep.pictures.details import plot_details
from jaxcomp.experiments.sweep.pictures.files import save_figures
from jaxcomp.experiments.sweep.pictures.limit import plot_limit
from jaxcomp.experiments.sweep.pictures.overview import plot_sweep
from jaxcomp.experiments.sweep.pictures.rise import plot_predicted_rise

__all__ = [
    "plot_bound",
    "plot_details",
    "plot_limit",
    "plot_predicted_rise",
    "plot_sweep",
    "save_figures",
]
