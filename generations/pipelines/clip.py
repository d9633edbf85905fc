"""CLIP for a dataset: training a small one (`prepare.py clip`), and scoring painted features."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from yacs.config import CfgNode

from generations.clip import ClipModel, ClipTrainSettings, save_clip, train_clip
from generations.datasets import ImageRecord, clean_caption
from generations.errors import UserError
from generations.features import load_image
from generations.metrics.r_precision import r_precision
from generations.pipelines import assembly
from generations.pipelines.configured_clip import load_configured_clip
from generations.pipelines.sources import image_files
from generations.rewards import clip_score
from generations.runtime import Runtime

logger = logging.getLogger(__name__)

HELD_OUT = 500  # pictures of the val split that R-precision is measured on
LEAST_CAPTIONS = 100  # that R-precision needs
AT_ONCE = 50  # pictures


def is_small_clip(cfg: CfgNode) -> bool:
    """Whether clip.model and clip.weights are files that `prepare.py clip` writes.

    These are clip.json and clip.safetensors in data_dir, or in a folder within.
    """
    folder = Path(cfg.clip.model).parent
    ours = (str(folder / "clip.json"), str(folder / "clip.safetensors"))
    inside = Path(cfg.data_dir) in (folder, folder.parent)
    return inside and (cfg.clip.model, cfg.clip.weights) == ours


def train_small_clip(cfg: CfgNode, runtime: Runtime) -> dict[str, float]:
    """Train on the train split, and write clip.json and clip.safetensors.

    Returns:
        facts for the manifest: steps, seconds, and "r_precision" on the val split, where that has
        captions enough.

    Raises:
        UserError: images are missing, or too few, or the configuration names another CLIP.
    """
    if not is_small_clip(cfg):
        raise UserError(
            f"the step clip cannot train clip.model {cfg.clip.model!r} clip.weights "
            f"{cfg.clip.weights!r}; set both to '' to train a small CLIP in data_dir, or to "
            "clip.json and clip.safetensors in a folder of data_dir"
        )
    pairs = image_files(cfg)
    train = [pair for pair in pairs if pair[0].split == "train"]
    settings = _settings(cfg)
    folder = Path(cfg.clip.model).parent
    started = time.monotonic()
    with SummaryWriter(str(folder / "clip_logs")) as writer:

        def log(step: int, scalars: Mapping[str, float]) -> None:
            for name, value in scalars.items():
                writer.add_scalar(f"clip/{name}", value, step)

        clip = train_clip(
            _images(train, _image_size(cfg)),
            [[clean_caption(text) for text in record.captions] for record, _ in train],
            settings,
            seed=cfg.seed,
            device=runtime.device,
            log=log,
        )
    facts: dict[str, float] = {
        "steps": settings.train_steps,
        "seconds": round(time.monotonic() - started),
    }
    others = [pair for pair in pairs if pair[0].split == "val"][:HELD_OUT]
    if len(others) >= LEAST_CAPTIONS:
        facts["r_precision"] = _held_out_r_precision(clip, others, cfg)
        logger.info("CLIP: val R-precision %.3f", facts["r_precision"])
    save_clip(clip, folder)
    return facts


def _settings(cfg: CfgNode) -> ClipTrainSettings:
    how = cfg.clip
    return ClipTrainSettings(
        *(how.train_steps, how.batch_size, how.lr),
        prompt=how.prompt,
        embed_dim=how.embed_dim,
        image_width=how.image_width,
        text_width=how.text_width,
        text_layers=how.text_layers,
        context_length=how.context_length,
        backbone=how.backbone,
        blocks=tuple(how.blocks),
        dropout=how.dropout,
    )


def _image_size(cfg: CfgNode) -> int:
    return cfg.clip.image_size or cfg.features.image_size


def _images(pairs: Sequence[tuple[ImageRecord, Path]], size: int) -> np.ndarray:
    """(M, size, size, 3) uint8."""
    return np.stack([load_image(file, size) for _, file in pairs])


@torch.no_grad()
def _held_out_r_precision(
    clip: ClipModel, pairs: Sequence[tuple[ImageRecord, Path]], cfg: CfgNode
) -> float:
    pixels = torch.from_numpy(_images(pairs, _image_size(cfg))).permute(0, 3, 1, 2)
    images = torch.cat(
        [clip.encode_images(part.to(clip.mean.device) / 255) for part in pixels.split(AT_ONCE)]
    )
    captions = [clean_caption(record.captions[0]) for record, _ in pairs]
    texts = clip.encode_text(captions, cfg.clip.prompt)
    return r_precision(images.cpu().numpy(), texts.cpu().numpy(), seed=cfg.seed).mean


def picture_scorer(cfg: CfgNode, runtime: Runtime) -> Callable[[Tensor, list[str]], Tensor]:
    """What rl_t2i maximises: soft features (B, N, D), captions -> CLIPScores (B,).

    The pictures are those of the image generator; gradients pass through it and CLIP, but neither
    is trained. With generator.noise 1 the noise is seeded from torch's global generator.

    Source: SPEC 8.
    """
    generator = assembly.load_image_generator(cfg, runtime)
    clip = load_configured_clip(cfg, runtime.device)

    def score(features: Tensor, captions: list[str]) -> Tensor:
        rng = torch.Generator(features.device).manual_seed(int(torch.randint(2**62, ())))
        grid = features.transpose(1, 2).unflatten(2, (cfg.grid_size, cfg.grid_size))
        pixels = (generator(grid, rng=rng).float() + 1) / 2  # (B, 3, S, S) in [0, 1]
        return clip_score(clip, pixels, captions, cfg.clip.prompt)

    return score
