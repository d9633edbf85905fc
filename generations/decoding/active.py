"""The captions of a batch that have not ended yet."""

import torch
from torch import Tensor

from generations.batch import sizes_repeat, to_device

WORDS = 4  # by which texts grow on a GPU
_SIZES = 4  # that a batch passes through on a GPU while its captions end


class Active:
    """The captions that go on, and on a GPU a few that have ended.

    Ended captions leave the batch. On a GPU they do so when the text grows, and a quarter of the
    batch at a time, so that sizes repeat and only every fourth step waits for the device; until
    then they are computed on, and what is written there counts for nothing.

    Args:
        count: R captions.
        device: of the captions.
        sizes: that the batch passes through; 0: all, and captions leave at once.

    Attributes:
        rows: (A,) the captions in the batch, of 0..R-1, ascending.
        going: (A,) bool, which of them go on.
    """

    def __init__(self, count: int, device: torch.device, sizes: int | None = None):
        if sizes is None:
            sizes = _SIZES if sizes_repeat(device) else 0
        self._leave = -(-count // sizes) if sizes else 1  # so many at a time
        self._every = WORDS if sizes else 1
        self.rows = torch.arange(count, device=device)
        self.going = torch.ones(count, dtype=torch.bool, device=device)

    def end(self, going: Tensor, step: int) -> Tensor | None:
        """Let captions end.

        Args:
            going: (A,) False for those that end with this step.
            step: the position that was written, from 1.

        Returns:
            what stays in the batch, as ids (A',) of 0..A-1, ascending; None: it stays as it is. If
            nobody goes on, it is empty.
        """
        self.going = self.going & going
        if (step + 1) % self._every:
            return None
        left = self.going.cpu()  # the one time that a step waits for the device
        size = -(-len(left.nonzero()) // self._leave) * self._leave
        if size >= len(left):
            return None
        # ended ones fill a size
        index = left.long().argsort(descending=True, stable=True)[:size].sort().values
        index = to_device(index, going.device)
        self.rows, self.going = self.rows[index], self.going[index]
        return index
