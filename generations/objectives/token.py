"""Stage 1, token level: predict one word, or a random set of grid tokens. Source: SPEC 6."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from generations.batch import Batch, sizes_repeat, to_device
from generations.modeling import UnifiedTransformer, visual_input
from generations.objectives.losses import BERT_CLASSES, IGNORED, label_smoothing_loss
from generations.runtime.graphs import at_once
from generations.vocabulary import PAD

# how a function of a network and tensors runs: the network, a name, the function, the tensors
Run = Callable[[UnifiedTransformer, str, Callable[..., Tensor], Sequence[Tensor]], Tensor]

CELLS_AT_ONCE = 8  # a sample; the head's rows are a multiple of these on a GPU


def xe_i2t_loss(
    model: UnifiedTransformer,
    batch: Batch,
    mask_positions: Tensor | None = None,
    *,
    smoothing: float = 0.2,
    classes: int | None = BERT_CLASSES,
    dense: bool = True,
    run: Run = at_once,
) -> Tensor:
    """Image -> text: predict the word behind the [MASK], seeing the words before it.

    Args:
        model: the network.
        batch: B samples; `masked_text_ids` holds [MASK] at `mask_positions`.
        mask_positions: (B,) where the [MASK] is; default: the batch's.
        smoothing: label smoothing.
        classes: what it is spread over; None: the model's vocabulary.
        dense: read dense features rather than codebook rows.
        run: how what is computed on the device runs.

    Returns:
        Scalar mean over the batch.
    """
    ((kind, content),) = visual_input(batch, dense).items()

    def loss(
        model: UnifiedTransformer, content: Tensor, text_ids: Tensor, masked: Tensor, where: Tensor
    ) -> Tensor:
        places = torch.arange(masked.shape[1], device=masked.device)
        text_mask = model.visible(masked, places <= where[:, None])  # (B, T)
        vision = model.encode_vision(**{kind: content})
        text = model.encode_text(masked, text_mask)
        _, state = model.fuse(vision, text, text_mask, read="text", text_positions=where[:, None])
        targets = text_ids.gather(1, where[:, None])[:, 0]
        logits = model.text_logits(state[:, 0])
        return label_smoothing_loss(logits, targets, smoothing, classes=classes)

    positions = batch.mask_positions if mask_positions is None else mask_positions
    tensors = (content, batch.text_ids, batch.masked_text_ids, positions)
    return run(model, "xe_i2t", loss, tensors)


def xe_t2i_loss(
    model: UnifiedTransformer,
    batch: Batch,
    visual_positions: Tensor,
    *,
    smoothing: float = 0.2,
    dense: bool = False,
    run: Run = at_once,
) -> Tensor:
    """Text -> image: predict the cluster ids of the masked grid tokens, seeing the others.

    Args:
        model: the network.
        batch: B samples.
        visual_positions: (m,) positions masked in every sample, or (B, N) bool, each sample's own;
            on the CPU, so that nobody waits for a GPU to learn how many they are.
        smoothing: label smoothing.
        dense: read dense features rather than codebook rows.
        run: how what is computed on the device runs.

    Returns:
        Scalar mean over all predicted positions.
    """
    rows = masked_cells(visual_positions, *batch.cluster_ids.shape)  # (M,) of B * N
    targets = batch.cluster_ids.flatten()
    index = to_device(rows, targets.device)
    # not by a mask: how many it holds would have to be asked
    visual_mask = torch.zeros_like(targets, dtype=torch.bool).index_fill(0, index, True)
    visual_mask = visual_mask.view_as(batch.cluster_ids)
    targets = targets[index]
    if sizes_repeat(targets.device):
        index, targets = repeating_size(index, targets, CELLS_AT_ONCE * len(batch))
    ((kind, content),) = visual_input(batch, dense).items()

    def loss(
        model: UnifiedTransformer,
        content: Tensor,
        text_ids: Tensor,
        visual_mask: Tensor,
        index: Tensor,
        targets: Tensor,
    ) -> Tensor:
        text_mask = text_ids != PAD
        vision = model.encode_vision(**{kind: content}, visual_mask=visual_mask)
        text = model.encode_text(text_ids, text_mask)
        vision, _ = model.fuse(vision, text, text_mask, read="vision")
        # the head runs only where something is predicted: (M, H) -> (M, K)
        logits = model.image_logits(vision.flatten(0, 1)[index])
        return label_smoothing_loss(logits, targets, smoothing)

    return run(model, "xe_t2i", loss, (content, batch.text_ids, visual_mask, index, targets))


def masked_cells(positions: Tensor, batch_size: int, cells: int) -> Tensor:
    """Rows (M,) of B * N, ascending, of positions as `xe_t2i_loss` takes them."""
    if positions.dtype != torch.bool:
        mask = torch.zeros(cells, dtype=torch.bool)
        mask[positions] = True
        positions = mask.expand(batch_size, -1)
    return positions.flatten().nonzero()[:, 0]


def repeating_size(index: Tensor, targets: Tensor, multiple: int) -> tuple[Tensor, Tensor]:
    """Lengthen (M,) both to a multiple, by rows that do not count; their number repeats so."""
    more = -len(index) % multiple
    return F.pad(index, (0, more)), F.pad(targets, (0, more), value=IGNORED)
