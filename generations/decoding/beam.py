"""Captions by beam search, left to right.

What has ended leaves: a hypothesis that can no longer come among the best is dropped, and an image
without hypotheses is done.

Shape legend: A images that go on, W beam size, R hypotheses of all of them (prefixes), M
candidates, C captions that are kept.
"""

import torch
from torch import Tensor

from generations.decoding.captions import (
    Hypotheses,
    best_first,
    caption_lengths,
    decode_scored,
    penalised,
)
from generations.decoding.prefixes import Prefixes, blank_caption, open_prefixes
from generations.modeling import UnifiedTransformer
from generations.vocabulary import CLS, EOS, PAD

NEVER = float("-inf")  # the score of a place that holds no hypothesis


@torch.no_grad()
def beam_captions(
    model: UnifiedTransformer,
    features: Tensor | None = None,
    cluster_ids: Tensor | None = None,
    text_length: int = 17,
    steps: int | None = None,
    beam_size: int = 5,
    length_penalty: float = 0.0,
    num_captions: int = 1,
) -> Hypotheses:
    """The best captions that a beam finds; none of the first scores below the greedy caption.

    The greedy caption is a candidate of its own: a beam alone may lose it half-way. A beam of 1
    with length_penalty 0 is greedy.

    Args:
        model: in eval mode.
        features: (B, N, D) dense grid features; or
        cluster_ids: (B, N) ids that are looked up in the codebook.
        text_length: L.
        steps: how many positions to write at most; default L.
        beam_size: hypotheses an image, at least num_captions.
        length_penalty: captions are ranked by log-probability / length ** length_penalty, where the
            length counts the full stop.
        num_captions: C.

    Returns:
        C different captions an image, best first. A caption that has not ended after `steps`
        positions counts as it is.
    """
    vision = model.encode_vision(features, cluster_ids)
    steps = steps or text_length
    count = min(num_captions, beam_size)
    found = search(model, vision, text_length, steps, beam_size, length_penalty, count)
    ids, log_probs = decode_scored(
        model, vision, text_length, steps, lambda logits, *_: logits.argmax(-1)
    )
    scores = penalised(log_probs, caption_lengths(ids, steps), length_penalty)
    known = (found.ids == ids[:, None]).all(-1).any(1)
    scores = scores.masked_fill(known, NEVER)
    return _join(found, ids[:, None], log_probs[:, None], scores[:, None], count)


def search(
    model: UnifiedTransformer,
    vision: Tensor,
    text_length: int,
    steps: int,
    beam_size: int,
    length_penalty: float,
    count: int,
) -> Hypotheses:
    """The beam alone; arguments as of `beam_captions`, vision (B, N, H) of `encode_vision`.

    A candidate that ends counts if it is among the W best of its step, and the W best that do not
    end go on, so that ending does not narrow the beam.
    """
    device = vision.device
    kept = _nothing(len(vision), count, text_length + 1, device)
    going = torch.arange(len(vision), device=device)  # (A,) images
    ids = blank_caption(len(vision), text_length, device)[:, None]  # (A, 1, T), later (A, W, T)
    log_probs = torch.zeros(len(vision), 1, device=device)
    prefixes = open_prefixes(model, vision, text_length)
    for step in range(1, steps + 1):
        ids, log_probs, parents = _extend(prefixes, ids, log_probs, step, 2 * beam_size)
        ended = ids[..., step] == EOS  # (A, M)
        complete = ended.clone()
        complete[:, beam_size:] = False
        if step == steps:
            complete |= ~ended
        scores = penalised(log_probs, step, length_penalty).masked_fill(~complete, NEVER)
        written = ids.clone()
        written[..., step + 1 :] = PAD
        own = Hypotheses(kept.ids[going], kept.log_probs[going], kept.scores[going])
        own = _join(own, written, log_probs, scores, count)
        kept.ids[going], kept.log_probs[going] = own.ids, own.log_probs
        kept.scores[going] = own.scores
        # the most that a hypothesis can come to: each further word has probability 1
        hopes = torch.maximum(
            *(penalised(log_probs, length, length_penalty) for length in (step + 1, steps))
        )
        hopeless = ended | (hopes <= own.scores[:, -1:])
        open_ones = log_probs.masked_fill(hopeless, NEVER)
        alive = (open_ones > NEVER).any(1)
        if step == steps or not alive.any():
            break
        log_probs, places = open_ones[alive].topk(min(beam_size, open_ones.shape[1]), dim=1)
        ids = ids[alive].gather(1, places[..., None].expand(-1, -1, ids.shape[-1]))
        prefixes = prefixes.rows(parents[alive].gather(1, places)[log_probs > NEVER])
        going = going[alive]
    return kept


def _extend(
    prefixes: Prefixes, ids: Tensor, log_probs: Tensor, step: int, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Write position `step` of captions (A, W, T) in all ways; the M <= `most` likeliest an image.

    Args:
        prefixes: of the R captions whose log_probs (A, W) are not NEVER.

    Returns:
        ids (A, M, T) and log_probs (A, M), likeliest first, and the rows in `prefixes` of the
        captions that were extended, (A, M).
    """
    there = log_probs > NEVER  # (A, W)
    logits = prefixes.logits(ids[there], step).float()  # (R, V)
    chances, words = logits.log_softmax(-1).topk(min(most, logits.shape[-1]))
    wide = words.shape[-1]
    candidates = log_probs.new_full((*there.shape, wide), NEVER)
    candidates[there] = log_probs[there][:, None] + chances
    tokens = words.new_zeros(candidates.shape)
    tokens[there] = words
    best, places = candidates.flatten(1).topk(min(most, candidates[0].numel()), dim=1)
    chosen = places // wide  # (A, M) in 0..W-1
    ids = ids.gather(1, chosen[..., None].expand(-1, -1, ids.shape[-1]))
    ids[..., step] = tokens.flatten(1).gather(1, places)
    number = (there.flatten().cumsum(0) - 1).view(there.shape)  # row of each caption that is there
    return ids, best, number.gather(1, chosen)


def _nothing(images: int, count: int, length: int, device: torch.device) -> Hypotheses:
    ids = torch.zeros(images, count, length, dtype=torch.long, device=device)
    ids[..., 0] = CLS
    worst = torch.full((images, count), NEVER, device=device)
    return Hypotheses(ids, worst, worst.clone())


def _join(
    found: Hypotheses, ids: Tensor, log_probs: Tensor, scores: Tensor, count: int
) -> Hypotheses:
    """The best of those found and of others (A, M, T), (A, M), (A, M)."""
    return best_first(
        torch.cat([found.ids, ids], 1),
        torch.cat([found.log_probs, log_probs], 1),
        torch.cat([found.scores, scores], 1),
        count,
    )
