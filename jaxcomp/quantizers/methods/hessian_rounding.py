"""Rounding with feedback through a layer's inputs, as a method."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from jaxcomp.numerics.checks import is_concrete
from jaxcomp.quantizers.assignment import assignment_dtype
from jaxcomp.quantizers.curves import Curve, Point
from jaxcomp.quantizers.hessian_rounding import RoundedLayer, layer_curve, round_layer
from jaxcomp.quantizers.methods.base import CodebookMethod, Encoded, Method
from jaxcomp.quantizers.methods.entropy_constrained import EntropyConstrained
from jaxcomp.quantizers.problems import Errors, LayerInputs, Problem
from jaxcomp.quantizers.rounding_passes import NUMBER_BITS, RoundingSettings
from jaxcomp.quantizers.scales import Scale

_Result = TypeVar("_Result")

# Distortion is twice the rise of the loss.
_PER_NAT = 2.0
# Choices by bits draw weights to 0, and the error of all of them adds up in ways that moments of
# the inputs do not tell. At equal bytes a coarser grid with cheaper bits keeps a network better,
# by what was measured (`benchmarks/README.md`).
_SETTINGS = RoundingSettings(slopes=(0.125,))


@dataclass(frozen=True)
class HessianRounding(CodebookMethod):
    """Rounding whose errors the following inputs make up for, chosen by error and bits.

    The strongest method that does not train. It needs the inputs of every layer:
    `jaxcomp.compress(params, HessianRounding(), layers=jaxcomp.curvature.Layers(...))`. Spacings
    of inputs (a scale for each) are those that cost least in the file: none, or such that all
    inputs contribute the same error, or between.

    Attributes:
        nats_per_bit: rise of the loss, as far as the second moments predict it, that a bit is
            worth; > 0, the same for all layers. Without a loss it is half the relative squared
            error of a layer's outputs. None leaves it to the budget; without one there are about
            4 bits per weight.
        settings: exponents of the spacings and slopes to choose from, passes, classes. Slopes are
            smaller than those of `round_layer`.
        dampings: of the second moments of inputs, over the mean of their diagonal; what is best on
            data that is held out is taken.
        refits: whether biases of rounded layers are fitted to what rounding left of the mean of
            their outputs, and rounded too, to the bits that they are worth.
        otherwise: for weights that are in no captured layer.
    """

    name: ClassVar[str] = "hessian_rounding"
    label: ClassVar[str] = "rounded with feedback"
    needs: ClassVar[Literal["nothing", "layer_hessian"]] = "layer_hessian"
    parameter_name: ClassVar[str] = "nats_per_bit"
    parameter_header: ClassVar[str] = "nats/bit"
    words: ClassVar[str] = "{} nats per bit"
    default: ClassVar[float] = 1e-8

    nats_per_bit: float | None = None
    settings: RoundingSettings = field(default=_SETTINGS, kw_only=True)
    dampings: tuple[float, ...] = field(default=(1e-3, 1e-2, 5e-2), kw_only=True)
    refits: bool = field(default=True, kw_only=True)
    otherwise: Method = field(default=EntropyConstrained(), kw_only=True)
    # Of the spacings: which axis the inputs of a layer lie along is found, not chosen.
    scale: Scale = field(default="channel", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.settings, RoundingSettings):
            raise TypeError(
                f"settings must be RoundingSettings, got {type(self.settings).__name__}."
            )
        is_list = isinstance(self.dampings, tuple) and len(self.dampings) > 0
        if not is_list or not all(np.isfinite(one) and one >= 0 for one in self.dampings):
            raise ValueError(
                f"dampings must be a tuple of finite numbers, at least 0, got {self.dampings!r}."
            )
        if not isinstance(self.otherwise, Method) or self.otherwise.needs != "nothing":
            raise TypeError(
                "otherwise must be a method that needs no layers, such as EntropyConstrained(), "
                f"got {self.otherwise!r}."
            )

    def check(self, parameter: Any) -> None:
        is_number = isinstance(parameter, float | int | np.number)
        if not is_number or isinstance(parameter, bool):
            raise TypeError(f"nats_per_bit must be a number, got {parameter!r}.")
        if not (np.isfinite(parameter) and parameter > 0):
            raise ValueError(f"nats_per_bit must be positive and finite, got {parameter!r}.")

    def candidates(self) -> np.ndarray:
        return 10.0 ** np.arange(-12, -2.25, 0.5)

    def number(self, parameter: float) -> str:
        return f"{parameter:.3g}"

    def prepare(self, problem: Problem) -> Problem:
        return problem

    def curve(self, problem: Problem, parameters: Shaped[np.ndarray, " points"]) -> Curve:
        """Return the operating points of a layer, rerun on a sample of its outputs.

        Spacings are chosen by ideal lengths; what tables and spacings cost is in the rate.
        """
        multipliers = _PER_NAT * jnp.asarray(parameters, jnp.float32)
        found = self._run(layer_curve, problem, multipliers)
        side = np.full(len(parameters), NUMBER_BITS)
        return Curve(
            parameter=np.asarray(parameters, np.float64),
            rate_bits=np.asarray(found.rate_bits, np.float64) - side / problem.size,
            side_bits=side,
            distortion=_in_units(np.asarray(found.distortion, np.float64), problem),
            converged=np.ones(len(parameters), bool),
        )

    def point(self, problem: Problem, parameter: float) -> Point:
        del problem
        return Point(float(parameter))

    def round(self, problem: Problem, parameter: float) -> RoundedLayer:
        """Round a layer.

        Args:
            problem: the tensor, with what is known of its layer.
            parameter: nats per bit.
        """
        return self._run(round_layer, problem, _PER_NAT * parameter)

    def encode(self, problem: Problem, point: Point) -> Encoded:
        layer, found = _layer_of(problem), self.round(problem, point.parameter)
        codes = np.empty(problem.size, np.int16)
        codes[layer.places.reshape(-1)] = np.asarray(found.codes).reshape(-1)
        scales = None
        if np.any(np.asarray(found.spacing.levels)):
            assert layer.axis is not None
            place = _places_on_axis(problem)
            scales = np.ones(problem.shape[layer.axis], problem.dtype)
            scales[place] = np.asarray(found.spacing.ratios)
            scales = np.ldexp(scales, problem.exponent)
        lowest, highest = int(codes.min()), int(codes.max())
        codebook = _codebook(found, lowest, highest)
        if scales is None:
            codebook = problem.in_original_units(codebook)
        counts = np.bincount(codes.astype(np.int64) - lowest, minlength=len(codebook))
        values = np.asarray(found.values, np.float64)
        before = np.asarray(_matrices(problem), np.float64)
        importance = np.asarray(layer.output_importance, np.float64)
        return Encoded(
            (codes - lowest).astype(assignment_dtype(len(codebook))).reshape(problem.shape),
            codebook,
            scales,
            counts.astype(np.int32),
            Errors(
                float(
                    _in_units(np.sum(importance * np.asarray(found.errors, np.float64)), problem)
                ),
                float(np.sum((before - values) ** 2)),
                float(np.sum(before**2)),
            ),
        )

    def _run(self, kernel: Callable[..., _Result], problem: Problem, multiplier: Any) -> _Result:
        """Call a kernel on a layer; with one spacing where no axis could have scales."""
        layer, settings = _layer_of(problem), self.settings
        return kernel(
            _matrices(problem),
            layer.second_moments,
            multiplier,
            cross_moments=layer.cross_moments,
            output_importance=layer.output_importance,
            damping=layer.damping,
            sharing=_sharing(problem),
            settings=settings if layer.axis is not None else replace(settings, exponents=(0.0,)),
        )


def _layer_of(problem: Problem) -> LayerInputs:
    if problem.layer is None:
        raise ValueError(
            "HessianRounding needs the inputs of a layer; pass "
            "layers=jaxcomp.curvature.Layers(predict_fn, batches), or choose a method that needs "
            "no data, such as EntropyConstrained()."
        )
    return problem.layer


def _places_on_axis(problem: Problem) -> Int[np.ndarray, "G I"]:
    """Return where on the axis of the scales each input lies."""
    layer = _layer_of(problem)
    assert layer.axis is not None
    stride = int(np.prod(problem.shape[layer.axis + 1 :]))
    return layer.places[:, :, 0] // stride % problem.shape[layer.axis]


def _sharing(problem: Problem) -> Int[np.ndarray, "G I"] | None:
    """Return which inputs share a scale; None if each has its own, or there are none."""
    layer = _layer_of(problem)
    if layer.axis is None or problem.shape[layer.axis] == layer.places[:, :, 0].size:
        return None
    return _places_on_axis(problem)


def _in_units(distortion: Any, problem: Problem) -> Any:
    """Return distortions of a layer, which are in ordinary units, in those of the problem."""
    return np.ldexp(distortion, -problem.distortion_exponent)


def _matrices(problem: Problem) -> Float[Array, "G I O"]:
    places = _layer_of(problem).places
    return jnp.asarray(problem.points(places.reshape(-1))).reshape(places.shape)


def _codebook(found: RoundedLayer, lowest: int, highest: int) -> Float[np.ndarray, " codes"]:
    """Return what codes from the lowest to the highest stand for, over the scales of inputs."""
    assert is_concrete(found.factors)
    code = np.arange(lowest, highest + 1)
    factors = np.asarray(found.factors)[np.clip(np.abs(code), 1, 3) - 1]
    scale = np.asarray(found.spacing.scale)
    return (scale * factors * code).astype(np.float32)
