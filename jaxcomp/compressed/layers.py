"""Networks whose layers are rounded with feedback, one after the other, at one multiplier.

Every layer gets the inputs of the network as far as it is compressed already, and biases are
fitted to what rounding left. All of it is repeated for one multiplier after the other, until the
file has the size that it should have.

Axes: `G` groups and blocks, `I` inputs, `O` outputs.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcomp.compressed.budgets import Budget
from jaxcomp.compressed.importance import units_by_path
from jaxcomp.compressed.layer_places import LayerPlaces, layer_places
from jaxcomp.compressed.points import distortions, rates_and_costs
from jaxcomp.compressed.rate_control import largest_under
from jaxcomp.compressed.selected import Selected, Stored, Tensor
from jaxcomp.compressed.spending import Spending
from jaxcomp.compressed.tensors import TensorLayout, decode, kept_value, tensor_of
from jaxcomp.compressed.tree import CompressedTree
from jaxcomp.curvature import DiagonalEstimate, Layers
from jaxcomp.curvature.layer_inputs import InputMoments, OpenNetwork, SplitMoments
from jaxcomp.long_call import LongCall
from jaxcomp.numerics.host import placed_like, view
from jaxcomp.numerics.placement import on_one_device
from jaxcomp.numerics.units import LN2
from jaxcomp.quantizers.curves import Curve
from jaxcomp.quantizers.methods import HessianRounding, RoundToNearest
from jaxcomp.quantizers.output_importance import output_importance
from jaxcomp.quantizers.output_refit import refit_outputs
from jaxcomp.quantizers.problems import LayerInputs, as_problem
from jaxcomp.trees.leaves import with_readable_leaves
from jaxcomp.trees.paths import leaves_by_path, shorten
from jaxcomp.types import Params

# Without a budget and a multiplier.
_DEFAULT_BITS = 4.0
# Outputs on which the loss did not depend in the data count so much of the mean.
_LEAST_IMPORTANCE = 1e-3
# Trials before dampings and spacings are chosen, and how near to the budget they come.
_ROUGH_TRIALS, _ROUGHLY_SPENT = 5, 0.85
_TRIALS = 10
# The exponents of multipliers that are tried.
_FINEST, _COARSEST = 80.0, -40.0


def open_network(layers: Any, params: Params) -> OpenNetwork:
    """Find the layers of a model; see `jaxcomp.compress`.

    Raises:
        TypeError: if `layers` is no `Layers`.
    """
    if not isinstance(layers, Layers):
        raise TypeError(
            "layers must be jaxcomp.curvature.Layers(predict_fn, batches), got "
            f"{type(layers).__name__}."
        )
    return layers.open(with_readable_leaves(params))


def with_inputs(tensor: Tensor, network: OpenNetwork, estimate: DiagonalEstimate | None) -> Tensor:
    """Return a tensor with the inputs that its layer has in the original network."""
    if not isinstance(tensor.method, HessianRounding):
        return tensor
    layer = _layer_of(tensor, network, estimate)
    moments = on_one_device(network.moments(layer.path, {}))
    return layer.with_moments(moments.joined(), layer.method.dampings[0])


@dataclass(eq=False)
class _Layer:
    """A tensor that is rounded with its inputs.

    Attributes:
        tensor: the tensor.
        path: of its weight.
        bias: path of the leaf that is added to its outputs, if it may be fitted.
        lies: where its weights are in the tensor, or in each block.
        importance: g (G, O); None until its inputs are known, if there is no loss.
        diagonal: of the Gauss-Newton matrix (G, I, O), in the units of `weights`; None without a
            loss.
        damping: chosen, or the one to begin with.
        pair: exponent and slope of the spacings, likewise.
    """

    tensor: Tensor
    path: str
    bias: str | None
    lies: LayerPlaces
    diagonal: Float[Array, "G I O"] | None
    importance: Float[Array, "G O"] | None = None
    damping: float = 1e-3
    pair: tuple[float, float] = (0.0, 2.0)

    @property
    def method(self) -> HessianRounding:
        assert isinstance(self.tensor.method, HessianRounding)
        return self.tensor.method

    @property
    def weights(self) -> Float[Array, "G I O"]:
        """The matrices of all blocks, one after the other, in the units of their problems."""
        return self.matrices(self.tensor.value)

    @property
    def exponents_of_groups(self) -> Int[np.ndarray, " G"]:
        """Exponents of the units that weights are in: 0, but for weights of extreme size."""
        own = [problem.exponent for problem in self.tensor.problems]
        return np.repeat(np.asarray(own, np.int32), len(self.lies.places))

    def matrices(self, values: Any) -> Float[Array, "G I O"]:
        """Return a tensor like this as matrices."""
        return self._laid_out(values, -self.exponents_of_groups)

    def with_diagonal(self, values: Any, exponent: int) -> None:
        """Take over second derivatives in the weights, in units of `2 ** exponent`."""
        self.diagonal = self._laid_out(values, exponent + 2 * self.exponents_of_groups)

    def _laid_out(self, values: Any, shifts: Int[np.ndarray, " G"]) -> Float[Array, "G I O"]:
        blocks = np.asarray(values).reshape(len(self.tensor.problems), -1)
        found = blocks[:, self.lies.places.reshape(-1)].reshape(-1, *self.lies.places.shape[1:])
        if np.any(shifts):
            found = np.ldexp(found.astype(np.float64), shifts[:, None, None])
        return jax.device_put(found.astype(np.float32))

    def weigh(self, moments: InputMoments) -> Float[Array, "G O"]:
        """Return what the squared errors of the outputs count, found once."""
        if self.importance is None:
            self.importance = self._weigh(moments.second)
        return self.importance

    def _weigh(self, second: Float[Array, "G I I"]) -> Float[Array, "G O"]:
        if self.diagonal is None:
            weights = self.weights
            energy = jnp.sum(weights * _times(second, weights), axis=(1, 2))
            # Blocks of a stack are layers of their own.
            blocks = energy.reshape(len(self.tensor.problems), -1)
            energy = jnp.repeat(jnp.sum(blocks, axis=1), blocks.shape[1])
            each = 1 / jnp.where(energy > 0, energy, 1)
            return jnp.broadcast_to(each[:, None], (len(weights), weights.shape[-1]))
        found = output_importance(self.diagonal, second)
        mean, on_host = view(jnp.mean(found)), view(found)
        least = np.float32(_LEAST_IMPORTANCE) * mean
        weighed = np.maximum(on_host, least) if mean > 0 else np.ones_like(on_host)
        return placed_like(weighed, found)

    def with_moments(self, moments: InputMoments, damping: float) -> Tensor:
        """Return the tensor with its inputs."""
        importance, size = self.weigh(moments), len(self.lies.places)
        problems = []
        for number, problem in enumerate(self.tensor.problems):
            own = slice(number * size, (number + 1) * size)
            inputs = LayerInputs(
                self.lies.places,
                self.lies.axis,
                moments.second[own],
                None if moments.cross is None else moments.cross[own],
                importance[own],
                damping,
            )
            problems.append(replace(problem, layer=inputs))
        return self.tensor._replace(problems=problems)

    def rounded(
        self,
        moments: InputMoments,
        nats_per_bit: float,
        *,
        damping: float | None = None,
        pair: tuple[float, float] | None = None,
    ) -> Stored:
        """Round the tensor, by the chosen damping and exponents or others."""
        exponent, slope = self.pair if pair is None else pair
        tensor = self.with_moments(moments, self.damping if damping is None else damping)
        settings = replace(self.method.settings, exponents=(exponent,), slopes=(slope,))
        tensor = tensor._replace(method=replace(self.method, settings=settings))
        parameter = self.method.nats_per_bit or nats_per_bit
        return tensor.apply(tensor.points(parameter)), tensor.layout

    @property
    def exponents(self) -> tuple[float, ...]:
        """Exponents of spacings that the tensor may have."""
        return self.method.settings.exponents if self.lies.axis is not None else (0.0,)

    def best_slope(self, moments: InputMoments, nats_per_bit: float, exponent: float) -> float:
        """Return the slope of least cost by ideal lengths; of a stack, that of a block in it."""
        if len(self.method.settings.slopes) == 1:
            return self.method.settings.slopes[0]
        problems = self.with_moments(moments, self.damping).problems
        settings = replace(self.method.settings, exponents=(exponent,))
        method = replace(self.method, settings=settings)
        parameter = self.method.nats_per_bit or nats_per_bit
        found = method.round(problems[len(problems) // 2], parameter)
        return float(found.spacing.slope)

    def held_out_error(self, values: Float[Array, "G I O"], moments: InputMoments) -> float:
        """Return the squared error of the outputs on some data, weighed; less a constant."""
        return float(_error_of_outputs(self.weights, values, self.weigh(moments), moments))


@jax.jit
def _error_of_outputs(
    weights: Array, values: Array, importance: Array, moments: InputMoments
) -> Array:
    if moments.cross is None:
        error = weights - values
        of_outputs = jnp.sum(error * _times(moments.second, error), axis=1)
    else:
        lacks = _times(moments.second, values) - 2 * _times(moments.cross, weights)
        of_outputs = jnp.sum(values * lacks, axis=1)
    return jnp.sum(importance * of_outputs)


def _times(matrix: Array, columns: Array) -> Array:
    return jnp.einsum("gij,gjo->gio", matrix, columns, precision="highest")


def _layer_of(tensor: Tensor, network: OpenNetwork, estimate: DiagonalEstimate | None) -> _Layer:
    path, method = tensor.paths[0], tensor.method
    assert isinstance(method, HessianRounding)
    use = network.uses[path]
    lies = layer_places(use.layout, is_stack=tensor.layout.is_stack)
    assert lies is not None
    exponents, slopes = method.settings.exponents, sorted(method.settings.slopes)
    layer = _Layer(
        tensor,
        path,
        use.bias if method.refits else None,
        lies,
        None,
        damping=sorted(method.dampings)[len(method.dampings) // 2],
        pair=(
            0.0 if 0.0 in exponents or lies.axis is None else exponents[0],
            slopes[len(slopes) // 2],
        ),
    )
    if estimate is not None:
        unit = units_by_path(estimate).get(path, 0)
        layer.with_diagonal(leaves_by_path(estimate.mean)[path], unit)
    return layer


class _Outcome(NamedTuple):
    """A network at one multiplier.

    Attributes:
        stored: compressed leaves by number.
        bits: of the tensors, in the file.
        distortion: of all of them.
    """

    stored: dict[int, Stored]
    bits: float
    distortion: float


class _Rounding:
    """A network that is rounded at one multiplier after the other."""

    def __init__(
        self,
        selected: Selected,
        network: OpenNetwork,
        spending: Spending,
        estimate: DiagonalEstimate | None,
        report: Callable[[int, int, str], None],
    ) -> None:
        self._selected, self._network, self._spending = selected, network, spending
        self._report = report
        self.layers: dict[int, _Layer] = {}
        self._others: dict[int, _Diagonal] = {}
        for number, tensor in selected.tensors.items():
            if isinstance(tensor.method, HessianRounding):
                self.layers[number] = _layer_of(tensor, network, estimate)
            else:
                self._others[number] = _Diagonal(tensor, is_relative=estimate is None)
        self._number_of = {layer.path: number for number, layer in self.layers.items()}
        self._kept_at = {
            layout.paths[0]: number
            for number, (_, layout) in selected.kept.items()
            if len(layout.paths) == 1
        }
        self._curvature = {} if estimate is None else leaves_by_path(estimate.mean)
        self._units = {} if estimate is None else units_by_path(estimate)
        # Of layers whose inputs nothing changes.
        self._unchanged: dict[str, SplitMoments] = {}

    def at(self, nats_per_bit: float, *, choose: bool = False) -> _Outcome:
        """Round the network.

        Args:
            nats_per_bit: what a bit is worth.
            choose: whether damping and exponent of every layer are chosen anew.
        """
        stored: dict[int, Stored] = {}
        changed: dict[str, Any] = {}
        for number, other in self._others.items():
            stored[number] = other.at(nats_per_bit)
            for path in stored[number][1].paths:
                changed[path] = decode(*stored[number])
        stages = self._network.stages(self._number_of)
        for stage in stages:
            known = dict(changed) if len(stages) > 1 else {}
            for path in stage:
                number = self._number_of[path]
                self._report(len(stored), len(self._selected.tensors), shorten([path], 1))
                moments = self._moments(path, known)
                layer = self.layers[number]
                if choose:
                    self._choose(layer, moments, nats_per_bit)
                leaf = layer.rounded(moments.joined(), nats_per_bit)
                stored[number] = leaf
                changed[path] = decode(*leaf)
                bias = self._bias(layer, moments, changed[path], nats_per_bit)
                if bias is not None:
                    stored[bias[0]] = bias[1]
                    changed[bias[1][1].paths[0]] = decode(*bias[1])
        bits = self._spending.of_all(stored)
        lost = math.fsum(float(np.sum(distortions(leaf))) for leaf, _ in stored.values())
        return _Outcome(stored, bits, lost)

    def _moments(self, path: str, changed: Mapping[str, Any]) -> SplitMoments:
        if changed:
            # Factors of two devices differ in their last bits, which would change codes.
            return on_one_device(self._network.moments(path, changed))
        if path not in self._unchanged:
            found = self._network.moments(path, {})
            # On the host: only one layer is on the device at a time.
            self._unchanged[path] = jax.tree.map(np.asarray, found)
        return self._unchanged[path]

    def _choose(self, layer: _Layer, moments: SplitMoments, nats_per_bit: float) -> None:
        """Choose the damping by data that is held out, then exponents by the real rate."""
        worth = 2 * (layer.method.nats_per_bit or nats_per_bit)
        held_out, dampings = moments.held_out, layer.method.dampings
        if held_out is not None and len(dampings) > 1:
            costs = []
            for damping in dampings:
                found = layer.rounded(moments.fitted, nats_per_bit, damping=damping)
                error = layer.held_out_error(layer.matrices(decode(*found)), held_out)
                costs.append(error + worth * self._spending.of_leaf(found))
            layer.damping = dampings[int(np.argmin(costs))]
        costs, pairs = [], []
        for exponent in layer.exponents:
            pair = exponent, layer.best_slope(moments.joined(), nats_per_bit, exponent)
            found = layer.rounded(moments.joined(), nats_per_bit, pair=pair)
            lost = float(np.sum(distortions(found[0])))
            costs.append(lost + worth * self._spending.of_leaf(found))
            pairs.append(pair)
        layer.pair = pairs[int(np.argmin(costs))]

    def _bias(
        self, layer: _Layer, moments: SplitMoments, values: Any, nats_per_bit: float
    ) -> tuple[int, Stored] | None:
        """Fit the bias of a layer, and round it; None if it stays as it is."""
        if layer.bias not in self._kept_at or moments.held_out is None:
            return None
        number = self._kept_at[layer.bias]
        leaf, layout = self._selected.kept[number]
        bias = np.asarray(kept_value(leaf))
        refit = refit_outputs(
            layer.weights,
            layer.matrices(values),
            moments.fitted,
            moments.held_out,
            with_scales=False,
        )
        # Outputs are products: of weights and of inputs, each in units of its own.
        shifts = layer.exponents_of_groups - self._network.units[layer.path]
        change = np.ldexp(np.asarray(refit.bias_changes, np.float64), shifts[:, None])
        change = change.reshape(bias.shape)
        fitted = (bias.astype(np.float64) + change).astype(bias.dtype)
        curvature = np.ones(bias.shape)
        if layer.bias in self._curvature:
            found = np.asarray(self._curvature[layer.bias], np.float64)
            curvature = np.ldexp(found, self._units.get(layer.bias, 0))
        worth = 2 * (layer.method.nats_per_bit or nats_per_bit)
        num_bits = _bits_for(fitted, float(np.mean(curvature)), worth)
        method = RoundToNearest(num_bits, scale="tensor")
        problem = method.prepare(as_problem(fitted, curvature))
        tensor = tensor_of(problem, method.point(problem, num_bits), method)
        own = TensorLayout(
            layout.paths, method.at(None), bias.shape, np.dtype(bias.dtype), True, False
        )
        return number, (tensor, own)


def _bits_for(values: Float[np.ndarray, "..."], curvature: float, worth: float) -> int:
    """Return how many bits integers need whose step is what a bit is worth at high rate."""
    most = float(np.max(np.abs(values), initial=0.0))
    step = math.sqrt(6 * worth / (LN2 * curvature)) if curvature > 0 else math.inf
    return int(np.clip(math.ceil(math.log2(1 + most / step)) + 1 if step > 0 else 8, 2, 8))


class _Diagonal:
    """A tensor that is in no layer, at the point of its curve where a bit is worth so much."""

    def __init__(self, tensor: Tensor, *, is_relative: bool) -> None:
        self._tensor = tensor
        self._energies = np.asarray(tensor.energies() if is_relative else [1.0])
        self._curves: dict[int | None, list[Curve]] = {None: tensor.curves()}
        self._applied: dict[tuple[int, int], Stored] = {}

    def at(self, nats_per_bit: float) -> Stored:
        """Return the tensor at a multiplier."""
        near = self._place(None, nats_per_bit)
        if near not in self._curves:
            self._curves[near] = self._tensor.closer(self._curves[None], near)
        place = self._place(near, nats_per_bit)
        if (near, place) not in self._applied:
            points = [own.at(place) for own in self._curves[near]]
            self._applied[near, place] = self._tensor.apply(points), self._tensor.layout
        return self._applied[near, place]

    def _place(self, near: int | None, nats_per_bit: float) -> int:
        curves = [self._curves[near]]
        rates, costs = rates_and_costs([self._tensor], curves, [self._energies])
        return int(np.argmin(costs[0] + 2 * nats_per_bit * rates[0]))


def compress_layers(
    selected: Selected,
    network: OpenNetwork,
    spending: Spending,
    estimate: DiagonalEstimate | None,
) -> CompressedTree:
    """Compress a tree some of whose tensors are rounded with their inputs.

    Args:
        selected: the tree taken apart.
        network: its layers.
        spending: the budget, if any, and what tensors take of it.
        estimate: the Gauss-Newton diagonal of the loss; None without a loss.

    Raises:
        ValueError: if no method needs the layers, or no multiplier keeps to the budget.
    """
    methods = [tensor.method for tensor in selected.tensors.values()]
    with LongCall("rounding layers", len(methods)) as report:
        rounding = _Rounding(selected, network, spending, estimate, report)
        if not rounding.layers:
            raise ValueError(
                "layers is given, but nothing is rounded with it: of the selected leaves "
                f"{shorten(tensor.paths[0] for tensor in selected.tensors.values())} none has "
                "the method HessianRounding() and is a captured layer; "
                "jaxcomp.curvature.find_layers says why."
            )
        own = [layer.method.nats_per_bit for layer in rounding.layers.values()]
        budget = spending.budget
        if budget is None and own[0] is not None:
            outcome = rounding.at(own[0], choose=True)
        else:
            if budget is None:
                bits = _DEFAULT_BITS * selected.num_weights
                budget = Budget("bits_per_weight", _DEFAULT_BITS, bits=bits)
            outcome = _within(rounding, budget, _first(rounding, budget, selected.num_weights))
    return selected.tree(outcome.stored)


def _first(rounding: _Rounding, budget: Budget, num_weights: int) -> float:
    """Return the logarithm of nats per bit to begin with: at high rate, of Gaussian weights."""
    bits = _DEFAULT_BITS if budget.bits is None else budget.bits / num_weights
    logs, sizes = [], []
    for layer in rounding.layers.values():
        moments = rounding._moments(layer.path, {}).fitted
        # On the host, where the moments are; only the mean is a sum.
        second, weights, importance = (
            view(own) for own in (moments.second, layer.weights, layer.weigh(moments))
        )
        with np.errstate(over="ignore"):
            square = np.diagonal(second, axis1=-2, axis2=-1)[..., None] * weights**2
            products = jax.device_put(importance[:, None, :] * square)
        mean = float(jnp.mean(products))
        logs.append(math.log(max(mean, 1e-30)))
        sizes.append(layer.weights.size)
    return float(np.average(logs, weights=sizes)) + math.log(LN2) - 2 * LN2 * (bits + 1.0)


def _within(rounding: _Rounding, budget: Budget, first: float) -> _Outcome:
    """Return the network at the multiplier that keeps to a budget."""

    def try_at(fineness: float, *, choose: bool = False) -> tuple[float, _Outcome]:
        sign = -1.0 if budget.bits is not None else 1.0
        outcome = rounding.at(math.exp(sign * fineness), choose=choose)
        return (outcome.bits if budget.bits is not None else outcome.distortion), outcome

    start = -first if budget.bits is not None else first
    ends = (_COARSEST, _FINEST) if budget.bits is not None else (-_FINEST, -_COARSEST)
    slope = 0.4
    rough = largest_under(
        try_at,
        *ends,
        budget.limit,
        start=start,
        slope=slope,
        spent=_ROUGHLY_SPENT,
        max_trials=_ROUGH_TRIALS,
    )
    if rough is not None:
        start = rough.fineness
        size, _ = try_at(start, choose=True)
        start += math.log(budget.limit / max(size, 1e-300)) / slope
    found = largest_under(try_at, *ends, budget.limit, start=start, slope=slope, max_trials=_TRIALS)
    if found is None:
        unit = "bits of the compressed tensors" if budget.bits is not None else "distortion"
        raise ValueError(
            f"{budget.name} = {budget.value:g} allows {budget.limit:.6g} {unit}, which no "
            "multiplier keeps to; allow more."
        )
    return found.result
