"""FID, KID, IS, precision, recall: features of pictures, and the cached statistics of real ones.

Shape legend: M pictures, B batch, D feature size, C classes, K pictures that KID compares.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from yacs.config import CfgNode

from generations.clip import ClipModel
from generations.datasets import read_karpathy, select_splits
from generations.errors import UserError
from generations.features import find_images
from generations.files import atomic_path
from generations.metrics.fid import FeatureStatistics, frechet_distance
from generations.metrics.inception import FEATURES, load_inception, state_hash
from generations.metrics.inception_score import InceptionScoreSums
from generations.metrics.kid import kernel_distance
from generations.pipelines.pictures import list_images, read_pictures, share, stacks
from generations.runtime import Runtime, gather_lists, wait_for_all

logger = logging.getLogger(__name__)

KID_IMAGES = 10_000  # of each side: KID keeps features, and memory must end somewhere
SAVE_EVERY = 2000  # images between two saves of unfinished statistics
CACHE = "evaluation"  # folder in data_dir
SIDES = ("test", "val", "restval")  # splits of test_val2014


@dataclass(frozen=True)
class EvaluationNetwork:
    """What pictures are measured with.

    Attributes:
        label: stands behind the figures' names: torchvision, tf, or the name of the CLIP.
        weights_hash: SHA-256.
        features: D.
        classes: C; 0 if it is no classifier.
        measure: (B, 3, H, W) uint8 on any device -> features (B, D), logits (B, C) or None.
    """

    label: str
    weights_hash: str
    features: int
    classes: int
    measure: Callable[[Tensor], tuple[Tensor, Tensor | None]]


def open_network(
    cfg: CfgNode, device: torch.device, clip: Callable[[], tuple[str, ClipModel]]
) -> EvaluationNetwork:
    """The network that eval_protocol names.

    Args:
        cfg: the configuration.
        device: where it will live.
        clip: gives the CLIP and its name, for eval_protocol network.

    Raises:
        UserError: weights that cannot be had; IS is asked of a network that is no classifier.
    """
    if cfg.eval_protocol == "network":
        if cfg.eval_is:
            raise UserError(
                "eval_is 1 needs a classifier, and eval_protocol network has none: set eval_is 0, "
                "or eval_protocol torchvision or tf"
            )
        name, model = clip()
        size = int(model.config["model_cfg"]["embed_dim"])
        digest = state_hash(model.network.state_dict())
        return EvaluationNetwork(
            f"clip-{name}", digest, size, 0, lambda pixels: (_clip_features(model, pixels), None)
        )
    network, digest = load_inception(cfg.eval_protocol, cfg.eval_weights)
    network.to(device)
    classes = {"torchvision": 1000, "tf": 1008}[cfg.eval_protocol]
    return EvaluationNetwork(
        cfg.eval_protocol, digest, FEATURES, classes, lambda pixels: network(pixels.to(device))
    )


def _clip_features(clip: ClipModel, pixels: Tensor) -> Tensor:
    return clip.encode_images(pixels.to(clip.mean.device).float() / 255)


# --- measuring -----------------------------------------------------------------------------------


class FeatureMeter:
    """Takes in pictures; keeps mean, covariance, the features for KID and the sums for IS.

    Args:
        network: to measure with.
        total: M, so that it is known from the start whose features KID compares.
        seed: of their choice.
        score: whether to gather what IS needs.
    """

    def __init__(self, network: EvaluationNetwork, total: int, seed: int, score: bool = False):
        self._network = network
        self._chosen = np.ones(total, bool)
        if total > KID_IMAGES:
            self._chosen[:] = False
            rng = np.random.default_rng(seed)
            self._chosen[rng.choice(total, KID_IMAGES, replace=False)] = True
        self.statistics = FeatureStatistics.empty(network.features)
        self.places = np.zeros(0, np.int64)  # of the features kept for KID
        self._kept = [np.zeros((0, network.features), np.float32)]
        self.sums = InceptionScoreSums(total, network.classes) if score else None

    @torch.no_grad()
    def update(self, places: Sequence[int], pixels: Sequence[np.ndarray]) -> None:
        """Take in pictures (height, width, 3) uint8; `places` says which of all they are."""
        measured = [self._network.measure(stack) for stack in stacks(pixels)]
        features = torch.cat([features for features, _ in measured]).float().cpu().numpy()
        self.statistics.update(features)
        chosen = self._chosen[list(places)]
        self.keep(np.asarray(places)[chosen], features[chosen])
        if self.sums is not None:
            logits = torch.cat([logits for _, logits in measured if logits is not None])
            self.sums.update(places, logits.cpu().double().softmax(1).numpy())

    def keep(self, places: np.ndarray, features: np.ndarray) -> None:
        """Keep features (k, D) of the pictures at `places` for KID."""
        self.places = np.concatenate([self.places, places])
        self._kept.append(features)

    def features(self) -> np.ndarray:
        """(K, D) of the pictures that KID compares, in their order."""
        self._kept = [np.concatenate(self._kept)]
        return self._kept[0][np.argsort(self.places)]

    def gather(self, here: Runtime) -> None:
        """Take in what the other processes saw; afterwards all have seen the same."""
        if here.world_size == 1:
            return
        own = (self.statistics, np.sort(self.places), self.features(), self.sums)
        self.statistics = FeatureStatistics.empty(self._network.features)
        self.places, self._kept = np.zeros(0, np.int64), [self._kept[0][:0]]
        total: InceptionScoreSums | None = None
        for statistics, places, features, sums in gather_lists([own], here):
            self.statistics.merge(statistics)
            self.keep(places, features)
            if total is None:
                total = sums
            elif sums is not None:
                total.merge(sums)
        self.sums = total


@dataclass(frozen=True)
class RealStatistics:
    """Of the real pictures: mean and covariance for FID, features (K, D) for KID."""

    statistics: FeatureStatistics
    features: np.ndarray


def compare(generated: FeatureMeter, real: RealStatistics, label: str) -> dict[str, float]:
    """FID and KID; a warning where there are too few pictures for FID.

    Returns:
        fid_<label>, kid_<label> and kid_<label>_std.

    Raises:
        UserError: fewer than two pictures on one side.
    """
    ours, theirs = generated.statistics, real.statistics
    size = len(ours.mean)
    for what, count in (("pictures", ours.count), ("real images", theirs.count)):
        if count < 2:
            raise UserError(f"FID needs at least two {what}; there are {count}")
        if count <= size:
            logger.warning(
                "FID: with %d %s and %d feature dimensions the covariance is singular and FID is "
                "too high; compare it only with FIDs of equally many pictures, or use KID",
                *(count, what, size),
            )
    fid = frechet_distance(ours.mean, ours.covariance, theirs.mean, theirs.covariance)
    kid, spread = kernel_distance(generated.features(), real.features)
    return {f"fid_{label}": fid, f"kid_{label}": kid, f"kid_{label}_std": spread}


# --- real pictures -------------------------------------------------------------------------------


def real_files(cfg: CfgNode) -> list[Path]:
    """The real images that FID and KID compare with.

    With test_val2014 1 all of gt_img_dir_val2014 or gt_img_dir_3w, else all of gt_img_dir_5k. Where
    that is not given, of images_dir those of the splits test, val and restval, or of test alone.

    Raises:
        UserError: none of these is given, or images are missing.
    """
    keys = ("gt_img_dir_val2014", "gt_img_dir_3w") if cfg.test_val2014 else ("gt_img_dir_5k",)
    for key in keys:
        if cfg[key]:
            return list_images(Path(cfg[key]), key)
    if not cfg.images_dir:
        raise UserError(
            f"eval_fid and eval_prc need real images: set images_dir or {' or '.join(keys)}, or "
            "set both flags to 0"
        )
    splits = ",".join(SIDES if cfg.test_val2014 else SIDES[:1])
    records = select_splits(read_karpathy(cfg.dataset_coco), splits)
    files = find_images(cfg.images_dir, [record.path for record in records])
    lost = [record.path for record, file in zip(records, files, strict=True) if file is None]
    if lost:
        raise UserError(
            f"eval_fid: {len(lost)} of {len(records)} real images are missing in images_dir "
            f"{cfg.images_dir} ({', '.join(lost[:3])}{', ...' if len(lost) > 3 else ''}); add "
            f"them, or set {' or '.join(keys)}"
        )
    return [file for file in files if file is not None]


def real_statistics(
    cfg: CfgNode, network: EvaluationNetwork, files: Sequence[Path], here: Runtime
) -> RealStatistics:
    """Measure real images, or read what was measured before.

    The cache, data_dir/evaluation/real_<label>_<key>.npz, is keyed by network, file list (paths,
    sizes, times of change) and image size. What an interrupted run had measured counts; several
    processes save at the end alone.

    Raises:
        UserError: images that cannot be read.
    """
    path = _cache_file(cfg, network, files)
    meter = FeatureMeter(network, len(files), cfg.seed)
    done = _resume(path, meter, here.is_main)
    if done == len(files):
        if not here.is_main:
            _resume(path, meter, True)
        logger.info("real images: read the statistics of %d from %s", meter.statistics.count, path)
        return RealStatistics(meter.statistics, meter.features())
    logger.info("real images: measuring %d by %s", len(files) - done, network.label)
    saved = done
    batches = read_pictures(
        files,
        share(len(files), here, done),
        cfg.eval_batch_size,
        here,
        skip_bad=bool(cfg.eval_skip_bad),
        size=cfg.eval_image_size,
        crop=cfg.eval_resize == "crop",
    )
    for places, pixels in batches:
        meter.update(places, pixels)
        if here.world_size == 1 and places[-1] + 1 - saved >= SAVE_EVERY:
            saved = places[-1] + 1
            _save(path, meter, saved)
    meter.gather(here)
    if here.is_main:
        _save(path, meter, len(files))
    wait_for_all(here)
    return RealStatistics(meter.statistics, meter.features())


def _cache_file(cfg: CfgNode, network: EvaluationNetwork, files: Sequence[Path]) -> Path:
    facts = [network.label, network.weights_hash]
    facts += [str(cfg[key]) for key in ("eval_image_size", "eval_skip_bad", "seed")]
    facts += ["crop"] if cfg.eval_resize == "crop" else []
    for file in files:
        try:
            found = file.stat()
            facts.append(f"{file}|{found.st_size}|{found.st_mtime_ns}")
        except OSError:  # a broken link, which reading the pictures will name
            facts.append(f"{file}|absent")
    key = hashlib.sha256("\n".join(facts).encode()).hexdigest()
    return Path(cfg.data_dir) / CACHE / f"real_{network.label}_{key[:16]}.npz"


def _resume(path: Path, meter: FeatureMeter, fill: bool) -> int:
    """How many files a cache file counts for; it may fill a meter."""
    try:
        with np.load(path, allow_pickle=False) as content:
            done = int(content["done"])
            arrays = [content[name] for name in ("mean", "scatter", "places", "features")]
            mean, scatter, places, features = arrays
            statistics = FeatureStatistics(int(content["count"]), mean, scatter)
    except FileNotFoundError:
        return 0
    except Exception:  # a damaged file can raise anything
        logger.warning("%s is damaged: measuring the real images again", path)
        return 0
    if fill:
        meter.statistics = statistics
        meter.keep(places, features)
    return done


def _save(path: Path, meter: FeatureMeter, done: int) -> None:
    found = meter.statistics
    features = meter.features()
    with atomic_path(path) as temporary:
        np.savez(
            temporary,
            done=done,
            count=found.count,
            mean=found.mean,
            scatter=found.scatter,
            places=np.sort(meter.places),
            features=features,
        )
