"""Text -> image: iterative mask-predict over the grid tokens. Source: SPEC 7, paper section 3.4."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from generations.modeling import UnifiedTransformer
from generations.vocabulary import PAD


@dataclass(frozen=True)
class PaintingStep:
    """One step of mask-predict.

    Attributes:
        logits: (B, N, K) image logits of this step's prediction.
        masked: (B, N) bool, the positions that were masked, and so are written, in this step.
        cluster_ids: (B, N) the tokens after this step.
    """

    logits: Tensor
    masked: Tensor
    cluster_ids: Tensor


@torch.no_grad()
def image_tokens(model: UnifiedTransformer, text_ids: Tensor, steps: int = 4) -> Tensor:
    """Greedy grid tokens.

    Args:
        model: its mode decides about dropout; call `eval()` first for reproducible pictures.
        text_ids: (B, T) captions as [CLS] ... [SEP] PAD.
        steps: number of mask-predict steps, at least 1.

    Returns:
        (B, N) cluster ids.
    """
    *_, last = painting_steps(model, text_ids, steps)
    return last.cluster_ids


def painting_steps(
    model: UnifiedTransformer, text_ids: Tensor, steps: int = 4, recompute: bool = False
) -> Iterator[PaintingStep]:
    """The steps of mask-predict, one after the other; gradients follow the caller's grad mode.

    All positions start masked. A step predicts every position and writes the masked ones; then the
    n least certain of all positions are masked again, n falling linearly to 0. The language stream
    does not depend on the picture and is computed once.

    Args:
        model: the network.
        text_ids: (B, T) captions as [CLS] ... [SEP] PAD.
        steps: number of mask-predict steps, at least 1.
        recompute: keep no activations of a step for the backward pass, which runs the step again
            with the same dropout.
    """
    text_mask = text_ids != PAD
    text = model.encode_text(text_ids, text_mask)
    cells = model.size.grid_size**2
    masked = torch.ones(len(text_ids), cells, dtype=torch.bool, device=text_ids.device)
    cluster_ids = torch.zeros_like(masked, dtype=torch.long)
    for step in range(steps):
        inputs = (model, text, text_mask, cluster_ids, masked)
        logits = (
            checkpoint(predict, *inputs, use_reentrant=False) if recompute else predict(*inputs)
        )
        certainty, predicted = logits.detach().softmax(-1).max(-1)  # (B, N)
        cluster_ids = torch.where(masked, predicted, cluster_ids)
        yield PaintingStep(logits, masked, cluster_ids)
        again = int((steps - (step + 1)) / steps * cells)
        if again == 0:
            return
        masked = torch.zeros_like(masked).scatter(1, least(certainty, again), True)


def predict(
    model: UnifiedTransformer, text: Tensor, text_mask: Tensor, cluster_ids: Tensor, masked: Tensor
) -> Tensor:
    """Image logits (B, N, K) of a partly masked grid, given the language stream (B, T, H)."""
    vision = model.encode_vision(cluster_ids=cluster_ids, visual_mask=masked)
    vision, _ = model.fuse(vision, text, text_mask, read="vision")
    return model.image_logits(vision)


def least(values: Tensor, count: int) -> Tensor:
    """Indices (B, count) of the smallest of values (B, N)."""
    return values.topk(count, dim=1, largest=False).indices
