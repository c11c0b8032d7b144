"""The limits of the device; quantizers, rounding and Blahut-Arimoto against them."""

from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
from accelerator_parts.work import Work, send


def machine(work: Work) -> None:
    """The two limits; products of float64 are there for the kernels that compute in it."""
    import jax
    import jax.numpy as jnp

    number = 500_000_000 if work.is_full else 1_000_000
    x, y = jnp.ones(number, jnp.float32), jnp.ones(number, jnp.float32)
    for case, program, values, passes in (
        ("copy", jax.jit(lambda x: x + 1), (x,), 2),
        ("a x + y", jax.jit(lambda x, y: 1.5 * x + y), (x, y), 3),
    ):
        work.time(case, partial(program, *values), rate=(passes * x.nbytes, "B"))
        found = work.seconds.get(case)
        if found:
            send("limit", ["bandwidth", passes * x.nbytes / found])
    del x, y
    size = 8192 if work.is_full else 256
    for case, dtype, precision in (
        ("float32 product", jnp.float32, "highest"),
        ("float32 product, default precision", jnp.float32, None),
        ("bfloat16 product", jnp.bfloat16, None),
    ):
        a = jax.random.normal(jax.random.key(0), (size, size), dtype)
        product = jax.jit(partial(jnp.matmul, precision=precision))
        work.time(case, partial(product, a, a), rate=(2 * size**3, "flop"))
        if case in work.seconds:
            send("limit", [case.removesuffix(" product"), 2 * size**3 / work.seconds[case]])
    with jax.enable_x64(True):
        a = jnp.ones((size // 2, size // 2), jnp.float64)
        work.time(
            "float64 product", partial(jax.jit(jnp.matmul), a, a), rate=(size**3 // 4, "flop")
        )


def student(shape: tuple[int, ...]) -> Any:
    """Weights of a t-distribution with 3 degrees of freedom, float32, on the device."""
    import jax
    import jax.numpy as jnp

    @jax.jit
    def draw(key: Any) -> Any:
        normal, *others = (jax.random.normal(k, shape) for k in jax.random.split(key, 4))
        return 0.05 * normal / jnp.sqrt(sum(z * z for z in others) / 3)

    return jax.block_until_ready(draw(jax.random.key(0)))


def quantizing(number: int) -> dict[str, Any]:
    """Facts of a quantization: weights are read, codes of a byte are written."""
    return {"rate": (number, "weight"), "least": (5 * number, "bandwidth")}


def kmeans_part(work: Work) -> None:
    """K-means, the kernel and whole calls; what compiles nothing new comes right after."""
    import jaxcomp
    from jaxcomp.quantizers import EntropyConstrained, KMeans, Optimal, kmeans

    def kernel(number: int) -> None:
        points = student((number,))
        name = f"kmeans, {number:.0e} weights"
        work.time(name, lambda: kmeans(points, num_clusters=16), **quantizing(number))

    def compress(method: Any, number: int) -> None:
        params = {"layer": {"kernel": student((number // 100, 100))}}
        name = f"compress, {type(method).__name__}, {number:.0e} weights"
        work.time(name, lambda: jaxcomp.compress(params, method), **quantizing(number))

    if not work.is_full:
        kernel(20_000)
        return compress(KMeans(16), 20_000)
    kernel(10**8)
    compress(KMeans(16), 10**7)
    compress(KMeans(16), 10**8)
    compress(Optimal(16), 10**7)
    compress(EntropyConstrained(), 10**7)
    return kernel(10**6)


def rows_part(work: Work) -> None:
    from jaxcomp.quantizers import kmeans

    length = 8192 if work.is_full else 5000
    for number in (512, 8192) if work.is_full else (4,):
        points = student((number, length))
        work.time(
            f"kmeans, {number} rows of {length}",
            lambda points=points: kmeans(points, num_clusters=16),
            **quantizing(number * length),
        )


def leaves_part(work: Work) -> None:
    """Many small leaves, whose solves are sequences of small operations: together, one by one."""
    import jaxcomp
    from jaxcomp.quantizers import EntropyConstrained, KMeans, Uniform
    from jaxcomp.quantizers.methods import on_histograms

    number, size, together = (100, 100, 16) if work.is_full else (3, 10, 2)
    draw = np.random.default_rng(0).standard_normal
    params = {f"kernel{k}": draw((size, size)).astype(np.float32) for k in range(number)}
    for method in (KMeans(16), EntropyConstrained()) if work.is_full else (Uniform(4),):
        name = f"compress, {type(method).__name__}, {number} leaves of {size**2}"
        alone = f"{name}, one by one"
        for case, most in ((alone, 1), (name, together)):
            with patch.object(on_histograms, "most_together", lambda most=most: most):
                work.time(
                    case,
                    partial(jaxcomp.compress, params, method),
                    rate=(number, "leaf"),
                    against=None if case == alone else alone,
                )


def rounding_part(work: Work) -> None:
    import jax
    import jax.numpy as jnp

    from jaxcomp.quantizers import round_layer, round_layer_to_rate

    size = 4096 if work.is_full else 64
    keys = jax.random.split(jax.random.key(0), 3)
    weights = jax.random.normal(keys[0], (1, size, size))
    inputs = jax.random.normal(keys[1], (size + 256, size))
    inputs *= jnp.exp(0.5 * jax.random.normal(keys[2], (size,)))
    product = jax.jit(partial(jnp.matmul, precision="highest"))
    second = (product(inputs.T, inputs) / len(inputs))[None]
    facts = {"rate": (2 * size**3, "flop"), "least": (2 * size**3, "float32")}
    work.time("product S W", lambda: product(second, weights), **facts)
    compared = {"against": "product S W", "least": facts["least"]}

    def bits(found: Any) -> str:
        return f"{float(found.rate_bits):.2f} bits a weight"

    name = f"{size} x {size}"
    work.time(
        f"round_layer, {name}",
        lambda: round_layer(weights, second, 0.05),
        describe=bits,
        **compared,
    )
    if work.is_full:
        work.time(
            f"round_layer_to_rate, {name}",
            lambda: round_layer_to_rate(weights, second, 3.0),
            describe=bits,
            **compared,
        )


def blahut_arimoto_part(work: Work) -> None:
    from jaxcomp.rate_distortion import blahut_arimoto

    num_symbols, num_slopes = (256, 256) if work.is_full else (16, 4)
    grid = np.linspace(-4, 4, num_symbols)
    p = np.exp(-(grid**2) / 2)
    slopes = np.geomspace(1 / 3, 1000, num_slopes)
    distances = (grid[:, None] - grid[None, :]) ** 2
    work.time(
        f"{num_slopes} slopes, {num_symbols} symbols, gap 1e-6 nats",
        lambda: blahut_arimoto(p / p.sum(), distances, slopes, gap_nats=1e-6),
        rate=(num_slopes, "slope"),
        describe=lambda found: f"{100 * float(np.mean(found.converged)):.3g} % at the gap",
    )
