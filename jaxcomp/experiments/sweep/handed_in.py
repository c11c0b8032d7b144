"""What `evaluate` is handed: networks, data, and the grid of ways to compress them.

Settings objects, checked where they are made as far as they say something by themselves.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

import numpy as np

from jaxcomp.experiments.settings import as_tuple
from jaxcomp.experiments.sweep.config import SweepConfig, sorted_clusters
from jaxcomp.experiments.sweep.methods import METHODS
from jaxcomp.experiments.sweep.summary import BASELINE_NAMES, CONTROL_NAMES
from jaxcomp.experiments.sweep.variants import TRAINED_OTHERWISE
from jaxcomp.quantizers import Method
from jaxcomp.trees.selection import Select
from jaxcomp.types import Params, PredictFn

NUM_PARAMETERS = 8
"""Of a method of the user whose parameter is open: so many of its candidates are looked at."""

_NAME = re.compile(r"[\w .+=-]+")


@dataclass(frozen=True)
class FittedControl:
    """A control that is fitted on the validation sample.

    Attributes:
        fit: `(params, (inputs, targets)) -> params` of one network; where the task has a mask, it
            is the third of the pair.
    """

    fit: Callable[[Params, tuple[Any, ...]], Params]


Control: TypeAlias = Callable[[Params], Params] | FittedControl | Sequence[Params]
"""What compresses nothing: a function of the weights of a network, one that is fitted, or for every
network its weights after something else, such as early stopping."""


@dataclass(frozen=True, eq=False)
class Networks:
    """Networks that were trained elsewhere, all of one kind: those of several seeds.

    Attributes:
        predict_fn: `(params, inputs) -> outputs` with examples first, in evaluation mode; pure,
            hashable, traceable by JAX. `jaxcomp.adapters.nnx_predict_fn` and `linen_predict_fn`
            make one.
        params: a list, for each network a pytree: arrays of JAX or NumPy among its leaves, tensors
            of PyTorch, and anything else, which is left alone. All have the same structure.
        name: how the table calls them.
        select: which leaves are compressed (see `jaxcomp.trees.selection`); by default those with
            two axes or more that `predict_fn` uses as factors of matrix products and convolutions,
            or looks rows up in. A stack of layers that it scans is compressed layer by layer.
        last_layer: name of the layer that makes the outputs; None for the one that `predict_fn`
            uses last (and the control that scales it is left out if there is none, or several).
        refresh_fn: `(params, train inputs) -> params`, re-estimates batch statistics after
            compression.
    """

    predict_fn: PredictFn
    params: Sequence[Params]
    name: str = field(default="network", kw_only=True)
    select: Select = field(default=None, kw_only=True)
    last_layer: str | None = field(default=None, kw_only=True)
    refresh_fn: Callable[[Params, Any], Params] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.params, list | tuple) or hasattr(self.params, "_fields"):
            raise TypeError(
                "params must be a list of networks, one tree of weights for each; write [params] "
                f"for one network, got {type(self.params).__name__}."
            )
        if not self.params:
            raise ValueError("params must hold at least one network, got an empty list.")
        _check_name(self.name, "name")


@dataclass(frozen=True, eq=False)
class Data:
    """The three samples; each is `(inputs, targets)`, for tokens also `(inputs, targets, mask)`.

    Attributes:
        train: what the networks learned from.
        validation: examples that choices and calibrations are made on.
        test: examples that only the final numbers see.
    """

    train: Sequence[Any]
    validation: Sequence[Any]
    test: Sequence[Any]

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test"):
            part = getattr(self, name)
            if not isinstance(part, list | tuple) or len(part) < 2:
                raise TypeError(
                    f"{name} must be a pair (inputs, targets), got {type(part).__name__}"
                    + (f" of {len(part)}." if isinstance(part, list | tuple) else ".")
                )


@dataclass(frozen=True, eq=False, kw_only=True)
class Grid:
    """In which ways networks are compressed, and beside what; the defaults are `SweepConfig`'s.

    Attributes:
        method: quantizers by name (see `SweepConfig`), and methods of your own, objects such as
            those of `jaxcomp.quantizers`; one or several. An object with a parameter is one
            variant for each importance; without one, eight of its candidates are looked at.
        allocation: see `SweepConfig`, and so for all up to `seed`.
        importance: what weighs a squared error.
        num_probes: of `hutchinson`.
        curvature_examples: training examples that curvature is measured on.
        penalty_form: of the diameter penalty.
        diameter_penalty: its strengths.
        num_clusters: codebook sizes K.
        num_iterations: Lloyd iterations at most.
        num_bins: bins of the histogram of moments.
        baselines: whether round-to-nearest, pruning and uniform quantization are included.
        controls: whether the package's controls, which compress nothing, are included.
        seed: of everything random.
        own_controls: controls of your own by name. `early_stopping`, `dropout` and
            `dropout_early_stopping` are known to reports; others are called by their names.
        sensitivity_clusters: codebook sizes for the table of one layer at a time; may be empty.
    """

    method: Sequence[str | Method] | str | Method = SweepConfig.method
    allocation: Sequence[str] | str = SweepConfig.allocation
    importance: Sequence[str] | str = SweepConfig.importance
    num_probes: int = SweepConfig.num_probes
    curvature_examples: int = SweepConfig.curvature_examples
    penalty_form: Sequence[str] | str = SweepConfig.penalty_form
    diameter_penalty: Sequence[float] | float = SweepConfig.diameter_penalty
    num_clusters: Sequence[int] | int = SweepConfig.num_clusters
    num_iterations: int = SweepConfig.num_iterations
    num_bins: int = SweepConfig.num_bins
    baselines: bool = SweepConfig.baselines
    controls: bool = SweepConfig.controls
    seed: int = SweepConfig.seed
    own_controls: Mapping[str, Control] = field(default_factory=dict)
    sensitivity_clusters: Sequence[int] | int = (4, 16)

    def __post_init__(self) -> None:
        method = (self.method,) if isinstance(self.method, Method) else self.method
        object.__setattr__(self, "method", as_tuple(method, "method"))
        object.__setattr__(self, "own_controls", dict(self.own_controls))
        sizes = self.sensitivity_clusters
        if isinstance(sizes, int) or len(sizes):
            sizes = sorted_clusters(sizes, "sensitivity_clusters")
        object.__setattr__(self, "sensitivity_clusters", tuple(sizes))
        self.config()
        self.own_methods()
        for name in self.own_controls:
            _check_name(name, "the name of a control")
            if name in ("params", "original", *(set(CONTROL_NAMES) - set(TRAINED_OTHERWISE))):
                raise ValueError(
                    f"the name of a control must not be {name!r}, which is taken: choose another."
                )

    @property
    def names(self) -> tuple[str, ...]:
        """Methods that are asked for by name."""
        return tuple(own for own in self._methods if isinstance(own, str))

    def config(self) -> SweepConfig:
        """Return the settings that a sweep of the project's own networks has as well.

        Raises:
            ValueError: for a value that is not allowed.
        """
        names = ("allocation", "importance", "num_probes", "curvature_examples", "penalty_form")
        names += ("diameter_penalty", "num_clusters", "num_iterations", "num_bins", "baselines")
        values: dict[str, Any] = {
            name: getattr(self, name) for name in (*names, "controls", "seed")
        }
        return SweepConfig(method=self.names or SweepConfig.method, **values)

    def own_methods(self) -> dict[str, tuple[Method, tuple[float, ...]]]:
        """Return the user's methods without a parameter, and parameters, by what they are called.

        Raises:
            TypeError: for what is neither a name nor a method.
            ValueError: for a method that needs more than weights.
        """
        found: dict[str, tuple[Method, tuple[float, ...]]] = {}
        for own in self._methods:
            if isinstance(own, str):
                continue
            if not isinstance(own, Method):
                raise TypeError(
                    f"method must be names, or objects of jaxcomp.quantizers.Method, got {own!r}."
                )
            if own.needs != "nothing":
                raise ValueError(
                    f"{own.name} needs the inputs of layers, which a sweep does not measure: leave "
                    "it out."
                )
            label, parameters = _label(own), _parameters(own)
            before = found.get(label, (own, ()))[1]
            together = tuple(sorted({*before, *parameters}))
            found[label] = (own.at(None), together)
        return found

    @property
    def _methods(self) -> tuple[Any, ...]:
        assert isinstance(self.method, tuple)
        return self.method


def _label(method: Method) -> str:
    """Return what a method is called: its name, and the options that are not its defaults."""
    options = {
        own.name: getattr(method, own.name)
        for own in fields(method)
        if own.name != method.parameter_name and getattr(method, own.name) != own.default
    }
    told = ", ".join(f"{name}={value}" for name, value in options.items())
    label = f"{method.name} ({told})" if told else method.name
    if label in METHODS or label in BASELINE_NAMES:
        raise ValueError(
            f"the sweep has a method {label!r} of its own: ask for it by name, or give the object "
            "options that are not its defaults."
        )
    return label


def _parameters(method: Method) -> tuple[float, ...]:
    if method.parameter is not None:
        return (float(method.parameter),)
    candidates = np.asarray(method.candidates())
    places = np.linspace(0, len(candidates) - 1, min(NUM_PARAMETERS, len(candidates)))
    return tuple(float(value) for value in candidates[np.unique(places.round().astype(int))])


def _check_name(name: str, what: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"{what} becomes part of file names: use letters, digits, spaces and . + = - _ in it, "
            f"got {name!r}."
        )
