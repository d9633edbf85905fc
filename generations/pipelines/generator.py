"""Training the image generator of a dataset; `prepare.py` calls it."""

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import make_grid
from yacs.config import CfgNode

from generations.checkpoint import save_pth
from generations.checkpoint.files import read_pth
from generations.datasets import (
    ImageRecord,
    load_centroids,
    open_cluster_store,
)
from generations.errors import UserError
from generations.features import load_image
from generations.image_generator import (
    Hooks,
    ImageGenerator,
    PictureData,
    Sharing,
    TrainSettings,
    build_generator,
    train_generator,
    training_settings,
)
from generations.metrics.inception import state_hash
from generations.pipelines.generator_networks import open_perceptual, reconstruction_distance
from generations.pipelines.reconstruction import judge_reconstruction
from generations.pipelines.sources import image_files
from generations.runtime import Runtime, mean_over_ranks, wait_for_all

logger = logging.getLogger(__name__)

HELD_OUT = 500  # pictures of the val split that reconstructions are measured on
STATE_FILE = "generator_training.pth"  # in data_dir: what a killed training goes on from
_FREE = ("log_every", "report_every")  # settings that the result does not depend on
Pairs = Sequence[tuple[ImageRecord, Path]]


class PictureFiles:
    """Image files as an array (M, 3, S, S) uint8 that is decoded where it is indexed."""

    def __init__(self, paths: Sequence[Path], size: int):
        self._paths = list(paths)
        self.shape = (len(self._paths), 3, size, size)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        """(B,) indices -> (B, 3, S, S) uint8."""
        pictures = [load_image(self._paths[i], self.shape[2]) for i in np.atleast_1d(index)]
        return np.stack(pictures).transpose(0, 3, 1, 2)


class _Journal:
    """What the first process writes while it trains: curves, samples, states.

    Args:
        cfg: where.
        recipe: of everything the result depends on.
    """

    def __init__(self, cfg: CfgNode, recipe: str):
        self._path = Path(cfg.data_dir) / STATE_FILE
        self._folder = str(Path(cfg.data_dir) / "generator_logs")
        self._recipe = recipe
        self._started = time.monotonic()
        self._seconds = 0.0  # of earlier runs
        self._writer: SummaryWriter | None = None

    def earlier_state(self) -> dict[str, Any] | None:
        """What a run of the same recipe saved; None if there is nothing of it."""
        if not self._path.exists():
            return None
        try:
            saved = read_pth(self._path)
            if saved["recipe"] != self._recipe:
                return None
            self._seconds = float(saved["seconds"])
            return saved["state"]
        except (UserError, KeyError, TypeError, ValueError) as error:
            logger.warning("image generator: %s; training starts from the beginning", error)
            return None

    def open(self, step: int) -> None:
        """Begin to write; curves after `step` that a killed run left are dropped."""
        self._writer = SummaryWriter(self._folder, purge_step=step + 1 if step else None)

    def close(self) -> None:
        """Put everything on the disk."""
        if self._writer is not None:
            self._writer.close()

    @property
    def seconds(self) -> float:
        """Time spent on the training, that of killed runs up to their last state."""
        return self._seconds + time.monotonic() - self._started

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Curves."""
        assert self._writer is not None
        for name, value in scalars.items():
            self._writer.add_scalar(f"generator/{name}", value, step)

    def show(self, step: int, pictures: Tensor) -> None:
        """A grid of samples."""
        assert self._writer is not None
        self._writer.add_image("generator/real_above_painted", make_grid(pictures), step)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """A state to go on from."""
        content = {"recipe": self._recipe, "seconds": self.seconds, "state": state}
        save_pth(self._path, content)


def train_image_generator(cfg: CfgNode, runtime: Runtime) -> dict[str, float]:
    """Train on the train split, and write cfg.pretrained_generator in the layout of G_60.pth.

    A training that was killed goes on from its last report; one that had finished is measured and
    written again. Several processes divide every batch among them.

    Returns:
        facts for the manifest: steps, seconds, and the reconstruction of the val split
        (`judge_reconstruction`).

    Raises:
        UserError: images, cluster ids, codebook or networks are missing or do not fit.
    """
    generator = build_generator(cfg)
    settings = training_settings(cfg)
    centroids = load_centroids(
        cfg.grid_cluster_centroids_path, cfg.grid_cluster_num, cfg.grid_feat_dim
    )
    images = image_files(cfg)
    chosen = [pair for pair in images if pair[0].split == "train"]
    train = _pictures(cfg, chosen)
    others = [pair for pair in images if pair[0].split == "val"][:HELD_OUT]
    held_out = _pictures(cfg, others) if others else None
    perceptual = open_perceptual(cfg, runtime.device)
    journal = _Journal(cfg, _recipe(cfg, settings, centroids, chosen, train, perceptual))
    state = journal.earlier_state()
    wait_for_all(runtime)  # all have read it before it is written again
    if state is not None:
        logger.info("image generator: resuming after step %d", state["steps"])
    codebook = torch.as_tensor(centroids, device=runtime.device)
    if runtime.is_main:
        journal.open(state["steps"] if state else 0)
    train_generator(
        generator,
        centroids,
        train,
        settings,
        seed=cfg.seed,
        device=runtime.device,
        held_out=held_out,
        hooks=_hooks(cfg, runtime, journal, held_out, codebook),
        state=state,
        perceptual=perceptual,
        sharing=Sharing(
            runtime.rank, runtime.world_size, lambda tensor: mean_over_ranks(tensor, runtime)
        ),
        workers=cfg.num_workers,
    )
    journal.close()
    facts: dict[str, float] = {"steps": settings.train_steps, "seconds": round(journal.seconds)}
    if runtime.is_main:
        if held_out is not None:
            measured = judge_reconstruction(cfg, generator, codebook, held_out)
            logger.info(
                "image generator: val L1 %.4f, PSNR %.1f dB, SSIM %.3f, distance of features %.3f",
                *(measured["l1"], measured["psnr"], measured["ssim"]),
                measured.get("distance", float("nan")),
            )
            facts |= measured
        # the released file's keys start with "module."
        weights = {f"module.{name}": value.cpu() for name, value in generator.state_dict().items()}
        save_pth(cfg.pretrained_generator, weights)
    wait_for_all(runtime)
    return facts


def _hooks(
    cfg: CfgNode,
    runtime: Runtime,
    journal: _Journal,
    held_out: PictureData | None,
    codebook: Tensor,
) -> Hooks:
    if not runtime.is_main:
        return Hooks()
    distance = None
    if cfg.eval_fid:
        distance = reconstruction_distance(cfg, held_out, runtime.device)

    def measure(generator: ImageGenerator) -> Mapping[str, float]:
        return {} if distance is None else distance(generator, codebook)

    return Hooks(journal.log, journal.show, journal.save, measure)


def _pictures(cfg: CfgNode, images: Pairs) -> PictureData:
    """Some images and their cluster ids."""
    store = open_cluster_store(
        (cfg.grid_cluster_id_path_train, cfg.grid_cluster_id_path_valid),
        cfg.grid_size,
        cfg.grid_cluster_num,
    )
    ids = np.stack([store.read(record.name) for record, _ in images]).astype(np.int64)
    return PictureData(ids, PictureFiles([file for _, file in images], cfg.generator.image_size))


def _recipe(
    cfg: CfgNode,
    settings: TrainSettings,
    centroids: np.ndarray,
    images: Pairs,
    train: PictureData,
    perceptual: nn.Module | None,
) -> str:
    """SHA-256 of everything that decides how the training goes."""
    facts = {name: value for name, value in asdict(settings).items() if name not in _FREE}
    sizes = {name: value for name, value in cfg.generator.items() if name not in _FREE}
    found = hashlib.sha256(
        json.dumps([facts, sizes, cfg.seed, cfg.grid_size], default=str).encode()
    )
    found.update(centroids.tobytes())
    found.update(train.cluster_ids.tobytes())
    for record, file in images:
        status = file.stat()
        found.update(f"\n{record.name} {status.st_size} {status.st_mtime_ns}".encode())
    if perceptual is not None:
        found.update(state_hash(perceptual.state_dict()).encode())
    return found.hexdigest()
