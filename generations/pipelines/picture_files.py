"""Pictures to files beside the network that paints them."""

import re
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from generations.files import atomic_path

NAME_BYTES = 200  # of a file name, which most file systems end at 255


class PictureWriter:
    """Encodes and writes PNGs in threads, while the next pictures are painted.

    A context manager: all is written when it ends. An error of a thread ends the run, at the
    latest there.

    Args:
        threads: that encode.
        ahead: pictures that may wait; with more, `write` waits for the oldest.
    """

    def __init__(self, threads: int = 2, ahead: int = 64):
        self._pool = ThreadPoolExecutor(threads, "png")
        self._ahead = ahead
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> "PictureWriter":
        return self

    def write(self, path: Path, pixels: np.ndarray) -> None:
        """Write pixels (S, S, 3) uint8, which must not change afterwards.

        Raises:
            OSError: an earlier picture could not be written.
        """
        while len(self._waiting) >= self._ahead or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(save_png, path, pixels))

    def __exit__(self, kind: object, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
        if kind is None:
            for written in self._waiting:
                written.result()


def picture_name(number: int, caption: str) -> str:
    """`img<number>.<caption>.png` without characters that a file name cannot hold."""
    safe = re.sub(r'[\x00-\x1f\x7f<>:"/\\|?*]+', " ", caption)
    safe = re.sub(r"\s+", " ", safe).strip(" .")
    stem = f"img{number}.{safe}" if safe else f"img{number}"
    return stem.encode()[:NAME_BYTES].decode(errors="ignore").rstrip() + ".png"


def save_png(path: Path, pixels: np.ndarray) -> None:
    """Write pixels (S, S, 3) uint8 as PNG, atomically."""
    with atomic_path(path, durable=False) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
