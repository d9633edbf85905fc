"""The unified transformer and how a configuration builds it."""

import numpy as np
from torch import Tensor
from yacs.config import CfgNode

from generations.modeling.compilation import compile_layers
from generations.modeling.levels import FeatureLevels, visual_input
from generations.modeling.linear import choose_library
from generations.modeling.transformer import ModelSize, UnifiedTransformer, set_codebook

__all__ = [
    "FeatureLevels",
    "ModelSize",
    "UnifiedTransformer",
    "build_model",
    "choose_library",
    "compile_layers",
    "model_size",
    "set_codebook",
    "visual_input",
]


def model_size(cfg: CfgNode) -> ModelSize:
    """The sizes that a configuration asks for."""
    return ModelSize(
        **cfg.model,
        grid_size=cfg.grid_size,
        feature_size=cfg.grid_feat_dim,
        clusters=cfg.grid_cluster_num,
        init_std=cfg.init.std,
        mask_feat_std=cfg.init.mask_feat_std,
    )


def build_model(cfg: CfgNode, centroids: np.ndarray | Tensor | None = None) -> UnifiedTransformer:
    """Build the network with fresh weights, in training mode, on the CPU.

    Args:
        cfg: a configuration of `generations.config.load_config`.
        centroids: (K, D) codebook; without it the codebook is random until weights are loaded.

    Raises:
        UserError: the codebook's shape is not the configuration's.
    """
    model = UnifiedTransformer(
        model_size(cfg), bool(cfg.xlxmert_zeroshot), causal=cfg.captioning == "causal"
    )
    choose_library(model, cfg.cpu_linear)
    if centroids is not None:
        set_codebook(model, centroids)
    return model
