"""What PyTorch does by itself, for benchmarks to compare with: gradients, double backward."""

from collections.abc import Callable
from typing import Any


def gradient(
    model: Callable[..., Any], params: list[Any], inputs: Any, labels: Any
) -> Callable[[], Any]:
    """Return a call that takes one gradient of the cross-entropy."""
    import torch

    loss_fn = torch.nn.CrossEntropyLoss()
    return lambda: torch.autograd.grad(loss_fn(model(inputs), labels), params)


def double_backward(
    model: Callable[..., Any], params: list[Any], inputs: Any, labels: Any, num_probes: int
) -> Callable[[], Any]:
    """Return a call that draws Hutchinson's probes: the graph of the gradient is kept."""
    import torch

    loss_fn = torch.nn.CrossEntropyLoss()

    def diagonal() -> Any:
        loss = loss_fn(model(inputs), labels)
        found = torch.autograd.grad(loss, params, create_graph=True)
        mean = [torch.zeros_like(p) for p in params]
        for _ in range(num_probes):
            probe = [torch.randint_like(p, 2).mul_(2).sub_(1) for p in params]
            product = torch.autograd.grad(found, params, probe, retain_graph=True)
            for total, z, hessian_z in zip(mean, probe, product, strict=True):
                total.addcmul_(z, hessian_z, value=1 / num_probes)
        return mean

    return diagonal
