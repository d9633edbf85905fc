"""Scoring a folder of pictures painted from captions by CLIP: CLIPScore and R-precision.

Pictures are read a batch at a time: memory does not grow with their number.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from generations.clip import ClipModel
from generations.datasets import report_problems
from generations.errors import UserError
from generations.features import load_image
from generations.files import read_json
from generations.metrics.r_precision import draw_negatives, find_hits, summarize_hits
from generations.progress import progress_bar
from generations.rewards.clip_score import score_embeddings

NAME = re.compile(r"img(\d+)\.(.+)\.png")  # of the original, which has no manifest


@dataclass(frozen=True)
class PaintedPicture:
    """A picture's file and the caption it was painted from."""

    file: Path
    caption: str


def read_painted_folder(folder: Path) -> list[PaintedPicture]:
    """The pictures that a folder's manifest.json lists; without one, those with a caption in their
    names, in the order of their numbers.

    Raises:
        UserError: no such folder, no pictures, pictures that are missing or not in the manifest.
    """
    if not folder.is_dir():
        raise UserError(f"pictures to score: there is no folder {folder}")
    manifest = folder / "manifest.json"
    if not manifest.exists():
        return _read_names(folder)
    content = read_json(manifest, "manifest")
    items = content.get("items") if isinstance(content, dict) else None
    pictures: list[PaintedPicture] = []
    for place, item in enumerate(items if isinstance(items, list) else [], 1):
        file, caption = _entry(item)
        if not file or not caption:
            raise UserError(f"manifest {manifest}: entry {place} needs a file and a caption")
        pictures.append(PaintedPicture(folder / Path(file).name, caption))
    if not pictures:
        raise UserError(f"manifest {manifest} lists no pictures; paint some with sample_images.py")
    listed = {picture.file.name for picture in pictures}
    there = {path.name for path in folder.glob("*.png")}
    report_problems(
        f"manifest {manifest}",
        [f"{name} is listed, but not there" for name in sorted(listed - there)]
        + [f"{name} is there, but has no caption" for name in sorted(there - listed)],
        False,
        "paint the folder again",
    )
    return pictures


def _entry(item: Any) -> tuple[str, str]:
    file, caption = (item.get("file"), item.get("caption")) if isinstance(item, dict) else ("", "")
    return (file, caption) if isinstance(file, str) and isinstance(caption, str) else ("", "")


def _read_names(folder: Path) -> list[PaintedPicture]:
    found = sorted(
        (int(match[1]), match[2], path)
        for path in folder.glob("*.png")
        if (match := NAME.fullmatch(path.name))
    )
    if not found:
        raise UserError(
            f"pictures to score: {folder} holds neither manifest.json nor pictures named "
            "img<number>.<caption>.png"
        )
    return [PaintedPicture(path, caption) for _, caption, path in found]


@dataclass(frozen=True)
class ClipEmbeddings:
    """Unit vectors of pictures and captions, (M, E) each."""

    images: Tensor
    texts: Tensor


@torch.no_grad()
def embed(
    clip: ClipModel, pictures: Sequence[PaintedPicture], prompt: str, batch_size: int
) -> ClipEmbeddings:
    """Embed pictures and captions.

    Raises:
        UserError: pictures that cannot be read; all of them are named.
    """
    images: list[Tensor] = []
    texts: list[Tensor] = []
    problems: list[str] = []
    with progress_bar(len(pictures), "CLIP", "image") as bar:
        for start in range(0, len(pictures), batch_size):
            part = pictures[start : start + batch_size]
            pixels = []
            for picture in part:
                try:
                    pixels.append(load_image(picture.file))
                except UserError as error:
                    problems.append(str(error))
            if not problems:
                images.append(_embed_pixels(clip, pixels))
                texts.append(clip.encode_text([picture.caption for picture in part], prompt).cpu())
            bar.update(len(part))
    report_problems("pictures to score", problems, False, "paint them again, or remove them")
    return ClipEmbeddings(torch.cat(images), torch.cat(texts))


def _embed_pixels(clip: ClipModel, pixels: Sequence[np.ndarray]) -> Tensor:
    """Pictures (height, width, 3) uint8, of any sizes -> (B, E)."""
    tensors = [torch.tensor(picture).permute(2, 0, 1).float() / 255 for picture in pixels]
    if len({tensor.shape for tensor in tensors}) > 1:  # CLIP's size is common to all
        ready = [clip.preprocess(tensor[None].to(clip.mean.device)) for tensor in tensors]
        inputs = torch.cat(ready) * clip.std + clip.mean
    else:
        inputs = torch.stack(tensors).to(clip.mean.device)
    return clip.encode_images(inputs).cpu()


def clip_scores(embeddings: ClipEmbeddings) -> np.ndarray:
    """(M,) CLIPScores of pictures against their own captions."""
    return score_embeddings(embeddings.images, embeddings.texts).numpy()


def clip_r_precision(embeddings: ClipEmbeddings, seed: int) -> dict[str, float]:
    """R-precision of the pictures against 99 random captions each: mean and std of 10 folds.

    Raises:
        UserError: fewer than 100 captions.
    """
    images, texts = embeddings.images.numpy(), embeddings.texts.numpy()
    negatives = draw_negatives(len(texts), seed=seed)
    found = summarize_hits(find_hits(images, texts, negatives), seed=seed)
    return {"r_precision": found.mean, "r_precision_std": found.std}
