"""Image -> text, left to right: predict a [MASK] at each position. Source: SPEC 7.

The model's own way of captioning decides what a step computes; see generations.decoding.prefixes.
Ended captions leave the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from generations.batch import to_device
from generations.decoding.active import Active
from generations.decoding.prefixes import blank_caption, open_prefixes
from generations.decoding.sampling import choose_tokens
from generations.modeling import UnifiedTransformer
from generations.vocabulary import CLS, EOS, PAD

Choice = Callable[[Tensor], Tensor]  # logits (B, V) -> ids (B,)
# logits (A, V), the rows (A,) of the batch that they belong to, the step -> ids (A,)
RowChoice = Callable[[Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class Hypotheses:
    """C captions for each of B images, best score first.

    Attributes:
        ids: (B, C, T) as of `caption_tokens`.
        log_probs: (B, C) natural logarithm of the model's probability of the caption: the sum
            over what was written, the full stop included.
        scores: (B, C) log_probs / length ** length_penalty; see `penalised`.
    """

    ids: Tensor
    log_probs: Tensor
    scores: Tensor


@torch.no_grad()
def caption_tokens(
    model: UnifiedTransformer,
    features: Tensor | None = None,
    cluster_ids: Tensor | None = None,
    text_length: int = 17,
    steps: int | None = None,
) -> Tensor:
    """Greedy captions.

    Args:
        model: its mode decides about dropout; call `eval()` first for reproducible captions.
        features: (B, N, D) dense grid features; or
        cluster_ids: (B, N) ids that are looked up in the codebook.
        text_length: L.
        steps: how many positions to write at most; default T - 1, the whole sequence. Give L - 1
            when the caption is cropped to L ids anyway.

    Returns:
        (B, T) ids, T = L + 1: CLS, the caption up to its first EOS, PAD. A caption that did not
        end keeps what was written at every position; positions beyond `steps` are PAD.
    """
    vision = model.encode_vision(features, cluster_ids)
    return decode(model, vision, text_length, steps or text_length, _argmax)


def decode(
    model: UnifiedTransformer, vision: Tensor, text_length: int, steps: int, choose: Choice
) -> Tensor:
    """Write captions with a given choice at each position.

    Args:
        vision: (B, N, H) from `encode_vision`.
        text_length: L.
        steps: positions 1..steps are written, at most L.
        choose: picks the next ids (B,) from logits (B, V).

    Returns:
        (B, T) ids as in `caption_tokens`.
    """
    return decode_scored(model, vision, text_length, steps, lambda logits, *_: choose(logits))[0]


def decode_scored(
    model: UnifiedTransformer,
    vision: Tensor,
    text_length: int,
    steps: int,
    choose: RowChoice,
    images: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `decode`, with a choice that is told rows and step.

    Args:
        images: (R,) the image of each caption; None: one caption for each image.

    Returns:
        (R, T) ids, and the logarithm of their probability under the model, (R,) float32.
    """
    prefixes = open_prefixes(model, vision, text_length)
    if images is not None:
        prefixes = prefixes.rows(images)
    active = Active(len(vision if images is None else images), vision.device)
    ids = blank_caption(len(active.rows), text_length, vision.device)  # (R, T)
    written = torch.zeros_like(ids)
    written[:, 0] = CLS
    log_probs = torch.zeros(len(active.rows), device=vision.device)
    for step in range(1, steps + 1):
        logits = prefixes.logits(ids, step)
        chosen = choose(logits, active.rows, step)
        ids[:, step] = chosen
        going = active.going
        written[active.rows, step] = torch.where(going, chosen, PAD)
        log_probs[active.rows] += torch.where(going, log_probability(logits, chosen), 0.0)
        stay = active.end(chosen != EOS, step) if step < steps else None
        if stay is not None:
            if not len(stay):
                break
            ids, prefixes = ids[stay], prefixes.rows(stay)
    return written, log_probs


@torch.no_grad()
def sampled_captions(
    model: UnifiedTransformer,
    uniforms: Tensor,
    features: Tensor | None = None,
    cluster_ids: Tensor | None = None,
    text_length: int = 17,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    length_penalty: float = 0.0,
) -> Hypotheses:
    """Captions drawn at random, several an image.

    Args:
        model: its mode decides about dropout; call `eval()` first for reproducible captions.
        uniforms: (B, C, S) in [0, 1) of `draw_uniforms`: C captions an image, of at most S written
            positions; S is at most L.
        features: (B, N, D) dense grid features; or
        cluster_ids: (B, N) ids that are looked up in the codebook.
        text_length: L.
        temperature: see `choose_tokens`, as are top_k and top_p.
        length_penalty: see `penalised`.

    Returns:
        all that were drawn, also when one was drawn twice, best score first.
    """
    vision = model.encode_vision(features, cluster_ids)  # once an image
    images, captions, steps = uniforms.shape
    flat = to_device(uniforms, vision.device).flatten(0, 1)

    def choose(logits: Tensor, rows: Tensor, step: int) -> Tensor:
        return choose_tokens(logits, flat[rows, step - 1], temperature, top_k, top_p)

    owners = torch.arange(images, device=vision.device).repeat_interleave(captions)
    ids, log_probs = decode_scored(model, vision, text_length, steps, choose, owners)
    scores = penalised(log_probs, caption_lengths(ids, steps), length_penalty)
    shape = (images, captions)
    return best_first(ids.view(*shape, -1), log_probs.view(shape), scores.view(shape), captions)


def best_first(ids: Tensor, log_probs: Tensor, scores: Tensor, count: int) -> Hypotheses:
    """The `count` best of captions (B, C, T), by scores (B, C)."""
    scores, places = scores.topk(min(count, scores.shape[1]), dim=1)
    ids = ids.gather(1, places[..., None].expand(-1, -1, ids.shape[-1]))
    return Hypotheses(ids, log_probs.gather(1, places), scores)


def penalised(log_probs: Tensor, lengths: Tensor | int, length_penalty: float) -> Tensor:
    """log_probs / lengths ** length_penalty: 0 ranks by probability, more favours long captions."""
    if isinstance(lengths, int):
        lengths = log_probs.new_full((), lengths)
    return log_probs / lengths.to(log_probs) ** length_penalty


def caption_lengths(ids: Tensor, steps: int) -> Tensor:
    """Written positions of captions (..., T), the full stop included, at most `steps`: (...)."""
    ended = (ids[..., 1 : steps + 1] == EOS).cumsum(-1)
    return steps - (ended > 0).sum(-1) + (ended[..., -1] > 0).long()


def log_probability(logits: Tensor, ids: Tensor) -> Tensor:
    """Logarithm (B,) float32 of the probability that logits (B, V) give to ids (B,)."""
    logits = logits.float()
    return logits.gather(-1, ids[..., None]).squeeze(-1) - logits.logsumexp(-1)


def _argmax(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


def cut_after_eos(ids: Tensor) -> Tensor:
    """Replace everything after the first EOS by PAD: (B, S) -> (B, S), a new tensor."""
    ended_before = (ids == EOS).cumsum(1) - (ids == EOS).long() > 0
    return ids.masked_fill(ended_before, PAD)
