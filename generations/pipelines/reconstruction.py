"""Measure and show how images are reconstructed from their cluster ids."""

import logging
from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import make_grid, save_image
from yacs.config import CfgNode

from generations.errors import UserError
from generations.files import atomic_path
from generations.image_generator import (
    ImageGenerator,
    PictureData,
    measure_reconstruction,
)
from generations.metrics.similarity import feature_distance, structural_similarity
from generations.pipelines.generator_networks import lite0_features

logger = logging.getLogger(__name__)

PICTURE = "reconstructions.png"  # in data_dir
_SHOWN, _COLUMNS = 12, 4


@torch.no_grad()
def judge_reconstruction(
    cfg: CfgNode, generator: ImageGenerator, codebook: Tensor, pictures: PictureData
) -> dict[str, float]:
    """Measure all pictures and write some of them, each beside its reconstruction.

    Args:
        cfg: says where the picture goes.
        generator: put in eval mode.
        codebook: (K, D), on the generator's device.
        pictures: one at least.

    Returns:
        "l1", "psnr" (dB), "ssim", and "distance" (`feature_distance` in EfficientNet-Lite0's maps)
        where its weights are installed.
    """
    try:
        network = lite0_features("").to(codebook.device)
    except UserError as error:  # a package that need not be there
        logger.info("the feature distance is left out: %s", error)
        network = None
    similarities, distances = [], []

    def see(painted: Tensor, real: Tensor) -> None:
        painted, real = (((pixels + 1) / 2).clamp(0, 1) for pixels in (painted, real))
        if not similarities:
            _show(Path(cfg.data_dir) / PICTURE, real, painted)
        similarities.append(structural_similarity(painted, real))
        if network is not None:
            distances.append(feature_distance(network, painted, real))

    found = measure_reconstruction(generator, codebook, pictures, see=see)
    found["ssim"] = float(torch.cat(similarities).mean())
    if distances:
        found["distance"] = float(torch.cat(distances).mean())
    return found


def _show(path: Path, real: Tensor, painted: Tensor) -> None:
    """Pairs side by side: the real one left of the painted one."""
    pairs = [torch.cat(pair, 2) for pair in zip(real[:_SHOWN], painted[:_SHOWN], strict=True)]
    with atomic_path(path) as temporary:
        save_image(make_grid(pairs, _COLUMNS, padding=4, pad_value=1).cpu(), temporary, "png")
    logger.info("image generator: real pictures and reconstructions are in %s", path)
