"""Captioning the causal way: every word of several captions in one pass. Source: SPEC 13."""

import torch
from torch import Tensor
from torch.nn import functional as F

from generations.batch import Batch, sizes_repeat
from generations.decoding import sampling
from generations.decoding.captions import decode_scored
from generations.modeling import UnifiedTransformer, visual_input
from generations.modeling.visibility import teacher_forcing
from generations.objectives.losses import BERT_CLASSES, IGNORED, label_smoothing_loss
from generations.objectives.sequence import end_captions, evaluating
from generations.vocabulary import PAD


def word_states(model: UnifiedTransformer, vision: Tensor, ids: Tensor, predicted: int) -> Tensor:
    """States (B, C, P, H) that predict the positions 1..P of captions, from one pass.

    Args:
        model: the network.
        vision: (B, N, H) from `encode_vision`.
        ids: (B, C, T) captions of each image, [CLS] first.
        predicted: P, less than T.
    """
    layout = teacher_forcing(predicted, ids.device)
    text = layout.text(ids.flatten(0, 1))  # (B * C, 2 P)
    text = model.encode_text(text, layout.visible, layout.positions)
    _, states = model.fuse(vision, text, layout.visible, "text", layout.masks)
    return states.unflatten(0, ids.shape[:2])


def causal_i2t_loss(
    model: UnifiedTransformer,
    batch: Batch,
    *,
    smoothing: float = 0.2,
    classes: int | None = BERT_CLASSES,
    dense: bool = True,
) -> tuple[Tensor, Tensor]:
    """Image -> text: predict every word of the drawn captions, each from the words before it.

    The predicted positions of a caption of n ids are 1..n, as those that the paper's xe_i2t draws
    from: n is the first PAD.

    Args:
        model: the network.
        batch: B samples, with the captions of `drawn_text_ids`.
        smoothing: label smoothing.
        classes: what it is spread over; None: the model's vocabulary.
        dense: read dense features rather than codebook rows.

    Returns:
        Scalar mean over all predicted positions, and their number.
    """
    ids = batch.drawn_text_ids  # (B, C, T)
    lengths = (ids != PAD).sum(-1, keepdim=True)  # 0 for an absent caption
    narrow = not sizes_repeat(ids.device)
    predicted = int(lengths.max()) if narrow else ids.shape[-1] - 1
    vision = model.encode_vision(**visual_input(batch, dense))
    states = word_states(model, vision, ids, predicted)  # (B, C, P, H)
    targets = ids[:, :, 1 : predicted + 1]
    counted = (torch.arange(predicted, device=ids.device) < lengths) & (lengths > 0)
    if narrow:
        states, targets = states[counted], targets[counted]
    else:
        states, targets = states.flatten(0, 2), targets.masked_fill(~counted, IGNORED).flatten()
    loss = label_smoothing_loss(model.text_logits(states), targets, smoothing, classes=classes)
    return loss, counted.sum()


def causal_draw(
    model: UnifiedTransformer,
    visual: dict[str, Tensor],
    samples: int,
    greedy: bool,
    text_length: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Multinomial captions with the gradient of their log-probabilities, and greedy ones.

    All are written beside each other without dropout. The log-probabilities come from one pass
    over the finished captions, with the dropout of the model's mode: SPEC 13 says why.

    Draws from torch's global generator, as dropout does.

    Args:
        model: the network.
        visual: keyword arguments of `encode_vision` for B images.
        samples: S captions that are drawn for each image.
        greedy: whether a greedy caption is wanted as well.
        text_length: L.

    Returns:
        drawn ids (S * B, T), the images one after the other and again: CLS, L - 1 words, EOS, 0
        after the first EOS; their log-probabilities (S * B, T), 0 where nothing was drawn; greedy
        ids (B or 0, T).
    """
    with evaluating(model):
        vision = model.encode_vision(**visual)
        images = torch.arange(len(vision), device=vision.device)
        drawn = samples * len(images)

        def choose(logits: Tensor, rows: Tensor, step: int) -> Tensor:
            chances = logits.float().softmax(-1)
            return torch.where(rows < drawn, sampling.draw(chances), logits.argmax(-1))

        rows = images.repeat(samples + greedy)
        written, _ = decode_scored(model, vision, text_length, text_length - 1, choose, rows)
    ids = end_captions(written)
    captions = written[:drawn].view(samples, len(images), -1).transpose(0, 1)  # (B, S, T)
    states = word_states(model, model.encode_vision(**visual), captions, text_length - 1)
    states = states.transpose(0, 1).flatten(0, 1)  # (S * B, L - 1, H)
    words = written[:drawn, 1:text_length]
    counted = words != PAD
    if not sizes_repeat(vision.device):
        logprobs = states.new_zeros(words.shape, dtype=torch.float32)
        places = counted.nonzero(as_tuple=True)
        found = _logprobs(model.text_logits(states[places]), words[places])
        logprobs = logprobs.index_put(places, found)
    else:
        logprobs = _logprobs(model.text_logits(states), words) * counted
    # nothing is drawn at position 0, and the EOS at the end is set
    return ids[:drawn], F.pad(logprobs, (1, 1)), ids[drawn:]


def _logprobs(logits: Tensor, words: Tensor) -> Tensor:
    return logits.float().log_softmax(-1).gather(-1, words[..., None])[..., 0]
