"""Reading sequences out of the model: captions left to right, images by mask-predict."""

from generations.decoding.captions import caption_tokens, cut_after_eos
from generations.decoding.images import PaintingStep, image_tokens, painting_steps

__all__ = ["PaintingStep", "caption_tokens", "cut_after_eos", "image_tokens", "painting_steps"]
