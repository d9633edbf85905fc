"""The typed batch that flows from the dataset to the objectives.

Shape legend (used in the whole package):
    B batch, L text_length, T = L + 1 text tokens, G grid side, N = G * G visual tokens,
    V text vocabulary, K clusters, D grid feature size, H hidden size.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch


@dataclass(frozen=True)
class Batch:
    """B samples, one caption each.

    Attributes:
        image_ids: names of the images (file name without suffix), B strings.
        captions: the drawn caption of each sample as text, B strings.
        text_ids: (B, T) int64, [CLS] words [SEP] cropped to L ids, then PAD.
        masked_text_ids: (B, T) int64, the same with one position replaced by MASK.
        mask_positions: (B,) int64, that position, in 1..T-1.
        cluster_ids: (B, N) int64 in 0..K-1.
        features: (B, N, D) dense grid features, or None if nothing reads them; float32, or float16
            as they are stored until `to` was called.
        references: (B, R, C) int64, all captions of the image (the reward's references),
            PAD-filled; absent captions are all PAD.
        further_text_ids: (B, C - 1, T) int64, further captions of each image, in the form of
            text_ids, absent ones all PAD; None: C is 1.
    """

    image_ids: list[str]
    captions: list[str]
    text_ids: torch.Tensor
    masked_text_ids: torch.Tensor
    mask_positions: torch.Tensor
    cluster_ids: torch.Tensor
    features: torch.Tensor | None
    references: torch.Tensor
    further_text_ids: torch.Tensor | None = None

    @property
    def drawn_text_ids(self) -> torch.Tensor:
        """(B, C, T) the drawn captions of each image, text_ids first."""
        first = self.text_ids[:, None]
        if self.further_text_ids is None:
            return first
        return torch.cat([first, self.further_text_ids], 1)

    def _map(self, function: Any) -> "Batch":
        changed = {
            field.name: function(value)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), torch.Tensor)
        }
        return replace(self, **changed)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with every tensor on `device`, floating-point ones in float32.

        References stay: rewards are computed on the CPU.
        """
        moved = self._map(lambda tensor: tensor.to(device, non_blocking=True))
        moved = replace(moved, references=self.references)
        # only there: half precision is half the way from the disk to the device
        return moved._map(lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory (called by the DataLoader)."""
        return self._map(lambda tensor: tensor.pin_memory())

    def __len__(self) -> int:
        return len(self.image_ids)


def sizes_repeat(device: torch.device) -> bool:
    """Whether sizes that depend on what is computed are rounded up, to few ones: not on a CPU.

    A GPU would have to be waited for to learn them, and its libraries, its memory and compiled code
    are used to sizes that they have seen; a few more rows take it hardly longer.
    """
    return device.type != "cpu"


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A small tensor of the CPU on `device`, without waiting for what runs there."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # only from there are copies made beside the rest
    return tensor.to(device, non_blocking=True)
