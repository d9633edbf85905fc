"""Dense features packed into one array file: no opening, no searching, half the size.

The layout, all numbers little-endian:

    8 bytes   "GRIDFEAT"
    4 bytes   version, 1
    4 bytes   CRC-32 of the version, the length and the header
    8 bytes   length of the header
    header    JSON: dtype, shape (M, G, G, D), signature, the names of the M images, and `data`,
              the offset of the rows, a multiple of 4096
    rows      M arrays (G, G, D), one after the other, to the end of the file

A row is read with one `pread`: nothing is shared with other processes but the file itself, so it
may be read after a fork, in threads, and from an object that was sent to another process.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from generations.errors import UserError
from generations.files import short

SUFFIX = ".packed"
MAGIC, VERSION = b"GRIDFEAT", 1
_PREFIX = struct.Struct("<8sIIQ")
_BLOCK = 4096
_LARGEST_HEADER = 2**30
_AGAIN = (
    "make it again with `python generations/prepare.py features` or "
    "`python generations/convert_features.py`"
)
_STORED = {"float16": "<f2", "bfloat16": "<u2", "float32": "<f4"}
DTYPES = tuple(_STORED)


@dataclass(frozen=True)
class PackedHeader:
    """What a file says of itself.

    Attributes:
        dtype: one of `DTYPES`.
        shape: (G, G, D) of an image.
        signature: of everything the features depend on.
        names: of the images, in the order of the rows.
        data: offset of the first row in bytes; 0: not known yet.
    """

    dtype: str
    shape: tuple[int, int, int]
    signature: str
    names: Sequence[str]
    data: int = 0

    @property
    def row_bytes(self) -> int:
        """Size of an image's row."""
        return int(np.prod(self.shape)) * np.dtype(_STORED[self.dtype]).itemsize

    @property
    def file_bytes(self) -> int:
        """Size of the whole file, once `data` is known."""
        return self.data + len(self.names) * self.row_bytes

    def encode(self) -> tuple["PackedHeader", bytes]:
        """The header with its `data`, and everything that comes before the rows."""
        content: dict[str, Any] = {
            "dtype": self.dtype,
            "shape": [len(self.names), *self.shape],
            "signature": self.signature,
            "names": list(self.names),
        }
        # the offset is a part of what it depends on: its digits are counted generously
        room = _PREFIX.size + len(json.dumps(content)) + 64
        content["data"] = -(-room // _BLOCK) * _BLOCK
        text = json.dumps(content).encode()
        head = _PREFIX.pack(MAGIC, VERSION, _checksum(VERSION, text), len(text)) + text
        whole = PackedHeader(self.dtype, self.shape, self.signature, self.names, content["data"])
        return whole, head.ljust(whole.data, b"\0")


def read_header(path: Path) -> PackedHeader:
    """Read and check the part of a file that precedes the rows.

    Raises:
        UserError: no such file, of another kind or version, damaged, or cut short.
    """
    try:
        with path.open("rb") as file:
            return _read_header(file, path)
    except OSError as error:
        raise UserError(f"features {path} cannot be read: {error.strerror}") from None


def _read_header(file: Any, path: Path) -> PackedHeader:
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(_PREFIX.size)
    if len(prefix) < _PREFIX.size or prefix[: len(MAGIC)] != MAGIC:
        raise UserError(f"features {path}: not a packed features file, or damaged; {_AGAIN}")
    _, version, checksum, length = _PREFIX.unpack(prefix)
    text = file.read(length) if length <= min(size, _LARGEST_HEADER) else b""
    if len(text) != length or _checksum(version, text) != checksum:
        raise UserError(f"features {path}: its header is damaged or incomplete; {_AGAIN}")
    if version != VERSION:
        raise UserError(
            f"features {path} has version {version} of the packed format, but this program reads "
            f"version {VERSION}; {_AGAIN}"
        )
    try:
        header = _parse(json.loads(text))
    except Exception as error:  # whoever can count a checksum can write anything
        raise UserError(
            f"features {path}: its header is not valid ({short(error)}); {_AGAIN}"
        ) from None
    if header.file_bytes != size:
        raise UserError(
            f"features {path} has {size} bytes, but {len(header.names)} images of {header.shape} "
            f"{header.dtype} need {header.file_bytes}: the file is incomplete or still being "
            f"copied; copy it again, or {_AGAIN}"
        )
    return header


def _parse(content: Any) -> PackedHeader:
    count, *shape = (int(number) for number in content["shape"])
    rows, columns, dim = shape
    names = content["names"]
    header = PackedHeader(
        str(content["dtype"]), (rows, columns, dim), str(content["signature"]), names
    )
    if header.dtype not in DTYPES:
        raise ValueError(f"the dtype must be one of {', '.join(DTYPES)}, not {header.dtype}")
    if min(count, *shape) < 0 or count != len(names) or len(set(names)) != count:
        raise ValueError(f"{len(names)} names do not fit the shape {content['shape']}")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("a name is not a string")
    data = int(content["data"])
    if data < _PREFIX.size:
        raise ValueError(f"its rows start at an invalid offset, {data}")
    return PackedHeader(*(header.dtype, header.shape, header.signature), names, data)


def _checksum(version: int, text: bytes) -> int:
    return zlib.crc32(text, zlib.crc32(struct.pack("<IQ", version, len(text))))


class PackedFeatures:
    """A file of packed features; see `generations.datasets.stores.FeatureFile`.

    Raises:
        UserError: as `read_header`.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._file: FileIO | None = None
        self._seen: tuple[int, ...] = ()  # which file the header was read from
        self._open()

    def names(self) -> Iterator[str]:
        """The images in the file."""
        return iter(self._header.names)

    @property
    def header(self) -> PackedHeader:
        """What the file says of itself."""
        return self._header

    @property
    def dtype(self) -> np.dtype:
        """Of what `read_into` gives: float16 if that is what is stored, else float32."""
        return np.dtype("<f2" if self._header.dtype == "float16" else "<f4")

    def read(self, name: str) -> np.ndarray | None:
        """An image's (G, G, D) as float32; None if the image is not in the file."""
        stored = np.empty(self._header.shape, _STORED[self._header.dtype])
        return decode(stored, self._header.dtype) if self._read(name, stored) else None

    def read_into(self, name: str, out: np.ndarray) -> bool:
        """Read an image into (G, G, D) of `dtype`; False if the image is not in the file."""
        if self._header.dtype != "bfloat16":
            return self._read(name, out)
        values = self.read(name)
        if values is not None:
            out[...] = values
        return values is not None

    def _read(self, name: str, out: np.ndarray) -> bool:
        file = self._file or self._open()
        row = self._rows.get(name)
        if row is None:
            return False
        size = self._header.row_bytes
        if (
            out.nbytes != size
            or os.preadv(file.fileno(), [out.data], self._header.data + row * size) != size
        ):
            raise UserError(
                f"features {self.path}: the file was truncated or replaced while in use; {_AGAIN}"
            )
        return True

    def close(self) -> None:
        """Let go of the open file; the next read opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> FileIO:
        try:
            file = FileIO(self.path)
        except OSError as error:
            raise UserError(f"features {self.path} cannot be read: {error.strerror}") from None
        status = os.fstat(file.fileno())
        seen = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if seen != self._seen:  # at first, or when the file was replaced
            self._header = _read_header(file, self.path)
            self._rows = {name: row for row, name in enumerate(self._header.names)}
            self._seen = seen
        self._file = file
        return file

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])


# --- numbers -------------------------------------------------------------------------------------


def encode(features: np.ndarray, dtype: str) -> np.ndarray:
    """Round to the nearest number of a type, ties to even.

    Args:
        features: float32, finite.
        dtype: float16 (relative error up to 2^-11; below 6e-5 an absolute one up to 3e-8; at most
            65504), bfloat16 (up to 2^-8, the range of float32) or float32 (exact).

    Returns:
        What is stored: float16, float32, or for bfloat16 uint16.

    Raises:
        ValueError: a number that is not finite, or is too large for the type.
    """
    values = np.ascontiguousarray(features, "<f4")
    if dtype == "float32":
        stored = values
        good = np.isfinite(values).all()
    elif dtype == "float16":
        with np.errstate(over="ignore"):
            stored = values.astype("<f2")
        good = np.isfinite(stored).all()
    else:
        bits = values.view("<u4")
        stored = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
        good = np.isfinite(values).all() and bool(((stored & 0x7F80) != 0x7F80).all())
    if not good:
        raise ValueError(
            f"a value is not finite or too large for {dtype} (the largest is "
            f"{np.abs(values).max():.4g})"
        )
    return stored


def decode(stored: np.ndarray, dtype: str) -> np.ndarray:
    """What `encode` stored, as float32.

    NumPy's own conversion of float16 is seven times as slow: shift exponent and fraction to where
    float32 has them, and multiply by what the two exponents' offsets differ by, which also puts
    right the numbers below the smallest normal one.
    """
    if dtype == "float32":
        return stored
    if dtype == "bfloat16":
        bits = stored.astype("<u4")
        bits <<= 16
        return bits.view("<f4")
    bits = stored.view("<i2").astype("<i4")  # the sign fills the upper half
    bits <<= 13
    bits &= _SIGN_AND_MAGNITUDE
    values = bits.view("<f4")
    values *= _OFFSET
    if values.size and max(values.max(), -values.min()) >= 2**16:  # infinity and NaN
        return stored.astype("<f4")
    return values


_SIGN_AND_MAGNITUDE = np.int32(0x8FFFE000 - 2**32)
_OFFSET = np.float32(2.0**112)
