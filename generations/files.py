"""Atomic writing and safe reading of files."""

import json
import os
import socket
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from generations.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"
_UMASK = threading.Lock()  # reading it sets it: with two threads at it, it could stay at 0
ABANDONED_AFTER = 600.0  # seconds in which nothing was written to a temporary file
MOST_BYTES = 2**32  # that a packed file may unpack to


def umask() -> int:
    """The rights that new files of this process do not get."""
    with _UMASK:
        mask = os.umask(0)
        os.umask(mask)
    return mask


@contextmanager
def atomic_path(path: str | Path, durable: bool = True) -> Iterator[Path]:
    """Give a temporary path to write to; on success it is flushed and renamed to `path`.

    On any exception the temporary file is removed and an earlier `path` stays as it was. The
    temporary file lies in the same folder, so that the rename is atomic; its suffix is kept,
    because some libraries choose the format by it.

    Args:
        path: where the file belongs.
        durable: wait until the content is on the disk; for thousands of small files that can be
            made again, do not.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        prefix=f".{path.stem[:40]}-", suffix=f".tmp{path.suffix}", dir=path.parent
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if durable:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        # mkstemp makes files private to the user; results are as readable as any other file.
        temporary.chmod(0o666 & ~umask())
        temporary.replace(path)
        if durable:
            flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def remove_abandoned(folder: str | Path) -> None:
    """Remove temporary files of `atomic_path` that killed processes left in a folder."""
    for file in Path(folder).glob(".*-????????.tmp*"):
        with suppress(OSError):
            if time.time() - file.stat().st_mtime > ABANDONED_AFTER:
                file.unlink()


def flush_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can say so."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # not every system opens folders
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


@contextmanager
def only_writer(folder: Path, patience: float = 60.0) -> Iterator[None]:
    """Context in which this process alone may write into a folder; the end of a process frees it.

    Args:
        folder: made if it does not exist.
        patience: seconds to wait for another process to end.

    Raises:
        UserError: it does not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    with path.open("a+", encoding="utf-8") as file:
        deadline = time.monotonic() + patience
        while not _locked(file):
            if time.monotonic() > deadline:
                file.seek(0)
                raise UserError(
                    f"{folder} is in use: {file.read(200).strip() or 'another process'} writes "
                    "there; wait for that process, stop it, or choose another exp_id"
                )
            time.sleep(0.2)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _locked(file: IO[str]) -> bool:
    if fcntl is None:
        return True
    try:
        # of the process alone: a worker that it forked, and that outlives it, holds nothing
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks: nothing can be known
        return True
    return True


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file atomically (UTF-8, indented)."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: str | Path, what: str) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        what: what it should hold, for the error message ("captions", "manifest").

    Raises:
        UserError: the file is absent or no JSON; the message names it.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{what}: {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what}: cannot read {path}: {error}") from None
    except (ValueError, RecursionError) as error:  # also numbers too long, lists too deep
        raise UserError(f"{what}: {path} is not valid JSON: {short(error)}") from None


def short(error: BaseException) -> str:
    """An error's text in one line of bounded length."""
    return " ".join(str(error).split())[:120] or type(error).__name__


def read_array(path: str | Path, what: str, fix: str) -> np.ndarray:
    """Read an .npy file of numbers; it cannot claim to hold more than it does.

    Args:
        path: the file.
        what: what it should hold, for the error message.
        fix: what the user can do if it does not.

    Raises:
        UserError: absent, damaged, or something else than an array of numbers.
    """
    try:
        # mapped: a header whose array is larger than the file is refused and not allocated
        mapped = np.load(path, allow_pickle=False, mmap_mode="r")
        if not isinstance(mapped, np.ndarray) or mapped.dtype.kind not in "biuf":
            raise ValueError("it is not an array of numbers")
        return np.array(mapped)
    except FileNotFoundError:
        raise UserError(f"{what} {path} does not exist; {fix}") from None
    except Exception as error:  # a damaged file can raise anything
        raise UserError(
            f"{what} {path}: damaged, or not a .npy file ({short(error)}); {fix}"
        ) from None


def read_arrays(
    path: str | Path, names: Sequence[str], what: str, fix: str
) -> dict[str, np.ndarray]:
    """Read arrays of numbers out of an .npz file.

    Args:
        path: the file.
        names: of the arrays; more may be there.
        what: what it should hold, for the error message.
        fix: what the user can do if it does not.

    Raises:
        UserError: absent, damaged, without one of them, or too large to be one of ours.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(archive.getinfo(f"{name}.npy").file_size for name in names)
        if size > MOST_BYTES:
            raise ValueError(f"it unpacks to {size:,} bytes")
        with np.load(path, allow_pickle=False) as content:
            found = {name: content[name] for name in names}
        if not all(array.dtype.kind in "biuf" for array in found.values()):
            raise ValueError("it does not hold arrays of numbers")
    except FileNotFoundError:
        raise UserError(f"{what} {path} does not exist; {fix}") from None
    except Exception as error:  # a damaged file can raise anything
        raise UserError(
            f"{what} {path}: damaged, or not a .npz file that this program wrote ({short(error)}); "
            f"{fix}"
        ) from None
    return found
