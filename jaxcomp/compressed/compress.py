"""Compress a model of one's own: any pytree of weights in, a compressed tree or its curves out.

Every leaf that is selected is compressed on its own (layer by layer if it is a stack of them) by a
method of `jaxcomp.quantizers.methods`; everything else is kept as it is. First statistics of the
weights make curves of operating points; a budget picks a point of each; the weights are visited
once more to be given their codes.
"""

from collections.abc import Mapping

from jaxtyping import PyTree

from jaxcomp.coding.streams import Effort
from jaxcomp.compressed.layers import compress_layers, open_network, with_inputs
from jaxcomp.compressed.points import own_parameters, points_within, with_curves, with_points
from jaxcomp.compressed.selected import Selected, select_leaves
from jaxcomp.compressed.spending import Spending
from jaxcomp.compressed.spool import Spool
from jaxcomp.compressed.tree import CompressedTree
from jaxcomp.compressed.workers import Workers
from jaxcomp.curvature import CurvaturePolicy, DiagonalEstimate, Layers
from jaxcomp.long_call import LongCall
from jaxcomp.numerics.placement import automatic_axes, to_automatic
from jaxcomp.numerics.transformations import all_transfers, always_compiled
from jaxcomp.quantizers.curves import Curve
from jaxcomp.quantizers.methods import Method, TrellisCoded
from jaxcomp.trees.paths import shorten
from jaxcomp.trees.selection import Select
from jaxcomp.types import Params

# What keeps most without data, by `benchmarks/methods.py`.
DEFAULT = TrellisCoded()
POLICY = CurvaturePolicy()


@always_compiled
@all_transfers
def compress(
    params: Params,
    method: Method | Mapping[str, Method] = DEFAULT,
    *,
    importance: DiagonalEstimate | PyTree | None = None,
    policy: CurvaturePolicy = POLICY,
    bits_per_weight: float | None = None,
    size_bytes: float | None = None,
    ratio: float | None = None,
    max_distortion: float | None = None,
    select: Select = None,
    stacked: Select = None,
    layers: Layers | None = None,
    effort: Effort | None = None,
) -> CompressedTree:
    """Compress the weights of a model, each leaf with codes of its own.

    A leaf's *path* is its key path joined by `/`, such as `params/Dense_0/kernel`, or
    `blocks/0/kernel/value` in an NNX state. Arrays that stand at several paths (tied weights: the
    same array object, or views of NumPy or tensors of PyTorch that cover the same memory) are
    compressed, stored and counted once, if `select` names any of the paths. What is not floating or
    has fewer than 16 bits, empty leaves and random keys are kept as they are, whatever `select`
    says. A stack of layers (a leading axis of layers, as `nn.scan` makes it) gets a codebook for
    each layer, at one operating point for all of them.

    A terminal shows how far a long call is. For use outside `jit`.

    Args:
        params: any pytree: nested dicts, Linen variables, an NNX state or module, an Equinox
            module, lists, named tuples; with arrays of JAX or NumPy, tensors of PyTorch, and
            anything else among its leaves. Leaves that several devices share stay where they are
            if sums are all that their method needs (`Method.works_on_parts`); others are read on
            the host, and codes put back. Of several processes all have to call this.
        method: one of `jaxcomp.quantizers` (`KMeans(16)`, `RoundToNearest(8)`, ...), or a mapping
            from glob patterns of paths to methods: the first pattern that matches counts, and
            `"*"`, wherever it stands, covers the rest. A method without its parameter, such as
            `KMeans()`, leaves it to the budget, or to its default. By default trellis-coded
            quantization with one scale a leaf, about 4 bits per weight without a budget; leaves
            that it says it gains nothing for, such as those of fewer than 4,096 weights or of few
            values, are entropy-constrained with one codebook. Of what was measured without data it
            lost least: at 3 bits per weight the embeddings of MiniLM keep a cosine of 0.978, by
            `EntropyConstrained` 0.970 (`benchmarks/README.md`).
        importance: importance h of each weight, a pytree with a non-negative real array of the
            leaf's shape at the path of every selected leaf (other leaves may be None or missing),
            or a `DiagonalEstimate`, whose mean goes through the `policy`. For
            `Vector` also the Hessian blocks (ceil(n / m), m, m) of a leaf's vectors. None,
            without data, weighs the weights of a layer alike, and a budget in bits lets the
            relative errors `sum (w - c)^2 / sum w^2` of all layers count alike. (An array of ones
            lets the errors of all weights count alike: there 0.916.) Give it a budget: much of
            what an importance brings is how bits are shared between leaves. On MiniLM and a model
            of characters it helped at equal bytes, and the mean of each leaf,
            `jax.tree.map(lambda h: jnp.full_like(h, h.mean()), h)`, did as well at 3 bits or
            better (`benchmarks/weightings.md`). At the places of a tied leaf
            importances add up, unless they are one array as well. A leaf with importance 0 for over
            half of its weights is named by the report, which says what these weigh.
        policy: what becomes of negative and vanishing entries of a `DiagonalEstimate`: by default
            zeros that are over half of a leaf weigh as the mean of the leaf.
        bits_per_weight: budget: what the compressed leaves have of the file (codes, codebooks,
            scales) over their weights, shared between leaves by one slope. It is counted, not
            estimated, and so are the next two.
        size_bytes: budget: size of the file as `save` writes it (.jxc), kept leaves included.
        ratio: budget: original size over that of the file, kept leaves in both.
        max_distortion: budget: `sum h (w - c)^2` over the tree; the bits are least.
        select: which leaves: a predicate `(path, leaf) -> bool`, a glob pattern of paths or
            several. By default weight matrices, kernels and embeddings: leaves with two axes or
            more that by name and shape are no bias, gain, statistic, few positions or token
            (`jaxcomp.trees.selection.compressible`); the report says what was kept and why.
        stacked: which leaves are stacks of layers along their leading axis, likewise; by default
            those whose names or biases show it (`jaxcomp.trees.selection.stacked_paths`). A stack
            that shows neither has to be named here.
        layers: calibration data, for `HessianRounding`: its layers are rounded in the order of
            evaluation, at one multiplier for the whole network, each with the inputs that it will
            have; the biases of these layers are fitted again. Weights that are in no layer are
            compressed by `HessianRounding.otherwise`, their importances from the same data. A
            method for each layer counts as elsewhere.
        effort: of the codes by which budgets in bits are counted: that with which `save` will be
            called. None for that of `save` up to a million weights, and beyond for quick codes,
            some hundredths longer than what `save` then writes.

    Returns:
        The compressed tree: `params()` gives weights back, `report()` says what it cost.

    Raises:
        TypeError: inside `jit`; or if an argument has a wrong type.
        ValueError: on a leaf that no pattern of a mapping covers, a pattern that matches nothing,
            two budgets or one that cannot be met, NaN or infinite weights or importance, negative
            importance or none but zeros in a leaf, importance that lacks a selected leaf or has
            another shape, two leaves with the same path.

    Warns:
        UserWarning: if leaves are float64 while JAX has 32 bits: computed in float32.

    Source: Choi, El-Khamy, Lee, arXiv:1612.01543 (weighted and entropy-constrained quantization of
    networks); Shoham and Gersho, IEEE Trans. ASSP 36 (1988) (one slope for all).
    """
    budgets = {
        "bits_per_weight": bits_per_weight,
        "size_bytes": size_bytes,
        "ratio": ratio,
        "max_distortion": max_distortion,
    }
    with automatic_axes(params, importance) as leave:
        params, importance = to_automatic((params, importance))
        network = None if layers is None else open_network(layers, params)
        estimate = None if network is None else network.importance()
        importance = estimate if importance is None else importance
        selected = select_leaves(params, method, (importance, policy), select, stacked, network)
        spending = Spending(selected, budgets, effort)
        if network is not None:
            return leave(compress_layers(selected, network, spending, estimate))
        return leave(_compressed(selected, spending, is_shared=importance is None))


@always_compiled
@all_transfers
def select_streamed(
    params: Params,
    method: Method,
    spool: Spool,
    *,
    importance: PyTree | None,
    select: Select,
) -> Selected:
    """Take a tree apart whose leaves are visited one by one, with results in a spool.

    Args:
        params: as in `compress`; arrays of mapped files.
        method: likewise.
        spool: where curves and codes lie.
        importance: as in `compress`, by path; arrays of mapped files.
        select: as in `compress`.

    Raises:
        TypeError, ValueError: as `compress`.
    """
    selected = select_leaves(
        params, method, (importance, POLICY), select, None, visited=spool.release
    )
    tensors = {number: spool.tensor(own) for number, own in selected.tensors.items()}
    return selected._replace(tensors=tensors)


@always_compiled
@all_transfers
def compress_streamed(
    selected: Selected,
    spool: Spool,
    budgets: Mapping[str, float | None],
    effort: Effort | None,
    *,
    is_shared: bool,
) -> CompressedTree:
    """Compress a tree of which at most one leaf is in memory; the result is that of `compress`.

    Args:
        selected: by `select_streamed`.
        spool: the same.
        budgets: by name, as in `compress`.
        effort: as in `compress`.
        is_shared: whether there is no importance.

    Raises:
        ValueError: as `compress`.
    """
    spending = Spending(selected, budgets, effort, spool)
    return _compressed(selected, spending, is_shared=is_shared, workers=spool.workers)


def _compressed(
    selected: Selected, spending: Spending, *, is_shared: bool, workers: Workers | None = None
) -> CompressedTree:
    """Compress a tree without layers.

    Args:
        selected: the tree taken apart.
        spending: the budget, if any, and what tensors take of it.
        is_shared: whether relative errors of all leaves count alike.
        workers: who visits leaves of which not all are in memory; None if they are.
    """
    tensors, budget = selected.tensors, spending.budget
    names = sorted({tensor.method.name for tensor in tensors.values()})
    total = len(tensors) * (1 if budget is None else 3)
    with LongCall(f"compressing by {' and '.join(names)}", total) as report:
        if budget is None:
            found, own = {}, list(tensors.values())
            parameters = own_parameters(own, shared=is_shared)
            applied = with_points(
                own, parameters, lambda tensor, points: tensor.apply(points), workers
            )
            for done, number in enumerate(tensors):
                report(done, total, shorten(tensors[number].paths, 1))
                found[number] = next(applied)
        else:
            is_relative = is_shared and budget.bits is not None
            found = points_within(
                tensors, budget, spending, report, is_relative=is_relative, workers=workers
            )
    return selected.tree({number: (leaf, tensors[number].layout) for number, leaf in found.items()})


@always_compiled
@all_transfers
def curve(
    params: Params,
    method: Method | Mapping[str, Method] = DEFAULT,
    *,
    importance: DiagonalEstimate | PyTree | None = None,
    policy: CurvaturePolicy = POLICY,
    select: Select = None,
    stacked: Select = None,
    layers: Layers | None = None,
) -> dict[str, Curve]:
    """Return every operating point of every leaf that `compress` would compress; apply none.

    Args:
        params: as in `compress`.
        method: likewise; a method with its parameter has one point.
        importance: likewise.
        policy: likewise.
        select: likewise.
        stacked: likewise.
        layers: likewise; inputs are those of the original network.

    Returns:
        The curves by path (the first of a tied leaf), all layers of a stack together. Rates and
        distortions are those of the histogram that codebooks are solved on.

    Raises:
        TypeError, ValueError: as `compress`.
    """
    with automatic_axes(params, importance):
        params, importance = to_automatic((params, importance))
        network = None if layers is None else open_network(layers, params)
        estimate = None if network is None else network.importance()
        importance = estimate if importance is None else importance
        selected = select_leaves(params, method, (importance, policy), select, stacked, network)
        tensors = list(selected.tensors.values())
        if network is not None:
            tensors = [with_inputs(tensor, network, estimate) for tensor in tensors]
        found = {}
        with LongCall("measuring curves", len(tensors)) as report:
            asked = [tensor.candidates() for tensor in tensors]
            curves = with_curves(tensors, asked, lambda tensor, own: tensor.joined(own))
            for done, tensor in enumerate(tensors):
                report(done, len(tensors), shorten(tensor.paths, 1))
                found[tensor.paths[0]] = next(curves)
        return found
