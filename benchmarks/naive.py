"""Stage 2 with the original's amount of work, as the yardstick: SPEC 8, 12.

Every decoding step runs the whole network from scratch, with both heads at all positions, and every
step's graph is kept, that of the greedy pass too.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from generations.batch import Batch
from generations.modeling import UnifiedTransformer
from generations.objectives.losses import self_critical_loss
from generations.objectives.sequence import end_captions
from generations.rewards import cider_d
from generations.vocabulary import CLS, EOS, PAD


def write(
    model: UnifiedTransformer, features: Tensor, text_length: int, greedy: bool
) -> tuple[Tensor, Tensor]:
    """Ids (B, T) and their log-probabilities (B, T) of greedy or sampled captions."""
    cells = features.shape[1]
    ids = torch.full((len(features), text_length + 1), 103)
    ids[:, 0], ids[:, -1] = CLS, 102
    logprobs = [torch.zeros(len(features))]
    for step in range(1, text_length):
        mask = (torch.arange(text_length + 1) <= step).expand_as(ids)
        text_logits, _ = model(ids, mask, features=features)  # (B, N + T, V), (B, N + T, K)
        row = text_logits[:, cells + step].float().log_softmax(-1)
        chosen = row.argmax(-1) if greedy else torch.multinomial(row.detach().exp(), 1)[:, 0]
        logprobs.append(row.gather(1, chosen[:, None])[:, 0])
        ids = ids.index_put((torch.arange(len(ids)), torch.tensor(step)), chosen)
    logprobs.append(torch.zeros_like(logprobs[0]))
    ended = (ids == EOS).cumsum(1) - (ids == EOS).long() > 0
    return end_captions(ids.masked_fill(ended, PAD)), torch.stack(logprobs, 1)


def rl_i2t_loss(model: UnifiedTransformer, batch: Batch, text_length: int) -> Tensor:
    """Self-critical loss of a batch."""
    assert batch.features is not None
    model.eval()
    greedy, _ = write(model, batch.features, text_length, greedy=True)
    model.train()
    sampled, logprobs = write(model, batch.features, text_length, greedy=False)
    scores = cider_d(torch.cat([sampled, greedy]), batch.references)
    reward = (scores[: len(sampled)] - scores[len(sampled) :]).to(logprobs)
    return self_critical_loss(logprobs, sampled, reward[:, None])


def rl_t2i_loss(model: UnifiedTransformer, batch: Batch, steps: int = 4) -> Tensor:
    """Squared distance of softly painted features to those of the real images."""
    cells = batch.cluster_ids.shape[1]
    text_mask = batch.text_ids != PAD
    masked = torch.ones_like(batch.cluster_ids, dtype=torch.bool)
    cluster_ids = torch.zeros_like(batch.cluster_ids)
    kept = torch.zeros(())
    for step in range(steps):
        _, image_logits = model(
            batch.text_ids, text_mask, cluster_ids=cluster_ids, visual_mask=masked
        )
        logits = image_logits[:, :cells]  # (B, N, K)
        kept = logits if step == 0 else torch.where(masked[..., None], logits, kept)
        certainty, predicted = logits.detach().softmax(-1).max(-1)
        cluster_ids = torch.where(masked, predicted, cluster_ids)
        again = int((steps - (step + 1)) / steps * cells)
        masked = torch.zeros_like(masked)
        masked.scatter_(1, certainty.topk(again, dim=1, largest=False).indices, True)
    soft = F.gumbel_softmax(kept, tau=1.0, dim=-1) @ model.cluster_codebook.weight
    return F.mse_loss(soft, model.cluster_codebook(batch.cluster_ids))
