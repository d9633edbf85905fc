"""Stage 1, token level: predict one word, or a random set of grid tokens. Source: SPEC 6."""

import torch
from torch import Tensor

from generations.batch import Batch
from generations.modeling import UnifiedTransformer, visual_input
from generations.objectives.losses import BERT_CLASSES, label_smoothing_loss
from generations.vocabulary import PAD


def xe_i2t_loss(
    model: UnifiedTransformer,
    batch: Batch,
    mask_positions: Tensor | None = None,
    *,
    smoothing: float = 0.2,
    classes: int | None = BERT_CLASSES,
    dense: bool = True,
) -> Tensor:
    """Image -> text: predict the word behind the [MASK], seeing the words before it.

    Args:
        model: the network.
        batch: B samples; `masked_text_ids` holds [MASK] at `mask_positions`.
        mask_positions: (B,) where the [MASK] is; default: the batch's.
        smoothing: label smoothing.
        classes: what it is spread over; None: the model's vocabulary.
        dense: read dense features rather than codebook rows.

    Returns:
        Scalar mean over the batch.
    """
    positions = batch.mask_positions if mask_positions is None else mask_positions
    text_ids = batch.masked_text_ids
    places = torch.arange(text_ids.shape[1], device=text_ids.device)
    text_mask = model.visible(text_ids, places <= positions[:, None])  # (B, T)
    vision = model.encode_vision(**visual_input(batch, dense))
    text = model.encode_text(text_ids, text_mask)
    _, state = model.fuse(vision, text, text_mask, read="text", text_positions=positions[:, None])
    targets = batch.text_ids.gather(1, positions[:, None])[:, 0]
    return label_smoothing_loss(model.text_logits(state[:, 0]), targets, smoothing, classes=classes)


def xe_t2i_loss(
    model: UnifiedTransformer,
    batch: Batch,
    visual_positions: Tensor,
    *,
    smoothing: float = 0.2,
    dense: bool = False,
) -> Tensor:
    """Text -> image: predict the cluster ids of the masked grid tokens, seeing the others.

    Args:
        model: the network.
        batch: B samples.
        visual_positions: (m,) positions masked in every sample, or (B, N) bool, each sample's own.
        smoothing: label smoothing.
        dense: read dense features rather than codebook rows.

    Returns:
        Scalar mean over all predicted positions.
    """
    if visual_positions.dtype == torch.bool:
        visual_mask = visual_positions
    else:
        visual_mask = torch.zeros_like(batch.cluster_ids, dtype=torch.bool)
        visual_mask[:, visual_positions] = True
    text_mask = batch.text_ids != PAD
    vision = model.encode_vision(**visual_input(batch, dense), visual_mask=visual_mask)
    text = model.encode_text(batch.text_ids, text_mask)
    vision, _ = model.fuse(vision, text, text_mask, read="vision")
    # the head runs only where something is predicted: (M, H) -> (M, K)
    logits = model.image_logits(vision[visual_mask])
    return label_smoothing_loss(logits, batch.cluster_ids[visual_mask], smoothing)
