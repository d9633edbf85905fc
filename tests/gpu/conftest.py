"""What the tests on a GPU share. Without one they are skipped.

    python -m pytest tests/gpu                     # on the GPU
    TEST_DEVICE=cpu python -m pytest tests/gpu     # the same, the CPU against itself: a rehearsal

They need torch, torchvision, yacs, tokenizers and h5py; what needs open_clip is skipped without it.
"""

import os
from collections.abc import Iterator

import pytest
import torch

DEVICE = os.environ.get("TEST_DEVICE", "cuda")
# read when CUDA starts: `deterministic 1` needs it, and here all runs share one process
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device that is compared with the CPU."""
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip("no usable GPU")
    return torch.device(DEVICE)


@pytest.fixture(autouse=True)
def whole_float32(device) -> Iterator[None]:
    """Products of float32 are those of float32, not of TF32."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.use_deterministic_algorithms(False)  # where a run has turned them on
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]
