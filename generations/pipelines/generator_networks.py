"""Trained networks for the perceptual loss and the evaluation of the image generator."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights
from yacs.config import CfgNode

from generations.checkpoint import read_tensors
from generations.efficientnet import (
    MEAN,
    STD,
    LiteNetwork,
    load_lite,
    package_weights,
)
from generations.errors import UserError
from generations.image_generator import ImageGenerator, PictureData, codebook_grid
from generations.image_generator.perceptual import StageFeatures, resnet50_features
from generations.metrics.fid import FeatureStatistics, frechet_distance
from generations.metrics.inception import is_at_hand
from generations.metrics.kid import kernel_distance
from generations.pipelines.configured_clip import load_configured_clip
from generations.pipelines.image_statistics import open_network
from generations.pipelines.picture_evaluation import clip_name

logger = logging.getLogger(__name__)

RANDOM = "random"  # generator.perceptual_weights: of the seed, for trying things out
_BATCH = 50


# --- perceptual loss -----------------------------------------------------------------------------


def _resnet50(weights: str, seed: int) -> nn.Module:
    """torchvision's, by the name of its weights or from a file."""
    if weights == RANDOM:
        return resnet50_features(None, seed)
    if Path(weights).suffix:
        state = read_tensors(weights)
    else:
        name = weights or ResNet50_Weights.IMAGENET1K_V1.name
        if name not in ResNet50_Weights.__members__:
            known = ", ".join(ResNet50_Weights.__members__)
            raise UserError(
                f"generator.perceptual_weights {weights!r} must be a file or one of {known}, "
                f"{RANDOM}"
            )
        entry = ResNet50_Weights[name]
        try:
            state = dict(entry.get_state_dict(progress=False, check_hash=True))
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"generator.perceptual_weights {name} cannot be downloaded "
                f"({' '.join(str(error).split())[:120]}); get {entry.url} and set "
                "generator.perceptual_weights to the file, or set generator.perceptual '' to "
                "train without a perceptual loss"
            ) from None
    try:
        return resnet50_features(state)
    except RuntimeError as error:
        raise UserError(
            f"generator.perceptual_weights {weights} do not fit a ResNet-50 "
            f"({' '.join(str(error).split())[:120]})"
        ) from None


def lite0_features(weights: str = "", seed: int = 0) -> StageFeatures:
    """Five maps of EfficientNet-Lite0, one for each size they have.

    Args:
        weights: a file, or `RANDOM`; '': the installed package's.
        seed: of random ones.

    Raises:
        UserError: the package is not installed, or weights of another network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = LiteNetwork()
    if weights != RANDOM:
        load_lite(network, weights or package_weights())
    blocks = network.blocks
    stem = nn.Sequential(network.conv_stem, network.bn0, nn.ReLU6(), blocks[0])
    parts = [nn.Sequential(*blocks[a:b]) for a, b in ((1, 3), (3, 5), (5, 11), (11, 16))]
    return StageFeatures([stem, *parts], MEAN, STD)


# generator.perceptual -> (generator.perceptual_weights, seed) -> pictures in [-1, 1] to maps. A
# network joins by an entry here; `StageFeatures` makes one of its stages.
PERCEPTUAL: dict[str, Callable[[str, int], nn.Module]] = {
    "resnet50": _resnet50,
    "efficientnet-lite0": lite0_features,
}


def open_perceptual(cfg: CfgNode, device: torch.device) -> nn.Module | None:
    """The network of the perceptual loss; None without one.

    Raises:
        UserError: no such network, or weights that cannot be had.
    """
    name = cfg.generator.perceptual
    if not name:
        return None
    if name not in PERCEPTUAL:
        known = ", ".join(sorted(PERCEPTUAL))
        raise UserError(
            f"generator.perceptual must be one of {known}, or '' for none, not {name!r}"
        )
    return PERCEPTUAL[name](cfg.generator.perceptual_weights, cfg.seed).to(device).eval()


# --- FID of reconstructions ----------------------------------------------------------------------


class ReconstructionDistance:
    """FID and KID between pictures and how they come back from their cluster ids.

    The network is that of eval_protocol. With a few hundred pictures FID is too high in itself: it
    shows whether the training goes on, and is not to be compared with that of evaluate.py.

    Args:
        cfg: which network.
        pictures: those that are painted again; two at least.
        device: of the network and the generator.

    Raises:
        UserError: weights that cannot be had.
    """

    def __init__(self, cfg: CfgNode, pictures: PictureData, device: torch.device):
        self._network = open_network(
            cfg,
            device,
            lambda: (
                clip_name(cfg),
                load_configured_clip(cfg, device),
            ),
        )
        self._device = device
        self._pictures = pictures
        self._real = self._features(
            lambda part: torch.as_tensor(np.asarray(pictures.images[part]), device=device)
        )

    def __call__(self, generator: ImageGenerator, codebook: Tensor) -> dict[str, float]:
        """Measure a generator in eval mode, with its codebook (K, D).

        Returns:
            val_fid_<label> and val_kid_<label>.
        """

        def paint(part: np.ndarray) -> Tensor:
            ids = torch.as_tensor(self._pictures.cluster_ids[part], device=self._device)
            painted = generator(codebook_grid(codebook, ids), noise=False)
            return ((painted + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

        painted = self._features(paint)
        one, other = FeatureStatistics.of(painted), FeatureStatistics.of(self._real)
        label = self._network.label
        return {
            f"val_fid_{label}": frechet_distance(
                one.mean, one.covariance, other.mean, other.covariance
            ),
            f"val_kid_{label}": kernel_distance(painted, self._real)[0],
        }

    @torch.no_grad()
    def _features(self, pixels: Callable[[np.ndarray], Tensor]) -> np.ndarray:
        """(M, D) of what `pixels` gives for places."""
        count = len(self._pictures.cluster_ids)
        parts = [np.arange(start, min(start + _BATCH, count)) for start in range(0, count, _BATCH)]
        found = [self._network.measure(pixels(part))[0] for part in parts]
        return torch.cat(found).float().cpu().numpy()


def reconstruction_distance(
    cfg: CfgNode, pictures: PictureData | None, device: torch.device
) -> ReconstructionDistance | None:
    """`ReconstructionDistance` if the network of eval_protocol is at hand; none is downloaded."""
    if pictures is None or len(pictures.cluster_ids) < 2:
        return None
    if cfg.eval_protocol == "network":
        there = all(Path(name).is_file() for name in (cfg.clip.model, cfg.clip.weights))
    else:
        there = is_at_hand(cfg.eval_protocol, cfg.eval_weights)
    if not there:
        logger.info(
            "image generator: FID of reconstructions is left out, because the network of "
            "eval_protocol %s is not available",
            cfg.eval_protocol,
        )
        return None
    return ReconstructionDistance(cfg, pictures, device)
