"""Text -> image for many captions."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from generations.datasets import CaptionTokenizer
from generations.decoding import image_tokens
from generations.files import atomic_path, write_json
from generations.modeling import UnifiedTransformer
from generations.progress import progress_bar
from generations.runtime import Runtime, derive_seed, gather_lists, wait_for_all

NAME_BYTES = 200  # of a file name, which most file systems end at 255


@dataclass(frozen=True)
class PaintingRequest:
    """A caption to paint and, where it describes a known image, that image."""

    caption: str
    image_id: int | None = None
    image_name: str | None = None


@dataclass(frozen=True)
class PaintingSettings:
    """How pictures are painted.

    Attributes:
        text_length: L; longer captions are cropped.
        steps: of mask-predict.
        batch_size: captions at once on each process.
        seed: of the image generator's noise, if that is on.
    """

    text_length: int = 17
    steps: int = 4
    batch_size: int = 32
    seed: int = 0


@torch.no_grad()
def paint(
    model: UnifiedTransformer,
    generator: nn.Module,
    text_ids: Tensor,
    steps: int = 4,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Paint captions.

    Args:
        model: the transformer, in eval mode.
        generator: grid features (B, D, G, G) -> pixels (B, 3, S, S) in [-1, 1].
        text_ids: (B, T) as of `CaptionTokenizer.encode_for_painting`.
        steps: of mask-predict.
        seed: of the image generator's noise, if that is on.

    Returns:
        pixels (B, S, S, 3) uint8 and cluster ids (B, N), both on the CPU.

    Source: SPEC 7.
    """
    cluster_ids = image_tokens(model, text_ids, steps)  # (B, N)
    pixels = decode_pixels(generator, model.cluster_codebook(cluster_ids), seed)
    return pixels.cpu(), cluster_ids.cpu()


def decode_pixels(generator: nn.Module, features: Tensor, seed: int = 0) -> Tensor:
    """Grid features (B, N, D) -> pixels (B, S, S, 3) uint8; `seed` is of the noise, if it is on."""
    rng = torch.Generator(features.device).manual_seed(seed)
    side = round(features.shape[1] ** 0.5)
    grid = features.transpose(1, 2).unflatten(2, (side, side))  # (B, D, G, G)
    pixels = (generator(grid, rng=rng).float() + 1) / 2  # (B, 3, S, S) in [0, 1]
    return pixels.mul(255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def paint_captions(
    model: UnifiedTransformer,
    generator: nn.Module,
    tokenizer: CaptionTokenizer,
    requests: Sequence[PaintingRequest],
    folder: Path,
    settings: PaintingSettings,
    runtime: Runtime,
    details: dict[str, Any] | None = None,
) -> Path:
    """Paint every request into `folder` and write its manifest.

    Pictures are `img<number>.<caption>.png`, numbered from 1; the manifest holds the full captions,
    which a file name may not be able to.

    Args:
        model: in eval mode, on the runtime's device.
        generator: the image generator, in eval mode, on the runtime's device.
        tokenizer: of the model.
        requests: in the order of their numbers.
        folder: made if it does not exist.
        settings: how to paint.
        runtime: where to run; each process paints its share.
        details: goes into the manifest (checkpoint, iteration).

    Returns:
        Path of the manifest: {..., "items": [{"file", "caption", "image_id", "image_name",
        "cluster_ids"}]}.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbered = list(enumerate(requests, 1))[runtime.rank :: runtime.world_size]
    items: list[tuple[int, dict[str, Any]]] = []
    with progress_bar(len(numbered), "painting", "image", hidden=not runtime.is_main) as bar:
        for start in range(0, len(numbered), settings.batch_size):
            part = numbered[start : start + settings.batch_size]
            ids = [
                tokenizer.encode_for_painting(request.caption, settings.text_length)
                for _, request in part
            ]
            with runtime.autocast():
                pixels, clusters = paint(
                    model,
                    generator,
                    torch.tensor(ids, device=runtime.device),
                    settings.steps,
                    derive_seed(settings.seed, part[0][0]),  # other noise in every batch
                )
            for (number, request), picture, cells in zip(part, pixels, clusters, strict=True):
                name = picture_name(number, request.caption)
                save_png(folder / name, picture.numpy())
                item = {"file": name, **vars(request), "cluster_ids": cells.tolist()}
                items.append((number, item))
            bar.update(len(part))
    ordered = [item for _, item in sorted(gather_lists(items, runtime), key=lambda pair: pair[0])]
    manifest = folder / "manifest.json"
    if runtime.is_main:
        write_json(manifest, {**(details or {}), "items": ordered})
    wait_for_all(runtime)
    return manifest


def picture_name(number: int, caption: str) -> str:
    """`img<number>.<caption>.png` without characters that a file name cannot hold."""
    safe = re.sub(r'[\x00-\x1f\x7f<>:"/\\|?*]+', " ", caption)
    safe = re.sub(r"\s+", " ", safe).strip(" .")
    stem = f"img{number}.{safe}" if safe else f"img{number}"
    return stem.encode()[:NAME_BYTES].decode(errors="ignore").rstrip() + ".png"


def save_png(path: Path, pixels: np.ndarray) -> None:
    """Write pixels (S, S, 3) uint8 as PNG, atomically."""
    with atomic_path(path, durable=False) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
