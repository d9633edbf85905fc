"""`open_clip`: the patch tokens of a CLIP's image half."""

from typing import Any, cast

import torch
from torch import Tensor

from generations.clip import load_clip
from generations.clip.loading import OFF
from generations.errors import UserError
from generations.features.extractors.base import SquareExtractor
from generations.features.extractors.registry import ExtractorSettings, register


@register("open_clip")
class ClipTower(SquareExtractor):
    """The last map of a CLIP's image half, before it is pooled into one vector.

    Of a vision transformer these are its patch tokens after the last block and the final norm; of a
    ResNet its last stage. S must be the side that the CLIP looks at.

    Source: Radford et al., Learning transferable visual models from natural language supervision.
    """

    def __init__(self, settings: ExtractorSettings, device: torch.device):
        if not settings.backbone or not settings.weights:
            raise UserError(
                "features.extractor open_clip needs features.backbone and features.weights: a "
                "name and a tag of open_clip (ViT-B-32 openai), or a model config (.json) and a "
                "file of weights"
            )
        try:
            clip = load_clip(settings.backbone, settings.weights)
        except UserError as error:
            said = str(error).replace(OFF, "").replace("clip.model", "features.backbone")
            said = said.replace("clip.weights", "features.weights")
            raise UserError(said) from None
        if clip.size != (settings.side, settings.side):
            raise UserError(
                f"features.backbone {settings.backbone} needs images of {clip.size[0]} x "
                f"{clip.size[1]} pixels, not features.image_size {settings.image_size}; set "
                f"features.image_size {clip.size[0]}"
            )
        mean, std = clip.mean.flatten().tolist(), clip.std.flatten().tolist()
        super().__init__(settings, cast(Any, clip.network).visual, device, mean, std)

    def feature_map(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) float32, normalised -> (B, D, h, w) float32."""
        found = cast(Any, self.network).forward_intermediates(
            pixels, indices=1, normalize_intermediates=True, intermediates_only=True
        )
        return found["image_intermediates"][-1]
