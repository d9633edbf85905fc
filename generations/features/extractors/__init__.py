"""From pixels to grid features: a registry of extractors, one file each.

Shape legend: B batch, S side of the image, G grid side, N cells (G * G), D grid feature size;
h, w sides of a feature map.
"""

from generations.features.extractors.registry import (
    RANDOM,
    Extractor,
    ExtractorSettings,
    build_extractor,
    describe,
    identity,
    register,
)

__all__ = [
    "RANDOM",
    "Extractor",
    "ExtractorSettings",
    "build_extractor",
    "describe",
    "identity",
    "register",
]
