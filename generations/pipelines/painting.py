"""Text -> image for many captions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from generations.clip import PROMPT, ClipModel
from generations.datasets import CaptionTokenizer
from generations.decoding import Guidance, Order, draw_uniforms, image_tokens
from generations.files import write_json
from generations.modeling import UnifiedTransformer
from generations.pipelines.picture_files import PictureWriter, picture_name
from generations.progress import progress_bar
from generations.rewards.clip_score import clip_score
from generations.runtime import Runtime, derive_seed, gather_lists, wait_for_all
from generations.vocabulary import PAD


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
        batch_size: pictures at once on each process; the samples of a caption stay together.
        seed: of the tokens that are drawn, and of the image generator's noise, if that is on.
        schedule: linear or cosine, how the number of masked cells falls.
        temperature: of drawn tokens; 0: greedy; -1: 0 for one sample, 1 for several.
        num_samples: pictures a caption; of several, the first is the greedy one.
        prompt: what stands before a caption that CLIP compares pictures with.
        order: confidence, halton or random: which cells are settled first.
        order_noise: of the confidence (see `Order`).
        guidance: classifier-free guidance scale; 0: none.
        guidance_schedule: constant or growing.
    """

    text_length: int = 17
    steps: int = 4
    batch_size: int = 32
    seed: int = 0
    schedule: str = "linear"
    temperature: float = -1.0
    num_samples: int = 1
    prompt: str = PROMPT
    order: str = "confidence"
    order_noise: float = 0.0
    guidance: float = 0.0
    guidance_schedule: str = "constant"

    @property
    def heat(self) -> float:
        """The temperature of drawn tokens, what -1 stands for worked out."""
        return self.temperature if self.temperature >= 0 else float(self.num_samples > 1)


def painting_settings(cfg: CfgNode) -> PaintingSettings:
    """How the configuration wants pictures to be painted."""
    how = {key: value for key, value in cfg.painting.items() if key != "keep_steps"}
    return PaintingSettings(
        text_length=cfg.text_length,
        batch_size=cfg.samples_per_gpu,
        seed=cfg.seed,
        num_samples=cfg.num_samples,
        prompt=cfg.clip.prompt,
        **how,
    )


@dataclass(frozen=True)
class Samples:
    """S pictures of each of B captions, the best one first where they were ranked.

    Attributes:
        pixels: (B, S, side, side, 3) uint8, on the CPU.
        cluster_ids: (B, S, N), on the CPU.
        scores: (B, S) CLIPScores in [0, 250]; None: not ranked.
    """

    pixels: Tensor
    cluster_ids: Tensor
    scores: Tensor | None = None


@torch.no_grad()
def paint(
    model: UnifiedTransformer,
    generator: nn.Module,
    text_ids: Tensor,
    steps: int = 4,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Paint captions, greedily.

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


@torch.no_grad()
def paint_samples(
    model: UnifiedTransformer,
    generator: nn.Module,
    text_ids: Tensor,
    settings: PaintingSettings,
    seeds: Sequence[int],
    noise_seed: int = 0,
) -> Samples:
    """Paint several pictures of each caption.

    Args:
        model: the transformer, in eval mode.
        generator: as of `paint`.
        text_ids: (B, T) as of `CaptionTokenizer.encode_for_painting`.
        settings: how to paint.
        seeds: B, what the tokens of each caption's pictures are drawn from.
        noise_seed: of the image generator's noise, if that is on.

    Returns:
        The samples; of several, the greedy picture first.
    """
    parts = [
        image_tokens(model, text_ids, **how).unflatten(0, (len(text_ids), count))
        for count, how in painting_jobs(settings, seeds, model.size.grid_size**2)
    ]
    cluster_ids = torch.cat(parts, 1)  # (B, S, N)
    features = model.cluster_codebook(cluster_ids.flatten(0, 1))
    pixels = decode_pixels(generator, features, noise_seed).unflatten(0, cluster_ids.shape[:2])
    return Samples(pixels.cpu(), cluster_ids.cpu())


def painting_jobs(
    settings: PaintingSettings, seeds: Sequence[int], cells: int
) -> list[tuple[int, dict[str, Any]]]:
    """The pictures of each caption, as calls of `image_tokens`: the greedy one, and the drawn.

    Args:
        settings: how to paint.
        seeds: of each caption.
        cells: N.

    Returns:
        how many pictures of each caption, and the keyword arguments. The numbers of pictures add
        up to num_samples.
    """
    greedy = int(settings.num_samples > 1 or not settings.heat)
    counts = [(greedy, 0.0), (settings.num_samples - greedy, settings.heat)]
    by_turns = settings.order == "random"
    numbers = None
    if by_turns or settings.order_noise:
        rows = 1 if by_turns else settings.steps
        apart = [derive_seed(seed, 1) for seed in seeds]  # not the numbers of the tokens
        numbers = draw_uniforms(apart, settings.num_samples, rows, cells)
    jobs: list[tuple[int, dict[str, Any]]] = []
    first = 0
    for count, heat in counts:
        own = None if numbers is None else numbers[:, first : first + count]
        first += count
        how: dict[str, Any] = {
            "steps": settings.steps,
            "schedule": settings.schedule,
            "temperature": heat,
            "uniforms": draw_uniforms(seeds, count, settings.steps, cells) if heat else None,
            "order": Order(settings.order, settings.order_noise, own),
            "guidance": Guidance(settings.guidance, settings.guidance_schedule),
        }
        if count:
            jobs.append((count, how))
    return jobs


@torch.no_grad()
def rerank(
    samples: Samples, clip: ClipModel, captions: Sequence[str], prompt: str = PROMPT
) -> Samples:
    """Sort each caption's pictures by CLIPScore, the best first; equal ones keep their order.

    Args:
        samples: of B captions.
        clip: any CLIP.
        captions: B texts that the pictures are to fit.
        prompt: what stands before each caption.
    """
    rows = []
    for pictures, caption in zip(samples.pixels, captions, strict=True):
        pixels = pictures.to(clip.mean.device).permute(0, 3, 1, 2).float() / 255
        rows.append(clip_score(clip, pixels, [caption] * len(pixels), prompt).cpu())
    scores, order = torch.stack(rows).sort(dim=1, descending=True, stable=True)
    every = torch.arange(len(order))[:, None]
    return Samples(samples.pixels[every, order], samples.cluster_ids[every, order], scores)


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
    clip: ClipModel | None = None,
) -> Path:
    """Paint every request into `folder` and write its manifest.

    Pictures are `img<number>.<caption>.png`, numbered from 1; the manifest holds the full captions,
    which a file name may not be able to. Of several samples the first one has that name; all but
    the first are `samples/img<number>.<sample>.png`, with samples numbered from 2. Captions of like
    length are painted together, at their own length, and files are written meanwhile.

    Args:
        model: in eval mode, on the runtime's device.
        generator: the image generator, in eval mode, on the runtime's device.
        tokenizer: of the model.
        requests: in the order of their numbers.
        folder: made if it does not exist.
        settings: how to paint.
        runtime: where to run; each process paints its share.
        details: goes into the manifest (checkpoint, iteration).
        clip: puts the samples of each caption in order, best first; None: the greedy one is first.

    Returns:
        Path of the manifest: {..., "items": [{"file", "caption", "image_id", "image_name",
        "cluster_ids"}]}; with several samples an item also has "samples": [{"file",
        "cluster_ids"}], the first one included, and with CLIP each has its "clip_score".
    """
    (folder / "samples" if settings.num_samples > 1 else folder).mkdir(parents=True, exist_ok=True)
    mine = _by_length(requests, tokenizer, settings.text_length)[runtime.rank :: runtime.world_size]
    items: list[tuple[int, dict[str, Any]]] = []
    at_once = max(1, settings.batch_size // settings.num_samples)
    bar = progress_bar(len(mine), "painting", "image", hidden=not runtime.is_main)
    with bar, PictureWriter() as writer:
        for start in range(0, len(mine), at_once):
            part = mine[start : start + at_once]
            longest = max(len(ids) for _, ids in part)
            ids = [ids + [PAD] * (longest - len(ids)) for _, ids in part]
            numbers = [number for number, _ in part]
            with runtime.autocast():
                samples = paint_samples(
                    model,
                    generator,
                    torch.tensor(ids, device=runtime.device),
                    settings,
                    [derive_seed(settings.seed, number, 1) for number in numbers],
                    derive_seed(settings.seed, numbers[0]),  # other noise in every batch
                )
            asked = [requests[number - 1] for number in numbers]
            if clip is not None:
                captions = [request.caption for request in asked]
                samples = rerank(samples, clip, captions, settings.prompt)
            for place, (number, request) in enumerate(zip(numbers, asked, strict=True)):
                item, files = _item(number, request, samples, place)
                for file, picture in zip(files, samples.pixels[place].numpy(), strict=True):
                    writer.write(folder / file, picture)
                items.append((number, item))
            bar.update(len(part))
    ordered = [item for _, item in sorted(gather_lists(items, runtime), key=lambda pair: pair[0])]
    manifest = folder / "manifest.json"
    if runtime.is_main:
        write_json(manifest, {**(details or {}), "items": ordered})
    wait_for_all(runtime)
    return manifest


def _by_length(
    requests: Sequence[PaintingRequest], tokenizer: CaptionTokenizer, text_length: int
) -> list[tuple[int, list[int]]]:
    """Numbers and ids without padding, the longest first: like lengths are painted together.

    The longest first, because what does not fit into memory should show at once.
    """
    numbered = []
    for number, request in enumerate(requests, 1):
        ids = tokenizer.encode_for_painting(request.caption, text_length)
        while ids[-1] == PAD:
            ids.pop()
        numbered.append((number, ids))
    return sorted(numbered, key=lambda pair: (-len(pair[1]), pair[0]))


def _item(
    number: int, request: PaintingRequest, samples: Samples, place: int
) -> tuple[dict[str, Any], list[str]]:
    """A caption's item of the manifest, and the files of its pictures."""
    cluster_ids = samples.cluster_ids[place].tolist()
    name = picture_name(number, request.caption)
    others = range(2, len(cluster_ids) + 1)
    files = [name, *(f"samples/img{number}.{other}.png" for other in others)]
    item: dict[str, Any] = {"file": name, **vars(request), "cluster_ids": cluster_ids[0]}
    if len(files) == 1:
        return item, files
    listed: list[dict[str, Any]] = [
        {"file": file, "cluster_ids": cells} for file, cells in zip(files, cluster_ids, strict=True)
    ]
    if samples.scores is not None:
        for entry, score in zip(listed, samples.scores[place].tolist(), strict=True):
            entry["clip_score"] = round(score, 3)
    return {**item, "samples": listed}, files
