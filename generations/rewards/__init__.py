"""Rewards of sequence-level training."""

from generations.rewards.cider import (
    DocumentFrequency,
    build_document_frequency,
    cider_d,
    self_critical_reward,
)

__all__ = ["DocumentFrequency", "build_document_frequency", "cider_d", "self_critical_reward"]
