"""Reading batches of dense features in random order: packed files against HDF5.

    python benchmarks/data_loading.py [--out FILE.json] [--images 400] [--rounds 12]

Both read the same images at COCO's sizes (8 x 8 x 2048), from files in the page cache, in one
process. HDF5 is read as the original's loaders do: a dataset for each image, the file opened for
each item. Rounds of both alternate, and their fastest ones are compared: what else the machine does
only adds.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from generations.datasets import FeatureStore, convert_features, open_feature_store

GRID, DIM = 8, 2048
BATCH = 64


def write_original(path: Path, images: int) -> list[str]:
    """Images of random features, half of them zero as after a ReLU, in the original's layout."""
    rng = np.random.default_rng(0)
    names = [f"COCO_train2014_{number:012d}" for number in range(images)]
    with h5py.File(path, "w") as file:
        for name in names:
            values = rng.standard_normal((GRID, GRID, DIM), np.float32)
            file.create_dataset(f"{name}/features", data=np.maximum(values, 0))
    return names


def read_naive(path: Path, names: Sequence[str]) -> torch.Tensor:
    """(B, N, D) from HDF5, opened for each image."""
    found = []
    for name in names:
        with h5py.File(path, "r") as file:
            found.append(file[f"{name}/features"][()].reshape(-1, DIM))
    return torch.from_numpy(np.stack(found))


def read_ours(store: FeatureStore, names: Sequence[str]) -> torch.Tensor:
    """(B, N, D) from a store, as the training set reads them: in the type that is stored.

    Half-precision numbers become float32 on the training device.
    """
    return torch.from_numpy(store.read_batch(names))


def measure(images: int = 400, rounds: int = 12, dtype: str = "float16") -> dict[str, Any]:
    """Time random batches of 64.

    Args:
        images: in the files; 0.5 MB each as float32.
        rounds: batches that are timed on each side.
        dtype: of the packed file.

    Returns:
        name, ours_s and naive_s (seconds of a batch), ratio, equal (the packed numbers are
        those of HDF5, rounded to `dtype` as documented), images/s and file sizes.
    """
    with tempfile.TemporaryDirectory() as folder:
        original, packed = Path(folder) / "original.h5", Path(folder) / "ours.packed"
        names = write_original(original, images)
        convert_features(original, packed, dtype)
        store = open_feature_store([packed], GRID, DIM)
        hdf5 = open_feature_store([original], GRID, DIM)  # kept open
        rng = np.random.default_rng(1)
        seconds: dict[str, list[float]] = {"ours": [], "naive": [], "hdf5_kept_open": []}
        equal = True
        read_naive(original, names)  # warms the page cache
        read_ours(store, names)
        for _ in range(rounds):
            drawn = [names[i] for i in rng.choice(images, BATCH, replace=images < BATCH)]
            found = {
                name: _timed(seconds[name], read)
                for name, read in (
                    ("ours", lambda drawn=drawn: read_ours(store, drawn)),
                    ("naive", lambda drawn=drawn: read_naive(original, drawn)),
                    ("hdf5_kept_open", lambda drawn=drawn: read_ours(hdf5, drawn)),
                )
            }
            equal = equal and _equal(found["ours"], found["naive"], dtype)
            del found
        sizes = [path.stat().st_size for path in (packed, original)]
    ours, naive, kept = (min(times) for times in seconds.values())
    return {
        "name": f"data_loading_{dtype}",
        "ours_s": ours,
        "naive_s": naive,
        "ratio": naive / ours,
        "equal": equal,
        "hdf5_kept_open_s": kept,
        "ours_images_per_s": BATCH / ours,
        "naive_images_per_s": BATCH / naive,
        "file_size_ratio": sizes[0] / sizes[1],
    }


def _timed(seconds: list[float], read: Callable[[], torch.Tensor]) -> torch.Tensor:
    start = time.perf_counter()
    found = read()
    seconds.append(time.perf_counter() - start)
    return found


def _equal(ours: torch.Tensor, naive: torch.Tensor, dtype: str) -> bool:
    rounded = naive.to(getattr(torch, dtype)).float()
    return bool(torch.equal(ours.float(), rounded))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print a row for each type of number."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args(argv)
    rows = [
        measure(options.images, options.rounds, dtype)
        for dtype in ("float16", "bfloat16", "float32")
    ]
    sys.stdout.write(f"{'name':24}{'ours_s':>10}{'naive_s':>10}{'ratio':>8}{'equal':>7}\n")
    for row in rows:
        sys.stdout.write(
            f"{row['name']:24}{row['ours_s']:10.5f}{row['naive_s']:10.5f}{row['ratio']:8.1f}"
            f"{row['equal']!s:>7}\n"
        )
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
