"""The captions of a batch that have not ended yet."""

import torch
from torch import Tensor

from generations.batch import to_device

_SIZES = 4  # that a batch passes through on a GPU while its captions end


class Active:
    """The captions that go on, and on a GPU a few that have ended.

    Ended captions leave the batch. On a GPU they do so a quarter of the batch at a time, so that
    sizes repeat; until then they are computed on, and what is written there counts for nothing.
    A step waits for the device once.

    Args:
        count: R captions.
        device: of the captions.
        sizes: that the batch passes through; 0: all.

    Attributes:
        rows: (A,) the captions in the batch, of 0..R-1.
        places: which of them go on: (A',) of 0..A-1; None: all.
    """

    def __init__(self, count: int, device: torch.device, sizes: int | None = None):
        if sizes is None:
            sizes = _SIZES if device.type == "cuda" else 0
        self._leave = -(-count // sizes) if sizes else 1  # so many at a time
        self.rows = torch.arange(count, device=device)
        self.places: Tensor | None = None

    def counting(self, values: Tensor) -> Tensor:
        """Of values (A, ...) those of the captions that go on."""
        return values if self.places is None else values[self.places]

    def end(self, going: Tensor) -> Tensor | None:
        """Let captions end.

        Args:
            going: (A,) False for those that ended now.

        Returns:
            what stays in the batch, as ids (A',) of 0..A-1; None: it stays as it is. If nobody
            goes on, it is empty.
        """
        left = self.counting(going).cpu()
        if bool(left.all()):
            return None
        kept = left.nonzero()[:, 0]
        places = to_device(kept, going.device)
        self.places = places if self.places is None else self.places[places]
        size = -(-len(kept) // self._leave) * self._leave
        if size >= len(self.rows):
            return None
        index = self.places
        if size > len(kept):  # some twice; the second does not count
            index = torch.cat([index, index[:1].expand(size - len(kept))])
            self.places = torch.arange(len(kept), device=going.device)
        else:
            self.places = None
        self.rows = self.rows[index]
        return index
