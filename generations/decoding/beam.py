"""Captions by beam search, left to right.

What has ended leaves: a hypothesis that can no longer come among the best is dropped, and an image
without hypotheses is done. On a GPU a dropped hypothesis is computed on, as one that never counts.

Shape legend: A images that go on, W beam size, R hypotheses of all of them (prefixes), M
candidates, C captions that are kept.
"""

import torch
from torch import Tensor

from generations.batch import sizes_repeat
from generations.decoding.active import Active
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
    active = Active(len(vision), device)  # images
    there = torch.arange(len(vision), device=device)  # (R,) hypotheses, of the A * W
    ids = blank_caption(len(vision), text_length, device)[:, None]  # (A, 1, T), later (A, W, T)
    log_probs = torch.zeros(len(vision), 1, device=device)
    prefixes = open_prefixes(model, vision, text_length)
    for step in range(1, steps + 1):
        ids, log_probs, parents = _extend(prefixes, ids, log_probs, there, step, 2 * beam_size)
        ended = ids[..., step] == EOS  # (A, M)
        complete = ended.clone()
        complete[:, beam_size:] = False
        if step == steps:
            complete |= ~ended
        scores = penalised(log_probs, step, length_penalty).masked_fill(~complete, NEVER)
        written = ids.clone()
        written[..., step + 1 :] = PAD
        rows = active.rows
        own = Hypotheses(kept.ids[rows], kept.log_probs[rows], kept.scores[rows])
        own = _join(own, written, log_probs, scores, count)
        kept.ids[rows], kept.log_probs[rows] = own.ids, own.log_probs
        kept.scores[rows] = own.scores
        if step == steps:
            break
        # the most that a hypothesis can come to: each further word has probability 1
        hopes = torch.maximum(
            *(penalised(log_probs, length, length_penalty) for length in (step + 1, steps))
        )
        hopeless = ended | (hopes <= own.scores[:, -1:])
        open_ones = log_probs.masked_fill(hopeless, NEVER)
        log_probs, places = open_ones.topk(min(beam_size, open_ones.shape[1]), dim=1)
        ids = ids.gather(1, places[..., None].expand(-1, -1, ids.shape[-1]))
        parents = parents.gather(1, places)
        stay = active.end(log_probs[:, 0] > NEVER, step)
        if stay is not None:
            if not len(stay):
                break
            ids, log_probs, parents = ids[stay], log_probs[stay], parents[stay]
        there = torch.arange(log_probs.numel(), device=device)
        if not sizes_repeat(device):
            there = there[log_probs.flatten() > NEVER]
        prefixes = prefixes.rows(parents.flatten()[there])
    return kept


def _extend(
    prefixes: Prefixes, ids: Tensor, log_probs: Tensor, there: Tensor, step: int, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Write position `step` of captions (A, W, T) in all ways; the M <= `most` likeliest an image.

    Args:
        prefixes: of R captions.
        there: (R,) which of the A * W these are: at least those whose log_probs (A, W) are not
            NEVER.

    Returns:
        ids (A, M, T) and log_probs (A, M), likeliest first, and the rows in `prefixes` of the
        captions that were extended, (A, M).
    """
    images, flat = len(ids), log_probs.flatten()  # (A * W,)
    logits = prefixes.logits(ids.flatten(0, 1)[there], step).float()  # (R, V)
    chances, words = logits.log_softmax(-1).topk(min(most, logits.shape[-1]))
    wide = words.shape[-1]
    candidates = flat.new_full((len(flat), wide), NEVER)
    candidates = candidates.index_copy(0, there, flat[there][:, None] + chances).view(images, -1)
    tokens = words.new_zeros(len(flat), wide).index_copy(0, there, words).view(images, -1)
    best, places = candidates.topk(min(most, candidates.shape[1]), dim=1)
    chosen = places // wide  # (A, M) in 0..W-1
    ids = ids.gather(1, chosen[..., None].expand(-1, -1, ids.shape[-1]))
    ids[..., step] = tokens.gather(1, places)
    numbers = torch.arange(len(there), device=there.device)
    rows = torch.zeros_like(flat, dtype=torch.long).index_copy(0, there, numbers)
    return ids, best, rows.view(log_probs.shape).gather(1, chosen)


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
