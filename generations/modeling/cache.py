"""Causal captioning word by word with a key/value cache.

A step computes two positions: the word that was written last, and the [MASK] of the next one. Both
go into slots of their own; the [MASK]'s is overwritten by the word that takes its place.

Shape legend as in generations.modeling.transformer; R captions (rows), each of one of B images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from generations.batch import sizes_repeat
from generations.modeling.transformer import (
    CrossLayer,
    KeyValues,
    Layer,
    Past,
    UnifiedTransformer,
    key_bias,
)
from generations.modeling.visibility import upto
from generations.vocabulary import CLS, MASK


@dataclass(frozen=True)
class CaptionCache:
    """Keys and values of R captions and of their images, for each layer that reads them.

    Attributes:
        words: of each language layer, then of each cross layer: (R, heads, T, H / heads), written
            in place.
        images: of each cross layer, of all images: (B, heads, N, H / heads).
        image_of: (R,) the image of each caption.
        own_images: of each cross layer, of each caption's image: (R, heads, N, H / heads).
    """

    words: Sequence[KeyValues]
    images: Sequence[KeyValues]
    image_of: Tensor
    own_images: Sequence[KeyValues]

    def rows(self, index: Tensor) -> "CaptionCache":
        """The captions at `index`, ids (R',) or bool (R,); a caption may come several times."""
        words = [(keys[index], values[index]) for keys, values in self.words]
        image_of = self.image_of[index]
        own = self.own_images
        if sizes_repeat(image_of.device) or not torch.equal(image_of, self.image_of):
            own = [(keys[image_of], values[image_of]) for keys, values in self.images]
        return replace(self, words=words, image_of=image_of, own_images=own)


def start_captions(model: UnifiedTransformer, vision: Tensor, length: int) -> CaptionCache:
    """A cache for one caption of each image, of which nothing is written.

    Args:
        model: the network.
        vision: (B, N, H) from `encode_vision`.
        length: T.
    """
    cls = model.encode_text(torch.full((1, 1), CLS, device=vision.device), None)
    cls = cls.expand(len(vision), -1, -1)  # the same for all images, until it sees one
    layers = cast(list[CrossLayer], list(model.encoder.x_layers))
    images = []
    for number, layer in enumerate(layers, 1):
        images.append(layer.visual_attention.projections.keys_values(vision))
        if number < len(layers):
            vision, cls = layer.see(vision, cls), layer.tell(vision, cls)
    keys, _ = images[0]
    shape = (len(vision), keys.shape[1], length, keys.shape[-1])
    slots = len(model.encoder.layer) + len(layers)
    words = [(keys.new_zeros(shape), keys.new_zeros(shape)) for _ in range(slots)]
    return CaptionCache(words, images, torch.arange(len(vision), device=vision.device), images)


def next_word_logits(
    model: UnifiedTransformer, cache: CaptionCache, words: Tensor, step: int
) -> Tensor:
    """Logits (R, V) of position `step`, given the words (R,) at `step` - 1; fills the cache.

    Args:
        model: the network.
        cache: filled by the steps before, from 1 on, each once.
        words: ids; [CLS] at step 1.
        step: in 1..T-1.
    """
    slots = torch.arange(step - 1, step + 1, device=words.device)
    length = cache.words[0][0].shape[2]
    ids = torch.stack([words, torch.full_like(words, MASK)], 1)  # (R, 2)
    states = model.embedding_layer(ids, slots)  # (R, 2, H)
    bias = key_bias(upto(slots, length)[None], states)
    pasts = iter([Past(*kept, slots) for kept in cache.words])
    for layer in cast(list[Layer], list(model.encoder.layer)):
        states = layer(states, bias, next(pasts))
    layers = cast(list[CrossLayer], list(model.encoder.x_layers))
    for layer, image in zip(layers, cache.own_images, strict=True):
        read = slots.new_ones(1) if layer is layers[-1] else None  # the [MASK] alone
        states = layer.tell(image, states, bias, read, next(pasts))
    return model.text_logits(states[:, 0])
