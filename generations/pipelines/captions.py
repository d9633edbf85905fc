"""The first step of preparation: captions of any form -> a checked Karpathy split file."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from yacs.config import CfgNode

from generations.datasets import (
    CaptionTokenizer,
    ImageRecord,
    Intake,
    cropped_captions,
    read_intake,
    report_problems,
    write_karpathy,
)
from generations.datasets.karpathy import IMAGE_SPLITS
from generations.errors import UserError
from generations.features import find_images, load_images, picture_files
from generations.files import read_json
from generations.pipelines.manifest import note
from generations.progress import progress_bar
from generations.runtime import Runtime

logger = logging.getLogger(__name__)


def prepare_captions(cfg: CfgNode, here: Runtime) -> None:
    """Check captions and images, and write them as a Karpathy split file.

    Pictures of tars are unpacked into images_dir. Every image is decoded once, so that the steps
    after this one meet no bad ones; with features.skip_bad 1 bad images and captions are left out,
    counted and listed.

    Raises:
        UserError: bad images or captions, or dataset_coco was not written by this step.
    """
    check_sources(cfg)
    _check_ours(cfg)
    skip = bool(cfg.features.skip_bad)
    records = _read(cfg, unpack=True).records
    kept, files = _with_files(cfg, records)
    unreadable = _unreadable(cfg, files)
    report_problems(
        "images",
        [problem for problem in unreadable if problem],
        skip,
        "mend these, remove them from captions_file, or set features.skip_bad 1",
    )
    kept = [record for record, problem in zip(kept, unreadable, strict=True) if not problem]
    if not any(record.split == "train" for record in kept):
        raise UserError(f"captions {cfg.captions_file}: no images are left in the split train")
    write_karpathy(cfg.dataset_coco, kept, cfg.captions_file)
    splits = dict.fromkeys(IMAGE_SPLITS, 0) | Counter(record.split for record in kept)
    left_out = len(records) - len(kept)
    note(cfg, "captions", source=cfg.captions_file, images=splits, left_out=left_out)
    logger.info("captions: %s; %d left out -> %s", splits, left_out, cfg.dataset_coco)


def check_captions(cfg: CfgNode) -> None:
    """Read captions_file and log what it holds; nothing is written, and no image is decoded.

    Raises:
        UserError: bad captions, or images that are missing in images_dir, if that is given.
    """
    if not cfg.captions_file:
        check_sources(cfg)
    found = _read(cfg, unpack=False)
    if not cfg.images_dir:
        logger.info("images_dir is empty, so the images were not checked")
    elif not found.packed:
        _with_files(cfg, found.records)


def check_sources(cfg: CfgNode) -> None:
    """Raise a UserError unless the configuration says where images and captions are."""
    for key, what in (("images_dir", "the folder of images"), ("captions_file", "their captions")):
        if not cfg[key]:
            raise UserError(
                f"{key} is empty: set it to {what}, for example images_dir /path/to/images "
                "captions_file /path/to/dataset.json (a Karpathy split file, COCO "
                "captions_*.json, .csv, .tsv or one of the other forms in docs/data.md); for the "
                "mini world run the step mini-world first"
            )


def _read(cfg: CfgNode, unpack: bool) -> Intake:
    """What captions_file holds; logs how it was read, and what was left out or changed."""
    found = read_intake(
        cfg.captions_file, cfg.seed, bool(cfg.features.skip_bad), cfg.images_dir, unpack
    )
    source = f"captions {cfg.captions_file}"
    found.tally.log(logger, source)
    splits = Counter(record.split for record in found.records)
    logger.info(
        "%s: %s images with %s captions; %s",
        source,
        f"{len(found.records):,}",
        f"{sum(len(record.captions) for record in found.records):,}",
        ", ".join(f"{split} {splits[split]:,}" for split in IMAGE_SPLITS if splits[split]),
    )
    # a vocabulary of the dataset's own is made by a later step
    vocabulary = cfg.vocab_file if Path(cfg.vocab_file).is_file() else None
    tokenizer = CaptionTokenizer(vocabulary)
    cropped, total = cropped_captions(found.records, tokenizer, cfg.text_length)
    logger.log(
        logging.WARNING if cropped else logging.INFO,
        "%s: %s",
        *(source, say_cropped(cropped, total, cfg.text_length)),
    )
    return found


def say_cropped(cropped: int, total: int, text_length: int) -> str:
    """How many captions are too long, in words."""
    return (
        f"{cropped:,} of {total:,} captions ({cropped / max(total, 1):.1%}) are longer than "
        f"text_length {text_length} and are cropped, so that they never end"
    )


def _with_files(
    cfg: CfgNode, records: Sequence[ImageRecord]
) -> tuple[list[ImageRecord], list[Path]]:
    """The images whose files are there, and the files; both kinds of orphans in one line."""
    found = find_images(cfg.images_dir, [record.path for record in records])
    lost = [record.path for record, file in zip(records, found, strict=True) if file is None]
    files = [file for file in found if file is not None]
    unnamed = len(set(picture_files(cfg.images_dir)) - set(files))
    if unnamed or lost:
        logger.warning(
            "images_dir %s: %s pictures without captions, %s captioned images without a picture",
            *(cfg.images_dir, f"{unnamed:,}", f"{len(lost):,}"),
        )
    report_problems(
        f"images_dir {cfg.images_dir}",
        [f"{path} is missing (or several folders have a file of its name)" for path in lost],
        bool(cfg.features.skip_bad),
        "add the images, remove them from captions_file, or set features.skip_bad 1",
    )
    kept = [record for record, file in zip(records, found, strict=True) if file is not None]
    return kept, files


def _check_ours(cfg: CfgNode) -> None:
    """Raise a UserError if the split file was not made by this program."""
    if not Path(cfg.dataset_coco).exists():
        return
    content = read_json(cfg.dataset_coco, "dataset_coco")
    if not isinstance(content, dict) or "prepared_from" not in content:
        raise UserError(
            f"dataset_coco {cfg.dataset_coco} was not made by prepare.py and would be overwritten: "
            "move it away or choose another data_dir; to use it as it is, skip the step captions"
        )


def _unreadable(cfg: CfgNode, files: Sequence[Path]) -> list[str]:
    """For each image file what is wrong with it, or ''."""
    problems: list[str] = []
    batches = load_images(files, cfg.grid_size, cfg.features.batch_size, cfg.num_workers)
    with progress_bar(len(files), "checking images", "image") as bar:
        for batch in batches:
            problems += [str(image) if isinstance(image, UserError) else "" for image in batch]
            bar.update(len(batch))
    return problems
