"""Build the objects of a run from a configuration, which lower levels do not use."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from yacs.config import CfgNode

from generations.checkpoint import load_averaged, load_generator_weights, load_weights
from generations.datasets import (
    CaptionTokenizer,
    ClusterStore,
    FeatureStore,
    ImageRecord,
    load_centroids,
    open_cluster_store,
    open_feature_store,
)
from generations.errors import UserError
from generations.image_generator import build_generator
from generations.modeling import (
    FeatureLevels,
    UnifiedTransformer,
    build_model,
    compile_layers,
    set_codebook,
)
from generations.runtime import Precision, Runtime
from generations.training.checkpoint import iteration_of, latest_checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """Where the weights come from.

    Attributes:
        kind: resume, weights, pretrained or random.
        path: of the checkpoint.
        averaged: the averaged weights were taken (see `load_trained_model`).
    """

    kind: str
    path: str = ""
    averaged: bool = False

    @property
    def iteration(self) -> int:
        """The iteration in the checkpoint's name; 0 if it has none."""
        return iteration_of(Path(self.path)) or 0


def precision(cfg: CfgNode) -> Precision:
    """The precision that the configuration asks for."""
    return Precision(bool(cfg.fp16), bool(cfg.cpu_bf16), bool(cfg.tf32))


def run_folder(cfg: CfgNode) -> Path:
    """`save_dir`/`exp_id`, the folder of everything a run writes.

    Raises:
        UserError: exp_id is empty, or no plain folder name.
    """
    if not cfg.exp_id:
        raise UserError("exp_id is empty: set a name for the run, for example exp_id my_first_run")
    if Path(cfg.exp_id).name != cfg.exp_id or cfg.exp_id == ".." or "\0" in cfg.exp_id:
        raise UserError(f"exp_id {cfg.exp_id!r} must be a plain folder name, without slashes")
    return Path(cfg.save_dir) / cfg.exp_id


def choose_start(cfg: CfgNode) -> Start:
    """The highest checkpoint of this run, else model_path, else pretrained_model, else random.

    Source: SPEC 4.
    """
    if cfg.resume_from_latest and cfg.exp_id:
        latest = latest_checkpoint(run_folder(cfg))
        if latest is not None:
            return Start("resume", str(latest))
    if cfg.model_path:
        return Start("weights" if cfg.load_model_only else "resume", cfg.model_path)
    if cfg.pretrained_model:
        return Start("pretrained", cfg.pretrained_model)
    return Start("random")


def open_tokenizer(cfg: CfgNode) -> CaptionTokenizer:
    """The tokenizer of the run's vocabulary.

    Raises:
        UserError: the vocabulary is larger than the model's.
    """
    tokenizer = CaptionTokenizer(cfg.vocab_file or None)
    if len(tokenizer) > cfg.model.vocab_size:
        raise UserError(
            f"the vocabulary {cfg.vocab_file or 'bert-base-uncased'} has {len(tokenizer)} words, "
            f"but model.vocab_size is {cfg.model.vocab_size}: set model.vocab_size "
            f"{len(tokenizer)}"
        )
    return tokenizer


def open_features(cfg: CfgNode) -> FeatureStore:
    """The run's dense grid features."""
    paths = (cfg.grid_feat_path_train, cfg.grid_feat_path_valid)
    return open_feature_store(paths, cfg.grid_size, cfg.grid_feat_dim)


def open_clusters(cfg: CfgNode) -> ClusterStore:
    """The run's cluster ids."""
    paths = (cfg.grid_cluster_id_path_train, cfg.grid_cluster_id_path_valid)
    return open_cluster_store(paths, cfg.grid_size, cfg.grid_cluster_num)


def feature_levels(cfg: CfgNode) -> FeatureLevels:
    """Which visual input each direction reads."""
    return FeatureLevels.from_flags(cfg.use_mix_feature, cfg.use_grid_feat)


def captioning_batches(
    cfg: CfgNode, records: Sequence[ImageRecord]
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """(image ids, keyword arguments of `encode_vision`) of the captioning direction, in order."""
    dense = feature_levels(cfg).captioning
    store = open_features(cfg) if dense else open_clusters(cfg)
    for first in range(0, len(records), cfg.samples_per_gpu):
        part = records[first : first + cfg.samples_per_gpu]
        stacked = torch.stack([torch.from_numpy(store.read(record.name)) for record in part])
        yield (
            [record.image_id for record in part],
            ({"features": stacked} if dense else {"cluster_ids": stacked}),
        )


def warn_of_other_captioning(cfg: CfgNode, start: Start) -> None:
    """Warn if weights were trained with another `captioning` than the configuration has."""
    trained = _trained_with(start, "captioning", "paper")
    if trained not in (None, cfg.captioning):
        logger.warning(
            "%s was trained with captioning %s, but captioning is now %s, so captions will be "
            "poor; set captioning %s, or train further",
            *(start.path, trained, cfg.captioning, trained),
        )


def warn_of_guidance(cfg: CfgNode, start: Start) -> None:
    """Warn if guidance is on for a model that was trained without caption_dropout."""
    if cfg.painting.guidance and not _trained_with(start, "caption_dropout", 0.0):
        logger.warning(
            "painting.guidance %g: %s was trained without caption_dropout and has not learned to "
            "paint without a caption, so guidance may make pictures worse",
            *(cfg.painting.guidance, start.path),
        )


def _trained_with(start: Start, key: str, absent: Any) -> Any:
    """A key of the configuration beside the weights, of a run or of an exported folder.

    Returns:
        its value, `absent` where the configuration has none, None where there is no configuration.
    """
    path = Path(start.path)
    for file in (path.parent / "config.yaml", path.parent / "config.json", path / "config.json"):
        try:
            return yaml.safe_load(file.read_text(encoding="utf-8")).get(key, absent)
        except (OSError, UnicodeDecodeError, AttributeError, yaml.YAMLError):
            continue
    return None


def load_codebook(cfg: CfgNode, model: UnifiedTransformer) -> None:
    """Copy the centroids file into the model's codebook."""
    centroids = load_centroids(
        cfg.grid_cluster_centroids_path, cfg.grid_cluster_num, cfg.grid_feat_dim
    )
    set_codebook(model, centroids)


def load_trained_model(cfg: CfgNode, runtime: Runtime) -> tuple[UnifiedTransformer, Start]:
    """The model of a run for inference: weights loaded, eval mode, on the device.

    Raises:
        UserError: there is no checkpoint to load.
    """
    start = choose_start(cfg)
    if start.kind == "random":
        where = run_folder(cfg) if cfg.exp_id else "(no exp_id)"
        raise UserError(
            f"no checkpoint in {where}: train first, or set model_path /path/to/checkpoint"
        )
    model = build_model(cfg)
    averaged = bool(cfg.use_ema) and start.kind != "pretrained" and load_averaged(model, start.path)
    if not averaged:
        load_weights(model, start.path)
    warn_of_other_captioning(cfg, start)
    if start.kind == "pretrained":
        load_codebook(cfg, model)
    logger.info("model: %s%s", start.path, ", averaged weights" if averaged else "")
    compile_layers(model, cfg.compile, runtime.device)
    return model.to(runtime.device).eval(), replace(start, averaged=averaged)


def load_image_generator(cfg: CfgNode, runtime: Runtime) -> nn.Module:
    """The trained image generator: eval mode, on the device, without gradients of its weights.

    Raises:
        UserError: its file does not exist.
    """
    if not Path(cfg.pretrained_generator).exists():
        raise UserError(
            f"pretrained_generator {cfg.pretrained_generator} does not exist: train one with "
            "`python generations/prepare.py generator`, or set pretrained_generator to the path "
            "of G_60.pth"
        )
    generator = build_generator(cfg)
    load_generator_weights(generator, cfg.pretrained_generator)
    generator = generator.to(runtime.device).eval().requires_grad_(False)
    on_gpu = runtime.device.type == "cuda"
    if cfg.channels_last == "1" or (cfg.channels_last == "auto" and on_gpu):
        # the features come in this layout: (B, N, D) seen as (B, D, G, G)
        generator.to(memory_format=torch.channels_last)
    return generator
