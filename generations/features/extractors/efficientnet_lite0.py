"""`efficientnet-lite0`: weights trained on ImageNet that come as a Python package."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generations.efficientnet import (
    CHANNELS,
    FIRST_CHANNELS,
    MEAN,
    STD,
    LiteNetwork,
    load_lite,
    package_weights,
)
from generations.errors import UserError
from generations.features.extractors.base import SquareExtractor, seeded
from generations.features.extractors.registry import RANDOM, ExtractorSettings, register

# features.layer: points a side of a cell that the first map has before the last one, and what its
# numbers are multiplied by against the last map's 320
LAYERS = {
    "": (0, 0.0),
    "first+last": (1, 6.0),
    "first2x2+last": (2, 6.0),
    "first2x2/2+last": (2, 3.0),
}


@register("efficientnet-lite0")
class EfficientNetLite0(SquareExtractor):
    """The output of the last block, (S / 32)^2 cells of 320 numbers of either sign.

    With S 256 the map is 8 x 8, the grid itself. It says what is there, and little of its colour;
    with the layer "first+last" the mean of the first block's output comes before it, 336 numbers
    in all; with "first2x2+last" its means in the four quarters of the cell, so that a codebook
    knows where in the cell the colours are, 384 numbers: for each of 16 channels top left, top
    right, bottom left, bottom right. Both maps are then as the norms leave them, with mean 0 and
    deviation 1 over ImageNet, and the first one's numbers are multiplied by 6: seven tenths of the
    squared distances are then colours; by 3 with "first2x2/2+last" a third is, so that a
    codebook keeps more of what is there, and less of its colours (docs/flickr8k.md).

    Source: Tan and Le, EfficientNet (2019); the lite variant has no squeeze-and-excitation and
    ReLU6 in place of swish.
    """

    def __init__(self, settings: ExtractorSettings, device: torch.device):
        if settings.layer not in LAYERS:
            sizes = {name: n**2 * FIRST_CHANNELS + CHANNELS for name, (n, _) in LAYERS.items()}
            known = ", ".join(f"{name!r} (grid_feat_dim {dim})" for name, dim in sizes.items())
            raise UserError(
                f"features.layer of efficientnet-lite0 must be {known}, or '' for the last map, "
                f"not {settings.layer!r}"
            )
        self._points, self._weight = LAYERS[settings.layer]
        network = seeded(LiteNetwork, settings.seed)
        if settings.weights != RANDOM:
            load_lite(network, settings.weights or package_weights())
        super().__init__(settings, network, device, MEAN, STD)

    def feature_map(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) float32, normalised -> (B, 320, 336 or 384, S / 32, S / 32) float32."""
        network = self.network
        assert isinstance(network, LiteNetwork)
        first, last = network.maps(pixels)
        if not self._points:
            return last
        sides = (last.shape[2] * self._points, last.shape[3] * self._points)
        first = F.adaptive_avg_pool2d(first, sides)
        first, last = _standard(first, network.blocks[0]), _standard(last, network.blocks[-1])
        first = F.pixel_unshuffle(first, self._points)  # a cell's points become channels
        return torch.cat([self._weight * first, last], dim=1)


def _standard(output: Tensor, block: nn.Module) -> Tensor:
    """A block's output before the scale and shift of the norm at its end."""
    norm = block.get_submodule("bn2")
    weight, bias = norm.get_parameter("weight"), norm.get_parameter("bias")
    return (output - bias.view(1, -1, 1, 1)) / weight.abs().clamp_min(1e-3).view(1, -1, 1, 1)
