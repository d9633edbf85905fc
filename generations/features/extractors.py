"""From pixels to grid features: a registry of extractors.

Shape legend: B batch, S side of the image, G grid side, D grid feature size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from generations.errors import UserError


@dataclass(frozen=True)
class ExtractorSettings:
    """What an extractor is built from.

    Attributes:
        name: of the extractor, in the registry.
        image_size: S, pixels.
        grid_size: G.
        dim: D that the configuration expects.
    """

    name: str
    image_size: int
    grid_size: int
    dim: int


class Extractor(Protocol):
    """Grid features of images.

    Attributes:
        name: in the registry.
        image_size: S of the images it takes.
        grid_size: G.
        dim: D.
    """

    name: str
    image_size: int
    grid_size: int
    dim: int

    def __call__(self, images: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """(B, S, S, 3) uint8 RGB -> (B, G, G, D) float32."""
        ...


_BUILDERS: dict[str, Callable[[ExtractorSettings], Extractor]] = {}


def register(
    name: str,
) -> Callable[[Callable[[ExtractorSettings], Extractor]], Callable[[ExtractorSettings], Extractor]]:
    """Decorator: make an extractor known as `features.extractor <name>`."""

    def add(
        build: Callable[[ExtractorSettings], Extractor],
    ) -> Callable[[ExtractorSettings], Extractor]:
        _BUILDERS[name] = build
        return build

    return add


def build_extractor(settings: ExtractorSettings) -> Extractor:
    """Build the extractor that the settings name.

    Raises:
        UserError: there is none of this name, or its features are not of the size expected.
    """
    if settings.name not in _BUILDERS:
        raise UserError(
            f"features.extractor {settings.name!r} is none of {', '.join(sorted(_BUILDERS))}"
        )
    extractor = _BUILDERS[settings.name](settings)
    if extractor.dim != settings.dim:
        raise UserError(
            f"features.extractor {settings.name} gives {extractor.dim} numbers a cell with "
            f"features.image_size {settings.image_size} and grid_size {settings.grid_size}, but "
            f"grid_feat_dim is {settings.dim}; set grid_feat_dim {extractor.dim} or change "
            "features.image_size"
        )
    return extractor


@register("patches")
class Patches:
    """The pixels of each cell, standardised by fixed constants; there are no weights.

    A value is (x / 255 - MEAN) / DEVIATION, in [-2, 2]; D = (S / G)^2 * 3, in the order row,
    column, channel.
    """

    MEAN = 0.5
    DEVIATION = 0.25

    def __init__(self, settings: ExtractorSettings):
        if settings.image_size % settings.grid_size:
            raise UserError(
                f"features.image_size {settings.image_size} is not a multiple of grid_size "
                f"{settings.grid_size}"
            )
        self.name = settings.name
        self.image_size = settings.image_size
        self.grid_size = settings.grid_size
        self._cell = settings.image_size // settings.grid_size
        self.dim = self._cell**2 * 3

    def __call__(self, images: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """(B, S, S, 3) uint8 RGB -> (B, G, G, D) float32."""
        grid, cell = self.grid_size, self._cell
        pixels = np.asarray(images, np.float32).reshape(-1, grid, cell, grid, cell, 3)
        cells = pixels.transpose(0, 1, 3, 2, 4, 5).reshape(-1, grid, grid, self.dim)
        return (cells / 255 - self.MEAN) / self.DEVIATION
