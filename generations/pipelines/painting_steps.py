"""The intermediate pictures of mask-predict, to look at."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from generations.datasets import CaptionTokenizer
from generations.decoding import painting_steps
from generations.files import write_json
from generations.modeling import UnifiedTransformer
from generations.pipelines.painting import (
    PaintingRequest,
    PaintingSettings,
    decode_pixels,
    painting_jobs,
)
from generations.pipelines.picture_files import save_png
from generations.runtime import Runtime, derive_seed


@dataclass(frozen=True)
class PaintingTrace:
    """S pictures of each of B captions after each of R steps, on the CPU.

    Attributes:
        pixels: (B, S, R, side, side, 3) uint8; those of the last step are the finished pictures.
        cluster_ids: (B, S, R, N).
        again: (B, S, R, N) bool, the cells that were masked again after the step.
    """

    pixels: Tensor
    cluster_ids: Tensor
    again: Tensor


@torch.no_grad()
def trace_painting(
    model: UnifiedTransformer,
    generator: nn.Module,
    text_ids: Tensor,
    settings: PaintingSettings,
    seeds: Sequence[int],
    noise_seed: int = 0,
) -> PaintingTrace:
    """Paint as `paint_samples` does, with the same pictures in the same order, and keep each step.

    Args:
        model: the transformer, in eval mode.
        generator: grid features (B, D, G, G) -> pixels (B, 3, side, side) in [-1, 1].
        text_ids: (B, T) as of `CaptionTokenizer.encode_for_painting`.
        settings: how to paint.
        seeds: B, what the tokens of each caption's pictures are drawn from.
        noise_seed: of the image generator's noise, if that is on.
    """
    ids: list[Tensor] = []  # (B, S, R, N), S adding up to num_samples
    again: list[Tensor] = []
    for count, how in painting_jobs(settings, seeds, model.size.grid_size**2):
        made = list(painting_steps(model, text_ids, **how))
        shape = (len(text_ids), count)
        ids.append(torch.stack([step.cluster_ids for step in made], 1).unflatten(0, shape))
        # what a step writes was masked again after the step before it
        masked = [step.masked for step in made[1:]] + [torch.zeros_like(made[0].masked)]
        again.append(torch.stack(masked, 1).unflatten(0, shape))
    cluster_ids = torch.cat(ids, 1)
    by_step = [
        decode_pixels(generator, model.cluster_codebook(part.flatten(0, 1)), noise_seed)
        for part in cluster_ids.unbind(2)
    ]
    pixels = torch.stack(by_step, 1).unflatten(0, cluster_ids.shape[:2])
    return PaintingTrace(pixels.cpu(), cluster_ids.cpu(), torch.cat(again, 1).cpu())


def write_steps(
    model: UnifiedTransformer,
    generator: nn.Module,
    tokenizer: CaptionTokenizer,
    requests: Sequence[PaintingRequest],
    folder: Path,
    settings: PaintingSettings,
    runtime: Runtime,
) -> Path:
    """Write the steps of each request's first picture (before CLIP puts the samples in order).

    Args:
        model: in eval mode, on the runtime's device.
        generator: the image generator, in eval mode, on the runtime's device.
        tokenizer: of the model.
        requests: the first ones that `paint_captions` was given.
        folder: where it painted.
        settings: as it was given.
        runtime: where to run.

    Returns:
        Path of steps.json: {"items": [{"caption", "grid_size", "steps": [{"file", "again",
        "cluster_ids"}]}]}, the files being `steps/img<number>.<step>.png`.
    """
    (folder / "steps").mkdir(parents=True, exist_ok=True)
    items: list[dict[str, Any]] = []
    for number, request in enumerate(requests, 1):
        ids = tokenizer.encode_for_painting(request.caption, settings.text_length)
        with runtime.autocast():
            trace = trace_painting(
                model,
                generator,
                torch.tensor([ids], device=runtime.device),
                settings,
                [derive_seed(settings.seed, number, 1)],
            )
        steps = []
        for step, picture in enumerate(trace.pixels[0, 0].numpy(), 1):
            name = f"steps/img{number}.{step}.png"
            save_png(folder / name, picture)
            steps.append(
                {
                    "file": name,
                    "again": trace.again[0, 0, step - 1].nonzero().flatten().tolist(),
                    "cluster_ids": trace.cluster_ids[0, 0, step - 1].tolist(),
                }
            )
        items.append(
            {"caption": request.caption, "grid_size": model.size.grid_size, "steps": steps}
        )
    write_json(folder / "steps.json", {"items": items})
    return folder / "steps.json"
