"""CUDA graphs: kernels that are recorded once for each shape, and then launched all at once."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class _Part(nn.Module):
    """A function of a network and tensors, as a module whose weights are the network's."""

    def __init__(self, network: nn.Module, function: Callable[..., Tensor]):
        super().__init__()
        self.network = network
        self.function = function

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(self.network, *tensors)


def record_on_gpu(part: nn.Module, tensors: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    """The forward and the backward pass of a module as two graphs."""
    # parameters that the function does not read get no gradient
    recorded: Any = torch.cuda.make_graphed_callables(part, tensors, allow_unused_input=True)
    return recorded


class Graphs:
    """Runs functions of a network and tensors by graphs, one for each name and shapes.

    A function must not read tensors on the host, nor make tensors on it. Of one process: what
    exchanges gradients is not recorded.

    Args:
        record: makes a module with sample tensors a callable of tensors like these.

    Attributes:
        known: what was recorded.
    """

    def __init__(
        self, record: Callable[[nn.Module, tuple[Tensor, ...]], Callable[..., Tensor]] | None = None
    ):
        self.known: dict[tuple, Callable[..., Tensor]] = {}
        self._record = record or record_on_gpu

    def __call__(
        self,
        network: nn.Module,
        name: str,
        function: Callable[..., Tensor],
        tensors: Sequence[Tensor],
    ) -> Tensor:
        """The function's result, a new tensor with a gradient.

        Args:
            network: in its mode; its weights may change in place.
            name: of the function; one name is one function.
            function: of the network and the tensors.
            tensors: on the device, without gradients.
        """
        device = tensors[0].device.type
        key = (name, network.training, *((value.shape, value.dtype) for value in tensors))
        settings: dict[str, Any] = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
            # what is kept between calls would be kept in the memory of a graph
            "cache_enabled": False,
        }
        with torch.autocast(**settings):
            if key not in self.known:
                self.known[key] = self._record(_Part(network, function), tuple(tensors))
            # the next call writes into what this one gives
            return self.known[key](*tensors).clone()


def at_once(
    network: nn.Module,
    name: str,
    function: Callable[..., Tensor],
    tensors: Sequence[Tensor],
) -> Tensor:
    """As `Graphs.__call__`, without graphs."""
    return function(network, *tensors)
