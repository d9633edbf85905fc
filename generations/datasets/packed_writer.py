"""Write packed features with one or several processes; a killed run can be resumed.

The file is laid out in full in a hidden folder beside it, and every process writes its images
straight into their rows. Progress is a byte for each part of the file, written after the part's
rows are on the disk, in a file of each process's own. When all parts are there, the file gets its
name; until then an earlier one stays as it was.
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from generations.datasets.packed import PackedHeader, encode, read_header
from generations.errors import UserError

CONVERTED = "converted "  # how the signature of features begins that prepare.py cannot make again


class PackedWriter:
    """Writes the features of a list of images; see `feature_writers.FeatureWriter`.

    Args:
        path: the file to make.
        signature: of everything the features depend on. What was begun or finished under another
            signature, type or shape is not used.
        names: all images that belong into the file.
        shape: (G, G, D) of an image.
        dtype: what numbers are rounded to, see `packed.encode`.
        part_size: images in a part.
        rank: which of the processes that share the work this is.
        world_size: how many there are.

    Raises:
        UserError: there is a file that this program cannot make again.
    """

    def __init__(
        self,
        path: str | Path,
        signature: str,
        names: Sequence[str],
        shape: tuple[int, int, int],
        dtype: str = "float16",
        part_size: int = 128,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.path = Path(path)
        self._header, self._head = PackedHeader(dtype, shape, signature, list(names)).encode()
        key = hashlib.sha256(self._head + str(part_size).encode()).hexdigest()[:16]
        self._folder = self.path.with_name(f".{self.path.name}.{key}.parts")
        self._data = self._folder / "rows"
        self._rank = rank
        self._part_size = part_size
        self._parts = -(-len(names) // part_size)
        self.is_finished = self._is_there()
        done = self._done()
        to_do = [] if self.is_finished else [p for p in range(self._parts) if not done[p]]
        self.done = len(names) - sum(len(self._rows(part)) for part in to_do)
        self._to_do = to_do[rank::world_size]
        self._place = 0  # within the part that is being filled
        self._files: tuple[int, int] | None = None  # rows, progress

    @property
    def missing(self) -> list[str]:
        """The images whose features this process has still to add, in the order in which."""
        names = [self._header.names[row] for part in self._to_do for row in self._rows(part)]
        return names[self._place :]

    def start(self) -> None:
        """Lay out the file. Of several processes one does it, before the others add anything.

        Raises:
            UserError: the disk is full, or the folder cannot be written.
        """
        if self.is_finished:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if not self._is_laid_out():
                for file in self._folder.glob("done-*"):
                    file.unlink()
            rows = os.open(self._data, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                os.pwrite(rows, self._head, 0)
                _reserve(rows, self._header.file_bytes)
                os.fsync(rows)
            finally:
                os.close(rows)
        except OSError as error:
            raise self._unwritable(error) from None

    def add(self, name: str, grid: np.ndarray) -> None:
        """Write the next image.

        Args:
            name: the next one of `missing`.
            grid: (G, G, D) float32.

        Raises:
            UserError: a number is too large for the type, or the disk is full.
        """
        rows = self._rows(self._to_do[0]) if self._to_do else range(0)
        row = rows[self._place] if rows else -1
        if row < 0 or name != self._header.names[row]:
            raise ValueError(f"images must be added in order; {name} is not the next one")
        if grid.shape != self._header.shape:
            raise ValueError(
                f"features of {name} have the shape {grid.shape}, not {self._header.shape}"
            )
        try:
            stored = encode(grid, self._header.dtype)
        except ValueError as error:
            raise UserError(
                f"features of {name}: {error}; set features.dtype bfloat16 or float32"
            ) from None
        try:
            file, progress = self._files or self._open()
            _write(file, stored, self._header.data + row * self._header.row_bytes)
            self._place += 1
            if self._place == len(rows):
                os.fsync(file)  # the rows first: the mark says that they are there
                os.pwrite(progress, b"\1", self._to_do.pop(0))
                os.fsync(progress)
                self._place = 0
        except OSError as error:
            raise self._unwritable(error) from None

    def finish(self) -> None:
        """Give the file its name. Of several processes one does it, after all have added all."""
        self._close()
        if not self.is_finished:
            if not self._parts:
                self.start()
            if not all(self._done()):
                raise ValueError("finish() was called before all images were added")
            self._data.replace(self.path)
            self.is_finished = True
        for folder in self.path.parent.glob(f".{self.path.name}.*.parts"):
            shutil.rmtree(folder)

    def _rows(self, part: int) -> range:
        start = part * self._part_size
        return range(start, min(start + self._part_size, len(self._header.names)))

    def _is_there(self) -> bool:
        if not self.path.exists():
            return False
        try:
            found = read_header(self.path)
        except UserError as error:
            raise UserError(f"{error}; delete or move the file first") from None
        if found == self._header:
            return True
        if found.signature.startswith(CONVERTED):
            raise UserError(
                f"features {self.path} were made by convert_features.py and would be overwritten: "
                "move the file away, or choose another name or data_dir"
            )
        return False

    def _is_laid_out(self) -> bool:
        return self._data.is_file() and self._data.stat().st_size == self._header.file_bytes

    def _done(self) -> np.ndarray:
        """(parts,) bool: which are on the disk, whoever wrote them."""
        done = np.zeros(self._parts, bool)
        if self._is_laid_out():
            for file in self._folder.glob("done-*"):
                marks = np.fromfile(file, np.uint8)[: self._parts]
                done[: len(marks)] |= marks == 1
        return done

    def _open(self) -> tuple[int, int]:
        if self._rank == 0:
            self.start()
        rows = os.open(self._data, os.O_RDWR)
        progress = os.open(self._folder / f"done-{self._rank}", os.O_RDWR | os.O_CREAT, 0o666)
        self._files = (rows, progress)
        return self._files

    def _close(self) -> None:
        for file in self._files or ():
            os.close(file)
        self._files = None

    def _unwritable(self, error: OSError) -> UserError:
        size = self._header.file_bytes / 1e9
        return UserError(
            f"features {self.path} ({size:.1f} GB) cannot be written ({error.strerror}); make room "
            "or choose another data_dir. Finished work is kept, and the same command continues "
            "from there"
        )


def _reserve(file: int, size: int) -> None:
    """Make a file so long, where it is possible with the space on the disk set aside."""
    if size > os.fstat(file).st_size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    os.ftruncate(file, size)


def _write(file: int, stored: np.ndarray, offset: int) -> None:
    content = stored.data.cast("B")
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written
