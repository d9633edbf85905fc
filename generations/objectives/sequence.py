"""Stage 2, sequence level: losses on whole generated captions and pictures. Source: SPEC 8.

The original keeps the graph of every decoding step, and of the greedy pass. Here the greedy pass
has none; a painting step's activations can be dropped and computed again, with the same dropout,
when the backward pass comes to it; and generations.objectives.replay draws captions without a
graph.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generations.decoding import sampling
from generations.decoding.active import Active
from generations.decoding.captions import decode
from generations.decoding.images import painting_steps
from generations.decoding.prefixes import blank_caption, next_logits
from generations.modeling import UnifiedTransformer
from generations.vocabulary import CLS, EOS, PAD


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context without dropout and without gradients; the mode is restored at the end."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def greedy_baseline(
    model: UnifiedTransformer, visual: dict[str, Tensor], text_length: int
) -> Tensor:
    """Greedy captions in eval mode without gradients, as sequences of stage 2.

    Args:
        visual: keyword arguments of `encode_vision`.
        text_length: L.

    Returns:
        (B, T) ids: CLS, L - 1 words, EOS; 0 after the first EOS.
    """
    with evaluating(model):
        vision = model.encode_vision(**visual)
        ids = decode(model, vision, text_length, text_length - 1, likeliest)
    return end_captions(ids)


def likeliest(logits: Tensor) -> Tensor:
    """The greedy words (B,) of logits (B, V)."""
    return logits.argmax(-1)


def end_captions(ids: Tensor) -> Tensor:
    """Write EOS at the last position of the captions (B, T) that have none before."""
    ids = ids.clone()
    ended = (ids == EOS).any(1)
    ids[:, -1] = torch.where(ended, ids[:, -1], EOS)
    return ids


def sample_captions(
    model: UnifiedTransformer, vision: Tensor, text_length: int
) -> tuple[Tensor, Tensor]:
    """Multinomial captions with the graph of their log-probabilities.

    Draws from torch's global generator, as dropout does.

    Args:
        vision: (B, N, H) from `encode_vision`.
        text_length: L.

    Returns:
        ids (B, T): CLS, L - 1 words, EOS, 0 after the first EOS; and their log-probabilities
        (B, T), 0 where nothing was drawn.
    """
    ids = blank_caption(len(vision), text_length, vision.device)
    written = torch.zeros_like(ids)
    written[:, 0] = CLS
    logprobs = [torch.zeros(len(vision), device=vision.device)]
    active = Active(len(vision), vision.device)
    for step in range(1, text_length):
        if len(active.rows):
            chosen, logprob = _draw(model, vision, ids, step)
            column = logprobs[0].new_zeros(len(written))
            logprob = torch.where(active.going, logprob, 0.0)
            logprobs.append(column.index_put((active.rows,), logprob))
            written[active.rows, step] = torch.where(active.going, chosen, PAD)
            # out of place: the backward pass reads this step's ids
            ids = ids.clone()
            ids[:, step] = chosen
            stay = active.end(chosen != EOS, step)
            if stay is not None:
                vision, ids = vision[stay], ids[stay]
        else:
            logprobs.append(torch.zeros_like(logprobs[0]))
    logprobs.append(torch.zeros_like(logprobs[0]))  # the EOS at the end is set, not drawn
    return end_captions(written), torch.stack(logprobs, 1)


def _draw(
    model: UnifiedTransformer, vision: Tensor, ids: Tensor, step: int
) -> tuple[Tensor, Tensor]:
    """Sampled ids (B,) and their log-probabilities (B,)."""
    logprobs = next_logits(model, vision, ids, step).float().log_softmax(-1)
    chosen = sampling.draw(logprobs.detach().exp())
    return chosen, logprobs.gather(1, chosen[:, None])[:, 0]


def paint_softly(
    model: UnifiedTransformer, text_ids: Tensor, steps: int = 4, recompute: bool = True
) -> Tensor:
    """Paint captions differentiably.

    Every position keeps the logits of the last step that wrote it; a soft Gumbel-softmax (tau 1)
    over the clusters mixes codebook rows. Draws from torch's global generator.

    Args:
        text_ids: (B, T) captions as [CLS] ... [SEP] PAD.
        steps: of mask-predict.
        recompute: see the module.

    Returns:
        (B, N, D) soft features.
    """
    kept: Tensor | None = None
    for step in painting_steps(model, text_ids, steps, recompute):
        kept = (
            step.logits if kept is None else torch.where(step.masked[..., None], step.logits, kept)
        )
    assert kept is not None
    # as F.gumbel_softmax, in one array beside the logits and the result
    noise = torch.empty_like(kept).exponential_().log_().neg_()  # (B, N, K)
    return noise.add_(kept).softmax(-1) @ model.cluster_codebook.weight


def soft_painting_loss(
    model: UnifiedTransformer,
    soft: Tensor,
    cluster_ids: Tensor,
    mse_weight: float = 0.0,
    score: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The loss of softly painted features.

    Args:
        soft: (B, N, D) from `paint_softly`.
        cluster_ids: (B, N) the real image's.
        mse_weight: weight of the mean squared distance to the real image's codebook rows.
        score: soft features (B, N, D) -> CLIPScore (B,) of the picture; None leaves it out.

    Returns:
        the scalar loss, and the CLIPScores (B,) if there are any.
    """
    loss = soft.new_zeros(())
    scores = None
    if score is not None:
        scores = score(soft)
        loss = loss - scores.mean()
    if mse_weight:
        loss = loss + mse_weight * F.mse_loss(soft, model.cluster_codebook(cluster_ids))
    return loss, scores
