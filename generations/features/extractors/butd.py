"""`butd`: the original's features, from the ResNeXt-152 detector of vilbert-multi-task.

The network is put together from parts of torchvision; `detectron_model.pth` has the names of
maskrcnn-benchmark, and `new_name` says what each is called here.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d, roi_align

from generations.checkpoint import read_tensors, refuse_misfit
from generations.errors import UserError
from generations.features.extractors.base import (
    autocast,
    freeze,
    grid_boxes,
    seeded,
    tensors_sha256,
)
from generations.features.extractors.registry import RANDOM, ExtractorSettings, register

BGR_MEAN = (102.9801, 115.9465, 122.7717)  # of pixels in 0..255
SHORT_SIDE, LONG_SIDE = 800, 1333
MULTIPLE = 32  # of the sides
POOLED = 7  # points a side of a pooled box
CANONICAL_SIDE, CANONICAL_LEVEL = 224, 4  # a box of this size belongs to this level
FINEST, COARSEST = 2, 5  # levels of the pyramid, of stride 2^level
ANCHORS = 3  # shapes at each place

# maskrcnn-benchmark's beginning of a name -> the one here; the first that fits counts
NAMES = {
    "backbone.body.stem.": "body.",
    "backbone.body.": "body.",
    **{f"backbone.fpn.fpn_inner{n}.": f"pyramid.inner_blocks.{n - 1}.0." for n in range(1, 5)},
    **{f"backbone.fpn.fpn_layer{n}.": f"pyramid.layer_blocks.{n - 1}.0." for n in range(1, 5)},
    "rpn.head.conv.": "proposals.conv.0.0.",
    "rpn.head.": "proposals.",
    "rpn.anchor_generator.cell_anchors.": "anchors_",
    "roi_heads.box.feature_extractor.": "box_head.",
    "roi_heads.box.predictor.cls_embed.": "attributes.cls_embed.",
    "roi_heads.box.predictor.attr_": "attributes.attr_",
    "roi_heads.box.predictor.": "predictor.",
}


@dataclass(frozen=True)
class DetectorSize:
    """Sizes of the detector; the defaults are the original's.

    Attributes:
        blocks: of the four stages.
        groups: of the 3 x 3 convolutions.
        group_width: channels of a group in the first stage.
        pyramid: channels of the feature pyramid.
        head: width of both layers of the box head; D.
        classes: of objects, background included.
        attributes: of objects; 0: no attribute head.
        class_embedding: width of what the attribute head knows of the class.
        attribute_hidden: width of the attribute head.
    """

    blocks: tuple[int, int, int, int] = (3, 8, 36, 3)
    groups: int = 32
    group_width: int = 8
    pyramid: int = 512
    head: int = 2048
    classes: int = 1601
    attributes: int = 0
    class_embedding: int = 256
    attribute_hidden: int = 512


class Detector(nn.Module):
    """ResNeXt with a feature pyramid, and a Faster R-CNN head of two layers.

    Only the body, the pyramid and the head's first layer make features; the others are there so
    that a file of weights can be held against all of its names.

    Args:
        size: see `DetectorSize`.

    Source: Lin et al., Feature pyramid networks (2017); Xie et al., ResNeXt (2017).
    """

    def __init__(self, size: DetectorSize = DetectorSize()):
        super().__init__()
        resnet = ResNet(
            Bottleneck,  # the stride is in the 3 x 3 convolution, as in the original
            list(size.blocks),
            groups=size.groups,
            width_per_group=size.group_width,
            norm_layer=partial(FrozenBatchNorm2d, eps=0.0),  # maskrcnn-benchmark adds none
        )
        self.body = IntermediateLayerGetter(resnet, {f"layer{n}": str(n) for n in range(1, 5)})
        channels = [256, 512, 1024, 2048]
        self.pyramid = FeaturePyramidNetwork(channels, size.pyramid)
        self.proposals = RPNHead(size.pyramid, ANCHORS)
        self.box_head = TwoMLPHead(size.pyramid * POOLED**2, size.head)
        self.predictor = FastRCNNPredictor(size.head, size.classes)
        for level in range(COARSEST - FINEST + 2):
            self.register_buffer(f"anchors_{level}", torch.zeros(ANCHORS, 4))
        if size.attributes:
            joined = size.head + size.class_embedding
            self.attributes = nn.ModuleDict(
                {
                    "cls_embed": nn.Embedding(size.classes, size.class_embedding),
                    "attr_linear1": nn.Linear(joined, size.attribute_hidden),
                    "attr_linear2": nn.Linear(size.attribute_hidden, size.attributes),
                }
            )

    def forward(self, pixels: Tensor, grid_size: int) -> Tensor:
        """fc6 after ReLU of the boxes of a grid.

        Args:
            pixels: (B, 3, H, W) float32 BGR, mean subtracted; H and W multiples of 32.
            grid_size: G.

        Returns:
            (B, G, G, D) float32, not negative.
        """
        batch, _, height, width = pixels.shape
        box_height, box_width = height // grid_size, width // grid_size
        level = box_level(box_height, box_width)
        maps = self._level(self.body(pixels), level).float()
        boxes = grid_boxes(grid_size, box_height, box_width).to(pixels)
        pooled = roi_align(
            maps,
            [boxes] * batch,
            output_size=POOLED,
            spatial_scale=2.0**-level,
            sampling_ratio=2,
            aligned=False,
        )
        features = F.relu(self.box_head.fc6(pooled.flatten(1))).float()
        return features.reshape(batch, grid_size, grid_size, -1)

    def _level(self, stages: Mapping[str, Tensor], level: int) -> Tensor:
        """The one level of the pyramid that boxes of a size are taken from: all are of one size.

        The finest level, which a grid of 8 does not need, would cost a quarter of the whole.
        """
        inner, layers = self.pyramid.inner_blocks, self.pyramid.layer_blocks
        maps = inner[-1](stages[str(COARSEST - FINEST + 1)])
        for finer in range(COARSEST - 1, level - 1, -1):
            lateral = inner[finer - FINEST](stages[str(finer - FINEST + 1)])
            maps = lateral + F.interpolate(maps, lateral.shape[-2:], mode="nearest")
        return layers[level - FINEST](maps)


def box_level(height: int, width: int) -> int:
    """The level of the pyramid that a box belongs to.

    Args:
        height: of the box in pixels, the last row not counted, as in maskrcnn-benchmark.
        width: likewise.

    Returns:
        2 to 5.

    Source: Lin et al., Feature pyramid networks (2017), equation 1.
    """
    side = ((height + 1) * (width + 1)) ** 0.5
    level = CANONICAL_LEVEL + np.floor(np.log2(side / CANONICAL_SIDE + 1e-6))
    return int(np.clip(level, FINEST, COARSEST))


def prepare_pixels(picture: Tensor) -> Tensor:
    """Pixels as the detector wants them.

    The mean is subtracted, the shorter side becomes 800 pixels unless the longer one would become
    more than 1333, and what exceeds a multiple of 32 is taken off the sides. Bilinear, without
    antialiasing. A side is at least 32: the original has nothing left of very long pictures.

    Args:
        picture: (H, W, 3) uint8 RGB.

    Returns:
        (3, H', W') float32 BGR.
    """
    height, width = picture.shape[:2]
    scale = SHORT_SIDE / min(height, width)
    if round(scale * max(height, width)) > LONG_SIDE:
        scale = LONG_SIDE / max(height, width)
    sides = [int(scale * side) // MULTIPLE * MULTIPLE for side in (height, width)]
    size = [max(MULTIPLE, side) for side in sides]
    mean = torch.tensor(BGR_MEAN, device=picture.device)
    pixels = (picture.flip(2) - mean).permute(2, 0, 1)
    return F.interpolate(pixels[None], size, mode="bilinear", align_corners=False)[0]


@register("butd")
class Butd:
    """fc6 of the detector on the G x G boxes of the picture, in the picture's own aspect ratio.

    `weights` is the public detectron_model.pth of vilbert-multi-task, or "random".

    Source: SPEC 3; Cho et al., X-LXMERT (2020), which made the features so.
    """

    def __init__(
        self,
        settings: ExtractorSettings,
        device: torch.device,
        size: DetectorSize = DetectorSize(),
    ):
        if not settings.weights:
            raise UserError(
                "features.weights is empty: set it to the file detectron_model.pth of "
                f"vilbert-multi-task, or to {RANDOM}"
            )
        if settings.weights == RANDOM:
            detector = seeded(lambda: random_detector(size), settings.seed)
        else:
            detector = load_detector(read_tensors(settings.weights), settings.weights, size)
        self.name = settings.name
        self.image_size: int | None = None
        self.grid_size = settings.grid_size
        self.dim = size.head
        self.weights_sha256 = tensors_sha256(detector.state_dict())
        self.detector = freeze(detector).to(device)
        self.detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._device = device
        self._precision = settings.precision

    @torch.no_grad()
    def __call__(self, images: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """B times (H, W, 3) uint8 RGB, each of its own size -> (B, G, G, D) float32."""
        found = np.empty((len(images), self.grid_size, self.grid_size, self.dim), np.float32)
        for number, image in enumerate(images):
            # one by one: they differ in size, and one fills a GPU
            pixels = prepare_pixels(torch.from_numpy(image).to(self._device))
            with autocast(self._device, self._precision):
                cells = self.detector(pixels[None], self.grid_size)[0]
            found[number] = cells.cpu().numpy()
        return found


def random_detector(size: DetectorSize) -> Detector:
    """A detector of random weights whose features are of a moderate size."""
    detector = Detector(size)
    for module in detector.body.modules():
        if isinstance(module, Bottleneck):
            # untrained, each of the 50 blocks would double the variance of what it adds to
            nn.init.constant_(module.bn3.get_buffer("weight"), 0.2)
    return detector


# --- weights -------------------------------------------------------------------------------------


def new_name(old: str) -> str | None:
    """What a tensor of maskrcnn-benchmark is called in `Detector`; None: nothing like it."""
    for beginning, here in NAMES.items():
        if old.startswith(beginning):
            return here + old.removeprefix(beginning)
    return None


def load_detector(
    tensors: Mapping[str, Tensor], source: str, size: DetectorSize = DetectorSize()
) -> Detector:
    """A detector with the weights of a file.

    The numbers of classes and attributes are taken from the file. Every tensor must have its place
    and every place its tensor, except that the attribute head and the anchors may be absent.

    Args:
        tensors: of the file, by maskrcnn-benchmark's names, with or without "module." before each.
        source: the file, for messages.
        size: of all else.

    Raises:
        UserError: names or shapes are those of another network.
    """
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    stored = {new_name(old) or old: tensor for old, tensor in tensors.items()}

    def rows(name: str, otherwise: int) -> int:
        return stored[name].shape[0] if name in stored and stored[name].ndim else otherwise

    size = replace(
        size,
        classes=rows("predictor.cls_score.weight", size.classes),
        attributes=rows("attributes.attr_linear2.weight", 0),
    )
    with torch.device("meta"):  # no memory for weights that are replaced at once
        detector = Detector(size)
    own = detector.state_dict()
    anchors = {name for name in own if re.fullmatch(r"anchors_\d", name)}
    fitting = {n: t for n, t in stored.items() if n in own and t.shape == own[n].shape}
    refuse_misfit(
        source,
        "the ResNeXt-152 detector of vilbert-multi-task",
        [name for name in own if name not in stored and name not in anchors],
        [old for old in tensors if (new_name(old) or old) not in fitting],
    )
    whole = {n: torch.zeros(own[n].shape) for n in anchors if n not in stored} | fitting
    detector.load_state_dict({n: t.float() for n, t in whole.items()}, assign=True)
    return detector
