"""Memory of the process, and of the device."""

import ctypes
import sys

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_LARGEST = 2**30  # bytes of one array that is kept


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed, for the next step to use.

    Else each large array is handed back to the system and asked for anew, page by page: a fifth to
    a half of the time of a training step on a CPU. The peak hardly grows, as each step needs the
    same again.

    Returns:
        whether the C library can do that (glibc).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(set_option(_MMAP_THRESHOLD, _LARGEST) and set_option(_TRIM_THRESHOLD, 2**31 - 1))


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process can still have on a GPU; None: not a GPU."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    # what PyTorch has taken and does not use
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
