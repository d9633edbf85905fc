"""A frozen CLIP behind two methods: captions to vectors, pixels to vectors with a gradient.

Shape legend: B batch, E embedding size, S image side, T context length.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generations.libraries import library

open_clip = library("open_clip", "open_clip_torch")
transforms = library("torchvision.transforms")
vision = library("torchvision.transforms.functional")

logger = logging.getLogger(__name__)

PROMPT = "A photo depicts "  # SPEC 8
PREPROCESS = {  # open_clip's defaults
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
PAD, UNKNOWN = 0, 1  # ids of SmallTokenizer; the tokens it keeps follow


class SmallTokenizer:
    """open_clip's byte-pair tokenizer with the few tokens that a small world needs.

    Args:
        token_ids: the tokens to keep, as ids of open_clip's tokenizer, ascending.
        context_length: T.

    Raises:
        ValueError: the ids are not ascending.
    """

    def __init__(self, token_ids: Sequence[int], context_length: int):
        if sorted(set(token_ids)) != list(token_ids):
            raise ValueError("token_ids must be in ascending order")
        self._tokenizer = open_clip.SimpleTokenizer(context_length=context_length)
        # Kept tokens stay in order, so that the end token still has the highest id: CLIP finds the
        # end of a caption by it.
        self._table = torch.full((self._tokenizer.vocab_size,), UNKNOWN)
        self._table[torch.tensor(list(token_ids))] = UNKNOWN + 1 + torch.arange(len(token_ids))
        self._table[0] = PAD
        self.vocab_size = UNKNOWN + 1 + len(token_ids)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (B, T) ids; what is too long is cropped."""
        return self._table[self._tokenizer(list(texts))]


def used_tokens(texts: Sequence[str]) -> list[int]:
    """The tokens that texts consist of, start and end included: `token_ids` of a SmallTokenizer."""
    tokenizer = open_clip.SimpleTokenizer()
    used = {tokenizer.sot_token_id, tokenizer.eot_token_id}
    for text in texts:
        used.update(tokenizer.encode(text))
    return sorted(used - {0})


class ClipModel(nn.Module):
    """A frozen CLIP, always in eval mode.

    Args:
        network: open_clip's model.
        tokenize: texts -> (B, T) token ids.
        config: {"model_cfg", "preprocess_cfg"} and perhaps "token_ids"; kept for `save_clip`.

    Attributes:
        size: (height, width) in pixels that the network looks at.
        cropped_texts: how many texts were longer than the context until now.
        config: as given.

    Raises:
        ValueError: preprocessing that is not supported here.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, tokenize: Callable[[list[str]], Tensor], config: dict[str, Any]
    ):
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.config = config
        self._tokenize = tokenize
        wanted = PREPROCESS | config.get("preprocess_cfg", {})
        size = cast(Any, network).visual.image_size
        self.size: tuple[int, int] = tuple(size) if isinstance(size, Sequence) else (size, size)
        self.cropped_texts = 0
        self._squash = wanted["resize_mode"] == "squash"
        square = self.size[0] == self.size[1]
        if not self._squash and not (wanted["resize_mode"] == "shortest" and square):
            raise ValueError(
                f"resize_mode {wanted['resize_mode']!r} to {self.size} is not supported"
            )
        self._interpolation = transforms.InterpolationMode(wanted["interpolation"])
        for name in ("mean", "std"):
            values = torch.tensor(wanted[name], dtype=torch.float32).view(1, 3, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def train(self, mode: bool = True) -> "ClipModel":
        """Stay in eval mode, whatever module this one belongs to."""
        return super().train(False)

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str], prompt: str = "") -> Tensor:
        """Captions to unit vectors.

        Args:
            captions: B texts; those beyond the context length are cropped.
            prompt: what to put before each caption.

        Returns:
            (B, E) float32, of length 1, without gradient.
        """
        tokens = self._tokenize([prompt + caption for caption in captions])
        self._tell_cropped(tokens)
        features = cast(Any, self.network).encode_text(tokens.to(self.mean.device))
        return F.normalize(features.float(), dim=-1)

    def _tell_cropped(self, tokens: Tensor) -> None:
        if not isinstance(self._tokenize, open_clip.SimpleTokenizer | SmallTokenizer):
            return  # others fill up with ids of their own
        cropped = int((tokens[:, -1] != PAD).sum())  # they fill it to the last place
        if cropped and not self.cropped_texts:
            logger.warning(
                "CLIP reads at most %d tokens; %d of these %d texts fill them and may be cropped "
                "(logged once)",
                *(tokens.shape[1], cropped, len(tokens)),
            )
        self.cropped_texts += cropped

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Pixels to unit vectors, differentiable with respect to the pixels.

        Args:
            pixels: (B, 3, H, W) float in [0, 1].

        Returns:
            (B, E) float32, of length 1. For 8-bit images within 0.01 of what open_clip's own
            preprocessing gives, which rounds and clips to 8 bits after each pass of the filter.
        """
        features = cast(Any, self.network).encode_image(self.preprocess(pixels))
        return F.normalize(features.float(), dim=-1)

    def preprocess(self, pixels: Tensor) -> Tensor:
        """Resize, crop and normalise as open_clip does with image files.

        The shorter side is resized to S (or the image squashed, for models made so) by a bicubic
        filter with antialiasing, the one of Pillow (a = -0.5), and what overshoots [0, 1] is
        clipped, as it is in an 8-bit image. Images of the right size stay as they are.

        Args:
            pixels: (B, 3, H, W) float in [0, 1].

        Returns:
            (B, 3, S, S) float32.

        Source: SPEC 8.
        """
        if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point():
            raise ValueError(
                f"pixels must be (B, 3, H, W) floats, not {tuple(pixels.shape)} {pixels.dtype}"
            )
        pixels = pixels.float()
        if tuple(pixels.shape[2:]) != self.size:
            resized = self._resize(pixels)
            pixels = vision.center_crop(resized.clamp(0, 1), list(self.size))
        return (pixels - self.mean) / self.std

    def _resize(self, pixels: Tensor) -> Tensor:
        if not torch.are_deterministic_algorithms_enabled():
            size = list(self.size) if self._squash else [self.size[0]]
            return vision.resize(pixels, size, self._interpolation, antialias=True)
        # the gradient of the filter has no deterministic algorithm on a GPU, products have one
        sides = list(pixels.shape[2:])
        wanted = self.size if self._squash else [self.size[0] * n // min(sides) for n in sides]
        high, wide = (
            vision.resize(
                torch.eye(old, device=pixels.device)[None], [new, old], self._interpolation,
                antialias=True,
            )[0]
            for old, new in zip(sides, wanted, strict=True)
        )  # fmt: skip
        return high @ pixels @ wide.T
