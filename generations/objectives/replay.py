"""Captions drawn without a graph, whose words run again, many in a batch, for their gradients.

A word of a caption is predicted from a text of its own, with a dropout of its own, so the words of
several steps can run side by side once all are known. This needs one more forward pass than the
graph of the drawing (`sample_captions`), as recomputing step by step does; but its products have
as many rows as are good for the hardware, and only their activations are alive at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from generations.decoding.captions import cut_after_eos
from generations.decoding.prefixes import blank_caption, next_logits, prefix_logits
from generations.modeling import UnifiedTransformer
from generations.modeling.dropout import recorded_dropout, repeated_dropout
from generations.objectives.sequence import end_captions, likeliest
from generations.vocabulary import EOS

ROWS = 10  # run at once in the backward pass; a step of more rows runs alone


@dataclass(frozen=True)
class Draw:
    """One step of drawing.

    Attributes:
        step: the position that was written, from 1.
        rows: (A,) the captions that had not ended.
        masks: of their dropout, as `recorded_dropout` gives them.
    """

    step: int
    rows: Tensor
    masks: list[Tensor]


def drawn_and_greedy(
    model: UnifiedTransformer, drawn: Tensor, greedy: Tensor, text_length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Multinomial captions, with the gradient of their log-probabilities, beside greedy ones.

    Draws from torch's global generator, as dropout does.

    Args:
        model: its mode decides about the dropout of the drawn; the greedy ones have none.
        drawn: (M, N, H) from `encode_vision`: a caption is drawn for each.
        greedy: (G, N, H) without dropout, for the greedy captions.
        text_length: L.

    Returns:
        drawn ids (M, T): CLS, L - 1 words, EOS, 0 after the first EOS; their log-probabilities
        (M, T) under the model with the same dropout, 0 where nothing was drawn; greedy ids (G, T).
    """
    ids, draws, logprobs = _write(model, drawn.detach(), greedy, text_length)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if torch.is_grad_enabled():
        written = ids[: len(drawn)]

        def run(vision: Tensor, some: Sequence[Draw]) -> Tensor:
            return replayed(model, vision, written, some)

        logprobs = _Replay.apply(model, run, draws, logprobs, drawn, *weights)
    ids = cut_after_eos(end_captions(ids))
    return ids[: len(drawn)], logprobs, ids[len(drawn) :]


@torch.no_grad()
def _write(
    model: UnifiedTransformer, drawn: Tensor, greedy: Tensor, text_length: int
) -> tuple[Tensor, list[Draw], Tensor]:
    """Ids (M + G, T) as written, how the first M were drawn, and their log-probabilities (M, T)."""
    vision = torch.cat([drawn, greedy])
    ids = blank_caption(len(vision), text_length, vision.device)
    logprobs = torch.zeros(len(drawn), ids.shape[1], device=vision.device)
    active = torch.arange(len(vision), device=vision.device)
    draws = []
    for step in range(1, text_length):
        rows = active[active < len(drawn)]
        with recorded_dropout(len(rows)) as masks:
            logits = next_logits(model, vision, ids[active], step)
        words = likeliest(logits[len(rows) :])
        if len(rows):
            draws.append(Draw(step, rows, masks))
            chances = logits[: len(rows)].float().log_softmax(-1)
            chosen = torch.multinomial(chances.exp(), 1)
            logprobs[rows, step] = chances.gather(1, chosen)[:, 0]
            words = torch.cat([chosen[:, 0], words])
        ids[active, step] = words
        going = words != EOS
        if not going.all():
            active, vision = active[going], vision[going]
        if not len(active):
            break
    return ids, draws, logprobs


def replayed(
    model: UnifiedTransformer, vision: Tensor, written: Tensor, draws: Sequence[Draw]
) -> Tensor:
    """Log-probabilities (R,) of the words of several steps, of one after the other.

    Args:
        vision: (M, N, H) of the drawn captions.
        written: (M, T) their ids.
        draws: the steps.
    """
    rows = torch.cat([draw.rows for draw in draws])
    steps = torch.cat([torch.full_like(draw.rows, draw.step) for draw in draws])
    blank = blank_caption(len(rows), written.shape[1] - 1, written.device)
    before = torch.arange(written.shape[1], device=written.device) < steps[:, None]
    ids = torch.where(before, written[rows], blank)
    with repeated_dropout([draw.masks for draw in draws]):
        logits = prefix_logits(model, vision[rows], ids, steps)
    words = written[rows, steps][:, None]
    return logits.float().log_softmax(-1).gather(1, words)[:, 0]


def batches(draws: Sequence[Draw], rows: int = ROWS) -> Iterator[list[Draw]]:
    """Steps that follow each other, together while they have no more than so many rows."""
    batch: list[Draw] = []
    for draw in draws:
        if batch and sum(len(other.rows) for other in (*batch, draw)) > rows:
            yield batch
            batch = []
        batch.append(draw)
    if batch:
        yield batch


@contextmanager
def stand_ins(model: nn.Module) -> Iterator[dict[Tensor, nn.Parameter]]:
    """Context in which a model's weights are others, with the same numbers and their own gradients.

    A gradient is added to these in place as it is found, and nobody else hears of it: neither
    what exchanges gradients between processes, nor the real weights.

    Yields:
        real weight -> its stand-in.
    """
    places = [
        (module, name, weight)
        for module in model.modules()
        for name, weight in module.named_parameters(recurse=False)
    ]
    others: dict[Tensor, nn.Parameter] = {
        weight: nn.Parameter(weight.detach(), weight.requires_grad) for _, _, weight in places
    }
    try:
        for module, name, weight in places:
            setattr(module, name, others[weight])
        yield others
    finally:
        for module, name, weight in places:
            setattr(module, name, weight)


class _Replay(torch.autograd.Function):
    """Gives known log-probabilities a backward pass, which makes and drops graphs of its own.

    The weights are arguments so that their gradients leave as all others do, to be added up and
    exchanged between processes.
    """

    @staticmethod
    def forward(
        ctx: Any,
        model: UnifiedTransformer,
        run: Callable[[Tensor, Sequence[Draw]], Tensor],
        draws: list[Draw],
        logprobs: Tensor,
        vision: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        device = vision.device.type
        ctx.model, ctx.run, ctx.draws = model, run, draws
        ctx.save_for_backward(vision, *weights)
        ctx.autocast = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
        }
        return logprobs.clone()  # an output is not an input

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (factor,) = upstream  # (M, T)
        vision, *weights = ctx.saved_tensors
        vision = vision.detach().requires_grad_()
        with stand_ins(ctx.model) as leaves:
            for draws in batches(ctx.draws):
                with torch.enable_grad(), torch.autocast(**ctx.autocast):
                    logprobs = ctx.run(vision, draws)
                logprobs.backward(torch.cat([factor[draw.rows, draw.step] for draw in draws]))
            return (None,) * 4 + (vision.grad, *(leaves[weight].grad for weight in weights))
