"""Sample tokens with one uniform random number each, so that a sample depends only on its seed.

Numbers are drawn ahead, for each image or caption from a generator of its own: the same seed gives
the same sample whatever else is in the batch, and on any number of processes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def draw_uniforms(seeds: Sequence[int], *shape: int) -> Tensor:
    """Uniform numbers in [0, 1), float32 on the CPU: (len(seeds), *shape), a row from each seed."""
    rows = [torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows) if rows else torch.empty(0, *shape)


def draw(chances: Tensor) -> Tensor:
    """Ids (...) drawn with probabilities (..., V). Draws from torch's global generator.

    They are those of torch.multinomial, which waits for a GPU to see whether the probabilities are
    any.
    """
    return (chances / torch.empty_like(chances).exponential_()).argmax(-1)


def choose_tokens(
    logits: Tensor, uniforms: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> Tensor:
    """Draw tokens by inverting the cumulative distribution.

    Args:
        logits: (..., V).
        uniforms: (...) in [0, 1), on the device of the logits.
        temperature: the logits are divided by it; 0: the most likely token.
        top_k: draw among the k most likely; 0: among all, 1: the most likely token.
        top_p: draw among the most likely tokens that together have this probability (the nucleus,
            after temperature and top_k), in (0, 1]; 1: among all.

    Returns:
        (...) ids.

    Source: Holtzman et al. 2020 (nucleus sampling).
    """
    if temperature == 0 or top_k == 1:
        return logits.argmax(-1)
    logits = logits.float()
    # the largest becomes 0 first, so that a small temperature overflows to -inf and not to NaN
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature
    order = None
    if top_k:
        logits, order = logits.topk(min(top_k, logits.shape[-1]))
    elif top_p < 1:
        logits, order = logits.sort(descending=True)
    chances = logits.softmax(-1)
    if top_p < 1:
        likelier = chances.cumsum(-1) - chances  # probability of the tokens before this one
        chances = chances.masked_fill(likelier >= top_p, 0)
    upto = chances.cumsum(-1)
    total = upto[..., -1]
    # below the total even after rounding: a token of probability 0 is never drawn
    point = torch.minimum(uniforms * total, total.nextafter(torch.zeros_like(total)))
    drawn = torch.searchsorted(upto, point[..., None], right=True)
    return (drawn if order is None else order.gather(-1, drawn)).squeeze(-1)
