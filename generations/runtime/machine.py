"""Checks of the machine: its device, GPUs that cannot be used, shared memory."""

import logging
import os
import re
import shutil
import warnings
from pathlib import Path

import torch

from generations.errors import UserError

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")
_LITTLE = 2**28  # bytes; Docker gives 64 MB
_MORE = "give the container more (docker run --shm-size=8g, or --ipc=host), or set num_workers 0"
_FULL = re.compile(r"killed by signal: Bus error|</torch_.*No space left", re.DOTALL)


def describe(
    device: torch.device, world_size: int, autocast: torch.dtype | None, tf32: bool
) -> str:
    """Device and kind, torch, world size and precision in one line, for the beginning of a log."""
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        kind = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB"
    else:
        kind = f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    precision = "float32" if autocast is None else f"autocast to {str(autocast)[6:]}"
    if device.type == "cuda" and tf32:
        precision += ", products of float32 in TF32"
    return (
        f"device {device} ({kind}), torch {torch.__version__}, world size {world_size}, "
        f"precision {precision}"
    )


def choose_device(name: str, local_rank: int | None) -> torch.device:
    """The device of this process.

    Args:
        name: auto, cpu, cuda, cuda:N or mps; auto is a CPU, with a warning, where there is a GPU
            that cannot be used.
        local_rank: number of this process on its machine; None: it is alone.

    Raises:
        UserError: there is no such device, or it cannot compute.
    """
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")  # torch says in a warning why a GPU cannot be used
        there = name.startswith(("auto", "cuda")) and torch.cuda.is_available()
    asked = name
    if name == "auto":
        name = "cuda" if there else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(
            f"device must be one of auto, cpu, cuda, cuda:N, mps, not {name!r}"
        ) from None
    why = ""
    if device.type == "cuda" and not there:
        why = _unusable(told) or "there is none"
        raise UserError(f"device {name}: this machine has no usable GPU ({why}); use device cpu")
    if device.type == "cuda":
        device = _own_gpu(device, local_rank)
        why = _fails(device)
        if why and (asked != "auto" or local_rank is not None):
            raise UserError(f"device {device} cannot compute ({why}); use device cpu")
    elif asked == "auto" and device.type == "cpu":
        why = _unusable(told)
    if why:
        logger.warning(
            "there is a GPU, but it cannot be used (%s); using the CPU, which is slow", why
        )
        return torch.device("cpu")
    return device


def _own_gpu(device: torch.device, local_rank: int | None) -> torch.device:
    if device.index is None:
        device = torch.device("cuda", local_rank or 0)
    elif local_rank is not None and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"device {device}: several processes of this machine would share one GPU; use device "
            "cuda, which gives each process its own"
        )
    if device.index >= torch.cuda.device_count():
        raise UserError(
            f"device {device} does not exist: this machine has {torch.cuda.device_count()} usable "
            "GPUs; lower NUM_GPUS or add GPUs to CUDA_VISIBLE_DEVICES"
        )
    return device


def _unusable(told: list[warnings.WarningMessage]) -> str:
    """Why torch sees no GPU although the machine has one, or ''."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or not _gpu_files():
        return ""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is built for CPUs alone; install a build for the GPU"
    said = [" ".join(str(warning.message).split()) for warning in told]
    return said[0][:300] if said else "does the driver fit the CUDA of torch? see nvidia-smi"


def _gpu_files() -> list[Path]:
    """The files by which Linux shows the GPUs of Nvidia and AMD."""
    return [*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev").glob("kfd")]


def _fails(device: torch.device) -> str:
    """What the smallest computation on a GPU ends with, or ''."""
    try:
        torch.ones(1, device=device).add(1).item()
    except RuntimeError as error:  # a build without kernels for this kind, a GPU that is in use
        return " ".join(str(error).split())[:200]
    return ""


# --- shared memory -------------------------------------------------------------------------------


def shared_memory_is_full(error: Exception) -> str:
    """What to do, if an error is that data-loading processes ran out of shared memory; else ''."""
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, RuntimeError) and _FULL.search(str(cause))):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return ""
    return f"data-loading processes ran out of shared memory ({SHARED_MEMORY}, {_size()}): {_MORE}"


def warn_of_little_shared_memory(num_workers: int) -> None:
    """Warn before the work begins where data-loading processes may run out of shared memory."""
    if num_workers and SHARED_MEMORY.is_dir():
        size = shutil.disk_usage(SHARED_MEMORY).total
        if size < _LITTLE:
            logger.warning("%s has only %s: %s", SHARED_MEMORY, _size(), _MORE)


def _size() -> str:
    try:
        return f"{shutil.disk_usage(SHARED_MEMORY).total / 2**20:,.0f} MB"
    except OSError:
        return "which is not there"
