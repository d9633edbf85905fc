"""Attention masks: the text positions that are visible, in each use of the model.

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

from generations.batch import to_device
from generations.vocabulary import MASK, PAD


def painting(text_ids: Tensor) -> Tensor:
    """Painting sees every word: (B, S) of ids (B, S)."""
    return text_ids != PAD


def upto(positions: Tensor, length: int) -> Tensor:
    """What comes up to each of some positions, itself included: (...) -> (..., length)."""
    return torch.arange(length, device=positions.device) <= positions[..., None]


@dataclass(frozen=True)
class TeacherForcing:
    """A text that predicts every word of a caption at once.

    It is [CLS], the words 1..P-1 and a [MASK] at each of the positions 1..P, which sees the words
    before that position and itself.

    Attributes:
        predicted: P, the positions from 1 that are predicted.
        positions: (2 P,) where each token stands in the caption.
        visible: (1, 2 P, 2 P) what each of them sees.
    """

    predicted: int
    positions: Tensor
    visible: Tensor

    @property
    def masks(self) -> Tensor:
        """(P,) places of the [MASK]s in the text."""
        return torch.arange(self.predicted, 2 * self.predicted, device=self.positions.device)

    def text(self, ids: Tensor) -> Tensor:
        """The text (..., 2 P) of captions (..., T), T > P."""
        words = ids[..., : self.predicted]
        return torch.cat([words, torch.full_like(words, MASK)], -1)


@cache
def teacher_forcing(predicted: int, device: torch.device) -> TeacherForcing:
    """The layout for captions of which the positions 1..P are predicted."""
    places = torch.arange(predicted)
    positions = torch.cat([places, places + 1])
    is_mask = torch.arange(2 * predicted) >= predicted
    # a word sees the words up to itself, a [MASK] those before it
    before = positions < positions[:, None] + (~is_mask).long()[:, None]
    visible = (before & ~is_mask) | torch.eye(2 * predicted, dtype=torch.bool)
    return TeacherForcing(predicted, to_device(positions, device), to_device(visible[None], device))
