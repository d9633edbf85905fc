"""Device, process group, seeds, precision: the only file that sees torch.distributed."""

import contextlib
import logging
import os
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from generations.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Runtime:
    """Where this process runs, and in which precision.

    Attributes:
        device: the device of this process.
        rank: number of this process among `world_size`.
        autocast_dtype: bfloat16 or float16 inside `autocast`, None for full float32.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1
    autocast_dtype: torch.dtype | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[Any]:
        """Context of a forward pass."""
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.autocast_dtype)

    def scaler(self, loss_scale: float = -1.0) -> torch.amp.GradScaler:
        """Loss scaler; it does nothing unless the precision is float16.

        Args:
            loss_scale: fixed scale, or -1 for a dynamic one.
        """
        if loss_scale > 0:
            # never grows: a fixed scale, as the flag says
            return torch.amp.GradScaler(
                self.device.type,
                init_scale=loss_scale,
                growth_interval=2**31 - 1,
                enabled=self.autocast_dtype == torch.float16,
            )
        return torch.amp.GradScaler(self.device.type, enabled=self.autocast_dtype == torch.float16)


@contextmanager
def start(device: str = "auto", distribute: bool = True, half: bool = True) -> Iterator[Runtime]:
    """Choose the device, join the launcher's process group, and leave it at the end.

    Args:
        device: auto, cpu, cuda, cuda:N or mps.
        distribute: join the group when the environment of torchrun or torch.distributed.launch is
            there.
        half: autocast to bfloat16, or float16 where the GPU has no bfloat16. On a CPU the model
            stays in float32: half precision is emulated there on most machines, and slower.

    Raises:
        UserError: the device does not exist here.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1")) if distribute else 1
    chosen = _device(device, int(os.environ.get("LOCAL_RANK", "0")) if world_size > 1 else None)
    autocast_dtype = None
    if half and chosen.type == "cuda":
        autocast_dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        torch.set_float32_matmul_precision("high")
    if world_size == 1:
        yield Runtime(chosen, autocast_dtype=autocast_dtype)
        return
    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Runtime(chosen, distributed.get_rank(), world_size, autocast_dtype)
    finally:
        distributed.destroy_process_group()


def _device(name: str, local_rank: int | None) -> torch.device:
    if name == "auto":
        name = "cpu"
        if torch.cuda.is_available():
            name = "cuda"
        elif torch.backends.mps.is_available():
            name = "mps"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device {name!r} is none of auto, cpu, cuda, cuda:N, mps") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"device {name}: this machine has no usable GPU; use device cpu")
        if device.index is None:
            device = torch.device("cuda", local_rank or 0)
        if device.index >= torch.cuda.device_count():
            raise UserError(
                f"device {device}: there are {torch.cuda.device_count()} GPUs here; "
                "lower NUM_GPUS or widen CUDA_VISIBLE_DEVICES"
            )
    return device


def seed_everything(*parts: int) -> None:
    """Seed the global generators (initialisation, dropout) from numbers such as (seed, rank)."""
    mixed = derive_seed(*parts)
    random.seed(mixed)
    np.random.seed(mixed % 2**32)
    torch.manual_seed(mixed)


def derive_seed(*parts: int) -> int:
    """One seed from several numbers, such as (seed, rank) or (seed, iteration)."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def generator(*parts: int) -> torch.Generator:
    """A CPU generator seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def data_parallel(module: nn.Module, runtime: Runtime) -> nn.Module:
    """Wrap a module so that its gradients are averaged over all processes.

    Which parameters a task uses differs from iteration to iteration, hence `find_unused`.
    """
    if runtime.world_size == 1:
        return module
    devices = [runtime.device.index] if runtime.device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=devices, find_unused_parameters=True)


def without_sync(module: nn.Module, skip: bool) -> AbstractContextManager[None]:
    """Context in which, if `skip`, forward and backward only accumulate on each process."""
    if skip and isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return contextlib.nullcontext()


def mean_over_ranks(values: Tensor, runtime: Runtime) -> Tensor:
    """Average a tensor of figures over all processes."""
    if runtime.world_size > 1:
        values = values.clone()
        distributed.all_reduce(values)
        values /= runtime.world_size
    return values


def wait_for_all(runtime: Runtime) -> None:
    """Return once every process has come here."""
    if runtime.world_size > 1:
        distributed.barrier()


def gather_lists(items: list, runtime: Runtime) -> list:
    """All processes' lists in rank order, joined, on every process."""
    if runtime.world_size == 1:
        return items
    parts: list[list] = [[] for _ in range(runtime.world_size)]
    distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]
