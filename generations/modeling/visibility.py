"""Who sees whom: which text positions attention may look at, in each way of using the model.

A mask is bool, True where a key is visible: (B, S) holds for every position that looks, (1, Q, S)
has a row for each of them. The image sees of the text what its first position, [CLS], sees: with
rows that is [CLS] alone.

| | a word sees | the image sees |
| --- | --- | --- |
| painting | every word | every word |
| captioning, paper | the words up to the current [MASK], and it | the same |
| captioning, causal | the words before it, and itself | [CLS] |

Source: SPEC 2, 6 and 13.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from generations.vocabulary import MASK, PAD


def painting(text_ids: Tensor) -> Tensor:
    """Painting sees every word: (B, S) of ids (B, S)."""
    return text_ids != PAD


def upto(positions: Tensor, length: int) -> Tensor:
    """What comes up to each of some positions, itself included: (...) -> (..., length)."""
    return torch.arange(length, device=positions.device) <= positions[..., None]


@dataclass(frozen=True)
class TeacherForcing:
    """Every word of several captions of an image in one text, and what predicts it.

    The text is [CLS], the words 1..P-1 of each caption, and for each caption a [MASK] at each of
    the positions 1..P, which sees the words before that position and itself.

    Attributes:
        captions: C.
        predicted: P, the positions from 1 that are predicted.
        positions: (S,) where each of the S = 1 + C (2 P - 1) tokens stands in its caption.
        visible: (1, S, S) what each of them sees.
    """

    captions: int
    predicted: int
    positions: Tensor
    visible: Tensor

    @property
    def masks(self) -> Tensor:
        """(C * P,) places of the [MASK]s in the text, caption by caption."""
        length = len(self.positions)
        first = length - self.captions * self.predicted
        return torch.arange(first, length, device=self.positions.device)

    def text(self, ids: Tensor) -> Tensor:
        """The text (B, S) of captions (B, C, T), T > P."""
        words = ids[:, :, 1 : self.predicted].flatten(1)
        masks = words.new_full((len(ids), self.captions * self.predicted), MASK)
        return torch.cat([ids[:, 0, :1], words, masks], 1)


@cache
def teacher_forcing(captions: int, predicted: int, device: torch.device) -> TeacherForcing:
    """The layout for C captions of which the positions 1..P are predicted."""
    places = torch.arange(1, predicted + 1)
    cls = torch.zeros(1, dtype=torch.long)
    positions = torch.cat([cls, places[:-1].repeat(captions), places.repeat(captions)])
    number = torch.arange(captions)
    owner = torch.cat([
        cls - 1, number.repeat_interleave(predicted - 1), number.repeat_interleave(predicted)
    ])  # fmt: skip
    is_mask = torch.arange(len(positions)) >= len(positions) - captions * predicted
    same = (owner[:, None] == owner) | (owner < 0)
    # a word sees the words up to itself, a [MASK] those before it
    before = positions < positions[:, None] + (~is_mask).long()[:, None]
    itself = torch.eye(len(positions), dtype=torch.bool)
    visible = (same & before & ~is_mask) | itself
    return TeacherForcing(captions, predicted, positions.to(device), visible[None].to(device))
