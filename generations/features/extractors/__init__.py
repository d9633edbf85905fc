"""From pixels to grid features: a registry of extractors, one file each.

Shape legend: B batch, S side of the image, G grid side, N cells (G * G), D grid feature size;
h, w sides of a feature map.
"""

from generations.features.extractors.butd import Butd
from generations.features.extractors.clip_tower import ClipTower
from generations.features.extractors.efficientnet_lite0 import EfficientNetLite0
from generations.features.extractors.patches import Patches
from generations.features.extractors.registry import (
    RANDOM,
    Extractor,
    ExtractorSettings,
    build_extractor,
    describe,
    identity,
    register,
)
from generations.features.extractors.torchvision_backbone import TorchvisionBackbone

__all__ = [
    "RANDOM",
    "Butd",
    "ClipTower",
    "EfficientNetLite0",
    "Extractor",
    "ExtractorSettings",
    "Patches",
    "TorchvisionBackbone",
    "build_extractor",
    "describe",
    "identity",
    "register",
]
