"""Image generator: grid features to pixels, and its training."""

from dataclasses import fields
from typing import Any

import torch
from yacs.config import CfgNode

from generations.image_generator.generator import GeneratorSize, ImageGenerator, codebook_grid
from generations.image_generator.trainer import Sharing, TrainSettings
from generations.image_generator.training import (
    Hooks,
    PictureData,
    measure_reconstruction,
    train_generator,
)

__all__ = [
    "GeneratorSize",
    "Hooks",
    "ImageGenerator",
    "PictureData",
    "Sharing",
    "TrainSettings",
    "build_generator",
    "codebook_grid",
    "generator_size",
    "measure_reconstruction",
    "train_generator",
    "training_settings",
]


def generator_size(cfg: CfgNode) -> GeneratorSize:
    """Read the sizes of the image generator out of a configuration."""
    part = cfg.generator
    return GeneratorSize(
        feature_size=cfg.grid_feat_dim,
        grid_size=cfg.grid_size,
        image_size=part.image_size,
        channels=part.channels,
        bottleneck_channels=part.bottleneck_channels,
        style_channels=part.style_channels,
        noise=bool(part.noise),
    )


def build_generator(cfg: CfgNode) -> ImageGenerator:
    """Build the image generator, in eval mode, on the CPU.

    The fresh weights depend on `cfg.seed` alone.

    Args:
        cfg: a configuration of `generations.config.load_config`.

    Raises:
        UserError: the image size is not the grid size times a power of two.

    Source: SPEC 9.
    """
    size = generator_size(cfg)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        return ImageGenerator(size).eval()


def training_settings(cfg: CfgNode) -> TrainSettings:
    """Read how to train out of a configuration: the keys of `cfg.generator` of the same names."""
    part = cfg.generator
    settings: dict[str, Any] = {
        field.name: part[field.name] for field in fields(TrainSettings) if field.name in part
    }
    return TrainSettings(**settings | {"cosine": bool(part.cosine)})
