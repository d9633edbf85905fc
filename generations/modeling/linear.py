"""Linear layers, by the faster of two libraries on a CPU.

torch gives float32 products to MKL, which on CPUs of other makers than Intel leaves the wide vector
units unused; oneDNN, which is in torch as well, uses them and takes less than half the time. The
sums are taken in another order, so results differ by rounding.
"""

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LIBRARIES = ("auto", "torch", "onednn")
# of a weight; below, the calls cost more than the products
_WORTH_IT = 2**15


class Linear(nn.Linear):
    """`nn.Linear` by a chosen library: (..., I) -> (..., O).

    Attributes:
        library: torch, onednn, or auto: what is faster on this machine.
    """

    library = "auto"

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias, self.library)


def linear(
    states: Tensor, weight: Tensor, bias: Tensor | None = None, library: str = "auto"
) -> Tensor:
    """states @ weight.T + bias, as `F.linear`.

    Args:
        states: (..., I).
        weight: (O, I).
        bias: (O,) or None.
        library: one of `LIBRARIES`. Small weights, other devices and types, autocast and
            compilation are torch's in any case.
    """
    if library == "torch" or not _fits(states, weight):
        return F.linear(states, weight, bias)
    if library == "auto" and not prefers_onednn():
        return F.linear(states, weight, bias)
    return _OneDnn.apply(states, weight, bias)


def choose_library(model: nn.Module, library: str) -> None:
    """Let all layers of a model use a library of `LIBRARIES`."""
    if library not in LIBRARIES:
        raise ValueError(f"library must be one of {', '.join(LIBRARIES)}, not {library!r}")
    for module in model.modules():
        if isinstance(module, Linear):
            module.library = library


@cache
def prefers_onednn() -> bool:
    """Whether this CPU has 512-bit vectors that MKL does not use.

    It is read off the machine and not timed: a run that is continued must round as before.
    """
    return (
        has_onednn()
        and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        and "GenuineIntel" not in _maker()
    )


@cache
def has_onednn() -> bool:
    """Whether this build of torch has the product that is used here."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        one = torch.ones(1, 1)
        return bool(_product(one, one) == 1)
    except (RuntimeError, AttributeError):  # not in this version of torch
        return False


def _maker() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()


def _fits(states: Tensor, weight: Tensor) -> bool:
    return (
        states.device.type == "cpu"
        and states.dtype == weight.dtype == torch.float32
        and weight.numel() >= _WORTH_IT
        and states.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and has_onednn()
    )


def _product(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(M, I), (O, I) of any strides -> (M, O)."""
    return torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")


class _OneDnn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(states, weight)
        flat = states.reshape(-1, states.shape[-1])
        return _product(flat, weight, bias).view(*states.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        states, weight = ctx.saved_tensors
        gradient = gradients[0].reshape(-1, weight.shape[0])  # (M, O)
        for_states = for_weight = for_bias = None
        if ctx.needs_input_grad[0]:
            for_states = _product(gradient, weight.t()).view(states.shape)
        if ctx.needs_input_grad[1]:
            flat = states.reshape(-1, states.shape[-1])
            for_weight = _product(gradient.t(), flat.t())  # (O, I)
        if ctx.needs_input_grad[2]:
            for_bias = gradient.sum(0)
        return for_states, for_weight, for_bias
