"""An exponential moving average of the weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from generations.errors import UserError
from generations.runtime import shard_like


class AveragedWeights:
    """The average of a model's trainable parameters, in float32, sharded as these are.

    Args:
        model: whose weights are averaged; where it is sharded, after that.
        decay: of the average, in (0, 1). The first averages forget faster, or the random weights
            of the start would stay in them for long: update n decays by (1 + n) / (10 + n) at most.

    Source: Polyak and Juditsky 1992; the faster start is TensorFlow's.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self._weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.tensors = {name: p.detach().float().clone() for name, p in self._weights.items()}

    def update(self, updates: int, made: Tensor) -> None:
        """Take in the weights after an update, the `updates`-th (from 1).

        Args:
            updates: their number.
            made: bool scalar, whether it was made; a GPU is not waited for.
        """
        if not made.is_cuda and not made:
            return
        decay = min(self.decay, (1 + updates) / (10 + updates))
        weights = [weight.detach().float() for weight in self._weights.values()]
        if made.is_cuda:
            weights = [
                torch.where(made, weight, mine)
                for weight, mine in zip(weights, self.tensors.values(), strict=True)
            ]
        get_ema_multi_avg_fn(decay)(list(self.tensors.values()), weights, updates)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Context in which the model has the averages for weights; then it has its own again."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, weight in self._weights.items():
            kept = weight.detach().clone()
            weight.copy_(self.tensors[name])
            self.tensors[name].copy_(kept)

    def load(self, saved: Mapping[str, Tensor], source: str) -> None:
        """Take up the whole tensors of a checkpoint.

        Raises:
            UserError: they are not of this model.
        """
        for name, mine in self.tensors.items():
            if name not in saved or saved[name].shape != mine.shape:
                raise UserError(
                    f"{source}: its averaged weights have no {name} of the right shape; set ema 0 "
                    "to continue without averaged weights"
                )
            mine.copy_(shard_like(saved[name].to(mine.device, mine.dtype), mine))
