"""Pickled dictionaries of numpy arrays, read without running anything.

A pickle is a program. Here every name it may call is answered by a stand-in that only writes down
what it was given; the arrays are then built from plain bytes, so that not even numpy's own
unpickling code sees what the file says.
"""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from generations.errors import UserError
from generations.files import atomic_path

_AGAIN = "make the file again with `python generations/prepare.py clusters`"
_KINDS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}


def read_array_pickle(path: str | Path) -> dict[str, np.ndarray]:
    """Read a pickled {name: array of numbers}.

    Args:
        path: written by any pickle protocol and any version of numpy.

    Raises:
        UserError: no such file, a damaged one, or one that holds or calls anything else.
    """
    path = Path(path)
    try:
        packed = path.read_bytes()
        # latin1: how numpy arrays of Python 2 pickles have to be read
        content = _ArrayUnpickler(io.BytesIO(packed), encoding="latin1").load()
        if not isinstance(content, dict):
            raise _RefusedError(
                f"it must hold a dictionary of arrays, but holds a {type(content).__name__}"
            )
        arrays: dict[str, np.ndarray] = {}
        room = len(packed)
        for name, value in content.items():
            array = _array(value, room)
            arrays[_text(name)] = array
            room -= array.nbytes
        return arrays
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; {_AGAIN}") from None
    except _RefusedError as error:
        raise UserError(f"{path} is refused: {error}; {_AGAIN}") from None
    except Exception as error:  # a damaged pickle can raise anything
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise UserError(f"{path} is damaged or not a pickle ({reason}); {_AGAIN}") from None


def write_array_pickle(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write {name: array} as a pickle, atomically."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        pickle.dump(dict(arrays), file, protocol=4)


class _RefusedError(Exception):
    """The pickle holds something else than arrays."""


class _StandIn:
    """Takes the place of what a pickle calls; `__setstate__` keeps a pickle from setting fields."""

    def __init__(self, *arguments: Any):
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _NdArray(_StandIn):
    """numpy.ndarray, which is only ever named, never called."""


class _Dtype(_StandIn):
    """numpy.dtype(code, align, copy), whose state holds the byte order."""


class _Reconstruct(_StandIn):
    """An array whose state is (version, shape, dtype, is_fortran, bytes)."""


class _FromBuffer(_StandIn):
    """An array made of (buffer, dtype, shape, order), as protocol 5 has it."""


class _Encode(_StandIn):
    """Bytes written as text, as protocols 0 to 2 have them."""


_NAMES: dict[tuple[str, str], type[_StandIn]] = {
    ("numpy", "ndarray"): _NdArray,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Encode,
}
for _package in ("numpy.core", "numpy._core"):
    _NAMES[f"{_package}.multiarray", "_reconstruct"] = _Reconstruct
    _NAMES[f"{_package}.numeric", "_frombuffer"] = _FromBuffer


# Python's own implementation and not the one in C: that one takes memory for as many objects as a
# file claims to remember, and a flipped bit makes that thirty gigabytes
class SafeUnpickler(pickle._Unpickler):
    """Reads texts, numbers, lists and dictionaries: for those a pickle calls nothing by name."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"reading it would call {module}.{name}")


class _ArrayUnpickler(SafeUnpickler):
    def find_class(self, module: str, name: str) -> type[_StandIn]:
        try:
            return _NAMES[module, name]
        except KeyError:
            wanted = ascii(f"{module}.{name}")[1:-1]  # in a damaged file anything
            raise _RefusedError(
                f"reading it would call {wanted}, and only numpy arrays are read"
            ) from None


def _text(name: Any) -> str:
    if not isinstance(name, str):
        raise _RefusedError(f"the name {name!r:.60} is not a string")
    return name


def _array(value: Any, room: int) -> np.ndarray:
    """The array that a pickle describes, of at most `room` bytes: all of them lie in the file."""
    if isinstance(value, _Reconstruct) and isinstance(value.state, tuple):
        _, shape, dtype, is_fortran, data = value.state
        order = "F" if is_fortran else "C"
    elif isinstance(value, _FromBuffer):
        data, dtype, shape, order = value.arguments
    else:
        raise _RefusedError(
            f"it holds a {type(value).__name__.strip('_')}, which is not a numpy array"
        )
    if isinstance(data, _Encode):
        data = data.arguments[0]
    if isinstance(data, str):
        data = data.encode("latin1")
    if not isinstance(data, (bytes, bytearray)):
        raise _RefusedError("it holds an array of objects, not numbers")
    if len(data) > room:
        raise _RefusedError("its arrays are larger than the file")
    # a copy, because what was read from a buffer cannot be written to
    return (
        np.frombuffer(data, _dtype(dtype)).reshape(shape, order="F" if order == "F" else "C").copy()
    )


def _dtype(value: Any) -> np.dtype:
    if not isinstance(value, _Dtype) or not value.arguments:
        raise _RefusedError("it holds an array of an unknown type")
    code = value.arguments[0]
    if code not in _KINDS:
        raise _RefusedError(f"it holds an array of type {code!r:.20}, not numbers")
    order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "<"
    return np.dtype(code).newbyteorder(">" if order == ">" else "<")
