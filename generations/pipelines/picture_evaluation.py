"""Metrics of a folder of pictures, computed in one pass."""

import hashlib
import logging
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from generations.clip import ClipModel
from generations.datasets import clean_caption, read_karpathy
from generations.datasets.hard_samples import read_hard_samples
from generations.datasets.word_swaps import find_words, hard_sets
from generations.errors import UserError
from generations.files import read_json
from generations.metrics.precision_recall import precision_recall
from generations.pipelines.clip_metrics import (
    ClipEmbeddings,
    ClipMeter,
    clip_hard_r_precision,
    clip_r_precision,
    clip_scores,
)
from generations.pipelines.configured_clip import load_configured_clip
from generations.pipelines.image_statistics import (
    EvaluationNetwork,
    FeatureMeter,
    compare,
    open_network,
    real_files,
    real_statistics,
)
from generations.pipelines.pictures import (
    PaintedPicture,
    how_painted,
    list_images,
    read_painted_folder,
    read_pictures,
    share,
)
from generations.pipelines.protocols import check_count, described
from generations.runtime import Runtime

logger = logging.getLogger(__name__)

FLAGS = ("eval_fid", "eval_prc", "eval_is", "eval_clipscore", "eval_rprec", "eval_rprec_hard")
LIBRARIES = ("open_clip_torch", "torch", "torchvision", "torch-fidelity", "numpy", "pillow")


@dataclass(frozen=True)
class PictureFigures:
    """What was measured.

    Attributes:
        figures: name -> value.
        details: on what, and with what.
        per_item: figures of each picture that could be read.
    """

    figures: dict[str, float]
    details: dict[str, Any]
    per_item: list[dict[str, Any]] = field(default_factory=list)


class _Clip:
    """The configured CLIP, loaded when it is first asked for."""

    def __init__(self, cfg: CfgNode, here: Runtime):
        self._cfg = cfg
        self._here = here
        self._model: ClipModel | None = None

    def __call__(self) -> tuple[str, ClipModel]:
        """Its name and the model."""
        if self._model is None:
            self._model = load_configured_clip(self._cfg, self._here.device)
        return clip_name(self._cfg), self._model


def evaluate_pictures(
    cfg: CfgNode, folder: Path, here: Runtime, protocol_name: str | None = None
) -> PictureFigures:
    """Compute the metrics that the eval_* flags select for a folder of pictures.

    Args:
        cfg: the configuration; at least one flag is on.
        folder: with manifest.json, or pictures named img<number>.<caption>.png; for FID and IS
            alone any folder of images.
        here: where to run; each process reads its share.
        protocol_name: the protocol that the configuration follows, if it has a name.

    Raises:
        UserError: pictures, captions, real images or networks that are missing or do not fit.
    """
    by_clip = bool(cfg.eval_clipscore or cfg.eval_rprec or cfg.eval_rprec_hard)
    pictures = _pictures(folder, by_clip)
    check_count(protocol_name, len(pictures))
    by_reals = bool(cfg.eval_fid or cfg.eval_prc)
    reals = real_files(cfg) if by_reals else []
    hard = hard_captions(cfg, pictures) if cfg.eval_rprec_hard else {}
    clip = _Clip(cfg, here)
    network = open_network(cfg, here.device, clip) if by_reals or cfg.eval_is else None
    captions = [picture.caption for picture in pictures]
    by_captions = ClipMeter(clip()[1], captions, cfg.clip.prompt) if by_clip else None
    features = (
        FeatureMeter(network, len(pictures), cfg.seed, bool(cfg.eval_is)) if network else None
    )
    files = [picture.file for picture in pictures]
    for places, pixels in read_pictures(
        files,
        share(len(files), here),
        cfg.eval_batch_size,
        here,
        skip_bad=bool(cfg.eval_skip_bad),
    ):
        for meter in (by_captions, features):
            if meter is not None:
                meter.update(places, pixels)
    figures: dict[str, float] = {}
    protocol: list[str] = []
    details: dict[str, Any] = {**described(protocol_name, cfg), "sampling": _sampling(folder)}
    per_item: list[dict[str, Any]] = []
    if by_captions is not None:
        embeddings = by_captions.embeddings(here)
        cropped = clip()[1].cropped_texts
        figures |= _clip_figures(cfg, clip()[1], embeddings, hard)
        per_item = _per_item(pictures, embeddings)
        details["images"] = len(embeddings.places)
        details["captions_cropped_by_clip"] = cropped
        protocol.append(f"CLIP {clip_name(cfg)}, prompt {cfg.clip.prompt!r}")
        details["clip_weights_sha256"] = _file_hash(cfg.clip.weights)
    if hard:
        details["hard_captions"] = {kind: len(swapped) for kind, swapped in hard.items()}
    if network is not None and features is not None:
        features.gather(here)
        protocol.append(f"{network.label} features")
        figures |= _feature_figures(cfg, network, features, reals, here, details)
    details["images_listed"] = len(files)
    details["painting"] = how_painted(folder)
    details["versions"] = {name: metadata.version(name) for name in LIBRARIES}
    return PictureFigures(figures, {"protocol": "; ".join(protocol), **details}, per_item)


def clip_name(cfg: CfgNode) -> str:
    """As figures are labelled: the small CLIP of a dataset is not one of those in papers."""
    model, weights = Path(cfg.clip.model), Path(cfg.clip.weights)
    if model.suffix == ".json":
        return model.absolute().parent.name
    return f"{model}-{weights.stem if weights.suffix else weights}".replace("/", "-")


def _pictures(folder: Path, with_captions: bool) -> list[PaintedPicture]:
    if with_captions or (folder / "manifest.json").exists():
        return read_painted_folder(folder)
    return [PaintedPicture(path, "") for path in list_images(folder, "pictures to score")]


def _sampling(folder: Path) -> dict[str, Any]:
    """How the pictures were painted, as their manifest says."""
    manifest = folder / "manifest.json"
    content = read_json(manifest, "manifest") if manifest.exists() else {}
    found = content if isinstance(content, dict) else {}
    return {name: value for name, value in found.items() if name != "items"}


def hard_captions(cfg: CfgNode, pictures: list[PaintedPicture]) -> dict[str, dict[int, list[str]]]:
    """From files if they are given, else built from the captions of dataset_coco."""
    captions = [picture.caption for picture in pictures]
    if cfg.rprec_hard_samples_dir:
        return read_hard_samples(cfg.rprec_hard_samples_dir, captions)
    records = read_karpathy(cfg.dataset_coco)
    words = find_words([caption for record in records for caption in record.captions])
    of_image = {record.image_id: record.captions for record in records}
    by_text = {
        clean_caption(caption): record.captions
        for record in reversed(records)
        for caption in record.captions
    }
    others = [
        of_image.get(-1 if picture.image_id is None else picture.image_id)
        or by_text.get(picture.caption, ())
        for picture in pictures
    ]
    return hard_sets(captions, others, words, cfg.seed)


def _clip_figures(
    cfg: CfgNode,
    clip: ClipModel,
    embeddings: ClipEmbeddings,
    hard: dict[str, dict[int, list[str]]],
) -> dict[str, float]:
    figures: dict[str, float] = {}
    if cfg.eval_clipscore:
        figures["clip_score"] = float(clip_scores(embeddings).mean())
    if cfg.eval_rprec:
        figures |= clip_r_precision(embeddings, cfg.seed)
    if cfg.eval_rprec_hard:
        found = clip_hard_r_precision(clip, embeddings, hard, cfg.clip.prompt, cfg.seed)
        absent = [kind for kind in hard if f"r_precision_hard_{kind}" not in found]
        if len(absent) == len(hard):
            raise UserError(
                "eval_rprec_hard: no caption has a word to swap (a colour, number, noun or verb "
                "of dataset_coco); set eval_rprec_hard 0"
            )
        if absent:
            logger.warning(
                "R-precision-hard: no caption has a %s to swap, so the mean over all kinds is "
                "left out",
                " or a ".join(absent),
            )
        figures |= found
    return figures


def _per_item(pictures: list[PaintedPicture], embeddings: ClipEmbeddings) -> list[dict[str, Any]]:
    scores = clip_scores(embeddings)
    return [
        {
            "file": pictures[place].file.name,
            "caption": pictures[place].caption,
            "clip_score": float(score),
        }
        for place, score in zip(embeddings.places, scores, strict=True)
    ]


def _feature_figures(
    cfg: CfgNode,
    network: EvaluationNetwork,
    features: FeatureMeter,
    reals: list[Path],
    here: Runtime,
    details: dict[str, Any],
) -> dict[str, float]:
    """FID, KID, precision, recall and IS; adds to `details` what they are of."""
    figures: dict[str, float] = {}
    details["images"] = features.statistics.count
    details["network"] = {"name": network.label, "weights_sha256": network.weights_hash}
    if reals:
        real = real_statistics(cfg, network, reals, here)
        if cfg.eval_fid:
            figures |= compare(features, real, network.label)
        if cfg.eval_prc:
            precision, recall = precision_recall(features.features(), real.features)
            figures |= {f"precision_{network.label}": precision, f"recall_{network.label}": recall}
        details["real_images"] = real.statistics.count
        details["real_image_size"] = cfg.eval_image_size
    if features.sums is not None:
        mean, std = features.sums.score()
        figures |= {f"is_{network.label}": mean, f"is_{network.label}_std": std}
    return figures


def _file_hash(weights: str) -> str | None:
    """SHA-256 of a weights file; None for open_clip's tags."""
    if not Path(weights).is_file():
        return None
    with Path(weights).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
