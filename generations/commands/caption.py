"""Image -> text: what inference.py runs."""

import logging
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from yacs.config import CfgNode

from generations import cli, runtime
from generations.datasets import read_split
from generations.features import load_image
from generations.files import write_json
from generations.modeling import UnifiedTransformer
from generations.pipelines import assembly
from generations.pipelines.captioning import (
    CaptioningSettings,
    WrittenAlternatives,
    WrittenCaption,
    best_captions,
    write_alternatives,
    write_captions,
)
from generations.pipelines.extraction import remembered_extractor

logger = logging.getLogger(__name__)


def run(arguments: Namespace, cfg: CfgNode) -> None:
    """Load, caption, write."""
    with runtime.start(cfg.device, bool(cfg.distributed), assembly.precision(cfg)) as here:
        cli.quiet_unless(here.is_main)
        if arguments.image:
            written, alternatives = caption_files(cfg, here, arguments.image)
            for path, entry in zip(arguments.image, written, strict=True):
                logger.info("%s: %s", path, entry["caption"])
                for other in alternatives[entry["image_id"]]["captions"] if alternatives else []:
                    logger.info("  %.2f %s", other["score"], other["caption"])
        else:
            caption_split(cfg, here, arguments.split)


def caption_split(cfg: CfgNode, here: runtime.Runtime, split: str) -> list[WrittenCaption]:
    """Caption a split; writes captions_<split>_<iteration>.json, a COCO results file."""
    records = read_split(cfg.dataset_coco, split)
    if cfg.test_num >= 0:
        records = records[: cfg.test_num]
    mine = records[here.rank :: here.world_size]
    model, start = assembly.load_trained_model(cfg, here)
    written, alternatives = _caption(
        cfg, here, model, assembly.captioning_batches(cfg, mine), len(mine)
    )
    path = assembly.run_folder(cfg) / f"captions_{split}_{start.iteration:07d}.json"
    if here.is_main:
        write_json(path, written)
        logger.info("wrote %d captions to %s", len(written), path)
        if alternatives:
            others = path.with_name(path.name.replace("captions_", "alternatives_", 1))
            write_json(others, {"decoding": dict(cfg.decoding), "images": alternatives})
            logger.info("wrote the alternatives to %s", others)
    return written


def captioning_settings(cfg: CfgNode) -> CaptioningSettings:
    """How the configuration wants captions to be written."""
    how = dict(cfg.decoding)
    return CaptioningSettings(cfg.text_length, bool(cfg.collapse_repeats), seed=cfg.seed, **how)


def _caption(
    cfg: CfgNode,
    here: runtime.Runtime,
    model: UnifiedTransformer,
    batches: Iterable[tuple[list[int], dict[str, Tensor]]],
    total: int,
) -> tuple[list[WrittenCaption], list[WrittenAlternatives]]:
    """Captions, and where several an image are asked for, all of them; else none."""
    settings, tokenizer = captioning_settings(cfg), assembly.open_tokenizer(cfg)
    if settings.num_captions == 1:
        return write_captions(model, tokenizer, batches, settings, here, total), []
    alternatives = write_alternatives(model, tokenizer, batches, settings, here, total)
    return best_captions(alternatives), alternatives


def caption_files(
    cfg: CfgNode, here: runtime.Runtime, paths: Sequence[str]
) -> tuple[list[WrittenCaption], list[WrittenAlternatives]]:
    """Caption raw images through the extractor of the run's features; image ids count from 0.

    Returns:
        the best captions, and with decoding.num_captions above 1 all of them (else none).
    """
    folder = assembly.run_folder(cfg) if cfg.exp_id else None
    extractor = remembered_extractor(cfg, folder, here.device)
    pixels = [load_image(path, extractor.image_size) for path in paths]
    model, _ = assembly.load_trained_model(cfg, here)
    dense = assembly.feature_levels(cfg).captioning

    def batches() -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        for first in range(0, len(pixels), cfg.samples_per_gpu):
            part = pixels[first : first + cfg.samples_per_gpu]
            features = torch.from_numpy(extractor(part)).flatten(1, 2)  # (B, N, D)
            ids = list(range(first, first + len(part)))
            if dense:
                yield ids, {"features": features}
            else:
                codebook = model.cluster_codebook.weight.cpu()
                yield ids, {"cluster_ids": torch.cdist(features, codebook[None]).argmin(-1)}

    return _caption(cfg, here, model, batches(), len(pixels))
