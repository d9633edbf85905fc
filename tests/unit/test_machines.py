"""What machines lack: GPUs that cannot be used, shared memory, locales, homes, locks."""

import logging
import os
import signal
import warnings
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from generations import runtime
from generations.errors import UserError
from generations.runtime import machine


def driver_is_old():
    warnings.warn("The NVIDIA driver on your system is too old", stacklevel=1)
    return False


@pytest.mark.parametrize(
    ("files", "cuda", "visible", "told"),
    [
        ([Path("/dev/nvidia0")], None, None, "is built for CPUs alone; install"),
        ([Path("/dev/nvidia0")], "12.8", None, "driver on your system is too old"),
        ([Path("/dev/nvidia0")], "12.8", "", ""),  # it was hidden on purpose
        ([], None, None, ""),
    ],
)
def test_a_gpu_that_cannot_be_used_is_a_warning(monkeypatch, caplog, files, cuda, visible, told):
    monkeypatch.setattr(machine, "_gpu_files", lambda: files)
    monkeypatch.setattr("torch.version.cuda", cuda)
    monkeypatch.setattr("torch.version.hip", None)
    monkeypatch.setattr("torch.cuda.is_available", driver_is_old)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.choose_device("auto", None) == torch.device("cpu")
    assert (told in caplog.text and "slow" in caplog.text) if told else not caplog.text
    with pytest.raises(UserError, match=f"no usable GPU.*{told}"):
        machine.choose_device("cuda", None)


def test_a_gpu_without_kernels_is_a_warning_alone_and_an_error_when_asked_for(monkeypatch, caplog):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr(machine, "_fails", lambda device: "no kernel image is available")
    assert machine.choose_device("auto", None).type == "cpu"
    assert "no kernel image is available" in caplog.text
    for asked in (("cuda", None), ("auto", 0)):
        with pytest.raises(UserError, match=r"cannot compute .no kernel image"):
            machine.choose_device(*asked)


def test_the_log_begins_with_device_torch_world_size_and_precision(caplog):
    caplog.set_level(logging.INFO)
    with runtime.start("cpu", False, runtime.Precision(cpu_half=True)):
        pass
    (line,) = caplog.messages
    assert line.startswith("device cpu (") and torch.__version__ in line
    assert "world size 1" in line and line.endswith("precision autocast to bfloat16")


class EndsByABusError(torch.utils.data.Dataset):
    """As a worker does whose array no longer fits into /dev/shm."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGBUS)


def test_a_worker_out_of_shared_memory_is_no_lost_process():
    """Status 2 and not 76: started again it would end in the same way."""
    told = r"out of shared memory .*--shm-size.*num_workers 0"
    for workers in (1, 2):
        with pytest.raises(UserError, match=told), runtime.start("cpu", False):
            list(DataLoader(EndsByABusError(), num_workers=workers))
    full = RuntimeError("unable to write to file </torch_9_1_0>: No space left on device (28)")
    with pytest.raises(UserError, match=told), runtime.start("cpu", False):
        raise full


def test_little_shared_memory_is_told_before(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(machine, "_LITTLE", 2**70)
    machine.warn_of_little_shared_memory(0)
    assert not caplog.text
    machine.warn_of_little_shared_memory(2)
    assert "--shm-size" in caplog.text
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path / "none")
    machine.warn_of_little_shared_memory(2)
