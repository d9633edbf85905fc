"""Folders of pictures: what lies in them, and reading them a batch at a time.

Memory does not grow with the number of pictures.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from generations.datasets import report_problems
from generations.errors import UserError
from generations.features import load_image
from generations.files import read_json
from generations.progress import progress_bar
from generations.runtime import Runtime, gather_lists

NAME = re.compile(r"img(\d+)\.(.+)\.png")  # of the original, which has no manifest
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass(frozen=True)
class PaintedPicture:
    """A picture's file, the caption it was painted from, and the image that this describes."""

    file: Path
    caption: str
    image_id: int | None = None


def read_painted_folder(folder: Path) -> list[PaintedPicture]:
    """The pictures that a folder's manifest.json lists; without one, those with a caption in their
    names, in the order of their numbers.

    Raises:
        UserError: no such folder, no pictures, pictures that are missing or not in the manifest.
    """
    if not folder.is_dir():
        raise UserError(f"pictures to score: there is no folder {folder}")
    manifest = folder / "manifest.json"
    if not manifest.exists():
        return _read_names(folder)
    content = read_json(manifest, "manifest")
    items = content.get("items") if isinstance(content, dict) else None
    pictures: list[PaintedPicture] = []
    for place, item in enumerate(items if isinstance(items, list) else [], 1):
        file, caption, image_id = _entry(item)
        if not file or not caption:
            raise UserError(f"manifest {manifest}: entry {place} must have a file and a caption")
        pictures.append(PaintedPicture(folder / Path(file).name, caption, image_id))
    if not pictures:
        raise UserError(f"manifest {manifest} has no pictures; paint some with sample_images.py")
    listed = {picture.file.name for picture in pictures}
    there = {path.name for path in folder.glob("*.png")}
    report_problems(
        f"manifest {manifest}",
        [f"{name} is listed, but not there" for name in sorted(listed - there)]
        + [f"{name} is there, but has no caption" for name in sorted(there - listed)],
        False,
        "paint the folder again",
    )
    return pictures


def how_painted(folder: Path) -> dict[str, Any]:
    """What a folder's manifest.json says of all its pictures; {} without one."""
    path = folder / "manifest.json"
    content = read_json(path, "manifest") if path.exists() else {}
    return {key: value for key, value in content.items() if key != "items"}


def _entry(item: Any) -> tuple[str, str, int | None]:
    entry = item if isinstance(item, dict) else {}
    file, caption, image_id = (entry.get(key) for key in ("file", "caption", "image_id"))
    if not (isinstance(file, str) and isinstance(caption, str)):
        return "", "", None
    return file, caption, image_id if isinstance(image_id, int) else None


def _read_names(folder: Path) -> list[PaintedPicture]:
    found: list[tuple[int, str, Path]] = []
    bare: list[str] = []
    for path in sorted(folder.glob("*.png")):
        match = NAME.fullmatch(path.name)
        if match:
            found.append((int(match[1]), match[2], path))
        else:
            bare.append(path.name)
    if not found:
        raise UserError(
            f"pictures to score: {folder} has neither a manifest.json nor pictures named "
            "img<number>.<caption>.png; for FID and IS alone set eval_clipscore 0 eval_rprec 0 "
            "eval_rprec_hard 0"
        )
    report_problems(
        f"pictures to score: {folder}",
        [f"{name} has no caption in its name" for name in bare],
        False,
        "name them img<number>.<caption>.png, or take them out",
    )
    return [PaintedPicture(path, caption) for _, caption, path in sorted(found)]


def list_images(folder: Path, what: str) -> list[Path]:
    """All image files in a folder and those below it, sorted.

    Args:
        folder: any folder of images; no captions are needed.
        what: whose folder, for the error message.

    Raises:
        UserError: no such folder, or no images.
    """
    if not folder.is_dir():
        raise UserError(f"{what}: there is no folder {folder}")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise UserError(f"{what}: {folder} has no images ({', '.join(sorted(SUFFIXES))})")
    return found


def read_pictures(
    files: Sequence[Path],
    places: Sequence[int],
    batch_size: int,
    here: Runtime,
    *,
    skip_bad: bool = False,
    size: int | None = None,
    crop: bool = False,
) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """Read pictures in order, a batch at a time.

    Args:
        files: all pictures.
        places: which of them this process reads.
        batch_size: most pictures at once.
        here: the processes that share the work; all of them must read to the end.
        skip_bad: leave out what cannot be read, with a warning at the end that counts and names.
        size: resize each to a square of that side (Lanczos).
        crop: resize its middle square, else the whole of it, whose aspect ratio is not kept.

    Yields:
        Places, and pixels (height, width, 3) uint8 of each. Once a picture could not be read and
        `skip_bad` is off, nothing more is yielded: the rest is read for its errors alone.

    Raises:
        UserError: pictures that cannot be read, all of them named, on every process; or none can.
    """
    problems: list[str] = []
    with progress_bar(len(places), "pictures", "image", hidden=not here.is_main) as bar:
        for start in range(0, len(places), batch_size):
            part = places[start : start + batch_size]
            good: list[int] = []
            pixels: list[np.ndarray] = []
            for place in part:
                try:
                    pixels.append(_resized(load_image(files[place]), size, crop))
                    good.append(place)
                except UserError as error:
                    problems.append(str(error))
            if good and (skip_bad or not problems):
                yield good, pixels
            bar.update(len(part))
    problems = gather_lists(problems, here)
    report_problems(
        f"{len(problems)} of {len(files)} pictures are bad",
        problems,
        skip_bad and len(problems) < len(files),
        "make them again or remove them, or leave them out with eval_skip_bad 1",
    )


def share(count: int, here: Runtime, first: int = 0) -> range:
    """The places, of those from `first` to `count`, that are this process's."""
    return range(first + here.rank, count, here.world_size)


def _resized(pixels: np.ndarray, size: int | None, crop: bool) -> np.ndarray:
    if size is None:
        return pixels
    if crop:
        high, wide = pixels.shape[:2]
        side = min(high, wide)
        top, left = (high - side) // 2, (wide - side) // 2
        pixels = pixels[top : top + side, left : left + side]
    if pixels.shape[:2] == (size, size):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.LANCZOS))


def stacks(pixels: Sequence[np.ndarray]) -> list[Tensor]:
    """Pictures as (b, 3, height, width) uint8: one stack if they are of one size, else one each."""
    tensors = [torch.tensor(picture).permute(2, 0, 1) for picture in pixels]
    if len({tensor.shape for tensor in tensors}) == 1:
        return [torch.stack(tensors)]
    return [tensor[None] for tensor in tensors]
