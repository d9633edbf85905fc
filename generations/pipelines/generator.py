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
    read_karpathy,
    report_problems,
    select_splits,
)
from generations.features import find_images, load_image
from generations.image_generator import (
    Hooks,
    PictureData,
    build_generator,
    measure_reconstruction,
    train_generator,
    training_settings,
)
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
    records = read_karpathy(cfg.dataset_coco)
    train = _pictures(cfg, select_splits(records, "train"))
    others = select_splits(records, "val")[:HELD_OUT]
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


def _pictures(cfg: CfgNode, records: Sequence[ImageRecord]) -> PictureData:
    """The images of some records and their cluster ids."""
    files = find_images(cfg.images_dir, [record.path for record in records])
    lost = [record.path for record, file in zip(records, files, strict=True) if file is None]
    report_problems(
        f"images_dir {cfg.images_dir}: missing images",
        lost,
        False,
        "add them, or run the step captions again",
    )
    store = open_cluster_store(
        (cfg.grid_cluster_id_path_train, cfg.grid_cluster_id_path_valid),
        cfg.grid_size,
        cfg.grid_cluster_num,
    )
    ids = np.stack([store.read(record.name) for record in records]).astype(np.int64)
    paths = [file for file in files if file is not None]
    return PictureData(ids, PictureFiles(paths, cfg.generator.image_size))
