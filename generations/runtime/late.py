"""Values that the host reads later, so that it does not wait for a GPU."""

import torch
from torch import Tensor


class Later:
    """A scalar on its way from a device to the host; the copy runs beside what follows.

    Args:
        value: a scalar on any device.
    """

    def __init__(self, value: Tensor):
        self._event: torch.cuda.Event | None = None
        self._value = value.detach()
        if value.is_cuda:
            self._value = torch.empty((), dtype=value.dtype, pin_memory=True)
            self._value.copy_(value.detach(), non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def get(self) -> float:
        """The value; waits until what made it is done."""
        if self._event is not None:
            self._event.synchronize()
        return float(self._value)
