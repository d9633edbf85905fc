"""Reading sequences out of the model: captions left to right, images by mask-predict."""

from generations.decoding.active import Active
from generations.decoding.beam import beam_captions
from generations.decoding.captions import (
    Hypotheses,
    caption_tokens,
    cut_after_eos,
    sampled_captions,
)
from generations.decoding.images import PaintingStep, image_tokens, painting_steps
from generations.decoding.orders import Guidance, Order
from generations.decoding.sampling import choose_tokens, draw_uniforms

__all__ = [
    "Active",
    "Guidance",
    "Hypotheses",
    "Order",
    "PaintingStep",
    "beam_captions",
    "caption_tokens",
    "choose_tokens",
    "cut_after_eos",
    "draw_uniforms",
    "image_tokens",
    "painting_steps",
    "sampled_captions",
]
