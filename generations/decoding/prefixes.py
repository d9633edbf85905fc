"""The next word of captions that are being written, in either way of captioning.

The paper's: every step encodes the words before and the [MASK] anew, because the image and the
words attend to the current [MASK]. The visual stream's own layers are computed once an image,
hidden positions are not computed, and the head runs at one position.

The causal one: keys and values stay, so that a step computes two positions.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from generations.batch import sizes_repeat
from generations.decoding.active import WORDS
from generations.modeling import UnifiedTransformer
from generations.modeling.cache import CaptionCache, next_word_logits, start_captions
from generations.modeling.visibility import upto
from generations.vocabulary import CLS, MASK, SEP


class Prefixes(Protocol):
    """The beginnings of R captions, as far as they are written."""

    def logits(self, ids: Tensor, step: int) -> Tensor:
        """Logits (R, V) of position `step`; the steps come one after the other, from 1 on.

        Args:
            ids: (R, T), written up to `step` - 1.
            step: in 1..T-1.
        """
        ...

    def rows(self, index: Tensor) -> "Prefixes":
        """The captions at `index`, ids (R',) or bool (R,); a caption may come several times."""
        ...


def open_prefixes(model: UnifiedTransformer, vision: Tensor, text_length: int) -> Prefixes:
    """One empty caption for each image.

    Args:
        model: its `causal` decides about the way.
        vision: (B, N, H) from `encode_vision`.
        text_length: L.
    """
    if model.causal:
        return _Cached(model, start_captions(model, vision, text_length + 1))
    return _Anew(model, vision)


@dataclass(frozen=True)
class _Anew:
    model: UnifiedTransformer
    vision: Tensor  # (R, N, H)

    def logits(self, ids: Tensor, step: int) -> Tensor:
        return next_logits(self.model, self.vision, ids, step)

    def rows(self, index: Tensor) -> "_Anew":
        return replace(self, vision=self.vision[index])


@dataclass(frozen=True)
class _Cached:
    model: UnifiedTransformer
    cache: CaptionCache

    def logits(self, ids: Tensor, step: int) -> Tensor:
        return next_word_logits(self.model, self.cache, ids[:, step - 1], step)

    def rows(self, index: Tensor) -> "_Cached":
        return replace(self, cache=self.cache.rows(index))


def next_logits(model: UnifiedTransformer, vision: Tensor, ids: Tensor, step: int) -> Tensor:
    """Logits (B, V) of position `step` in the paper's way: it attends to those up to itself.

    Args:
        vision: (B, N, H) from `encode_vision`.
        ids: (B, T), written up to `step` - 1.
        step: in 1..T-1.
    """
    steps = torch.full((len(ids),), step, device=ids.device)
    return prefix_logits(model, vision, ids, steps, step, alone=True)


def prefix_logits(
    model: UnifiedTransformer,
    vision: Tensor,
    ids: Tensor,
    steps: Tensor,
    longest: int,
    alone: bool = False,
) -> Tensor:
    """Logits (B, V), for each row of one position, which attends to the positions up to itself.

    Args:
        vision: (B, N, H) from `encode_vision`.
        ids: (B, T), row b written up to `steps[b]` - 1.
        steps: (B,) in 1..T-1.
        longest: the largest of the steps.
        alone: it is that of all rows.
    """
    seen = None
    if not model.zeroshot:  # there every id > 0 is seen, and none of CLS, words, MASK and SEP is 0
        length, padded = longest + 1, sizes_repeat(ids.device)
        if padded:
            length += -length % WORDS
        ids = ids[:, :length]  # later positions are hidden: not computed at all
        if padded or not alone:
            seen = upto(steps, ids.shape[1])
    text = model.encode_text(ids, seen)
    _, state = model.fuse(vision, text, seen, read="text", text_positions=steps[:, None])
    return model.text_logits(state[:, 0])


def blank_caption(batch: int, text_length: int, device: torch.device) -> Tensor:
    """[CLS] MASK ... MASK SEP: (B, T)."""
    ids = torch.full((batch, text_length + 1), MASK, device=device)
    ids[:, 0], ids[:, -1] = CLS, SEP
    return ids
