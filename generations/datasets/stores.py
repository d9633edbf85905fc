"""Stores of the two levels of an image: dense grid features and cluster ids.

The formats are the original's (SPEC 3): an HDF5 file with a dataset `<image name>/features` of
(G, G, D) float32 per image, a pickled {image name: (N,) integers}, and the centroids as .npy; of
features also the packed files of `packed.py`. Of each there is one file for the train images and
one for the others; a name is looked up in both.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np

from generations.datasets.array_pickle import read_array_pickle
from generations.datasets.packed import SUFFIX, PackedFeatures
from generations.errors import UserError
from generations.files import read_array, short

FEATURES = "features"  # name of an image's dataset inside its HDF5 group
_LARGEST = 2**24  # numbers of one image that are read at all


class FeatureFile(Protocol):
    """One file of dense features. A new format implements this and joins `FEATURE_FORMATS`."""

    path: Path

    @property
    def dtype(self) -> np.dtype:
        """Of what `read_into` gives: float32, or float16 where that is all there is."""
        ...

    def names(self) -> Iterator[str]:
        """The images in the file."""
        ...

    def read(self, name: str) -> np.ndarray | None:
        """An image's array; None if the image is not in the file."""
        ...

    def read_into(self, name: str, out: np.ndarray) -> bool:
        """Read an image into (G, G, D) of `dtype`; False if the image is not in the file."""
        ...

    def close(self) -> None:
        """Let go of what is open; the next read opens it again."""
        ...


class FeatureStore:
    """Dense grid features of images, looked up in several files.

    It may be used in forked and spawned worker processes.

    Args:
        files: looked through in this order.
        grid_size: G.
        dim: D.

    Raises:
        UserError: the first image of a file is not (G, G, D).
    """

    def __init__(self, files: Sequence[FeatureFile], grid_size: int, dim: int):
        self._files = files
        self._shape = (grid_size, grid_size, dim)
        for file in files:
            first = next(file.names(), None)
            if first is not None:
                self._check(file.read(first), first, file.path)
                file.close()  # so that worker processes inherit nothing that is open

    def read(self, name: str) -> np.ndarray:
        """An image's features, row by row.

        Returns:
            (N, D) float32, finite.

        Raises:
            UserError: no file has the image, or its array is not as the configuration says.
        """
        for file in self._files:
            stored = file.read(name)
            if stored is not None:
                return self._check(stored, name, file.path)
        raise _not_found(name, "features", [file.path for file in self._files], "features")

    def read_batch(self, names: Sequence[str]) -> np.ndarray:
        """Several images' features, as they are stored where that is half the size.

        Returns:
            (B, N, D) float16 if all files are of it, else float32; finite. The numbers are those
            of `read`.

        Raises:
            UserError: as `read`.
        """
        dtype = np.result_type(*(file.dtype for file in self._files))
        batch = np.empty((len(names), *self._shape), dtype)
        for name, grid in zip(names, batch, strict=True):
            for file in self._files:
                # what the first file does not have may be of another type in the second
                if file.dtype == dtype and file.read_into(name, grid):
                    if not _is_finite(grid):
                        raise _not_finite(name, file.path)
                    break
            else:
                grid[...] = self.read(name).reshape(self._shape)
        return batch.reshape(len(names), -1, self._shape[2])

    def names(self) -> Iterator[str]:
        """The images in all files."""
        for file in self._files:
            yield from file.names()

    def _check(self, stored: np.ndarray | None, name: str, path: Path) -> np.ndarray:
        found = stored.shape if isinstance(stored, np.ndarray) else None
        if stored is None or found != self._shape:
            size, _, dim = self._shape
            raise UserError(
                f"{path}: features of {name} have the shape {found}, not {self._shape}; set "
                f"grid_size (now {size}) and grid_feat_dim (now {dim}) to match the file, or make "
                "it again with `python generations/prepare.py features`"
            )
        if not np.issubdtype(stored.dtype, np.floating):
            raise UserError(
                f"{path}: features of {name} must be floating point, not {stored.dtype}"
            )
        with np.errstate(over="ignore"):  # becomes infinity, and that is refused
            features = stored.astype(np.float32, copy=False).reshape(-1, self._shape[2])
        if not _is_finite(features):
            raise _not_finite(name, path)
        return features


def _is_finite(features: np.ndarray) -> bool:
    """Of float16 the greatest bits with and without a sign tell, in a tenth of the time."""
    if features.dtype != np.float16 or not features.size:
        return bool(np.isfinite(features).all())
    return bool(
        features.view(np.int16).max() < _INFINITY
        and features.view(np.uint16).max() < _INFINITY + 0x8000
    )


_INFINITY = 0x7C00  # of float16


def _not_finite(name: str, path: Path) -> UserError:
    return UserError(
        f"{path}: features of {name} contain NaN or infinity; make the file again with `python "
        "generations/prepare.py features`"
    )


def open_feature_store(paths: Sequence[str | Path], grid_size: int, dim: int) -> FeatureStore:
    """Open dense features; the suffix of a file tells its format.

    Raises:
        UserError: a file is absent, of no known format, damaged, or not of these sizes.
    """
    files = []
    for path in map(Path, paths):
        if path.suffix not in FEATURE_FORMATS:
            raise UserError(
                f"features {path}: the suffix must be one of {', '.join(FEATURE_FORMATS)}"
            )
        if not path.is_file():
            raise UserError(
                f"features {path} does not exist; make it with `python generations/prepare.py "
                "features`, or set grid_feat_path_train and grid_feat_path_valid"
            )
        files.append(FEATURE_FORMATS[path.suffix](path))
    return FeatureStore(files, grid_size, dim)


class Hdf5Features:
    """An HDF5 file, opened by each process at its first read."""

    def __init__(self, path: Path):
        self.path = path
        self._file: h5py.File | None = None
        self._process = 0

    def names(self) -> Iterator[str]:
        """The images in the file."""
        try:
            # a handle of its own: what a process opens before it forks is not for its children
            with h5py.File(self.path, "r", locking=False) as file:
                yield from map(str, file)
        except Exception as error:  # a damaged file can raise anything
            raise self._damaged(error) from None

    def read(self, name: str) -> np.ndarray | None:
        """An image's array just as it is stored; None if the image is not in the file."""
        try:
            file = self._open()
            if name not in file:
                return None
            return _own_array(file, name)
        except Exception as error:  # a damaged file can raise anything
            raise self._damaged(error, name) from None

    @property
    def dtype(self) -> np.dtype:
        """float32, whatever is stored."""
        return np.dtype(np.float32)

    def read_into(self, name: str, out: np.ndarray) -> bool:
        """Not here: numbers may have to be converted, and are checked first."""
        return False

    def close(self) -> None:
        """Let go of this process's handle."""
        self._file = None

    def _open(self) -> h5py.File:
        if self._file is None or self._process != os.getpid():
            self._file = h5py.File(self.path, "r", locking=False)
            self._process = os.getpid()
        return self._file

    def _damaged(self, error: Exception, name: str = "") -> UserError:
        return UserError(
            f"features {self.path}{f', image {name}' if name else ''}: damaged, or not an HDF5 "
            f"file of features ({short(error)}); make it again with `python generations/prepare.py "
            "features`"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}


def _own_array(file: h5py.File, name: str) -> np.ndarray:
    """An image's array. HDF5 can also point into other files: that is not followed."""
    for place in (name, f"{name}/{FEATURES}"):
        if not isinstance(file.get(place, getlink=True), h5py.HardLink):
            raise ValueError(f"{place} is missing or a link")
    stored = file[f"{name}/{FEATURES}"]
    if not isinstance(stored, h5py.Dataset) or stored.external or stored.is_virtual:
        raise ValueError(f"{stored!r} is not a dataset of this file")
    if stored.dtype.kind not in "biuf" or math.prod(stored.shape or ()) > _LARGEST:
        raise ValueError(f"{stored!r} is not a grid of features")
    return stored[()]


FEATURE_FORMATS: dict[str, Callable[[Path], FeatureFile]] = {
    SUFFIX: PackedFeatures,
    ".h5": Hdf5Features,
    ".hdf5": Hdf5Features,
}


class ClusterStore:
    """Cluster ids of images, all held in memory (4 bytes a cell).

    Args:
        paths: pickles of {image name: (N,) integers}.
        grid_size: G, N = G * G.
        clusters: K.

    Raises:
        UserError: a file is absent, damaged, or has ids that are not N numbers in 0..K-1.
    """

    def __init__(self, paths: Sequence[str | Path], grid_size: int, clusters: int):
        self._paths = [Path(path) for path in paths]
        self._rows: dict[str, int] = {}
        rows = []
        for path in self._paths:
            for name, ids in read_array_pickle(path).items():
                _check_cluster_ids(ids, name, path, grid_size, clusters)
                self._rows.setdefault(name, len(rows))
                rows.append(ids.astype(np.int32))
        self._table = np.array(rows, np.int32).reshape(-1, grid_size**2)

    def read(self, name: str) -> np.ndarray:
        """An image's cluster ids, row by row.

        Returns:
            (N,) int64 in 0..K-1.

        Raises:
            UserError: no file has the image.
        """
        if name not in self._rows:
            raise _not_found(name, "cluster ids", self._paths, "clusters")
        return self._table[self._rows[name]].astype(np.int64)

    def names(self) -> Iterator[str]:
        """The images in all files."""
        return iter(self._rows)


def open_cluster_store(paths: Sequence[str | Path], grid_size: int, clusters: int) -> ClusterStore:
    """Open cluster ids; see `ClusterStore`."""
    return ClusterStore(paths, grid_size, clusters)


def _check_cluster_ids(
    ids: np.ndarray, name: str, path: Path, grid_size: int, clusters: int
) -> None:
    cells = grid_size**2
    if ids.shape != (cells,) or ids.dtype.kind not in "iu":
        raise UserError(
            f"{path}: cluster ids of {name} must be ({cells},) integers, but have the shape "
            f"{ids.shape} and type {ids.dtype}; set grid_size (now {grid_size}), or make the file "
            "again with `python generations/prepare.py clusters`"
        )
    wrong = ids[(ids < 0) | (ids >= clusters)]
    if len(wrong):
        raise UserError(
            f"{path}: {name} has the cluster id {wrong[0]}, which is not in 0..{clusters - 1}; set "
            f"grid_cluster_num (now {clusters}) to the size of the codebook, or make the file "
            "again with `python generations/prepare.py clusters`"
        )


def load_centroids(path: str | Path, clusters: int, dim: int) -> np.ndarray:
    """Read the codebook.

    Args:
        path: .npy file.
        clusters: K.
        dim: D.

    Returns:
        (K, D) float32, finite.

    Raises:
        UserError: absent, damaged or of another shape.
    """
    fix = "make it again with `python generations/prepare.py clusters`"
    centroids = read_array(path, "centroids", f"{fix}, or set grid_cluster_centroids_path")
    if centroids.dtype.kind != "f":
        raise UserError(f"centroids {path} must be an array of floating point numbers; {fix}")
    if centroids.shape != (clusters, dim):
        raise UserError(
            f"centroids {path} have the shape {centroids.shape}, not ({clusters}, {dim}); set "
            "grid_cluster_num and grid_feat_dim to match the file, or " + fix
        )
    if not np.isfinite(centroids).all():
        raise UserError(f"centroids {path} contain NaN or infinity; {fix}")
    return centroids.astype(np.float32)


def _not_found(name: str, what: str, paths: Sequence[Path], step: str) -> UserError:
    return UserError(
        f"there are no {what} of the image {name} in {', '.join(map(str, paths))}; the captions "
        f"and these files belong to different datasets: run `python generations/prepare.py {step}`"
    )
