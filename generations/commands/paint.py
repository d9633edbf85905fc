"""Text -> image: what sample_images.py runs."""

import logging
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from generations import cli, runtime
from generations.datasets import clean_caption, painting_captions, read_karpathy
from generations.errors import UserError
from generations.pipelines import assembly
from generations.pipelines.configured_clip import load_configured_clip
from generations.pipelines.painting import (
    PaintingRequest,
    PaintingSettings,
    paint_captions,
    painting_settings,
)
from generations.pipelines.painting_steps import write_steps

STEPS_KEPT = 8  # test captions whose painting steps are written down, for the report page

logger = logging.getLogger(__name__)


def run(arguments: Namespace, cfg: CfgNode) -> None:
    """Load, paint, write."""
    with runtime.start(cfg.device, bool(cfg.distributed), assembly.precision(cfg)) as here:
        cli.quiet_unless(here.is_main)
        sample(cfg, here, arguments)


def sample(cfg: CfgNode, here: runtime.Runtime, arguments: Namespace) -> Path:
    """Paint the requested captions; returns the path of the manifest."""
    steps = cfg.painting.steps if arguments.steps is None else arguments.steps
    if steps < 1:
        raise UserError(f"--steps must be at least 1, not {steps}")
    source, found = requests(cfg, arguments)
    clip = None
    if cfg.rerank == "clip":
        clip = load_configured_clip(cfg, here.device)
    model, start = assembly.load_trained_model(cfg, here)
    assembly.warn_of_guidance(cfg, start)
    parent = Path(cfg.img_save_dir) / cfg.exp_id if cfg.img_save_dir else assembly.run_folder(cfg)
    folder = Path(arguments.out or parent / f"images_{source}_{start.iteration:07d}")
    settings = replace(painting_settings(cfg), steps=steps)
    generator, tokenizer = assembly.load_image_generator(cfg, here), assembly.open_tokenizer(cfg)
    lengths = tokenizer.lengths(request.caption for request in found)
    if cropped := sum(length > cfg.text_length + 1 for length in lengths):
        logger.warning(
            "%d of %d captions are longer than text_length %d: the rest of their words is ignored",
            *(cropped, len(found), cfg.text_length),
        )
    manifest = paint_captions(
        model,
        generator,
        tokenizer,
        found,
        folder,
        settings,
        here,
        _how(cfg, start, settings),
        clip,
    )
    logger.info("painted %d pictures into %s", len(found), folder)
    keep = cfg.painting.keep_steps
    traced = found[: (STEPS_KEPT if source == "test" else 0) if keep < 0 else keep]
    if traced and here.is_main:
        write_steps(model, generator, tokenizer, traced, folder, settings, here)
    return manifest


def _how(cfg: CfgNode, start: assembly.Start, settings: PaintingSettings) -> dict[str, Any]:
    """What the manifest says about the painting: all that a picture depends on."""
    used = {key: value for key, value in vars(settings).items() if key != "batch_size"}
    clip = {"rerank_clip": [cfg.clip.model, cfg.clip.weights]} if cfg.rerank == "clip" else {}
    return {
        "checkpoint": start.path,
        "iteration": start.iteration,
        "averaged_weights": start.averaged,
        "image_generator": cfg.pretrained_generator,
        "generator_noise": cfg.generator.noise,
        **used,
        "temperature": settings.heat,  # what -1 stands for worked out
        "rerank": cfg.rerank,
        **clip,
    }


def requests(cfg: CfgNode, arguments: Namespace) -> tuple[str, list[PaintingRequest]]:
    """What to paint, and a name for it: typed captions, a file's lines, or the test captions."""
    if arguments.caption and arguments.captions_file:
        raise UserError("give --caption or --captions-file, not both")
    if arguments.caption:
        return "typed", _typed(arguments.caption, "--caption")
    if arguments.captions_file:
        path = Path(arguments.captions_file)
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--captions-file {path} cannot be read: {error}") from None
        return path.stem, _typed(
            [line for line in lines if line.strip()], f"--captions-file {path}"
        )
    records = read_karpathy(cfg.dataset_coco)
    found = [
        PaintingRequest(caption, record.image_id, record.name)
        for record, caption in painting_captions(records, bool(cfg.test_val2014))
    ]
    return "test", found[: cfg.test_num] if cfg.test_num >= 0 else found


def _typed(captions: Sequence[str], where: str) -> list[PaintingRequest]:
    cleaned = [clean_caption(caption).strip() for caption in captions]
    if not cleaned or not all(cleaned):
        raise UserError(f"{where}: a caption is empty; write what to paint")
    # every training caption ends in a full stop
    return [PaintingRequest(text if text.endswith(".") else f"{text}.") for text in cleaned]
