"""What stage 2 needs beside the model: reward table, image generator and CLIP."""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor
from yacs.config import CfgNode

from generations.clip import load_clip
from generations.objectives import SequenceSettings
from generations.pipelines import assembly
from generations.rewards import DocumentFrequency, build_document_frequency
from generations.rewards.clip_score import clip_score
from generations.runtime import Runtime, wait_for_all

logger = logging.getLogger(__name__)


def sequence_settings(
    cfg: CfgNode, references: np.ndarray, folder: Path, runtime: Runtime
) -> SequenceSettings:
    """Settings of the sequence-level tasks that the configuration asks for.

    Args:
        cfg: the configuration.
        references: (images, R, C) ids of the training captions, for the corpus table.
        folder: where that table is kept.
        runtime: where to run.
    """
    score_pictures = None
    if "rl_t2i" in cfg.iteration_tasks and cfg.use_clip_score:
        score_pictures = picture_scorer(cfg, runtime)
    table = None
    if "rl_i2t" in cfg.iteration_tasks and cfg.reward.document_frequency == "corpus":
        table = _corpus_table(references, folder, runtime)
    return SequenceSettings(
        text_length=cfg.text_length,
        recompute=bool(cfg.recompute),
        baseline=cfg.reward.baseline,
        samples=cfg.reward.samples,
        document_frequency=table,
        score_pictures=score_pictures,
        mse_weight=cfg.mse_loss,
    )


def picture_scorer(cfg: CfgNode, runtime: Runtime) -> Callable[[Tensor, list[str]], Tensor]:
    """A function of soft features (B, N, D) and captions -> CLIPScore (B,) of the pictures."""
    generator = assembly.load_image_generator(cfg, runtime)
    clip = load_clip(cfg.clip.model, cfg.clip.weights, runtime.device)

    def score(features: Tensor, captions: list[str]) -> Tensor:
        grid = features.transpose(1, 2).unflatten(2, (cfg.grid_size, cfg.grid_size))
        pixels = (generator(grid) + 1) / 2  # (B, 3, S, S) in [0, 1]
        return clip_score(clip, pixels, captions)

    return score


def _corpus_table(references: np.ndarray, folder: Path, runtime: Runtime) -> DocumentFrequency:
    """Document frequencies of the training captions, from the run's folder if they are there."""
    digest = hashlib.sha256(references.tobytes()).hexdigest()[:16]
    path = folder / f"document_frequency_{digest}.npz"
    if runtime.is_main and not path.exists():
        logger.info("counting document frequencies of %d images", len(references))
        build_document_frequency(references).save(path)
    wait_for_all(runtime)
    return DocumentFrequency.load(path)
