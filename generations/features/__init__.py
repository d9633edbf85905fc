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
    describe,
    identity,
    register,
)
from generations.features.images import find_images, load_image, load_images, picture_files

__all__ = [
    "ClusterAssigner",
    "ClusterQuality",
    "Extractor",
    "ExtractorSettings",
    "build_extractor",
    "describe",
    "extractor_settings",
    "find_images",
    "fit_kmeans",
    "identity",
    "load_image",
    "load_images",
    "picture_files",
    "register",
    "sample_cells",
]


def extractor_settings(cfg: CfgNode) -> ExtractorSettings:
    """Read the extractor and its sizes out of a configuration."""
    how = cfg.features
    return ExtractorSettings(
        *(how.extractor, how.image_size, cfg.grid_size, cfg.grid_feat_dim),
        *(how.backbone, how.layer, how.weights, cfg.seed, how.precision),
    )
