"""Write HDF5 files of dense features; a killed run can be resumed.

The images are written in parts, each a small HDF5 file that appears as a whole or
not at all; when all parts are there, they are put together. Until then an earlier file of
features stays as it was.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from generations.datasets.stores import FEATURES
from generations.errors import UserError
from generations.files import atomic_path, short

_SIGNATURE = "signature"


class Hdf5Writer:
    """Writes the features of a list of images; see `feature_writers.FeatureWriter`.

    Args:
        path: the HDF5 file to make.
        signature: of everything the features depend on (images, extractor, sizes). Parts and
            files of another signature are not used.
        names: all images that belong into the file.
        part_size: images in a part, held in memory until it is full.
        rank: which of the processes that share the work this is.
        world_size: how many there are.

    Raises:
        UserError: the file exists and was not written by this class.
    """

    def __init__(
        self,
        path: str | Path,
        signature: str,
        names: Sequence[str],
        part_size: int = 128,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.path = Path(path)
        self._signature = signature
        self._names = list(names)
        self._folder = self.path.with_name(f".{self.path.name}.{signature[:16]}.parts")
        starts = range(0, len(self._names), part_size)
        self._parts = [
            (self._folder / f"{number:06d}.h5", self._names[start : start + part_size])
            for number, start in enumerate(starts)
        ]
        self.is_finished = signature_of(self.path) == signature
        to_do = [] if self.is_finished else [p for p in self._parts if not p[0].exists()]
        self.done = len(self._names) - sum(len(names) for _, names in to_do)
        self._to_do = to_do[rank::world_size]
        self._grids: list[np.ndarray] = []  # of the part that is being filled

    @property
    def missing(self) -> list[str]:
        """The images whose features this process has still to add, in the order in which."""
        return [name for _, names in self._to_do for name in names]

    def start(self) -> None:
        """Nothing is to be made beforehand: a part is a file."""

    def add(self, name: str, grid: np.ndarray) -> None:
        """Write the next image.

        Args:
            name: the next one of `missing`.
            grid: (G, G, D) float32.
        """
        path, names = self._to_do[0] if self._to_do else (self.path, [])
        if name not in names or name != names[len(self._grids)]:
            raise ValueError(f"images must be added in order; {name} is not the next one")
        self._grids.append(grid)
        if len(self._grids) == len(names):
            with atomic_path(path) as temporary, h5py.File(temporary, "w", locking=False) as part:
                for written, features in zip(names, self._grids, strict=True):
                    part.create_dataset(f"{written}/{FEATURES}", data=features)
            self._grids = []
            self._to_do.pop(0)

    def finish(self) -> None:
        """Put the parts together; the file appears under its name."""
        if not self.is_finished:
            if not all(path.exists() for path, _ in self._parts):
                raise ValueError("finish() was called before all images were added")
            self._assemble()
            self.is_finished = True
        for folder in self.path.parent.glob(f".{self.path.name}.*.parts"):
            shutil.rmtree(folder)

    def _assemble(self) -> None:
        # in the folder of the parts, where what a killed run left is overwritten or swept away
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._folder / "whole.h5"
        with h5py.File(temporary, "w", locking=False) as whole:
            for path, names in self._parts:
                try:
                    with h5py.File(path, "r", locking=False) as part:
                        for name in names:
                            part.copy(name, whole)
                except Exception as error:  # a damaged file can raise anything
                    raise UserError(
                        f"{path} is damaged ({short(error)}): delete it and run "
                        "`python generations/prepare.py features` again"
                    ) from None
            whole.attrs[_SIGNATURE] = self._signature
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(self.path)


def signature_of(path: str | Path) -> str | None:
    """The signature of a file of features; None if there is no such file.

    Raises:
        UserError: the file exists and was not written by `Hdf5Writer`.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        with h5py.File(path, "r", locking=False) as file:
            signature = file.attrs.get(_SIGNATURE)
    except Exception as error:  # a damaged file can raise anything
        raise UserError(
            f"features {path} cannot be read ({short(error)}); delete it to make it again"
        ) from None
    if not isinstance(signature, str):
        raise UserError(
            f"features {path} were not made by prepare.py and would be overwritten: move the file "
            "away or choose another data_dir"
        )
    return signature
