"""From image files to grid features and a codebook of them."""

from yacs.config import CfgNode

from generations.features.clustering import (
    ClusterAssigner,
    ClusterQuality,
    fit_kmeans,
    sample_cells,
)
from generations.features.extractors import (
    Extractor,
    ExtractorSettings,
    build_extractor,
    register,
)
from generations.features.images import find_images, load_image, load_images

__all__ = [
    "ClusterAssigner",
    "ClusterQuality",
    "Extractor",
    "ExtractorSettings",
    "build_extractor",
    "extractor_settings",
    "find_images",
    "fit_kmeans",
    "load_image",
    "load_images",
    "register",
    "sample_cells",
]


def extractor_settings(cfg: CfgNode) -> ExtractorSettings:
    """Read the extractor and its sizes out of a configuration."""
    return ExtractorSettings(
        cfg.features.extractor, cfg.features.image_size, cfg.grid_size, cfg.grid_feat_dim
    )
