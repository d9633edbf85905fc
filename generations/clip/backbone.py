"""A CLIP image encoder: a frozen network trained on ImageNet, and a head that is trained.

Shape legend: B batch, C channels of all chosen maps, W width of the head, E embedding size, S image
side, c cells a side.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generations.efficientnet import LiteNetwork, load_lite, package_weights
from generations.errors import UserError
from generations.libraries import library

open_clip = library("open_clip", "open_clip_torch")

BACKBONE = "efficientnet-lite0"
CELLS = 4  # c
PREFIX = "backbone."
# open_clip builds the text half beside an image half, which then gives way
_STAND_IN = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}


class BackboneTower(nn.Module):
    """Pixels to a vector: maps of EfficientNet-Lite0, pooled by a head that is trained.

    The network's weights are those of its Python package; a state dict holds the head alone.

    Args:
        embed_dim: E.
        image_size: S, a multiple of 32.
        blocks: numbers, 0 to 15, of the network's blocks whose outputs are seen.
        width: W, a multiple of `heads`.
        heads: ways to weigh the cells.
        dropout: of the head, in training.

    Raises:
        UserError: the package of weights is not installed, or there is no such block.
    """

    def __init__(
        self,
        embed_dim: int,
        *,
        image_size: int,
        blocks: Sequence[int],
        width: int,
        heads: int = 4,
        dropout: float = 0.0,
    ):
        super().__init__()
        network = LiteNetwork()
        known = len(network.blocks)
        if not blocks or not all(0 <= number < known for number in blocks):
            raise UserError(f"clip.blocks {list(blocks)}: choose blocks from 0 to {known - 1}")
        self.image_size = image_size
        self._blocks = tuple(blocks)
        load_lite(network, package_weights())
        stem = nn.Sequential(network.conv_stem, network.bn0, nn.ReLU6())
        self.backbone = nn.ModuleList([stem, *network.blocks[: max(blocks) + 1]])
        self.backbone.requires_grad_(False)
        norms = [cast(nn.BatchNorm2d, network.blocks[n].get_submodule("bn2")) for n in blocks]
        channels = sum(norm.num_features for norm in norms)
        self.head = CellHead(channels, width, embed_dim, heads, dropout)
        self.register_state_dict_post_hook(_without_backbone)
        self.register_load_state_dict_post_hook(_backbone_is_there)
        self.train()

    def train(self, mode: bool = True) -> "BackboneTower":
        """Train the head; the norms of the network stay as they are."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) normalised -> (B, E)."""
        return self.head(self.cells(pixels))

    def cells(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) normalised -> (B, C, c, c)."""
        x, found = pixels, []
        for number, block in enumerate(self.backbone, -1):
            x = block(x)
            if number in self._blocks:
                found.append(F.adaptive_avg_pool2d(x, CELLS))
        return torch.cat(found, dim=1)


class CellHead(nn.Module):
    """Cells to a vector: each head weighs the cells in its own way, and sums its share of W."""

    def __init__(self, channels: int, width: int, embed_dim: int, heads: int, dropout: float):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.value = nn.Conv2d(channels, width, 1)
        self.weight = nn.Conv2d(channels, heads, 1)
        self.out = nn.Linear(width, embed_dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, cells: Tensor) -> Tensor:
        """(B, C, c, c) -> (B, E)."""
        x = self.norm(cells)
        values = F.gelu(self.value(self.drop(x))).flatten(2)  # (B, W, c * c)
        weights = self.weight(x).flatten(2).softmax(dim=2)  # (B, heads, c * c)
        values = values.unflatten(1, (weights.shape[1], -1))  # (B, heads, W / heads, c * c)
        pooled = (values @ weights.unsqueeze(3)).flatten(1)  # (B, W)
        return self.out(self.drop(pooled))


def build_network(model_cfg: dict[str, Any], dropout: float = 0.0) -> Any:
    """The CLIP of an open_clip model config whose vision_cfg may name this backbone.

    Such a vision_cfg has the keys backbone, image_size, blocks and width, and perhaps heads.

    Raises:
        UserError: as `BackboneTower`.
        TypeError: keys that there are not.
    """
    vision = dict(model_cfg["vision_cfg"])
    if "backbone" not in vision:
        return open_clip.CLIP(**model_cfg)
    name = vision.pop("backbone")
    if name != BACKBONE:
        raise UserError(f"clip.backbone must be {BACKBONE} or '', not {name!r}")
    network = open_clip.CLIP(**{**model_cfg, "vision_cfg": _STAND_IN})
    network.visual = BackboneTower(model_cfg["embed_dim"], dropout=dropout, **vision)
    return network


def _without_backbone(
    module: nn.Module, state: dict[str, Tensor], prefix: str, local_metadata: Any
) -> None:
    for name in [name for name in state if name.startswith(prefix + PREFIX)]:
        del state[name]


def _backbone_is_there(module: nn.Module, incompatible: Any) -> None:
    there = [name for name in incompatible.missing_keys if f".{PREFIX}" in f".{name}"]
    for name in there:
        incompatible.missing_keys.remove(name)
