"""The original's amount of work, as the yardstick: SPEC 6 to 8, 12.

Every prediction runs the whole network from scratch, with both heads at all positions of
[vision; text] and the text at its padded length. The graph of every decoding step is kept, that of
the greedy pass too, and so is that of painting without training. Label smoothing writes its
distribution out, and heads that a stage-1 task does not read get a gradient of zeros.
"""

from collections.abc import Callable

import numpy as np
import scipy.linalg
import torch
from torch import Tensor
from torch.nn import functional as F

from generations.batch import Batch
from generations.libraries import library
from generations.modeling import UnifiedTransformer
from generations.objectives.losses import BERT_CLASSES, self_critical_loss
from generations.objectives.sequence import end_captions
from generations.rewards import cider_d
from generations.vocabulary import CLS, EOS, MASK, PAD, SEP

cider = library("pycocoevalcap.cider.cider")

Choice = Callable[[Tensor, int], Tensor]  # logits (B, V) and the step -> ids (B,)


def likeliest(logits: Tensor, step: int) -> Tensor:
    return logits.argmax(-1)


def drawn(logits: Tensor, step: int) -> Tensor:
    return torch.multinomial(logits.detach().float().log_softmax(-1).exp(), 1)[:, 0]


def write(
    model: UnifiedTransformer, features: Tensor, text_length: int, steps: int, choose: Choice
) -> tuple[Tensor, Tensor]:
    """Captions (B, T) cut after their EOS, and log-probabilities (B, T); no caption ends early."""
    device = features.device
    ids = torch.full((len(features), text_length + 1), MASK, device=device)
    ids[:, 0], ids[:, -1] = CLS, SEP
    logprobs = [torch.zeros(len(features), device=device)]
    for step in range(1, steps + 1):
        row = word_logits(model, features, ids, step)
        chosen = choose(row, step)
        logprobs.append(row.log_softmax(-1).gather(1, chosen[:, None])[:, 0])
        ids = ids.clone()  # the backward pass reads those of earlier steps
        ids[:, step] = chosen
    logprobs += [torch.zeros_like(logprobs[0])] * (text_length - steps)
    ended = (ids == EOS).cumsum(1) - (ids == EOS).long() > 0
    return ids.masked_fill(ended, PAD), torch.stack(logprobs, 1)


def word_logits(model: UnifiedTransformer, features: Tensor, ids: Tensor, step: int) -> Tensor:
    """Logits (B, V) of a position of ids (B, T), by the whole network."""
    mask = (torch.arange(ids.shape[1], device=ids.device) <= step).expand_as(ids)
    text_logits, _ = model(ids, mask, features=features)  # (B, N + T, V), (B, N + T, K)
    return text_logits[:, features.shape[1] + step].float()


def paint(model: UnifiedTransformer, text_ids: Tensor, steps: int = 4) -> tuple[Tensor, Tensor]:
    """Cluster ids (B, N), and for every cell the logits (B, N, K) of the step that wrote it."""
    cells = model.size.grid_size**2
    text_mask = text_ids != PAD
    masked = torch.ones(len(text_ids), cells, dtype=torch.bool, device=text_ids.device)
    cluster_ids = torch.zeros_like(masked, dtype=torch.long)
    kept = torch.zeros((), device=text_ids.device)
    for step in range(steps):
        _, image_logits = model(text_ids, text_mask, cluster_ids=cluster_ids, visual_mask=masked)
        logits = image_logits[:, :cells]  # (B, N, K)
        kept = logits if step == 0 else torch.where(masked[..., None], logits, kept)
        certainty, predicted = logits.detach().softmax(-1).max(-1)
        cluster_ids = torch.where(masked, predicted, cluster_ids)
        again = int((steps - (step + 1)) / steps * cells)
        masked = torch.zeros_like(masked)
        masked.scatter_(1, certainty.topk(again, dim=1, largest=False).indices, True)
    return cluster_ids, kept


def smoothed(logits: Tensor, targets: Tensor, classes: int, smoothing: float = 0.2) -> Tensor:
    """Label smoothing with its distribution (M, C) written out."""
    wanted = torch.full_like(logits, smoothing / (classes - 1))
    wanted.scatter_(1, targets[:, None], 1 - smoothing)
    return -(wanted * logits.log_softmax(-1)).sum(-1).mean()


def xe_i2t_loss(model: UnifiedTransformer, batch: Batch) -> Tensor:
    """Stage 1, image -> text."""
    device = batch.text_ids.device
    rows = torch.arange(len(batch), device=device)
    places = torch.arange(batch.text_ids.shape[1], device=device)
    mask = places <= batch.mask_positions[:, None]
    text_logits, image_logits = model(batch.masked_text_ids, mask, features=batch.features)
    targets = batch.text_ids[rows, batch.mask_positions]
    cells = batch.cluster_ids.shape[1]
    predicted = text_logits[:, cells:][rows, batch.mask_positions]
    return smoothed(predicted, targets, BERT_CLASSES) + 0 * image_logits.sum()


def xe_t2i_loss(model: UnifiedTransformer, batch: Batch, positions: Tensor) -> Tensor:
    """Stage 1, text -> image, of the masked positions (m,)."""
    masked = torch.zeros_like(batch.cluster_ids, dtype=torch.bool)
    masked[:, positions] = True
    text_logits, image_logits = model(
        batch.text_ids, batch.text_ids != PAD, cluster_ids=batch.cluster_ids, visual_mask=masked
    )
    predicted = image_logits[:, : masked.shape[1]][masked]
    loss = smoothed(predicted, batch.cluster_ids[masked], predicted.shape[-1])
    return loss + 0 * text_logits.sum()


def rl_i2t_loss(
    model: UnifiedTransformer, batch: Batch, text_length: int, choose: Choice = likeliest
) -> Tensor:
    """Self-critical loss of a batch; `choose` writes the baseline."""
    assert batch.features is not None
    model.eval()
    greedy, _ = write(model, batch.features, text_length, text_length - 1, choose)
    model.train()
    sampled, logprobs = write(model, batch.features, text_length, text_length - 1, drawn)
    sampled, greedy = end_captions(sampled), end_captions(greedy)
    scores = cider_d(torch.cat([sampled, greedy]), batch.references)
    reward = (scores[: len(sampled)] - scores[len(sampled) :]).to(logprobs)
    return self_critical_loss(logprobs, sampled, reward[:, None])


def rl_t2i_loss(model: UnifiedTransformer, batch: Batch, steps: int = 4) -> Tensor:
    """Squared distance of softly painted features to those of the real images."""
    _, kept = paint(model, batch.text_ids, steps)
    soft = F.gumbel_softmax(kept, tau=1.0, dim=-1) @ model.cluster_codebook.weight
    return F.mse_loss(soft, model.cluster_codebook(batch.cluster_ids))


def cider_d_scores(hypotheses: list[list[int]], references: list[list[list[int]]]) -> np.ndarray:
    """pycocoevalcap's scores (M,) of each hypothesis against its image's captions."""
    wanted = {i: [_words(row) for row in rows] for i, rows in enumerate(references)}
    found = {i: [_words(row)] for i, row in enumerate(hypotheses)}
    return np.asarray(cider.Cider().compute_score(wanted, found)[1])


def _words(ids: list[int]) -> str:
    return " ".join(map(str, ids[: ids.index(EOS) + 1] if EOS in ids else ids))


def frechet_distance(
    mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray
) -> float:
    """The Fréchet distance through the matrix square root of the product."""
    root = np.real(np.asarray(scipy.linalg.sqrtm(sigma1 @ sigma2)))
    gap = mu1 - mu2
    return float(gap @ gap + np.trace(sigma1) + np.trace(sigma2) - 2 * np.trace(root))
