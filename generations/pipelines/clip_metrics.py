"""CLIPScore and R-precision of pictures and captions, while the pictures stream by.

Shape legend: M pictures, E embedding size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from generations.clip import ClipModel
from generations.metrics.r_precision import (
    draw_negatives,
    find_hard_hits,
    find_hits,
    summarize_hits,
)
from generations.pipelines.pictures import PaintedPicture, read_pictures, stacks
from generations.rewards.clip_score import score_embeddings
from generations.runtime import Runtime, gather_lists

TEXTS_AT_ONCE = 256


@dataclass(frozen=True)
class ClipEmbeddings:
    """Unit vectors of pictures and captions, (M, E) each.

    Attributes:
        images: of the pictures that could be read.
        texts: of their captions.
        places: which pictures these are.
    """

    images: Tensor
    texts: Tensor
    places: tuple[int, ...] = ()


class ClipMeter:
    """Embeds pictures as they come; what stays is a vector each.

    Args:
        clip: any CLIP.
        captions: of all pictures.
        prompt: what stands before each caption.
    """

    def __init__(self, clip: ClipModel, captions: Sequence[str], prompt: str):
        self._clip = clip
        self._captions = captions
        self._prompt = prompt
        self._places: list[int] = []
        self._images: list[Tensor] = []

    @torch.no_grad()
    def update(self, places: Sequence[int], pixels: Sequence[np.ndarray]) -> None:
        """Take in pictures (height, width, 3) uint8 of any sizes; `places` says which they are."""
        device = self._clip.mean.device
        for stack in stacks(pixels):
            self._images.append(self._clip.encode_images(stack.to(device).float() / 255).cpu())
        self._places += places

    def embeddings(self, here: Runtime) -> ClipEmbeddings:
        """Of the pictures that all processes saw, in their order, and of their captions."""
        rows = [row for stack in self._images for row in stack.numpy()]
        pairs = gather_lists(list(zip(self._places, rows, strict=True)), here)
        pairs.sort(key=lambda pair: pair[0])
        places = tuple(int(place) for place, _ in pairs)
        captions = [self._captions[place] for place in places]
        texts = encode_texts(self._clip, captions, self._prompt)
        images = torch.from_numpy(np.stack([row for _, row in pairs]))
        return ClipEmbeddings(images, texts, places)


def embed(
    clip: ClipModel, pictures: Sequence[PaintedPicture], prompt: str, batch_size: int
) -> ClipEmbeddings:
    """Embed pictures and captions on this process.

    Raises:
        UserError: pictures that cannot be read; all of them are named.
    """
    here = Runtime(clip.mean.device)
    meter = ClipMeter(clip, [picture.caption for picture in pictures], prompt)
    files = [picture.file for picture in pictures]
    for places, pixels in read_pictures(files, range(len(files)), batch_size, here):
        meter.update(places, pixels)
    return meter.embeddings(here)


def encode_texts(clip: ClipModel, texts: Sequence[str], prompt: str) -> Tensor:
    """Captions -> unit vectors (len(texts), E) on the CPU."""
    parts = [
        clip.encode_text(texts[start : start + TEXTS_AT_ONCE], prompt).cpu()
        for start in range(0, len(texts), TEXTS_AT_ONCE)
    ]
    return torch.cat(parts)


def clip_scores(embeddings: ClipEmbeddings) -> np.ndarray:
    """(M,) CLIPScores of pictures against their own captions, in [0, 250]."""
    return score_embeddings(embeddings.images, embeddings.texts).numpy()


def clip_r_precision(embeddings: ClipEmbeddings, seed: int) -> dict[str, float]:
    """R-precision of the pictures against 99 random captions each: mean and std of 10 folds.

    Raises:
        UserError: fewer than 100 captions.

    Source: SPEC 10.
    """
    images, texts = embeddings.images.numpy(), embeddings.texts.numpy()
    negatives = draw_negatives(len(texts), seed=seed)
    found = summarize_hits(find_hits(images, texts, negatives), seed=seed)
    return {"r_precision": found.mean, "r_precision_std": found.std}


def clip_hard_r_precision(
    clip: ClipModel,
    embeddings: ClipEmbeddings,
    hard_sets: Mapping[str, Mapping[int, Sequence[str]]],
    prompt: str,
    seed: int,
) -> dict[str, float]:
    """R-precision against captions with one word swapped, for each kind of word.

    Args:
        clip: that made the embeddings.
        embeddings: of the pictures and their captions.
        hard_sets: kind -> picture's place -> its caption with a word swapped, several times.
        prompt: what stands before each caption.
        seed: of the folds.

    Returns:
        r_precision_hard_<kind> and its _std; and where all kinds are there r_precision_hard, their
        mean. Kinds that no caption has a word of are left out.

    Source: SPEC 10.
    """
    figures: dict[str, float] = {}
    for kind, swapped in hard_sets.items():
        rows = [row for row, place in enumerate(embeddings.places) if swapped.get(place)]
        if not rows:
            continue
        negatives = [list(swapped[embeddings.places[row]]) for row in rows]
        flat = encode_texts(clip, [text for texts in negatives for text in texts], prompt)
        sizes = [len(texts) for texts in negatives]
        blocks = [
            part
            for row, own in zip(rows, flat.split(sizes), strict=True)
            for part in (embeddings.texts[row : row + 1], own)
        ]
        hits = find_hard_hits(
            embeddings.images[rows].numpy(), torch.cat(blocks).numpy(), [n + 1 for n in sizes]
        )
        found = summarize_hits(hits, seed=seed)
        figures[f"r_precision_hard_{kind}"] = found.mean
        figures[f"r_precision_hard_{kind}_std"] = found.std
    means = [figures.get(f"r_precision_hard_{kind}") for kind in hard_sets]
    if means and None not in means:
        figures["r_precision_hard"] = float(np.mean([mean for mean in means if mean is not None]))
    return figures


def caption_clip_scores(
    images: Tensor, captions: Tensor, references: Sequence[Tensor]
) -> tuple[np.ndarray, np.ndarray]:
    """CLIPScore and RefCLIPScore of captions written for pictures.

    Args:
        images: (M, E) unit vectors of the pictures.
        captions: (M, E) of the captions to score.
        references: for each picture (R, E) of what people wrote.

    Returns:
        (M,) 2.5 * max(100 cos, 0), in [0, 250]; (M,) harmonic mean of that and of the caption's
        highest max(100 cos, 0) with a reference, in [0, 143].

    Source: Hessel et al. 2021, in hundredths.
    """
    scores = score_embeddings(images, captions)
    closest = torch.stack(
        [(own @ caption).max() for caption, own in zip(captions, references, strict=True)]
    )
    agreement = (100 * closest).clamp(min=0)
    total = scores + agreement
    harmonic = torch.where(total > 0, 2 * scores * agreement / total.clamp(min=1e-12), 0.0)
    return scores.numpy(), harmonic.numpy()
