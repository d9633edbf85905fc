"""Text -> image: iterative mask-predict over the grid tokens. Source: SPEC 7, paper section 3.4."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from generations.batch import to_device
from generations.decoding.orders import Guidance, Order
from generations.decoding.sampling import choose_tokens
from generations.modeling import UnifiedTransformer
from generations.vocabulary import EMPTY, PAD

SCHEDULES = ("linear", "cosine")
PAPER_ORDER, UNGUIDED = Order(), Guidance()


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
def image_tokens(
    model: UnifiedTransformer,
    text_ids: Tensor,
    steps: int = 4,
    schedule: str = "linear",
    temperature: float = 0.0,
    uniforms: Tensor | None = None,
    order: Order = PAPER_ORDER,
    guidance: Guidance = UNGUIDED,
) -> Tensor:
    """Grid tokens, greedy unless a temperature is given.

    Args:
        model: its mode decides about dropout; call `eval()` first for reproducible pictures.
        text_ids: (B, T) captions as [CLS] ... [SEP] PAD.
        steps: number of mask-predict steps, at least 1.
        schedule: see `cells_again`.
        temperature: see `painting_steps`, as are uniforms, order and guidance.

    Returns:
        (B, N) cluster ids; with uniforms (B * S, N), the S of a caption one after the other.
    """
    *_, last = painting_steps(
        model, text_ids, steps, False, schedule, temperature, uniforms, order, guidance
    )
    return last.cluster_ids


def painting_steps(
    model: UnifiedTransformer,
    text_ids: Tensor,
    steps: int = 4,
    recompute: bool = False,
    schedule: str = "linear",
    temperature: float = 0.0,
    uniforms: Tensor | None = None,
    order: Order = PAPER_ORDER,
    guidance: Guidance = UNGUIDED,
) -> Iterator[PaintingStep]:
    """The steps of mask-predict, one after the other; gradients follow the caller's grad mode.

    All positions start masked. A step predicts every position and writes the masked ones; then the
    n least certain of all positions are masked again, n falling to 0 (or others: see `Order`). The
    language stream does not depend on the picture and is computed once, as is that of the empty
    caption, with which a guided step predicts in the same batch.

    A cell's certainty is the model's probability of its token where one was written in this step,
    and of the likeliest token elsewhere; without sampling the two are the same.

    Args:
        model: the network.
        text_ids: (B, T) captions as [CLS] ... [SEP] PAD.
        steps: number of mask-predict steps, at least 1.
        recompute: keep no activations of a step for the backward pass, which runs the step again
            with the same dropout.
        schedule: how n falls; see `cells_again`.
        temperature: the tokens are drawn from the prediction at this temperature; 0: the likeliest.
        uniforms: (B, S, steps, N) in [0, 1) of `draw_uniforms`, which the drawing needs: S pictures
            of each caption, in B * S rows.
        order: which cells are masked again; where it is drawn, its numbers say S as well.
        guidance: how much the caption counts, in all logits.
    """
    if temperature and uniforms is None:
        raise ValueError("with a temperature above 0, pass `uniforms` (see draw_uniforms)")
    text_mask = text_ids != PAD
    text = model.encode_text(text_ids, text_mask)
    drawn_by = order.uniforms if uniforms is None else uniforms
    if drawn_by is not None:
        text, text_mask = (x.repeat_interleave(drawn_by.shape[1], 0) for x in (text, text_mask))
    if uniforms is not None:
        uniforms = to_device(uniforms, text_ids.device).flatten(0, 1)  # (B * S, steps, N)
    cells = model.size.grid_size**2
    masked = torch.ones(len(text), cells, dtype=torch.bool, device=text_ids.device)
    cluster_ids = torch.zeros_like(masked, dtype=torch.long)
    if guidance.scale:
        text, text_mask = beside_empty(model, text, text_mask)  # (2 * B * S, ...)
    for step in range(steps):
        scale = guidance.at(step, steps)
        inputs = (model, text, text_mask, cluster_ids, masked, scale)
        logits = (
            checkpoint(predict, *inputs, use_reentrant=False) if recompute else predict(*inputs)
        )
        chances = logits.detach().softmax(-1)
        certainty, predicted = chances.max(-1)  # (B, N)
        if temperature and uniforms is not None:
            predicted = choose_tokens(logits.detach(), uniforms[:, step], temperature)
            drawn = chances.gather(-1, predicted[..., None]).squeeze(-1)
            certainty = torch.where(masked, drawn, certainty)
        cluster_ids = torch.where(masked, predicted, cluster_ids)
        yield PaintingStep(logits, masked, cluster_ids)
        again = cells_again(step, steps, cells, schedule)
        if again == 0:
            return
        masked = torch.zeros_like(masked).scatter(
            1, least(order.standing(certainty, step, steps), again), True
        )


def cells_again(step: int, steps: int, cells: int, schedule: str = "linear") -> int:
    """How many of the cells are masked again after a step (from 0), falling to 0.

    Args:
        schedule: linear, of the paper; or cosine, which settles few cells at first and many later.

    Source: SPEC 7; Chang et al. 2022 (MaskGIT), section 3.3.
    """
    if schedule == "cosine":
        return int(math.cos(math.pi / 2 * (step + 1) / steps) * cells)
    if schedule != "linear":
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, not {schedule!r}")
    return int((steps - (step + 1)) / steps * cells)


def beside_empty(
    model: UnifiedTransformer, text: Tensor, text_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """A language stream (B, T, H) and its mask, and below them the empty caption's as often."""
    ids = to_device(torch.tensor([EMPTY]), text.device)
    alone = model.encode_text(ids, None)  # (1, 2, H)
    empty = torch.zeros_like(text)  # what the mask hides is never read
    empty[:, : len(EMPTY)] = alone
    seen = torch.zeros_like(text_mask)
    seen[:, : len(EMPTY)] = True
    return torch.cat([text, empty]), torch.cat([text_mask, seen])


def predict(
    model: UnifiedTransformer,
    text: Tensor,
    text_mask: Tensor,
    cluster_ids: Tensor,
    masked: Tensor,
    scale: float = 0.0,
) -> Tensor:
    """Image logits (B, N, K) of a partly masked grid.

    Args:
        text: (B, T, H) the language stream; for guidance (2 * B, T, H), the empty caption's below.
        scale: of the guidance.
    """
    vision = model.encode_vision(cluster_ids=cluster_ids, visual_mask=masked)
    if scale:
        vision = torch.cat([vision, vision])
    vision, _ = model.fuse(vision, text, text_mask, read="vision")
    logits = model.image_logits(vision)
    if scale:
        logits, wordless = logits.chunk(2)
        logits = logits + scale * (logits - wordless)
    return logits


def least(values: Tensor, count: int) -> Tensor:
    """Indices (B, count) of the smallest of values (B, N)."""
    return values.topk(count, dim=1, largest=False).indices
