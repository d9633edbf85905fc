"""What stage 2 needs beside the model: reward table, image generator and CLIP."""

import hashlib
import logging
from pathlib import Path

import numpy as np
from yacs.config import CfgNode

from generations.objectives import SequenceSettings
from generations.pipelines.clip import picture_scorer
from generations.rewards import DocumentFrequency, build_document_frequency
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

    Raises:
        UserError: image generator or CLIP are needed and cannot be loaded.
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


def _corpus_table(references: np.ndarray, folder: Path, runtime: Runtime) -> DocumentFrequency:
    """Document frequencies of the training captions, from the run's folder if they are there."""
    digest = hashlib.sha256(references.tobytes()).hexdigest()[:16]
    path = folder / f"document_frequency_{digest}.npz"
    if runtime.is_main and not path.exists():
        logger.info("counting document frequencies of %d images", len(references))
        build_document_frequency(references).save(path)
    wait_for_all(runtime)
    return DocumentFrequency.load(path)
