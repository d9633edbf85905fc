"""Sample captions without a graph, and recompute their words in batches for the gradients.

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

from generations.batch import sizes_repeat
from generations.decoding import sampling
from generations.decoding.active import Active
from generations.decoding.captions import cut_after_eos
from generations.decoding.prefixes import blank_caption, next_logits, prefix_logits
from generations.modeling import UnifiedTransformer
from generations.modeling.dropout import recorded_dropout, repeated_dropout
from generations.objectives.sequence import end_captions, likeliest
from generations.runtime.memory import free_memory
from generations.vocabulary import EOS

ROWS = 10  # run at once in the backward pass on a CPU; a step of more rows runs alone


@dataclass(frozen=True)
class Draw:
    """One step of drawing.

    Attributes:
        step: the position that was written, from 1.
        rows: (A,) the captions in the batch.
        masks: of their dropout, as `recorded_dropout` gives them.
        going: (A,) whether a caption had not ended.
    """

    step: int
    rows: Tensor
    masks: list[Tensor]
    going: Tensor

    def counted(self, values: Tensor) -> Tensor:
        """Values (A,) where a word was drawn, else 0."""
        return torch.where(self.going, values, 0.0)


def drawn_and_greedy(
    model: UnifiedTransformer,
    drawn: Tensor,
    greedy: Tensor,
    text_length: int,
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
    model: UnifiedTransformer,
    drawn: Tensor,
    greedy: Tensor,
    text_length: int,
) -> tuple[Tensor, list[Draw], Tensor]:
    """Ids (M + G, T) as written, how the first M were drawn, and their log-probabilities (M, T)."""
    vision = torch.cat([drawn, greedy])
    device = vision.device
    ids = blank_caption(len(vision), text_length, device)
    logprobs = torch.zeros(len(drawn), ids.shape[1], device=device)
    # all stay on a GPU, whose time for a step hardly depends on a few rows
    active = Active(len(vision), device, sizes=int(sizes_repeat(device)))
    draws = []
    count = len(drawn)  # of the active ones those that are drawn; they come first
    for step in range(1, text_length):
        with recorded_dropout(count) as masks:
            logits = next_logits(model, vision, ids[active.rows], step)
        words = likeliest(logits[count:])
        if count:
            draw = Draw(step, active.rows[:count], masks, active.going[:count])
            draws.append(draw)
            chances = logits[:count].float().log_softmax(-1)
            chosen = sampling.draw(chances.exp())
            logprobs[draw.rows, step] = draw.counted(chances.gather(1, chosen[:, None])[:, 0])
            words = torch.cat([chosen, words])
        ids[active.rows, step] = words
        stay = active.end(words != EOS, step) if step < text_length - 1 else None
        if stay is not None:
            if not len(stay):
                break
            vision, count = vision[stay], int((stay < count).sum())
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
        longest = max(draw.step for draw in draws)
        logits = prefix_logits(model, vision[rows], ids, steps, longest=longest)
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


def rows_at_once(model: UnifiedTransformer, device: torch.device) -> int:
    """How many words are run at once: on a GPU as many as half of its free memory holds."""
    free = free_memory(device)
    if free is None:
        return ROWS
    size = model.size
    # float32 numbers that a token leaves in a layer, and tokens times layers; a quarter more than
    # the full size takes on a CPU
    numbers = 10 * size.hidden_size + 3 * size.intermediate_size
    tokens = size.grid_size**2 * size.cross_layers + 18 * size.language_layers
    tokens = tokens * 3 // 2
    rows = max(ROWS, free // 2 // (4 * numbers * tokens))
    return 1 << rows.bit_length() - 1  # a power of two: what is free differs, the sizes repeat


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
            for draws in batches(ctx.draws, rows_at_once(ctx.model, vision.device)):
                with torch.enable_grad(), torch.autocast(**ctx.autocast):
                    logprobs = ctx.run(vision, draws)
                factors = [draw.counted(factor[draw.rows, draw.step]) for draw in draws]
                logprobs.backward(torch.cat(factors))
            return (None,) * 4 + (vision.grad, *(leaves[weight].grad for weight in weights))
