"""Training of the image generator: reconstruct pictures from their cluster ids.

Shape legend: M images, B batch, D grid feature size, G grid side, N = G * G cells, S image side,
K clusters.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from generations.errors import UserError
from generations.image_generator.generator import (
    ImageGenerator,
    codebook_grid,
    spread_bottleneck,
)
from generations.image_generator.trainer import GeneratorTrainer, Sharing, TrainSettings
from generations.progress import progress_bar

SHOWN, MEASURED = 8, 500  # pictures in a sample; pictures that a report measures


class Images(Protocol):
    """An array of images, (M, 3, S, S) uint8: NumPy, a memory map, or alike."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(M, 3, S, S)."""
        ...

    def __getitem__(self, index: Any, /) -> Any:
        """Images by an array of indices."""
        ...


@dataclass(frozen=True)
class PictureData:
    """Pictures and what they are painted from.

    Attributes:
        cluster_ids: (M, N) int64 in 0..K-1, cells row by row.
        images: (M, 3, S, S) uint8.
    """

    cluster_ids: np.ndarray
    images: Images


@dataclass(frozen=True)
class Hooks:
    """Callbacks for the progress of training.

    Attributes:
        log: called with the step and scalars.
        show: called with the step and pictures (2 * R, 3, S, S) in [0, 1]: R real ones, then how
            they come back.
        save: called with the step and the trainer's state (`GeneratorTrainer.state_dict`).
        measure: called with the generator, in eval mode; more scalars to log.
    """

    log: Callable[[int, Mapping[str, float]], None] = lambda step, scalars: None
    show: Callable[[int, Tensor], None] = lambda step, pictures: None
    save: Callable[[int, dict[str, Any]], None] = lambda step, state: None
    measure: Callable[[ImageGenerator], Mapping[str, float]] = lambda generator: {}


def train_generator(
    generator: ImageGenerator,
    centroids: np.ndarray,
    data: PictureData,
    settings: TrainSettings,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    held_out: PictureData | None = None,
    hooks: Hooks | None = None,
    state: dict[str, Any] | None = None,
    perceptual: nn.Module | None = None,
    sharing: Sharing | None = None,
    workers: int = 0,
) -> ImageGenerator:
    """Train an image generator to paint pictures from the codebook rows of their cluster ids.

    Args:
        generator: the network, changed in place.
        centroids: (K, D) float32 codebook.
        data: the training pictures.
        settings: the recipe.
        seed: of the order of the images, the discriminator's weights and the noise.
        device: where to train.
        held_out: pictures whose reconstruction is measured and shown at every report.
        hooks: receivers of scalars, samples and states; of the first process alone.
        state: a state that `hooks.save` received: training goes on from there.
        perceptual: the network of the perceptual loss, on `device`.
        sharing: with other processes, each of which trains on a part of every batch.
        workers: processes that read the pictures; 0: this one.

    Returns:
        The generator, in eval mode, on `device`.

    Raises:
        UserError: arrays that do not fit together, a batch that cannot be divided among the
            processes, or the training diverged.

    Source: SPEC 9.
    """
    hooks, sharing = hooks or Hooks(), sharing or Sharing()
    if settings.batch_size % sharing.world_size:
        raise UserError(
            f"generator.batch_size {settings.batch_size} must be a multiple of the number of "
            f"processes, {sharing.world_size}"
        )
    codebook = torch.as_tensor(np.asarray(centroids, np.float32))
    for part in (data, held_out):
        if part is not None:
            _check_data(generator, codebook, part)
    trainer = GeneratorTrainer(
        *(generator.to(device), codebook.to(device), settings, seed, perceptual, sharing)
    )
    if state is not None:
        trainer.load_state_dict(state)
    elif settings.bottleneck_std:
        spread_bottleneck(generator, codebook.to(device), settings.bottleneck_std)

    total = settings.train_steps
    steps = _Steps(len(data.cluster_ids), settings, seed, trainer.steps, sharing)
    batches = DataLoader(
        _Pictures(data),
        batch_sampler=steps,
        num_workers=workers,
        collate_fn=_as_it_is,  # type: ignore[arg-type]
    )
    hidden = sharing.rank > 0
    with progress_bar(total, "image generator", "step", trainer.steps, hidden) as bar:
        for cluster_ids, images in batches:
            logs = trainer.step(*_on(device, cluster_ids, images))
            bar.update()
            last = trainer.steps == total
            if last or trainer.steps % settings.log_every == 0:
                scalars = trainer.scalars(logs)
                bar.set_postfix({"difference": f"{scalars['difference']:.4f}"})
                hooks.log(trainer.steps, scalars)
            reports = last or trainer.steps % settings.report_every == 0
            if reports and sharing.rank == 0:
                _report(trainer, data if held_out is None else held_out, held_out is None, hooks)
    return generator.eval()


@torch.no_grad()
def measure_reconstruction(
    generator: ImageGenerator,
    codebook: Tensor,
    data: PictureData,
    batch_size: int = 50,
    see: Callable[[Tensor, Tensor], None] | None = None,
) -> dict[str, float]:
    """How well pictures are reconstructed from their cluster ids.

    Args:
        generator: put in eval mode.
        codebook: (K, D), on the generator's device.
        data: the pictures.
        batch_size: pictures at a time.
        see: is shown the painted and the real pictures of each batch, (B, 3, S, S) in [-1, 1].

    Returns:
        "l1", the mean absolute difference of pixels in [0, 1], and "psnr" in dB.
    """
    generator.eval()
    absolute = squared = 0.0
    count = len(data.cluster_ids)
    for start in range(0, count, batch_size):
        chosen = np.arange(start, min(start + batch_size, count))
        cluster_ids, images = _fetch(data, chosen, codebook.device)
        painted = generator(codebook_grid(codebook, cluster_ids), noise=False)
        difference = (painted - images).double() / 2  # of pixels in [0, 1]
        absolute += float(difference.abs().mean((1, 2, 3)).sum())
        squared += float(difference.square().mean((1, 2, 3)).sum())
        if see is not None:
            see(painted, images)
    return {"l1": absolute / count, "psnr": -10 * math.log10(max(squared / count, 1e-10))}


def batch_indices(count: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """The images of a step: every image once an epoch, in an order that is new each time.

    A function of its arguments alone, so that a resumed training sees what it would have seen.

    Args:
        count: number of images.
        batch_size: images a step; a batch may run over into the next epoch.
        seed: of the orders.
        step: from 0.

    Returns:
        (batch_size,) int64 in 0..count-1.
    """
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, within = np.divmod(places, count)
    orders = {int(epoch): _order(count, seed, int(epoch)) for epoch in np.unique(epochs)}
    return np.array([orders[int(e)][i] for e, i in zip(epochs, within, strict=True)], np.int64)


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


class _Steps:
    """The images of each step, those of this process: a batch sampler."""

    def __init__(
        self, count: int, settings: TrainSettings, seed: int, start: int, sharing: Sharing
    ):
        self._count, self._settings, self._seed = count, settings, seed
        self._start, self._sharing = start, sharing

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self._start, self._settings.train_steps):
            whole = batch_indices(self._count, self._settings.batch_size, self._seed, step)
            yield whole[self._sharing.rank :: self._sharing.world_size].tolist()


class _Pictures(Dataset[tuple[Tensor, Tensor]]):
    """Whole batches of cluster ids (B, N) and pictures (B, 3, S, S) uint8."""

    def __init__(self, data: PictureData):
        self._data = data

    def __getitems__(self, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        places = np.asarray(chosen)
        cluster_ids = np.asarray(self._data.cluster_ids[places], np.int64)
        return torch.as_tensor(cluster_ids), torch.as_tensor(np.asarray(self._data.images[places]))


def _as_it_is(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch


def _fetch(
    data: PictureData, chosen: np.ndarray, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Cluster ids (B, N) and images (B, 3, S, S) in [-1, 1], on the device."""
    return _on(device, *_Pictures(data).__getitems__(chosen.tolist()))


def _on(device: torch.device | str, cluster_ids: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    return cluster_ids.to(device), images.to(device).float() / 127.5 - 1


@torch.no_grad()
def _report(trainer: GeneratorTrainer, data: PictureData, seen: bool, hooks: Hooks) -> None:
    """Measure on some pictures, show a few, save."""
    generator, codebook = trainer.generator.eval(), trainer.codebook
    few = np.arange(min(MEASURED, len(data.cluster_ids)))
    part = PictureData(data.cluster_ids[few], data.images[few])
    prefix = "train" if seen else "val"
    measured = measure_reconstruction(generator, codebook, part)
    scalars = {f"{prefix}_{name}": value for name, value in measured.items()}
    hooks.log(trainer.steps, scalars | dict(hooks.measure(generator)))
    cluster_ids, images = _fetch(part, few[:SHOWN], codebook.device)
    painted = generator(codebook_grid(codebook, cluster_ids), noise=False)
    hooks.show(trainer.steps, (torch.cat((images, painted)).cpu() + 1) / 2)
    hooks.save(trainer.steps, trainer.state_dict())


def _check_data(generator: ImageGenerator, codebook: Tensor, data: PictureData) -> None:
    size = generator.size
    clusters = codebook.shape[0]
    if codebook.ndim != 2 or codebook.shape[1] != size.feature_size:
        raise UserError(
            f"the codebook has the shape {tuple(codebook.shape)}, but grid_feat_dim is "
            f"{size.feature_size}; run `python generations/prepare.py clusters` with this "
            "configuration"
        )
    count, ids = len(data.cluster_ids), data.cluster_ids
    if not count or ids.shape != (count, size.grid_size**2):
        raise UserError(
            f"cluster ids have the shape {ids.shape}, but grid_size {size.grid_size} needs "
            f"(images, {size.grid_size**2}); run `python generations/prepare.py clusters` with "
            "this configuration"
        )
    if ids.min() < 0 or ids.max() >= clusters:
        raise UserError(
            f"cluster ids are {ids.min()} to {ids.max()}, but the codebook has rows 0 to "
            f"{clusters - 1}; run `python generations/prepare.py clusters` to make both again"
        )
    wanted = (count, 3, size.image_size, size.image_size)
    if tuple(data.images.shape) != wanted:
        raise UserError(
            f"images have the shape {tuple(data.images.shape)}, not {wanted}; set "
            "generator.image_size to their side"
        )
