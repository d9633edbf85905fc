"""`patches`: the pixels themselves."""

from collections.abc import Sequence

import numpy as np
import torch

from generations.errors import UserError
from generations.features.extractors.registry import ExtractorSettings, register


@register("patches")
class Patches:
    """The pixels of each cell, standardised by fixed constants; there are no weights.

    A value is (x / 255 - MEAN) / DEVIATION, in [-2, 2]; D = (S / G)^2 * 3, in the order row,
    column, channel.
    """

    MEAN = 0.5
    DEVIATION = 0.25

    def __init__(self, settings: ExtractorSettings, device: torch.device):
        if settings.side % settings.grid_size:
            raise UserError(
                f"features.image_size {settings.image_size} must be a multiple of grid_size "
                f"{settings.grid_size}"
            )
        self.name = settings.name
        self.image_size: int | None = settings.side
        self.grid_size = settings.grid_size
        self.weights_sha256 = ""
        self._cell = settings.side // settings.grid_size
        self.dim = self._cell**2 * 3

    def __call__(self, images: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """(B, S, S, 3) uint8 RGB -> (B, G, G, D) float32."""
        grid, cell = self.grid_size, self._cell
        pixels = np.asarray(images, np.float32).reshape(-1, grid, cell, grid, cell, 3)
        cells = pixels.transpose(0, 1, 3, 2, 4, 5).reshape(-1, grid, grid, self.dim)
        return (cells / 255 - self.MEAN) / self.DEVIATION
