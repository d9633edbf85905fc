"""Dropout: drawn quickly on a CPU, and kept where the same rows run again in other batches.

On a CPU torch draws a number for each element, which takes a quarter of a training step. Here 16
random bits decide about each, so a chance is met to 1 / 65536, and what is kept is scaled by what
the chance then is. GPUs and compiled code have kernels of their own.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_STEPS = 2**16
_Drop = Callable[[Tensor, float], Tensor]  # takes values (B, ...) and the chance to become 0
_replacement: ContextVar[_Drop | None] = ContextVar("dropout", default=None)


class Dropout(nn.Dropout):
    """`nn.Dropout`, as this module draws it. Draws from torch's global generator."""

    def forward(self, input: Tensor) -> Tensor:
        return _drop(input, self.p) if self.training and self.p else input


def attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float
) -> Tensor:
    """Scaled dot-product attention (..., Q, H) of queries (..., Q, H) over keys (..., C, H).

    Args:
        query: (..., Q, H).
        key: (..., C, H).
        value: (..., C, H).
        bias: added to the scores (..., Q, C).
        dropout: chance of each attention weight to become 0; 0 in inference.
    """
    if not dropout or _left_to_torch(query):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
    scores = query / query.shape[-1] ** 0.5 @ key.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias
    return _drop(scores.softmax(-1), dropout) @ value


@contextmanager
def recorded_dropout(rows: int) -> Iterator[list[Tensor]]:
    """Context that drops in the first `rows` rows of a batch, and in no other.

    Draws from torch's global generator. Compiled layers run as they were written in it.

    Yields:
        the masks: (rows, ...) bool, True where a number is kept, in the order of their use; the
        list is complete at the end of the context.
    """
    masks: list[Tensor] = []

    def drop(values: Tensor, chance: float) -> Tensor:
        dropping, staying = values[:rows], values[rows:]
        if values.device.type != "cpu":  # one kernel in the place of four
            dropped, kept = torch.native_dropout(dropping, chance, True)
        else:
            kept, scale = _drawn(dropping, chance)
            dropped = dropping * kept * scale
        masks.append(kept)
        return torch.cat([dropped, staying]) if len(staying) else dropped

    with _replaced(drop):
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
        scale = _scale(chance) if values.device.type == "cpu" else 1 / (1 - chance)
        return values * stacked(next(sites)) * scale

    with _replaced(drop):
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


@contextmanager
def _replaced(drop: _Drop) -> Iterator[None]:
    token = _replacement.set(drop)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        _replacement.reset(token)


def _left_to_torch(values: Tensor) -> bool:
    """Whether torch's own kernels drop."""
    return torch.compiler.is_compiling() or (
        values.device.type != "cpu" and _replacement.get() is None
    )


def _drop(values: Tensor, chance: float) -> Tensor:
    if _left_to_torch(values):
        return F.dropout(values, chance)
    drop = _replacement.get()
    if drop is not None:
        return drop(values, chance)
    kept, scale = _drawn(values, chance)
    # of the values' type: half the passes of a product with bool
    return values * kept.to(values.dtype).mul_(scale)


def _drawn(values: Tensor, chance: float) -> tuple[Tensor, float]:
    """Which values are kept, bool, and the scale of what is."""
    count = values.numel()
    # 64 bits at once: four decisions of 16
    words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[:count].view(values.shape)
    return bits >= _threshold(chance) - _STEPS // 2, _scale(chance)


def _threshold(chance: float) -> int:
    """Of the 65,536 numbers, how many drop; a chance just below 1 leaves one."""
    return min(round(chance * _STEPS), _STEPS - 1)


def _scale(chance: float) -> float:
    return _STEPS / (_STEPS - _threshold(chance))
