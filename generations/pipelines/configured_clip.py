"""The CLIP that a configuration names."""

import torch
from yacs.config import CfgNode

from generations.clip import ClipModel, load_clip


def load_configured_clip(cfg: CfgNode, device: torch.device | str = "cpu") -> ClipModel:
    """Load clip.model with clip.weights, frozen, on the device.

    Raises:
        UserError: see `load_clip`.
    """
    return load_clip(cfg.clip.model, cfg.clip.weights, device, cfg.clip.quick_gelu)
