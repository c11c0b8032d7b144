"""Time curvatures against one gradient and against peers, and draw their error against their cost.

    python benchmarks/curvature.py [--repeats 5] [--num-probes 16] [--plot error.png]

Times: LeNet-300-100 (266,610 weights, ReLU), briefly trained, on 2,000 images: MNIST where the
package finds it (`JAXCOMP_DATA_DIR`), otherwise seeded noise of the same shape. All cases get the
same weights and images and run in turns, so that a slow moment hits all alike; compilation and
preparation are reported apart; ratios are medians over the turns of the ratio to one JAX gradient
in the same turn. Peers that are not installed are named and left out: pip install '.[bench]'.

Errors: a 64-24-10 network (tanh, and ReLU) trained on scikit-learn's digits, small enough for the
dense Hessian, whose diagonal is the truth. The relative error (Euclidean norm, mean over seeds) of
every estimator is printed, and drawn with --plot, against its cost in gradients of all examples,
at the cost of a probe measured above.

A further estimator is one more entry in `jaxcomp_cases` and in `ESTIMATORS`.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from jaxcomp.curvature import (
    estimate_memory,
    fisher_diagonal,
    hutchinson_blocks,
    hutchinson_diagonal,
    over_batches,
)
from jaxcomp.data import load

SLOW_SECONDS = 2.0
LENET = (784, 300, 100, 10)
NUM_IMAGES = 2000
SMALL = (64, 24, 10)
NUM_DIGITS = 1000
NUM_EFFICIENCY_PROBES = (4, 16, 64, 256)
NUM_SEEDS = 3
EXAMPLES_PER_PROBE = 100
PEERS = ("torch", "curvlinops-for-pytorch", "matfree")


# --- Problems ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """A network at fixed weights, (kernel, bias) per layer, and the examples it is measured on."""

    name: str
    loss_fn: Callable[..., Any]
    params: list[tuple[jax.Array, jax.Array]]
    batch: tuple[jax.Array, jax.Array]


def network_loss(activation, params, batch):
    """Mean softmax cross-entropy in nats."""
    hidden, labels = batch
    for layer, (kernel, bias) in enumerate(params):
        hidden = (activation(hidden) if layer else hidden) @ kernel + bias
    return optax.softmax_cross_entropy_with_integer_labels(hidden, labels).mean()


def relu_loss(params, batch):
    return network_loss(jax.nn.relu, params, batch)


def tanh_loss(params, batch):
    return network_loss(jnp.tanh, params, batch)


def make_problem(name: str, loss_fn, sizes, inputs, labels, *, num_steps: int) -> Problem:
    """Draw weights and train them by Adam on batches of 50."""
    rng = np.random.default_rng(0)
    params = [
        (jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), jnp.float32), jnp.zeros(shape[1]))
        for shape in pairwise(sizes)
    ]
    batch = jnp.asarray(inputs, jnp.float32), jnp.asarray(labels, jnp.int32)
    optimizer = optax.adam(2e-3)

    @jax.jit
    def train(params):
        def step(carry, key):
            params, state = carry
            rows = jax.random.randint(key, (50,), 0, len(labels))
            gradient = jax.grad(loss_fn)(params, tuple(x[rows] for x in batch))
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(jax.random.key(0), num_steps)
        (params, _), _ = lax.scan(step, (params, optimizer.init(params)), keys)
        return params

    return Problem(name, loss_fn, jax.block_until_ready(train(params)), batch)


def lenet_problem() -> tuple[Problem, str]:
    """LeNet-300-100, and what its images are."""
    try:
        mnist = load("mnist")
        inputs = mnist.pool_images[:NUM_IMAGES].reshape(NUM_IMAGES, -1) / mnist.max_value
        labels, source = mnist.pool_labels[:NUM_IMAGES], "MNIST"
    except ValueError:
        rng = np.random.default_rng(1)
        inputs, labels = rng.random((NUM_IMAGES, 784)), rng.integers(0, 10, NUM_IMAGES)
        source = "noise"
    return make_problem("lenet", relu_loss, LENET, inputs, labels, num_steps=300), source


def digits_problem(name: str, loss_fn) -> Problem:
    digits = load("digits")
    inputs = digits.pool_images[:NUM_DIGITS].reshape(NUM_DIGITS, -1) / digits.max_value
    labels = digits.pool_labels[:NUM_DIGITS]
    return make_problem(name, loss_fn, SMALL, inputs, labels, num_steps=1000)


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
    hutchinson = partial(
        hutchinson_diagonal, problem.loss_fn, problem.params, key=key, num_probes=num_probes
    )
    kernels = {
        "hutchinson": hutchinson,
        "hutchinson_gaussian": partial(hutchinson, distribution="gaussian"),
        "hutchinson_blocks_4": partial(
            hutchinson_blocks,
            problem.loss_fn,
            problem.params,
            key=key,
            num_probes=num_probes,
            block_size=4,
        ),
        "fisher": partial(fisher_diagonal, problem.loss_fn, problem.params),
    }
    for name, kernel in kernels.items():
        plan = estimate_memory(kernel, problem.batch, many_batches=False)
        probes = 1 if name == "fisher" else num_probes
        yield Case(name, partial(kernel, problem.batch), probes, plan.peak_bytes)

    batches = split(problem.batch, EXAMPLES_PER_PROBE)
    own_probes = partial(hutchinson, examples_per_probe=EXAMPLES_PER_PROBE)
    for name, kernel in (("batches", hutchinson), ("own_probes", own_probes)):
        plan = estimate_memory(kernel, batches[0])
        run = partial(over_batches, kernel, batches)
        yield Case(f"hutchinson_{name}", run, num_probes, plan.peak_bytes)


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


def torch_model(problem: Problem):
    """The same network with the same weights, and the images, in PyTorch."""
    import torch

    layers = []
    for kernel, bias in problem.params:
        layer = torch.nn.Linear(*kernel.shape)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(np.array(kernel).T))
            layer.bias.copy_(torch.from_numpy(np.array(bias)))
        layers += [layer, torch.nn.ReLU()]
    inputs, labels = (torch.from_numpy(np.array(x)) for x in problem.batch)
    return torch.nn.Sequential(*layers[:-1]), inputs, labels.long()


def torch_cases(problem: Problem, num_probes: int) -> Iterator[Case]:
    """Double backward by hand: the graph of the gradient is kept, a second backward per probe."""
    import torch

    model, inputs, labels = torch_model(problem)
    params = list(model.parameters())
    loss_fn = torch.nn.CrossEntropyLoss()

    def gradient():
        return torch.autograd.grad(loss_fn(model(inputs), labels), params)

    def double_backward():
        loss = loss_fn(model(inputs), labels)
        gradient = torch.autograd.grad(loss, params, create_graph=True)
        mean = [torch.zeros_like(p) for p in params]
        for _ in range(num_probes):
            probe = [torch.randint_like(p, 2).mul_(2).sub_(1) for p in params]
            product = torch.autograd.grad(gradient, params, probe, retain_graph=True)
            for total, z, hessian_z in zip(mean, probe, product, strict=True):
                total.addcmul_(z, hessian_z, value=1 / num_probes)
        return mean

    yield Case("torch_gradient", gradient)
    yield Case("torch_double_backward", double_backward, num_probes)


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


CASES = {
    "jaxcomp": jaxcomp_cases,
    "matfree": matfree_cases,
    "torch": torch_cases,
    "curvlinops": curvlinops_cases,
}


def split(batch, length: int) -> list[Any]:
    num_examples = len(jax.tree.leaves(batch)[0])
    starts = range(0, num_examples, length)
    return [jax.tree.map(lambda x, s=s: x[s : s + length], batch) for s in starts]


def find_cases(problem: Problem, num_probes: int) -> tuple[list[Case], list[str]]:
    """Make all cases; and name the peers that are not installed."""
    cases, missing = [], []
    for name, make in CASES.items():
        try:
            cases += list(make(problem, num_probes))
        except ModuleNotFoundError as error:
            missing.append(f"{name} (no {error.name})")
    return cases, missing


def time_in_turns(cases: list[Case], repeats: int) -> list[dict[str, Any]]:
    """Time every case once per turn, after a first run apart; seconds. Slow ones: two turns."""
    first, times = [], [[] for _ in cases]
    for case in cases:
        start = time.perf_counter()
        jax.block_until_ready(case.run())
        first.append(time.perf_counter() - start)
    for turn in range(repeats):
        for case, own in zip(cases, times, strict=True):
            if turn >= 2 and min(own) * case.num_probes > SLOW_SECONDS:
                continue
            start = time.perf_counter()
            jax.block_until_ready(case.run())
            own.append((time.perf_counter() - start) / case.num_probes)
    reference = np.asarray(times[0])
    return [
        {
            "case": case.name,
            "num_probes": case.num_probes,
            "first_run_seconds": first_seconds,
            "unit_seconds_median": float(np.median(own)),
            "unit_seconds_least": min(own),
            "unit_seconds_most": max(own),
            "gradients_per_unit": float(np.median(np.asarray(own) / reference[: len(own)])),
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
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["problem"] for row in rows))
    figure, axes = plt.subplots(1, len(names), figsize=(5 * len(names), 4), sharey=True)
    for axis, name in zip(np.atleast_1d(axes), names, strict=True):
        for estimator in dict.fromkeys(row["estimator"] for row in rows):
            own = [r for r in rows if (r["problem"], r["estimator"]) == (name, estimator)]
            cost, error = (
                [row[key] for row in own] for key in ("cost_gradients", "relative_error")
            )
            axis.loglog(cost, error, marker="o", label=estimator)
        axis.set(title=name, xlabel="cost (gradients of all examples)")
    np.atleast_1d(axes)[0].set_ylabel("relative error of the Hessian's diagonal")
    np.atleast_1d(axes)[0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


# --- Report -----------------------------------------------------------------------------------


def print_tables(times, errors, missing) -> None:
    write = sys.stdout.write
    write(f"{'case':<28}{'ms per probe':>14}{'gradients':>11}{'first run s':>13}{'peak MB':>9}\n")
    for row in times:
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.1f}"
        write(
            f"{row['case']:<28}{1e3 * row['unit_seconds_median']:>14.1f}"
            f"{row['gradients_per_unit']:>11.2f}{row['first_run_seconds']:>13.1f}{peak:>9}\n"
        )
    for peer in missing:
        write(f"not installed: {peer}\n")
    write(f"\n{'problem':<8}{'estimator':<42}{'probes':>7}{'gradients':>11}{'error':>8}\n")
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


def commit() -> str:
    folder = Path(__file__).resolve().parent
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--num-probes", type=int, default=16)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--plot", type=Path, help="draw error against cost here (PNG, PDF...)")
    options = parser.parse_args()

    problem, images = lenet_problem()
    cases, missing = find_cases(problem, options.num_probes)
    times = time_in_turns(cases, options.repeats)
    costs = {row["case"]: row["gradients_per_unit"] for row in times}
    errors = []
    for name, loss_fn in (("tanh", tanh_loss), ("relu", relu_loss)):
        errors += measure_errors(digits_problem(name, loss_fn), costs)
    print_tables(times, errors, missing)
    if options.plot is not None:
        draw_errors(errors, options.plot)

    report = {
        "problem": {
            "sizes": LENET,
            "num_images": NUM_IMAGES,
            "images": images,
            "dtype": "float32",
            "num_probes": options.num_probes,
            "repeats": options.repeats,
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
