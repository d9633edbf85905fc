"""Image -> text, left to right: predict a [MASK] at each position. Source: SPEC 7.

A key/value cache of the prefix would not be exact, because earlier positions attend to the current
[MASK]. What is reused and left out instead: the visual stream is computed once per image, hidden
positions are not computed, the head runs at one position, and ended captions leave the batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from generations.modeling import UnifiedTransformer
from generations.vocabulary import CLS, EOS, MASK, PAD, SEP

Choice = Callable[[Tensor], Tensor]  # logits (B, V) -> ids (B,)


@torch.no_grad()
def caption_tokens(
    model: UnifiedTransformer,
    features: Tensor | None = None,
    cluster_ids: Tensor | None = None,
    text_length: int = 17,
    steps: int | None = None,
) -> Tensor:
    """Greedy captions.

    Args:
        model: its mode decides about dropout; call `eval()` first for reproducible captions.
        features: (B, N, D) dense grid features; or
        cluster_ids: (B, N) ids that are looked up in the codebook.
        text_length: L.
        steps: how many positions to write at most; default T - 1, the whole sequence. Give L - 1
            when the caption is cropped to L ids anyway.

    Returns:
        (B, T) ids, T = L + 1: CLS, the caption up to its first EOS, PAD. A caption that did not
        end keeps what was written at every position; positions beyond `steps` are PAD.
    """
    vision = model.encode_vision(features, cluster_ids)
    return decode(model, vision, text_length, steps or text_length, _argmax)


def decode(
    model: UnifiedTransformer, vision: Tensor, text_length: int, steps: int, choose: Choice
) -> Tensor:
    """Write captions with a given choice at each position.

    Args:
        vision: (B, N, H) from `encode_vision`.
        text_length: L.
        steps: positions 1..steps are written, at most L.
        choose: picks the next ids (B,) from logits (B, V).

    Returns:
        (B, T) ids as in `caption_tokens`.
    """
    ids = blank_caption(len(vision), text_length, vision.device)  # (B, T)
    written = torch.zeros_like(ids)
    written[:, 0] = CLS
    active = torch.arange(len(vision), device=vision.device)
    for step in range(1, steps + 1):
        chosen = choose(next_logits(model, vision, ids, step))
        ids[:, step] = chosen
        written[active, step] = chosen
        going = chosen != EOS
        if not going.all():
            # ended captions leave the batch
            active, vision, ids = active[going], vision[going], ids[going]
        if not len(active):
            break
    return written


def next_logits(model: UnifiedTransformer, vision: Tensor, ids: Tensor, step: int) -> Tensor:
    """Logits (B, V) of position `step`, which attends to the positions up to itself.

    Args:
        vision: (B, N, H) from `encode_vision`.
        ids: (B, T), written up to `step` - 1.
        step: in 1..T-1.
    """
    if not model.zeroshot:
        ids = ids[:, : step + 1]  # later positions are hidden: not computed at all
    # zero-shot sees every id > 0, and none of CLS, words, MASK and SEP is 0
    text = model.encode_text(ids, None)
    position = torch.full((len(ids), 1), step, device=ids.device)
    _, state = model.fuse(vision, text, None, read="text", text_positions=position)
    return model.text_logits(state[:, 0])


def blank_caption(batch: int, text_length: int, device: torch.device) -> Tensor:
    """[CLS] MASK ... MASK SEP: (B, T)."""
    ids = torch.full((batch, text_length + 1), MASK, device=device)
    ids[:, 0], ids[:, -1] = CLS, SEP
    return ids


def _argmax(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


def cut_after_eos(ids: Tensor) -> Tensor:
    """Replace everything after the first EOS by PAD: (B, S) -> (B, S), a new tensor."""
    ended_before = (ids == EOS).cumsum(1) - (ids == EOS).long() > 0
    return ids.masked_fill(ended_before, PAD)
