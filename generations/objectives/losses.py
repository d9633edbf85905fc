"""The losses, as functions of tensors."""

import torch
from torch import Tensor
from torch.nn import functional as F

# The original smooths text over the size of BERT's vocabulary, whatever the model's own is.
BERT_CLASSES = 30522
IGNORED = -100  # a target that counts for nothing


def label_smoothing_loss(
    logits: Tensor,
    targets: Tensor,
    smoothing: float = 0.2,
    weight: Tensor | None = None,
    classes: int | None = None,
) -> Tensor:
    """Cross-entropy against a target that gets 1 - smoothing, each other class smoothing / (C - 1).

    Args:
        logits: (M, C).
        targets: (M,) class ids; rows whose target is IGNORED are left out of the mean.
        smoothing: in [0, 1).
        weight: (C,) class weights; the mean over rows is weighted by those of their targets.
        classes: count to spread the smoothing over instead of C (see `BERT_CLASSES`).

    Returns:
        Scalar mean over the M rows.

    Source: SPEC 5.
    """
    own = logits.shape[-1]
    other = smoothing / ((classes or own) - 1)  # probability of each wrong class
    mass = 1 - smoothing + other * (own - 1)  # 1 unless `classes` is not C
    # torch spreads its smoothing evenly over all classes, the target included
    spread = other * own / mass
    if weight is None:
        return mass * F.cross_entropy(logits, targets, label_smoothing=spread)
    rows = mass * F.cross_entropy(logits, targets, label_smoothing=spread, reduction="none")
    return (rows * weight[targets]).sum() / weight[targets].sum()


def self_critical_loss(logprobs: Tensor, sample_ids: Tensor, reward: Tensor) -> Tensor:
    """Policy-gradient loss of sampled captions.

    Args:
        logprobs: (B, S) log-probability of each sampled id.
        sample_ids: (B, S) sampled ids, 0 after the end.
        reward: (B, S) or (B, 1), reward of the sample minus that of the baseline.

    Returns:
        Scalar: mean of -logprob * reward over position 0 and every position whose predecessor
        is not 0 (so the end-of-sentence token counts).

    Source: SPEC 8; Rennie et al. 2017, equation 8.
    """
    counted = F.pad(sample_ids[:, :-1] > 0, (1, 0), value=True).to(logprobs.dtype)
    return -(logprobs * reward * counted).sum() / counted.sum()


def random_mask_positions(cells: int, generator: torch.Generator) -> Tensor:
    """Positions (m,) of a random xe_t2i mask, m uniform in [max(1, int(0.1 N)), N], on the CPU.

    Source: SPEC 6.
    """
    low = max(1, int(0.1 * cells))
    count = int(torch.randint(low, cells + 1, (), generator=generator))
    return torch.randperm(cells, generator=generator)[:count]
