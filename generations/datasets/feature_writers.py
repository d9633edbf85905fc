"""The writers of dense features, chosen by the suffix of a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from generations.datasets.feature_parts import Hdf5Writer
from generations.datasets.packed import SUFFIX
from generations.datasets.packed_writer import PackedWriter
from generations.errors import UserError

PART_SIZE = 16  # images: what a kill may cost; of the slowest extractor it is two minutes
WRITABLE = (SUFFIX, ".h5", ".hdf5")


class FeatureWriter(Protocol):
    """Writes the features of a list of images, in parts that are kept when the process is killed.

    Usage: one process calls `start`; all `add` the grid of each of their `missing`; one calls
    `finish`, and the file appears under its name. With one process `start` may be left out.

    Attributes:
        path: the file to make.
        is_finished: it is there, made of the same images and settings.
        done: images that are written already, by whichever process, when work begins.
    """

    path: Path
    is_finished: bool
    done: int

    @property
    def missing(self) -> list[str]:
        """The images whose features this process has still to add, in the order in which."""
        ...

    def start(self) -> None:
        """Make what all processes write into."""
        ...

    def add(self, name: str, grid: np.ndarray) -> None:
        """Write the next image of `missing`: (G, G, D) float32."""
        ...

    def finish(self) -> None:
        """Put the file under its name."""
        ...


def open_feature_writer(
    path: str | Path,
    signature: str,
    names: Sequence[str],
    shape: tuple[int, int, int],
    dtype: str = "float16",
    batch_size: int = 1,
    rank: int = 0,
    world_size: int = 1,
) -> FeatureWriter:
    """The writer for a file's suffix.

    Args:
        path: .packed, or .h5 for the original's layout, whose numbers are always float32.
        signature: of everything the features depend on.
        names: all images that belong into the file.
        shape: (G, G, D) of an image.
        dtype: of packed features.
        batch_size: a part holds whole batches of this size, so that a run that goes on makes the
            same batches as one that was never killed, and networks the same numbers.
        rank: which of the processes that share the work this is.
        world_size: how many there are.

    Raises:
        UserError: an unknown suffix, or a file that this program did not make is in the way.
    """
    path = Path(path)
    part_size = -(-PART_SIZE // batch_size) * batch_size
    if path.suffix == SUFFIX:
        return PackedWriter(
            path, signature, names, shape, dtype, part_size, rank=rank, world_size=world_size
        )
    if path.suffix not in WRITABLE:
        raise UserError(f"features {path}: the suffix must be one of {', '.join(WRITABLE)}")
    return Hdf5Writer(path, signature, names, part_size, rank=rank, world_size=world_size)
