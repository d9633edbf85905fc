"""Dropout whose masks are kept, and used again when the same rows run in other batches.

Both are contexts around the calls of a model. Attention with dropout is written out in them, as a
fused kernel does not tell what it dropped. Code of torch.compile is not used in them: it has its
dropout inside.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


@contextmanager
def recorded_dropout(rows: int) -> Iterator[list[Tensor]]:
    """Context that drops in the first `rows` rows of a batch, and in no other.

    Draws from torch's global generator.

    Yields:
        the masks: (rows, ...) bool, True where a number is kept, in the order of their use; the
        list is complete at the end of the context.
    """
    masks: list[Tensor] = []

    def drop(values: Tensor, chance: float) -> Tensor:
        dropping, staying = values[:rows], values[rows:]
        if values.is_cuda:  # one kernel in the place of four
            dropped, kept = torch.native_dropout(dropping, chance, True)
        else:
            kept = torch.rand(dropping.shape) >= chance
            dropped = dropping * kept / (1 - chance)
        masks.append(kept)
        return torch.cat([dropped, staying]) if len(staying) else dropped

    with torch.compiler.set_stance("force_eager"), _Dropout(drop):
        yield masks


@contextmanager
def repeated_dropout(records: Iterable[list[Tensor]]) -> Iterator[None]:
    """Context that drops what was dropped in earlier batches, whose rows are now in one.

    Args:
        records: what `recorded_dropout` gave for each of them, in the order of the rows. Where
            they differ in other sizes, the rows of this batch are padded at the end.
    """
    sites = zip(*records, strict=True)

    def drop(values: Tensor, chance: float) -> Tensor:
        return values * stacked(next(sites)) / (1 - chance)

    with torch.compiler.set_stance("force_eager"), _Dropout(drop):
        yield


def stacked(masks: tuple[Tensor, ...]) -> Tensor:
    """Masks (B_i, ...) as one, padded with False to the largest of each of the other sizes."""
    sizes = [max(mask.shape[axis] for mask in masks) for axis in range(1, masks[0].ndim)]
    whole = masks[0].new_zeros(sum(map(len, masks)), *sizes)
    start = 0
    for mask in masks:
        whole[(slice(start, start + len(mask)), *map(slice, mask.shape[1:]))] = mask
        start += len(mask)
    return whole


class _Dropout(TorchFunctionMode):
    """Replaces dropout: `drop` takes values (B, ...) and the chance of each to become 0."""

    def __init__(self, drop: Callable[[Tensor, float], Tensor]):
        super().__init__()
        self.drop = drop

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            return self._dropout(*args, **kwargs)
        if func is F.scaled_dot_product_attention and kwargs.get("dropout_p"):
            return self._attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _dropout(
        self, values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        return self.drop(values, p) if training and p else values

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, dropout_p: float
    ) -> Tensor:
        scores = query / query.shape[-1] ** 0.5 @ key.transpose(-1, -2)
        if attn_mask is not None:
            scores = scores + attn_mask
        return self.drop(scores.softmax(-1), dropout_p) @ value
