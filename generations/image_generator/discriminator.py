"""The discriminator: is a cell of a picture real, and which cluster does it show?

Shape legend: B batch, D grid feature size, G grid side, S image side, C channels, K clusters.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import spectral_norm

from generations.image_generator.generator import SLOPE, check_image_size

MOST_CHANNELS = 512


class Judgement(NamedTuple):
    """What the discriminator says of B images.

    Attributes:
        scores: (B, 1, G, G), high for real.
        cluster_logits: (B, K, G, G).
        features: the output of every down-block, finest first (for feature matching).
    """

    scores: Tensor
    cluster_logits: Tensor
    features: tuple[Tensor, ...]


class Discriminator(nn.Module):
    """Residual down-blocks to the grid, then a score and a cluster for each cell.

    Every convolution is spectrally normalised but the one that leads to the classifier. The
    classifier's weights are the codebook, and stay so: the picture of a cell has to lead back to
    the very feature that it was painted from.

    Args:
        codebook: (K, D) centroids.
        grid_size: G.
        image_size: S, G times a power of two.
        channels: C, the width at full size; it doubles with every block up to 512.

    Source: X-LXMERT (Cho et al., EMNLP 2020), section 3.3; SPEC 9.
    """

    codebook: Tensor

    def __init__(self, codebook: Tensor, grid_size: int, image_size: int, channels: int):
        super().__init__()
        check_image_size(image_size, grid_size)
        blocks = (image_size // grid_size).bit_length() - 1
        widths = [min(channels * 2**i, MOST_CHANNELS) for i in range(blocks + 1)]
        self.stem = spectral_norm(nn.Conv2d(3, channels, 3, padding=1))
        self.blocks = nn.ModuleList(
            DownBlock(inputs, outputs) for inputs, outputs in pairwise(widths)
        )
        self.score = spectral_norm(nn.Conv2d(widths[-1], 1, 1))
        self.to_feature = nn.Conv2d(widths[-1], codebook.shape[1], 1)
        self.register_buffer("codebook", codebook.detach().clone())

    def forward(self, images: Tensor) -> Judgement:
        """Judge images (B, 3, S, S) in [-1, 1]."""
        x = self.stem(images)  # (B, C, S, S)
        features = []
        for block in self.blocks:
            x = block(x)  # half the side, up to twice the channels
            features.append(x)
        x = F.leaky_relu(x, SLOPE)  # (B, C', G, G)
        cell_features = self.to_feature(x)  # (B, D, G, G)
        logits = F.conv2d(cell_features, self.codebook[:, :, None, None])  # (B, K, G, G)
        return Judgement(self.score(x), logits, tuple(features))


class DownBlock(nn.Module):
    """A residual block that halves the side."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = spectral_norm(nn.Conv2d(inputs, inputs, 3, padding=1))
        self.conv2 = spectral_norm(nn.Conv2d(inputs, outputs, 3, padding=1))
        self.shortcut = spectral_norm(nn.Conv2d(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, R, R) -> (B, C', R/2, R/2)."""
        out = self.conv1(F.leaky_relu(x, SLOPE))
        out = self.conv2(F.avg_pool2d(F.leaky_relu(out, SLOPE), 2))
        return out + self.shortcut(F.avg_pool2d(x, 2))


def build_discriminator(
    codebook: Tensor, grid_size: int, image_size: int, channels: int, seed: int
) -> Discriminator:
    """A fresh discriminator on the CPU whose weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Discriminator(codebook, grid_size, image_size, channels)
