"""Where the images of a dataset are."""

from pathlib import Path

from yacs.config import CfgNode

from generations.datasets import ImageRecord, read_karpathy, report_problems
from generations.errors import UserError
from generations.features import find_images


def image_files(cfg: CfgNode) -> list[tuple[ImageRecord, Path]]:
    """The images of dataset_coco and their files.

    Raises:
        UserError: an image has no file.
    """
    if not cfg.images_dir:
        raise UserError("images_dir is empty: set it to the folder of the images of dataset_coco")
    records = read_karpathy(cfg.dataset_coco)
    files = find_images(cfg.images_dir, [record.path for record in records])
    lost = [record.path for record, file in zip(records, files, strict=True) if file is None]
    report_problems(
        f"images_dir {cfg.images_dir}: missing images",
        lost,
        False,
        "add them, or run the step captions again",
    )
    pairs = zip(records, files, strict=True)
    return [(record, file) for record, file in pairs if file is not None]
