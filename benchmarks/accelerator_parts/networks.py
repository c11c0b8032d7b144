"""Diagonals and layer Hessians of two networks, in JAX and in PyTorch."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch_peers
from accelerator_parts.work import Work


class Network(NamedTuple):
    """A function of weights, and examples.

    Attributes:
        predict: `(params, inputs) -> logits`.
        params: the weights.
        batch: `(inputs, labels)`.
        flops: of a forward pass of the batch.
        gram_flops: of the products A^T A of all layers' inputs.
    """

    predict: Callable[..., Any]
    params: Any
    batch: tuple[Any, Any]
    flops: float
    gram_flops: float


WIDTHS = (128, 128, 256, 256, 512, 512, 1024)


def conv_sizes(is_full: bool) -> tuple[int, list[int]]:
    """Return how many images there are, and the channels of the layers."""
    return (256, [3, *WIDTHS]) if is_full else (4, [3, *(width // 16 for width in WIDTHS)])


def convolutional(is_full: bool) -> Network:
    """The published convolutional network of the sweep at weights as they are drawn."""
    import jax

    from jaxcomp.adapters import freeze
    from jaxcomp.experiments import networks

    num, channels = conv_sizes(is_full)
    network = networks.build(
        "vgg", input_shape=(32, 32, 3), num_classes=10, width=channels[1] / WIDTHS[0]
    )
    predict, params = freeze(network.predict, network.init(jax.random.key(0)))
    inputs = jax.random.normal(jax.random.key(1), (num, 32, 32, 3))
    labels = jax.random.randint(jax.random.key(2), (num,), 0, 10)
    positions = (1024, 1024, 256, 256, 64, 64, 4)
    flops, gram_flops = 20.0 * num * channels[-1], 2.0 * num * channels[-1] ** 2
    for place, number in enumerate(positions):
        fan_in = 9 * channels[place]
        flops += 2.0 * num * number * fan_in * channels[place + 1]
        gram_flops += 2.0 * num * number * fan_in**2
    return Network(predict, params, (inputs, labels), flops, gram_flops)


def block_sizes(is_full: bool) -> tuple[int, int, int, int]:
    """Return examples, tokens, width and heads."""
    return (64, 128, 1024, 16) if is_full else (4, 8, 32, 4)


def transformer(is_full: bool) -> Network:
    """One block, the mean over tokens and a dense layer."""
    import jax

    num, tokens, width, _ = block_sizes(is_full)
    shapes = {name: (width, width) for name in ("query", "key", "value", "out")}
    shapes |= {"up": (width, 4 * width), "down": (4 * width, width), "head": (width, 10)}
    params = {
        name: jax.random.normal(jax.random.key(place), shape) / np.sqrt(shape[0])
        for place, (name, shape) in enumerate(shapes.items())
    }
    inputs = jax.random.normal(jax.random.key(10), (num, tokens, width))
    labels = jax.random.randint(jax.random.key(11), (num,), 0, 10)
    num_tokens = num * tokens
    flops = 2.0 * num_tokens * (12 * width**2 + 2 * tokens * width)
    gram_flops = 2.0 * num_tokens * (6 * width**2 + (4 * width) ** 2)
    predict = block_of_many if is_full else block_of_few
    return Network(predict, params, (inputs, labels), flops, gram_flops)


def block_of(num_heads: int, params: Any, hidden: Any) -> Any:
    """Attention and a perceptron with residuals: logits (batch, 10) of tokens (batch, T, width)."""
    import jax
    import jax.numpy as jnp

    def normal(x: Any) -> Any:
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)

    def heads(x: Any) -> Any:
        return x.reshape(*x.shape[:-1], num_heads, -1)

    x = normal(hidden)
    query, key, value = (heads(x @ params[name]) for name in ("query", "key", "value"))
    scores = jnp.einsum("bthk,bshk->bhts", query, key) / np.sqrt(query.shape[-1])
    mixed = jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(scores), value)
    hidden = hidden + mixed.reshape(hidden.shape) @ params["out"]
    hidden = hidden + jax.nn.gelu(normal(hidden) @ params["up"]) @ params["down"]
    return hidden.mean(axis=1) @ params["head"]


def curvature(make: Callable[[bool], Network], work: Work) -> None:
    """Time the diagonals of a network; small, only two, since compiling is what they cost then."""
    import jax

    from jaxcomp.adapters import CrossEntropyLoss
    from jaxcomp.curvature import GaussNewton, Hutchinson, layer_hessians

    network = make(work.is_full)
    predict, params, batch = network.predict, network.params, network.batch
    loss, key = CrossEntropyLoss(predict), jax.random.key(3)
    num_probes, num_labels = (16, 8) if work.is_full else (2, 2)
    with jax.default_matmul_precision("highest"):
        gradient = jax.jit(jax.grad(loss))
        work.time(
            "gradient",
            lambda: gradient(params, batch),
            rate=(3 * network.flops, "flop"),
            least=(3 * network.flops, "float32"),
        )
        hutchinson = Hutchinson(loss, params, key=key, num_probes=num_probes)
        work.time(
            "Hutchinson, a probe",
            lambda: hutchinson(batch),
            per_call=num_probes,
            against="gradient",
        )
        exact = GaussNewton(predict, params)
        work.time("Gauss-Newton, exact", lambda: exact(batch), against="gradient")
        if not work.is_full:
            return
        sampled = GaussNewton(predict, params, num_label_samples=num_labels, key=key)
        work.time(
            "Gauss-Newton, a sampled label",
            lambda: sampled(batch),
            per_call=num_labels,
            against="gradient",
        )
        work.time(
            "layer Hessians",
            lambda: [h.hessian for h in layer_hessians(predict, params, [batch]).values()],
            against="gradient",
            rate=(network.gram_flops, "flop"),
            least=(network.gram_flops, "float32"),
        )


block_of_few, block_of_many = partial(block_of, 4), partial(block_of, 16)


def torch_part(work: Work) -> None:
    """The same networks at weights of their own.

    Batch normalization is left out: at the beginning it divides by 1.
    """
    import torch

    # The results of the products are to be as exact as in the parts that they are compared with.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)

    def ready(result: Any) -> Any:
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    work.ready = ready
    num, channels = conv_sizes(work.is_full)
    layers: list[Any] = []
    for place, (before, after) in enumerate(pairwise(channels)):
        layers += [torch.nn.Conv2d(before, after, 3, padding=int(place < 6), bias=False)]
        layers += [torch.nn.ReLU(), *[torch.nn.MaxPool2d(2)] * (place in (1, 3, 5, 6))]
    model = torch.nn.Sequential(
        *layers, torch.nn.Flatten(), torch.nn.Linear(channels[-1], 10, bias=False)
    ).to(device)
    inputs = torch.randn(num, 3, 32, 32, device=device)
    labels = torch.randint(10, (num,), device=device)
    double_backward(work, "convolution", model, list(model.parameters()), inputs, labels)
    num, tokens, width, num_heads = block_sizes(work.is_full)
    shapes = [(width, width)] * 4 + [(width, 4 * width), (4 * width, width), (width, 10)]
    params = [
        (torch.randn(shape, device=device) / shape[0] ** 0.5).requires_grad_() for shape in shapes
    ]
    tokens_in = torch.randn(num, tokens, width, device=device)
    labels = torch.randint(10, (num,), device=device)
    block = partial(torch_block, num_heads, params)
    double_backward(work, "transformer", block, params, tokens_in, labels)

    from backpack import backpack, extend
    from backpack.extensions import DiagGGNExact, DiagGGNMC

    model, loss_fn = extend(model), extend(torch.nn.CrossEntropyLoss())
    images, labels = inputs, torch.randint(10, (len(inputs),), device=device)
    for name, extension, number in (
        ("BackPACK, sampled labels", DiagGGNMC(mc_samples=8), 8),
        ("BackPACK, exact", DiagGGNExact(), 1),
    ):

        def run(extension: Any = extension) -> Any:
            model.zero_grad()
            with backpack(extension):
                loss_fn(model(images), labels).backward()

        work.time(f"convolution, {name}", run, per_call=number, against="convolution, gradient")


def torch_block(num_heads: int, params: list[Any], hidden: Any) -> Any:
    """The transformer block, in PyTorch."""
    from torch.nn import functional

    query, key, value, out, up, down, head = params
    x = functional.layer_norm(hidden, hidden.shape[-1:])
    q, k, v = ((x @ w).unflatten(-1, (num_heads, -1)).transpose(1, 2) for w in (query, key, value))
    scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    hidden = hidden + (scores @ v).transpose(1, 2).flatten(2) @ out
    x = functional.layer_norm(hidden, hidden.shape[-1:])
    hidden = hidden + functional.gelu(x @ up, approximate="tanh") @ down
    return hidden.mean(1) @ head


def double_backward(
    work: Work, name: str, model: Any, params: list[Any], inputs: Any, labels: Any
) -> None:
    """Time a gradient, and Hutchinson's probes of the gradient's kept graph."""
    num_probes = 16 if work.is_full else 2
    data = model, params, inputs, labels
    against = f"{name}, gradient"
    work.time(against, torch_peers.gradient(*data))
    work.time(
        f"{name}, double backward, a probe",
        torch_peers.double_backward(*data, num_probes),
        per_call=num_probes,
        against=against,
    )
