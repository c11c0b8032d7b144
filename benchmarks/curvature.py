"""Time curvatures against one gradient and against peers, and draw their error against their cost.

    python benchmarks/curvature.py [--repeats 5] [--num-probes 16] [--plot error.png]

Times, of one Hutchinson probe, one sampled label, or one exact diagonal:
- LeNet-300-100 (266,610 weights, ReLU), briefly trained, on 2,000 images; and the Hessians of its
  three layers from 10,000, against the matrix products alone;
- LeNet-5 (61,706 weights, convolutions, ReLU, max pooling) on 300 images;
- a Flax transformer block (attention over 16 tokens, gelu, mean pooling) on 300 seeded examples;
- a transformer of 4 blocks on 64 examples: its weights stacked and scanned, stacked and indexed,
  against a list of blocks one after the other.
Images are MNIST where the package finds it (`JAXCOMP_DATA_DIR`), otherwise seeded noise of the
same shape. All cases of a problem get the same weights and examples and run in turns, so that a
slow moment hits all alike; compilation and preparation are reported apart; ratios are medians over
the turns of the ratio to the first case, one JAX gradient, in the same turn. What BackPACK finds
is compared with what this package finds. Peers that are not installed are named and left out:
pip install '.[bench]'.

Beside other processes the clock says little. Processor time does, if each library has one thread
(threads that wait actively are counted as if they worked):

    export XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    OMP_NUM_THREADS=1 python benchmarks/curvature.py --processor-time --problems lenet-5

Errors: a 64-24-10 network (tanh, and ReLU) trained on scikit-learn's digits, small enough for the
dense Hessian, whose diagonal is the truth. The relative error (Euclidean norm, mean over seeds) of
every estimator is printed, and drawn with --plot, against its cost in gradients of all examples,
at the cost of a probe measured on LeNet-300-100.

A further estimator is one more entry in `jaxcomp_cases` and in `ESTIMATORS`.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch_peers
from flax import nnx
from jax import lax
from jax.flatten_util import ravel_pytree
from provenance import commit

from jaxcomp.adapters import CrossEntropyLoss, nnx_predict_fn
from jaxcomp.curvature import (
    Fisher,
    GaussNewton,
    Hutchinson,
    HutchinsonBlocks,
    estimate_memory,
    fisher_diagonal,
    gauss_newton_diagonal,
    hutchinson_diagonal,
    layer_hessians,
    over_batches,
)
from jaxcomp.experiments import drawing
from jaxcomp.experiments.data import load

SLOW_SECONDS = 2.0
LENET = (784, 300, 100, 10)
NUM_IMAGES = 2000
SMALL = (64, 24, 10)
NUM_DIGITS = 1000
NUM_EFFICIENCY_PROBES = (4, 16, 64, 256)
NUM_SEEDS = 3
EXAMPLES_PER_PROBE = 100
NUM_LAYER_IMAGES = 10_000
NUM_LABEL_SAMPLES = 4
NUM_OTHER_EXAMPLES = 300
NUM_TOKENS, NUM_FEATURES = 16, 32
NUM_BLOCKS, BLOCK_SIZE, NUM_HEADS, NUM_BLOCK_EXAMPLES = 4, 64, 4, 64
AGREEMENT = 1e-4
PEERS = ("torch", "curvlinops-for-pytorch", "backpack-for-pytorch", "matfree")


# --- Problems ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """A network at fixed weights, and the examples it is measured on.

    `torch_layers` makes the same network with the same weights of `torch.nn` modules.
    """

    name: str
    predict_fn: Callable[..., Any]
    params: Any
    batch: tuple[jax.Array, jax.Array]
    torch_layers: Callable[[Any], list[Any]] | None = None

    @property
    def loss_fn(self) -> CrossEntropyLoss:
        """Mean softmax cross-entropy in nats."""
        return CrossEntropyLoss(self.predict_fn)


def dense_network(activation, params, inputs):
    """Evaluate (kernel, bias) after (kernel, bias)."""
    for layer, (kernel, bias) in enumerate(params):
        inputs = (activation(inputs) if layer else inputs) @ kernel + bias
    return inputs


def relu_network(params, inputs):
    return dense_network(jax.nn.relu, params, inputs)


def tanh_network(params, inputs):
    return dense_network(jnp.tanh, params, inputs)


def lenet5(params, inputs):
    """Two convolutions with ReLU and max pooling, then three dense layers."""
    convolutions, dense = params[:2], params[2:]
    for (kernel, bias), padding in zip(convolutions, ("SAME", "VALID"), strict=True):
        hidden = lax.conv_general_dilated(
            inputs, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        hidden = jax.nn.relu(hidden + bias)
        inputs = lax.reduce_window(hidden, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return relu_network(dense, inputs.reshape(len(inputs), -1))


class TransformerBlock(nnx.Module):
    """Self-attention and a perceptron with residuals, the mean over tokens, a dense layer."""

    def __init__(self, rngs: nnx.Rngs):
        size = NUM_FEATURES
        self.first_norm = nnx.LayerNorm(size, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, size, decode=False, rngs=rngs)
        self.second_norm = nnx.LayerNorm(size, rngs=rngs)
        self.up = nnx.Linear(size, 4 * size, rngs=rngs)
        self.down = nnx.Linear(4 * size, size, rngs=rngs)
        self.head = nnx.Linear(size, 10, rngs=rngs)

    def __call__(self, tokens):
        """Return logits (batch, 10) of tokens (batch, T, features)."""
        hidden = tokens + self.attention(self.first_norm(tokens))
        hidden = hidden + self.down(nnx.gelu(self.up(self.second_norm(hidden))))
        return self.head(hidden.mean(axis=1))


def block(hidden, weights):
    """Attention and a perceptron with residuals, of tokens (batch, T, features)."""

    def normal(x, gain):
        return gain * (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)

    x = normal(hidden, weights["first_gain"])
    query, key, value = (jnp.einsum("btd,dhk->bthk", x, weights[name]) for name in "qkv")
    attention = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", query, key))
    hidden = hidden + jnp.einsum("bhts,bshk,hkd->btd", attention, value, weights["o"])
    x = jax.nn.gelu(normal(hidden, weights["second_gain"]) @ weights["up"] + weights["bias"])
    return hidden + x @ weights["down"]


def scanned_blocks(params, tokens):
    hidden, _ = lax.scan(lambda h, row: (block(h, row), None), tokens, params["blocks"])
    return hidden.mean(axis=1) @ params["head"]


def indexed_blocks(params, tokens):
    for row in range(NUM_BLOCKS):
        tokens = block(tokens, jax.tree.map(lambda w, row=row: w[row], params["blocks"]))
    return tokens.mean(axis=1) @ params["head"]


def listed_blocks(params, tokens):
    for weights in params["blocks"]:
        tokens = block(tokens, weights)
    return tokens.mean(axis=1) @ params["head"]


def draw_params(shapes):
    rng = np.random.default_rng(0)
    return [
        (
            jnp.asarray(rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1])), jnp.float32),
            jnp.zeros(shape[-1]),
        )
        for shape in shapes
    ]


def make_problem(
    name: str, predict_fn, params, inputs, labels, *, num_steps: int, torch_layers=None
) -> Problem:
    """Train weights by Adam on batches of 50."""
    batch = jnp.asarray(inputs, jnp.float32), jnp.asarray(labels, jnp.int32)
    problem = Problem(name, predict_fn, params, batch, torch_layers)
    optimizer = optax.adam(2e-3)

    @jax.jit
    def train(params):
        def step(carry, key):
            params, state = carry
            rows = jax.random.randint(key, (50,), 0, len(labels))
            gradient = jax.grad(problem.loss_fn)(params, tuple(x[rows] for x in batch))
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(jax.random.key(0), num_steps)
        (params, _), _ = lax.scan(step, (params, optimizer.init(params)), keys)
        return params

    return replace(problem, params=jax.block_until_ready(train(params)))


def load_images(num_images: int):
    """Images (n, 28, 28, 1), labels, and what they are."""
    try:
        mnist = load("mnist")
        images = mnist.pool_images[:num_images].reshape(-1, 28, 28, 1) / mnist.max_value
        return images, mnist.pool_labels[:num_images], "MNIST"
    except ValueError:
        rng = np.random.default_rng(1)
        return rng.random((num_images, 28, 28, 1)), rng.integers(0, 10, num_images), "noise"


def lenet_problem(images, labels) -> Problem:
    inputs = images.reshape(len(images), -1)
    return make_problem(
        "lenet-300-100",
        relu_network,
        draw_params(pairwise(LENET)),
        inputs,
        labels,
        num_steps=300,
        torch_layers=torch_dense_layers,
    )


def lenet5_problem(images, labels) -> Problem:
    shapes = [(5, 5, 1, 6), (5, 5, 6, 16), *pairwise((400, 120, 84, 10))]
    return make_problem(
        "lenet-5",
        lenet5,
        draw_params(shapes),
        images,
        labels,
        num_steps=100,
        torch_layers=torch_lenet5_layers,
    )


def transformer_problem(num_examples: int) -> Problem:
    """Tokens of ten noisy classes."""
    predict_fn, params = nnx_predict_fn(TransformerBlock(nnx.Rngs(0)))
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 10, num_examples)
    tokens = rng.normal(size=(10, NUM_TOKENS, NUM_FEATURES))[labels]
    tokens = tokens + 2 * rng.normal(size=tokens.shape)
    return make_problem("transformer", predict_fn, params, tokens, labels, num_steps=100)


def blocks_problem(num_examples: int) -> Problem:
    """Stacked blocks at their initial weights, on tokens of noise."""
    rng = np.random.default_rng(3)
    size, head_size = BLOCK_SIZE, BLOCK_SIZE // NUM_HEADS
    shapes = {
        **dict.fromkeys("qkv", (size, NUM_HEADS, head_size)),
        "o": (NUM_HEADS, head_size, size),
        "up": (size, 4 * size),
        "down": (4 * size, size),
    }
    blocks = {
        name: jnp.asarray(rng.normal(size=(NUM_BLOCKS, *shape)) / np.sqrt(size), jnp.float32)
        for name, shape in shapes.items()
    }
    blocks["bias"] = jnp.zeros((NUM_BLOCKS, 4 * size))
    blocks |= {name: jnp.ones((NUM_BLOCKS, size)) for name in ("first_gain", "second_gain")}
    params = {"blocks": blocks, "head": jnp.asarray(rng.normal(size=(size, 10)), jnp.float32)}
    tokens = jnp.asarray(rng.normal(size=(num_examples, NUM_TOKENS, size)), jnp.float32)
    return Problem("blocks", scanned_blocks, params, (tokens, jnp.zeros(num_examples, jnp.int32)))


def make_problems(names: list[str]) -> list[Problem]:
    images, labels, _ = load_images(NUM_LAYER_IMAGES)
    few = images[:NUM_OTHER_EXAMPLES], labels[:NUM_OTHER_EXAMPLES]
    problems = []
    if "lenet-300-100" in names or "layers" in names:
        lenet = lenet_problem(images[:NUM_IMAGES], labels[:NUM_IMAGES])
        batch = (jnp.asarray(images.reshape(len(images), -1), jnp.float32), jnp.asarray(labels))
        problems += [lenet, replace(lenet, name="layers", batch=batch)]
    if "lenet-5" in names:
        problems.append(lenet5_problem(*few))
    if "transformer" in names:
        problems.append(transformer_problem(NUM_OTHER_EXAMPLES))
    if "blocks" in names:
        problems.append(blocks_problem(NUM_BLOCK_EXAMPLES))
    return [problem for problem in problems if problem.name in names]


def digits_problem(name: str, predict_fn) -> Problem:
    digits = load("digits")
    inputs = digits.pool_images[:NUM_DIGITS].reshape(NUM_DIGITS, -1) / digits.max_value
    labels = digits.pool_labels[:NUM_DIGITS]
    params = draw_params(pairwise(SMALL))
    return make_problem(name, predict_fn, params, inputs, labels, num_steps=1000)


# --- Cases: what is timed ---------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One estimator on one problem: `run()` makes `num_probes` probes, or one exact diagonal."""

    name: str
    run: Callable[[], Any]
    num_probes: int = 1
    peak_bytes: int | None = None


def jaxcomp_cases(problem: Problem, num_probes: int) -> Iterator[Case]:
    gradient = jax.jit(jax.grad(problem.loss_fn))
    yield Case("gradient", lambda: gradient(problem.params, problem.batch))
    key = jax.random.key(0)
    gauss_newton = GaussNewton(problem.predict_fn, problem.params)
    sampled = replace(gauss_newton, num_label_samples=NUM_LABEL_SAMPLES, key=key)
    hutchinson = Hutchinson(problem.loss_fn, problem.params, key=key, num_probes=num_probes)
    kernels = {
        "gauss_newton": (gauss_newton, 1),
        "gauss_newton_sampled": (sampled, NUM_LABEL_SAMPLES),
        "hutchinson": (hutchinson, num_probes),
        "fisher": (Fisher(problem.loss_fn, problem.params), 1),
    }
    for name, (kernel, probes) in kernels.items():
        plan = estimate_memory(kernel, problem.batch, many_batches=False)
        yield Case(name, partial(kernel, problem.batch), probes, plan.peak_bytes)


def hutchinson_cases(problem: Problem, num_probes: int) -> Iterator[Case]:
    """The options of Hutchinson's estimator."""
    key = jax.random.key(0)
    options = {"key": key, "num_probes": num_probes}
    hutchinson = Hutchinson(problem.loss_fn, problem.params, **options)
    blocks = HutchinsonBlocks(problem.loss_fn, problem.params, block_size=4, **options)
    kernels = {
        "hutchinson_gaussian": replace(hutchinson, distribution="gaussian"),
        "hutchinson_blocks_4": blocks,
    }
    for name, kernel in kernels.items():
        plan = estimate_memory(kernel, problem.batch, many_batches=False)
        yield Case(name, partial(kernel, problem.batch), num_probes, plan.peak_bytes)

    batches = split(problem.batch, EXAMPLES_PER_PROBE)
    own_probes = replace(hutchinson, examples_per_probe=EXAMPLES_PER_PROBE)
    for name, kernel in (("batches", hutchinson), ("own_probes", own_probes)):
        plan = estimate_memory(kernel, batches[0])
        run = partial(over_batches, kernel, batches)
        yield Case(f"hutchinson_{name}", run, num_probes, plan.peak_bytes)


def layer_cases(problem: Problem, num_probes: int) -> Iterator[Case]:
    """The Hessians of all layers; the matrix products alone, given every layer's inputs."""
    del num_probes
    layer_inputs = [problem.batch[0]]
    for layer in range(1, len(problem.params)):
        layer_inputs.append(jax.nn.relu(relu_network(problem.params[:layer], problem.batch[0])))

    @jax.jit
    def products(layer_inputs):
        with jax.default_matmul_precision("highest"):
            return [2 / len(a) * (a.T @ a) for a in layer_inputs]

    def hessians():
        found = layer_hessians(problem.predict_fn, problem.params, [problem.batch])
        return [layer.hessian[0] for layer in found.values()]

    for found, expected in zip(hessians(), products(layer_inputs), strict=True):
        check_agreement("layer_hessians", [found], [expected])
    yield Case("matrix_products", lambda: products(layer_inputs))
    yield Case("layer_hessians", hessians)


def block_cases(problem: Problem, num_probes: int) -> Iterator[Case]:
    """Curvatures of stacked blocks, each after that of the same blocks in a list."""
    del num_probes
    blocks = problem.params["blocks"]
    rows = [jax.tree.map(lambda w, row=row: w[row], blocks) for row in range(NUM_BLOCKS)]
    networks = {
        "listed": (listed_blocks, {**problem.params, "blocks": rows}),
        "scanned": (scanned_blocks, problem.params),
        "indexed": (indexed_blocks, problem.params),
    }
    exact = {name: gauss_newton_diagonal(*of, problem.batch).mean for name, of in networks.items()}
    together = jax.tree.map(lambda *x: jnp.stack(x), *exact["listed"]["blocks"])
    for name in ("scanned", "indexed"):
        found, expected = (jax.tree.leaves(x) for x in (exact[name]["blocks"], together))
        check_agreement(name, found, expected)
    key = jax.random.key(0)
    for kind in ("exact", "sampled", "layer_hessians"):
        for name, (predict_fn, params) in networks.items():
            kernel = GaussNewton(predict_fn, params)
            if kind == "sampled":
                kernel = replace(kernel, num_label_samples=NUM_LABEL_SAMPLES, key=key)
            run = partial(kernel, problem.batch)
            if kind == "layer_hessians":
                run = partial(layer_hessians, predict_fn, params, [problem.batch])
            yield Case(f"{kind}_{name}", run, NUM_LABEL_SAMPLES if kind == "sampled" else 1)


def matfree_cases(problem: Problem, num_probes: int) -> Iterator[Case]:
    """Matfree's estimator of mean and standard error, one probe at a time."""
    from matfree import stochtrace

    flat, unravel = ravel_pytree(problem.params)

    def product(vector, weights, batch):
        gradient = jax.grad(lambda w: problem.loss_fn(unravel(w), batch))
        return jax.jvp(gradient, (weights,), (vector,))[1]

    estimate = stochtrace.estimator_monte_carlo(
        stochtrace.monte_carlo_diagonal(), sampler=stochtrace.sampler_signs(flat, num=1)
    )

    @jax.jit
    def run(key, weights, batch):
        one = partial(estimate, lambda v: product(v, weights, batch))
        return jnp.mean(lax.map(one, jax.random.split(key, num_probes)), axis=0)

    yield Case("matfree", lambda: run(jax.random.key(0), flat, problem.batch), num_probes)


def torch_dense_layers(params):
    import torch

    layers = []
    for kernel, bias in params:
        layer = torch.nn.Linear(*kernel.shape)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(np.array(kernel).T))
            layer.bias.copy_(torch.from_numpy(np.array(bias)))
        layers += [layer, torch.nn.ReLU()]
    return layers[:-1]


def torch_lenet5_layers(params):
    """PyTorch has its channels first, in the kernels and in what is flattened."""
    import torch

    layers = []
    for (kernel, bias), padding in zip(params[:2], (2, 0), strict=True):
        height, width, num_in, num_out = kernel.shape
        layer = torch.nn.Conv2d(num_in, num_out, (height, width), padding=padding)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(np.array(kernel).transpose(3, 2, 0, 1)))
            layer.bias.copy_(torch.from_numpy(np.array(bias)))
        layers += [layer, torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
    kernel, bias = params[2]
    kernel = np.array(kernel).reshape(5, 5, 16, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
    return [*layers, torch.nn.Flatten(), *torch_dense_layers([(kernel, bias), *params[3:]])]


def torch_model(problem: Problem):
    """The same network with the same weights, and the examples, in PyTorch."""
    import torch

    assert problem.torch_layers is not None
    inputs, labels = (torch.from_numpy(np.array(x)) for x in problem.batch)
    if inputs.ndim == 4:
        inputs = inputs.permute(0, 3, 1, 2).contiguous()
    return torch.nn.Sequential(*problem.torch_layers(problem.params)), inputs, labels.long()


def torch_cases(problem: Problem, num_probes: int) -> Iterator[Case]:
    """Double backward by hand: the graph of the gradient is kept, a second backward per probe."""
    model, inputs, labels = torch_model(problem)
    data = model, list(model.parameters()), inputs, labels
    yield Case("torch_gradient", torch_peers.gradient(*data))
    yield Case("torch_double_backward", torch_peers.double_backward(*data, num_probes), num_probes)


def curvlinops_cases(problem: Problem, num_probes: int) -> Iterator[Case]:
    import torch
    from curvlinops import HessianLinearOperator, hutchinson_diag

    model, inputs, labels = torch_model(problem)
    hessian = HessianLinearOperator(
        model,
        torch.nn.CrossEntropyLoss(),
        list(model.parameters()),
        [(inputs, labels)],
        check_deterministic=False,
    )
    yield Case("curvlinops", lambda: hutchinson_diag(hessian, num_probes), num_probes)


def backpack_cases(problem: Problem, num_probes: int) -> Iterator[Case]:
    import torch
    from backpack import backpack, extend
    from backpack.extensions import DiagGGNExact, DiagGGNMC

    del num_probes
    model, inputs, labels = torch_model(problem)
    model, loss_fn = extend(model), extend(torch.nn.CrossEntropyLoss())

    def run(extension):
        model.zero_grad()
        with backpack(extension):
            loss_fn(model(inputs), labels).backward()
        return [getattr(p, extension.savefield) for p in model.parameters()]

    ours = gauss_newton_diagonal(problem.predict_fn, problem.params, problem.batch).mean
    # A tree of the weights' shapes goes the way the weights went.
    assert problem.torch_layers is not None
    ours = list(torch.nn.Sequential(*problem.torch_layers(ours)).parameters())
    exact = DiagGGNExact()
    check_agreement("BackPACK", [x.numpy() for x in run(exact)], [x.detach().numpy() for x in ours])
    yield Case("backpack_ggn_exact", partial(run, exact))
    sampled = DiagGGNMC(mc_samples=NUM_LABEL_SAMPLES)
    yield Case("backpack_ggn_mc", partial(run, sampled), NUM_LABEL_SAMPLES)


def check_agreement(name: str, found: list[Any], expected: list[Any]) -> None:
    """Refuse to time what gives another result."""
    pairs = zip(found, expected, strict=True)
    difference = np.sqrt(sum(np.sum((np.asarray(a) - np.asarray(b)) ** 2) for a, b in pairs))
    size = np.sqrt(sum(np.sum(np.asarray(b) ** 2) for b in expected))
    if not difference <= AGREEMENT * size:
        raise RuntimeError(f"{name} differs by {difference / size:.1e} of the norm.")


CASES = {
    "lenet-300-100": (
        jaxcomp_cases,
        hutchinson_cases,
        matfree_cases,
        torch_cases,
        curvlinops_cases,
        backpack_cases,
    ),
    "layers": (layer_cases,),
    "lenet-5": (jaxcomp_cases, torch_cases, backpack_cases),
    "transformer": (jaxcomp_cases,),
    "blocks": (block_cases,),
}


def split(batch, length: int) -> list[Any]:
    num_examples = len(jax.tree.leaves(batch)[0])
    starts = range(0, num_examples, length)
    return [jax.tree.map(lambda x, s=s: x[s : s + length], batch) for s in starts]


def find_cases(problem: Problem, num_probes: int) -> tuple[list[Case], list[str]]:
    """Make all cases; and name the peers that are not installed."""
    cases, missing = [], []
    for make in CASES[problem.name]:
        try:
            cases += list(make(problem, num_probes))
        except ModuleNotFoundError as error:
            missing.append(f"{make.__name__.removesuffix('_cases')} (no {error.name})")
    return cases, missing


def time_in_turns(
    problem: str,
    cases: list[Case],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[dict[str, Any]]:
    """Time every case once per turn, after a first run apart; seconds. Slow ones: two turns."""
    first, times = [], [[] for _ in cases]
    for case in cases:
        start = clock()
        jax.block_until_ready(case.run())
        first.append(clock() - start)
    for turn in range(repeats):
        for case, own in zip(cases, times, strict=True):
            if turn >= 2 and min(own) * case.num_probes > SLOW_SECONDS:
                continue
            start = clock()
            jax.block_until_ready(case.run())
            own.append((clock() - start) / case.num_probes)
    reference = np.asarray(times[0])
    return [
        {
            "problem": problem,
            "case": case.name,
            "num_probes": case.num_probes,
            "first_run_seconds": first_seconds,
            "unit_seconds_median": float(np.median(own)),
            "unit_seconds_least": min(own),
            "unit_seconds_most": max(own),
            "times_the_first_case": float(np.median(np.asarray(own) / reference[: len(own)])),
            "peak_bytes": case.peak_bytes,
        }
        for case, first_seconds, own in zip(cases, first, times, strict=True)
    ]


# --- Errors: what a gradient's worth of work buys ---------------------------------------------


@dataclass(frozen=True)
class Estimator:
    """How to estimate a diagonal, and which case above tells its cost.

    `run(problem, key, num_probes)` returns the diagonal; `has_probes` is False if there is one
    answer only.
    """

    name: str
    case: str
    run: Callable[[Problem, jax.Array, int], Any]
    has_probes: bool = True


def by_hutchinson(problem: Problem, key, num_probes: int, **options):
    return hutchinson_diagonal(
        problem.loss_fn, problem.params, problem.batch, key, num_probes=num_probes, **options
    ).mean


def by_gauss_newton(problem: Problem, key, num_probes: int):
    del key, num_probes
    return gauss_newton_diagonal(problem.predict_fn, problem.params, problem.batch).mean


def by_labels(problem: Problem, key, num_probes: int):
    return gauss_newton_diagonal(
        problem.predict_fn, problem.params, problem.batch, num_label_samples=num_probes, key=key
    ).mean


def by_fisher(problem: Problem, key, num_probes: int):
    return fisher_diagonal(problem.loss_fn, problem.params, problem.batch).mean


ESTIMATORS = [
    Estimator("Hutchinson, signs", "hutchinson", by_hutchinson),
    Estimator(
        "Hutchinson, Gaussian",
        "hutchinson_gaussian",
        partial(by_hutchinson, distribution="gaussian"),
    ),
    Estimator(
        f"Hutchinson, own probes per {EXAMPLES_PER_PROBE} examples",
        "hutchinson_own_probes",
        partial(by_hutchinson, examples_per_probe=EXAMPLES_PER_PROBE),
    ),
    Estimator("Gauss-Newton, exact", "gauss_newton", by_gauss_newton, has_probes=False),
    Estimator("Gauss-Newton, sampled labels", "gauss_newton_sampled", by_labels),
    Estimator("empirical Fisher", "fisher", by_fisher, has_probes=False),
]


def measure_errors(problem: Problem, costs: dict[str, float]) -> list[dict[str, Any]]:
    """Compare every estimator with the diagonal of the dense Hessian."""
    flat, unravel = ravel_pytree(problem.params)
    hessian = jax.jit(jax.hessian(lambda w: problem.loss_fn(unravel(w), problem.batch)))(flat)
    exact = np.diag(np.asarray(hessian, np.float64))
    rows = []
    for estimator in ESTIMATORS:
        for num_probes in NUM_EFFICIENCY_PROBES if estimator.has_probes else (1,):
            errors = []
            for seed in range(NUM_SEEDS if estimator.has_probes else 1):
                found = estimator.run(problem, jax.random.key(seed), num_probes)
                error = np.asarray(ravel_pytree(found)[0], np.float64) - exact
                errors.append(np.linalg.norm(error) / np.linalg.norm(exact))
            rows.append(
                {
                    "problem": problem.name,
                    "estimator": estimator.name,
                    "num_probes": num_probes,
                    "cost_gradients": num_probes * costs[estimator.case],
                    "relative_error": float(np.mean(errors)),
                }
            )
    return rows


def draw_errors(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the error of every estimator against its cost, a panel for each problem."""
    names = list(dict.fromkeys(row["problem"] for row in rows))
    figure = drawing.new_figure(
        4.6 * len(names),
        4.8,
        "What does a diagonal of the Hessian cost?",
        "Lower and further left is better. With ReLU the exact Gauss-Newton diagonal is the "
        "Hessian's own, up to rounding;\nrandom probes cost a hundred times more and stay far off.",
    )
    axes = np.atleast_1d(figure.subplots(1, len(names), sharey=True))
    for axis, name in zip(axes, names, strict=True):
        estimators = dict.fromkeys(row["estimator"] for row in rows)
        for estimator, marker in zip(estimators, "os^Dv*", strict=False):
            own = [r for r in rows if (r["problem"], r["estimator"]) == (name, estimator)]
            cost, error = (
                [row[key] for row in own] for key in ("cost_gradients", "relative_error")
            )
            axis.loglog(cost, error, marker=marker, markersize=5, label=estimator)
        drawing.panel(axis, name, x="cost, gradients of all examples")
        drawing.plain_log_ticks(axis.xaxis)
    drawing.axis_labels(axes[0], y="relative error of the Hessian's diagonal")
    drawing.legend_of_labels(figure)
    path.write_bytes(drawing.encoded(figure, drawing.form_of(path)))


# --- Report -----------------------------------------------------------------------------------


def print_times(own: list[dict[str, Any]]) -> None:
    """Print the cases of one problem."""
    unit = "x " + own[0]["case"]
    lines = [
        f"{own[0]['problem']:<28}{'ms per probe':>14}{unit:>18}{'first run s':>13}{'peak MB':>9}"
    ]
    for row in own:
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.1f}"
        lines.append(
            f"  {row['case']:<26}{1e3 * row['unit_seconds_median']:>14.1f}"
            f"{row['times_the_first_case']:>18.2f}{row['first_run_seconds']:>13.1f}{peak:>9}"
        )
    sys.stdout.write("\n".join(lines) + "\n\n")
    sys.stdout.flush()


def print_errors(errors: list[dict[str, Any]], missing: list[str]) -> None:
    write = sys.stdout.write
    for peer in missing:
        write(f"not installed: {peer}\n")
    write(f"{'problem':<8}{'estimator':<42}{'probes':>7}{'gradients':>11}{'error':>8}\n")
    for row in errors:
        write(
            f"{row['problem']:<8}{row['estimator']:<42}{row['num_probes']:>7}"
            f"{row['cost_gradients']:>11.1f}{row['relative_error']:>8.3f}\n"
        )


def peer_versions() -> dict[str, str]:
    found = {}
    for name in PEERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--num-probes", type=int, default=16)
    parser.add_argument(
        "--problems", nargs="+", choices=list(CASES), default=list(CASES), help="time these alone"
    )
    parser.add_argument(
        "--processor-time", action="store_true", help="of this process, instead of the clock"
    )
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--plot", type=Path, help="draw error against cost here (PNG, PDF...)")
    options = parser.parse_args()

    clock = time.process_time if options.processor_time else time.perf_counter
    problems = make_problems(options.problems)
    times, missing = [], []
    for problem in problems:
        cases, absent = find_cases(problem, options.num_probes)
        own = time_in_turns(problem.name, cases, options.repeats, clock)
        print_times(own)
        times += own
        missing += [peer for peer in absent if peer not in missing]
    costs = {r["case"]: r["times_the_first_case"] for r in times if r["problem"] == "lenet-300-100"}
    errors = []
    if costs:
        for name, predict_fn in (("tanh", tanh_network), ("relu", relu_network)):
            errors += measure_errors(digits_problem(name, predict_fn), costs)
    print_errors(errors, missing)
    if options.plot is not None and errors:
        draw_errors(errors, options.plot)

    report = {
        "problems": {
            problem.name: {
                "num_weights": sum(x.size for x in jax.tree.leaves(problem.params)),
                "num_examples": len(problem.batch[0]),
            }
            for problem in problems
        },
        "options": {
            "images": load_images(1)[2],
            "dtype": "float32",
            "num_probes": options.num_probes,
            "num_label_samples": NUM_LABEL_SAMPLES,
            "repeats": options.repeats,
            "clock": clock.__name__,
            "seed": 0,
        },
        "times": times,
        "errors": errors,
        "missing_peers": missing,
        "environment": {
            "device_kind": jax.devices()[0].device_kind,
            "platform": jax.default_backend(),
            "python": platform.python_version(),
            "jax": jax.__version__,
            "numpy": np.__version__,
            **peer_versions(),
            "commit": commit(),
        },
    }
    text = json.dumps(report, indent=2) + "\n"
    sys.stdout.write("\n" + text)
    if options.out is not None:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
