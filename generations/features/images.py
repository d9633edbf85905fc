"""Reading image files of any kind into RGB squares, alone or in worker processes."""

import math
import os
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from generations.errors import UserError

MAX_PIXELS = 100_000_000  # of one image; more is refused as a decompression bomb
# Pillow knows more, among them formats that start other programs
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = (".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def load_image(path: str | Path, size: int | None = None) -> np.ndarray:
    """Read an image file and resize it to a square (the aspect ratio is not kept).

    Turned as its EXIF tag says; transparency is laid over white; 16 bits are scaled to 8; of an
    animation the first frame is taken. Down-sizing is antialiased (bicubic).

    Args:
        path: a file in one of `FORMATS`; its suffix does not matter.
        size: side of the square in pixels; None: leave the image as large as it is.

    Returns:
        (size, size, 3) uint8 RGB; without a size (height, width, 3).

    Raises:
        UserError: absent, truncated, empty, no image, or larger than `MAX_PIXELS`.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of a bomb before it refuses one; below is a limit of our own
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.format not in FORMATS:
                    raise ValueError(f"{image.format} files are not supported")
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                rgb = _to_rgb(ImageOps.exif_transpose(image))
                if size is not None and rgb.size != (size, size):
                    rgb = rgb.resize((size, size), Image.Resampling.BICUBIC)
                return np.asarray(rgb)
    except FileNotFoundError:
        raise UserError(f"image {path} does not exist") from None
    except Image.DecompressionBombError:
        raise UserError(
            f"image {path} has more than {MAX_PIXELS:,} pixels; make it smaller"
        ) from None
    except Exception as error:  # a damaged file can raise anything
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(
            f"image {path} cannot be read ({reason}): it is damaged or not an image"
        ) from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _DEEP_MODES:
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"its {image.mode} pixels are outside of 0..65535")
        return Image.fromarray((values // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are floating point numbers, whose range is unknown")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def find_images(folder: str | Path, paths: Sequence[str]) -> list[Path | None]:
    """Find image files in a folder.

    Args:
        folder: where to look.
        paths: relative paths. A file that is not at its path is looked for by its name, in all
            folders below; there neither letter case nor the composition of accents counts, unless
            names differ in nothing else.

    Returns:
        For each path the file, or None if there is none or several have its name.

    Raises:
        UserError: the folder does not exist.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"images_dir {folder} is not a folder; set images_dir to the folder of the images"
        )
    found: list[Path | None] = []
    by_name: dict[str, list[Path]] | None = None
    for path in paths:
        if (folder / path).is_file():
            found.append(folder / path)
            continue
        if by_name is None:
            by_name = _files_by_name(folder)
        name = Path(path).name
        places = by_name.get(_folded(name), [])
        exact = [place for place in places if place.name == name]
        places = exact or places
        found.append(places[0] if len(places) == 1 else None)
    return found


def picture_files(folder: str | Path) -> Iterator[Path]:
    """All files in a folder and below whose suffix is that of a picture."""
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.lower().endswith(SUFFIXES):
                yield Path(parent, name)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _files_by_name(folder: Path) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            files.setdefault(_folded(name), []).append(Path(parent, name))
    return files


def load_images(
    paths: Sequence[Path], size: int | None, batch_size: int, num_workers: int
) -> Iterator[list[np.ndarray | UserError]]:
    """Read many images in order, with worker processes.

    Args:
        paths: the files.
        size: side of the squares; None: leave the images as large as they are.
        batch_size: images at once; the last batch may be smaller.
        num_workers: worker processes; 0 reads in this one.

    Yields:
        For each image of the batch (size, size, 3) uint8 RGB, without a size (height, width, 3),
        or the error it cannot be read for.
    """
    loader = DataLoader(
        _ImageFiles(paths, size),
        batch_size=batch_size,
        num_workers=num_workers if len(paths) > batch_size else 0,
        collate_fn=_pack,
    )
    for values, contents in loader:
        start, batch = 0, []
        for content in contents:
            if isinstance(content, tuple):
                end = start + math.prod(content)
                batch.append(values[start:end].numpy().reshape(content))
                start = end
            else:
                batch.append(content)
        yield batch


def _pack(
    pictures: list[np.ndarray | UserError],
) -> tuple[torch.Tensor, list[tuple[int, ...] | UserError]]:
    """The pixels of all pictures in one flat tensor, which goes through shared memory; shapes.

    Arrays would go through a pipe, and if this process is killed, a worker that is writing into a
    full pipe would never end.
    """
    good = [picture.reshape(-1) for picture in pictures if isinstance(picture, np.ndarray)]
    flat = np.concatenate([np.empty(0, np.uint8), *good])
    return torch.from_numpy(flat), [
        picture if isinstance(picture, UserError) else picture.shape for picture in pictures
    ]


class _ImageFiles(Dataset[np.ndarray | UserError]):
    def __init__(self, paths: Sequence[Path], size: int | None):
        self._paths = paths
        self._size = size

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> np.ndarray | UserError:
        try:
            return load_image(self._paths[index], self._size)
        except UserError as error:
            return error
