"""One update of the weights from their gradients. Source: SPEC 5."""

from torch import Tensor, nn
from torch.optim import Optimizer

from generations.runtime import clip_gradients
from generations.training.optim import fill_absent_gradients


def apply_gradients(
    model: nn.Module, optimizer: Optimizer, joined: set[str], grad_clip: float
) -> Tensor:
    """Fill, clip, step, and drop the gradients.

    Args:
        model: after the backward pass.
        optimizer: of its parameters.
        joined: as of `fill_absent_gradients`.
        grad_clip: largest norm; 0 does not clip.

    Returns:
        the norm before clipping.
    """
    fill_absent_gradients(model, joined)
    norm = clip_gradients(model.parameters(), grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
