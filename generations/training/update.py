"""One update of the weights from their gradients. Source: SPEC 5."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from generations.runtime import clip_gradients
from generations.training.optim import absent_gradients, give_zeros


def apply_gradients(
    model: nn.Module,
    optimizer: Optimizer,
    joined: set[str],
    grad_clip: float,
    scaler: torch.amp.GradScaler | None = None,
    wait: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """Clip, fill, step unless the gradients are not finite, and drop them.

    On a GPU the kernel of the fused AdamW reads there whether to leave weights and moments alone,
    so that nobody waits for the norm.

    Args:
        model: after the backward pass.
        optimizer: of its parameters.
        joined: as of `absent_gradients`.
        grad_clip: largest norm; 0 does not clip.
        scaler: of the loss, if its gradients were scaled.
        wait: for the norm, on the host; None: where the optimiser cannot decide on the device.

    Returns:
        the norm before clipping, and whether it is finite and the weights were updated; scalars on
        the gradients' device.
    """
    absent = absent_gradients(model, joined)
    if scaler is not None:
        scaler.unscale_(optimizer)
    norm = clip_gradients(model.parameters(), grad_clip, absent)
    # kept with the optimiser: AdamW reads these zeros, and nothing writes them in any iteration
    zeros = give_zeros(absent, getattr(optimizer, "zeros", None))
    optimizer.zeros = zeros  # type: ignore[attr-defined]
    finite = torch.isfinite(norm)
    if wait is None:
        wait = not _decides_on_device(model, optimizer, scaler)
    if not wait:
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.found_inf  # type: ignore[attr-defined]
    elif bool(finite):
        optimizer.step() if scaler is None else scaler.step(optimizer)
    if scaler is not None:
        scaler.update()  # it learns from a skipped one as well
    optimizer.zero_grad(set_to_none=True)
    return norm, finite


def _decides_on_device(
    model: nn.Module, optimizer: Optimizer, scaler: torch.amp.GradScaler | None
) -> bool:
    """Whether the optimiser's kernel can be told by a tensor to do nothing."""
    if scaler is not None and scaler.is_enabled():
        return False  # it reads back itself
    parameters = list(model.parameters())
    return (
        parameters[0].is_cuda
        and bool(getattr(optimizer, "_step_supports_amp_scaling", False))
        # not those that FSDP has sharded
        and all(type(parameter) is nn.Parameter for parameter in parameters)
    )
