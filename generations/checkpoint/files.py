"""Files of tensors, read without running code in them and written atomically."""

import pickle
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from generations.checkpoint.keys import TIED
from generations.errors import UserError
from generations.files import atomic_path

PTH_SUFFIXES = (".pth", ".pt", ".bin")
WEIGHTS_FILE = "model.safetensors"
AGAIN = "copy or download it again"


# --- reading -------------------------------------------------------------------------------------


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read the weights in a .pth, .pt, .bin or .safetensors file.

    A zipped .pth is mapped, not read: its tensors cost memory only while they are used.

    Args:
        path: a file of weights, or a training checkpoint, of which the weights are taken.

    Returns:
        {name in the file: tensor on the CPU}

    Raises:
        UserError: no such file, another kind of file, a damaged one, or one that holds more than
            tensors and plain containers.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    return weights_in(read_pth(path), path)


def read_pth(path: str | Path) -> Any:
    """Read what torch.save wrote, zipped or in the older layout; only plain data is unpickled.

    Raises:
        UserError: as `read_tensors`.
    """
    path = Path(path)
    if path.suffix not in PTH_SUFFIXES:
        kinds = ", ".join((*PTH_SUFFIXES, ".safetensors"))
        raise UserError(f"checkpoint {path}: its suffix must be one of {kinds}")
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
    except FileNotFoundError:
        raise UserError(f"checkpoint {path} does not exist") from None
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read: {error}") from None
    if zipped:
        _check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a foreign or damaged pickle can raise anything
        raise _refusal(path, error) from None


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], str]:
    """Read a .safetensors file.

    Returns:
        {name: tensor on the CPU}, and the checksum that `save_safetensors` put in ('' for files
        of others, which have none).

    Raises:
        UserError: no such file, a damaged one, or none of this kind.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            checksum = (file.metadata() or {}).get("crc32", "")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # the parser's own errors and whatever a damaged header leads to
        raise UserError(
            f"checkpoint {path} is truncated, damaged or not a safetensors file ({_short(error)}): "
            f"{AGAIN}"
        ) from None
    if checksum and checksum != checksum_of(tensors):
        raise UserError(f"checkpoint {path} is damaged (wrong checksum): {AGAIN}")
    return tensors, checksum


def _check_archive(path: Path) -> None:
    """Hold the zip's checksums against its content: torch does not, and flipped bits would load."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            # torch compresses nothing, so what claims to unpack to more is no checkpoint
            if not stored or sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise UserError(
                    f"checkpoint {path} is a zip file that PyTorch did not write; give a .pth file "
                    "saved by torch.save"
                )
            damaged = archive.testzip()
    except UserError:
        raise
    except Exception as error:  # a damaged directory can raise anything
        raise UserError(
            f"checkpoint {path} is truncated or damaged ({_short(error)}): {AGAIN}"
        ) from None
    if damaged:
        raise UserError(f"checkpoint {path} is damaged (wrong checksum of {damaged}): {AGAIN}")


def _refusal(path: Path, error: Exception) -> UserError:
    found = re.search(r"(?:GLOBAL|function|class) ([\w.]+\.[\w.]+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and found:
        return UserError(
            f"checkpoint {path} is refused, because loading it would call {found[1]}; only tensors "
            "and plain containers are allowed. Save it again with torch.save(model.state_dict(), "
            "...) in a program that you trust"
        )
    return UserError(
        f"checkpoint {path} is truncated, damaged or not a PyTorch file ({_short(error)}): {AGAIN}"
    )


def weights_in(payload: Any, path: Path) -> dict[str, Tensor]:
    """The weights of what `read_pth` gave: all of it, or its "model" or "state_dict" entry."""
    if not isinstance(payload, Mapping):
        raise UserError(
            f"checkpoint {path} must hold a dictionary of tensors, but holds a "
            f"{type(payload).__name__}"
        )
    for entry in ("model", "state_dict"):
        if isinstance(payload.get(entry), Mapping):
            payload = payload[entry]
            break
    if not payload:
        raise UserError(f"checkpoint {path} contains no tensors")
    for name, value in payload.items():
        if not isinstance(name, str) or not _is_plain(value):
            raise UserError(
                f"checkpoint {path}: {name!r} must be a dense tensor, but is a "
                f"{type(value).__name__}"
            )
    return dict(payload)


def _is_plain(value: Any) -> bool:
    if not isinstance(value, Tensor):
        return False
    return value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized


def _short(error: Exception) -> str:
    text = (str(error) or type(error).__name__).splitlines()[0]
    return text[:120]


# --- writing -------------------------------------------------------------------------------------


def save_pth(path: str | Path, payload: Any, finish: Callable[[Path], None] | None = None) -> None:
    """torch.save, atomically.

    Args:
        path: the file.
        payload: what to save.
        finish: called with the temporary file before it takes its name.

    Raises:
        UserError: wrong suffix, or it cannot be written; an earlier file is left as it was.
    """
    path = Path(path)
    if path.suffix not in PTH_SUFFIXES:
        raise UserError(f"checkpoint {path}: its suffix must be one of {', '.join(PTH_SUFFIXES)}")
    try:
        with atomic_path(path) as temporary:
            # through Python's file, whose errors are exceptions in every case
            with temporary.open("wb") as file:
                torch.save(payload, file)
            if finish is not None:
                finish(temporary)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise unwritable(path, error) from error


def save_safetensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a .safetensors file atomically, with a checksum of names, shapes and values.

    Tied tensors are stored under their first name (see `keys.TIED`).

    Raises:
        UserError: it cannot be written; an earlier file is left as it was.
    """
    path = Path(path)
    ready = {
        name: tensor.detach().cpu().contiguous() for name, tensor in one_name_each(tensors).items()
    }
    metadata = {"format": "pt", "crc32": checksum_of(ready)}  # "format": transformers asks for it
    try:
        with atomic_path(path) as temporary:
            save_file(ready, temporary, metadata)
    except (OSError, RuntimeError) as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: Exception) -> UserError:
    """The error of a checkpoint that could not be written."""
    if isinstance(error.__context__, OSError):  # torch goes on to complain of what follows from it
        error = error.__context__
    return UserError(
        f"checkpoint {path} cannot be written ({_short(error)}); earlier checkpoints are not "
        "changed. Make room or choose another save_dir"
    )


def one_name_each(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the second name of a tied tensor; two different tensors both stay."""
    second_names = {
        second
        for second, first in TIED.items()
        if second in tensors and first in tensors and same(tensors[second], tensors[first])
    }
    return {name: tensor for name, tensor in tensors.items() if name not in second_names}


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are one, or equal."""
    if one.data_ptr() == other.data_ptr() and one.shape == other.shape:
        return True  # asked first: it is quick, and NaN is not equal to itself
    return torch.equal(one, other.to(one.dtype))


def checksum_of(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of names, types, shapes and values, as eight hexadecimal digits."""
    value = 0
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        value = zlib.crc32(flat.view(torch.uint8).numpy().data, value)
    return f"{value:08x}"


def refuse_misfit(
    source: str, what: str, missing: Sequence[str], unexpected: Sequence[str]
) -> None:
    """Raise a UserError if the names in a file of weights and in a network differ.

    Args:
        source: the file.
        what: the network it should fit.
        missing: names that the file lacks.
        unexpected: names that the network does not have, or has in another shape.
    """
    if not missing and not unexpected:
        return
    told = [
        f"{len(names)} {kind} ({', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''})"
        for names, kind in ((missing, "are missing"), (unexpected, "do not fit"))
        if names
    ]
    raise UserError(f"features.weights {source} does not fit {what}: {'; '.join(told)}")
