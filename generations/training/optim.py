"""Optimiser, learning-rate schedule, and the original's zero-gradient rule. Source: SPEC 5."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True)
class SolverSettings:
    """AdamW and its schedule."""

    optimizer: str = "adamw"
    lr: float = 5e-5
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    grad_clip: float = 1.0
    schedule: str = "WarmupCosineSchedule"
    warmup_steps: int = 10000
    max_steps: int = 200000


def build_optimizer(model: nn.Module, settings: SolverSettings) -> Optimizer:
    """AdamW over all parameters in one group, weight decay on everything.

    The frozen codebook is among them, as in released checkpoints; without a gradient it is never
    touched.
    """
    parameters = list(model.parameters())
    arguments: dict[str, Any] = {
        "lr": settings.lr,
        "betas": tuple(settings.betas),
        "eps": settings.eps,
        "weight_decay": settings.weight_decay,
    }
    if settings.optimizer == "adamw_transformers":
        return AdamWTransformers(parameters, **arguments)
    return AdamW(parameters, **arguments, fused=True)


def build_scheduler(optimizer: Optimizer, settings: SolverSettings) -> LambdaLR:
    """Linear warm-up then cosine to 0 at max_steps, or a constant rate. The first step has rate 0
    when there is a warm-up.
    """
    if settings.schedule == "ConstantLRSchedule":
        return LambdaLR(optimizer, lambda step: 1.0)
    warmup, total = settings.warmup_steps, settings.max_steps

    def factor(step: int) -> float:
        if step < warmup:
            return step / max(1, warmup)
        progress = (step - warmup) / max(1, total - warmup)
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))

    return LambdaLR(optimizer, factor)


def fill_absent_gradients(model: nn.Module, joined: set[str]) -> None:
    """Give the parameters of `absent_gradients` their zeros."""
    give_zeros(absent_gradients(model, joined))


def absent_gradients(model: nn.Module, joined: set[str]) -> list[nn.Parameter]:
    """Parameters that this iteration did not use, and whose gradient is zero all the same.

    In the original every parameter has a gradient in every iteration, so AdamW moves and decays
    the ones a task did not use as well. Exceptions are `pooler.*` and
    `classifier.seq_relationship.*`, which no loss reads, and the frozen codebook; `mask_feat`
    joins at its first gradient.

    Args:
        model: after the backward pass.
        joined: names of parameters that had a gradient before; kept by the caller, updated here.
    """
    absent = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or name.startswith(_NEVER_READ):
            continue
        if parameter.grad is not None:
            joined.add(name)
        elif name in joined or name != "mask_feat":
            absent.append(parameter)
    return absent


def give_zeros(parameters: Sequence[nn.Parameter], zeros: Tensor | None = None) -> Tensor | None:
    """Zero gradients that are all views of one array; nobody may write into them.

    Args:
        parameters: of one device, without gradients.
        zeros: what an earlier call returned, to be used again where it is large enough.

    Returns:
        the array; None: nobody needed one.
    """
    plain = [parameter for parameter in parameters if type(parameter) is nn.Parameter]
    size = max(map(torch.numel, plain), default=0)
    if size and (zeros is None or len(zeros) < size or zeros.device != plain[0].device):
        zeros = plain[0].new_zeros(size)
    for parameter in parameters:
        if type(parameter) is nn.Parameter:
            assert zeros is not None
            parameter.grad = zeros[: parameter.numel()].view_as(parameter)
        else:  # FSDP's
            parameter.grad = torch.zeros_like(parameter)
    return zeros


_NEVER_READ = ("pooler.", "classifier.seq_relationship.")


class AdamWTransformers(Optimizer):
    """AdamW as in transformers 4.1, which trained the original.

    It differs from torch's: eps is added to the root of the second moment before the bias
    correction, and the decay comes after the update.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 5e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ):
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = 0
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] += 1
                first, second, step = state["exp_avg"], state["exp_avg_sq"], state["step"]
                first.lerp_(gradient, 1 - beta1)
                second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                rate = group["lr"] * math.sqrt(1 - beta2**step) / (1 - beta1**step)
                parameter.addcdiv_(first, second.sqrt().add_(group["eps"]), value=-rate)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
