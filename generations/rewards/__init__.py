"""Rewards of sequence-level training."""

from generations.rewards.cider import (
    DocumentFrequency,
    build_document_frequency,
    cider_d,
    self_critical_reward,
)
from generations.rewards.clip_score import clip_score

__all__ = [
    "DocumentFrequency",
    "build_document_frequency",
    "cider_d",
    "clip_score",
    "self_critical_reward",
]
