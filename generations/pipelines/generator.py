"""Training the image generator of a dataset; `prepare.py` calls it."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import make_grid
from yacs.config import CfgNode

from generations.checkpoint import save_pth
from generations.datasets import (
    ImageRecord,
    load_centroids,
    open_cluster_store,
)
from generations.features import load_image
from generations.image_generator import (
    Hooks,
    PictureData,
    build_generator,
    measure_reconstruction,
    train_generator,
    training_settings,
)
from generations.pipelines.sources import image_files
from generations.runtime import Runtime

logger = logging.getLogger(__name__)

HELD_OUT = 500  # pictures of the val split that reconstructions are measured on


class PictureFiles:
    """Image files as an array (M, 3, S, S) uint8 that is decoded where it is indexed."""

    def __init__(self, paths: Sequence[Path], size: int):
        self._paths = list(paths)
        self.shape = (len(self._paths), 3, size, size)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        """(B,) indices -> (B, 3, S, S) uint8."""
        pictures = [load_image(self._paths[i], self.shape[2]) for i in np.atleast_1d(index)]
        return np.stack(pictures).transpose(0, 3, 1, 2)


def train_image_generator(cfg: CfgNode, runtime: Runtime) -> dict[str, float]:
    """Train on the train split, and write cfg.pretrained_generator in the layout of G_60.pth.

    Returns:
        facts for the manifest: steps, seconds, and the reconstruction of the val split ("l1",
        "psnr").

    Raises:
        UserError: images, cluster ids or codebook are missing or do not fit.
    """
    generator = build_generator(cfg)
    settings = training_settings(cfg)
    centroids = load_centroids(
        cfg.grid_cluster_centroids_path, cfg.grid_cluster_num, cfg.grid_feat_dim
    )
    images = image_files(cfg)
    train = _pictures(cfg, [pair for pair in images if pair[0].split == "train"])
    others = [pair for pair in images if pair[0].split == "val"][:HELD_OUT]
    held_out = _pictures(cfg, others) if others else None
    started = time.monotonic()
    with SummaryWriter(str(Path(cfg.data_dir) / "generator_logs")) as writer:

        def log(step: int, scalars: Mapping[str, float]) -> None:
            for name, value in scalars.items():
                writer.add_scalar(f"generator/{name}", value, step)

        def show(step: int, pictures: Tensor) -> None:
            writer.add_image("generator/real_above_painted", make_grid(pictures), step)

        train_generator(
            generator,
            centroids,
            train,
            settings,
            seed=cfg.seed,
            device=runtime.device,
            held_out=held_out,
            hooks=Hooks(log=log, show=show),
        )
    facts: dict[str, float] = {
        "steps": settings.train_steps,
        "seconds": round(time.monotonic() - started),
    }
    if held_out is not None:
        codebook = torch.as_tensor(centroids, device=runtime.device)
        measured = measure_reconstruction(generator, codebook, held_out)
        logger.info("image generator: val L1 %.4f, PSNR %.1f dB", measured["l1"], measured["psnr"])
        facts |= measured
    # the released file's keys start with "module."
    state = {f"module.{name}": value.cpu() for name, value in generator.state_dict().items()}
    save_pth(cfg.pretrained_generator, state)
    return facts


def _pictures(cfg: CfgNode, images: Sequence[tuple[ImageRecord, Path]]) -> PictureData:
    """Some images and their cluster ids."""
    store = open_cluster_store(
        (cfg.grid_cluster_id_path_train, cfg.grid_cluster_id_path_valid),
        cfg.grid_size,
        cfg.grid_cluster_num,
    )
    ids = np.stack([store.read(record.name) for record, _ in images]).astype(np.int64)
    return PictureData(ids, PictureFiles([file for _, file in images], cfg.generator.image_size))
