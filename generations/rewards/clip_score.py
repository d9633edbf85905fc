"""CLIPScore: how well a picture fits its caption; the reward of painting, and a metric."""

from collections.abc import Sequence

from torch import Tensor

from generations.clip import PROMPT, ClipModel

WEIGHT = 2.5


def clip_score(
    clip: ClipModel, pixels: Tensor, captions: Sequence[str], prompt: str = PROMPT
) -> Tensor:
    """Score pictures against their captions, differentiable with respect to the pixels.

    Args:
        clip: any CLIP.
        pixels: (B, 3, H, W) float in [0, 1].
        captions: B captions.
        prompt: what stands before each caption.

    Returns:
        (B,) float32, 2.5 * max(100 cos, 0), in [0, 250]. Where the cosine is negative, score and
        gradient are 0.

    Source: SPEC 8; Hessel et al. 2021, with cosines in hundredths.
    """
    if len(pixels) != len(captions):
        raise ValueError(f"{len(pixels)} pictures, but {len(captions)} captions")
    return score_embeddings(clip.encode_images(pixels), clip.encode_text(captions, prompt))


def score_embeddings(images: Tensor, texts: Tensor) -> Tensor:
    """CLIPScores (B,) of unit vectors (B, E) of pictures and of their captions."""
    return WEIGHT * (100 * (images * texts).sum(dim=1)).clamp(min=0)
