"""From a grid of features to pixels: X-LXMERT's image generator.

Shape legend: B batch, D grid feature size, G grid side, S image side, C channels, K clusters,
N = G * G cells.

Parameter names are those of the released checkpoint, which is why some modules are called `cbn1`,
`shared` or `to_RGB_blocks`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import spectral_norm

from generations.errors import UserError

INIT_GROUPS = 4
SLOPE = 0.2  # of every leaky ReLU


@dataclass(frozen=True)
class GeneratorSize:
    """Sizes of the image generator. Defaults: the released one.

    Attributes:
        feature_size: D.
        grid_size: G.
        image_size: S in pixels; G times a power of two.
        channels: C, a multiple of 4; the width of every block.
        bottleneck_channels: what a feature is reduced to, a multiple of 4.
        style_channels: width of the convolution that the two modulation maps of a SPADE share.
        noise: inject noise unless `forward` is told otherwise.
    """

    feature_size: int = 2048
    grid_size: int = 8
    image_size: int = 256
    channels: int = 32
    bottleneck_channels: int = 256
    style_channels: int = 128
    noise: bool = False

    def __post_init__(self):
        check_image_size(self.image_size, self.grid_size)
        for name in ("channels", "bottleneck_channels"):
            value = getattr(self, name)
            if value < INIT_GROUPS or value % INIT_GROUPS:
                raise UserError(
                    f"generator.{name} {value} must be a positive multiple of {INIT_GROUPS} "
                    "(the first convolutions are grouped)"
                )

    @property
    def blocks(self) -> int:
        """Number of up-blocks, each of which doubles the side."""
        return (self.image_size // self.grid_size).bit_length() - 1


def check_image_size(image_size: int, grid_size: int) -> None:
    """Raise a UserError unless image_size is grid_size times 2, 4, 8, ..."""
    ratio = image_size // grid_size
    if image_size % grid_size or ratio < 2 or ratio & (ratio - 1):
        near = grid_size * 2 ** max(1, ratio.bit_length() - 1)
        raise UserError(
            f"generator.image_size {image_size} must be grid_size {grid_size} times a power of two "
            f"(2, 4, 8, ...), such as {near} or {2 * near}"
        )


class ImageGenerator(nn.Module):
    """Paints an image from grid features; deterministic in eval mode without noise.

    In training mode every forward pass moves the spectral-norm vectors by one power iteration, so
    keep it in eval mode wherever it is not being trained.

    Args:
        size: the sizes.

    Source: X-LXMERT (Cho et al., EMNLP 2020), section 3.3; SPEC 9.
    """

    def __init__(self, size: GeneratorSize):
        super().__init__()
        self.size = size
        width, bottleneck = size.channels, size.bottleneck_channels
        self.bottleneck_emb = nn.Sequential(nn.Conv2d(size.feature_size, bottleneck, 1), nn.Tanh())
        self.learned_init_conv = nn.Sequential(_first_conv(bottleneck, width))
        self.style_init_conv = nn.Sequential(_first_conv(bottleneck, width))
        self.resblocks = nn.ModuleList(
            UpBlock(width, size.style_channels) for _ in range(size.blocks)
        )
        self.to_RGB_blocks = nn.ModuleList(ToRGB(width) for _ in range(size.blocks))

    def forward(
        self, features: Tensor, noise: bool | None = None, rng: torch.Generator | None = None
    ) -> Tensor:
        """Paint.

        Args:
            features: (B, D, G, G) grid features or codebook rows.
            noise: inject noise; None: as `size.noise` says.
            rng: where the noise comes from, on the device of `features`; needed with noise.

        Returns:
            (B, 3, S, S) in [-1, 1].

        Raises:
            ValueError: features of another shape, or noise without `rng`.
        """
        size = self.size
        wanted = (size.feature_size, size.grid_size, size.grid_size)
        if features.ndim != 4 or tuple(features.shape[1:]) != wanted:
            raise ValueError(
                f"the image generator needs features of shape (B, {', '.join(map(str, wanted))}), "
                f"not {tuple(features.shape)}"
            )
        if not (size.noise if noise is None else noise):
            rng = None
        elif rng is None:
            raise ValueError("noise is on: pass a torch.Generator as `rng`")

        cells = self.bottleneck_emb(features)  # (B, bottleneck, G, G)
        hidden = self.learned_init_conv(cells)  # (B, C, G, G)
        base_style = self.style_init_conv(cells)  # (B, C, G, G)
        style = base_style
        image = features.new_zeros(())
        for block, to_rgb in zip(self.resblocks, self.to_RGB_blocks, strict=True):
            side = 2 * hidden.shape[-1]
            fine_style = _resize(base_style, side)  # (B, C, side, side)
            hidden = block(hidden, style, fine_style, rng)  # (B, C, side, side)
            image = image + _resize(to_rgb(hidden), size.image_size)  # (B, 3, S, S)
            style = fine_style
        return torch.tanh(image)


class UpBlock(nn.Module):
    """A residual block that doubles the side, modulated by the style map at both sides."""

    def __init__(self, channels: int, style_channels: int):
        super().__init__()
        self.cbn1 = Spade(channels, style_channels)
        self.noise1 = NoiseInjection()
        self.conv1 = spectral_norm(nn.Conv2d(channels, channels, 3, padding=1))
        self.cbn2 = Spade(channels, style_channels)
        self.noise2 = NoiseInjection()
        self.conv2 = spectral_norm(nn.Conv2d(channels, channels, 3, padding=1))
        self.res_branch = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear"),
            spectral_norm(nn.Conv2d(channels, channels, 1)),
        )

    def forward(
        self, x: Tensor, style: Tensor, fine_style: Tensor, rng: torch.Generator | None
    ) -> Tensor:
        """(B, C, R, R) -> (B, C, 2R, 2R), given the style at R and at 2R; no noise without rng."""
        side = 2 * x.shape[-1]
        out = F.leaky_relu(self.noise1(self.cbn1(x, style), rng), SLOPE)
        out = self.conv1(_resize(out, side))
        out = F.leaky_relu(self.noise2(self.cbn2(out, fine_style), rng), SLOPE)
        return self.conv2(out) + self.res_branch(x)


class Spade(nn.Module):
    """Instance normalisation whose scale and shift are maps computed from the style.

    Source: Park et al., Semantic Image Synthesis with Spatially-Adaptive Normalization, CVPR 2019.
    """

    def __init__(self, channels: int, style_channels: int):
        super().__init__()
        self.shared = nn.Sequential(nn.Conv2d(channels, style_channels, 3, padding=1), nn.ReLU())
        self.gamma = nn.Conv2d(style_channels, channels, 3, padding=1)
        self.beta = nn.Conv2d(style_channels, channels, 3, padding=1)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """x and style (B, C, R, R) -> (B, C, R, R)."""
        shared = self.shared(style)  # (B, style_channels, R, R)
        return F.instance_norm(x) * (1 + self.gamma(shared)) + self.beta(shared)


class NoiseInjection(nn.Module):
    """Adds one plane of Gaussian noise to all channels, times a learned scale (zero at first)."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, rng: torch.Generator | None) -> Tensor:
        """(B, C, R, R) -> the same shape; unchanged without rng."""
        if rng is None:
            return x
        plane = torch.randn(
            (x.shape[0], 1, *x.shape[2:]), generator=rng, device=x.device, dtype=x.dtype
        )
        return x + self.weight * plane


class ToRGB(nn.Module):
    """A block's share of the picture."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, R, R) -> (B, 3, R, R)."""
        return self.conv(x)


def codebook_grid(codebook: Tensor, cluster_ids: Tensor) -> Tensor:
    """Look up grids: codebook (K, D) and cluster_ids (B, N) -> (B, D, G, G)."""
    side = math.isqrt(cluster_ids.shape[1])
    return codebook[cluster_ids].unflatten(1, (side, side)).permute(0, 3, 1, 2)


@torch.no_grad()
def spread_bottleneck(generator: ImageGenerator, codebook: Tensor, deviation: float) -> None:
    """Scale and shift the generator's first layer to the codebook.

    Features come in any scale. Afterwards every output of the layer has mean 0 and the given
    deviation over the codebook's rows, so that the tanh behind it tells the clusters apart from
    the first step on.

    Args:
        generator: its `bottleneck_emb` is changed.
        codebook: (K, D).
        deviation: > 0; 2 uses the whole range of the tanh.
    """
    layer = generator.bottleneck_emb[0]
    assert isinstance(layer, nn.Conv2d) and layer.bias is not None
    outputs = codebook @ layer.weight.flatten(1).T  # (K, bottleneck)
    scale = deviation / outputs.std(dim=0).clamp_min(1e-6)
    layer.weight.mul_(scale[:, None, None, None])
    layer.bias.copy_(-scale * outputs.mean(dim=0))


def _first_conv(inputs: int, outputs: int) -> nn.Module:
    return spectral_norm(nn.Conv2d(inputs, outputs, 3, padding=1, groups=INIT_GROUPS))


def _resize(x: Tensor, side: int) -> Tensor:
    if x.shape[-1] == side:
        return x
    return F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
